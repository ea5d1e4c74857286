"""The search finds what trying everything finds; shares and links obey their laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.pure.search_cases import BARE, INFINITE, machine_at, problem_from, problems

from atoll.digest import canonical_json
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.model import Model
from atoll.plan import Layout
from atoll.planning import makespan
from atoll.planning.chain import best_chain
from atoll.planning.cost import Cost, step_cost
from atoll.planning.exchange import Member, exchange_bytes, exchange_seconds
from atoll.planning.layouts import layouts, problem
from atoll.planning.memory import MemoryUse, memory_use
from atoll.planning.options import RECOMPUTES, USABLE, Option, capacity, undominated
from atoll.planning.problem import Place, Problem
from atoll.planning.search import DoesNotFit, Found, search


def ways_of(asked: Problem, place: Place) -> dict[int, list[tuple[float, float]]]:
    """Grains -> (seconds, seconds a grain) of all layouts and recomputes that hold so many."""
    usable = place.machine.memory * USABLE
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in range(1, asked.grains + 1)}
    for layout in layouts(
        place.work, place.machine, place.devices, grain=asked.grain, grains=asked.grains, only={}
    ):
        per_grain = asked.grain // layout.microbatch
        for recompute, grains in product(RECOMPUTES, found):
            one = layout.model_copy(update={"recompute": recompute})
            turns = math.ceil(grains / layout.dp) * per_grain
            if memory_use(place.work, one, turns, asked.coefficients.memory).total <= usable:
                cost = step_cost(place.work, one, place.machine, turns, asked.coefficients.time)
                found[grains].append((cost.seconds, cost.each * per_grain))
    return found


def after(asked: Problem, names: set[str]) -> Callable[[float], float]:
    """Seconds a grain -> what an exchange between these islands adds after the last grain."""
    members = [place.member() for place in asked.places if place.name in names]
    c = asked.coefficients.time
    moved = exchange_bytes(asked.places[0].work.shape, every=asked.every)
    seconds = exchange_seconds(members, asked.fleet, moved, efficiency=c.network).seconds
    if asked.every == "rounds":
        return lambda each: seconds / asked.round_steps
    return lambda each: max(seconds - c.state_behind * each, c.state_exposed * seconds)


def best_of_all(asked: Problem) -> float:
    """Seconds of the best of all sets of islands and all ways to split the grains."""
    ways = [ways_of(asked, place) for place in asked.places]
    best = INFINITE
    for numbers in range(1, 2 ** len(ways)):
        used = [i for i in range(len(ways)) if numbers >> i & 1]
        adds = after(asked, {asked.places[i].name for i in used})
        tables = [
            {n: min((t + adds(each) for t, each in found), default=INFINITE)
             for n, found in ways[i].items()}
            for i in used
        ]  # fmt: skip
        for grains in product(range(1, asked.grains + 1), repeat=len(used)):
            if sum(grains) == asked.grains:
                best = min(best, max(table[n] for table, n in zip(tables, grains, strict=True)))
    return best


def found_or_none(asked: Problem) -> Found | None:
    try:
        return search(asked)
    except DoesNotFit:
        return None


@settings(max_examples=100)
@given(problems())
def test_the_search_is_as_good_as_trying_everything(asked: Problem) -> None:
    best, found = best_of_all(asked), found_or_none(asked)
    if found is None:
        assert best == INFINITE
        return
    chain = best_chain(asked) if found.misfits and len(asked.places) > 1 else None
    best = min(best, INFINITE if chain is None else chain.seconds)
    assert found.best.seconds == pytest.approx(best, rel=1e-9)


@given(problems())
def test_grains_are_all_given_out_and_none_is_negative(asked: Problem) -> None:
    found = found_or_none(asked)
    assume(found is not None and found.best.chain is None)
    grains = found.best.split.grains
    assert sum(grains.values()) == asked.grains
    assert all(n >= 1 for n in grains.values())
    assert set(grains) == set(found.best.split.options) <= {place.name for place in asked.places}


@given(problems())
def test_a_plan_fits_the_memory_with_the_share_that_it_gives(asked: Problem) -> None:
    found = found_or_none(asked)
    assume(found is not None and found.best.chain is None)
    for place in asked.places:
        if place.name in found.best.split.grains:
            layout = found.best.split.options[place.name].layout
            turns = math.ceil(found.best.split.grains[place.name] / layout.dp)
            turns *= asked.grain // layout.microbatch
            use = memory_use(place.work, layout, turns, asked.coefficients.memory)
            assert use.total <= USABLE * place.machine.memory
            assert problem(place.work, layout, place.devices) is None


def without_place(asked: Problem, index: int) -> Problem:
    return replace(asked, places=[p for i, p in enumerate(asked.places) if i != index])


@settings(max_examples=60)
@given(problems(fewest=2), st.data())
def test_one_more_island_never_makes_a_step_longer(asked: Problem, data: st.DataObject) -> None:
    fewer = found_or_none(
        without_place(asked, data.draw(st.sampled_from(range(len(asked.places)))))
    )
    assume(fewer is not None)
    more = found_or_none(asked)
    assert more is not None
    assert more.best.seconds <= fewer.best.seconds * (1.0 + 1e-9)


@settings(max_examples=60)
@given(problems(fewest=2, num_sites=2), st.sampled_from([1.5, 4.0, 100.0]))
def test_a_wider_link_never_makes_a_step_longer(asked: Problem, factor: float) -> None:
    assume(asked.fleet.link)
    found = found_or_none(asked)
    assume(found is not None)
    links = [
        link.model_copy(update={"bandwidth": f"{link.bytes_per_second * factor:.0f} B/s"})
        for link in asked.fleet.link
    ]
    wider = search(replace(asked, fleet=asked.fleet.model_copy(update={"link": links})))
    assert wider.best.seconds <= found.best.seconds * (1.0 + 1e-9)


def test_a_wide_link_brings_a_second_site_in() -> None:
    model = Model(layers=4, width=512, heads=8, ffn=1024, context=4096, vocab=1024)
    machines = [(machine_at(0), 2, "s"), (machine_at(0), 2, "t")]
    used = []
    for width in (1e4, 1e11):
        asked = problem_from(machines, model, links={("s", "t"): (width, 1e-4)}, grains=64)
        used.append(search(asked).best)
    assert [len(way.names) for way in used] == [1, 2]
    assert used[1].seconds < 0.7 * used[0].seconds


def test_without_a_link_only_one_site_computes() -> None:
    model = Model(layers=4, width=512, heads=8, ffn=1024, context=4096, vocab=1024)
    machines = [(machine_at(0), 2, "s"), (machine_at(0), 2, "t"), (machine_at(0), 2, "t")]
    found = search(problem_from(machines, model, links={}, grains=64))
    assert found.best.names == ("i1", "i2")
    assert found.others["all islands"].seconds == INFINITE


def test_an_exchange_takes_the_way_that_is_soonest_over() -> None:
    """A narrow direct link for little, a wide detour of great latency for much."""
    links = [
        {"between": ["s", "t"], "bandwidth": "1 GB/s", "latency": "1 ms"},
        {"between": ["s", "u"], "bandwidth": "10 GB/s", "latency": "1 s"},
        {"between": ["u", "t"], "bandwidth": "10 GB/s", "latency": "1 s"},
    ]
    fleet = Fleet.from_dict(
        {
            "site": [{"name": name} for name in "stu"],
            "island": [{"name": "a", "site": "s"}],
            "link": links,
        }
    )
    members = [
        Member(name=name, site=name, machine=machine_at(0), devices=8) for name in ("s", "t")
    ]
    for size, seconds in ((1e8, 0.1 + 4 * 1e-3), (1e12, 100.0 + 8.0)):
        found = exchange_seconds(members, fleet, size, efficiency=1.0)
        assert found.seconds == pytest.approx(seconds, rel=1e-6)


@given(problems())
def test_the_same_question_has_the_same_answer(asked: Problem) -> None:
    first, second = found_or_none(asked), found_or_none(asked)
    assert repr(first) == repr(second)
    assume(first is not None)
    layouts_found = {
        name: one.layout.model_dump() for name, one in first.best.split.options.items()
    }
    again = {name: one.layout.model_dump() for name, one in second.best.split.options.items()}
    assert canonical_json(layouts_found) == canonical_json(again)


# Splits alone, with invented options.


def option(lanes: int, fixed: float, each: float) -> Option:
    nothing = dict.fromkeys(Cost.__slots__, 0.0)
    return Option(
        layout=Layout(dp=lanes), fixed=fixed, each=each, factor=1.0,
        memory=MemoryUse(**dict.fromkeys(MemoryUse.__slots__, 1.0)),
        cost=Cost(**{**nothing, "fixed": fixed, "each": each, "microbatches": 1}),
    )  # fmt: skip


OPTIONS = st.builds(
    option,
    st.integers(1, 6),
    st.sampled_from([0.0, 0.1, 0.5, 3.0]),
    st.sampled_from([0.1, 0.25, 0.7, 1.0, 1.003, 1.3]),
)
ISLANDS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=100)
@given(ISLANDS, st.integers(1, 14))
def test_a_split_ends_as_early_as_any(islands: list[list[Option]], grains: int) -> None:
    options = {f"i{index}": mine for index, mine in enumerate(islands)}
    found = makespan.split(options, grains)
    assert sum(found.grains.values()) == grains
    assert all(n >= 1 for n in found.grains.values())
    best = min(
        max(
            min(one.fixed + math.ceil(n / one.layout.dp) * one.each for one in mine)
            for n, mine in zip(counts, islands, strict=True)
            if n
        )
        for counts in product(range(grains + 1), repeat=len(islands))
        if sum(counts) == grains
    )
    assert found.seconds == pytest.approx(best, rel=1e-9)


@given(ISLANDS, st.integers(1, 14), st.sampled_from([1e6, 1e9, 1e15, 1e30]))
def test_no_grain_is_lost_behind_a_wire_of_next_to_nothing(
    islands: list[list[Option]], grains: int, tail: float
) -> None:
    options = {f"i{n}": [replace(one, tail=tail) for one in own] for n, own in enumerate(islands)}
    found = makespan.split(options, grains)
    assert sum(found.grains.values()) == grains
    assert found.seconds == pytest.approx(tail, rel=1e-3)


@given(st.lists(OPTIONS, min_size=1, max_size=8), st.integers(1, 30))
def test_options_that_are_left_out_were_never_the_best(options: list[Option], grains: int) -> None:
    kept = undominated(options)
    best = min(one.seconds(grains) for one in options)
    assert min(one.seconds(grains) for one in kept) == best
    assert capacity(options, best * (1 + 1e-12)) == capacity(kept, best * (1 + 1e-12)) >= grains


SHARES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=3, max_size=3)


@given(st.lists(st.lists(OPTIONS, min_size=1, max_size=2), min_size=3, max_size=3), SHARES,
       st.integers(1, 40))  # fmt: skip
def test_fixed_shares_are_kept_to_less_than_a_grain(
    islands: list[list[Option]], shares: list[float], grains: int
) -> None:
    assume(sum(shares))
    options = {f"i{index}": mine for index, mine in enumerate(islands)}
    given_shares = {f"i{index}": share for index, share in enumerate(shares)}
    found = makespan.fixed_split(options, grains, given_shares)
    assert sum(found.grains.values()) == grains
    for name, share in given_shares.items():
        assert abs(found.grains.get(name, 0) - grains * share / sum(shares)) < 1.0
        assert share or name not in found.grains


@given(problems(fewest=2, num_sites=1), st.data())
def test_the_search_keeps_fixed_shares(asked: Problem, data: st.DataObject) -> None:
    free = found_or_none(asked)
    assume(free is not None and not free.misfits)
    weights = [data.draw(st.integers(0, 3)) for _ in asked.places]
    assume(sum(weights))
    shares = {place.name: float(n) for place, n in zip(asked.places, weights, strict=True)}
    fixed = search(replace(asked, shares=shares))
    for name, share in shares.items():
        exact = asked.grains * share / sum(weights)
        assert abs(fixed.best.split.grains.get(name, 0) - exact) < 1.0
    assert sum(fixed.best.split.grains.values()) == asked.grains
    if asked.coefficients is BARE:
        assert fixed.best.seconds >= free.best.seconds * (1.0 - 1e-9)


def test_fixed_shares_without_a_link_are_an_input_error() -> None:
    model = Model(layers=2, width=64, heads=2, ffn=128, context=64, vocab=256)
    machines = [(machine_at(0), 1, "s"), (machine_at(0), 1, "t")]
    asked = problem_from(machines, model, links={}, shares={"i0": 1.0, "i1": 1.0})
    with pytest.raises(InputError, match="no link leads from s to t"):
        search(asked)
    assert search(replace(asked, shares={"i0": 1.0, "i1": 0.0})).best.names == ("i0",)


def test_an_island_of_share_zero_does_not_step_in_where_the_others_do_not_fit() -> None:
    model = Model(layers=2, width=64, heads=2, ffn=128, context=64, vocab=256)
    machines = [(machine_at(0, memory=1e9), 1, "s"), (machine_at(1), 1, "t")]
    asked = problem_from(machines, model, links={}, shares={"i0": 1.0, "i1": 0.0})
    with pytest.raises(DoesNotFit) as caught:
        search(asked)
    assert set(caught.value.misfits) == {"i0"}


def test_islands_that_differ_in_latency_alone_are_not_one() -> None:
    model = Model(layers=2, width=64, heads=2, ffn=128, context=64, vocab=256)
    slow = machine_at(0, network_latency=1e-2, domain=1, node_devices=1)
    machines = [(replace(slow, network_latency=1e-6), 8, "s"), (slow, 8, "s")]
    asked = problem_from(machines, model, links={}, only={"dp": 8, "zero": 0})
    options = search(asked).options
    assert options["i1"][0].seconds(8) > options["i0"][0].seconds(8)
