"""The proof vectors: built from integers alone, and the shipped file is what is built."""

import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.backends import vectors


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def value_of(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(FINITE)
def test_a_number_survives_being_a_fraction(value: float) -> None:
    assert float(vectors.fraction_of(bits_of(value))) == value
    assert vectors.rounded(Fraction(value)) == bits_of(value + 0.0 if value else 0.0)


@given(st.floats(min_value=-1e30, max_value=1e30))
def test_rounding_is_that_of_the_machine(value: float) -> None:
    # struct rounds a double to the nearest fp32, ties to even, as IEEE 754 says.
    assert vectors.rounded(Fraction(value)) == bits_of(value + 0.0 if value else 0.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Fraction((1 << 24) + 1), 1 << 24),  # ties go to the even neighbour, down
        (Fraction((1 << 24) + 3), (1 << 24) + 4),  # and up
        (Fraction(2) - Fraction(1, 1 << 25), 2),  # rounding carries into the next binade
        (Fraction(1, 1 << 149), Fraction(1, 1 << 149)),  # the smallest denormal
        (Fraction(1, 1 << 150), 0),  # halfway to it: to even, which is zero
        (Fraction(3, 1 << 151), Fraction(1, 1 << 149)),
    ],
)
def test_rounding_at_the_borders(value: Fraction, expected: Fraction | int) -> None:
    assert vectors.fraction_of(vectors.rounded(value)) == expected
    assert vectors.fraction_of(vectors.rounded(-value)) == -expected


@given(st.floats(width=32, min_value=2.0**-96, max_value=2.0**100))
def test_roots_are_nearest(value: float) -> None:
    root = vectors.fraction_of(vectors.exact_root(bits_of(value)))
    spacing = Fraction(2) ** (root.numerator.bit_length() - root.denominator.bit_length() - 25)
    # |root - sqrt(value)| is at most half the spacing of fp32 there (spacing is a lower bound).
    assert (root - 2 * spacing) ** 2 < Fraction(value) < (root + 2 * spacing) ** 2


def test_the_flush_border_belongs_to_zero() -> None:
    border = Fraction(2) ** vectors.FLUSH_EXPONENT
    above = border * (1 + Fraction(1, 1 << 23))
    assert vectors.kept(border) == vectors.kept(-border) == 0
    assert vectors.fraction_of(vectors.kept(above)) == above
    assert vectors.fraction_of(vectors.kept(-above)) == -above


def test_what_ships_is_what_is_built() -> None:
    np = pytest.importorskip("numpy", reason="the shipped file is NumPy's")
    built = vectors.build()
    with np.load(vectors.shipped()) as stored:
        assert sorted(stored.files) == sorted(built)
        for name, values in built.items():
            assert stored[name].tolist() == list(values), name


def test_the_vectors_hold_the_hard_cases() -> None:
    built = vectors.build()
    sums = [
        vectors.fraction_of(a) + vectors.fraction_of(b)
        for a, b in zip(built["a"], built["b"], strict=True)
    ]
    ties = [s for s in sums if _is_tie(s)]
    down = [s for s in ties if abs(vectors.fraction_of(vectors.rounded(s))) < abs(s)]
    assert len(ties) > 100 and 0 < len(down) < len(ties)
    products = [
        vectors.fraction_of(a) * vectors.fraction_of(b)
        for a, b in zip(built["a"], built["b"], strict=True)
    ]
    assert sum(map(_is_tie, products)) > 100
    assert built["multiply"].count(0) > 500  # under the border, and zeros
    # Converted by way of float64 some of these come out wrong, so a chip that does so is seen.
    twice = [bits_of(float(value)) for value in built["from_int64_in"]]
    right = list(built["from_int64"])
    assert sum(a != b for a, b in zip(twice, right, strict=True)) > 50


def _is_tie(value: Fraction) -> bool:
    """Exactly halfway between two fp32 numbers of the normal range."""
    if value == 0:
        return False
    rounded = vectors.rounded(value)
    error = abs(value - vectors.fraction_of(rounded))
    step = vectors.fraction_of((rounded & 0x7FFFFFFF) + 1) - vectors.fraction_of(
        rounded & 0x7FFFFFFF
    )
    return error == step / 2


def test_the_stream_of_integers_never_changes() -> None:
    stream = vectors._Stream(0)
    # The first outputs of splitmix64 for seed 0, as published with the algorithm.
    assert [stream.bits(64) for _ in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
