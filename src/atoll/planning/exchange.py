"""Exchange: the seconds that islands need to add up their gradients, once a step or once a round.

Integer sums of 4 bytes a parameter (8 for the output head) move, as the trainer moves them: every
island scatters its sums and gathers the result, each host its own shard. Inside a site the islands'
networks carry that; between sites the links do, and every byte of a site's share crosses its uplink
once in each direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.planning.machine import Machine
from atoll.planning.work import Shape

ROUND_BYTES = 4.0
"""Bytes a parameter that one exchange between rounds moves (fp32 differences)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An island as the exchange sees it."""

    name: str
    site: str
    machine: Machine
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Seconds of one exchange between some islands, and what bounds it."""

    seconds: float
    bound: str


NONE = Exchange(seconds=0.0, bound="one island: nothing to exchange")


def exchange_bytes(shape: Shape, *, every: str) -> float:
    """Bytes of one island's contribution."""
    if every == "rounds":
        return ROUND_BYTES * shape.parameters
    return 4.0 * shape.parameters + 4.0 * shape.embedding


def exchange_seconds(
    members: Sequence[Member], fleet: Fleet, num_bytes: float, *, efficiency: float
) -> Exchange:
    """One exchange of `num_bytes` a member; `efficiency` of the wires is reached.

    A reduce-scatter and a gather over k members move 2 (k - 1) / k of the bytes through every
    member; s sites move 2 (s - 1) / s of them through every site's uplink and links. The slowest
    wire decides; latency counts once for every step of the ring. Between two sites traffic takes
    the way by which the whole is over soonest.
    """
    if len(members) < 2:
        return NONE
    count = len(members)
    through = 2.0 * (count - 1) / count * num_bytes
    unknown = [member.name for member in members if not member.machine.network]
    if unknown:
        return Exchange(seconds=math.inf, bound=f"the network of {unknown[0]} is not known")
    worst = max(members, key=lambda member: through / (member.machine.network * member.devices))
    seconds = through / (worst.machine.network * worst.devices * efficiency)
    bound = f"the network of {worst.name}"
    sites = list(dict.fromkeys(member.site for member in members))
    if len(sites) == 1:
        return Exchange(seconds=seconds, bound=bound)
    across = 2.0 * (len(sites) - 1) / len(sites) * num_bytes / efficiency
    pairs = [(site, sites[(index + 1) % len(sites)]) for index, site in enumerate(sites)]
    ways = []
    for site, other in pairs:
        try:
            ways.append([(across / width, delay) for width, delay in fleet.paths(site, other)])
        except InputError:
            return Exchange(seconds=math.inf, bound=f"no link leads from {site} to {other}")
    # Ways of a pair come widest first; narrower ones have less latency. The slowest one decides:
    # the others may take any way that is no slower.
    best = Exchange(seconds=math.inf, bound="")
    for slowest in sorted({busy for way in ways for busy, _ in way}):
        taken = [[one for one in way if one[0] <= slowest] for way in ways]
        if not all(taken):
            continue
        busy, delays = zip(*(mine[-1] for mine in taken), strict=True)
        total = max(seconds, *busy) + 2.0 * sum(delays)
        if total < best.seconds:
            late = pairs[busy.index(max(busy))]
            link = f"the link {late[0]} - {late[1]}"
            best = Exchange(seconds=total, bound=link if max(busy) > seconds else bound)
    return best
