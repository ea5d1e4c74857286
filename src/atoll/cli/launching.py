"""What `plan --emit` does for launchers of clusters that start Atoll's own trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.cli.output import note
from atoll.errors import InputError

if TYPE_CHECKING:
    from atoll.facts.measured import Measured
    from atoll.fleet import Fleet
    from atoll.plan import Plan
    from atoll.planning.emit.own.group import Written
    from atoll.planning.planner import Answer, Asked

ESTIMATED = (
    "step_seconds", "finish_seconds", "tokens_per_second", "mfu", "memory", "shares", "seconds",
    "parts", "exchange", "finish", "steps", "contract", "rejected", "helps", "search_seconds",
)  # fmt: skip
"""Keys of `plan --json` that are null where no time of any chip is known."""
UNKNOWN = "no time of any chip is known: every island takes part, as the fleet says"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The files that are asked for."""

    launcher: str
    to: Path
    island: str | None
    save: Path | None
    report: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan for Atoll's own trainer and the stock that it is for.

    `answer` is None where no time of any chip is known: then nothing was searched.
    """

    plan: Plan
    fleet: Fleet
    answer: Answer | None


def is_own_launcher(emit: str | None, executor: str) -> bool:
    """Whether --emit asks for a launcher of Atoll's own trainer."""
    if emit is None:
        return False
    from atoll.planning.emit import is_own

    return is_own(emit, executor)


def planned_for(
    recipe: Path, changes: list[str], fleet: Path, asked: Asked, *, find: Callable[[], Answer]
) -> Planned:
    """The plan of recipe and fleet for Atoll's own trainer; `find` searches one.

    Where no time of any chip is known (a fleet of CPUs) nothing is searched: every island takes
    part as the fleet says. InputError for what Atoll's own trainer does not do.
    """
    from atoll.fleet import Fleet
    from atoll.plan import plan_trivially
    from atoll.planning.planner import plan_of, require_here
    from atoll.recipe import Recipe, require_supported

    if asked.every == "rounds":
        message = "feature exchange.every: Atoll's own trainer exchanges after every step"
        raise InputError(message, key="--exchange", value="rounds", fix="--exchange step")
    read, stock = Recipe.load(recipe, changes), Fleet.load(fleet).stock(asked.day)
    if any(_time_is_known(island.chip, asked.measured) for island in stock.island):
        answer = find()
        return Planned(plan=plan_of(answer), fleet=answer.fleet, answer=answer)
    from atoll.planning.placing import left_of

    stock = left_of(stock, asked.placed(stock))
    require_supported(read, file=recipe)
    require_here(read, asked.only)
    return Planned(plan=plan_trivially(read, stock), fleet=stock, answer=None)


def _time_is_known(name: str, measured: Mapping[str, Measured]) -> bool:
    """Whether the planner can tell how fast a chip is."""
    from atoll import facts

    chip = facts.chip(name)
    return chip.name in measured or chip.flops is not None or chip.measured is not None


def write(planned: Planned, wanted: Wanted) -> tuple[list[Path], Written]:
    """Writes a launcher's files, the plan and the report. What can be refused is refused first."""
    from atoll.planning.emit import launch

    page = ""
    if wanted.report is not None:
        if planned.answer is None:
            message = "no time of any chip of this fleet is known: there is nothing to report"
            raise InputError(message, key="--report", fix="measure a chip: atoll measure")
        from atoll.planning.report import report_of

        page = report_of(planned.answer)
    files, made = launch(
        planned.plan, planned.fleet, wanted.launcher, wanted.to, island=wanted.island
    )
    if wanted.save is not None:
        planned.plan.save(wanted.save)
    if wanted.report is not None:
        wanted.report.write_text(page, encoding="utf-8")
    return [*filter(None, (wanted.save, wanted.report)), *files], made


def as_json(planned: Planned, files: list[Path], made: Written) -> dict[str, Any]:
    """The object of `plan --json` for a launcher: that of any plan, and what to do."""
    notes = [*made.notes, *left_out(planned)]
    more = {
        "files": [str(path) for path in files],
        "replace": list(made.replace),
        "commands": list(made.commands),
    }
    if planned.answer is not None:
        from atoll.planning.explain import as_json as of_answer

        told = of_answer(planned.answer)
        return {**told, "notes": [*told["notes"], *notes], **more}
    return {
        **dict.fromkeys(ESTIMATED),
        "layout": {one.name: one.layout.model_dump() for one in planned.plan.islands},
        "executor": planned.plan.executor,
        "executor_why": UNKNOWN,
        "notes": notes,
        **more,
    }


def left_out(planned: Planned) -> list[str]:
    """Islands of the fleet that the plan does not use, so that no file starts them."""
    if planned.answer is None:
        return []
    reasons = {one.what: one.why for one in planned.answer.rejected}
    used = {one.name for one in planned.plan.islands}
    return [
        f"Island {one.name} is not in this plan: {reasons.get(one.name, 'it would not help')}."
        for one in planned.fleet.island
        if one.name not in used
    ]


def say(planned: Planned, made: Written) -> None:
    """What a person does next, on stderr."""
    for title, lines in (
        ("notes", [*made.notes, *left_out(planned)]),
        ("replace", made.replace),
        ("then run", made.commands),
    ):
        if lines:
            note(f"\n{title}")
            for line in lines:
                note(f"  {line}")
