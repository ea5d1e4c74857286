"""Splits: every grain exactly once, proportional, or as fast as any split can be."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.training import shares

seconds_of = st.lists(st.sampled_from([0.5, 1.0, 1.3, 2.0, 7.0]), min_size=1, max_size=3)


def makespan(split, seconds, lanes):
    return max(-(-count // lanes[n]) * seconds[n] for n, count in split.items())


@given(seconds_of, st.integers(0, 9), st.data())
def test_no_other_split_is_faster(seconds, num_grains, data):
    times = {f"i{i}": s for i, s in enumerate(seconds)}
    lanes = {name: data.draw(st.integers(1, 3)) for name in times}
    found = shares.by_speed(num_grains, grain_seconds=times, lanes=lanes)
    assert sum(found.values()) == num_grains and list(found) == list(times)
    best = min(
        makespan(dict(zip(times, split, strict=True)), times, lanes)
        for split in itertools.product(range(num_grains + 1), repeat=len(times))
        if sum(split) == num_grains
    )
    assert makespan(found, times, lanes) == best


def test_a_faster_island_gets_more_grains():
    found = shares.by_speed(8, grain_seconds={"a": 1.0, "b": 3.0}, lanes={"a": 1, "b": 1})
    assert found == {"a": 6, "b": 2}
    found = shares.by_speed(8, grain_seconds={"a": 1.0, "b": 1.0}, lanes={"a": 3, "b": 1})
    assert found == {"a": 6, "b": 2}


weights_of = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=7).filter(
    lambda w: sum(w) > 1e-3
)


@given(st.integers(0, 5000), weights_of)
def test_a_weighted_split_is_complete_and_within_one_grain_of_exact(num_grains, weights):
    named = {f"i{i}": w for i, w in enumerate(weights)}
    found = shares.by_weight(num_grains, named)
    assert sum(found.values()) == num_grains
    for name, weight in named.items():
        assert abs(found[name] - num_grains * weight / sum(weights)) < 1 + 1e-6
        assert weight or not found[name], "a share of 0 gets nothing"


def test_three_to_one_and_the_largest_remainders():
    assert shares.by_weight(8, {"a": 3, "b": 1}) == {"a": 6, "b": 2}
    assert shares.by_weight(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert shares.by_weight(7, {"a": 0.5, "b": 0.3, "c": 0.2}) == {"a": 4, "b": 2, "c": 1}
    assert shares.by_weight(7, {"a": 0.2, "b": 0.3, "c": 0.5}) == {"a": 1, "b": 2, "c": 4}


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(0, 2**40), st.integers(1, 10**6))
def test_a_seeded_split_is_complete_and_repeatable(num_grains, count, seed, step):
    names = [f"i{i}" for i in range(count)]
    found = shares.seeded(num_grains, names=names, seed=seed, step=step)
    assert sum(found.values()) == num_grains and list(found) == names
    assert all(value >= 0 for value in found.values())
    assert found == shares.seeded(num_grains, names=names, seed=seed, step=step)


def test_a_seeded_split_changes_from_step_to_step_and_with_the_seed():
    def splits(seed):
        found = [shares.seeded(16, names=["a", "b"], seed=seed, step=s) for s in range(1, 31)]
        return [split["a"] for split in found]

    assert len(set(splits(7))) > 8
    assert splits(7) != splits(8)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_ranges_cover_every_grain_exactly_once_in_order(counts):
    split = {f"i{i}": count for i, count in enumerate(counts)}
    ranges = shares.contiguous(split)
    assert {name: len(shares.grains_in(parts)) for name, parts in ranges.items()} == split
    grains = [grain for parts in ranges.values() for grain in shares.grains_in(parts)]
    assert grains == list(range(sum(counts)))


@pytest.mark.parametrize(
    ("ranges", "grains"), [([], []), ([[2, 2]], [2]), ([(0, 1), (5, 7)], [0, 1, 5, 6, 7])]
)
def test_grains_in_closed_ranges(ranges, grains):
    assert shares.grains_in(ranges) == grains
