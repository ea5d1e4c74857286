"""The proof vectors of the exact update: inputs and the only right answers, from integers alone.

`build` computes them with Python's integers and fractions, so that no floating-point unit has a
say in what is right; the result ships as `vectors.npz` beside this file and a test builds it
again. This module checks nothing (that is `proof.py`), and imports neither torch nor, but for
`write`, NumPy.

fp32 numbers are kept as their bit patterns. Answers of arithmetic are what the update keeps of
them: magnitudes up to 2^-96 are zero, and a zero has no sign.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

NUM_VALUES = 5003
"""Length of every vector: beyond 4096, and odd, so that vector code runs and so do its tails."""

FLUSH_EXPONENT = -96
"""Magnitudes up to 2 to this power become zero in the update (denormals are far below)."""

SCALARS = (0x3F666666, 0x3F733333, 0x35800000, 0x3EAAAAAB)
"""fp32 bits of what vectors are multiplied by: 0.9, 0.95, 2^-20 and 1/3, each rounded."""

SHIFTS = (1, 7, 16)
"""Places by which integers are shifted to the right."""

_SIGN = 1 << 31
_MANTISSA_BITS = 23
_HIDDEN = 1 << _MANTISSA_BITS
_BIAS = 127
_MASK64 = (1 << 64) - 1


class _Stream:
    """A stream of 64-bit integers (splitmix64), the same in every Python for ever."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def bits(self, count: int) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        return (mixed ^ (mixed >> 31)) >> (64 - count)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.bits(63) % (high - low + 1)

    def choice(self, values: list[int]) -> int:
        """One of the values."""
        return values[self.between(0, len(values) - 1)]


def fraction_of(bits: int) -> Fraction:
    """The number that an fp32 bit pattern stands for (finite ones only)."""
    exponent = (bits >> _MANTISSA_BITS) & 0xFF
    mantissa = bits & (_HIDDEN - 1)
    assert exponent != 0xFF
    if exponent == 0:
        scale = 1 - _BIAS - _MANTISSA_BITS
    else:
        mantissa |= _HIDDEN
        scale = exponent - _BIAS - _MANTISSA_BITS
    value = Fraction(mantissa) * Fraction(2) ** scale
    return -value if bits & _SIGN else value


def rounded(value: Fraction) -> int:
    """The fp32 bit pattern nearest to a number, ties to even; zero has no sign."""
    if value == 0:
        return 0
    sign = _SIGN if value < 0 else 0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    scale = max(exponent, 1 - _BIAS) - _MANTISSA_BITS
    # round() of a Fraction goes to the nearest integer, ties to even.
    mantissa = round(magnitude / Fraction(2) ** scale)
    # A mantissa that rounded up to 2^24 carries into the exponent by the addition below.
    bits = ((scale + _MANTISSA_BITS + _BIAS - 1) << _MANTISSA_BITS) + mantissa
    assert bits < 0x7F800000, "a vector overflows fp32"
    return sign | bits


def _flushed(bits: int) -> int:
    """The bit pattern, or that of +0 if its magnitude is at most the border."""
    border = (FLUSH_EXPONENT + _BIAS) << _MANTISSA_BITS
    return 0 if bits & ~_SIGN <= border else bits


def kept(value: Fraction) -> int:
    """What the update keeps of an exact result: rounded, and zero if it is then too small."""
    return _flushed(rounded(value))


def _normal(stream: _Stream, exponent: int, *, mantissa: int | None = None) -> int:
    """Bits of a normal number with a random sign and, unless given, a random mantissa."""
    chosen = stream.bits(_MANTISSA_BITS) if mantissa is None else mantissa
    return (stream.bits(1) << 31) | ((exponent + _BIAS) << _MANTISSA_BITS) | chosen


def _beside_power(stream: _Stream, exponent: int) -> int:
    """Bits of 2^exponent or of one of its two neighbours, with a random sign."""
    power = (exponent + _BIAS) << _MANTISSA_BITS
    return (stream.bits(1) << 31) | (power + stream.between(-1, 1))


