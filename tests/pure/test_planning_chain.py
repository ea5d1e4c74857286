"""A model cut into pipeline stages across islands: the search finds what trying every cut finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.pure.search_cases import FITTED, INFINITE, WIDTHS, machine_at, problem_from

from atoll.model import Model
from atoll.plan import Layout
from atoll.planning.chain import Chain, best_chain
from atoll.planning.cost import step_cost
from atoll.planning.layouts import powers_of_two, problem
from atoll.planning.memory import MemoryCoefficients, MemoryUse, memory_use, stage_buffers
from atoll.planning.options import USABLE
from atoll.planning.problem import Place, Problem
from atoll.planning.search import DoesNotFit, search


@st.composite
def chained(draw: st.DrawFn, *, sizes: Sequence[float] = (2.5e9, 4e9, 8e9, 3e10)) -> Problem:
    """Two or three islands of at most two devices, and a model of at most 12 layers."""
    count = draw(st.integers(2, 3))
    machines = []
    for index in range(count):
        machine = machine_at(
            index,
            peak={"bf16": draw(st.sampled_from([5e12, 1e13, 3e13]))},
            memory=draw(st.sampled_from(sizes)),
            memory_bandwidth=draw(st.sampled_from([2e11, 1e12])),
            node_devices=draw(st.sampled_from([1, 1, 2])),
            domain=1,
        )
        machines.append((machine, 1, draw(st.sampled_from(["s", "t"]))))
    heads = draw(st.sampled_from([2, 4]))
    model = Model(
        layers=draw(st.integers(2, 12)), width=heads * 128, heads=heads, ffn=1024,
        context=draw(st.sampled_from([512, 2048])), tied=draw(st.booleans()),
        vocab=draw(st.sampled_from([256, 8192, 32768])),
    )  # fmt: skip
    width = draw(st.sampled_from(WIDTHS))
    return problem_from(
        machines,
        model,
        links={("s", "t"): (width, 1e-3)},
        sites=("s", "t"),
        coefficients=replace(FITTED, memory=MemoryCoefficients(flight=1.8, buffers=1.8)),
        grain=draw(st.integers(1, 2)),
        grains=draw(st.integers(1, 6)),
    )


def stage_of(asked: Problem, place: Place, layout: Layout, layers: int) -> tuple[float, MemoryUse]:
    """Seconds of a micro-batch, and bytes with one in flight, of so many layers with the head."""
    work = replace(place.work, shape=replace(place.work.shape, layers=layers))
    c = asked.coefficients
    return step_cost(work, layout, place.machine, 1, c.time).each, memory_use(
        work, layout, 1, c.memory
    )


def needed(
    asked: Problem, place: Place, layout: Layout, layers: int, flight: int, turns: int
) -> float:
    """Bytes of a stage of `layers` layers that holds `flight` of a lane's `turns` micro-batches."""
    use = stage_of(asked, place, layout, layers)[1]
    c = asked.coefficients.memory
    ends = stage_buffers(place.work, layout, c)
    held = min(turns, 1.0 + c.flight * (flight - 1))
    return use.total + c.gaps * (use.activations * (held - 1.0) + ends * held)


def slowest_of_all(asked: Problem, found: Chain, order: Sequence[Place]) -> float:
    """The least slowest stage of all cuts, each island's stages alike, for a chain's choices."""
    layers = asked.places[0].work.shape.layers
    stages = [len(part.layers) for part in found.parts]
    best = INFINITE
    for most in product(range(1, layers + 1), repeat=len(order)):
        seconds, room = 0.0, 0
        for i, (place, part, n) in enumerate(zip(order, found.parts, most, strict=True)):
            flight = min(found.microbatches, sum(stages[i:]))
            if needed(
                asked, place, part.layout, n, flight, found.microbatches
            ) > USABLE * place.machine.memory * (1 + 1e-12):
                break
            two, one = (stage_of(asked, place, part.layout, k)[0] for k in (2, 1))
            head = one - (two - one) if i == len(order) - 1 else 0.0
            seconds = max(seconds, n * (two - one) + head)
            room += n * stages[i]
        else:
            if room >= layers:
                best = min(best, seconds)
    return best


