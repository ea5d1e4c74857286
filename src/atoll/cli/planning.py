"""Commands about plans: plan, validate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli import calendars, flags, launching
from atoll.cli.output import Json, note, print_json, wide_console
from atoll.errors import InputError

if TYPE_CHECKING:
    from atoll.planning.placing import Chosen
    from atoll.planning.planner import Answer, Asked

RecipeFile = Annotated[
    Path | None,
    typer.Argument(metavar="[RECIPE]", help="The recipe (TOML).", show_default=False),
]
FleetArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[FLEET]", help="The fleet (TOML).", show_default=False),
]
What = Annotated[
    Path | None,
    typer.Option(
        "--what",
        metavar="FLEET",
        help="Ask the first question instead: which known models could this fleet train, and how "
        "large a model is compute-optimal, within --days.",
        show_default=False,
    ),
]
Days = Annotated[
    float,
    typer.Option(metavar="N", min=0.01, max=36_525, help="With --what: how many days."),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="DATE",
        help="The first day (2024-07-01): the fleet as it stands then, and how it grows and "
        "shrinks after it (docs/calendar.md). Today, and no deliveries, if not given.",
        show_default=False,
    ),
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="KEYS",
        help="Fix keys of every island's layout: tp=8,pp=4,microbatch=1,recompute=full ...",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key of the recipe.", show_default=False
    ),
]
ExchangeOption = Annotated[
    str | None,
    typer.Option(
        "--exchange",
        metavar="step|rounds",
        help="How often islands exchange; the recipe's if not given (it decides bits).",
        show_default=False,
    ),
]
Executor = Annotated[
    str,
    typer.Option(metavar="auto|atoll", help="atoll searches only what `atoll train` runs today."),
]
Save = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the plan file (JSON).", show_default=False),
]
Report = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a one-page report (HTML).", show_default=False),
]
Emit = Annotated[
    str | None,
    typer.Option(
        metavar="TOOL",
        help="Write launch files: ray, kuberay, slurm (and skypilot with --executor atoll) start "
        "Atoll's own trainer on a cluster (docs/clusters.md); the others are other people's "
        "trainers (docs/emit.md; a wrong name lists them all).",
        show_default=False,
    ),
]
To = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="With --emit: the folder to write.", show_default=False),
]
OneIsland = Annotated[
    str | None,
    typer.Option(
        "--island",
        metavar="NAME",
        help="With --emit: launch files of this island alone.",
        show_default=False,
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="CSV",
        help="Runs of your own cluster (columns as in docs/validate.md): one factor a chip.",
        show_default=False,
    ),
]


def plan(  # long: one parameter a flag
    recipe: RecipeFile = None,
    fleet: FleetArgument = None,
    what: What = None,
    days: Days = 60.0,
    from_: From = None,
    by: calendars.By = None,
    what_if: calendars.WhatIfs = None,
    layout: LayoutOption = None,
    set_: Overrides = None,
    exchange: ExchangeOption = None,
    executor: Executor = "auto",
    save: Save = None,
    report: Report = None,
    emit: Emit = None,
    to: To = None,
    island: OneIsland = None,
    facts: flags.Facts = None,
    calibrate: Calibrate = None,
    rules: flags.Rules = None,
    no_rules: flags.NoRules = None,
    refuse: flags.Refuse = None,
    hq: flags.Headquarters = None,
    draws: calendars.Draws = 1000,
    seed: calendars.Seed = 1,
    json: Json = False,
) -> int:
    """Find out which chips, laid out how, are done when.

    \b
    Example:
      atoll plan examples/recipes/dense-400b.toml examples/fleets/hundred-thousand.toml
      atoll plan RECIPE FLEET --save plan.json --report plan.html
      atoll plan RECIPE FLEET --layout tp=8,pp=4 --emit megatron --to launch
      atoll plan RECIPE FLEET --emit slurm --to launch
      atoll plan RECIPE FLEET --from 2024-05-01 --by 2024-09-01
      atoll plan --what examples/fleets/scarce-2024.toml --days 60 --from 2024-07-01

    Needs no accelerator and no torch. Every number has a range and says what it rests on. Exit
    code 1: the model fits nowhere, and the message says by how much.
    """
    times = calendars.wanted(first=from_, by=by, what_if=what_if, draws=draws, seed=seed)
    own = launching.is_own_launcher(emit, executor)
    asked = _asked(
        from_=from_, layout=layout, exchange=exchange, executor="atoll" if own else executor,
        facts=facts, calibrate=calibrate, emit=None if own else emit,
        rules=flags.chosen(rules, no_rules, refuse, hq),
    )  # fmt: skip
    if what is not None:
        if recipe is not None:
            fix = "atoll plan --what FLEET, or atoll plan RECIPE FLEET"
            raise InputError("--what asks about all models: leave the recipe out", fix=fix)
        calendars.require_none(times, "--what")
        _require_nothing_of_a_plan({
            "--set": set_, "--save": save, "--report": report, "--emit": emit, "--to": to,
            "--island": island,
        })  # fmt: skip
        return _what(what, days=days, asked=asked, json=json)
    if recipe is None or fleet is None:
        fix = "atoll plan RECIPE FLEET, or atoll plan --what FLEET --days 60"
        raise InputError("a recipe and a fleet are needed", fix=fix)
    _require_writable(save, report)
    _require_apart(recipe, fleet, save, report)
    _require_launch(emit, to, island, fleet)
    if own and emit is not None and to is not None:
        calendars.require_none(times, f"--emit {emit}")
        wanted = launching.Wanted(launcher=emit, to=to, island=island, save=save, report=report)
        return _launch(recipe, set_ or [], fleet, asked, wanted=wanted, json=json)
    answer, course = _found(recipe, set_ or [], fleet, asked, times)
    files = _written(answer, course, save=save, report=report, emit=emit, to=to, island=island)
    _tell(answer, course, files, json=json)
    for path in (save, report, *files):
        if path is not None:
            note(f"wrote {path}")
    return 0


def _tell(answer: Answer, course: calendars.Times, files: list[Path], *, json: bool) -> None:
    """The answer as an object, or for a person."""
    if not json:
        _show(answer, course)
        return
    from atoll.planning.explain import as_json

    names = {"files": [str(path) for path in files]}
    print_json(as_json(answer) | calendars.as_json(course) | names)


def _launch(
    recipe: Path,
    changes: list[str],
    fleet: Path,
    asked: Asked,
    *,
    wanted: launching.Wanted,
    json: bool,
) -> int:
    """Plans for Atoll's own trainer and writes the files by which a launcher starts it."""

    def find() -> Answer:
        return _found(recipe, changes, fleet, asked)[0]

    planned = launching.planned_for(recipe, changes, fleet, asked, find=find)
    files, made = launching.write(planned, wanted)
    if json:
        print_json(launching.as_json(planned, files, made))
    elif planned.answer is not None:
        _show(planned.answer)
    else:
        print(launching.UNKNOWN)
    for path in files:
        note(f"wrote {path}")
    if not json:
        launching.say(planned, made)
    return 0


