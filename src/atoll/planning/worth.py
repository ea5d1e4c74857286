"""Worth: what one more unit of money, power, stock or of a limit brings, and one more chip.

From solving again with a little more of it, lots relaxed to fractions: one unit is less than the
gap of a solve in whole lots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal

import numpy as np

from atoll.planning.case import DAY, Case
from atoll.planning.programme import Column, Group, Programme, Row, Solved

Goal = Literal["soonest", "cheapest", "largest"]
NUDGE = 1e-3
"""By so much of itself a budget or a power is raised to see what it is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What one more unit of a thing brings: less cost, or more tokens by the end."""

    group: Group
    unit: str
    value: float
    days: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A relaxed solution and what it was the least of; `speed` is tokens a second at the end."""

    programme: Programme
    goal: Goal
    last: int
    least: Any
    rows: Sequence[Row]
    base: Solved
    speed: float

    def brings(self, rows: Sequence[Row]) -> float:
        """How much less the least is with other rows; 0 if that cannot be told from nothing."""
        again = self.programme.solve(self.least, rows, last=self.last, whole=False)
        if again is None or self.base.value - again.value <= 1e-7 * abs(self.base.value):
            return 0.0
        return self.base.value - again.value

    def worth(self, group: Group, unit: str, value: float) -> Worth:
        """A worth, and its days where the goal is not money."""
        no_days = self.goal == "cheapest" or self.speed <= 0
        days = None if no_days else value / self.speed / DAY
        return Worth(group=group, unit=unit, value=value, days=days)


def worths(
    programme: Programme, goal: Goal, lots: Any, last: int
) -> tuple[list[Worth], list[Worth]]:
    """(what one more unit of each thing is worth, the things that are worth nothing left out;
    what one more chip of each kind would be worth that cost nothing).

    "cheapest": money saved; else tokens more by the end of the step, and the days that the speed at
    its end needs for them.
    """
    day, rows = programme.bounds[last + 1], list(programme.rows)
    if goal == "cheapest":
        least, rows = programme.cost, [*rows, programme.tokens_row(last)]
    else:
        least = -programme.tokens_by(day)
    base = programme.solve(least, rows, last=last, whole=False)
    if base is None:
        return [], []
    asked = _Asked(
        programme=programme, goal=goal, last=last, least=least, rows=rows, base=base,
        speed=programme.speed_on(day - 1e-6, lots),
    )  # fmt: skip
    return list(_units(asked)), list(_chips(asked))


def _units(asked: _Asked) -> Iterator[Worth]:
    """What one more unit of money, power, stock, monthly pace or of a limit is worth."""
    # A row with room to spare is worth nothing: without it the same lots are best.
    lots = asked.base.lots
    tight = (row for row in asked.rows if row.high - float(row.coefs @ lots) <= _room(row))
    for group in dict.fromkeys(row.group for row in tight if row.group[0] != "tokens"):
        by, unit = _nudge(asked.programme.case, group)
        more = [row.loosened(by) if row.group == group else row for row in asked.rows]
        value = asked.brings(more) / by
        if value:
            yield asked.worth(group, unit, value)


def _chips(asked: _Asked) -> Iterator[Worth]:
    """What one more chip of each kind is worth that is there, for nothing, from the first day on
    which one of its kind may arrive, and draws its power.
    """
    programme, case = asked.programme, asked.programme.case
    first: dict[str, Column] = {}
    for column in sorted(programme.columns, key=lambda one: (one.arrives, one.offer.name)):
        first.setdefault(column.offer.chip, column)
    day = programme.bounds[asked.last + 1]
    for chip, column in first.items():
        offer, number = column.offer, column.offer.lot
        spans = max(0.0, day - column.arrives) * DAY * case.offers.availability
        tokens, watts = number * case.speed[offer.name] * spans, number * case.watts[offer.name]
        if not tokens:
            continue
        shifted = [
            _with_chips(row, offer.site, column.arrives, watts, tokens) for row in asked.rows
        ]
        again = programme.solve(asked.least, shifted, last=asked.last, whole=False)
        if again is None:  # no room for its power beside what must be there
            continue
        value = asked.base.value - again.value + (0.0 if asked.goal == "cheapest" else tokens)
        when = date.fromordinal(int(column.arrives))
        name = f"{chip} at {offer.site} from {when}"
        yield asked.worth(("chip", name), "chip", value / number)


def _with_chips(row: Row, site: str, day: float, watts: float, tokens: float) -> Row:
    """A row beside chips that stand at a site from a day on and bring tokens by the end."""
    kind, name = row.group
    if kind == "power" and name == site and row.day is not None and row.day >= day:
        return replace(row, high=row.high - watts)
    return replace(row, high=row.high + tokens) if kind == "tokens" else row


def _room(row: Row) -> float:
    return 1e-6 * max(abs(row.high), float(np.abs(row.coefs).max(initial=0.0)))


def _nudge(case: Case, group: Group) -> tuple[float, str]:
    """By how much a group is loosened to see what it is worth, and the unit of that."""
    kind, name = group
    if kind == "budget":
        budget = next(one for one in case.offers.budget if one.name == name)
        return max(1.0, NUDGE * budget.number), budget.currency
    if kind == "power":
        return max(1.0, NUDGE * case.power[name]), "W"
    if kind == "limit":
        return NUDGE, "of the whole spend"
    offer = next(one for one in case.offers.offer if one.name == name)
    unit = "chip" if kind == "stock" else "chip a month"
    return max(float(offer.lot), NUDGE * offer.stock), unit
