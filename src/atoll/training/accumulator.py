"""Gradients added up as integers: quantise, add, and forget the floating-point gradient at once.
 One `Accumulator` holds an island's sums of the open step; all its lanes add into it. Integer
addition is associative, so any order of grains, lanes, islands and collectives gives the same bits.
On the host the work goes block by block: a block's gradient is read once, its maximum taken,
scaled, rounded, converted and added while it is in the cache, so main memory sees no more traffic
than plain fp32 accumulation.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.training.digests import ROW, sum_digest
from atoll.training.exponents import Width

BLOCK = 32 * ROW
"""Elements that are worked on at a time on the host: 256 KiB of fp32."""

DTYPES: dict[Width, torch.dtype] = {32: torch.int32, 64: torch.int64}


@dataclass(frozen=True, slots=True)
class SquareSum:
    """Sum of (q >> shift)**2 over one tensor's integers; `shift` leaves the largest of them 15
    bits.
    """

    total: int
    shift: int


def blocks(flat: Tensor) -> list[tuple[int, Tensor]]:
    """(offset, view) pieces of a flat tensor: cache-sized on the host, one on a device."""
    size = flat.numel()
    step = BLOCK if flat.device.type == "cpu" else max(size, 1)
    return [(first, flat[first : first + step]) for first in range(0, size, step)]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor's integers lie: elements [first, last) of the flat buffer of its width."""

    width: Width
    first: int
    last: int


class IntegerSums:
    """The integers of all tensors of the model, in one flat buffer per width.

    `views[i]` are the integers of tensor i, flattened; `flats` are what an exchange moves.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], widths: Sequence[Width], device: torch.device
    ) -> None:
        self._made_of = (dict(shapes), tuple(widths), device)
        sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
        ends: dict[Width, int] = dict.fromkeys(sorted(set(widths)), 0)
        self.spans: list[Span] = []
        for width, size in zip(widths, sizes, strict=True):
            self.spans.append(Span(width, ends[width], ends[width] + size))
            ends[width] += size
        self.flats: dict[Width, Tensor] = {
            width: torch.zeros(end, dtype=DTYPES[width], device=device)
            for width, end in ends.items()
        }
        self.views = [self.flats[span.width][span.first : span.last] for span in self.spans]

    def like(self) -> IntegerSums:
        """Zeros of the same shapes on the same device."""
        return IntegerSums(*self._made_of)

    def zero_(self) -> None:
        """Forget everything."""
        for flat in self.flats.values():
            flat.zero_()


class Accumulator:
    """An island's integer sums of the open step, shared by its lanes (each tensor has a lock)."""

    def __init__(self, sums: IntegerSums) -> None:
        self.sums = sums
        self.exponents: list[int] = []
        self._locks = [threading.Lock() for _ in sums.views]

    def start(self, exponents: Sequence[int]) -> None:
        """Open a step (or another attempt at it) with these exponents."""
        self.exponents = list(exponents)
        self.sums.zero_()

    def add(self, index: int, gradient: Tensor, *, digest: bool = False) -> tuple[Tensor, int]:
        """Add one grain's gradient of tensor `index`, and use up its memory.

        Returns max|g| as a 0-d tensor (NaN or inf where the gradient is not finite; the integers
        are then worthless, and the caller must not commit them) and, if `digest` is asked for, the
        sum digest of this grain's integers alone.
        """
        target = self.sums.views[index]
        scale = 2.0 ** self.exponents[index]
        largest: list[Tensor] = []
        total = 0
        flat = gradient.detach().reshape(-1)
        with self._locks[index]:
            for offset, block in blocks(flat):
                largest += torch.aminmax(block)
                integers = _converted(block.mul_(scale).round_(), target.dtype)
                _add_to(target[offset : offset + block.numel()], integers)
                if digest:
                    total += sum_digest(integers.cpu(), tensor=index, offset=offset)
        return torch.stack(largest).abs_().amax(), total


def _converted(whole: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers in fp32 as integers. On the host int32 takes the place of the fp32 numbers."""
    if whole.device.type == "cpu" and dtype == torch.int32:
        return whole.view(torch.int32).copy_(whole)
    return whole.to(dtype)


def _add_to(target: Tensor, integers: Tensor) -> None:
    """target += integers. NumPy adds int64 three times as fast as torch, which multiplies by 1."""
    if target.device.type == "cpu" and target.dtype == torch.int64:
        sums = target.numpy()
        np.add(sums, integers.numpy(), out=sums)
    else:
        target.add_(integers)


def square_sum(integers: Tensor) -> SquareSum:
    """Sum of squares of one tensor's integers, shifted so that the largest fits 15 bits (exact
    int64).

    On the host each block's sum is taken as a float64 dot product: all its partial sums are
    integers below 2**53, so it is the same integer in any order. Elsewhere in int64.
    """
    if not integers.numel():
        return SquareSum(0, 0)
    low, high = torch.aminmax(integers)
    largest = max(-int(low), int(high))
    shift = max(0, largest.bit_length() - 15)
    total = 0
    for _, block in blocks(integers):
        shifted = block >> shift if shift else block
        if block.device.type == "cpu":
            exact = shifted.to(torch.float64)
            total += int(torch.dot(exact, exact).item())
        else:
            wide = shifted.to(torch.int64)
            total += int((wide * wide).sum().item())
    return SquareSum(total, shift)
