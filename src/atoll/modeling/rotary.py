"""Rotary position tables with the same bits on any machine.

What it is: cos(p * f) and sin(p * f) for every position p and frequency f, as fp32. The angle is
rounded to fp32 as Hugging Face's Llama does, because released weights were trained with that
rounding. Its cosine and sine then come from float64 additions and multiplications only, which
IEEE 754 rounds alike everywhere; the cosine of a vector library differs by an ulp from machine to
machine. What it is not: the rotation itself (functions.py).
"""

from __future__ import annotations

import decimal

import numpy as np
import numpy.typing as npt

# pi/2 in three parts: the first has 33 significant bits, so that its product with a whole number
# below 2^20 is exact in float64; the second likewise; the third carries the rest.
_HALF_PI = (
    float.fromhex("0x1.921fb544p+0"),
    float.fromhex("0x1.0b4611a6p-34"),
    float.fromhex("0x1.3198a2e037073p-69"),
)
MAX_POSITIONS = 1 << 20
"""The most positions that a table may have: the range reduction's bound."""

_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")


def inverse_frequencies(head_dim: int, base: float) -> npt.NDArray[np.float32]:
    """base^(-2i/head_dim) for i in [0, head_dim/2), in decimal arithmetic, rounded to fp32.

    Formula: Su et al. 2021, RoFormer, section 3.2.2.
    """
    with decimal.localcontext() as arithmetic:
        arithmetic.prec = 40
        exact = decimal.Decimal(base)
        values = [
            float(exact ** (decimal.Decimal(-2 * i) / decimal.Decimal(head_dim)))
            for i in range(head_dim // 2)
        ]
    return np.array(values, dtype=np.float32)


def table(
    num_positions: int, head_dim: int, base: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(cosine, sine), each [num_positions, head_dim/2] fp32, good to half an ulp and a little.

    Takes at most MAX_POSITIONS.
    """
    assert num_positions <= MAX_POSITIONS
    positions = np.arange(num_positions, dtype=np.float32)
    angles = np.multiply.outer(positions, inverse_frequencies(head_dim, base))
    return _cos_sin(angles.astype(np.float64))


def _cos_sin(
    angle: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosine and sine of angles in [0, 2^20] by Cody-Waite reduction and Taylor polynomials."""
    quarter = np.rint(angle * _TWO_OVER_PI)
    rest = angle
    for part in _HALF_PI:
        rest = rest - quarter * part
    square = rest * rest
    cosine, sine = np.ones_like(rest), np.ones_like(rest)
    # Horner from the highest term: |rest| <= pi/4 leaves less than 1e-17 beyond these terms.
    for k in range(9, 0, -1):
        cosine = 1.0 - square * cosine / float((2 * k - 1) * (2 * k))
        sine = 1.0 - square * sine / float((2 * k) * (2 * k + 1))
    sine = sine * rest
    turn = quarter.astype(np.int64) & 3
    swapped = (turn & 1) == 1
    cos_out = np.where(swapped, sine, cosine)
    sin_out = np.where(swapped, cosine, sine)
    cos_out = np.where((turn == 1) | (turn == 2), -cos_out, cos_out)
    sin_out = np.where(turn >= 2, -sin_out, sin_out)
    return cos_out.astype(np.float32), sin_out.astype(np.float32)
