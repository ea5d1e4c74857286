"""The page's side of the HTTP API: one answer, streamed; and what can go wrong, by name.

It knows the OpenAI API and nothing of the engine behind it. Closing the stream is how an answer is
stopped: the server sees its client leave.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

Message = Mapping[str, str]
"""{"role": "system", "user" or "assistant", "content": text}."""

_CONNECT_SECONDS = 5.0
_STATUSES = {401: "wrong_key", 413: "too_large", 429: "full", 503: "stopping"}
_CODES = {"context_length_exceeded": "context_full", "stopping": "stopping"}
_TOLD = ("failed", "context_full")  # where the server's own words add something


class Refused(Exception):
    """The server gives no answer, or no more of it.

    ``key`` names the words of it in words.toml; ``message`` is what the server said, empty where
    our own words say it better; ``seconds`` is when to come back.
    """

    def __init__(self, key: str, message: str = "", *, seconds: int = 1) -> None:
        super().__init__(key)
        self.key, self.message, self.seconds = key, message, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the API is: ``url`` without /v1, and the name of its model."""

    url: str
    model: str

    async def accepts(self, key: str) -> bool:
        """Whether the server knows this key. Refused if it cannot be asked."""
        import httpx

        try:
            async with self._client(key) as client:
                reply = await client.get("/v1/models")
        except httpx.TransportError:
            raise Refused("gone") from None
        if reply.status_code == 401:
            return False
        if reply.status_code != 200:
            raise _refusal(reply)
        return True

    async def answer(
        self, messages: Sequence[Message], settings: Mapping[str, Any], *, key: str
    ) -> AsyncIterator[str]:
        """Pieces of the answer's text as they come; the last one is "" if it was cut for length.

        ``settings`` are further keys of the API's request. Raises Refused.
        """
        import httpx

        body = {"model": self.model, "messages": messages, "stream": True, **settings}
        begun = False
        try:
            async with (
                self._client(key) as client,
                client.stream("POST", "/v1/chat/completions", json=body) as reply,
            ):
                if reply.status_code != 200:
                    await reply.aread()
                    raise _refusal(reply)
                async for line in reply.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if line == data or data == "[DONE]":  # no line of data, or the last one
                        continue
                    piece, cut = _read(data)
                    begun = begun or bool(piece)
                    if piece or cut:
                        yield piece
        except httpx.TransportError:
            raise Refused("lost" if begun else "gone") from None

    def _client(self, key: str) -> httpx.AsyncClient:
        """To this server and no other: no proxy of the environment, no redirect, no time limit
        on an answer, which may wait in the server's queue. Refused for what can be no key."""
        import httpx

        if not (key.isascii() and key.isprintable()):  # no header can carry it, no server has it
            raise Refused("wrong_key")
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            trust_env=False,
        )


def _read(data: str) -> tuple[str, bool]:
    """The text of one event of the stream, and whether the answer was cut for length."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise _refusal_of(500, event["error"])
        choice = event["choices"][0] if event["choices"] else {}
        return choice.get("delta", {}).get("content") or "", choice.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Refused("failed") from None


def _refusal(reply: httpx.Response) -> Refused:
    """What a status and the body of an error come to."""
    try:
        error = reply.json()["error"]
    except (ValueError, LookupError, TypeError):
        error = {}
    seconds = reply.headers.get("Retry-After", "")
    return _refusal_of(reply.status_code, error, seconds=int(seconds) if seconds.isdecimal() else 1)


def _refusal_of(status: int, error: Any, *, seconds: int = 1) -> Refused:
    """``error`` is the API's object, if the server is one that speaks it."""
    told = error if isinstance(error, dict) else {}
    message = str(told.get("message", ""))
    key = _CODES.get(str(told.get("code"))) or _STATUSES.get(status, "failed")
    return Refused(key, message if key in _TOLD else "", seconds=max(1, seconds))
