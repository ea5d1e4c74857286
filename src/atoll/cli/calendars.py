"""The calendar of `atoll plan --from DATE`: its options, its table, its keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.planning.calendar import Calendar
    from atoll.planning.planner import Answer, Asked

Draws = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=1_000_000,
        help="With --from: how many fleets are drawn from what is not known; 0 for none.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, help="With --from: the same seed, the same draws.")
]

ROWS = 12
"""Periods of a table that still fits a screen."""


def find(answer: Answer, fleet: Path, asked: Asked, *, draws: int, seed: int) -> Calendar | None:
    """The run over time where a first day was given, else None. InputError names the file."""
    if asked.day is None:
        return None
    from dataclasses import replace

    from atoll.fleet import Fleet
    from atoll.planning.calendar import calendar_of
    from atoll.planning.draws import draw

    try:
        found = calendar_of(answer, Fleet.load(fleet), asked)
    except InputError as fault:
        if fault.file is None and (fault.key or "").startswith("withdrawal["):
            fault.file = str(fleet)
        raise
    return replace(found, draws=draw(found, number=draws, seed=seed)) if draws else found


def as_json(found: Calendar | None) -> dict[str, Any]:
    """The keys `done_by` and `calendar`, null without a first day."""
    if found is None:
        return {"done_by": None, "calendar": None}
    from atoll.planning.calendar import as_json as plain

    return plain(found)


def show(found: Calendar, console: Console) -> None:
    """A line a period, when the run is done, and what to know."""
    from rich.table import Table

    from atoll.planning.calendar import done_text, drawn_text, shown_periods

    head, rows = shown_periods(found, most=ROWS)
    console.print("\n[dim]as the fleet changes[/]")
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in head:
        side: Any = "left" if name in ("until", "computing") else "right"
        table.add_column(name, justify=side, no_wrap=name != "computing")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"[bold]{'done by':<10}[/]{done_text(found)}", soft_wrap=True)
    if found.draws is not None:
        console.print(f"[bold]{'drawn':<10}[/]{drawn_text(found)}", soft_wrap=True)
    for line in found.notes:
        console.print(f"  {line}", soft_wrap=True, markup=False)
