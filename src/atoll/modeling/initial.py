"""Initial weights by exact integer hashing: the same bits on any chip, for any shard.

What it is: element ``e`` of the tensor ``name`` is a function of (seed, name, e) alone. Two 64-bit
hashes of the element's index are cut into eight uniform 16-bit numbers; their sum is close to
normal (Irwin-Hall, excess kurtosis -0.15, largest value 4.9 standard deviations) and, less its
mean, an integer of at most 19 bits, which fp32 holds exactly. One correctly rounded fp32
multiplication scales it. Everything before that multiplication is integer arithmetic.

What it is not: a generator with state. No order of calls, device, thread count or library version
can change a bit, and any slice of a tensor can be computed alone.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from atoll.model import Model

if TYPE_CHECKING:
    from atoll.modeling.decoder import Decoder

STANDARD_DEVIATION = 0.02

_CHUNK = 1 << 16  # elements computed at a time: the working set stays in a core's cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment: 2^64 / golden ratio, odd
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LANES = np.uint64(0x0000FFFF0000FFFF)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT_16, _SHIFT_27, _SHIFT_30, _SHIFT_31, _SHIFT_32 = (np.uint64(n) for n in (16, 27, 30, 31, 32))
_NUM_UNIFORMS = 8
_MEAN = _NUM_UNIFORMS * 0xFFFF // 2
# Variance of a uniform integer in [0, m) is (m^2 - 1) / 12; the eight are independent.
_DEVIATION = math.sqrt(_NUM_UNIFORMS * (2.0**32 - 1.0) / 12.0)


def standard_deviation(name: str, model: Model) -> float | None:
    """The standard deviation of the tensor ``name`` of ``model``; None: it starts as ones.

    Matrices and the embedding have 0.02; the two matrices of a block that write into the residual
    stream have 0.02 / sqrt(2 * layers), so that its variance does not grow with depth (the rule of
    GPT-2). Norm weights are ones.
    """
    if name.endswith("norm.weight"):
        return None
    if name.endswith(("attention.output.weight", "ffn.down.weight")):
        return STANDARD_DEVIATION / math.sqrt(2.0 * model.layers)
    return STANDARD_DEVIATION


def elements(seed: int, name: str, start: int, stop: int, std: float) -> npt.NDArray[np.float32]:
    """Elements [start, stop) of the flattened tensor ``name``, of standard deviation ``std``.

    Needs 4 bytes an element and a fixed small working set.
    """
    key = _key(seed, name)
    scale = np.float32(std / _DEVIATION)
    out = np.empty(max(stop - start, 0), dtype=np.float32)
    for first in range(start, stop, _CHUNK):
        last = min(first + _CHUNK, stop)
        index = np.arange(first, last, dtype=np.uint64)
        index <<= np.uint64(1)
        sums = _lane_sums(key, index)
        index += np.uint64(1)
        sums += _lane_sums(key, index)
        total = (sums & _LOW) + (sums >> _SHIFT_32)
        centred = total.astype(np.int64) - _MEAN
        np.multiply(centred.astype(np.float32), scale, out=out[first - start : last - start])
    return out


def tensor(seed: int, name: str, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float32]:
    """The whole tensor ``name`` in row-major order; see ``elements`` for a part of it."""
    return elements(seed, name, 0, math.prod(shape), std).reshape(shape)


def fill(decoder: Decoder, seed: int) -> None:
    """Set every parameter of ``decoder`` to its initial value, on whatever device it is.

    Costs one tensor of host memory at a time; about 12 nanoseconds an element on one core.
    """
    import torch

    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            std = standard_deviation(name, decoder.model)
            if std is None:
                parameter.fill_(1.0)
            else:
                values = torch.from_numpy(tensor(seed, name, tuple(parameter.shape), std))
                parameter.copy_(values.to(device=parameter.device, dtype=parameter.dtype))


def _key(seed: int, name: str) -> np.uint64:
    """The stream of one tensor: 64 bits of SHA-256 of the seed and the name."""
    digest = hashlib.sha256(f"atoll initial weights\n{seed}\n{name}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def _lane_sums(key: np.uint64, counter: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Splitmix64 of key and counter: its four 16-bit numbers, added in two 32-bit lanes."""
    z = counter * _GOLDEN
    z += key
    z ^= z >> _SHIFT_30
    z *= _MIX_1
    z ^= z >> _SHIFT_27
    z *= _MIX_2
    z ^= z >> _SHIFT_31
    high = (z >> _SHIFT_16) & _LANES
    z &= _LANES
    z += high
    return z
