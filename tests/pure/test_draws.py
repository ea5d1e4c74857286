"""Fleets that are drawn: triangles, quantiles, and stocks between those that are planned."""

import math
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure.test_calendar import START, change, fleet, island, over_time, recipe  # noqa: F401

from atoll.planning.draws import Draws, draw, speeds_on, triangle, triangle_of
from atoll.planning.planner import Asked, plan
from atoll.supply import Range


@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(0, 99), min_size=3, max_size=3))
def test_a_triangle_stays_inside(uniform, three) -> None:
    low, mid, high = sorted(three)
    (number,) = triangle(np.array([uniform]), Range(low=low, mid=mid, high=high))
    assert low <= number <= high and number == int(number)


def test_a_triangle_has_the_mean_of_its_corners() -> None:
    even = (np.arange(100_000) + 0.5) / 100_000
    numbers = triangle_of(even, 10.0, 20.0, 60.0)
    assert numbers.mean() == pytest.approx(30.0, rel=1e-3)
    assert triangle_of(even, 5.0, 5.0, 5.0).tolist() == [5.0] * 100_000


def test_quantiles_count_runs_that_never_end() -> None:
    drawn = Draws(seed=1, ends=(1.0, 2.0, 3.0, math.inf), plans=0)
    assert drawn.quantile(0.5) == 2.0 and drawn.quantile(0.75) == 3.0
    assert math.isinf(drawn.quantile(0.9)) and drawn.never == 0.25


def test_the_same_seed_draws_the_same(recipe) -> None:  # noqa: F811
    stock = fleet(delivery=[change("2024-07-05", 0, 16, 64)], failures=None)
    found = over_time(recipe, stock)
    one, same, other = (draw(found, number=500, seed=seed) for seed in (3, 3, 4))
    assert one.ends == same.ends and one.quantiles() == same.quantiles()
    assert other.ends != one.ends
    p10, p50, p90 = one.quantiles().values()
    best, worst = found.courses["high"].done, found.courses["low"].done
    assert best is not None and worst is not None
    assert 0 < p10 < p50 < p90
    assert best * 0.8 < p50 < worst * 1.2


def test_of_what_is_known_only_the_speed_is_drawn(recipe) -> None:  # noqa: F811
    found = over_time(recipe, fleet())
    drawn = draw(found, number=4000, seed=1)
    finish = plan(recipe, fleet(), Asked(day=START)).finish_seconds
    p10, p50, p90 = drawn.quantiles().values()
    assert p10 == pytest.approx(finish.low, rel=0.02)
    assert p50 == pytest.approx(finish.mid, rel=0.02)
    assert p90 == pytest.approx(finish.high, rel=0.02)


def test_stocks_that_are_not_planned_are_as_fast_as_if_they_were(recipe) -> None:  # noqa: F811
    """Two islands that vary: the speed of every drawn stock against the planner's own."""
    stock = fleet(
        island=[island("a"), island("b", 2, "h800")],
        delivery=[change("2024-07-02", 0, 32, 128), change("2024-07-02", 0, 16, 48, "b")],
    )
    found = over_time(recipe, stock)
    drawn = speeds_on(found, date(2024, 7, 2), number=300, seed=2)
    errors = []
    for index in range(0, 300, 25):
        answer = found.rates.of(drawn.stocks[index]).answer
        assert answer is not None
        errors.append(abs(drawn.tokens_per_second[index] / answer.tokens_per_second.mid - 1.0))
    assert float(np.median(errors)) < 0.02 and max(errors) < 0.08


def test_a_layout_of_the_neighbours_is_as_good_as_a_search(recipe) -> None:  # noqa: F811
    found = over_time(recipe, fleet())
    ends = [found.rates.of({"a": number}) for number in (32, 160)]
    for number in (48, 88, 136):
        quick, whole = found.rates.near({"a": number}, ends), found.rates.of({"a": number})
        assert quick.rate() == pytest.approx(whole.rate(), rel=0.005)
        assert quick.answer is not None and quick.answer.rejected == ()


def test_draws_say_how_far_off_they_may_be(recipe) -> None:  # noqa: F811
    found = over_time(recipe, fleet(delivery=[change("2024-07-02", 0, 32, 128)]))
    drawn = draw(found, number=400, seed=2)
    assert drawn.plans <= 24 and 0.0 <= drawn.off < 0.1
    assert draw(found, number=400, seed=2) == replace(drawn, plans=0)


def test_one_change_more_leaves_the_others_as_they_were(recipe) -> None:  # noqa: F811
    """What is drawn for a change is its own, so that two fleets can be compared run by run."""
    there = change("2024-07-05", 0, 16, 64)
    known = over_time(recipe, fleet(delivery=[there]))
    more = over_time(recipe, fleet(delivery=[change("2024-07-03", 32, 32, 32), there]))
    few, many = (speeds_on(one, date(2024, 7, 6), number=50, seed=1) for one in (known, more))
    for one, other in zip(few.stocks, many.stocks, strict=True):
        assert other["a"] == one["a"] + 32


def test_what_comes_in_three_of_ten_draws_moves_three_of_ten(recipe) -> None:  # noqa: F811
    coming = change("2024-07-02", 320, 320, 320) | {"probability": 0.3}
    found = over_time(recipe, fleet(delivery=[coming]))
    drawn, plain = (draw(one, number=2000, seed=1) for one in (found, over_time(recipe, fleet())))
    soon = sum(end < 0.6 * plain.quantile(0.5) for end in drawn.ends) / 2000
    assert soon == pytest.approx(0.3, abs=0.04)
    # The other seven are as they were: nine tenths of all are six of those seven.
    assert drawn.quantile(0.9) == pytest.approx(plain.quantile(6 / 7), rel=0.03)
