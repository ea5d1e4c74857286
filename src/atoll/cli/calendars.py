"""The calendar of `atoll plan --from DATE`: its options, its tables, its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.errors import InputError

if TYPE_CHECKING:
    from datetime import date

    from rich.console import Console

    from atoll.fleet import Fleet
    from atoll.planning.calendar import Calendar
    from atoll.planning.deadline import Deadline
    from atoll.planning.planner import Answer, Asked
    from atoll.planning.sharing import Sharing
    from atoll.planning.whatif import WhatIf
    from atoll.recipe import Recipe

By = Annotated[
    str | None,
    typer.Option(
        metavar="DATE",
        help="With --from: the other way round, the largest model of the recipe's family that is "
        "done by the end of this day (2025-01-01).",
        show_default=False,
    ),
]
WhatIfs = Annotated[
    list[str] | None,
    typer.Option(
        "--what-if",
        metavar="TEXT",
        help='With --from: the same run on another fleet: "+10000 west from 2024-10-01", "no '
        'more h20 from DATE", "without b from DATE", "late west by 60 d" (docs/calendar.md).',
        show_default=False,
    ),
]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked about the run over time."""

    by: date | None = None
    what_if: Sequence[str] = ()
    draws: int = 0
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The run over time, the largest model by a day, other fleets; empty without a first day.

    `sharing` is the day of a fleet that lends chips by the hour.
    """

    calendar: Calendar | None = None
    deadline: Deadline | None = None
    what_if: tuple[WhatIf, ...] = ()
    sharing: Sharing | None = None


def wanted(
    *, first: str | None, by: str | None, what_if: list[str] | None, draws: int, seed: int
) -> Wanted:
    """The options as one noun. InputError for what has no meaning without --from."""
    for flag, given in (("--by", by), ("--what-if", what_if)):
        if given and first is None:
            raise InputError("is an option of --from", key=flag, fix="add --from 2024-07-01")
    from atoll.supply import parse_day

    day = None if by is None else parse_day(by, key="--by")
    return Wanted(by=day, what_if=tuple(what_if or ()), draws=draws, seed=seed)


def require_none(asked: Wanted, other: str) -> None:
    """InputError for a question about the run over time beside an option that asks another."""
    for flag, given in (("--by", asked.by), ("--what-if", asked.what_if)):
        if given:
            fix = f"ask without {other}: atoll plan RECIPE FLEET --from 2024-07-01 {flag} ..."
            raise InputError(f"does not go with {other}", key=flag, fix=fix)


def find(recipe: Recipe, fleet: Fleet, asked: Asked, wanted: Wanted) -> tuple[Answer, Times]:
    """The plan of the first day that has one, and the run over time where a day was given."""
    from atoll.planning.planner import plan
    from atoll.planning.sharing import share

    if asked.day is None and fleet.shares_hours:
        day = share(recipe, fleet, asked)
        return day.answer, Times(sharing=day)
    if asked.day is None:
        return plan(recipe, fleet, asked), Times()
    from atoll.planning.calendar import calendar_of, first_plan
    from atoll.planning.deadline import largest
    from atoll.planning.draws import draw
    from atoll.planning.whatif import changed, compare

    def drawn(found: Calendar) -> Calendar:
        if not wanted.draws:
            return found
        return replace(found, draws=draw(found, number=wanted.draws, seed=wanted.seed))

    for what in wanted.what_if:
        changed(fleet, what, start=asked.day)  # refused before anything is planned
    with _progress("planning the fleet of every period ...") as report:
        deadline, run = None, recipe
        if wanted.by is not None:
            deadline = largest(recipe, fleet, asked, by=wanted.by, report=report)
            run = deadline.mid.recipe
        answer = first_plan(run, fleet, asked)
        found, others = compare(
            wanted.what_if, run, fleet, asked, calendar_of(answer, fleet, asked), by=wanted.by,
            family=recipe, drawn=drawn, report=report,
        )  # fmt: skip
    by_hours = replace(asked, day=answer.day)
    shared = share(run, fleet, by_hours) if fleet.shares_hours else None
    return answer, Times(calendar=found, deadline=deadline, what_if=others, sharing=shared)


@contextmanager
def _progress(text: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being planned, where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(text, spinner="line") as status:
        yield lambda what: status.update(f"{text} {what}")


def as_json(found: Times) -> dict[str, Any]:
    """The keys `done_by`, `calendar`, `deadline`, `what_if`: null without a first day; `sharing`:
    null unless chips are lent by the hour.
    """
    from atoll.planning.sharetable import as_json as shared

    day = {"sharing": None if found.sharing is None else shared(found.sharing)}
    if found.calendar is None:
        return {"done_by": None, "calendar": None, "deadline": None, "what_if": None} | day
    from atoll.planning.calendartable import as_json as plain
    from atoll.planning.deadline import as_json as size
    from atoll.planning.whatif import as_json as others

    what_if = others(found.what_if, found.calendar)
    return plain(found.calendar) | size(found.deadline) | {"what_if": what_if} | day


def show_day(found: Sharing, console: Console) -> None:
    """The shared day: what it is worth, a line for each run of like hours, what to know."""
    from atoll.planning.sharetable import notes, shown_hours, summary

    head, rows = shown_hours(found)
    console.print("\n[dim]by the hour[/]")
    _table(console, head, rows, left=(head[0],), wraps="")
    for name, text in summary(found):
        console.print(f"[bold]{name:<10}[/]{text}", soft_wrap=True, highlight=False)
    for line in notes(found):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def show(found: Times, console: Console) -> None:
    """The largest model, a line a period, when the run is done, other fleets, what to know."""
    from atoll.planning.calendartable import done_text, drawn_text, shown_periods
    from atoll.planning.costs import cost_of, cost_text
    from atoll.planning.deadline import notes, summary
    from atoll.planning.whatif import shown

    calendar, deadline = found.calendar, found.deadline
    assert calendar is not None
    head, rows = shown_periods(calendar, most=ROWS)
    console.print("\n[dim]as the fleet changes[/]")
    _table(console, head, rows, left=("until", "computing"), wraps="computing")
    for name, text in summary(deadline) if deadline is not None else ():
        console.print(f"[bold]{name:<13}[/]{text}", soft_wrap=True)
    console.print(f"[bold]{'done by':<13}[/]{done_text(calendar)}", soft_wrap=True)
    console.print(f"[bold]{'cost':<13}[/]{cost_text(cost_of(calendar))}", soft_wrap=True)
    if calendar.draws is not None:
        console.print(f"[bold]{'drawn':<13}[/]{drawn_text(calendar)}", soft_wrap=True)
    for line in (*(notes(deadline) if deadline is not None else ()), *calendar.notes):
        console.print(f"  {line}", soft_wrap=True, markup=False)
    if found.what_if:
        console.print("\n[dim]what if[/]")
        head, rows = shown(found.what_if, calendar, deadline)
        _table(console, head, rows, left=(head[0],), wraps=head[0])


def _table(
    console: Console, head: list[str], rows: list[list[str]], *, left: tuple[str, ...], wraps: str
) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in head:
        side: Any = "left" if name in left else "right"
        table.add_column(name, justify=side, no_wrap=name != wraps)
    for row in rows:
        table.add_row(*row)
    console.print(table)
