"""The life of the HTTP server: listening, stopping, and what a slow client may hold.

What it is: uvicorn with an end of its own. On the first signal nothing more is taken in, streams
may end within the grace time, then they are ended with an error event, and the process goes on to
its exit code. What it is not: the application (api.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from atoll.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from atoll.serving.request import Engine

HEAD_SECONDS = 20.0
"""How long the head of a request may take to arrive."""

UNREAD_SECONDS = 60.0
"""A connection ends when its client has taken nothing for so long."""

KEPT_SECONDS = 75
"""How long a connection without a request is kept: longer than clients (5 s) and proxies (60 s)
keep theirs, so that none sends a request into one that is being closed."""

_FOR_PAGES = 0.5  # seconds for a page to hear of the end
_AFTER_GRACE = 3  # seconds for the last events to go out


def listen(host: str, port: int) -> socket.socket:
    """A socket that has its address, and does not accept yet. InputError if it cannot have it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError("is no address of this machine", key="--host", value=host) from error
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _cannot_listen(port, error) from error
    return found


def _cannot_listen(port: int, error: OSError) -> InputError:
    return InputError(
        f"cannot listen there: {error.strerror or error}",
        key="--port",
        value=port,
        fix="choose another port, or 0 for any that is free",
    )


def is_loopback(found: socket.socket) -> bool:
    """Whether a socket can be reached from this machine only."""
    return ipaddress.ip_address(found.getsockname()[0]).is_loopback


def url_of(found: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    address = ipaddress.ip_address(found.getsockname()[0])
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{host}:{found.getsockname()[1]}"


class Server(uvicorn.Server):
    """An application on a socket of ``listen``: ``serve_until_signal``.

    ``on_ready`` is called when connections are accepted. After a signal answers have ``grace``
    seconds to end; a second one ends them at once.
    """

    def __init__(
        self,
        app: FastAPI,
        engine: Engine,
        *,
        grace: float = 0.0,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=_AFTER_GRACE,
            timeout_keep_alive=KEPT_SECONDS,
            server_header=False,
        )
        super().__init__(config)
        self._engine, self._grace, self._on_ready = engine, grace, on_ready
        self._app = app
        self._service = app.state.service
        self._ended_by = 0
        self._second_signal = asyncio.Event()

    def serve_until_signal(self, found: socket.socket) -> int:
        """Serve until SIGINT or SIGTERM; which one it was. In a thread, until `should_exit`.

        InputError if somebody else has begun to listen at the same address.
        """
        try:
            self.run(sockets=[found])
        except OSError as error:
            if self.started:
                raise
            raise _cannot_listen(found.getsockname()[1], error) from error
        return self._ended_by

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take in nothing more, let streams end or end them, close all connections."""
        self._service.stopping = True
        for server in self.servers:
            server.close()
        closing = asyncio.create_task(asyncio.to_thread(self._engine.close, self._grace))
        hurry = asyncio.create_task(self._second_signal.wait())
        await asyncio.wait({closing, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not closing.done():
            await asyncio.to_thread(self._engine.close, 0.0)
        await closing
        for end in getattr(self._app.state, "endings", ()):  # of streams that have none
            end()
        await self._last_words()
        await super().shutdown(sockets=sockets)

    async def _last_words(self) -> None:
        """Let the last events go out, and end what is open all the same: a page's, say, or that of
        a client that does not read."""
        connections = self.server_state.connections
        await self._tasks_end(_FOR_PAGES)
        for connection in list(connections):
            assert isinstance(connection, _Protocol)
            if connection.scope is not None and not connection.scope["path"].startswith("/v1/"):
                connection.transport.close()
        if not await self._tasks_end(_AFTER_GRACE):
            for connection in list(connections):
                connection.transport.abort()

    async def _tasks_end(self, seconds: float) -> bool:
        tasks = list(self.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return not self.server_state.tasks

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Both signals stop the server; unlike uvicorn's own, they are not raised again after."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 as signal calls it
        """The first signal stops it in good order, the second at once.

        Not by uvicorn's `force_exit`: that leaves out the end of the lifespan, whose task then
        ends with a traceback.
        """
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._second_signal.set)
        self.should_exit = True
        self._ended_by = self._ended_by or sig


class _Protocol(H11Protocol):
    """uvicorn's protocol, which gives up on heads that do not arrive and answers that nobody
    reads."""

    _patience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._patience is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
