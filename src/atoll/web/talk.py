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
    """The answer so far, and why it ended: a key of words.toml, "" at its natural end, what `stop`
    was given, None while it goes on."""

    text: str
    end: str | None = None
    refused: Refused | None = None


@dataclass(slots=True)
class _UnderWay:
    stopped: asyncio.Event
    end: str | None = None  # of its last step; None if there is to be none


def turns(messages: Sequence[Message]) -> list[Message]:
    """Messages as turns: what one side said before it was answered is one of them.

    A visitor may go on where an answer was refused or stopped before its first word, and many
    chat templates refuse two messages of one side in a row.
    """
    said: list[Message] = []
    for one in messages:
        role, text = one["role"], one["content"]
        if said and said[-1]["role"] == role:
            text = f"{said.pop()['content']}\n\n{text}"
        said.append({"role": role, "content": text})
    return said


class Talk:
    """The answers under way, by visitor."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._running: dict[str, _UnderWay] = {}

    def stop(self, visitor: str, *, end: str | None) -> bool:
        """End the visitor's answer: the server sees its client leave. False if there is none.

        ``end`` is that of its last step: what is told there comes after all that the answer has
        on its way to the page. None: there is no last step."""
        this = self._running.get(visitor)
        if this is not None:
            this.end = end
            this.stopped.set()
        return this is not None

    async def answer(
        self, visitor: str, messages: Sequence[Message], settings: Mapping[str, Any], *, key: str
    ) -> AsyncIterator[Step]:
        """The answer as it grows; the last step has its end. An earlier one is stopped."""
        self.stop(visitor, end=None)
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
                    if this.end is not None:
                        yield Step(text, this.end)
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