@settings(max_examples=40)
@given(chained())
def test_a_chain_is_the_best_cut(asked: Problem) -> None:
    found = best_chain(asked)
    assume(found is not None)
    places = {place.name: place for place in asked.places}
    order = [places[part.name] for part in found.parts]
    layers = asked.places[0].work.shape.layers
    stages = [len(part.layers) for part in found.parts]
    assert len(order) >= 2 and len(set(places) & {part.name for part in found.parts}) == len(order)
    assert sum(sum(part.layers) for part in found.parts) == layers
    assert min(min(part.layers) for part in found.parts) >= 1
    for i, (place, part) in enumerate(zip(order, found.parts, strict=True)):
        devices = part.layout.dp * part.layout.tp * stages[i]
        assert devices <= place.devices
        assert problem(place.work, part.layout, place.devices) is None
        assert part.layout.dp == found.lanes
        two, one = (stage_of(asked, place, part.layout, k)[0] for k in (2, 1))
        assert part.stage_seconds >= max(part.layers) * (two - one) * (1 - 1e-9)
        if part is found.parts[-1]:
            head = one - (two - one)
            assert part.stage_seconds >= (part.layers[-1] * (two - one) + head) * (1 - 1e-9)
        flight = min(found.microbatches, sum(stages[i:]))
        exact = needed(asked, place, part.layout, max(part.layers), flight, found.microbatches)
        assert part.memory == pytest.approx(exact, rel=1e-6)
        assert part.memory <= USABLE * place.machine.memory * (1 + 1e-9)
    computing = max(part.stage_seconds for part in found.parts)
    assert found.slowest >= computing * (1 - 1e-12)
    assert computing <= slowest_of_all(asked, found, order) * (1.0 + 1e-6)
    turns = found.microbatches + sum(stages) - 1
    assert found.seconds >= turns * found.slowest


@settings(max_examples=60)
@given(chained(sizes=(1.8e9, 2.2e9)))
def test_no_chain_is_found_only_where_none_can_be(asked: Problem) -> None:
    """Whatever order, lanes and recompute: every cut breaks a memory."""
    assume(best_chain(asked) is None)
    layers = asked.places[0].work.shape.layers
    for order in (
        o for n in range(2, len(asked.places) + 1) for o in permutations(asked.places, n)
    ):
        for lanes in powers_of_two(min(asked.grains, *(place.devices for place in order))):
            stages = [place.devices // lanes for place in order]
            if sum(stages) > layers:
                continue
            room = 0
            for i, place in enumerate(order):
                layout = Layout(dp=lanes, zero=1, recompute="full")
                turns = math.ceil(asked.grains / lanes) * asked.grain
                flight = min(turns, sum(stages[i:]))
                usable = place.machine.memory * USABLE
                fits = [n for n in range(1, layers + 1)
                        if needed(asked, place, layout, n, flight, turns) <= usable]  # fmt: skip
                room += stages[i] * max(fits, default=-layers * layers)
            assert room < layers


def test_a_model_too_large_for_each_island_is_cut_over_both() -> None:
    model = Model(layers=12, width=1024, heads=8, ffn=4096, context=512, vocab=256)
    small = {"memory": 4e9, "node_devices": 1, "domain": 1}
    machines = [
        (machine_at(0, **small), 1, "s"),
        (machine_at(1, **small, peak={"bf16": 2.5e13}), 1, "t"),
    ]
    asked = problem_from(machines, model, links={("s", "t"): (1e10, 1e-3)}, sites=("s", "t"))
    found = search(asked)
    assert found.best.chain is not None and not found.options
    assert set(found.misfits) == {"i0", "i1"}
    counts = {part.name: sum(part.layers) for part in found.best.chain.parts}
    assert counts["i0"] > 0 and counts["i1"] > 0 and sum(counts.values()) == 12
    with pytest.raises(DoesNotFit):  # no link: no micro-batch ever arrives
        search(replace(asked, fleet=asked.fleet.model_copy(update={"link": []})))
