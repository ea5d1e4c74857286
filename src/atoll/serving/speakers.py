"""Who answers in a chat of the terminal: an engine in this process, or a server elsewhere.

What it is: one answer at a time, handed out in pieces as it comes. What it is not: the terminal
(cli/chatting.py) or an HTTP server.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Protocol

from atoll.errors import AtollError, InputError
from atoll.serving.replies import End, reply
from atoll.serving.request import Request, Sampling

if TYPE_CHECKING:
    from atoll.serving.request import Engine
    from atoll.serving.text import Language

Messages = Sequence[Mapping[str, str]]
Out = Callable[[str], None]

_SILENCE_SECONDS = 300.0  # a server that says nothing for so long is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to answer. ``seed`` None: another text each time."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None


class Speaker(Protocol):
    """Answers a chat; ``model`` is what it is called."""

    model: str

    def answer(self, messages: Messages, manner: Manner, out: Out) -> bool:
        """Hand the next turn to ``out``, piece by piece; whether it is whole.

        AtollError if there is none. KeyboardInterrupt passes through, and stops the computing.
        """


class Here:
    """An engine in this process."""

    def __init__(self, engine: Engine, language: Language, *, model: str) -> None:
        self.model = model
        self._engine, self._language = engine, language

    def answer(self, messages: Messages, manner: Manner, out: Out) -> bool:
        """See Speaker."""
        return asyncio.run(self._answer(messages, manner, out))

    async def _answer(self, messages: Messages, manner: Manner, out: Out) -> bool:
        language = self._language
        sampling = Sampling(
            max_tokens=manner.max_tokens,
            temperature=manner.temperature,
            top_p=manner.top_p,
            seed=manner.seed,
            stop_ids=language.stop_ids,
        )
        request = Request(prompt=language.chat(messages), sampling=sampling)
        stream = self._engine.submit(request)
        whole = True
        async for item in reply(stream, language.writer(language.chat_stops), language.stop_ids):
            if isinstance(item, End):
                whole = item.reason == "stop"
            else:
                out(item.text)
        return whole


class There:
    """A server with an OpenAI-compatible API; ``url`` with or without its /v1."""

    def __init__(self, url: str, *, model: str | None, key: str | None) -> None:
        """Asks the server for its models if none is named. AtollError, InputError."""
        if not _is_address(url):
            fix = "write it as http://127.0.0.1:8000"
            raise InputError("is no address of a server", key="--url", value=url, fix=fix)
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self.model = model or self._first_model()

    def answer(self, messages: Messages, manner: Manner, out: Out) -> bool:
        """See Speaker."""
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "stream": True,
            "max_tokens": manner.max_tokens,
            "temperature": manner.temperature,
            "top_p": manner.top_p,
        }
        if manner.seed is not None:
            body["seed"] = manner.seed
        reason = None
        for event in self._events("/chat/completions", body):
            text, ended = _read(event)
            out(text)
            reason = ended or reason
        if reason is None:
            raise AtollError("the server broke off before the end of its answer")
        return bool(reason == "stop")

    def _first_model(self) -> str:
        try:
            with closing(self._open("/models", None)) as response:
                return str(json.load(response)["data"][0]["id"])
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise AtollError(f"{self._base}/models names no model") from error

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[Any]:
        with closing(self._open(path, body)) as response:
            try:
                for line in response:
                    text = line.decode().strip()
                    if text.startswith("data:") and text != "data: [DONE]":
                        yield json.loads(text.removeprefix("data:"))
            except (OSError, HTTPException, ValueError) as error:
                raise AtollError(f"the server broke off: {error}") from error

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data=data, headers=self._headers)
        try:
            return urllib.request.urlopen(request, timeout=_SILENCE_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise AtollError(f"the server says: {_told_by(error)}") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise AtollError(f"no answer from {self._base}: {reason}") from error


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        named = parts.port != 0 and bool(parts.hostname)  # either may raise
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https") and url.isprintable() and " " not in url


def _read(event: Any) -> tuple[str, str | None]:
    """The text of one event of the stream, and why the answer ended there. AtollError."""
    if isinstance(event, dict) and event.get("error"):
        raise AtollError(f"the server says: {_message_of(event)}")
    try:
        choice = (event.get("choices") or [{}])[0]
        text = str((choice.get("delta") or {}).get("content") or "")
        # Half a character of UTF-16, which JSON can write, is no text: nothing could be sent back.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as error:
        raise AtollError("the server's answer is not that of an OpenAI-compatible API") from error


def _told_by(error: urllib.error.HTTPError) -> str:
    try:
        return _message_of(json.loads(error.read()))
    except (OSError, HTTPException, ValueError):
        return f"{error.code} {error.reason}"


def _message_of(content: Any) -> str:
    error = content.get("error") if isinstance(content, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or content)