def _pair(stream: _Stream, family: int) -> tuple[int, int]:
    """Two fp32 operands (the second is not zero) of one of eight families of trouble."""
    exponent = stream.between(-40, 40)
    if family == 0:  # anything
        return _normal(stream, exponent), _normal(stream, stream.between(-40, 40))
    if family == 1:  # near in size: cancellation, alignment shifts
        return _normal(stream, exponent), _normal(stream, exponent + stream.between(-25, 25))
    if family == 2:  # a sum that is an exact tie
        return _normal(stream, exponent), _normal(stream, exponent - 24, mantissa=0)
    if family == 3:  # a product of 13 by 12 bits: half of them are exact ties
        first, second = stream.bits(12) | 1, stream.bits(11) | 1
        return (
            _normal(stream, exponent, mantissa=first << 11),
            _normal(stream, stream.between(-40, 40), mantissa=second << 12),
        )
    if family == 4:  # a quotient as near to a tie as fp32 operands allow
        divisor = _normal(stream, exponent)
        halfway = Fraction(2 * (stream.bits(_MANTISSA_BITS) | _HIDDEN) + 1, 2 * _HIDDEN)
        return rounded(fraction_of(divisor) * halfway), divisor
    if family == 5:  # beside powers of two
        return _beside_power(stream, exponent), _beside_power(stream, stream.between(-40, 40))
    if family == 6:  # small: products fall under the flush border, into denormals and to nothing
        small = stream.between(FLUSH_EXPONENT, -50)
        return _normal(stream, small), _normal(stream, stream.between(FLUSH_EXPONENT, -50))
    return stream.bits(1) << 31, _normal(stream, exponent)  # zeros of both signs


def _root_operand(stream: _Stream, family: int) -> int:
    """A non-negative fp32 number whose root is hard to round."""
    if family == 0:  # a root next to a point between two fp32 numbers
        halfway = 2 * (stream.bits(_MANTISSA_BITS) | _HIDDEN) + 1
        return rounded(Fraction(halfway * halfway) * Fraction(4) ** stream.between(-60, 20))
    if family == 1:  # beside a power of two
        return _beside_power(stream, stream.between(-90, 100)) & ~_SIGN
    if family == 2:  # a perfect square
        return rounded(Fraction(stream.bits(12) ** 2) * Fraction(4) ** stream.between(-30, 30))
    exponent = stream.between(FLUSH_EXPONENT, 100)
    return _normal(stream, exponent) & ~_SIGN


def exact_root(bits: int) -> int:
    """Bits of the correctly rounded square root of a non-negative fp32 number."""
    value = fraction_of(bits)
    if value == 0:
        return 0
    # 60 more binary places than the root needs; a remainder only has to break ties upwards.
    places = 200
    scaled = value * Fraction(4) ** places
    assert scaled.denominator == 1
    floor = math.isqrt(scaled.numerator)
    sticky = 0 if floor * floor == scaled.numerator else 1
    return rounded(Fraction(2 * floor + sticky) / Fraction(2) ** (places + 1))


def _round_operand(stream: _Stream, family: int) -> int:
    """fp32 numbers at, beside and far from halves, of all sizes below 2^31."""
    if family == 0:  # exact halves, of even and odd numbers
        return rounded(Fraction(2 * stream.between(-(1 << 22), 1 << 22) + 1, 2))
    if family == 1:  # beside halves
        number = stream.between(0, 1 << stream.between(1, 20))
        half = rounded(Fraction(2 * number + 1, 2))
        return (stream.bits(1) << 31) | (half + stream.between(-1, 1))
    if family == 2:  # already whole
        return _normal(stream, stream.between(23, 30))
    return _normal(stream, stream.between(-30, 30))


def _integer(width: int, stream: _Stream, family: int) -> int:
    """A signed integer that is hard to turn into fp32."""
    top = width - 1
    length = stream.between(1, top)
    value = stream.bits(length) | (1 << (length - 1))
    if family == 0 and top > 25:  # an exact tie
        places = stream.between(1, top - 24)
        value = ((stream.bits(_MANTISSA_BITS) | _HIDDEN) << places) | (1 << (places - 1))
    elif family == 1 and width == 64:  # a tie once it has been rounded to float64 on the way
        places = stream.between(32, top - 24)
        value = ((stream.bits(_MANTISSA_BITS) | _HIDDEN) << places) | (1 << (places - 1)) | 1
    elif family == 2:  # beside a power of two
        value = (1 << length) + stream.between(-1, 1)
    value = min(value, (1 << top) - 1)
    return -value if stream.bits(1) else value


def _flush_operand(stream: _Stream, family: int) -> int:
    """fp32 numbers around the flush border, denormals, zeros of both signs, ordinary ones."""
    sign = stream.bits(1) << 31
    border = (FLUSH_EXPONENT + _BIAS) << _MANTISSA_BITS
    if family == 0:
        return sign | (border + stream.between(-2, 2))
    if family == 1:
        return sign | (stream.bits(_MANTISSA_BITS) >> stream.between(0, 22))
    if family == 2:
        return sign
    return _normal(stream, stream.between(-126, 60))


