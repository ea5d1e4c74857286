"""Frames and the connection that carries them.

A frame is a length (4 bytes, big-endian) and as many bytes of msgpack: a map with a text `kind`
and that kind's fields. No pickle and no torch types, so that the two ends may run different
versions of everything. Not here: who may talk to whom (`wire`), what a message means (`training`).
"""

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgpack

from atoll.errors import RunError

MAX_FRAME_BYTES = 64 * 1024 * 1024

LENGTH = struct.Struct(">I")
"""What stands before each body: its bytes."""

_CHUNK_BYTES = 64 * 1024


class ConnectionClosed(RunError):
    """The connection has ended: the peer left, the network failed, or `close` was called."""


class ProtocolError(RunError):
    """A peer sent what this protocol does not allow, or a message lacks a field; names the peer."""


class Message(Mapping[str, Any]):
    """One received frame: `kind`, and a read-only mapping of its `fields`.

    A missing field raises `ProtocolError`, not `KeyError`: the peer is at fault.
    """

    __slots__ = ("fields", "kind", "peer")

    def __init__(self, kind: str, fields: Mapping[str, Any], *, peer: str = "unknown") -> None:
        self.kind = kind
        self.fields = fields
        self.peer = peer

    def __getitem__(self, key: str) -> Any:
        try:
            return self.fields[key]
        except KeyError:
            raise ProtocolError(f"{self.peer}: a {self.kind!r} message without {key!r}") from None

    def __contains__(self, key: object) -> bool:
        return key in self.fields

    def get(self, key: str, default: Any = None) -> Any:
        """The field `key`, or `default` where the peer left it out."""
        return self.fields.get(key, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        return f"Message({self.kind!r}, {sorted(self.fields)}, peer={self.peer!r})"


def encode(kind: str, fields: Mapping[str, Any], *, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The whole frame of one message; `ProtocolError` if it is larger than `max_bytes`.

    Fields are None, bool, int of 64 bits, float, str, bytes, and lists and text-keyed dicts of
    these. Anything else is a bug of ours and raises what msgpack raises.
    """
    assert "kind" not in fields
    body: bytes = msgpack.packb({"kind": kind, **fields}, use_bin_type=True)
    if len(body) > max_bytes:
        raise ProtocolError(
            f"a {kind!r} message of {len(body)} bytes was not sent: the limit is {max_bytes}"
        )
    return LENGTH.pack(len(body)) + body


def body_length(data: bytearray | memoryview, start: int, *, max_bytes: int, peer: str) -> int:
    """Bytes of the body of the frame that begins at `start`; `ProtocolError` if not allowed."""
    num_bytes: int = LENGTH.unpack_from(data, start)[0]
    if not 0 < num_bytes <= max_bytes:
        raise ProtocolError(
            f"{peer} announced a frame of {num_bytes} bytes; allowed are 1 to {max_bytes}. "
            "Is it an atoll process?"
        )
    return num_bytes


def decode(body: bytes | memoryview, *, peer: str = "unknown", lists: bool = True) -> Message:
    """The message in the body of a frame; `ProtocolError` for anything that is not one.

    Without `lists`, what was sent as a list arrives as a tuple: Python's collector of garbage soon
    leaves tuples of numbers alone, but walks lists again and again while many are kept.
    """
    try:
        value = msgpack.unpackb(
            body, raw=False, strict_map_key=True, use_list=lists, ext_hook=_refuse_extension
        )
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        detail = f"{type(error).__name__}: {error}"[:200]
        raise ProtocolError(f"{peer} sent a frame that is not msgpack ({detail})") from error
    if not isinstance(value, dict) or not set(map(type, value)) <= {str}:
        raise ProtocolError(f"{peer} sent a frame that is not a map with text keys")
    kind = value.pop("kind", None)
    if not isinstance(kind, str):
        raise ProtocolError(f"{peer} sent a message without a kind")
    return Message(kind, value, peer=peer)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


class Connection:
    """An end of a wire that may wait: any thread may send or close, one thread receives.

    `peer` is what errors call the other end. The socket is taken over; close it here only.
    """

    def __init__(
        self,
        peer_socket: socket.socket,
        *,
        peer: str,
        max_bytes: int = MAX_FRAME_BYTES,
        send_timeout: float = 60.0,
    ) -> None:
        self.peer = peer
        self.max_bytes = max_bytes
        self.send_timeout = send_timeout
        self._socket = peer_socket
        self._socket.setblocking(False)
        self._buffer = bytearray()
        self._sending = threading.RLock()
        self._receiving = threading.RLock()
        self._closed = threading.Event()
        self._closing = threading.Lock()
        self._reason = ""
        tune(peer_socket)

    @property
    def closed(self) -> bool:
        """True once this end was closed, by `close` or by an error."""
        return self._closed.is_set()

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message. `ProtocolError` (nothing sent) if the frame is too large.

        `ConnectionClosed` if the peer is gone; what it said before can still be received, its last
        words among them. Also if it takes nothing for `send_timeout` seconds; then all is over.
        """
        frame = memoryview(encode(kind, fields))
        with self._sending:
            self._check_open()
            try:
                self._send_all(frame)
            except TimeoutError as error:
                self.close(reason=f"{self.peer} takes nothing: {error}")
                raise ConnectionClosed(self._reason) from error
            except OSError as error:
                raise ConnectionClosed(f"{self.peer} is gone: {error}") from error

    def _send_all(self, frame: memoryview) -> None:
        poll = None
        while frame:
            try:
                frame = frame[self._socket.send(frame) :]
            except BlockingIOError:
                if poll is None:
                    poll = select.poll()
                    poll.register(self._socket, select.POLLOUT)
                if not poll.poll(self.send_timeout * 1000):
                    raise TimeoutError(f"waited {self.send_timeout:g} seconds") from None
                self._check_open()

    def receive(self, timeout: float | None = None) -> Message:
        """The next message, waiting for at most `timeout` seconds (None: for ever).

        `TimeoutError` loses nothing: a later call goes on with what has arrived. `ConnectionClosed`
        when the peer hangs up, also in the middle of a frame. `ProtocolError` closes this end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._receiving:
            while True:
                self._check_open()
                message = self._next_message()
                if message is not None:
                    return message
                self._fill(deadline)

    def _next_message(self) -> Message | None:
        if len(self._buffer) < LENGTH.size:
            return None
        try:
            end = LENGTH.size + body_length(
                self._buffer, 0, max_bytes=self.max_bytes, peer=self.peer
            )
            if len(self._buffer) < end:
                return None
            with memoryview(self._buffer) as view, view[LENGTH.size : end] as body:
                message = decode(body, peer=self.peer)
        except ProtocolError:
            self.close()
            raise
        del self._buffer[:end]
        return message

    def _fill(self, deadline: float | None) -> None:
        """Take in what has arrived, waiting until something has."""
        poll = None
        while True:
            try:
                data = self._socket.recv(_CHUNK_BYTES)
                break
            except BlockingIOError:
                if poll is None:
                    poll = select.poll()
                    poll.register(self._socket, select.POLLIN)
            except OSError as error:
                self.close()
                raise ConnectionClosed(f"{self.peer} is gone: {error}") from error
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"nothing from {self.peer} in time")
            poll.poll(None if left is None else left * 1000)
            self._check_open()
        if not data:
            inside = " in the middle of a message" if self._buffer else ""
            self.close()
            raise ConnectionClosed(f"{self.peer} hung up{inside}")
        self._buffer += data

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConnectionClosed(self._reason)

    def close(self, *, reason: str | None = None) -> None:
        """Hang up; who waits in `send` or `receive` gets `ConnectionClosed`. May be repeated."""
        with self._closing:
            if self._closed.is_set():
                return
            self._reason = reason or f"the connection to {self.peer} is closed"
            self._closed.set()
        # shutdown wakes the threads that poll this socket; only when they have left may its
        # number be given back, or a new file of the same number would be polled in its place.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._sending, self._receiving:
            self._socket.close()


def tune(peer_socket: socket.socket) -> None:
    """No waiting for small frames to gather; a peer that vanished is noticed in about 30 s."""
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 15),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    ]
    for level, name, value in options:
        if hasattr(socket, name):
            with suppress(OSError):  # not a TCP socket (a socket pair in a test)
                peer_socket.setsockopt(level, getattr(socket, name), value)
