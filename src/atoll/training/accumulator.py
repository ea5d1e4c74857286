"""Gradients added up as integers: quantise, add, and forget the floating-point gradient at once.

One `Accumulator` holds an island's sums of the open step; all its lanes add into it. Integer
addition is associative, so any order of grains, lanes, islands and collectives gives the same bits.
On the host the work goes block by block: a block's gradient is read once, its maximum taken,
scaled, rounded, converted and added while it is in the cache, so main memory sees no more traffic
than plain fp32 accumulation. The work is done in the gradient's own memory: no other is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.training.digests import ROW, add_digests, sum_digest
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
        flat = gradient.detach().reshape(-1)
        on_one_core = flat.device.type == "cpu" and torch.get_num_threads() == 1
        add = _add_on_one_core if on_one_core else _add
        digests: list[int] = []

        def take(offset: int, integers: Tensor) -> None:
            if digest:
                digests.append(sum_digest(integers.cpu(), tensor=index, offset=offset))

        with self._locks[index]:
            largest = add(target, flat, scale, take)
        return largest, add_digests(digests)

    def digest_alone(self, index: int, gradient: Tensor) -> int:
        """The sum digest of one grain's integers of tensor `index`; the sums stay as they are."""
        digests: list[int] = []

        def take(offset: int, integers: Tensor) -> None:
            digests.append(sum_digest(integers.cpu(), tensor=index, offset=offset))

        flat = gradient.detach().reshape(-1)
        nothing = torch.zeros_like(self.sums.views[index])
        _add(nothing, flat, 2.0 ** self.exponents[index], take)
        return add_digests(digests)


Take = Callable[[int, Tensor], None]
"""Is shown the integers of each block and their offset in the tensor."""


def _add(target: Tensor, flat: Tensor, scale: float, take: Take) -> Tensor:
    """target += round(flat * scale); returns max|flat|."""
    extremes: list[Tensor] = []
    for offset, block in blocks(flat):
        extremes += torch.aminmax(block)
        integers = block.mul_(scale).round_().to(target.dtype)
        target[offset : offset + block.numel()].add_(integers)
        take(offset, integers)
    return torch.stack(extremes).abs_().amax()


def _add_on_one_core(target: Tensor, flat: Tensor, scale: float, take: Take) -> Tensor:
    """As `_add`, by NumPy, which needs two thirds of the time, and a third for int64 sums.

    The bits are the same: a product with a power of two and a rounding to whole numbers are exact.
    """
    extremes: list[np.float32] = []
    factor = np.float32(scale)
    all_numbers, sums = flat.numpy(), target.numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        for offset in range(0, flat.numel(), BLOCK):
            numbers = all_numbers[offset : offset + BLOCK]
            extremes += numbers.min(), numbers.max()
            np.multiply(numbers, factor, out=numbers)
            np.rint(numbers, out=numbers)
            if sums.dtype == np.int32:  # as wide as fp32: integers take the place of the numbers
                integers = numbers.view(np.int32)
                np.copyto(integers, numbers, casting="unsafe")
            else:
                integers = numbers.astype(np.int64)
            part = sums[offset : offset + BLOCK]
            np.add(part, integers, out=part)
            take(offset, torch.from_numpy(integers))
    # Plain Python: whatever is called once a tensor comes cold out of a matrix product.
    unordered = [x for x in extremes if x != x]
    return torch.from_numpy(np.asarray(unordered[0] if unordered else max(map(abs, extremes))))


def square_sum(integers: Tensor) -> SquareSum:
    """Sum of squares of one tensor's integers, shifted so that the largest fits 15 bits (exact
    int64).

    On the host each block's sum is taken as a float64 dot product: all its partial sums are
    integers below 2**53, so it is the same integer in any order. Elsewhere in int64.
    """
    if not integers.numel():
        return SquareSum(0, 0)
    if integers.device.type == "cpu":
        return _square_sum_on_host(integers)
    low, high = torch.aminmax(integers)
    shift = _shift(int(low), int(high))
    wide = (integers >> shift).to(torch.int64)
    return SquareSum(int((wide * wide).sum().item()), shift)


def _square_sum_on_host(integers: Tensor) -> SquareSum:
    numbers = integers.numpy()
    shift = _shift(int(numbers.min()), int(numbers.max()))
    exact = torch.empty(min(BLOCK, numbers.size), dtype=torch.float64)
    shifted = np.empty_like(numbers, shape=exact.numel())
    total = 0
    for first in range(0, numbers.size, BLOCK):
        block = numbers[first : first + BLOCK]
        part = exact[: block.size]
        part.numpy()[:] = np.right_shift(block, shift, out=shifted[: block.size])
        total += int(torch.dot(part, part).item())
    return SquareSum(total, shift)


def _shift(low: int, high: int) -> int:
    """How far to shift so that the largest of some integers keeps 15 bits."""
    return max(0, max(-low, high).bit_length() - 15)
