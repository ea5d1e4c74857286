"""Matrix products with weights that stay: how a server lays them out, by what the device has.

What it is: x times a weight, and that plus something. On a CPU whose torch has oneDNN the weights
are put in that library's own order (`Packed`), in which a few rows cost little more than one, and a
row's bits hardly depend on how many there are. Anywhere else they are transposed (`Plain`), with
long sums in parts. What it is not: exact by promise. Which numbers of rows agree is found out by
agreeing.py.

Shape suffixes: N rows, I numbers in, O numbers out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

LONGEST_SUM = 768
"""Terms of one sum in `Plain`; longer ones are added up from parts in a fixed order. Above about a
thousand the usual CPU library cuts a sum differently for different numbers of rows and threads."""

_PACKED_FOR = 8
"""Rows that oneDNN is told to expect when it chooses its order of the weights."""


class Matrix(Protocol):
    """A weight of shape [O, I] on a device."""

    def of(self, x_NI: Tensor) -> Tensor:
        """x times the weight, [N, O]."""

    def added(self, x_NI: Tensor, sum_NO: Tensor) -> Tensor:
        """``sum_NO`` plus x times the weight; may be in its place."""


class Plain:
    """A weight, transposed, in parts of its sums: any device."""

    def __init__(self, weight_OI: Tensor, device: torch.device) -> None:
        whole_IO = weight_OI.t()
        num = -(-len(whole_IO) // LONGEST_SUM)
        self._lengths = [len(part) for part in whole_IO.chunk(num)]
        self._parts = [part.contiguous().to(device) for part in whole_IO.chunk(num)]

    def of(self, x_NI: Tensor) -> Tensor:
        """x times the weight."""
        if len(self._parts) == 1:
            return torch.mm(x_NI, self._parts[0])
        columns = x_NI.split(self._lengths, -1)
        y_NO = torch.mm(columns[0], self._parts[0])
        for column, part in zip(columns[1:], self._parts[1:], strict=True):
            y_NO.addmm_(column, part)
        return y_NO

    def added(self, x_NI: Tensor, sum_NO: Tensor) -> Tensor:
        """``sum_NO``, changed."""
        for column, part in zip(x_NI.split(self._lengths, -1), self._parts, strict=True):
            sum_NO.addmm_(column, part)
        return sum_NO


class Packed:
    """A weight in oneDNN's order, and its products with what follows them fused in: CPUs."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _PACKED_FOR)

    @staticmethod
    def works() -> bool:
        """Whether this torch has what it takes, and it computes what it should."""
        try:
            x, y, w = torch.ones(2, 16), torch.ones(2, 32), torch.full((32, 16), 0.125)
            made = Packed(w)
            return torch.equal(made.of(x), y * 2.0) and torch.equal(made.added(x, y), y * 3.0)
        except (RuntimeError, AttributeError, NotImplementedError):
            return False

    def of(self, x_NI: Tensor) -> Tensor:
        """x times the weight."""
        return torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, None, "none", [], "")

    def added(self, x_NI: Tensor, sum_NO: Tensor) -> Tensor:
        """A new tensor."""
        return torch.ops.mkldnn._linear_pointwise(x_NI, sum_NO, self._weight, None, "add")


def layout(device: torch.device) -> Callable[[Tensor], Matrix]:
    """How to lay weights [O, I] out on this device."""
    if device.type == "cpu" and Packed.works():
        return Packed
    return lambda weight_OI: Plain(weight_OI, device)
