"""Commands about fleets."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from atoll.cli.output import Json, print_json
from atoll.errors import InputError


def fleet(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A fleet file to check and show.", show_default=False
        ),
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Print a fleet file of this machine instead.")
    ] = False,
    json: Json = False,
) -> int:
    """Check and show a fleet file, or write one of this machine.

    \b
    Example:
      atoll fleet examples/fleets/two-kinds.toml
      atoll fleet --here > here.toml
    """
    if here == (file is not None):
        raise InputError("name a fleet file, or give --here", fix="atoll fleet --here")
    if file is not None:
        from atoll.fleet import Fleet

        found = Fleet.load(file)
    else:
        from atoll.training.target import this_machine

        found = this_machine()
    if json:
        print_json(found.as_dict())
    elif here:
        print("# This machine, found by `atoll fleet --here`.")
        print(toml_of(found.as_dict()), end="")
    else:
        _show(found)
    return 0


def _show(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("island", "site", "chip"):
        table.add_column(name)
    for name in ("chips", "lanes", "threads", "share"):
        table.add_column(name, justify="right")
    serves = {one.island for one in found.traffic}
    if found.shares_hours:
        table.add_column("trains")
    for one in found.island:
        share = "by speed" if one.share is None else f"{one.share:g}"
        numbers = (one.num_chips, one.num_lanes, one.threads)
        hours = "when free" if one.name in serves else one.hours or "always"
        cells = (one.name, one.site, one.chip, *map(str, numbers), share)
        table.add_row(*cells, *([hours] if found.shares_hours else []))
    Console().print(table)


def toml_of(content: dict[str, Any]) -> str:
    """A fleet's dict as TOML: tables for `shares`, arrays of tables for the rest.

    Holds text, numbers, booleans and lists of them, which is all that a fleet has; None and empty
    lists are left out.
    """
    parts = []
    for name, value in content.items():
        tables = value if isinstance(value, list) else [value]
        head = f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
        for table in tables:
            if not isinstance(table, dict):
                parts.append(f"{name} = {_value(table)}\n")
                continue
            lines = [f"{key} = {_value(item)}" for key, item in table.items() if item is not None]
            parts.append("\n".join([head, *lines]) + "\n")
    return "\n".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{k} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + pairs + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's text, numbers and booleans are TOML's too.
    return json_text.dumps(value, ensure_ascii=False)


COMMANDS = (fleet,)
