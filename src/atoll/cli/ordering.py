"""The command about orders: what to buy or lease."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from atoll.cli import flags
from atoll.cli.output import Json, print_json, wide_console
from atoll.cli.planning import Overrides
from atoll.errors import InputError

if TYPE_CHECKING:
    from datetime import date

    from atoll.planning.purchase import Told
    from atoll.planning.worth import Goal

FLEET_KEYS = ("island[", "site[", "withdrawal[")
OFFERS_KEYS = ("offer[", "budget[", "limit[")
GOALS = ("soonest", "cheapest", "largest")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe (TOML).")]
FleetFile = Annotated[
    Path, typer.Argument(metavar="FLEET", help="The fleet (TOML): its sites, its own chips.")
]
OffersFile = Annotated[
    Path,
    typer.Option(metavar="OFFERS", help="Offers, budgets and limits (TOML; docs/orders.md)."),
]
GoalOption = Annotated[
    str,
    typer.Option(
        metavar="soonest|cheapest|largest",
        help="Done soonest and then cheapest; cheapest by a day; the largest model by a day.",
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        metavar="DATE",
        help="The day (2026-07-01) by which all is done; it counts to the step that ends by then.",
        show_default=False,
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        metavar="SITE",
        help="Count and order chips of this site alone: where links are thin, a run stays at one.",
        show_default=False,
    ),
]
Seconds = Annotated[
    float, typer.Option(metavar="N", min=0.1, help="Limit of each solve in whole lots.")
]


Again = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=20,
        help="How often it is solved again until what it promises is what the planner plans.",
    ),
]


def orders(  # long: one parameter a flag
    recipe: RecipeFile,
    fleet: FleetFile,
    offers: OffersFile,
    goal: GoalOption = "soonest",
    by: By = None,
    at: At = None,
    seconds: Seconds = 5.0,
    again: Again = 3,
    set_: Overrides = None,
    facts: flags.Facts = None,
    rules: flags.Rules = None,
    no_rules: flags.NoRules = None,
    refuse: flags.Refuse = None,
    hq: flags.Headquarters = None,
    json: Json = False,
) -> int:
    """Find out what to buy or lease, when and from whom.

    \b
    Example:
      atoll orders RECIPE FLEET --offers OFFERS
      atoll orders RECIPE FLEET --offers OFFERS --goal cheapest --by 2026-07-01
      atoll orders RECIPE FLEET --offers OFFERS --goal largest --by 2026-01-01 --at home
      atoll orders RECIPE FLEET --offers OFFERS --rules all --hq CN

    Budgets, stock, lead times, limits and the sites' power are kept. Prints the gap that the solver
    proved, and what one more unit of money, of power and of each chip would be worth. Exit code 1:
    nothing that is offered is enough, and the message says which limits forbid it, by how much.
    """
    if goal not in GOALS:
        fix = "allowed: " + ", ".join(GOALS)
        raise InputError("is not allowed here", key="--goal", value=goal, fix=fix)
    from atoll.facts.measured import measured_in
    from atoll.fleet import Fleet
    from atoll.planning.offers import Offers
    from atoll.planning.ordertable import as_json
    from atoll.planning.planner import Asked
    from atoll.planning.purchase import purchase
    from atoll.recipe import Recipe

    day = _day(by)
    asked = Asked(
        measured=measured_in(facts) if facts is not None else {},
        rules=flags.chosen(rules, no_rules, refuse, hq),
    )
    read, stock, offered = Recipe.load(recipe, set_ or []), Fleet.load(fleet), Offers.load(offers)
    try:
        told = purchase(
            read, stock, offered, asked, goal=cast("Goal", goal), by=day, at=at, seconds=seconds,
            again=again,
        )  # fmt: skip
    except InputError as fault:
        if fault.file is None and (fault.key or "").startswith(OFFERS_KEYS):
            fault.file = str(offers)
        elif fault.file is None and (fault.key or "").startswith(FLEET_KEYS):
            fault.file = str(fleet)
        raise
    if json:
        print_json(as_json(told))
    else:
        _show(told)
    return 0


def _day(text: str | None) -> date | None:
    from datetime import date

    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        message = "is no date"
        raise InputError(message, key="--by", value=text, fix="write 2026-07-01") from None


def _show(told: Told) -> None:
    """The answer on one screen."""
    from rich.table import Table

    from atoll.planning.ordertable import headline, order_rows, sections

    console = wide_console()
    for name, value in headline(told):
        console.print(f"[bold]{name:<9}[/]{value}", soft_wrap=True)
    head, rows = order_rows(told.answer)
    if rows:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in head:
            side: Any = "right" if name in ("chips", "price", "cost") else "left"
            table.add_column(name, justify=side, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    for title, lines in sections(told):
        if lines:
            console.print(f"\n[dim]{title}[/]")
            for line in lines:
                console.print(f"  {line}", soft_wrap=True, markup=False)


COMMANDS = (orders,)
