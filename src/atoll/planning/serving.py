"""Serving: an island that serves people - nodes needed at every hour, who is served in time, and
what it takes to move its chips to training and back.

The arithmetic of a request is `capacity`; here it meets a fleet, at the fast, the usual and the
slow end of what is not known (facts/serving.toml).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atoll import facts
from atoll.errors import AtollError
from atoll.facts.serving import serving
from atoll.fleet import Fleet, Island
from atoll.model import Model
from atoll.planning.capacity import Beyond, Capacity, Request, Served, capacity_of
from atoll.planning.correction import fitted
from atoll.planning.cost import Coefficients
from atoll.planning.machine import Machine, machine_of
from atoll.planning.planner import Asked, NoPlan
from atoll.traffic import Traffic
from atoll.units import parse_bandwidth, parse_seconds

STATE_BYTES = 12.0
"""Bytes a parameter that an island takes over when it joins: weights and two moments in fp32."""
Three = tuple[float, float, float]
"""Low, mid and high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An island that serves people. `load` is requests a second by hour of UTC.

    `capacities` are at the fast, the usual and the slow end; None where the targets are out of
    reach there.
    """

    traffic: Traffic
    island: Island
    model: str
    offset: float
    load: tuple[float, ...]
    capacities: tuple[Capacity | None, Capacity, Capacity | None]
    machine: Machine
    served: Served

    def nodes_for(self, rate: float, capacity: Capacity | None) -> float:
        """Whole nodes that so many requests a second need; infinite where none are enough."""
        if capacity is None:
            return math.inf
        return math.ceil(capacity.devices_for(rate) / self.machine.node_devices - 1e-9)

    def needed(self, hour: int, end: int = 1) -> float:
        """Nodes that an hour needs at its burst; `end` is 0 fast, 1 usual, 2 slow."""
        return self.nodes_for(self.traffic.burst * self.load[hour], self.capacities[end])

    @property
    def free(self) -> tuple[int, ...]:
        """Nodes that people do not need, by hour."""
        return tuple(max(0, self.island.nodes - int(self.needed(hour))) for hour in range(24))

    def in_time(self, hour: int, nodes: int, *, times: float = 1.0, end: int = 1) -> float:
        """The share of an hour's requests, `times` as many, that so many nodes serve in time.

        What is beyond the capacity is late or turned away; nobody else is slowed down by it.
        """
        capacity = self.capacities[end]
        devices = nodes * self.machine.node_devices
        rate = times * self.load[hour]
        if capacity is None or devices < capacity.least:
            return 0.0
        return min(1.0, devices / (rate * capacity.per_request)) if rate else 1.0


def server_of(traffic: Traffic, stock: Fleet, model: Model, name: str, asked: Asked) -> Server:
    """The server of an island of a stock. NoPlan where not one request is served in time."""
    island = next(one for one in stock.island if one.name == traffic.island)
    offset = stock.offset_of(island.site)
    assert offset is not None
    machine = machine_for(island, asked)
    served = Served.of(model, weights=traffic.weights, kv=traffic.cache)
    request = Request(
        tokens_in=traffic.tokens_in, tokens_out=traffic.tokens_out, cached=traffic.cached,
        first=parse_seconds(traffic.time_to_first_token),
        each=parse_seconds(traffic.time_per_token),
    )  # fmt: skip
    known = serving()
    c = Coefficients(**fitted()["time"])
    slow = known.slowness
    found: list[Capacity | None] = []
    for end in (slow.low, slow.mid, slow.high):
        try:
            found.append(capacity_of(
                served, machine, request, devices=island.nodes * machine.node_devices,
                slowness=end, overhead=parse_seconds(known.overhead.layer), c=c,
            ))  # fmt: skip
        except Beyond as fault:
            found.append(None)
            why = str(fault)
    if found[1] is None:
        fix = "what would help: a later target, a smaller model, 8-bit weights, other chips"
        raise NoPlan(
            f"{island.name} cannot serve {name} on {machine.chip} in time\n  {why}\n  {fix}"
        )
    return Server(
        traffic=traffic, island=island, model=name, offset=offset, machine=machine, served=served,
        load=tuple(one / 3600.0 for one in traffic.hourly_utc(offset)),
        capacities=(found[0], found[1], found[2]),
    )  # fmt: skip


def machine_for(island: Island, asked: Asked) -> Machine:
    """The machine of an island, as measured where it was."""
    chip = facts.chip(island.chip)
    return machine_of(
        chip, node_chips=island.chips_per_node, nodes=island.nodes,
        network=island.network.bytes_per_second if island.network is not None else None,
        measured=asked.measured.get(chip.name),
    )  # fmt: skip


def preset(name: str) -> Model:
    """The model of a preset."""
    return Model.model_validate(facts.model_preset(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """Seconds of moving an island's chips, each low, mid and high.

    `drain` until the last answers are out, `join` until they train; `leave` until the open step is
    done, `open` until people are served again.
    """

    drain: Three
    join: Three
    leave: Three
    open: Three

    @property
    def lend(self) -> Three:
        """From serving to training."""
        return _added(self.drain, self.join)

    @property
    def give_back(self) -> Three:
        """From training to serving."""
        return _added(self.leave, self.open)


def _added(a: Three, b: Three) -> Three:
    low, mid, high = (x + y for x, y in zip(a, b, strict=True))
    return low, mid, high


def moving_of(
    island: Island, fleet: Fleet, *, parameters: float, step: float, server: Server | None,
    machine: Machine,
) -> Moving:  # fmt: skip
    """What moving takes, as far as it can be reckoned; `step` is a step of the run in seconds.

    An answer that is open when a server drains takes its mean time, half of it or twice; a step
    that is open half of one, nothing or all. Joining and opening are a start and the bytes of the
    run's state, or of the served weights, over the wires or from storage: all nodes at once, one,
    or one chip alone.
    """
    start = serving().start.seconds()
    wires = _wires(island, fleet, machine)
    state = STATE_BYTES * parameters
    join = _added(start, (state / wires[0], state / wires[1], state / wires[2]))
    leave = (0.0, step / 2.0, step)
    if server is None:
        return Moving(drain=(0.0, 0.0, 0.0), join=join, leave=leave, open=(0.0, 0.0, 0.0))
    traffic = server.traffic
    answer = traffic.tokens_out * parse_seconds(traffic.time_per_token)
    drain = (answer / 2.0, answer, 2.0 * answer)
    if traffic.lend is not None:
        drain, join = _cut(traffic.lend.seconds, join)
    bandwidth = serving().load.bandwidths()
    if traffic.load is not None:
        bandwidth = (parse_bandwidth(traffic.load),) * 3
    held = machine.node_devices * server.served.held(
        server.capacities[1].tokens.tp, server.capacities[1].tokens.devices
    )
    open_ = _added(start, (held / bandwidth[0], held / bandwidth[1], held / bandwidth[2]))
    if traffic.give_back is not None:
        leave, open_ = _cut(traffic.give_back.seconds, open_)
    return Moving(drain=drain, join=join, leave=leave, open=open_)


def _cut(whole: Three, second: Three) -> tuple[Three, Three]:
    """A time that was given, split in two of which the second was reckoned."""
    low, mid, high = (min(a, b) for a, b in zip(whole, second, strict=True))
    rest = (whole[0] - low, whole[1] - mid, whole[2] - high)
    return rest, (low, mid, high)


def _wires(island: Island, fleet: Fleet, machine: Machine) -> Three:
    """Bytes a second over which an island takes the run's state: fast, usual, slow."""
    one = machine.network or machine.link or math.inf
    node = one * machine.node_devices
    whole = node * island.nodes
    for other in fleet.island:
        if other.name != island.name and other.site != island.site:
            try:
                path = fleet.path(island.site, other.site)
            except AtollError:
                continue
            if path is not None:
                return min(whole, path[0]), min(node, path[0]), min(one, path[0])
    return whole, node, one


def as_json(server: Server, lent: Sequence[int]) -> dict[str, Any]:
    """The keys of an island that serves, by hour of UTC; `lent` are the nodes that train."""
    names = ("low", "mid", "high")
    hours = range(24)
    return {
        "island": server.island.name,
        "model": server.model,
        "requests_a_day": 3600.0 * sum(server.load),
        "requests_per_second": list(server.load),
        "basis": "fitted" if server.machine.measured is None else "measured",
        "node_chips": server.island.chips_per_node,
        "nodes": server.island.nodes,
        "device_seconds_per_request": {
            name: None if one is None else one.per_request
            for name, one in zip(names, server.capacities, strict=True)
        },
        "nodes_needed": {
            name: [_finite(server.needed(hour, end)) for hour in hours]
            for end, name in enumerate(names)
        },
        "nodes_lent": list(lent),
        "in_time": [server.in_time(h, server.island.nodes - lent[h]) for h in hours],
        "in_time_at_burst": [
            server.in_time(h, server.island.nodes - lent[h], times=server.traffic.burst)
            for h in hours
        ],
        "in_time_if_slow": [
            server.in_time(h, server.island.nodes - lent[h], end=2) for h in hours
        ],
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
