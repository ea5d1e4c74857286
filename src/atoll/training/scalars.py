"""The numbers that the pilot computes: learning rate, norm, clip and the factors of the update.

Only + - x / of IEEE doubles, integers and exact comparisons: no libm (whose cosine differs between
machines), no `sum` (which is compensated from Python 3.12 on and is not before). Each result is
rounded once to fp32 and stands in the ledger.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atoll.recipe import OptimizerSpec, ScheduleSpec

_PI = 3.141592653589793


def round32(value: float) -> float:
    """`value` rounded to the nearest fp32, ties to even; OverflowError outside its range."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def cosine(x: float) -> float:
    """cos(x) for 0 <= x <= pi by its Taylor series in fixed order: the same bits on any IEEE
    machine.
    """
    if x > _PI / 2:
        return -cosine(_PI - x)
    square, term, total = x * x, 1.0, 1.0
    for n in range(1, 13):
        term = -term * square / ((2 * n - 1) * (2 * n))
        total += term
    return total


def learning_rate(step: int, *, lr: float, schedule: ScheduleSpec, total_steps: int) -> float:
    """Learning rate of `step` (counted from 1): linear warm-up, then the recipe's decay to its
    floor.
    """
    if step <= schedule.warmup:
        return lr * step / schedule.warmup
    span = total_steps - schedule.warmup
    done = min((step - schedule.warmup) / span, 1.0) if span > 0 else 1.0
    if schedule.kind == "constant":
        left = 1.0
    elif schedule.kind == "linear":
        left = 1.0 - done
    else:
        left = (1.0 + cosine(_PI * done)) / 2
    return lr * (schedule.floor + (1.0 - schedule.floor) * left)


def gradient_norm(squares: Iterable[tuple[int, int, int]], *, tokens: int) -> float:
    """Norm of the mean gradient from integer sums of squares, one (sum, shift, exponent) a tensor.

    A tensor's integers q were shifted right by `shift` before squaring, and stand for q *
    2**-exponent, so its share of the squared norm is sum * 2**(2*(shift - exponent)). Exact up to
    the final division.
    """
    terms = [(total, 2 * (shift - exponent)) for total, shift, exponent in squares if total]
    if not terms:
        return 0.0
    lowest = min(power for _, power in terms)  # even, so its square root is exact
    total = 0
    for value, power in terms:
        total += value << (power - lowest)
    extra = max(0, 128 - total.bit_length())  # bits for the integer square root
    extra += extra % 2
    root = math.isqrt(total << extra)
    power = lowest // 2 - extra // 2
    numerator, denominator = (root << power, tokens) if power >= 0 else (root, tokens << -power)
    return numerator / denominator  # int / int is correctly rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateScalars:
    """What one update needs, all fp32 values; `scale` is one factor a tensor (clip * 2**-k /
    tokens).
    """

    scale: tuple[float, ...]
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    inverse_correction2: float
    eps: float
    step_size: float
    decay: float


def clip_factor(norm: float, clip: float) -> float:
    """Factor <= 1 that brings a gradient norm down to `clip` (0 = no clipping), rounded to fp32."""
    return round32(clip / norm) if clip > 0 and norm > clip else 1.0


def update_scalars(
    step: int,
    *,
    lr: float,
    clip: float,
    tokens: int,
    exponents: Sequence[int],
    optimizer: OptimizerSpec,
) -> UpdateScalars:
    """Scalars of the AdamW update of `step` (counted from 1); see `training.optimizer` for the
    formula.

    The powers of beta are products built up from 1, so that they do not depend on a library's
    `pow`.
    """
    power1 = power2 = 1.0
    for _ in range(step):
        power1 *= optimizer.beta1
        power2 *= optimizer.beta2
        if 1.0 - power1 == 1.0 and 1.0 - power2 == 1.0:
            break  # later steps have the same corrections
    mean = round32(clip / tokens)
    return UpdateScalars(
        scale=tuple(math.ldexp(mean, -k) for k in exponents),
        beta1=round32(optimizer.beta1),
        one_minus_beta1=round32(1.0 - optimizer.beta1),
        beta2=round32(optimizer.beta2),
        one_minus_beta2=round32(1.0 - optimizer.beta2),
        inverse_correction2=round32(1.0 / (1.0 - power2)),
        eps=round32(optimizer.eps),
        step_size=round32(lr / (1.0 - power1)),
        decay=round32(1.0 - lr * optimizer.weight_decay),
    )
