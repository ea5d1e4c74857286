"""Commands about the planner itself: validate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.output import Json, note, print_json, wide_console
from atoll.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.planning.validate import Errors, Leave, Validation

Runs = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUNS]",
        help="Measured runs (CSV, columns as in docs/validate.md); the published runs that come "
        "with Atoll if not given.",
        show_default=False,
    ),
]
LeaveOption = Annotated[
    str,
    typer.Option(
        "--leave",
        metavar="group|source",
        help="Predict a run that the model was fitted on without the runs of its group (source, "
        "chip and model) or without all runs of its source.",
    ),
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="ROWS",
        help="Runs (CSV) that give one factor a chip before the others are predicted; they are "
        "not scored themselves.",
        show_default=False,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw measured and predicted (SVG).", show_default=False),
]
Bound = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0.0,
        help="Exit code 1 if the median error is above this: 0.1 for 10 %.",
        show_default=False,
    ),
]
Every = Annotated[
    bool, typer.Option("--all", help="Score the rows of every tier, not only of tier core.")
]
Rows = Annotated[bool, typer.Option("--rows", help="Show every run with its error.")]


def validate(
    runs: Runs = None,
    leave: LeaveOption = "group",
    calibrate: CalibrateOption = None,
    plot: Plot = None,
    bound: Bound = None,
    every: Every = False,
    rows: Rows = False,
    json: Json = False,
) -> int:
    """Compare the planner's step times with measured runs.

    \b
    Example:
      atoll validate
      atoll validate --leave source --plot validation.svg
      atoll validate my-runs.csv --calibrate three-of-them.csv --bound 0.1

    A run that the model was fitted on is never predicted from itself. Needs no accelerator and
    no torch.
    """
    kept = _leave(leave)
    if plot is not None and (plot.is_dir() or not plot.parent.is_dir()):
        why = "is a folder" if plot.is_dir() else f"the folder {plot.parent} does not exist"
        raise InputError(why, file=plot, fix="name a file in a folder that exists")
    from atoll.planning import validate as validation

    path = validation.own_table() if runs is None else runs
    found = validation.validate(path, leave=kept, calibrate=calibrate, every_tier=every)
    if plot is not None:
        from atoll.planning.scatter import scatter_of

        plot.write_text(scatter_of(found), encoding="utf-8")
        note(f"wrote {plot}")
    if json:
        print_json(found.as_json(rows=rows))
    else:
        _show(found, rows=rows)
    if bound is not None and found.errors.median > bound:
        message = f"the median error is {found.errors.median:.2%}, above the bound of {bound:.2%}"
        raise CheckFailed(message)
    return 0


def _leave(text: str) -> Leave:
    if text == "group":
        return "group"
    if text == "source":
        return "source"
    raise InputError("is not allowed here", key="--leave", value=text, fix="group or source")


def _show(found: Validation, *, rows: bool) -> None:
    """The result on a few screens; with `rows` every run after it."""
    console = wide_console()
    for name, text in _headline(found):
        console.print(f"[bold]{name:<11}[/]{text}", soft_wrap=True)
    for by, groups in found.by().items():
        console.print()
        _table(console, by, groups)
    if found.skipped:
        console.print("\n[dim]not predicted[/]")
        for reason, count in sorted(found.skipped.items(), key=lambda entry: -entry[1]):
            console.print(f"  {count} x {reason}", markup=False)
    if rows:
        console.print()
        _rows(console, found)


def _headline(found: Validation) -> Iterator[tuple[str, str]]:
    """What stands above the tables."""
    from atoll.planning.validate import sweeps_json

    errors, memory = found.errors, found.memory()
    tiers = ", ".join(f"{count} of tier {name}" for name, count in found.other_tiers.items())
    beside = f" ({tiers} not scored: --all)" if tiers else ""
    yield "error", f"{_sizes(errors)}, bias {errors.bias:+.1%}"
    yield "rows", f"{len(found.scored)} of {found.rows} predicted{beside}"
    held = sum(one.held_out for one in found.scored)
    if held:
        how = f"each predicted without its {found.leave}"
        yield "held out", f"{held} runs that the model was fitted on, {how}"
    if found.factors:
        factors = ", ".join(f"{chip} x {value:.3f}" for chip, value in found.factors.items())
        yield "calibrated", f"{factors}; {found.calibrated_on} rows not scored for it"
    if memory is not None:
        yield "memory", f"{_sizes(memory)} of {memory.rows} measured peaks"
    sweeps = sweeps_json(found.sweeps())
    for name, one, what in (
        ("sweeps", sweeps, "at least 2 rows"),
        ("", sweeps["rows"], "at least 3 rows"),
        ("", sweeps["plans"], "at least 3 different plans"),
    ):
        if one["count"]:
            reached = f"{one['mean_reached']:.1%} of the best, at worst {one['worst']:.1%}"
            rank = f"rank correlation {one['mean_rank_correlation']:.2f}"
            yield name, f"{one['count']} of {what}: the first choice reaches {reached}; {rank}"


def _sizes(errors: Errors) -> str:
    return f"median {errors.median:.1%}, mean {errors.mean:.1%}, p90 {errors.p90:.1%}"


def _table(console: Console, by: str, groups: Mapping[str, Errors]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(by, no_wrap=True)
    for name in ("rows", "median", "mean", "p90", "bias"):
        table.add_column(name, justify="right")
    order = groups.items() if by == "completeness" else sorted(groups.items(), key=_most_first)
    for name, one in order:
        numbers = (f"{value:.1%}" for value in (one.median, one.mean, one.p90))
        table.add_row(_plain(name), str(one.rows), *numbers, f"{one.bias:+.1%}")
    console.print(table)


def _most_first(entry: tuple[str, Errors]) -> tuple[int, str]:
    return -entry[1].rows, entry[0]


def _plain(text: str) -> str:
    """Text of a table of somebody else as it stands there: square brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def _rows(console: Console, found: Validation) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("row", "chip", "kind", "measured, s", "predicted, s", "error", "assumed"):
        right = name in ("measured, s", "predicted, s", "error")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for one in found.scored:
        numbers = (f"{one.seconds:.4g}", f"{one.predicted:.4g}", f"{one.error:+.1%}")
        assumed = ", ".join(one.assumed)
        table.add_row(_plain(one.row.row_id), one.chip, one.kind, *numbers, assumed)
    console.print(table)


COMMANDS = (validate,)