def _whole(width: int, stream: _Stream, family: int) -> int:
    """Bits of an fp32 number with a whole value that fits a signed integer of `width` bits."""
    top = width - 1
    if family == 0:  # the largest and smallest that fit, and the borders of fp32's whole numbers
        largest = (1 << top) - (1 << (top - 24))
        return rounded(Fraction(stream.choice([largest, -(1 << top), 1 << 24, -largest])))
    if family == 1:
        return _normal(stream, stream.between(23, top - 1))
    return rounded(Fraction(stream.between(-(1 << 24), 1 << 24)))


def _made(
    seed: int, num_families: int, make: Callable[[_Stream, int], int], *, code: str
) -> array[int]:
    """A vector of what `make` gives for each family in turn."""
    stream = _Stream(seed)
    return array(code, (make(stream, index % num_families) for index in range(NUM_VALUES)))


def _arithmetic() -> Iterator[tuple[str, array[int]]]:
    """The four operations on pairs of fp32, and products with a scalar."""
    stream = _Stream(1)
    pairs = [_pair(stream, index % 8) for index in range(NUM_VALUES)]
    numbers = [(fraction_of(first), fraction_of(second)) for first, second in pairs]
    yield "a", array("I", (first for first, _ in pairs))
    yield "b", array("I", (second for _, second in pairs))
    yield "multiply", array("I", (kept(first * second) for first, second in numbers))
    yield "add", array("I", (kept(first + second) for first, second in numbers))
    yield "subtract", array("I", (kept(first - second) for first, second in numbers))
    yield "divide", array("I", (kept(first / second) for first, second in numbers))
    for index, scalar in enumerate(SCALARS):
        factor = fraction_of(scalar)
        yield f"scaled_{index}", array("I", (kept(first * factor) for first, _ in numbers))


def _integers() -> Iterator[tuple[str, array[int]]]:
    """Conversions to and from fp32, sums, shifts and squares of integers."""
    for width, code, seed in ((32, "i", 10), (64, "q", 20)):
        name = f"int{width}"
        whole = _made(seed, 4, functools.partial(_whole, width), code="I")
        yield f"to_{name}_in", whole
        yield f"to_{name}", array(code, (int(fraction_of(bits)) for bits in whole))
        integers = _made(seed + 1, 4, functools.partial(_integer, width), code=code)
        yield f"from_{name}_in", integers
        yield f"from_{name}", array("I", (rounded(Fraction(value)) for value in integers))
        other = _made(seed + 2, 4, functools.partial(_integer, width - 1), code=code)
        halves = array(code, (value >> 1 for value in integers))
        yield f"sum_{name}_a", halves
        yield f"sum_{name}_b", other
        sums = (first + second for first, second in zip(halves, other, strict=True))
        yield f"sum_{name}", array(code, sums)
        for places in SHIFTS:
            yield f"shift_{name}_{places}", array(code, (value >> places for value in integers))
    small = _made(30, 1, lambda s, _: s.between(-(1 << 15) + 1, (1 << 15) - 1), code="q")
    yield "small", small
    yield "square", array("q", (value * value for value in small))
    yield "square_sum", array("q", [sum(value * value for value in small)])


def build() -> dict[str, array[int]]:
    """All vectors by name: fp32 as unsigned 32-bit patterns, integers as themselves."""
    made = dict(_arithmetic())
    made["sqrt_in"] = _made(2, 4, _root_operand, code="I")
    made["sqrt"] = array("I", map(exact_root, made["sqrt_in"]))
    made["round_in"] = _made(3, 4, _round_operand, code="I")
    made["round"] = array("I", (rounded(Fraction(round(fraction_of(b)))) for b in made["round_in"]))
    made["flush_in"] = _made(4, 4, _flush_operand, code="I")
    made["flush"] = array("I", map(_flushed, made["flush_in"]))
    made.update(_integers())
    return made


def shipped() -> Path:
    """The file with the vectors that this package ships."""
    return Path(__file__).with_name("vectors.npz")


def write(path: Path) -> None:
    """Build the vectors and write them; run `python -m atoll.backends.vectors` after a change."""
    import numpy as np

    types = {"I": "uint32", "i": "int32", "q": "int64"}
    arrays: dict[str, Any] = {
        name: np.array(values, dtype=types[values.typecode]) for name, values in build().items()
    }
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    write(shipped())