def _require_launch(emit: str | None, to: Path | None, island: str | None, fleet: Path) -> None:
    """InputError for --emit, --to and --island that cannot be, before anything is computed."""
    if (emit is None) != (to is None) or (island is not None and emit is None):
        raise InputError("--emit and --to go together", fix="--emit TOOL --to launch")
    if emit is None:
        return
    from atoll import strict
    from atoll.fleet import Fleet
    from atoll.planning.emit import names as tools

    if emit not in tools():
        fix = strict.nearest(emit, tools(), what="tools")
        raise InputError("there is no such tool", key="--emit", value=emit, fix=fix)
    names = [one.name for one in Fleet.load(fleet).island]
    if island is not None and island not in names:
        fix = strict.nearest(island, names, what="islands")
        raise InputError("the fleet has no such island", key="--island", value=island, fix=fix)


def _found(
    recipe: Path,
    changes: list[str],
    fleet: Path,
    asked: Asked,
    wanted: calendars.Wanted | None = None,
) -> tuple[Answer, calendars.Times]:
    """The answer for two files, and the run over time where a first day was given and it is wanted.

    InputError names the file that a fault of an island stands in.
    """
    from atoll.fleet import Fleet
    from atoll.planning.sharing import plan_by_hours
    from atoll.recipe import Recipe

    read, stock = Recipe.load(recipe, changes), Fleet.load(fleet)
    try:
        if wanted is None:
            return plan_by_hours(read, stock, asked), calendars.Times()
        return calendars.find(read, stock, asked, wanted)
    except InputError as fault:
        _name_file(fault, fleet)
        raise


def _name_file(fault: InputError, fleet: Path) -> None:
    """Says in which file the key of a fault stands, where that is the fleet."""
    tables = ("island[", "site[", "withdrawal[", "traffic[")
    if fault.file is None and (fault.key or "").startswith(tables):
        fault.file = str(fleet)


def _written(
    answer: Answer,
    course: calendars.Times,
    *,
    save: Path | None,
    report: Path | None,
    emit: str | None,
    to: Path | None,
    island: str | None,
) -> list[Path]:
    """Writes what was asked for; the launch files. Whatever can be refused is refused first."""
    from atoll.planning.explain import plan_of

    plan, page, files = plan_of(answer), "", list[Path]()
    if report is not None:
        from atoll.planning.report import report_of

        page = report_of(
            answer, course.calendar, deadline=course.deadline, what_if=course.what_if,
            sharing=course.sharing,
        )  # fmt: skip
    if emit is not None and to is not None:
        from atoll.planning.emit import emit as write_files

        files = write_files(plan, emit, to, island=island)  # refuses before it writes
    if save is not None:
        plan.save(save)
    if report is not None:
        report.write_text(page, encoding="utf-8")
    return files


