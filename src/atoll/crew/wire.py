"""The wire between the pilot and its islands: how an island dials, and the names of both ends.

The island dials and says `hello` (protocol, token, name, versions, facts); the pilot's listener
(`atoll.crew.listening`) answers `welcome`, or `refused` with a reason, and hangs up. After that
both send the messages that `atoll.training` defines, in the frames of `atoll.crew.frames`. The
names of all these modules are here too: this is the one to import. Tensors do not travel here.

The token keeps strangers and strays out; it is not encryption. Across a network that is not yours
use a tunnel.
"""

import os
import platform
import socket
import time
from collections.abc import Mapping
from typing import Any

from atoll.crew.addresses import (
    format_address,
    parse_address,
    read_token_file,
    write_private,
    write_token_file,
)
from atoll.crew.frames import (
    MAX_FRAME_BYTES,
    Connection,
    ConnectionClosed,
    Message,
    ProtocolError,
    encode,
)
from atoll.crew.lines import Line
from atoll.crew.listening import (
    ALIVE,
    ALIVE_SECONDS,
    MAX_HELLO_BYTES,
    PROTOCOL,
    Arrival,
    Event,
    Exit,
    Listener,
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
    "Line",
    "Listener",
    "Message",
    "ProtocolError",
    "dial",
    "encode",
    "format_address",
    "parse_address",
    "read_token_file",
    "write_private",
    "write_token_file",
]


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
