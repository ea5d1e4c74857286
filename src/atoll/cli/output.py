"""What commands share: the object on the last line of stdout, and tidy lines for people."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object as the last line of stdout, nothing else."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress on stderr.")]


def print_json(content: Mapping[str, Any]) -> None:
    """Print one object on one line of stdout; numbers that JSON lacks (NaN) become null."""
    print(json.dumps(_plain(content), ensure_ascii=False, allow_nan=False), flush=True)


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Print names and values in two columns on stdout."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        print(f"{name:<{width}}  {value}")


def wide_console() -> Console:
    """A console on stdout, 160 wide where that is no terminal: names must not be cut in a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def note(text: str) -> None:
    """Print a line for people on stderr."""
    print(text, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
