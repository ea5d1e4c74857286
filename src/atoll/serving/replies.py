"""From the engine's tokens to pieces of text: one reply, and several at once.

What it is: what the HTTP API and the chat in the terminal share. What it is not: the form that a
reply takes on a wire (answers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from atoll.errors import AtollError
from atoll.serving.request import Finish, Stream
from atoll.serving.stops import Piece, Writer

if TYPE_CHECKING:
    from collections.abc import Collection


class ReplyFailed(AtollError):
    """The engine could not go on with a request; others are not concerned."""


class ReplyCancelled(AtollError):
    """The engine gave a request up because it is closing."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a reply: why, and how many tokens were written and found computed already."""

    reason: Literal["stop", "length"]
    num_tokens: int
    cached_tokens: int


async def reply(
    stream: Stream, writer: Writer, stop_ids: Collection[int]
) -> AsyncIterator[Piece | End]:
    """The pieces of a reply as they become certain, then its End.

    Whoever stops listening cancels the request. ReplyFailed or ReplyCancelled ends it early.
    """
    num_tokens, stopped = 0, False
    try:
        async for item in stream:
            if isinstance(item, Finish):
                if not stopped:
                    _raise_if_broken(item)
                    rest = writer.finish()
                    stopped = writer.stopped or item.reason == "stop"
                    if rest.text or rest.tokens:
                        yield rest
                yield End("stop" if stopped else "length", num_tokens, item.cached_tokens)
                return
            if stopped:  # a token that was on its way when the request was cancelled
                continue
            num_tokens += 1
            if item.id in stop_ids:
                continue
            piece = writer.push(item)
            stopped = writer.stopped
            if piece.text or piece.tokens:
                yield piece
            if stopped:
                stream.cancel()
    finally:
        stream.cancel()


def _raise_if_broken(finish: Finish) -> None:
    if finish.reason == "error":
        raise ReplyFailed(finish.message or "the engine failed")
    if finish.reason == "cancelled":
        raise ReplyCancelled("the server is stopping; the answer is not whole")


async def together(
    replies: Sequence[AsyncIterator[Piece | End]],
) -> AsyncIterator[tuple[int, Piece | End]]:
    """The items of several replies as they come, each with the number of its reply.

    The first error of any is raised, and the others are given up.
    """
    queue: asyncio.Queue[tuple[int, Piece | End] | BaseException | None] = asyncio.Queue()

    async def pump(number: int, items: AsyncIterator[Piece | End]) -> None:
        try:
            async for item in items:
                queue.put_nowait((number, item))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(number, items)) for number, items in enumerate(replies)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        for items in replies:
            await items.aclose()  # type: ignore[attr-defined]  # they are async generators
