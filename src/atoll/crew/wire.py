"""The wire between the pilot and its islands: the greeting and both ends of it.

The island dials and says `hello` (protocol, token, name, versions, facts); the listener answers
`welcome`, or `refused` with a reason, and hangs up. After that both send the messages that
`atoll.training` defines, in the frames of `atoll.crew.frames` (whose names are here too: this is
the module to import). Tensors do not travel here.

The token keeps strangers and strays out; it is not encryption. Across a network that is not yours
use a tunnel.
"""

import hmac
import os
import platform
import queue
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from atoll.crew.frames import (
    MAX_FRAME_BYTES,
    Connection,
    ConnectionClosed,
    Message,
    ProtocolError,
)
from atoll.errors import InputError, RunError

__all__ = [
    "ALIVE",
    "ALIVE_SECONDS",
    "MAX_FRAME_BYTES",
    "MAX_HELLO_BYTES",
    "PROTOCOL",
    "Arrival",
    "Connection",
    "ConnectionClosed",
    "Event",
    "Exit",
    "Listener",
    "Message",
    "ProtocolError",
    "dial",
    "format_address",
    "parse_address",
    "read_token_file",
    "write_private",
    "write_token_file",
]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An island has said a right hello and was welcomed; `hello` are its fields, less the token."""

    name: str
    hello: Mapping[str, Any]
    connection: Connection


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
    looks at a hello and returns a reason to refuse it, or None; it runs in a thread of its own.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        token: str,
        welcome: Mapping[str, Any] | None = None,
        admit: Callable[[Mapping[str, Any]], str | None] | None = None,
        hello_timeout: float = 10.0,
    ) -> None:
        assert token
        self.events: queue.Queue[Event] = queue.Queue()
        self._token = token
        self._welcome = dict(welcome or {})
        self._admit = admit
        self._hello_timeout = hello_timeout
        self._names: set[str] = set()
        self._connections: set[Connection] = set()
        self._num_greeting = 0
        self._lock = threading.Lock()
        self._closed = False
        host, port = parse_address(address)
        self._socket = _listen(host, port)
        self.address = format_address(*self._socket.getsockname()[:2])
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept_all, name="listener", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop accepting and hang up on all. May be repeated; the queue keeps what is in it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        self._waker.close()
        self._thread.join()
        self._socket.close()
        self._woken.close()
        for connection in connections:
            connection.close()

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            if self._woken.fileno() in ready:
                return
            try:
                accepted, address = self._socket.accept()
            except BlockingIOError:
                continue
            except OSError:  # the peer left again, or this process is out of files
                time.sleep(0.05)
                continue
            self._begin(
                Connection(accepted, peer=format_address(*address[:2]), max_bytes=MAX_HELLO_BYTES)
            )

    def _begin(self, connection: Connection) -> None:
        with self._lock:
            full = self._closed or self._num_greeting >= MAX_PENDING_HELLOS
            if not full:
                self._num_greeting += 1
                self._connections.add(connection)
        if full:
            connection.close()
            return
        threading.Thread(
            target=self._serve, args=(connection,), name=f"from {connection.peer}", daemon=True
        ).start()

    def _serve(self, connection: Connection) -> None:
        """The life of one connection: greeting, then reading until it ends."""
        name = None
        try:
            try:
                name = self._greet(connection)
            finally:
                with self._lock:
                    self._num_greeting -= 1
            while name is not None:
                message = connection.receive()
                if message.kind != ALIVE:
                    self.events.put(Event(name, message))
        except (RunError, TimeoutError) as error:
            if name is not None:
                ended = (
                    error if isinstance(error, ConnectionClosed) else ConnectionClosed(str(error))
                )
                self.events.put(Event(name, ended))
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)
                if name is not None:
                    self._names.discard(name)

    def _greet(self, connection: Connection) -> str | None:
        """Hear the hello; the island's name once it is welcomed and announced, else None."""
        hello = connection.receive(self._hello_timeout)
        connection.send_timeout = self._hello_timeout
        reason = self._reason_to_refuse(hello)
        fields = {key: value for key, value in hello.items() if key != "token"}
        name = str(hello.get("name") or f"{hello.get('host')}-{hello.get('pid')}")
        if reason is None:
            reason = self._take_name(name)
        if reason is not None:
            connection.send("refused", reason=reason)
            return None
        try:
            connection.send("welcome", **{**self._welcome, "protocol": PROTOCOL, "name": name})
        except RunError:
            with self._lock:
                self._names.discard(name)
            raise
        connection.max_bytes = MAX_FRAME_BYTES
        connection.send_timeout = 60.0
        connection.peer = f"island {name} at {connection.peer}"
        self.events.put(Event(name, Arrival(name=name, hello=fields, connection=connection)))
        return name

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

    def _take_name(self, name: str) -> str | None:
        if not (name.isprintable() and len(name) <= MAX_NAME_CHARACTERS):
            return f"a name has at most {MAX_NAME_CHARACTERS} printable characters"
        with self._lock:
            if name in self._names:
                return f"an island named {name!r} is connected already"
            self._names.add(name)
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
            listening.listen(256)
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


