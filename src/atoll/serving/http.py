"""HTTP on the way in and out: bodies that are bounded, streams of events, clients that leave.

What it is: what every route of api.py needs of a connection. What it is not: the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from atoll.serving.protocol import ApiError, NotDone

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Shape = TypeVar("Shape", bound=BaseModel)
Result = TypeVar("Result")

LARGEST_BODY = 4 << 20
"""Bytes."""

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""

KEEP_ALIVE_SECONDS = 15.0
"""After so long without an event a comment is sent, so that whatever is between stays open."""

_LONGEST_NAME, _LONGEST_REASON = 200, 1000
"""Characters told back of what a client made up."""

_UNIONS = frozenset({"content", "prompt", "response_format", "stop"})
"""Fields of several shapes: in the place of an error pydantic names the shape after the field."""


class ClientLeft(Exception):
    """Nobody is there to answer."""


async def read(request: Request, shape: type[Shape]) -> Shape:
    """The body of a request, checked. ApiError 400, 408, 413 or 415; ClientLeft."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must be JSON; send Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the body must be sent as it is, without Content-Encoding")
    body = await _body(request)
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


async def _body(request: Request) -> bytes:
    too_large = ApiError(
        413, f"the body is larger than {LARGEST_BODY >> 20} MiB", code="request_too_large"
    )
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > LARGEST_BODY:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > LARGEST_BODY:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        message = f"the body did not arrive within {BODY_SECONDS:g} s"
        raise ApiError(408, message, code="request_timeout") from None
    except ClientDisconnect:
        raise ClientLeft from None
    return b"".join(parts)


def _refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong, with its field; of the branches of a union, in the one that
    fits best."""
    every = error.errors(include_url=False, include_context=True, include_input=False)
    field = every[0]["loc"][:1]
    of_field = [e for e in every if e["loc"][:1] == field]
    first = max(of_field, key=lambda e: (len(_names(e["loc"])), not e["type"].endswith("_type")))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}", code="invalid_json")
    names, cause = _names(first["loc"]), first.get("ctx", {}).get("error")
    if isinstance(cause, NotDone):
        param = ".".join([*names, cause.name])
        message = f"this server does not support the field {param}"
        return ApiError(400, message, code="unsupported_parameter", param=param)
    param = ".".join(names)[:_LONGEST_NAME]
    if first["type"] == "extra_forbidden":
        message = f"there is no field {param}"
        return ApiError(400, message, code="unknown_parameter", param=param)
    if first["type"] == "missing":
        message = f"the field {param} is required"
        return ApiError(400, message, code="missing_required_parameter", param=param)
    place = f"{param}: " if param else ""
    message = f"{place}{first['msg'][:_LONGEST_REASON]}"
    return ApiError(400, message, code="invalid_value", param=param or None)


def _names(place: tuple[int | str, ...]) -> list[str]:
    """The fields and indices of a place, without the branches of unions."""
    return [
        str(word)
        for word, before in zip(place, ("", *place), strict=False)
        if before not in _UNIONS
    ]


async def unless_left(request: Request, work: Awaitable[Result]) -> Result:
    """What ``work`` gives. If the client leaves before, it is cancelled; ClientLeft."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        await _stop(task)
        await _stop(leaving)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(task: asyncio.Future[Result]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def event_of(content: BaseModel | str) -> bytes:
    """One event of a stream."""
    text = content if isinstance(content, str) else content.model_dump_json()
    return f"data: {text}\n\n".encode()


class EventStream(Response):
    """Server-sent events as they come; ends at once when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], *, at_end: Callable[[], None]) -> None:
        """``at_end`` is called when all is over, also if ``events`` were never begun."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._at_end = events, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 as ASGI calls it
        """Send events until they end or the client leaves."""
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            await _stop(writing)
            await _stop(leaving)
            await self._events.aclose()  # type: ignore[attr-defined]  # an async generator
            self._at_end()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        following = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                await asyncio.wait({following}, timeout=KEEP_ALIVE_SECONDS)
                event: bytes | None = b": waiting\n\n"
                if following.done():
                    event = following.result()
                    if event is None:
                        break
                    following = asyncio.ensure_future(anext(self._events, None))
                await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            await _stop(following)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
