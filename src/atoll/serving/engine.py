"""The built-in engine: one thread computes many requests at a time; event loops get the tokens.

The life of a request:
1. `submit`, in an event loop: checked, counted against the queue's bound, handed to the thread.
2. The thread gives it to the scheduler, which admits it when a slot and its memory are there.
3. What earlier requests computed of its prompt is taken over; the rest is read in chunks, in the
   same passes of the model in which others generate.
4. After every pass a token is chosen for each request that is due one (modeling/sampling.py).
5. Tokens go to the loop that submitted it, one call a pass; `async for` reads them there.
6. It ends at a stop id, at its last token, by `cancel`, or with an error of its own; its memory is
   available again before the next pass.

What it is not: HTTP or text (api.py), or the order of things (scheduler.py).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.backends.base import Memory
from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling.inference import PAGE, Inference, Piece, page_bytes
from atoll.modeling.loaded import Loaded
from atoll.modeling.opening import open_inference
from atoll.serving.cache import Pages
from atoll.serving.request import (
    Busy,
    Closed,
    Engine,
    FinishReason,
    Load,
    Request,
    Stream,
    Token,
    TooLong,
)
from atoll.serving.scheduler import Scheduler, Step, Work
from atoll.serving.stream import EngineStream, deliver

MAX_ROWS = 64
"""Tokens of a step: what a prompt's chunk may add to the time between two tokens of the others."""

USUAL_LENGTH = 2048
"""Tokens of prompt and answer for which memory is taken if nobody says how much."""

DEFAULT_FREE = 1 << 30
"""Bytes that are taken to be free where nobody says: a moderate guess."""

FIRST_GUESS = 1.0
"""Seconds until a place is free, before anything was measured."""

_log = logging.getLogger(__name__)


def open_engine(
    loaded: Loaded,
    *,
    device: Any = "cpu",
    max_concurrency: int = 8,
    memory: int | None = None,
    max_queue: int = 64,
    fast: bool = False,
    threads: int | None = None,
    page: int = PAGE,
    tell: Callable[[str], None] = _log.info,
) -> BuiltIn:
    """An engine that serves a model on one device, all memory taken and its thread running.

    Args:
        loaded: a model folder, a GGUF file or a run, as the readers return it.
        device: a torch device or its name, as a backend's ``device`` gives it.
        max_concurrency: requests that are computed at a time.
        memory: bytes of keys and values, the bound; None: what ``max_concurrency`` requests of
            USUAL_LENGTH tokens take, or one of the model's whole context if that is more, but at
            most a quarter of the memory that is free.
        max_queue: requests that may wait; one more raises Busy.
        fast: give up that a request's tokens do not depend on what else is being served, where
            that costs time.
        threads: on the host; None: as many as torch has.
        page: positions of a page of keys and values.
        tell: gets a line before something takes seconds.

    Raises InputError if the memory is more than there is or does not hold one page, or for a model
    that is not computed.
    """
    import torch

    if max_concurrency < 1:
        raise InputError("must be at least 1", key="max_concurrency", value=max_concurrency)
    if max_queue < 0:
        raise InputError("must be at least 0", key="max_queue", value=max_queue)
    place = torch.device(device)
    model = loaded.model
    page = min(page, model.context)
    num_pages = _num_pages(model, page, memory, max_concurrency, place)
    max_rows = max(MAX_ROWS, 2 * max_concurrency)
    scheduler = Scheduler(Pages(num_pages, page), max_running=max_concurrency, max_rows=max_rows)
    opening = partial(
        open_inference,
        model,
        loaded.tensors,
        device=place,
        num_pages=num_pages,
        page=page,
        max_rows=max_rows,
        threads=threads or torch.get_num_threads(),
        fast=fast,
        tell=tell,
    )
    return BuiltIn(opening, scheduler, model, max_queue=max_queue)


