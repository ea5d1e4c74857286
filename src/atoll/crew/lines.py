"""The pilot's end of one connection: it sends without ever waiting, and cuts what it hears.

A pilot has a thousand of these, so none has a thread: `atoll.crew.listening` has one thread for
all. What the system does not take at once is kept here and sent by that thread when it does.
The island's end, which may wait, is `frames.Connection`.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from atoll.crew.frames import (
    LENGTH,
    MAX_FRAME_BYTES,
    ConnectionClosed,
    Message,
    body_length,
    decode,
    encode,
    tune,
)

MAX_BACKLOG_BYTES = MAX_FRAME_BYTES + LENGTH.size
"""What may wait for one peer: the largest frame. A peer that lets more gather is hung up on."""


class Line:
    """One accepted connection. Any thread may `send` or `close` and is never kept waiting.

    `peer` is what errors call the other end. `wake` has the listener's thread look at this line
    again. The other methods are that thread's alone.
    """

    __slots__ = (
        "_backlog",
        "_lock",
        "_num_waiting",
        "_reason",
        "_rest",
        "_wake",
        "_wanted",
        "heard_at",
        "max_bytes",
        "name",
        "peer",
        "send_timeout",
        "socket",
        "taken_at",
    )

    def __init__(
        self,
        peer_socket: socket.socket,
        *,
        peer: str,
        wake: Callable[["Line"], None],
        max_bytes: int = MAX_FRAME_BYTES,
        send_timeout: float = 60.0,
    ) -> None:
        self.socket = peer_socket
        self.peer = peer
        self.max_bytes = max_bytes
        self.send_timeout = send_timeout
        self.name: str | None = None
        """The island's, once it was welcomed."""
        self.heard_at = self.taken_at = time.monotonic()
        """When anything last came from the peer, and when it last took some of what waits for it;
        on this process's monotonic clock."""
        self._wake = wake
        self._lock = threading.Lock()
        self._reason = ""
        self._backlog: deque[memoryview] = deque()
        self._num_waiting = 0
        self._rest = bytearray()
        self._wanted = 0
        peer_socket.setblocking(False)
        tune(peer_socket)

    @property
    def closed(self) -> bool:
        """True once this end was closed, by `close` or by an error."""
        return bool(self._reason)

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message. `ProtocolError` (nothing sent) if the frame is too large.

        `ConnectionClosed` if the peer is gone; what it said before is still heard, its last words
        among them. Also if too much waits for it already; then all is over.
        """
        self.send_frame(encode(kind, fields))

    def send_frame(self, frame: bytes) -> None:
        """Send what `frames.encode` made; the same bytes may go to many. Errors as for `send`."""
        with self._lock:
            self._check_open()
            num_sent = 0 if self._backlog else self._offer(frame)
            num_left = len(frame) - num_sent
            if not num_left:
                return
            full = self._num_waiting + num_left > MAX_BACKLOG_BYTES
            if not full:
                if not self._backlog:
                    self.taken_at = time.monotonic()
                self._backlog.append(memoryview(frame)[num_sent:])
                self._num_waiting += num_left
        if full:
            self.close(reason=f"{self.peer} takes nothing: {self._num_waiting} bytes wait for it")
            raise ConnectionClosed(self._reason)
        self._wake(self)

    def close(self, *, reason: str | None = None) -> None:
        """Hang up; what waits to be sent is lost. May be repeated."""
        with self._lock:
            if self._reason:
                return
            self._reason = reason or f"the connection to {self.peer} is closed"
            # Only the thread that waits for this socket may give its number back.
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        self._wake(self)

    # ------------------------------------------------------------------ the listener's thread

    def flush(self) -> bool:
        """Send on what waits; whether some of it still does."""
        with self._lock:
            try:
                while self._backlog and not self._reason:
                    first = self._backlog.popleft()
                    num_sent = self._offer(first)
                    self._num_waiting -= num_sent
                    if num_sent:
                        self.taken_at = time.monotonic()
                    if num_sent < len(first):
                        self._backlog.appendleft(first[num_sent:])
                        return True
            except ConnectionClosed:
                pass  # its end is heard where its last words are
            self._backlog.clear()
            self._num_waiting = 0
            return False

    def cut(self, data: memoryview) -> Iterator[Message]:
        """The messages that are whole with these bytes, their lists as tuples; the rest is kept.
        `ProtocolError` where the peer sent something else; what came before it is yielded first.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data, self._rest = memoryview(self._rest), bytearray()
        start, end = 0, len(data)
        self._wanted = LENGTH.size
        while end - start >= LENGTH.size:
            begin = start + LENGTH.size
            stop = begin + body_length(data, start, max_bytes=self.max_bytes, peer=self.peer)
            if stop > end:
                self._wanted = stop - start
                break
            yield decode(data[begin:stop], peer=self.peer, lists=False)
            start = stop
        if start < end:
            self._rest += data[start:]

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._rest)

    def forget(self) -> str:
        """Give the socket back, when nothing waits for it any more; the reason for its end."""
        self.close()
        with self._lock:
            self.socket.close()
            self._backlog.clear()
        return self._reason

    def _offer(self, data: bytes | memoryview) -> int:
        """Bytes that the system takes now. Holds the lock."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionClosed(f"{self.peer} is gone: {error}") from error

    def _check_open(self) -> None:
        if self._reason:
            raise ConnectionClosed(self._reason)
