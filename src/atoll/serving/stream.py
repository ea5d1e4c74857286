"""A request inside the built-in engine: filled by its thread, read in the loop it came from."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from atoll.errors import InputError
from atoll.modeling.sampling import choose, log_probabilities, penalised, uniform
from atoll.serving.request import Finish, FinishReason, Request, Stream, Token
from atoll.serving.scheduler import Work

_log = logging.getLogger(__name__)


class EngineStream(Stream):
    """A request that was taken in: read in its loop, filled by the engine's thread."""

    def __init__(
        self,
        request: Request,
        loop: asyncio.AbstractEventLoop,
        cancel: Callable[[EngineStream], None],
    ) -> None:
        sampling = request.sampling
        self.request, self.loop = request, loop
        self.work = Work(list(request.prompt), sampling.max_tokens, request.client)
        self.queue: asyncio.Queue[Token | Finish] = asyncio.Queue()
        self.events: list[Token | Finish] = []  # found, not yet handed over
        self.finish: Finish | None = None
        self.started = False
        self._cancel = cancel
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._counts: Counter[int] = Counter()
        self._read_to_the_end = False

    async def __aiter__(self) -> AsyncIterator[Token | Finish]:
        while not self._read_to_the_end:
            event = await self.queue.get()
            self._read_to_the_end = isinstance(event, Finish)
            yield event

    def cancel(self) -> None:
        """Give the request's slot and memory back; safe from any thread, more than once."""
        self._cancel(self)

    @property
    def num_generated(self) -> int:
        """Tokens so far."""
        return len(self.work.tokens) - self.work.num_prompt

    def end(self, reason: FinishReason, message: str = "") -> None:
        """Add the last event."""
        if self.finish is None:
            self.finish = Finish(reason, message, self.work.num_cached)
            self.events.append(self.finish)

    def choose(self, row: npt.NDArray[np.float32]) -> Token | None:
        """The next token, None at a stop id. A function of logits, seed and position only."""
        sampling, constraint = self.request.sampling, self.request.constraint
        if not np.isfinite(row).all():
            raise InputError("the model's logits are not finite: its weights are damaged")
        logits = row.astype(np.float64)
        changed = penalised(
            logits, self._counts, sampling.presence_penalty, sampling.frequency_penalty
        )
        allowed = None if constraint is None else constraint.allowed()
        if allowed is not None:
            if len(allowed) != len(logits) or not allowed.any():
                raise InputError("the constraint allows no token of this model")
            changed = np.where(allowed, changed, -np.inf)
        point = uniform(self._seed, self.num_generated)
        chosen = choose(
            changed,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            point,
            min_p=sampling.min_p,
        )
        if chosen in sampling.stop_ids:
            return None
        if constraint is not None:
            constraint.advance(chosen)
        self._counts[chosen] += 1
        if sampling.top_logprobs is None:
            return Token(chosen)
        return Token(chosen, *log_probabilities(logits, chosen, sampling.top_logprobs))


_Delivery: TypeAlias = tuple[EngineStream, list[Token | Finish]]


def deliver(streams: list[EngineStream]) -> None:
    """Give events to the loops, one call for each loop; a loop that is closed needs none."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Delivery]] = {}
    for stream in streams:
        if stream.events:
            events, stream.events = stream.events, []
            by_loop.setdefault(stream.loop, []).append((stream, events))
    for loop, deliveries in by_loop.items():
        try:
            loop.call_soon_threadsafe(_hand_over, deliveries)
        except RuntimeError:
            _log.debug("a loop was closed with requests running")


def _hand_over(deliveries: list[_Delivery]) -> None:
    """In the loop: put events where the readers wait."""
    for stream, events in deliveries:
        for event in events:
            stream.queue.put_nowait(event)
