"""Who computes which grains of a step. Arithmetic only; no choice here changes a bit."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from atoll.digest import digest_of
from atoll.fleet import Shares

if TYPE_CHECKING:
    from atoll.training.membership import Member

Ranges = list[tuple[int, int]]
"""Grains as closed ranges [(first, last), ...], counted from 0 within a step."""


def by_speed(
    num_grains: int, *, grain_seconds: Mapping[str, float], lanes: Mapping[str, int]
) -> dict[str, int]:
    """Numbers of grains that minimise the time of the slowest island (its makespan).

    An island with L lanes and t seconds a grain needs ceil(n / L) * t for n grains. Giving each
    next grain to the island that would finish it first is optimal, because every island's finishing
    time only grows with n and the grains are alike.
    """
    shares = dict.fromkeys(grain_seconds, 0)
    queue = [(seconds, i, name) for i, (name, seconds) in enumerate(grain_seconds.items())]
    heapq.heapify(queue)
    for _ in range(num_grains):
        _, i, name = queue[0]
        shares[name] += 1
        rounds = shares[name] // lanes[name] + 1
        heapq.heapreplace(queue, (rounds * grain_seconds[name], i, name))
    return shares


def by_weight(num_grains: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Largest-remainder split in proportion to `weights` (at least one of them positive)."""
    total = 0.0
    for weight in weights.values():
        total += weight
    exact = {name: num_grains * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    order = sorted(weights, key=lambda name: (shares[name] - exact[name], name))
    missing = num_grains
    for share in shares.values():
        missing -= share
    for name in order[:missing]:
        shares[name] += 1
    return shares


def seeded(num_grains: int, *, names: Sequence[str], seed: int, step: int) -> dict[str, int]:
    """A split that changes every step, drawn from (seed, step): some islands may get nothing."""
    cuts = sorted(
        int(digest_of([seed, step, i])[:12], 16) % (num_grains + 1) for i in range(len(names) - 1)
    )
    edges = [0, *cuts, num_grains]
    return {name: edges[i + 1] - edges[i] for i, name in enumerate(names)}


def of_step(
    rule: Shares,
    num_grains: int,
    *,
    step: int,
    members: Mapping[str, Member],
    given: Mapping[str, float | None],
) -> dict[str, Ranges]:
    """The split of a step over the members that are here, by the plan's rule; `given` are the
    shares that the fleet names, by all names.
    """
    named = {name: given.get(name) for name in members}
    started = any(len(member.seconds) > 1 for member in members.values())
    if rule.mode == "seeded":
        split = seeded(num_grains, names=list(members), seed=rule.seed, step=step)
    elif rule.mode == "fixed" or (not started and None not in named.values()):
        # One that joined without a share counts as 1.
        weights = {name: 1.0 if share is None else share for name, share in named.items()}
        split = by_weight(num_grains, weights)
    else:
        active = [name for name in members if named[name] != 0]
        split = dict.fromkeys(members, 0) | by_speed(
            num_grains,
            grain_seconds={name: members[name].grain_seconds for name in active},
            lanes={name: members[name].lanes for name in active},
        )
    return contiguous(split)


def contiguous(shares: Mapping[str, int]) -> dict[str, Ranges]:
    """Lay the shares one after another over the grains of a step."""
    ranges: dict[str, Ranges] = {}
    first = 0
    for name, count in shares.items():
        ranges[name] = [(first, first + count - 1)] if count else []
        first += count
    return ranges


def lay_out(counts: Mapping[str, int], grains: Sequence[int]) -> dict[str, Ranges]:
    """Give the first of `grains` (ascending) to the first island, and so on; runs become ranges."""
    laid: dict[str, Ranges] = {}
    first = 0
    for name, count in counts.items():
        mine = grains[first : first + count]
        first += count
        if mine:
            laid[name] = ranges_of(mine)
    return laid


def ranges_of(grains: Sequence[int]) -> Ranges:
    """Ascending grains as closed ranges."""
    ranges: Ranges = []
    for grain in grains:
        if ranges and ranges[-1][1] == grain - 1:
            ranges[-1] = (ranges[-1][0], grain)
        else:
            ranges.append((grain, grain))
    return ranges


def grains_in(ranges: Sequence[Sequence[int]]) -> list[int]:
    """All grain indices of closed ranges, in order."""
    return [grain for first, last in ranges for grain in range(first, last + 1)]
