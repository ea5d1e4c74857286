"""The order of training sequences: keyed permutations in integer arithmetic, without state.

It is: a bijection of [0, N) for any N and key, that gives one position at a time, the same in every
version of Python and on every machine. It is not: cryptography; it only has to look shuffled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

NUM_ROUNDS = 8
"""Rounds of the Feistel network: one 64-bit key each, together one SHA-512."""

MIXTURE_PERIOD = 1024
"""In every run of this many sequences each source of a mixture has the same, exact count."""

_WORD = (1 << 64) - 1


@lru_cache(maxsize=256)
def round_keys(*parts: str | int) -> tuple[int, ...]:
    """`NUM_ROUNDS` keys of 64 bits from names and numbers: SHA-512 of them joined by ":"."""
    state = hashlib.sha512(":".join(map(str, parts)).encode("utf-8")).digest()
    return tuple(int.from_bytes(state[8 * i : 8 * i + 8], "little") for i in range(NUM_ROUNDS))


def _mixed(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): 64 bits to 64 bits."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def permuted(position: int, *, size: int, keys: tuple[int, ...]) -> int:
    """Where `position` goes in the permutation of [0, size) that belongs to `keys`.

    A balanced Feistel network over the next even power of two, walked until the value falls below
    `size` (cycle walking: Black and Rogaway, 2002); fewer than four walks on average.
    """
    assert 0 <= position < size, (position, size)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    value = position
    while True:
        left, right = value >> half, value & mask
        for key in keys:
            left, right = right, left ^ (_mixed((right + key) & _WORD) & mask)
        value = (left << half) | right
        if value < size:
            return value


def largest_remainder(weights: Sequence[float], *, total: int) -> tuple[int, ...]:
    """Whole counts in proportion to `weights` that add up to `total`; ties go to the first.

    The quotas are computed in exact fractions of the given floats.
    """
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    scale = max(denominator for _, denominator in ratios)  # all are powers of two
    whole = [numerator * (scale // denominator) for numerator, denominator in ratios]
    everything = sum(whole)
    assert everything > 0 and min(whole) >= 0, weights
    counts = [weight * total // everything for weight in whole]
    rest = [weight * total % everything for weight in whole]
    by_rest = sorted(range(len(whole)), key=lambda index: (-rest[index], index))
    for index in by_rest[: total - sum(counts)]:
        counts[index] += 1
    return tuple(counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which window a sequence of the run is: window `window` of source `source`, pass `epoch`."""

    source: int
    epoch: int
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The sequences of a run, from 0 on without end: position -> `Place`.

    `num_windows` and `counts` have an entry a source; `counts` adds up to the mixture period (with
    one source it is not used). Every pass over a source visits each of its windows once.
    """

    seed: int
    num_windows: tuple[int, ...]
    counts: tuple[int, ...]

    def place(self, position: int) -> Place:
        """The window of the sequence at `position`, counted from 0 over the whole run."""
        source, position = self._source(position)
        size = self.num_windows[source]
        epoch, offset = divmod(position, size)
        keys = round_keys("atoll order 1", self.seed, epoch, source)
        return Place(source=source, epoch=epoch, window=permuted(offset, size=size, keys=keys))

    def _source(self, position: int) -> tuple[int, int]:
        """Source of a position, and how many sequences of this source came in the order before."""
        if len(self.num_windows) == 1:
            return 0, position
        round_, slot = divmod(position, sum(self.counts))
        keys = round_keys("atoll mixture 1", self.seed, round_)
        source, rank = _arrangement(self.counts, keys)[slot]
        return source, round_ * self.counts[source] + rank


@lru_cache(maxsize=16)
def _arrangement(counts: tuple[int, ...], keys: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """For each slot of a mixture period: its source, and how many slots of it came before."""
    sources = [source for source, count in enumerate(counts) for _ in range(count)]
    seen = [0] * len(counts)
    arranged = []
    for slot in range(len(sources)):
        source = sources[permuted(slot, size=len(sources), keys=keys)]
        arranged.append((source, seen[source]))
        seen[source] += 1
    return tuple(arranged)
