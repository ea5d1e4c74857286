"""Emit: launch files for the islands of a plan: other people's tools, and clusters for our own.

`emit` writes for other people's trainers, `launch` for launchers that start Atoll's own (`own`).
Each family of tools has a module that turns a plan into texts. What a tool cannot express is
refused by name, with the reason. Nothing is started here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from atoll import strict
from atoll.errors import InputError
from atoll.facts.engines import Tool, tools
from atoll.fleet import Fleet
from atoll.plan import Plan
from atoll.planning.emit.flagscale import files as flagscale_files
from atoll.planning.emit.megatron import files as megatron_files
from atoll.planning.emit.own import LAUNCHERS, PLAN, written
from atoll.planning.emit.own.group import Written
from atoll.planning.emit.skypilot import files as skypilot_files
from atoll.planning.emit.text import MARK
from atoll.planning.emit.torchtitan import files as torchtitan_files

TOOLS: Mapping[str, Tool] = tools()
"""The tools by name: version, why, what files, which makes of chips."""

_WRITERS: Mapping[str, Callable[[Plan, str, str | None], dict[str, str]]] = {
    "megatron": megatron_files,
    "torchtitan": torchtitan_files,
    "flagscale": flagscale_files,
    "skypilot": skypilot_files,
}


def emit(plan: Plan, tool: str, to: Path, *, island: str | None = None) -> list[Path]:
    """Writes a tool's launch files into the folder `to`; the paths in the order written.

    One island's files lie in `to` itself. Without `island`, a plan of several islands gives each
    island of a make that the tool runs on a folder of its name; FlagScale takes the whole plan.
    InputError for an unknown tool or island, for what the tool cannot express, and for a folder
    with files that are not such launch files; then nothing is written.
    """
    if tool not in TOOLS:
        fix = strict.nearest(tool, list(TOOLS), what="tools")
        raise InputError("there is no such tool", key="--emit", value=tool, fix=fix)
    names = [one.name for one in plan.islands]
    if island is not None and island not in names:
        fix = strict.nearest(island, names, what="islands")
        raise InputError("the plan has no such island", key="--island", value=island, fix=fix)
    texts = _WRITERS[TOOLS[tool].family](plan, tool, island)
    _refuse_foreign(to, tool, list(texts))
    return [_write(to / name, text) for name, text in texts.items()]


def is_own(tool: str | None, executor: str) -> bool:
    """Whether --emit asks for a launcher of Atoll's own trainer: a name that is both a tool's and a
    launcher's is the launcher only where Atoll was named as the executor.
    """
    return tool in LAUNCHERS and (tool not in TOOLS or executor == "atoll")


def names() -> list[str]:
    """Everything that --emit takes."""
    return list(dict.fromkeys([*LAUNCHERS, *TOOLS]))


def launch(
    plan: Plan, fleet: Fleet, launcher: str, to: Path, *, island: str | None = None
) -> tuple[list[Path], Written]:
    """Writes a launcher's files for Atoll's own trainer into `to`; their paths, and what was
    written with its commands. InputError as `emit`.
    """
    made = written(plan, fleet, launcher, island=island)
    _refuse_foreign(to, launcher, list(made.files))
    commands = tuple(command.replace("{dir}", str(to)) for command in made.commands)
    paths = [_write(to / name, text) for name, text in made.files.items()]
    return paths, replace(made, commands=commands)


def _refuse_foreign(to: Path, tool: str, names: list[str]) -> None:
    """InputError unless `to` is new, empty, or holds launch files for the same tool."""
    fix = "name a new or an empty folder"
    if not to.exists():
        return
    if not to.is_dir():
        raise InputError("is no folder", key="--to", value=str(to), fix=fix)
    present = sorted(path for path in to.rglob("*") if path.is_file())
    ours = {path: _written_for(path) for path in present}
    others = {name for name in ours.values() if name not in (None, tool)}
    if others:
        message = f"holds launch files for {', '.join(sorted(str(name) for name in others))}"
        raise InputError(message, key="--to", value=str(to), fix=fix)
    if present and not any(ours.values()):
        message = f"holds other files ({present[0].name} is the first)"
        raise InputError(message, key="--to", value=str(to), fix=fix)
    for name in names:
        path = to / name
        if path.exists() and ours.get(path) is None and not (name == PLAN and any(ours.values())):
            message = f"holds a {name} that is no launch file of ours"
            raise InputError(message, key="--to", value=str(to), fix=fix)


def _written_for(path: Path) -> str | None:
    """The tool that a file was written for, by its first lines; None if it is not ours."""
    try:
        with path.open("rb") as file:
            head = file.read(200).decode("utf-8", "replace")
    except OSError:
        return None
    for line in head.splitlines()[:2]:
        if line.startswith(MARK):
            return line.removeprefix(MARK).partition(":")[0]
    return None


def _write(path: Path, text: str) -> Path:
    """Writes a file and its folders; what begins as a script may be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    if text.startswith("#!"):
        path.chmod(0o755)
    return path
