"""The pilot's numbers: right to the last place, and the same in any order and on any machine."""

import itertools
import math
import struct
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.recipe import OptimizerSpec, ScheduleSpec
from atoll.training import scalars
from atoll.training.exponents import HIGHEST_EXPONENT

getcontext().prec = 60


def nearest32(value):
    """`value` (a Fraction) rounded to the nearest fp32 by search among its neighbours."""
    guess = struct.unpack("<I", struct.pack("<f", float(value)))[0]
    candidates = []
    for bits in range(max(0, guess - 2), guess + 3):
        candidate = struct.unpack("<f", struct.pack("<I", bits))[0]
        if math.isfinite(candidate):
            candidates.append((abs(Fraction(candidate) - value), bits & 1, candidate))
    return min(candidates)[2]


@given(st.floats(min_value=0.0, max_value=2.0**120))
def test_round32_is_the_nearest_number_and_ties_go_to_even(value):
    assert scalars.round32(value) == nearest32(Fraction(value))
    assert scalars.round32(-value) == -scalars.round32(value)


def test_round32_at_ties():
    assert scalars.round32(1.0 + 2**-24) == 1.0
    assert scalars.round32(1.0 + 3 * 2**-24) == 1.0 + 2 * 2**-23
    with pytest.raises(OverflowError):
        scalars.round32(2.0**128)


def exact_cosine(x):
    """cos(x) of the exact value of the double x, to about 50 digits."""
    square, term, total, n = Decimal(x) ** 2, Decimal(1), Decimal(1), 0
    while abs(term) > Decimal(10) ** -55:
        n += 1
        term = -term * square / ((2 * n - 1) * (2 * n))
        total += term
    return total


@given(st.floats(0.0, 3.141592653589793))
def test_the_cosine_is_right_to_a_few_units_of_the_last_place(x):
    assert abs(Decimal(scalars.cosine(x)) - exact_cosine(x)) < Decimal(2) ** -51


def test_the_cosine_has_these_very_bits():
    """Written down once: another machine or Python that gives others breaks every run."""
    points = [0.0, 0.5, 1.0, 1.5707963267948966, 2.0, 3.0, 3.141592653589793]
    assert [scalars.cosine(x).hex() for x in points] == COSINES


COSINES = [
    "0x1.0000000000000p+0",
    "0x1.c1528065b7d50p-1",
    "0x1.14a280fb5068bp-1",
    "0x1.895474ec219bap-55",
    "-0x1.aa22657537206p-2",
    "-0x1.fae04be85e5d3p-1",
    "-0x1.0000000000000p+0",
]

squares_of = st.lists(
    st.tuples(st.integers(0, 2**62), st.integers(0, 48), st.integers(-60, 102)),
    min_size=1,
    max_size=12,
)


@given(squares_of, st.integers(1, 2**26))
def test_the_norm_is_right_to_the_last_place(squares, tokens):
    exact = Fraction(0)
    for total, shift, exponent in squares:
        exact += total * Fraction(4) ** (shift - exponent)
    found = scalars.gradient_norm(squares, tokens=tokens)
    if not exact:
        assert found == 0.0
        return
    root = (Decimal(exact.numerator) / Decimal(exact.denominator)).sqrt() / tokens
    assert abs(Decimal(found) - root) <= Decimal(math.ulp(found)) * Decimal("0.51")


@given(squares_of, st.randoms(use_true_random=False), st.integers(1, 2**26))
def test_the_norm_does_not_depend_on_the_order_of_tensors(squares, random, tokens):
    shuffled = list(squares)
    random.shuffle(shuffled)
    assert scalars.gradient_norm(shuffled, tokens=tokens) == scalars.gradient_norm(
        squares, tokens=tokens
    )


@given(squares_of, st.integers(-30, 30))
def test_the_norm_scales_with_the_exponents(squares, by):
    moved = [(total, shift, exponent + by) for total, shift, exponent in squares]
    assert scalars.gradient_norm(moved, tokens=1) == math.ldexp(
        scalars.gradient_norm(squares, tokens=1), -by
    )