def _asked(
    *,
    from_: str | None,
    layout: str | None,
    exchange: str | None,
    executor: str,
    facts: Path | None,
    calibrate: Path | None,
    emit: str | None,
    rules: Chosen | None,
) -> Asked:
    """The flags as one noun. InputError for whatever is wrong."""
    from atoll.facts.measured import measured_in
    from atoll.plan import Layout
    from atoll.planning.planner import Asked
    from atoll.supply import parse_day

    _one_of("--exchange", exchange, ("step", "rounds"))
    _one_of("--executor", executor, ("auto", "atoll"))
    factors = {}
    measured = measured_in(facts) if facts is not None else {}
    if calibrate is not None:
        from atoll.planning.validate import factors_of

        factors = factors_of(calibrate, measured=measured)
    return Asked(
        day=None if from_ is None else parse_day(from_, key="--from"),
        only=Layout.parse(layout) if layout is not None else {},
        every=exchange,
        executor=executor,
        tool=emit,
        measured=measured,
        factors=factors,
        rules=rules,
    )


def _one_of(flag: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        fix = "allowed: " + ", ".join(allowed)
        raise InputError("is not allowed here", key=flag, value=value, fix=fix)


def _require_writable(*paths: Path | None) -> None:
    """InputError for a file that could not be written, before anything is computed."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            why = "is a folder" if path.is_dir() else f"the folder {path.parent} does not exist"
            raise InputError(why, file=path, fix="name a file in a folder that exists")


def _require_apart(recipe: Path, fleet: Path, save: Path | None, report: Path | None) -> None:
    """InputError for a file that would be written over another one of the same question."""
    told = {recipe.resolve(): "is the recipe", fleet.resolve(): "is the fleet"}
    for flag, path in (("--save", save), ("--report", report)):
        if path is None:
            continue
        why = told.setdefault(path.resolve(), f"is the file of {flag} too")
        if why != f"is the file of {flag} too":
            raise InputError(why, key=flag, value=str(path), fix="name another file")


def _require_nothing_of_a_plan(given: Mapping[str, object]) -> None:
    """InputError for an option of one plan beside --what, which makes none."""
    for flag, value in given.items():
        if value:
            fix = f"ask for a plan: atoll plan RECIPE FLEET {flag} ..."
            raise InputError("does not go with --what", key=flag, fix=fix)


def _show(answer: Answer, course: calendars.Times | None = None) -> None:
    """The answer on one screen."""
    from rich.table import Table

    from atoll.planning.explain import headline, shown_islands

    console = wide_console()
    for name, value in headline(answer):
        console.print(f"[bold]{name:<10}[/]{value}", soft_wrap=True)
    console.print()
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    head, rows = shown_islands(answer)
    for name in head:
        side: Any = "left" if name in ("island", "chip", "layout") else "right"
        table.add_column(name, justify=side, no_wrap=name != "layout")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if course is not None and course.sharing is not None:
        calendars.show_day(course.sharing, console)
    if course is not None and course.calendar is not None:
        calendars.show(course, console)
    for title, lines in (
        ("what would help", [f"{what}: +{gain:,.0f} tokens/s" for what, gain in answer.helps[:5]]),
        ("why not", [f"{one.what}: {one.why}" for one in answer.rejected[:9]]),
        ("notes", answer.notes),
    ):
        if lines:
            console.print(f"\n[dim]{title}[/]")
            for line in lines:
                console.print(f"  {line}", soft_wrap=True, markup=False)


def _what(fleet: Path, *, days: float, asked: Any, json: bool) -> int:
    """The first question: every known model, and the compute-optimal size."""
    from rich.console import Console
    from rich.table import Table

    from atoll.fleet import Fleet
    from atoll.planning.what import as_json, what

    stages: list[str] = []
    console = Console(stderr=True)
    with console.status("planning every known model ...", spinner="line"):
        stock = Fleet.load(fleet)
        try:
            found = what(stock, days=days, asked=asked, report=stages.append)
        except InputError as fault:
            _name_file(fault, fleet)
            raise
    if json:
        print_json(as_json(found))
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    names = "model parameters active tokens days low high chips binds"
    for name in names.split():
        side: Any = "left" if name in ("model", "binds") else "right"
        table.add_column(name, justify=side, no_wrap=name != "binds")
    for row in found.rows():
        table.add_row(*row)
    out = wide_console()
    out.print(table)
    out.print(f"\n{found.summary()}", soft_wrap=True, markup=False)
    return 0


COMMANDS = (plan,)
