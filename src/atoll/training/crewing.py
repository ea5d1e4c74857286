"""Bring a plan's islands together: listen, start those that run here, wait for those that dial in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll import facts
from atoll.backends import of_chip
from atoll.crew import wire
from atoll.crew.local import LocalCrew
from atoll.plan import PlanIsland
from atoll.training.display import Display
from atoll.training.exchange import serve_store
from atoll.training.pilot import Crewed

HOST_CHIP_BACKEND = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """How island processes are started; the defaults are what users get, tests plant faults here."""

    entry: str = "atoll.training.island:main"
    preload: Sequence[str] = ("torch", "torch.distributed", "atoll.training.island")
    python_path: Sequence[Path] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """One process to be: an island of the plan, or one device of it where a lane is a device."""

    name: str
    chip: str
    lanes: int
    threads: int
    device_index: int
    share: float | None
    dials_in: bool


def members_of(islands: Sequence[PlanIsland]) -> list[MemberSpec]:
    """The processes of a plan. A CPU island is one process with its lanes as threads; an island of
    accelerators is one process a device, since a process drives one device."""
    members: list[MemberSpec] = []
    for island in islands:
        count = island.num_lanes
        on_host = of_chip(island.chip).device_type == "cpu"
        parts = 1 if on_host else count
        for index in range(parts):
            members.append(
                MemberSpec(
                    name=island.name if parts == 1 else f"{island.name}.{index}",
                    chip=island.chip,
                    lanes=count if on_host else 1,
                    threads=island.threads,
                    device_index=index,
                    share=None if island.share is None else island.share / parts,
                    dials_in=island.start == "dial-in",
                )
            )
    return members


@contextmanager
def assemble(
    members: Sequence[MemberSpec],
    *,
    folder: Path,
    logs: Path,
    display: Display,
    listen: str | None,
    starting: Starting,
) -> Iterator[tuple[Crewed, int]]:
    """All members, arrived and greeted, and the port of the store they meet at.

    `folder` takes the token file. Leaving the context ends every process started here.
    """
    token_file = folder / "token"
    token = wire.write_token_file(token_file)
    address = listen or "127.0.0.1:0"
    with wire.Listener(address, token=token) as listener:
        crew = LocalCrew(
            entry=starting.entry,
            logs=logs,
            preload=starting.preload,
            python_path=starting.python_path,
            on_exit=lambda name, status: listener.events.put(
                wire.Event(name, wire.Exit(status=status))
            ),
        )
        with crew:
            for member in members:
                if not member.dials_in:
                    environment = facts.chip(member.chip).environment
                    crew.start(
                        member.name, _arguments(member, listener.address, token_file), environment
                    )
            _say_how_to_dial(members, listener.address, token_file, display)
            crewed = Crewed(listener, explain=lambda name: crew.log_tail(name))
            names = {member.name: member.chip for member in members}
            crewed.admit(
                names,
                waiting=lambda missing: display.say(f"waiting for island {', '.join(missing)}"),
            )
            store = serve_store(wire.parse_address(address)[0])
            try:
                yield crewed, store.port
            finally:
                crewed.members.clear()
    token_file.unlink(missing_ok=True)


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


def _say_how_to_dial(
    members: Sequence[MemberSpec], address: str, token_file: Path, display: Display
) -> None:
    for member in members:
        if member.dials_in:
            command = " ".join(["atoll", *_arguments(member, address, token_file)])
            display.say(f"island {member.name!r} dials in; start it with:\n  {command}")