def dial(
    address: str,
    *,
    token: str,
    name: str | None = None,
    torch: str | None = None,
    facts: Mapping[str, Any] | None = None,
    version: str | None = None,
    timeout: float = 30.0,
) -> tuple[Connection, Message]:
    """Dial a pilot and greet it; the connection and the welcome (its "name" is this island's).

    Goes on trying for `timeout` seconds while nobody answers there: an island may be started before
    its pilot. `InputError` for an address that is none, `RunError` when refused or not answered.
    """
    host, port = parse_address(address)
    if port == 0:
        raise InputError(f"cannot dial port 0 of {host!r}", fix="give the pilot's HOST:PORT")
    deadline = time.monotonic() + timeout
    connection = Connection(_connect(host, port, deadline), peer=f"the pilot at {address}")
    try:
        connection.send(
            "hello",
            protocol=PROTOCOL,
            token=token,
            name=name,
            torch=torch,
            python=platform.python_version(),
            pid=os.getpid(),
            host=socket.gethostname(),
            facts=dict(facts or {}),
            version=version,
        )
        answer = connection.receive(max(0.0, deadline - time.monotonic()))
    except (RunError, TimeoutError) as error:
        connection.close()
        raise RunError(f"no welcome from {connection.peer}: {error}") from error
    if answer.kind == "welcome":
        return connection, answer
    connection.close()
    reason = answer.get("reason", f"an unexpected {answer.kind!r} message")
    raise RunError(f"{connection.peer} refused this island: {reason}")


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    pause = 0.05
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(0.1, left))
        except socket.gaierror as error:
            failure: OSError = error
        except OSError as error:
            failure = error
        if time.monotonic() + pause >= deadline:
            where = format_address(host, port)
            if isinstance(failure, socket.gaierror):
                raise InputError(f"no machine is named {host!r}: {failure}") from failure
            raise RunError(f"no pilot answers at {where}: {failure}") from failure
        time.sleep(pause)
        pause = min(1.0, pause * 2)


def parse_address(text: str) -> tuple[str, int]:
    """ "host:4711" or "[::1]:4711" as (host, port); `InputError` for anything else."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise InputError(
            f"{text!r} is not an address", fix="write HOST:PORT, for example 127.0.0.1:4711"
        )
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def write_token_file(path: Path) -> str:
    """Write a new random token (32 bytes as hex) that only this user can read, and return it."""
    token = secrets.token_hex(32)
    write_private(path, token)
    return token


def write_private(path: Path, token: str) -> None:
    """Write a token to a new file that only this user can read."""
    try:
        # A new file, never an old one: somebody may hold that open, or it may be a link.
        path.unlink(missing_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(token + "\n")
    except OSError as error:
        raise InputError(f"cannot write the token file: {error}", file=path) from error


def read_token_file(path: Path) -> str:
    """The token in `path`; `InputError` when the file is missing, unreadable, empty or no token."""
    fix = "copy the token file that the pilot wrote, and give its path"
    try:
        with path.open(encoding="ascii") as file:
            token = file.read(4097).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the token file: {error}", file=path, fix=fix) from error
    if not token or len(token) > 4096 or len(token.split()) != 1:
        raise InputError("the token file does not hold one token", file=path, fix=fix)
    return token
