"""Sweeps: which products, copies and messages `atoll measure` tries, and how long.

A sweep is one for all chips: what would take too long on the chip at hand is left out while it is
measured (`profiling`), with the reason in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The points to measure.

    Args:
        gemms: (m, n, k) of the products; see `facts.measured.Gemm`.
        dtypes: number formats of the products, where the backend has them.
        copies: bytes of blocks copied within the device's memory.
        messages: bytes moved over links and by collectives.
        repeats: how often a point is timed, at least three times if time is short.
        repeat_seconds: shorter calls are repeated within one timing until it takes this long.
        point_seconds: what one point may take; a call of more than a third of it is left out.
    """

    gemms: Sequence[Sequence[int]]
    dtypes: Sequence[str]
    copies: Sequence[int]
    messages: Sequence[int]
    repeats: int
    repeat_seconds: float
    point_seconds: float


def products(
    *, tokens: Sequence[int], widths: Mapping[int, int], squares: Sequence[int], vocab: int
) -> list[tuple[int, int, int]]:
    """(m, n, k) of a transformer's linear layers, of output heads over `vocab`, and of squares.

    `widths` maps a model's width to that of its feed-forward. Ordered by FLOP, without doubles.
    """
    found = {(size, size, size) for size in squares}
    for rows in tokens:
        for width, ffn in widths.items():
            found |= {(rows, width, width), (rows, ffn, width), (rows, width, ffn)}
        found.add((rows, vocab, min(widths)))
    return sorted(found, key=lambda shape: (shape[0] * shape[1] * shape[2], shape))


FULL = Sweep(
    gemms=products(
        tokens=(1, 16, 128, 512, 2048, 8192),
        widths={256: 704, 512: 1408, 1024: 2816, 2048: 5632, 4096: 14336, 8192: 28672},
        squares=(64, 128, 256, 512, 1024, 2048, 4096, 8192),
        vocab=32768,
    ),
    dtypes=("fp32", "bf16", "fp16"),
    copies=(64 * KIB, MIB, 16 * MIB, 256 * MIB, 1024 * MIB),
    messages=(4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB, 256 * MIB),
    repeats=7,
    repeat_seconds=5e-3,
    point_seconds=0.6,
)
"""About one to two minutes."""

QUICK = Sweep(
    gemms=products(
        tokens=(1, 256),
        widths={256: 704, 1024: 2816, 2048: 5632},
        squares=(64, 512, 2048),
        vocab=8192,
    ),
    dtypes=("fp32", "bf16", "fp16"),
    copies=(MIB, 64 * MIB),
    messages=(4 * KIB, 256 * KIB, 16 * MIB),
    repeats=5,
    repeat_seconds=2e-3,
    point_seconds=0.3,
)
"""A quarter of a minute: a first look."""
