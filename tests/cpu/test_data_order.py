"""The order of sequences: permutations, mixtures, and vectors that must never change."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.data.order import (
    MIXTURE_PERIOD,
    Order,
    Place,
    largest_remainder,
    permuted,
    round_keys,
)

keys_of = st.builds(round_keys, st.integers(0, 2**64), st.integers(0, 1000), st.integers(0, 9))

FIRST_64_OF_1000 = """
    995 333 295 289 66 50 93 545 640 293 45 446 53 686 101 86 796 287 751 813 997 144 298
    970 161 370 172 151 308 499 438 744 903 422 412 123 986 767 557 771 265 417 562 226 927
    286 15 529 55 725 949 849 869 121 337 205 56 917 495 365 990 484 106 548
"""

# source.epoch.window
FIRST_64_OF_MIXTURE = """
    1.0.3 2.0.4 0.0.19 0.0.64 0.0.13 1.0.12 1.0.2 1.0.6 2.0.3 1.0.14 0.0.77 0.0.0 0.0.85
    0.0.20 2.0.0 0.0.6 1.0.29 0.0.59 1.0.18 0.0.78 0.0.8 0.0.35 1.0.33 1.0.15 0.0.68 0.0.55
    0.0.30 0.0.98 2.0.1 2.0.2 1.0.34 2.1.3 0.0.82 1.0.9 1.0.36 1.0.35 1.0.10 0.0.84 1.0.0
    0.0.45 1.0.21 0.0.4 1.0.11 2.1.0 1.0.1 0.0.39 1.0.25 0.0.91 1.0.27 1.0.17 1.0.19 0.0.3
    1.0.7 1.0.32 0.0.23 0.0.2 0.0.97 1.0.28 0.0.95 0.0.28 0.0.9 0.0.27 0.0.57 0.0.43
"""


def test_the_permutation_of_a_fixed_key_is_pinned() -> None:
    keys = round_keys("atoll order 1", 1, 0, 0)
    assert [permuted(i, size=1000, keys=keys) for i in range(64)] == [
        int(word) for word in FIRST_64_OF_1000.split()
    ]


def test_the_places_of_a_fixed_mixture_are_pinned() -> None:
    counts = largest_remainder([0.5, 0.3, 0.2], total=MIXTURE_PERIOD)
    order = Order(seed=7, num_windows=(100, 37, 5), counts=counts)
    places = [order.place(position) for position in range(64)]
    found = [f"{p.source}.{p.epoch}.{p.window}" for p in places]
    assert found == FIRST_64_OF_MIXTURE.split()


@given(size=st.integers(1, 700), keys=keys_of)
def test_it_is_a_bijection_for_any_size_and_key(size: int, keys: tuple[int, ...]) -> None:
    images = [permuted(position, size=size, keys=keys) for position in range(size)]
    assert sorted(images) == list(range(size))


@given(power=st.integers(8, 60), offset=st.integers(-3, 3), keys=keys_of)
def test_values_of_huge_permutations_stay_inside_and_apart(
    power: int, offset: int, keys: tuple[int, ...]
) -> None:
    size = 2**power + offset
    images = {permuted(position, size=size, keys=keys) for position in range(100)}
    assert len(images) == 100
    assert min(images) >= 0
    assert max(images) < size


@given(seed=st.integers(0, 2**63), size=st.integers(64, 500))
def test_epochs_and_seeds_and_sources_differ(seed: int, size: int) -> None:
    def images(*parts: int) -> tuple[int, ...]:
        keys = round_keys("atoll order 1", *parts)
        return tuple(permuted(position, size=size, keys=keys) for position in range(size))

    different = {
        images(seed, 0, 0),
        images(seed, 1, 0),
        images(seed + 1, 0, 0),
        images(seed, 0, 1),
    }
    assert len(different) == 4


def test_it_looks_shuffled() -> None:
    """Neighbours land far apart: the mean distance of a random permutation is a third of N."""
    size = 20_000
    keys = round_keys("looks", 1)
    images = [permuted(position, size=size, keys=keys) for position in range(size)]
    distance = sum(abs(a - b) for a, b in pairwise(images)) / (size - 1)
    assert abs(distance / size - 1 / 3) < 0.01
    fixed = sum(position == image for position, image in enumerate(images))
    assert fixed < 12  # expected: 1, with a Poisson distribution


@given(
    weights=st.lists(st.floats(1e-6, 1e6, allow_nan=False), min_size=1, max_size=8),
    total=st.integers(1, 5000),
)
def test_largest_remainder_adds_up_and_is_off_by_less_than_one(
    weights: list[float], total: int
) -> None:
    counts = largest_remainder(weights, total=total)
    assert sum(counts) == total
    whole = sum(weights)
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - weight / whole * total) < 1 + 1e-6


def test_largest_remainder_gives_ties_to_the_first() -> None:
    assert largest_remainder([1.0, 1.0, 1.0], total=4) == (2, 1, 1)


@given(
    seed=st.integers(0, 2**32),
    windows=st.lists(st.integers(1, 60), min_size=1, max_size=3),
)
def test_every_pass_over_a_source_visits_each_window_once(seed: int, windows: list[int]) -> None:
    counts = largest_remainder([1.0 + i for i in range(len(windows))], total=MIXTURE_PERIOD)
    order = Order(seed=seed, num_windows=tuple(windows), counts=counts)
    seen: Counter[Place] = Counter(order.place(position) for position in range(1024))
    assert max(seen.values()) == 1
    for source, size in enumerate(windows):
        places = [place for place in seen if place.source == source]
        last = max(place.epoch for place in places)
        for epoch in range(last):
            found = {place.window for place in places if place.epoch == epoch}
            assert found == set(range(size))


@pytest.mark.parametrize("first", [0, MIXTURE_PERIOD, 5 * MIXTURE_PERIOD])
def test_a_mixture_has_exact_counts_in_every_period(first: int) -> None:
    counts = largest_remainder([0.7, 0.2, 0.1], total=MIXTURE_PERIOD)
    order = Order(seed=3, num_windows=(5000, 5000, 5000), counts=counts)
    found = Counter(order.place(first + i).source for i in range(MIXTURE_PERIOD))
    assert tuple(found[source] for source in range(3)) == counts
    early = Counter(order.place(first + i).source for i in range(MIXTURE_PERIOD // 4))
    assert all(early[source] > 0 for source in range(3))  # mixed, not one after the other


def test_a_source_of_a_mixture_ends_one_pass_before_it_begins_the_next() -> None:
    counts = largest_remainder([0.5, 0.5], total=MIXTURE_PERIOD)
    order = Order(seed=5, num_windows=(7, 100), counts=counts)
    places = [order.place(position) for position in range(3 * MIXTURE_PERIOD)]
    for source in range(2):
        epochs = [place.epoch for place in places if place.source == source]
        assert epochs == sorted(epochs)
        assert epochs[-1] > 10
