"""The life of an island process: read its arguments, dial the pilot, obey, leave."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

import atoll
from atoll.crew import wire
from atoll.errors import AtollError, ExchangeError, RunError

FIRST_WAIT = 30.0
"""Seconds in which a pilot must answer the first call: an island may be started before it."""
ORPHANED = "orphaned"
"""Kind of the message that an island writes to itself when its pilot is gone."""


class Obeying(Protocol):
    """What dials in: it obeys one message at a time, until `handle` returns False."""

    post: Callable[[wire.Message], None]
    send: Callable[..., None]

    @property
    def hangs(self) -> bool:
        """Whether something is under way that the process could not end in good order."""

    def holds(self) -> dict[str, Any] | None:
        """What it could go on with under another pilot."""

    def handle(self, message: wire.Message) -> bool:
        """Obey one message."""

    def notice(self, message: wire.Message) -> None:
        """See a message the moment it arrives, from another thread."""


def run_island(argv: Sequence[str], island_type: Callable[..., Obeying]) -> int:
    """Dial the pilot that `argv` names and let an island obey it; returns the exit code.

    `island_type` is made with the arguments of `training.island.Island`. What it raises is told to
    the pilot and to this process's own output.
    """
    options = _parse(argv)
    connection = _dial(options, wait=FIRST_WAIT, holds=None)
    island = None
    try:
        island = island_type(
            chip=options.chip,
            lanes=options.lanes,
            threads=options.threads,
            device_index=options.device_index,
            hosts=_hosts(options.pilot),
            send=connection.send,
        )
        if options.grace > 0:
            _leave_on_request(island, options.grace)
        while _obey(island, connection, patient=options.patience > 0):
            connection.close()
            log(f"the pilot is gone; waiting {options.patience:g} s for another one")
            connection = _dial(options, wait=options.patience, holds=island.holds())
            island.send = connection.send
    except Exception as error:
        text = traceback.format_exc()
        log(text)
        known = isinstance(error, AtollError)
        with contextlib.suppress(AtollError):  # the pilot may be what is gone
            connection.send(
                "failed",
                reason=str(error),
                traceback=None if known else text,
                follows=isinstance(error, ExchangeError),
            )
        return 1
    finally:
        connection.close()
    if island.hangs:
        # Somebody's network is dead, no end of his connections ever comes, and gloo would wait for
        # it when its group is taken down. All is written and said.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _dial(
    options: argparse.Namespace, *, wait: float, holds: dict[str, Any] | None
) -> wire.Connection:
    """A connection to the pilot, tried for `wait` seconds; `holds` is what this island has kept."""
    facts = {"chip": options.chip, "lanes": options.lanes, "threads": options.threads}
    deadline = time.monotonic() + wait
    while True:
        try:
            return wire.dial(
                options.pilot,
                token=wire.read_token_file(options.token_file),
                name=options.name,
                torch=torch.__version__,
                facts=facts | ({} if holds is None else {"holds": holds}),
                version=atoll.__version__,
                timeout=max(1.0, min(FIRST_WAIT, deadline - time.monotonic())),
            )[0]
        except AtollError:
            # A pilot that comes back writes its token and opens its door in its own time.
            if holds is None or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _obey(island: Obeying, connection: wire.Connection, *, patient: bool) -> bool:
    """Obey the pilot at the other end; False after its last word, True if it is gone."""
    inbox = _watch(connection, island.notice, patient=patient)
    island.post = inbox.put
    _beat(connection)
    while (message := inbox.get()).kind != ORPHANED:
        try:
            if not island.handle(message):
                return False
        except wire.ConnectionClosed:
            if not patient:
                raise
            # It answered a pilot that is gone: the word of that is in the inbox, or soon will be.
    return True


def _beat(connection: wire.Connection) -> None:
    """Say in a thread that this process lives, whatever else it does."""

    def beat() -> None:
        with contextlib.suppress(AtollError):
            while True:
                connection.send(wire.ALIVE)
                time.sleep(wire.ALIVE_SECONDS)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


def _leave_on_request(island: Obeying, grace: float) -> None:
    """SIGTERM asks the pilot to let this island go; after `grace` seconds it goes in any case."""

    def ask(_number: int, _frame: object) -> None:
        def wait() -> None:
            with contextlib.suppress(AtollError):
                island.send("leaving")
            time.sleep(grace)
            log(f"nobody let this island go within {grace:g} s; it ends")
            os._exit(143)

        threading.Thread(target=wait, name="leaving", daemon=True).start()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ask)


def _watch(
    connection: wire.Connection, notice: Callable[[wire.Message], None], *, patient: bool
) -> queue.SimpleQueue[wire.Message]:
    """Read messages in a thread; `notice` sees each the moment it arrives. A pilot that is gone
    ends this process at once, whatever it computes; a `patient` island is told instead.
    """
    inbox: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()

    def read() -> None:
        last = ""
        try:
            while last != "finish":
                message = connection.receive()
                last = message.kind
                if last == "failed":
                    raise RunError(f"it says: {message['reason']}")
                notice(message)
                inbox.put(message)
        except (AtollError, OSError) as error:
            if patient and last != "failed":
                orphaned = wire.Message(ORPHANED, {}, peer="this island")
                notice(orphaned)
                inbox.put(orphaned)
                return
            log(f"no pilot any more ({error}); this island ends")
            os._exit(1)

    threading.Thread(target=read, name="inbox", daemon=True).start()
    return inbox


def log(text: str) -> None:
    """To the island's own output, which its launcher keeps."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _hosts(pilot: str) -> tuple[str, str]:
    """(own address on the route to the pilot, the pilot's host); no packet is sent."""
    host, port = wire.parse_address(pilot)
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect((host, port))
        return str(route.getsockname()[0]), host


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="atoll island",
        description="Run one island: dial a pilot, compute the grains it hands out. "
        "Example: atoll island --pilot 10.0.0.1:4711 --token-file run/token --name a",
    )
    parser.add_argument(
        "--pilot", required=True, metavar="HOST:PORT", help="where the pilot listens"
    )
    parser.add_argument("--token-file", required=True, type=Path, help="file with the run's token")
    parser.add_argument(
        "--name", default=platform.node(), help="this island's name in the fleet file"
    )
    parser.add_argument("--chip", default="cpu", help="a chip of `atoll chips`")
    parser.add_argument("--lanes", type=int, default=1, help="grains computed at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a lane")
    parser.add_argument(
        "--device-index", type=int, default=0, help="which of the host's accelerators"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        help="seconds that SIGTERM leaves to hand over; 0 ends at once",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        help="seconds to wait for another pilot when this one dies; 0 ends at once",
    )
    return parser.parse_args(argv[1:] if argv[:1] == ["island"] else list(argv))
