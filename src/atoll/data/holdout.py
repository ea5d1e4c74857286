"""Which documents are held out for validation: decided by the hash of each text alone.

A document is held out iff the first 64 bits of its SHA-256, as a fraction of 1, are below a limit;
equal texts are always on the same side. The limit is the fraction of the recipe. Only where that
holds out less than half of the wanted bytes, or everything (few documents), it is raised to the
smallest hash after which enough is held out. One document alone loses its last part instead, cut
at the end of a line. What was done stands in the manifest.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

WHOLE = 1 << 64
_NUM_SMALLEST = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A document with its SHA-256."""

    text: str
    num_bytes: int
    sha256: bytes

    @property
    def position(self) -> int:
        """Where it falls in [0, 2**64) for the split."""
        return int.from_bytes(self.sha256[:8], "big")

    @property
    def second_position(self) -> int:
        """An independent position, for choosing what a tokenizer is trained on."""
        return int.from_bytes(self.sha256[8:16], "big")


def hashed(texts: Iterable[str]) -> Iterator[Text]:
    """Each document with its hash."""
    for text in texts:
        data = text.encode("utf-8")
        yield Text(text=text, num_bytes=len(data), sha256=hashlib.sha256(data).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The rule for one source: `limit` of hashes that are held out, or the share of the tail.

    `num_documents`, `num_bytes` and `sha256` (of all hashes in order) are what the survey saw.
    """

    num_documents: int
    num_bytes: int
    sha256: str
    fraction: float
    limit: int
    tail: bool

    def record(self) -> dict[str, object]:
        """The rule for the manifest; the limit in hex, as JSON holds no 64-bit integers."""
        if self.tail:
            return {"rule": "tail", "fraction": self.fraction}
        return {"rule": "hash", "fraction": self.fraction, "limit": f"{self.limit:x}"}

    def parts(self, text: Text) -> tuple[str, str]:
        """(training text, held-out text) of a document; one of them is mostly empty."""
        if self.tail:
            cut = _tail_cut(text.text, self.fraction)
            return text.text[:cut], text.text[cut:]
        if text.position < self.limit:
            return "", text.text
        return text.text, ""


def survey(texts: Iterable[Text], *, fraction: float) -> Split:
    """One pass over a source: counts it and fixes the split, in memory that does not grow."""
    wanted_limit = int(Fraction(fraction) * WHOLE)
    num_documents = num_bytes = held_bytes = 0
    everything = hashlib.sha256()
    smallest: dict[int, int] = {}  # position -> bytes, of the smallest distinct positions
    heap: list[int] = []  # the same positions, negated: the largest comes first
    for text in texts:
        num_documents += 1
        num_bytes += text.num_bytes
        everything.update(text.sha256)
        position = text.position
        if position < wanted_limit:
            held_bytes += text.num_bytes
        if position in smallest:
            smallest[position] += text.num_bytes
        elif len(heap) < _NUM_SMALLEST:
            smallest[position] = text.num_bytes
            heapq.heappush(heap, -position)
        elif position < -heap[0]:
            smallest[position] = text.num_bytes
            del smallest[-heapq.heappushpop(heap, -position)]
    limit, tail = wanted_limit, False
    if fraction > 0 and len(smallest) == 1:
        tail = True
    elif fraction > 0 and (2 * held_bytes < fraction * num_bytes or held_bytes == num_bytes):
        limit = _raised_limit(smallest, wanted_bytes=fraction * num_bytes)
    return Split(
        num_documents=num_documents,
        num_bytes=num_bytes,
        sha256=everything.hexdigest(),
        fraction=fraction,
        limit=limit,
        tail=tail,
    )


def _raised_limit(smallest: dict[int, int], *, wanted_bytes: float) -> int:
    """The limit that holds out the smallest hashes up to enough bytes, but never the last one."""
    held = 0
    limit = 0
    for position in sorted(smallest)[:-1]:
        held += smallest[position]
        limit = position + 1
        if held >= wanted_bytes:
            break
    return limit


def _tail_cut(text: str, fraction: float) -> int:
    """Where the held-out tail begins: at a line's start near 1 - fraction, else exactly there."""
    target = min(len(text) - 1, int(len(text) * (1 - fraction)))
    after = text.find("\n", target)
    if 0 <= after < len(text) - 1:
        return after + 1
    before = text.rfind("\n", 0, target)
    return before + 1 if before >= 0 else max(1, target)
