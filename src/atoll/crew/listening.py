"""The pilot's door: one thread that accepts islands, greets them and reads all of them.

It never waits for a peer: whoever is silent, slow or broken costs the others nothing. What a
peer's messages mean is not known here.
"""

import contextlib
import hmac
import queue
import selectors
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from atoll.crew.addresses import format_address, parse_address
from atoll.crew.frames import MAX_FRAME_BYTES, ConnectionClosed, Message, encode
from atoll.crew.lines import Line
from atoll.errors import InputError, RunError

PROTOCOL = 2
"""Version of the greeting and of all messages; both ends must speak the same."""
ALIVE = "alive"
"""Kind of the message that says nothing but that its sender lives; it never reaches `events`."""
ALIVE_SECONDS = 0.25
"""Between two of them."""
MAX_HELLO_BYTES = 64 * 1024
"""Largest frame that a peer may send before it has shown the token."""
MAX_PENDING_HELLOS = 512
"""Connections that may be in the middle of a greeting; more are hung up on at once."""
MAX_NAME_CHARACTERS = 200

_ALIVE_FRAME = encode(ALIVE, {})
_CHUNK_BYTES = 256 * 1024
_LOOK_SECONDS = 0.25
"""Between two looks at peers that take nothing."""
_NO_FILES_SECONDS = 0.05
"""Pause in accepting when this process is out of files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An island has said a right hello and was welcomed; `hello` are its fields, less the token."""

    name: str
    hello: Mapping[str, Any]
    connection: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """A process ended with `status` (negative: by that signal); put there by who watches it."""

    status: int

    def __str__(self) -> str:
        killed = self.status < 0
        return f"ended by signal {-self.status}" if killed else f"ended with status {self.status}"


class Event(NamedTuple):
    """Something that happened to the island `name`."""

    name: str
    what: Arrival | Message | ConnectionClosed | Exit


