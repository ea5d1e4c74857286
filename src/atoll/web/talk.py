"""A conversation on its way: one answer a visitor at a time, in steps that a page can show.

It knows neither Gradio nor the engine: history in, `Step`s out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from atoll.web.client import Endpoint, Message, Refused

_SHOW_SECONDS = 0.05
"""How long pieces of an answer are gathered before they are shown: a page need not paint faster."""


@dataclass(frozen=True, slots=True)
class Step:
    """The answer so far, and why it ended: a key of words.toml, "" at its natural end, None while
    it goes on."""

    text: str
    end: str | None = None
    refused: Refused | None = None


@dataclass(slots=True)
class _UnderWay:
    stopped: asyncio.Event
    told: bool = True  # whether its visitor still wants to hear how it ended


class Talk:
    """The answers under way, by visitor."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._running: dict[str, _UnderWay] = {}

    def stop(self, visitor: str, *, told: bool = True) -> None:
        """End the visitor's answer, if there is one: the server sees its client leave. Unless the
        visitor is ``told``, the answer has no last step: something else is on the page by then."""
        if visitor in self._running:
            self._running[visitor].told = told
            self._running[visitor].stopped.set()

    async def answer(
        self, visitor: str, messages: Sequence[Message], settings: Mapping[str, Any], *, key: str
    ) -> AsyncIterator[Step]:
        """The answer as it grows; the last step has its end. An earlier one is stopped."""
        self.stop(visitor, told=False)
        this = self._running[visitor] = _UnderWay(asyncio.Event())
        pieces: asyncio.Queue[str | Refused | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(pieces, messages, settings, key))
        stopping = asyncio.create_task(this.stopped.wait())
        stopping.add_done_callback(lambda _: pieces.put_nowait(None))
        text, cut = "", False
        try:
            while True:
                piece = await pieces.get()
                if this.stopped.is_set():
                    if this.told:
                        yield Step(text, "stopped")
                    return
                if piece is None:
                    yield Step(text, "cut" if cut else "")
                    return
                if isinstance(piece, Refused):
                    yield Step(text, piece.key, piece)
                    return
                text, cut = text + piece, piece == ""
                if pieces.empty():
                    yield Step(text)
                    await asyncio.sleep(_SHOW_SECONDS)
        finally:
            if self._running.get(visitor) is this:
                del self._running[visitor]
            for task in (stopping, reading):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _read(
        self,
        pieces: asyncio.Queue[str | Refused | None],
        messages: Sequence[Message],
        settings: Mapping[str, Any],
        key: str,
    ) -> None:
        try:
            async for piece in self._endpoint.answer(messages, settings, key=key):
                pieces.put_nowait(piece)
            pieces.put_nowait(None)
        except Refused as refused:
            pieces.put_nowait(refused)
