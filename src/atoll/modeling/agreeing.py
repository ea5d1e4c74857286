"""Which numbers of rows give a row the same bits: found out on the device, with the real weights.

What it is: a trial. The last tokens of a text are computed in steps of different row counts, in
pieces of different sizes; keys, values and logits are compared bit for bit. The first two blocks
and the head have every shape that the others have. What it is not: a proof for
all inputs. A library that adds up in another order shows it in nearly every number, though, and
there are many thousands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.modeling.device_inference import DeviceInference
from atoll.modeling.inference import Piece

QUERIES = (1, 2, 4, 8, 16, 32)
"""Choices for `DeviceInference.min_queries`."""

SIZES = (*range(2, 18), 20, 24, 31, 32, 33, 48, 63)
"""Tokens of a piece that are tried beside 1 and as many as there are rows."""

ALONE = 16
"""The one row count that is left where no two agree."""

_NUM_LAYERS = 2


class _Outcome(NamedTuple):
    """What was stored after a trial, and the logits after its last tokens."""

    stored: list[Tensor]
    logits: npt.NDArray[np.float32]

    def same_as(self, other: _Outcome) -> bool:
        """Bit for bit, as far as both have logits."""
        num = min(len(self.logits), len(other.logits))
        return np.array_equal(self.logits[-num:], other.logits[-num:]) and all(
            torch.equal(a, b) for a, b in zip(self.stored, other.stored, strict=True)
        )


def settle(inference: DeviceInference, *, most: int) -> bool:
    """Choose `row_counts`, up to ``most`` or a little more, and `min_queries`; clears two pages.

    False if even one row count alone does not make a row's bits its own.
    """
    trial = _Trial(inference, most)
    counts = [1]
    while counts[-1] < max(most, ALONE):
        counts.append(2 * counts[-1])
    chosen: list[int] = []
    for largest in reversed(counts):
        if largest >= ALONE and not _few(chosen):
            found = _agreeing(trial, largest, counts)
            chosen = found if not chosen or _few(found) else chosen
    exact = bool(chosen)
    inference.row_counts = chosen if _few(chosen) else (ALONE,)
    trial.clear()
    return exact


def _few(counts: Sequence[int]) -> bool:
    """Whether a single request can be computed in fewer rows than `ALONE`."""
    return bool(counts) and counts[0] < ALONE


def _agreeing(trial: _Trial, largest: int, counts: Sequence[int]) -> list[int]:
    """The counts up to ``largest`` that agree with it; none if queries alone and together differ.

    Leaves `min_queries` at what they need.
    """
    for queries in QUERIES:
        trial.inference.min_queries = queries
        trial.clear()
        alone = trial.run(largest, 1)
        sizes = [size for size in (*SIZES, largest) if size <= largest]
        if not all(trial.run(largest, size).same_as(alone) for size in sizes):
            continue
        agreeing = [largest]
        for count in reversed([count for count in counts if count < largest]):
            outcomes = []
            for size in {1, count}:
                trial.restore(alone)
                outcomes.append(trial.run(count, size))
            if all(outcome.same_as(alone) for outcome in outcomes):
                agreeing.insert(0, count)
        if _few(agreeing) or queries == QUERIES[-1]:
            return agreeing
    return []


class _Trial:
    """A text of at most ``most`` tokens that lies across a page's end where there are two pages."""

    def __init__(self, inference: DeviceInference, most: int) -> None:
        page, num_pages = inference.page, min(2, inference.num_pages)
        room = min(inference.model.context, num_pages * page)
        self.num = min(most, room)
        self.first = min(max(0, page - self.num // 2), room - self.num)
        self.inference, self.pages = inference, range(num_pages)
        vocab = inference.model.resolved_vocab
        self.tokens = [int(t) for t in np.random.default_rng(0).integers(0, vocab, self.num)]

    def run(self, count: int, size: int) -> _Outcome:
        """Compute the last ``count`` tokens in one step, in pieces of ``size``.

        Gives logits after every piece of one token, else after the last piece.
        """
        self.inference.row_counts = (count,)
        start = max(0, self.num - count)
        pieces = [
            Piece(
                self.pages,
                self.first + at,
                self.tokens[at : at + size],
                size == 1 or at + size >= self.num,
            )
            for at in range(start, self.num, size)
        ]
        logits = self.inference.step(pieces, num_layers=_NUM_LAYERS)
        return _Outcome([part.cpu().clone() for part in self._stored()], logits)

    def restore(self, outcome: _Outcome) -> None:
        """Put back what was stored."""
        with self.inference.without_gradients():
            for part, saved in zip(self._stored(), outcome.stored, strict=True):
                part.copy_(saved)

    def clear(self) -> None:
        """Leave the pages as they were at the start."""
        for page in self.pages:
            self.inference.copy(page, page, 0)

    def _stored(self) -> list[Tensor]:
        return self.inference.stored(self.pages, num_layers=_NUM_LAYERS)
