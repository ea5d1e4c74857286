"""Bring a plan's islands together: listen, start those that run here, wait for the others."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import atoll
from atoll import facts
from atoll.backends import of_chip
from atoll.crew import wire
from atoll.crew.local import LocalCrew
from atoll.crew.ray import Need, RayCrew, require_package
from atoll.errors import InputError
from atoll.hours import Hours
from atoll.plan import PlanIsland
from atoll.site import HERE
from atoll.training.display import Display
from atoll.training.exchange import serve_store
from atoll.training.membership import Crewed

AT_ONCE = ("--grace", "0", "--patience", "0")
"""Islands of this pilot's own crew end when they are told to, and with the pilot."""
ADDRESS_FILE = "pilot.json"
"""In the run folder while a pilot is at work: where it listens."""
ASK_SECONDS = 120.0
"""How long the pilot may take to answer `ask`: until the open step is done."""
LAST_SAVE_SECONDS = 60.0
"""How long islands that were told to finish may take to end by themselves."""


Engine = Literal["local", "ray"]
"""Who starts islands that do not dial in: this machine, or a Ray cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """How island processes are started: what users get, unless a test plants faults here.

    `address` is that of the Ray cluster; None is the one that runs on this machine. InputError for
    an engine that is not installed.
    """

    entry: str = "atoll.training.island:main"
    preload: Sequence[str] = ("torch", "torch.distributed", "atoll.training.island")
    python_path: Sequence[Path] = ()
    engine: Engine = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        if self.engine == "ray":
            require_package()
        elif self.address is not None:
            fix = "leave it out, or add --engine ray"
            message = "only a Ray cluster has an address"
            raise InputError(message, key="--address", value=self.address, fix=fix)


class Crew(Protocol):
    """Who starts islands and tells when they end (`crew.local.LocalCrew` says what each does)."""

    host: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start an island; returns at once."""

    def running(self) -> list[str]:
        """Who was started and has not ended."""

    def kill(self, name: str) -> None:
        """End an island at once."""

    def wait(self, seconds: float) -> bool:
        """Wait until all have ended by themselves."""

    def log_tail(self, name: str) -> str:
        """What an island wrote last."""

    def stop(self) -> None:
        """End all islands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """One process to be: an island of the plan, or one device of it where a lane is a device.

    `hours` are those of the day at which it may be used; None is always.
    """

    name: str
    island: str
    site: str
    chip: str
    lanes: int
    threads: int
    device_index: int
    share: float | None
    dials_in: bool
    hours: Hours | None = None


def members_of(islands: Sequence[PlanIsland]) -> list[MemberSpec]:
    """The processes of a plan. A CPU island is one process with its lanes as threads; an island of
    accelerators is one process a device, since a process drives one device."""
    members: list[MemberSpec] = []
    for island in islands:
        count = island.num_lanes
        on_host = of_chip(island.chip).device_type == "cpu"
        parts = 1 if on_host else count
        hours = None if island.hours is None else Hours.parse(island.hours)
        for index in range(parts):
            members.append(
                MemberSpec(
                    name=island.name if parts == 1 else f"{island.name}.{index}",
                    island=island.name,
                    site=island.site,
                    chip=island.chip,
                    lanes=count if on_host else 1,
                    threads=island.threads,
                    device_index=index,
                    share=None if island.share is None else island.share / parts,
                    dials_in=island.start == "dial-in",
                    hours=hours,
                )
            )
    return members


@contextmanager
def assemble(  # long: one context, from opening the door to the last goodbye
    members: Sequence[MemberSpec],
    *,
    folder: Path,
    logs: Path,
    display: Display,
    listen: str | None,
    starting: Starting,
    absent: Collection[str] = (),
) -> Iterator[tuple[Crewed, int]]:
    """All members, arrived and greeted, and the port of the store they meet at.

    Those that are `absent` are neither started nor waited for; `Crewed.enlist` brings them later.
    `folder` takes the token file. Leaving the context ends every process started here.
    """
    token_file = folder.resolve() / "token"
    address_file = folder.resolve() / ADDRESS_FILE
    planned = {member.name: member for member in members}
    local: set[str] = set()

    def ended(name: str, status: int) -> None:
        listener.events.put(wire.Event(name, wire.Exit(status=status)))

    def explain(name: str) -> str:
        return crew.log_tail(name) if name in local else "Its own launcher has its output."

    def fence(name: str) -> None:
        if name in local:
            crew.kill(name)

    def refuse(hello: Mapping[str, Any]) -> str | None:
        return _why_not(planned, hello, begun=crewed.elastic)

    def waiting(missing: list[str]) -> None:
        display.say(f"waiting for island {', '.join(missing)}")

    crewed = Crewed(explain=explain, fence=fence)
    crew = _crew_of(starting, members, logs=logs, on_exit=ended)
    address, old_token = _left_behind(address_file, token_file)
    address = listen or address or wire.format_address(crew.host, 0)
    try:
        token = old_token or wire.write_token_file(token_file)
        with wire.Listener(address, token=token, admit=refuse) as listener, crew:

            def start(name: str) -> bool:
                """Start an island of this crew (again); True when it is under way."""
                if name in crew.running() or name not in local:
                    return name not in local
                arguments = _arguments(planned[name], listener.address, token_file)
                environment = facts.chip(planned[name].chip).environment
                crew.start(name, [*arguments, *AT_ONCE], environment)
                return True

            def enlist(member: MemberSpec) -> bool:
                """An island belongs to the fleet now: start it, or say how it dials in; False while
                its old process has not ended."""
                planned[member.name] = member
                if member.dials_in:
                    command = _by_hand(member, listener.address, token_file)
                    display.say(f"island {member.name!r} dials in; start it with:\n  {command}")
                    return True
                local.add(member.name)
                return start(member.name)

            here = [member for member in members if member.name not in absent]
            for member in here:
                enlist(member)
            crewed.listen_to(listener)
            _write_address(address_file, listener.address)
            crewed.restart, crewed.enlist = start, enlist
            crewed.starts = local.__contains__
            crewed.admit([member.name for member in here], waiting=waiting)
            store = serve_store(wire.parse_address(address)[0])
            yield crewed, store.port
            for name in crew.running():
                if name not in crewed.finished:  # started again, and nobody needs it any more
                    crew.kill(name)
            crew.wait(LAST_SAVE_SECONDS)  # whoever was told to finish may still be closing down
    finally:
        crew.stop()  # also where the door could not be opened
        token_file.unlink(missing_ok=True)
        address_file.unlink(missing_ok=True)


def _crew_of(
    starting: Starting,
    members: Sequence[MemberSpec],
    *,
    logs: Path,
    on_exit: Callable[[str, int], None],
) -> Crew:
    """The crew of the engine that was asked for; it has started nobody yet."""
    common: dict[str, Any] = {
        "entry": starting.entry,
        "logs": logs,
        "preload": starting.preload,
        "python_path": starting.python_path,
        "on_exit": on_exit,
    }
    if starting.engine == "local":
        return LocalCrew(**common)
    needs = {
        member.name: Need(
            island=member.island,
            cpus=member.lanes * member.threads,
            accelerator=of_chip(member.chip).ray_resource,
            site="" if member.site == HERE else member.site,
        )
        for member in members
        if not member.dials_in
    }
    return RayCrew(address=starting.address, needs=needs, **common)


def _left_behind(address_file: Path, token_file: Path) -> tuple[str | None, str | None]:
    """Address and token of a pilot that died here: its islands may still wait for another one."""
    try:
        address = json.loads(address_file.read_text(encoding="ascii"))["address"]
        host, port = wire.parse_address(address)
        with socket.create_server((host, port)):
            pass  # free: nobody else listens there by now
        return address, wire.read_token_file(token_file)
    except (OSError, ValueError, KeyError):
        return None, None


def _write_address(path: Path, address: str) -> None:
    """Where the pilot listens, for those who have a word with it (`ask`)."""
    path.write_text(json.dumps({"address": address, "pid": os.getpid()}) + "\n", encoding="ascii")


def ask(folder: Path, **wish: Any) -> str:
    """Ask the pilot of a run that goes on for something; its answer. InputError if none does."""
    try:
        address = json.loads((folder / ADDRESS_FILE).read_text(encoding="ascii"))["address"]
    except (OSError, ValueError, KeyError):
        fix = "this works while `atoll train` runs on it, on the machine of the run folder"
        raise InputError("nobody is training this run now", file=folder, fix=fix) from None
    token = wire.read_token_file(folder / "token")
    name = f"ask-{os.getpid()}"
    connection, _ = wire.dial(
        address,
        token=token,
        name=name,
        facts={"ask": wish},
        version=atoll.__version__,
        timeout=10.0,
    )
    try:
        return str(connection.receive(ASK_SECONDS)["text"])
    finally:
        connection.close()


def require_dialable(address: str) -> None:
    """InputError for what is no HOST:PORT, or one that other islands could not dial."""
    host, _ = wire.parse_address(address)
    if host in ("0.0.0.0", "::", "*"):
        raise InputError(
            "islands cannot dial a wildcard address",
            key="--listen",
            value=address,
            fix="give the address of this host by which the other islands reach it",
        )


def _why_not(
    planned: Mapping[str, MemberSpec], hello: Mapping[str, Any], *, begun: bool
) -> str | None:
    """The reason to refuse an island that greets, or None. Once the run has begun, islands of any
    name may join; whoever only asks for something may always come.
    """
    told = hello.get("facts") or {}
    if "ask" in told:
        return None
    name, chip = str(hello.get("name")), told.get("chip")
    if hello.get("version") != atoll.__version__:
        return f"it is Atoll {hello.get('version')}, the pilot is {atoll.__version__}"
    if name not in planned and begun:
        known = isinstance(chip, str) and chip in facts.chips()
        return None if known else f"nobody knows the chip {chip!r}"
    if name not in planned:
        return f"the fleet has no island {name!r}; it has {', '.join(planned)}"
    if chip != planned[name].chip:
        return f"the fleet says that {name!r} is {planned[name].chip!r}; it dialled in as {chip!r}"
    return None


def _by_hand(member: MemberSpec, address: str, token_file: Path) -> str:
    """The command that starts a member elsewhere, with its chip's environment."""
    environment = facts.chip(member.chip).environment
    settings = [f"{key}={value}" for key, value in environment.items()]
    return shlex.join([*settings, "atoll", *_arguments(member, address, token_file)])


def _arguments(member: MemberSpec, address: str, token_file: Path) -> list[str]:
    return [
        "island",
        "--pilot",
        address,
        "--token-file",
        str(token_file),
        "--name",
        member.name,
        "--chip",
        member.chip,
        "--lanes",
        str(member.lanes),
        "--threads",
        str(member.threads),
        "--device-index",
        str(member.device_index),
    ]