def _num_pages(model: Model, page: int, memory: int | None, together: int, device: Any) -> int:
    """How many pages the memory of `open_engine` holds."""
    size = page_bytes(model, page)
    whole, usual = (-(-n // page) for n in (model.context, min(model.context, USUAL_LENGTH)))
    most = max(whole, usual * together)
    there = _memory(device)
    if memory is None:
        memory = min(most * size, (DEFAULT_FREE if there.free is None else there.free) // 4)
    elif there.total is not None and memory > there.total:
        raise InputError(f"there are {there.total} bytes in all", key="memory", value=memory)
    if memory < size:
        raise InputError(
            f"holds not one page of {page} positions, which takes {size} bytes",
            key="memory",
            value=memory,
            fix=f"Give at least {whole * size} bytes for one full context.",
        )
    return memory // size


def _memory(device: Any) -> Memory:
    """What there is where keys and values will lie."""
    from atoll import backends

    backend = backends.here() if device.type != "cpu" else backends.named("cpu")
    return backend.memory(device.index or 0)


class BuiltIn(Engine):
    """The engine of `open_engine`. ``limit`` is the tokens of prompt and answer together;
    ``invariant`` says whether a request's tokens were seen not to depend on other requests."""

    def __init__(
        self,
        opening: Callable[[], tuple[Inference, bool]],
        scheduler: Scheduler,
        model: Model,
        *,
        max_queue: int,
    ) -> None:
        """``opening`` makes the model, in the engine's own thread: OpenMP keeps helpers for each
        thread that computes, and with more of them than cores lets all sleep at every barrier."""
        self.limit = min(model.context, scheduler.pages.num_pages * scheduler.pages.size)
        self.invariant = False
        self._vocab = model.resolved_vocab
        self._page_bytes = page_bytes(model, scheduler.pages.size)
        self._scheduler = scheduler
        self._max_queue = max_queue
        # All below is shared between threads and read or written under the lock.
        self._wake = threading.Condition()
        self._arrived: deque[EngineStream] = deque()
        self._cancelled: deque[EngineStream] = deque()
        self._live: set[EngineStream] = set()
        self._num_waiting = 0  # arrived or queued in the scheduler
        self._closing = False
        self._failure = ""
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._finished_tokens: Counter[str] = Counter()
        self._load = Load()
        self._between_ends = FIRST_GUESS
        self._last_end: float | None = None
        # Of the engine's thread alone.
        self._streams: dict[Work, EngineStream] = {}
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._open_and_run, args=(opening, opened), name="atoll-engine", daemon=True
        )
        self._thread.start()
        opened.result()

    # -- for callers --------------------------------------------------------------------------

    def submit(self, request: Request) -> Stream:
        """Take a request in; call it inside a running event loop.

        Raises Busy, TooLong, Closed; InputError for an empty prompt, an id that the model does not
        have, or a setting out of range.
        """
        self._check(request)
        stream = EngineStream(request, asyncio.get_running_loop(), self.cancel)
        with self._wake:
            if self._failure:
                raise Closed(f"the engine has stopped: {self._failure}")
            if self._closing:
                raise Closed("the engine is closing")
            free = self._scheduler.max_running - (len(self._live) - self._num_waiting)
            if self._num_waiting >= self._max_queue + max(0, free):
                raise Busy(
                    f"the queue is full: {self._num_waiting} waiting",
                    retry_after=self._between_ends,
                )
            self._num_waiting += 1
            self._live.add(stream)
            self._arrived.append(stream)
            self._wake.notify()
        return stream

    def load(self) -> Load:
        """What it is doing; safe from any thread."""
        with self._wake:
            return Load(
                running=len(self._live) - self._num_waiting,
                queued=self._num_waiting,
                slots=self._scheduler.max_running,
                cache_used=self._load.cache_used,
                cache_kept=self._load.cache_kept,
                cache_size=self._scheduler.pages.num_pages * self._page_bytes,
                prompt_tokens=self._counts["prompt"],
                cached_tokens=self._counts["cached"],
                generated_tokens=self._counts["generated"],
                steps=self._counts["steps"],
                finished=dict(self._finished),
                finished_tokens=dict(self._finished_tokens),
                failure=self._failure,
            )

    def close(self, grace: float = 0.0) -> None:
        """Take in nothing more, let requests end for ``grace`` seconds, then cancel the rest.

        Blocks until the thread has ended: in an event loop call it by ``asyncio.to_thread``.
        """
        until = time.monotonic() + grace
        with self._wake:
            self._closing = True
            while self._live and not self._failure and (left := until - time.monotonic()) > 0:
                self._wake.wait(left)
            self._cancelled.extend(self._live)
            self._wake.notify_all()
        self._thread.join()

    def cancel(self, stream: EngineStream) -> None:
        """End a stream, if it still goes on; safe from any thread."""
        with self._wake:
            if stream in self._live:
                self._cancelled.append(stream)
                self._wake.notify_all()

    def _check(self, request: Request) -> None:
        prompt, sampling = request.prompt, request.sampling
        if not len(prompt):
            raise InputError("the prompt has no tokens", fix="Give at least one token.")
        outside = [item for item in prompt if not 0 <= item < self._vocab]
        if outside:
            raise InputError(
                f"the model has {self._vocab} tokens", key="token id", value=outside[0]
            )
        bounds = {
            "max_tokens": (sampling.max_tokens >= 1, "at least 1"),
            "temperature": (0.0 <= sampling.temperature < float("inf"), "at least 0"),
            "top_k": (sampling.top_k >= 0, "at least 0"),
            "top_p": (0.0 < sampling.top_p <= 1.0, "above 0 and at most 1"),
            "min_p": (0.0 <= sampling.min_p <= 1.0, "from 0 to 1"),
            "presence_penalty": (abs(sampling.presence_penalty) < float("inf"), "a number"),
            "frequency_penalty": (abs(sampling.frequency_penalty) < float("inf"), "a number"),
            "top_logprobs": ((sampling.top_logprobs or 0) >= 0, "at least 0"),
        }
        for key, (fits, wanted) in bounds.items():
            if not fits:
                raise InputError(f"must be {wanted}", key=key, value=getattr(sampling, key))
        if len(prompt) + sampling.max_tokens > self.limit:
            raise TooLong(prompt=len(prompt), max_tokens=sampling.max_tokens, limit=self.limit)

    # -- the thread ---------------------------------------------------------------------------

    def _open_and_run(
        self, opening: Callable[[], tuple[Inference, bool]], opened: Future[None]
    ) -> None:
        """The thread's life. What goes wrong while it opens is raised where it was opened."""
        try:
            self._inference, self.invariant = opening()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        self._run()

    def _run(self) -> None:
        """Step after step. An exception here is a bug of ours: all streams end and say so."""
        try:
            while self._take_in():
                self._pass()
        except BaseException as error:
            _log.exception("the engine's thread has failed")
            with self._wake:
                self._failure = f"{type(error).__name__}: {error}"
                for stream in self._live:
                    stream.end("error", f"the engine failed: {self._failure}")
                    self._count_end(stream)
                deliver(list(self._live))
                self._live.clear()
                self._num_waiting = 0
                self._wake.notify_all()

    def _take_in(self) -> bool:
        """Wait for something to do and take in what came; False when all is over."""
        with self._wake:
            while not (self._arrived or self._cancelled or self._streams):
                if self._closing and not self._live:
                    return False
                self._wake.wait()
            arrived, self._arrived = self._arrived, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for stream in arrived:
            self._streams[stream.work] = stream
            self._scheduler.add(stream.work)
        for stream in cancelled:
            if stream.work in self._streams:
                self._end(stream, "cancelled")
        self._settle([*cancelled])
        return True

    def _pass(self) -> None:
        """One step: the model once, a token for everyone who is due one."""
        step = self._scheduler.next()
        if not step.turns:
            return
        for order in step.orders:
            if isinstance(order, int):
                self._inference.copy(order, order, 0)
            else:
                self._inference.copy(*order)
        pieces = [
            Piece(t.work.pages, t.first, t.work.tokens[t.first : t.last], t.wanted)
            for t in step.turns
        ]
        logits = self._inference.step(pieces)
        self._scheduler.done(step)
        self._count(step)
        due = [self._streams[turn.work] for turn in step.turns if turn.wanted]
        for stream, row in zip(due, logits, strict=True):
            self._advance(stream, row)
        self._settle(due)

    def _advance(self, stream: EngineStream, logits: npt.NDArray[np.float32]) -> None:
        """Choose a request's next token. What goes wrong here is that request's error alone."""
        try:
            token = stream.choose(logits)
        except Exception as error:
            self._end(stream, "error", str(error) or type(error).__name__)
            return
        if token is None:
            self._end(stream, "stop")
            return
        stream.work.tokens.append(token.id)
        stream.events.append(token)
        if stream.num_generated == stream.request.sampling.max_tokens:
            self._end(stream, "length")

    def _end(self, stream: EngineStream, reason: FinishReason, message: str = "") -> None:
        self._scheduler.remove(stream.work, keep=reason != "error")
        del self._streams[stream.work]
        stream.end(reason, message)

    def _count(self, step: Step) -> None:
        """Add a step to the counts; requests that have started no longer wait."""
        with self._wake:
            for turn in step.turns:
                self._counts["prompt"] += max(0, min(turn.last, turn.work.num_prompt) - turn.first)
            for turn in step.turns:
                stream = self._streams[turn.work]
                if not stream.started:
                    stream.started = True
                    self._num_waiting -= 1
                    self._counts["cached"] += turn.work.num_cached
            self._counts["steps"] += 1

    def _settle(self, streams: list[EngineStream]) -> None:
        """Hand out what a pass has found, and count the streams that ended."""
        used, kept = self._scheduler.num_used, self._scheduler.pages.num_kept
        with self._wake:
            for stream in streams:
                self._counts["generated"] += sum(isinstance(e, Token) for e in stream.events)
                if stream.finish is None or stream not in self._live:
                    continue
                self._live.remove(stream)
                self._count_end(stream)
                if not stream.started:
                    self._num_waiting -= 1
                self._measure_end()
                self._wake.notify_all()
            self._load = Load(
                cache_used=used * self._page_bytes, cache_kept=kept * self._page_bytes
            )
        deliver(streams)

    def _count_end(self, stream: EngineStream) -> None:
        assert stream.finish is not None
        self._finished[stream.finish.reason] += 1
        self._finished_tokens[stream.finish.reason] += stream.num_generated

    def _measure_end(self) -> None:
        """Update the mean time between two ends while requests wait: what Busy says."""
        now = time.monotonic()
        if self._last_end is not None and self._num_waiting:
            self._between_ends += 0.2 * (now - self._last_end - self._between_ends)
        self._last_end = now
