"""The rule for overflow: loads are exact, limits met to the unit, exponents follow the loads."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.training import exponents as exp
from atoll.training.exponents import Exponents, choose_widths, limit, load_of

WIDTHS = (32, 64)
magnitudes = st.floats(min_value=0.0, max_value=2.0**127, width=32, allow_subnormal=True)


@given(magnitudes, st.integers(-100, 102))
def test_a_load_is_the_exact_ceiling_of_the_scaled_maximum(largest, exponent):
    assert load_of(largest, exponent) == math.ceil(Fraction(largest) * Fraction(2) ** exponent)


def test_the_load_of_nothing_is_nothing_and_of_the_least_is_one():
    assert load_of(0.0, 102) == 0
    assert load_of(2.0**-149, -100) == 1
    assert load_of(1.0, 0) == 1
    assert load_of(1.0 + 2**-23, 0) == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_a_load_of_exactly_the_limit_overflows_and_one_less_does_not(width):
    state = Exponents.fresh([width])
    assert state.overflown([2 ** (width - 1)]) == [0]
    assert state.overflown([2 ** (width - 1) - 1]) == []
    assert limit(width) == 2 ** (width - 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_grains_of_exactly_half_the_limit_overflow_together_but_not_alone(width):
    state = Exponents((width,), [7], [[0]])
    half = load_of(2.0 ** (width - 2 - 7), 7)
    assert state.overflown([half]) == [] and state.overflown([half + half]) == [0]


def test_each_tensor_is_judged_by_its_own_width():
    state = Exponents.fresh([32, 64, 32])
    assert state.overflown([2**31 - 1, 2**31, 2**31]) == [2]


@given(
    st.sampled_from(WIDTHS),
    st.integers(-60, 102),
    st.lists(st.floats(0.0, 2.0**100, width=32), min_size=1, max_size=40),
)
def test_a_second_attempt_at_the_same_gradients_never_overflows(width, exponent, maxima):
    state = Exponents((width,), [exponent], [])
    (again,) = state.retry([sum(load_of(x, exponent) for x in maxima)])
    state.current = [again]
    load = sum(load_of(x, again) for x in maxima)
    assert state.overflown([load]) == []


@given(st.lists(st.floats(2.0**-30, 2.0**20, width=32), min_size=1, max_size=40))
def test_a_second_attempt_wastes_few_bits(maxima):
    """The new exponent leaves at most two bits unused beyond its headroom."""
    state = Exponents.fresh([32])
    loads = [sum(load_of(x, 40) for x in maxima)]
    state.current = state.retry(loads)
    again = sum(load_of(x, state.current[0]) for x in maxima)
    assert again >= limit(32) >> (exp.RETRY_HEADROOM_BITS + 2)


def test_a_retry_changes_no_state():
    state = Exponents.fresh([32, 64])
    before = (list(state.current), list(state.levels))
    state.retry([10, 2**60])
    assert (state.current, state.levels) == before
    assert not state.measured


def test_the_next_exponent_has_room_for_eight_times_the_largest_of_the_last_sixteen():
    state = Exponents((32,), [20], [])
    state.commit([2**26])  # its level is 27 - 20 = 7
    assert state.measured
    seen = []
    for _ in range(17):
        seen.append(state.current[0])
        state.commit([2**4])  # far smaller gradients from now on
    assert seen[:16] == [31 - 3 - 7] * 16, "the large step must count for sixteen commits"
    assert seen[16] > 31 - 3 - 7, "and then be forgotten"
    assert len(state.levels) == exp.HISTORY


@given(st.integers(1, 2**28 - 1), st.integers(-40, 68))
def test_eight_times_a_committed_load_fits(load, exponent):
    state = Exponents((32,), [exponent], [])
    state.commit([load])
    unscaled = Fraction(load) / Fraction(2) ** exponent
    assert 8 * unscaled * Fraction(2) ** state.current[0] <= 2**31


@pytest.mark.parametrize(("width", "highest"), [(32, 68), (64, 80)])
def test_a_tensor_without_gradient_keeps_a_finite_exponent(width, highest):
    state = Exponents.fresh([width])
    state.current = state.retry([0])
    for _ in range(40):
        state.commit([0])
    assert state.current == [highest]
    assert state.overflown([load_of(1.0, highest)]) == [0]  # when a gradient comes, it is noticed


def test_a_state_goes_through_a_checkpoint_and_decides_the_same():
    state = Exponents.fresh([32, 64])
    state.current = state.retry([2**33, 2**50])
    drawn = random.Random(3)
    for _ in range(20):
        state.commit([drawn.randrange(2**28), drawn.randrange(2**60)])
    copy = Exponents.restore(state.widths, state.state())
    assert copy == state and copy.digest() == state.digest()
    copy.commit([2**28, 2**59])
    assert copy.digest() != state.digest() and len(state.levels) == exp.HISTORY
    state.commit([2**28, 2**59])
    assert copy == state


def test_the_head_is_wide_and_the_rest_is_wide_only_where_bits_run_out():
    names = ["embedding.weight", "blocks.0.ffn.up.weight", "norm.weight"]
    few = choose_widths(names, head=names[0], num_grains=8, accumulator="auto")
    assert few == (64, 32, 32)
    # 31 - 3 - log2(G) >= 16 holds up to G = 2**12
    assert choose_widths(names, head="x", num_grains=2**12, accumulator="auto") == (32, 32, 32)
    assert choose_widths(names, head="x", num_grains=2**12 + 1, accumulator="auto") == (64, 64, 64)
    assert choose_widths(names, head=names[0], num_grains=8, accumulator="int32") == (32, 32, 32)
    assert choose_widths(names, head=names[0], num_grains=8, accumulator="int64") == (64, 64, 64)


@given(st.lists(magnitudes, max_size=12), st.integers(-20, 102))
def test_loads_travel_whole_however_large(maxima, exponent):
    loads = [load_of(x, exponent) for x in maxima]
    packed = exp.pack_loads(loads)
    assert all(isinstance(text, str) for text in packed)
    assert exp.unpack_loads(packed) == loads


def test_attempts_at_a_step_without_an_update_are_forgotten():
    state = Exponents.fresh([32, 64])
    state.commit([5, 0])
    before = state.state()
    state.current = state.retry([2**40, 2**70])
    assert state.state() != before
    state.forget_attempts()
    assert state.state() == before