class Listener:
    """The pilot's door: accepts islands, checks their hello, and queues all they say.

    `events` is one queue for all islands, so that one thread can run the pilot. Per island its
    order is Arrival, Messages, ConnectionClosed (exactly one). `address` is "HOST:PORT"; port 0
    takes a free one, and `.address` says which. `welcome` are the fields of every welcome. `admit`
    looks at a hello and returns a reason to refuse it, or None; the thread that reads runs it, so
    it must be quick. An island that takes nothing for `send_timeout` seconds is hung up on.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        token: str,
        welcome: Mapping[str, Any] | None = None,
        admit: Callable[[Mapping[str, Any]], str | None] | None = None,
        hello_timeout: float = 10.0,
        send_timeout: float = 60.0,
    ) -> None:
        assert token
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._token = token
        self._welcome = dict(welcome or {})
        self._admit = admit
        self._hello_timeout = hello_timeout
        self._send_timeout = send_timeout
        # The thread's own: all lines by name, in the order of arrival those not greeted yet, and
        # those that something waits for.
        self._lines: set[Line] = set()
        self._names: set[str] = set()
        self._greeting: dict[Line, float] = {}
        self._waiting: set[Line] = set()
        self._heard: list[Event] = []
        self._chunk = bytearray(_CHUNK_BYTES)
        self._view = memoryview(self._chunk)
        self._accept_again = 0.0
        self._looked_at = time.monotonic()
        # Shared: lines that other threads want looked at.
        self._woken: deque[Line] = deque()
        self._closing = threading.Lock()
        self._closed = False
        host, port = parse_address(address)
        self._socket = _listen(host, port)
        self.address = format_address(*self._socket.getsockname()[:2])
        self._waker, self._alarm = socket.socketpair()
        self._waker.setblocking(False)
        self._alarm.setblocking(False)
        self._picked = selectors.DefaultSelector()
        self._picked.register(self._socket, selectors.EVENT_READ)
        self._picked.register(self._alarm, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop accepting and hang up on all. May be repeated; the queue keeps what is in it."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._ring()
                self._thread.join()
                self._waker.close()

    # ------------------------------------------------------------------ other threads

    def _wake(self, line: Line) -> None:
        self._woken.append(line)
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it rings already, or the thread has ended
            self._waker.send(b"!")

    # ------------------------------------------------------------------ the one thread

    def _run(self) -> None:
        try:
            while not self._closed:
                ready = self._picked.select(self._patience())
                now = time.monotonic()
                for key, mask in ready:
                    line = key.data
                    if line is not None:
                        self._guarded(line, now, mask)
                    elif key.fileobj is self._socket:
                        self._accept_some(now)
                    else:
                        self._answer_bell()
                self._look(now)
                self._tell()
        finally:
            for line in list(self._lines):
                self._end(line)
            self._tell()
            self._picked.close()
            self._socket.close()
            self._alarm.close()

    def _tell(self) -> None:
        """Queue what was heard at once: the reader of the queue is woken once, not for each."""
        heard, self._heard = self._heard, []
        for event in heard:
            self.events.put(event)

    def _patience(self) -> float | None:
        """Seconds until something is to do that no socket tells; None if nothing is."""
        due = [self._accept_again] if self._accept_again else []
        if self._greeting:
            due.append(next(iter(self._greeting.values())))
        if self._waiting:
            due.append(self._looked_at + _LOOK_SECONDS)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _look(self, now: float) -> None:
        """Do what is due by the clock."""
        for line, deadline in list(self._greeting.items()):
            if deadline > now:
                break  # they stand in the order of their deadlines
            self._end(line)
        if self._accept_again and now >= self._accept_again:
            self._accept_again = 0.0
            self._picked.register(self._socket, selectors.EVENT_READ)
        if self._waiting and now >= self._looked_at + _LOOK_SECONDS:
            self._looked_at = now
            for line in list(self._waiting):
                if now - line.taken_at > line.send_timeout:
                    waited = f"waited {line.send_timeout:g} seconds"
                    line.close(reason=f"{line.peer} takes nothing: {waited}")

    def _answer_bell(self) -> None:
        """Look at the lines that other threads have sent on or closed."""
        with contextlib.suppress(BlockingIOError):
            self._alarm.recv(4096)
        while self._woken:
            line = self._woken.popleft()
            if line not in self._lines:
                continue
            if line.closed:
                self._end(line)
            else:
                self._flush(line)

    def _flush(self, line: Line) -> None:
        """Send on what waits, and be told when more can be, as long as something does."""
        waits = line.flush()
        if waits != (line in self._waiting):
            (self._waiting.add if waits else self._waiting.discard)(line)
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
            self._picked.modify(line.socket, wanted, line)

    # ------------------------------------------------------------------ one connection

    def _accept_some(self, now: float) -> None:
        """Take in whoever knocks, but not for ever: the others have words waiting."""
        for _ in range(64):
            try:
                accepted, address = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # this process is out of files
                self._picked.unregister(self._socket)
                self._accept_again = now + _NO_FILES_SECONDS
                return
            if len(self._greeting) >= MAX_PENDING_HELLOS:
                accepted.close()
                continue
            peer = format_address(*address[:2])
            line = Line(
                accepted,
                peer=peer,
                wake=self._wake,
                max_bytes=MAX_HELLO_BYTES,
                send_timeout=self._send_timeout,
            )
            self._lines.add(line)
            self._greeting[line] = now + self._hello_timeout
            self._picked.register(accepted, selectors.EVENT_READ, line)

    def _guarded(self, line: Line, now: float, mask: int) -> None:
        """Serve a line; whatever goes wrong with it ends this one only."""
        try:
            if mask & selectors.EVENT_WRITE:
                self._flush(line)
            if mask & selectors.EVENT_READ:
                self._read(line, now)
        except RunError as error:
            self._end(line, error)
        except Exception as error:  # a bug of ours that one peer sets off
            traceback.print_exc(file=sys.stderr)
            self._end(line, error)

    def _read(self, line: Line, now: float) -> None:
        """Take in what a peer has said. RunError where that is the end of it."""
        if line.closed:
            raise ConnectionClosed("closed")  # `_end` has the line's own reason
        try:
            num_bytes = line.socket.recv_into(self._chunk)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionClosed(f"{line.peer} is gone: {error}") from error
        if not num_bytes:
            inside = " in the middle of a message" if line.is_inside else ""
            raise ConnectionClosed(f"{line.peer} hung up{inside}")
        line.heard_at = now
        if (
            num_bytes == len(_ALIVE_FRAME)
            and line.name is not None
            and not line.is_inside
            and self._chunk.startswith(_ALIVE_FRAME)
        ):
            return  # most words are this one, so it is not taken apart
        for message in line.cut(self._view[:num_bytes]):
            if line.name is None:
                self._greet(line, message)
            elif message.kind != ALIVE:
                self._heard.append(Event(line.name, message))

    def _end(self, line: Line, error: Exception | None = None) -> None:
        """A connection is over: forget it, and tell of it if it was an island's."""
        if line not in self._lines:
            return
        self._lines.discard(line)
        self._greeting.pop(line, None)
        self._waiting.discard(line)
        self._picked.unregister(line.socket)
        line.close(reason=None if error is None else str(error))
        reason = line.forget()
        if line.name is not None:
            self._heard.append(Event(line.name, ConnectionClosed(reason)))
            self._names.discard(line.name)

    def _greet(self, line: Line, hello: Message) -> None:
        """Answer a hello; RunError if that was the end of it."""
        self._greeting.pop(line)
        reason = self._reason_to_refuse(hello)
        fields = {key: value for key, value in hello.items() if key != "token"}
        name = str(hello.get("name") or f"{hello.get('host')}-{hello.get('pid')}")
        if reason is None:
            reason = self._reason_against(name)
        if reason is not None:
            line.send("refused", reason=reason)
            raise ConnectionClosed("refused")
        line.send("welcome", **{**self._welcome, "protocol": PROTOCOL, "name": name})
        line.name = name
        line.max_bytes = MAX_FRAME_BYTES
        line.peer = f"island {name} at {line.peer}"
        self._names.add(name)
        self._heard.append(Event(name, Arrival(name=name, hello=fields, connection=line)))

    def _reason_to_refuse(self, hello: Message) -> str | None:
        if hello.kind != "hello":
            return "the first message of a connection is a hello"
        protocol = hello.get("protocol")
        if protocol != PROTOCOL:
            return (
                f"the island speaks protocol {protocol!r}, the pilot speaks {PROTOCOL}: "
                "install the same version of atoll on both"
            )
        token = hello.get("token")
        if not isinstance(token, str) or not hmac.compare_digest(
            token.encode("utf-8", "surrogatepass"), self._token.encode()
        ):
            return "wrong token: give the island the token file of this very run"
        fields = {key: value for key, value in hello.items() if key != "token"}
        return None if self._admit is None else self._admit(fields)

    def _reason_against(self, name: str) -> str | None:
        if not (name.isprintable() and len(name) <= MAX_NAME_CHARACTERS):
            return f"a name has at most {MAX_NAME_CHARACTERS} printable characters"
        if name in self._names:
            return f"an island named {name!r} is connected already"
        return None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {format_address(host, port)}: {error}",
            fix="choose an address of this machine and a free port, or port 0",
        ) from error
    return listening
