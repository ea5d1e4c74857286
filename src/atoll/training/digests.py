"""Digests of integer sums (they add up) and fingerprints of weights (they do not have to).

A sum digest is linear modulo the prime 2**61 - 1: the digests of the islands' sums add up to the
digest of the exchanged sum, so a bad exchange is found without moving the gradients again, and the
island whose result is bad is named. An element x[r, c] of a tensor, laid out in rows of `ROW`
elements, counts with the factor weight[c] * weight(tensor, r). The inner sums over a row are
products of exact integers in float64 that stay below 2**53, so no order of summation can change
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

PRIME = 2**61 - 1
ROW = 2048
_COLUMN_BITS = 10  # 32-bit magnitudes times factors below 2**10, ROW of them, stay below 2**53
_LOW_BITS = 31
_PIECE = 32 * ROW  # worked on at a time: 512 KiB in float64, which stay in the cache


def _mix(counter: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser on uint64 counters: integer arithmetic only."""
    x = counter * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_COLUMNS = torch.from_numpy(
    (_mix(np.arange(1, ROW + 1, dtype=np.uint64)) >> np.uint64(64 - _COLUMN_BITS)).astype(
        np.float64
    )
    + 1
).clamp_(max=2**_COLUMN_BITS - 1)


def row_weights(tensor: int, first_row: int, num_rows: int) -> list[int]:
    """Factors in [1, PRIME) of some rows of the tensor with this index."""
    counter = np.arange(first_row + 1, first_row + num_rows + 1, dtype=np.uint64)
    mixed = _mix(counter + (np.uint64(tensor + 1) << np.uint64(40)))
    weights: list[int] = (mixed % np.uint64(PRIME - 1) + np.uint64(1)).tolist()
    return weights


def _row_sums(flat: Tensor) -> list[int]:
    """Exact weighted sum of each row of a flat host tensor of int32 or int64.

    An int64 x is two numbers, x >> 31 and the low 31 bits; float64 holds these and their sums.
    """
    exact = torch.empty(min(_PIECE, flat.numel()), dtype=torch.float64)
    part = torch.empty_like(exact, dtype=torch.int64) if flat.dtype == torch.int64 else None
    sums: list[int] = []
    for first in range(0, flat.numel(), _PIECE):
        piece = flat[first : first + _PIECE]
        if part is None:
            sums += _weighted(exact[: piece.numel()].copy_(piece))
        else:
            high = torch.bitwise_right_shift(piece, _LOW_BITS, out=part[: piece.numel()])
            highs = _weighted(exact[: piece.numel()].copy_(high))
            low = torch.bitwise_and(piece, 2**_LOW_BITS - 1, out=part[: piece.numel()])
            lows = _weighted(exact[: piece.numel()].copy_(low))
            sums += [(h << _LOW_BITS) + x for h, x in zip(highs, lows, strict=True)]
    return sums


def _weighted(exact: Tensor) -> list[int]:
    """The rows of a piece, each times the factors of the columns."""
    num_full = exact.numel() // ROW
    full, rest = exact[: num_full * ROW], exact[num_full * ROW :]
    sums = [int(x) for x in torch.mv(full.view(-1, ROW), _COLUMNS).tolist()]
    if rest.numel():
        sums.append(int(torch.dot(rest, _COLUMNS[: rest.numel()]).item()))
    return sums


def sum_digest(integers: Tensor, *, tensor: int, offset: int = 0) -> int:
    """Digest of (a block of) one tensor of int32 or int64 on the host, as a number below PRIME.

    `tensor` is its index in the model; `offset` is the place of the block's first element in the
    flattened tensor, a multiple of `ROW`, so that digests of blocks add up to the digest of the
    whole.
    """
    assert offset % ROW == 0, offset
    sums = _row_sums(integers.reshape(-1))
    total = 0
    for value, weight in zip(sums, row_weights(tensor, offset // ROW, len(sums)), strict=True):
        total += value * weight
    return total % PRIME


def add_digests(digests: Iterable[int]) -> int:
    """Digest of the sum of several integer tensors from their digests."""
    total = 0
    for digest in digests:
        total += digest
    return total % PRIME


def tensor_bytes_sha256(host: Tensor) -> str:
    """SHA-256 of a contiguous host tensor's bytes (little-endian machines only, as all of ours
    are).
    """
    return hashlib.sha256(host.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def combine_sha256(parts: Mapping[str, str]) -> str:
    """One fingerprint from the SHA-256 of each named tensor, in the order given."""
    text = "".join(f"{name} {digest}\n" for name, digest in parts.items())
    return hashlib.sha256(text.encode()).hexdigest()
