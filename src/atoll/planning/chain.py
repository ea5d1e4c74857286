"""Chain: one model cut into pipeline stages across islands, with more layers where it is faster.

For a model that fits no single island. Every one of the D lanes passes through all islands of the
chain; on each it has tp x pp devices. Stages of one island hold equally many layers, those of
unlike islands as many as their speed and memory allow (min-max over layers, arXiv:2509.24859 and
2504.17096 search the same space by enumeration). Activations cross the links between sites for
every micro-batch, gradients never do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations

from atoll.errors import InputError
from atoll.plan import Layout
from atoll.planning.cost import HALF, step_cost
from atoll.planning.layouts import powers_of_two, shape_problem
from atoll.planning.memory import (
    MemoryCoefficients,
    held_in_flight,
    memory_use,
    stage_buffers,
)
from atoll.planning.options import USABLE
from atoll.planning.problem import Place, Problem

LONGEST = 4
"""Up to so many islands every order is tried; longer chains go by memory for each FLOP/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An island's part of a chain: its stages, layers a stage, and seconds of a micro-batch."""

    name: str
    layout: Layout
    layers: tuple[int, ...]
    stage_seconds: float
    memory: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A pipeline across islands; `slowest` is the seconds of a micro-batch that set the pace."""

    parts: tuple[Part, ...]
    lanes: int
    microbatches: int
    slowest: float
    bound: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """All stages of one island: seconds and bytes a layer, bytes besides, how many of them."""

    place: Place
    layout: Layout
    count: int
    layer_seconds: float
    head_seconds: float
    layer_state: float
    layer_held: float
    buffers: float
    besides: float
    memory: MemoryCoefficients


def best_chain(problem: Problem) -> Chain | None:
    """The fastest chain over some or all islands; None if even all together do not fit."""
    best: Chain | None = None
    for order in _orders(problem.places):
        most = min(problem.grains, *(place.devices for place in order))
        for lanes in powers_of_two(most):
            for recompute in ("none", "full"):
                found = _chain(problem, order, lanes, recompute)
                if found is not None and (best is None or found.seconds < best.seconds):
                    best = found
    return best


def _orders(places: Sequence[Place]) -> Iterator[tuple[Place, ...]]:
    """Orders of islands worth trying: the first stages hold the most activations."""
    if len(places) <= LONGEST:
        for length in range(2, len(places) + 1):
            yield from permutations(places, length)
        return
    by_memory = sorted(
        places, key=lambda place: -place.machine.memory * place.devices / place.speed
    )
    yield tuple(by_memory)


def _chain(problem: Problem, order: Sequence[Place], lanes: int, recompute: str) -> Chain | None:
    """The best cut for a fixed order of islands, number of lanes and recompute."""
    stages = [_stages(problem, place, lanes, recompute) for place in order]
    if any(one is None for one in stages):
        return None
    islands = [one for one in stages if one is not None]
    layers = order[0].work.shape.layers
    total = sum(one.count for one in islands)
    if total > layers:
        return None
    microbatches = -(-problem.grains // lanes) * problem.grain
    caps = _caps(islands, microbatches)
    if caps is None or sum(c * s.count for c, s in zip(caps, islands, strict=True)) < layers:
        return None
    pace = _pace(islands, caps, layers)
    counts = _layers_of(islands, caps, pace)
    cut = _cut(islands, counts, layers)
    hop, bound = _hops(problem, order, lanes)
    if hop == float("inf"):
        return None
    seconds_of = [
        _stage_seconds(one, max(mine), last=one is islands[-1])
        for one, mine in zip(islands, cut, strict=True)
    ]
    slowest = max(hop, *seconds_of)
    if slowest > hop:
        late = seconds_of.index(slowest)
        bound = f"the slowest stage, on {islands[late].place.name},"
    update = max(
        _update_seconds(problem, one, mine) for one, mine in zip(islands, cut, strict=True)
    )
    seconds = (microbatches + total - 1) * slowest + update
    parts = tuple(
        Part(
            name=one.place.name,
            layout=one.layout,
            layers=tuple(mine),
            stage_seconds=seconds_of[i],
            memory=_bytes(one, max(mine), _in_flight(islands, i, microbatches)),
        )
        for i, (one, mine) in enumerate(zip(islands, cut, strict=True))
    )
    return Chain(
        parts=parts, lanes=lanes, microbatches=microbatches, slowest=slowest, bound=bound,
        seconds=seconds,
    )  # fmt: skip


def _stages(problem: Problem, place: Place, lanes: int, recompute: str) -> _Stages | None:
    """What one layer costs on an island whose devices are shared by `lanes` lanes."""
    shape, machine = place.work.shape, place.machine
    reach = min(machine.domain, machine.node_devices, place.devices // lanes)
    degrees = [tp for tp in powers_of_two(reach) if not shape_problem(place.work, Layout(tp=tp))]
    if not degrees:
        return None
    tp = degrees[-1]
    count = place.devices // (lanes * tp)
    ep = 1
    if shape.experts:
        ep = max(e for e in powers_of_two(lanes * tp) if shape.experts % e == 0)
    layout = Layout(
        dp=lanes, tp=tp, ep=ep, zero=1, microbatch=1, sequence_parallel=tp > 1,
        recompute="full" if recompute == "full" else "none",
    )  # fmt: skip
    c = problem.coefficients
    sizes = [
        replace(shape, layers=n, sparse_layers=n if shape.sparse_layers else 0) for n in (1, 2)
    ]
    works = [replace(place.work, shape=size) for size in sizes]
    costs = [step_cost(work, layout, machine, 1, c.time).each for work in works]
    uses = [memory_use(work, layout, 1, c.memory) for work in works]
    layer = costs[1] - costs[0]
    state = sum(u.weights + u.gradients + u.optimizer for u in uses[1:]) - sum(
        u.weights + u.gradients + u.optimizer for u in uses[:1]
    )
    held = uses[1].activations - uses[0].activations
    gaps = c.memory.gaps
    return _Stages(
        place=place, layout=layout, count=count, layer_seconds=layer,
        head_seconds=max(0.0, costs[0] - layer), layer_state=gaps * state,
        layer_held=gaps * held, buffers=gaps * stage_buffers(place.work, layout, c.memory),
        besides=uses[0].total - gaps * (state + held), memory=c.memory,
    )  # fmt: skip


def _in_flight(islands: Sequence[_Stages], index: int, microbatches: int) -> float:
    """Micro-batches that the first stage of an island holds: as many as stages follow, and it."""
    needed = min(microbatches, sum(one.count for one in islands[index:]))
    return held_in_flight(needed, microbatches, islands[index].memory)


def _bytes(one: _Stages, layers: int, flight: float) -> float:
    """Bytes on a device of a stage of `layers` layers that holds `flight` micro-batches."""
    held = flight * (layers * one.layer_held + one.buffers)
    return one.besides + layers * one.layer_state + held


def _caps(islands: Sequence[_Stages], microbatches: int) -> list[int] | None:
    """The most layers a stage of each island holds; None if one cannot hold any."""
    caps = []
    for index, one in enumerate(islands):
        flight = _in_flight(islands, index, microbatches)
        room = one.place.machine.memory * USABLE - _bytes(one, 0, flight)
        each = _bytes(one, 1, flight) - _bytes(one, 0, flight)
        caps.append(int(room / each) if room > 0 else 0)
    return caps if min(caps) >= 1 else None


def _stage_seconds(one: _Stages, layers: int, *, last: bool) -> float:
    """Seconds of a micro-batch on a stage; the output head stands on the last one."""
    return layers * one.layer_seconds + (one.head_seconds if last else 0.0)


def _layers_of(islands: Sequence[_Stages], caps: Sequence[int], pace: float) -> list[int]:
    """Layers a stage of each island can do within `pace` seconds and its memory."""
    heads = [one.head_seconds if one is islands[-1] else 0.0 for one in islands]
    return [
        min(cap, int((pace - head) / one.layer_seconds + 1e-9))
        for one, cap, head in zip(islands, caps, heads, strict=True)
    ]


def _pace(islands: Sequence[_Stages], caps: Sequence[int], layers: int) -> float:
    """The shortest time of a stage at which all layers find a place: one of k x layer seconds."""
    steps = sorted(
        {
            _stage_seconds(one, k, last=one is islands[-1])
            for one, cap in zip(islands, caps, strict=True)
            for k in range(1, cap + 1)
        }
    )
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        found = _layers_of(islands, caps, steps[middle])
        placed = sum(n * one.count for n, one in zip(found, islands, strict=True))
        if placed >= layers and min(found) >= 1:
            high = middle
        else:
            low = middle + 1
    return steps[low]


def _cut(islands: Sequence[_Stages], counts: Sequence[int], layers: int) -> list[list[int]]:
    """Layers of every stage: at most `counts` each, at least one, all layers together."""
    cut = [[n] * one.count for n, one in zip(counts, islands, strict=True)]
    surplus = sum(map(sum, cut)) - layers
    # The last stages give up layers first: the output head is theirs.
    for mine in reversed(cut):
        for index in reversed(range(len(mine))):
            taken = min(surplus, mine[index] - 1)
            mine[index] -= taken
            surplus -= taken
    return cut


def _hops(problem: Problem, order: Sequence[Place], lanes: int) -> tuple[float, str]:
    """Seconds in which the slowest border between islands passes one micro-batch of all lanes."""
    work = order[0].work
    num_bytes = work.sequence * work.shape.width * HALF * lanes
    worst, bound = 0.0, ""
    for a, b in pairwise(order):
        wire = min(place.machine.network * place.devices for place in (a, b))
        name = f"the border {a.name} - {b.name}"
        if a.island.site != b.island.site:
            try:
                path = problem.fleet.path(a.island.site, b.island.site)
            except InputError:
                path = None
            if path is None:
                return float("inf"), f"no link between {a.island.site} and {b.island.site}"
            wire, name = min(wire, path[0]), f"the link {a.island.site} - {b.island.site}"
        seconds = num_bytes / (wire * problem.coefficients.time.network)
        if seconds > worst:
            worst, bound = seconds, name
    return worst, bound


def _update_seconds(problem: Problem, one: _Stages, layers: Sequence[int]) -> float:
    """Exchange of gradients over the lanes inside an island, and the update."""
    shape = replace(one.place.work.shape, layers=max(layers))
    if shape.sparse_layers:
        shape = replace(shape, sparse_layers=max(layers))
    work = replace(one.place.work, shape=shape)
    return step_cost(work, one.layout, one.place.machine, 1, problem.coefficients.time).fixed
