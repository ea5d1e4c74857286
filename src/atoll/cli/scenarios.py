"""The command about scenarios: a supply story, and the planner's answers to its questions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli import flags
from atoll.cli.output import Json, Quiet, note, print_json, wide_console
from atoll.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.planning.placing import Chosen
    from atoll.planning.scenario.file import Scenario
    from atoll.planning.scenario.study import Kind, Study

Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="SCENARIO...",
        help="Folders with a scenario.toml, or such files (docs/scenarios.md).",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a one-page report (HTML).", show_default=False),
]
Draws = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=1_000_000,
        help="How many fleets are drawn from what is not known; 0 for none.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="The same seed, the same draws.")]
Seconds = Annotated[
    float, typer.Option(metavar="N", min=0.1, help="Limit of each solve of orders in whole lots.")
]


def scenario(
    scenarios: Folders,
    html: Html = None,
    draws: Draws = 1000,
    seed: Seed = 1,
    seconds: Seconds = 5.0,
    facts: flags.Facts = None,
    rules: flags.Rules = None,
    no_rules: flags.NoRules = None,
    refuse: flags.Refuse = None,
    hq: flags.Headquarters = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Answer a supply scenario: done by when, what to buy, what if.

    \b
    Example:
      atoll scenario examples/scenarios/scarce-2024
      atoll scenario examples/scenarios/two-budgets-2025 --html report.html
      atoll scenario SCENARIO --rules all --hq CN --json

    Needs no accelerator and no torch. Every day has a range, and every figure of the story its
    source and how far it can be trusted. Takes half a minute of a core.
    """
    from atoll.planning.scenario.file import load
    from atoll.planning.scenario.text import as_json

    _require_writable(html)
    read = [load(path) for path in scenarios]
    chosen = flags.chosen(rules, no_rules, refuse, hq)
    with _progress(quiet) as tell:
        found = [
            _studied(one, chosen, facts, draws=draws, seed=seed, seconds=seconds, tell=tell)
            for one in read
        ]
    if html is not None:
        from atoll.planning.scenario.page import report_of

        _write(html, report_of(found))
    if json:
        print_json({"scenarios": [as_json(one) for one in found]})
    else:
        console = wide_console()
        for number, one in enumerate(found):
            if number:
                console.rule(style="dim")
            _show(one, console)
    if html is not None:
        note(f"wrote {html}")
    return 0


def _studied(
    read: Scenario,
    chosen: Chosen | None,
    facts: Path | None,
    *,
    draws: int,
    seed: int,
    seconds: float,
    tell: Callable[[str], None],
) -> Study:
    """The answers to one scenario; rules without --hq ask about the scenario's own headquarters."""
    from dataclasses import replace

    from atoll.facts.measured import measured_in
    from atoll.planning.planner import Asked
    from atoll.planning.scenario.study import study

    if chosen is not None and chosen.headquarters is None:
        chosen = replace(chosen, headquarters=read.told.headquarters)
    asked = Asked(rules=chosen, measured=measured_in(facts) if facts is not None else {})
    name = read.told.name
    return study(
        read, asked, draws=draws, seed=seed, seconds=seconds, tell=lambda it: tell(f"{name}: {it}")
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """What tells on stderr what is being reckoned: on one line of a terminal, else a line each."""
    if quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield note
        return
    from rich.console import Console

    with Console(stderr=True).status("reading ...", spinner="line") as status:
        yield status.update


def _require_writable(path: Path | None) -> None:
    """InputError for a page that could not be written, before anything is computed."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        why = "is a folder" if path.is_dir() else f"the folder {path.parent} does not exist"
        raise InputError(why, file=path, fix="name a file in a folder that exists")


def _write(path: Path, page: str) -> None:
    """Writes the page whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _show(found: Study, console: Console) -> None:
    """The answers on a screen or two."""
    from rich.markup import escape

    from atoll.planning.scenario import text

    told = found.scenario.told
    console.print(f"[bold]{told.name}[/]  {told.title}", soft_wrap=True)
    for name, lines in text.answers(found):
        console.print(f"\n[bold]{escape(name)}[/]")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True, markup=False)
    _table(console, "done by", text.DONE_HEAD, text.done_rows(found), left=("model",))
    titles: dict[Kind, str] = {
        "shortfall": "days that the shortfall cost", "what_if": "days later (+) or sooner (-)",
    }  # fmt: skip
    for kind, title in titles.items():
        _table(
            console, title, text.effect_head(found, kind), text.effect_rows(found, kind), left=("",)
        )
    if found.base.told is not None:
        from atoll.planning.ordertable import order_rows, sections

        head, rows = order_rows(found.base.told.answer)
        left = tuple(name for name in head if name not in ("chips", "price", "cost"))
        _table(console, "what to buy", head, rows, left=left)
        for title, lines in sections(found.base.told):
            if lines:
                console.print(f"\n[dim]{title}[/]")
            for line in lines:
                console.print(f"  {line}", soft_wrap=True, markup=False)
    words = tuple(name for name in text.MEMORY_HEAD if name != "chips")
    rows = text.memory_rows(found)
    _table(console, "what fits where at first", text.MEMORY_HEAD, rows, left=words)
    console.print("\n[dim]notes[/]")
    for line in text.notes(found):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _table(
    console: Console, title: str, head: Any, rows: list[list[str]], *, left: tuple[str, ...]
) -> None:
    """A titled table, left out where it has no rows."""
    if not rows:
        return
    from rich.table import Table

    console.print(f"\n[dim]{title}[/]")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in head:
        side: Any = "left" if name in left else "right"
        table.add_column(name, justify=side)
    for row in rows:
        table.add_row(*row)
    console.print(table)


COMMANDS = (scenario,)
