"""The power-of-two scale of every tensor's integer gradient sum, and the rule for overflow.

Pure integers, no torch: the pilot decides, the islands obey. A grain's gradient `g` of a tensor
with exponent `k` is added as round(g * 2**k). For every tensor an island reports the *load* of its
grains, the integer sum over grains of ceil(max|g| * 2**k). Loads add up across islands to the same
number whoever computed what, and the load bounds every partial sum, so

* a step overflows if and only if the load of some tensor reaches 2**31 (2**63 for an int64 sum);
* the exponents of the next step follow from the loads of the last commits alone.

What is remembered of a load L at exponent k is its *level*, bit_length(L) - k: the load of the
unscaled gradients is below 2**level. Levels are small integers, the same on any chip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atoll.digest import digest_of

Width = Literal[32, 64]

HISTORY = 16
"""Commits whose loads decide the next exponents."""
HEADROOM_BITS = 3
"""A step may have eight times the largest load of the last commits before it overflows."""
RETRY_HEADROOM_BITS = 1
"""After a measured or an overflown attempt of the same step: its loads are known, twice is plenty.
"""
LEVEL_FLOOR = -40
"""Below a load of 2**-40 the gradient is noise for AdamW."""
HIGHEST_EXPONENT = 80
"""Keeps the update's factor clip * 2**-k / tokens normal in fp32: chips treat denormals unlike."""
MEASURING_EXPONENT = 40
"""Exponent of the first attempt of a run, which only measures."""
FEWEST_BITS = 16
"""`accumulator = "auto"` takes int32 while at least this many bits are left for one grain."""


def limit(width: Width) -> int:
    """The load at which a sum of this width overflows: 2**31 or 2**63."""
    return int(2 ** (width - 1))


def bits_left(width: Width, num_grains: int) -> float:
    """Bits that the largest gradient of one grain keeps: width - 1 - headroom - log2(grains)."""
    return width - 1 - HEADROOM_BITS - math.log2(num_grains)


def choose_widths(
    names: Sequence[str], *, head: str, num_grains: int, accumulator: str
) -> tuple[Width, ...]:
    """Width of every tensor's sum: int32 while enough bits are left, int64 for the output head.

    `head` is the tensor that the logits come from (the embedding where it is tied): most of its
    rows see few tokens, so its gradient spans more orders of magnitude than any other.
    `accumulator` is the recipe's `exact.accumulator`: "auto", or one width for all.
    """
    if accumulator != "auto":
        return tuple(32 if accumulator == "int32" else 64 for _ in names)
    enough = bits_left(32, num_grains) >= FEWEST_BITS
    return tuple(32 if enough and name != head else 64 for name in names)


def load_of(largest: float, exponent: int) -> int:
    """ceil(largest * 2**exponent) of one finite grain maximum, exactly.

    Never capped: a cap would have to be met by the same sums whoever computed what.
    """
    return math.ceil(math.ldexp(largest, exponent))  # a double holds the scaled fp32 exactly


def pack_loads(loads: Sequence[int]) -> list[str]:
    """Loads for the wire, whose own integers end at 64 bits while a load has up to about 250."""
    return [format(load, "x") for load in loads]


def unpack_loads(packed: Sequence[str]) -> list[int]:
    """The inverse of `pack_loads`."""
    return [int(text, 16) for text in packed]


@dataclass(slots=True)
class Exponents:
    """Run state: the exponent of each tensor, and the levels of the last commits.

    `levels` holds one list per commit (the newest last), one level per tensor. An empty history
    means that the run has not measured its gradients yet.
    """

    widths: tuple[Width, ...]
    current: list[int]
    levels: list[list[int]]

    @classmethod
    def fresh(cls, widths: Sequence[Width]) -> Exponents:
        """Before the first step."""
        return cls(tuple(widths), [MEASURING_EXPONENT] * len(widths), [])

    @property
    def measured(self) -> bool:
        """Whether the current exponents come from gradients that somebody has seen."""
        return bool(self.levels)

    def overflown(self, loads: Sequence[int]) -> list[int]:
        """Indices of the tensors whose load reaches the limit of their width."""
        return [
            i
            for i, (load, width) in enumerate(zip(loads, self.widths, strict=True))
            if load >= limit(width)
        ]

    def retry(self, loads: Sequence[int]) -> list[int]:
        """Exponents for another attempt of a step whose loads are `loads`; does not change the
        state.
        """
        return [
            self._exponent(width, self._level(load, exponent), RETRY_HEADROOM_BITS)
            for width, load, exponent in zip(self.widths, loads, self.current, strict=True)
        ]

    def commit(self, loads: Sequence[int]) -> None:
        """Take the loads of a committed step into the history and set the next step's exponents."""
        self.levels.append(
            [self._level(load, k) for load, k in zip(loads, self.current, strict=True)]
        )
        del self.levels[:-HISTORY]
        self.forget_attempts()

    def forget_attempts(self) -> None:
        """Set the exponents as the history alone has them: a step that leaves no update leaves
        nothing here either.
        """
        self.current = [
            self._exponent(width, max(levels), HEADROOM_BITS)
            for width, levels in zip(self.widths, zip(*self.levels, strict=True), strict=True)
        ]

    def digest(self) -> str:
        """Hex digest of the current exponents, for the ledger."""
        return digest_of(self.current)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"current": list(self.current), "levels": [list(row) for row in self.levels]}

    @classmethod
    def restore(cls, widths: Sequence[Width], state: Mapping[str, Any]) -> Exponents:
        """The inverse of `state`."""
        return cls(tuple(widths), list(state["current"]), [list(row) for row in state["levels"]])

    @staticmethod
    def _level(load: int, exponent: int) -> int:
        return max(load.bit_length() - exponent, LEVEL_FLOOR)

    @staticmethod
    def _exponent(width: Width, level: int, headroom_bits: int) -> int:
        return min(width - 1 - headroom_bits - level, HIGHEST_EXPONENT)
