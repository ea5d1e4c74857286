"""Grains of token sequences: (step, index) -> the same tokens for whoever asks.

It is: windows of fixed length over finished shards, in the order of `order.py`, read from memory
maps. It holds no position: any island computes any grain. It is not: masking at document borders;
a window may hold parts of several documents, told apart by the end-of-text token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atoll.data.order import MIXTURE_PERIOD, Order, largest_remainder, permuted, round_keys
from atoll.data.storage import Shards, Tokens
from atoll.errors import InputError


class Sampler:
    """The sequences of a run over `shards`.

    A sequence is `context` + 1 tokens; windows start every `context` tokens, so that each token
    but the first of a source is predicted once a pass. A step takes `sequences` of them, a grain
    `grain` of these. InputError: a source shorter than one window, or too rare in its mixture.
    """

    def __init__(
        self, shards: Shards, *, seed: int, context: int, sequences: int, grain: int
    ) -> None:
        assert grain > 0 and sequences % grain == 0, (sequences, grain)
        self.shards = shards
        self.context = context
        self.sequences = sequences
        self.sequences_per_grain = grain
        self._train = [shards.train(source) for source in range(shards.num_sources)]
        windows = tuple(_num_windows(len(tokens), context) for tokens in self._train)
        for source, count in enumerate(windows):
            if count == 0:
                _refuse_short(shards, source, context)
        counts = largest_remainder(shards.weights, total=MIXTURE_PERIOD)
        for source, count in enumerate(counts):
            if count == 0:
                raise InputError(
                    f"this source would be less than 1/{MIXTURE_PERIOD} of the mixture",
                    key=f"data.corpus.{source}.weight",
                    value=shards.weights[source],
                    fix="Raise its weight or leave it out.",
                )
        self.order = Order(seed=seed, num_windows=windows, counts=counts)
        self._validation = [shards.validation(source) for source in range(shards.num_sources)]
        self._validation_windows = [_num_windows(len(part), context) for part in self._validation]
        if shards.num_validation_tokens > 0 and self.num_validation_windows == 0:
            raise InputError(
                f"the held-out text has {shards.num_validation_tokens:,} tokens, less than one "
                f"sequence of {context + 1:,}",
                key="data.validation",
                fix="Hold out more (or 0 for nothing), or use a smaller model.context.",
            )

    @property
    def num_grains(self) -> int:
        """Grains in a step."""
        return self.sequences // self.sequences_per_grain

    @property
    def num_train_windows(self) -> int:
        """Windows in one pass over all sources."""
        return sum(self.order.num_windows)

    @property
    def num_validation_windows(self) -> int:
        """Held-out windows over all sources; 0 only if nothing is held out."""
        return sum(self._validation_windows)

    def grain(self, step: int, index: int) -> NDArray[np.int64]:
        """The tokens of grain `index` (from 0) of `step` (from 1): [grain, context + 1]."""
        assert step >= 1 and 0 <= index < self.num_grains, (step, index)
        size = self.sequences_per_grain
        first = ((step - 1) * self.num_grains + index) * size
        rows = [self._sequence(position) for position in range(first, first + size)]
        return np.stack(rows)

    def validation(self, first: int, count: int) -> NDArray[np.int64]:
        """Held-out windows [first, first + count) in a fixed shuffled order: [count, context + 1].

        The order depends on nothing but the number of windows, so that any leading part is a fair
        sample of all held-out text, and the same one in every run over these shards.
        """
        total = self.num_validation_windows
        assert first >= 0 and first + count <= total, (first, count, total)
        keys = round_keys("atoll validation 1")
        rows = np.empty((count, self.context + 1), dtype=np.int64)
        for row in range(count):
            window = permuted(first + row, size=total, keys=keys)
            source = 0
            while window >= self._validation_windows[source]:
                window -= self._validation_windows[source]
                source += 1
            rows[row] = self._window(self._validation[source], window)
        return rows

    def _sequence(self, position: int) -> NDArray[np.int64]:
        place = self.order.place(position)
        return self._window(self._train[place.source], place.window)

    def _window(self, tokens: Tokens, window: int) -> NDArray[np.int64]:
        start = window * self.context
        return tokens.read(start, start + self.context + 1)


def _num_windows(num_tokens: int, context: int) -> int:
    return max(0, num_tokens - 1) // context


def _refuse_short(shards: Shards, source: int, context: int) -> None:
    have = len(shards.train(source))
    raise InputError(
        f"its training text has {have:,} tokens, less than one sequence of {context + 1:,}",
        key="data.corpus",
        value=shards.source_names[source],
        fix="Give more text, or use a smaller model.context.",
    )