def test_the_norm_of_a_perfect_square_is_exact():
    assert scalars.gradient_norm([(9, 0, 0), (16, 0, 0)], tokens=1) == 5.0
    assert scalars.gradient_norm([(9, 3, 3), (16, 0, 0)], tokens=4) == 1.25
    assert scalars.gradient_norm([(0, 5, 40)], tokens=7) == 0.0
    assert scalars.gradient_norm([], tokens=7) == 0.0


def rate(step, *, kind, warmup=10, steps=100, floor=0.1, lr=2.0):
    schedule = ScheduleSpec(steps=steps, warmup=warmup, kind=kind, floor=floor)
    return scalars.learning_rate(step, lr=lr, schedule=schedule, total_steps=steps)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_learning_rate_warms_up_in_equal_parts(kind):
    assert [rate(s, kind=kind) for s in range(1, 11)] == [2.0 * s / 10 for s in range(1, 11)]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_learning_rate_falls_to_its_floor_and_is_half_way_in_the_middle(kind):
    rates = [rate(s, kind=kind) for s in range(10, 101)]
    assert rates[0] == 2.0
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.2, rel=1e-12)
    assert rates[45] == pytest.approx(1.1, rel=1e-12)


def test_a_constant_learning_rate_stays():
    assert {rate(s, kind="constant") for s in range(10, 101)} == {2.0}


def test_the_cosine_is_steepest_in_the_middle():
    rates = [rate(s, kind="cosine") for s in range(10, 101)]
    falls = [a - b for a, b in itertools.pairwise(rates)]
    assert falls[45] > 5 * falls[0] and falls[45] > 5 * falls[-1]


def test_a_run_that_is_all_warm_up_and_one_without():
    assert rate(100, kind="cosine", warmup=100) == 2.0
    assert rate(1, kind="linear", warmup=0, steps=1) == pytest.approx(0.2)
    assert rate(1, kind="cosine", warmup=0, steps=2) == pytest.approx(1.1)


def test_the_clip_factor_is_one_until_the_norm_exceeds_the_bound():
    assert scalars.clip_factor(0.99, 1.0) == 1.0
    assert scalars.clip_factor(1.0, 1.0) == 1.0
    assert scalars.clip_factor(4.0, 1.0) == 0.25
    assert scalars.clip_factor(3.0, 1.0) == scalars.round32(1 / 3)
    assert scalars.clip_factor(1e9, 0.0) == 1.0
    assert scalars.clip_factor(0.0, 1.0) == 1.0


def update(step, exponents=(0,), **changes):
    fields = {"lr": 0.5, "clip": 1.0, "tokens": 96} | changes
    optimizer = OptimizerSpec(lr=0.5, beta1=0.875, beta2=0.75, eps=1e-8, weight_decay=0.25)
    return scalars.update_scalars(step, exponents=exponents, optimizer=optimizer, **fields)


def test_the_scalars_of_an_update_are_the_formula_rounded_once():
    values = update(3, exponents=(5, -2))
    mean = nearest32(Fraction(1, 96))
    assert values.scale == (mean / 32, mean * 4)
    assert values.beta1 == 0.875 and values.one_minus_beta1 == 0.125
    assert values.inverse_correction2 == nearest32(1 / (1 - Fraction(3, 4) ** 3))
    assert values.step_size == nearest32(Fraction(1, 2) / (1 - Fraction(7, 8) ** 3))
    assert values.decay == 1 - 0.5 * 0.25


def test_the_scale_is_exact_in_powers_of_two_at_every_exponent_that_can_occur():
    """A factor that fp32 holds only as a denormal number would differ between chips."""
    for exponent in range(-90, HIGHEST_EXPONENT + 1):
        (scale,) = update(1, exponents=(exponent,), tokens=2**28 - 1, clip=2.0**-16).scale
        assert scalars.round32(scale) == scale
        assert scale >= 2.0**-126, exponent


def test_the_corrections_vanish_after_many_steps_and_cost_nothing_more():
    late, later = update(20_000), update(20_000_000)
    assert late == later
    assert late.inverse_correction2 == 1.0 and late.step_size == 0.5
