"""Programme: offers under budgets, power and limits as whole numbers of lots in linear rows.

A column is so many lots of one offer ordered in one step of the calendar; a row says that a sum
over columns stays within something. HiGHS solves it (scipy.optimize.milp). Days are ordinals with
a fraction. Speeds are linear in the number of chips: what a fleet loses by being unlike or far
apart is not in here.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from atoll import units
from atoll.planning.case import DAY, Case
from atoll.planning.offers import Budget, Limit, Offer

GAP = 1e-4
"""Relative gap at which a solve may stop; the proved one is told."""

GOOD = 5e-4
"""Relative gap at which lots near the best fractions are good enough."""

NEAR = (3.0, 30.0)
"""Lots by which first searches in whole lots leave the best fractions."""

Group = tuple[str, str]
"""What rows belong to and can be loosened together: ("budget", name), ("power", site) ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A lot of an offer ordered in a step: when it computes, and what is paid when."""

    offer: Offer
    step: int
    ordered: float
    arrives: float
    ends: float
    payments: tuple[tuple[float, float], ...]
    currency: str

    def days_by(self, day: float) -> float:
        """Days that it has computed by a day."""
        return max(0.0, min(day, self.ends) - self.arrives)

    def is_there(self, day: float) -> bool:
        """Whether it stands at its site on a day."""
        return self.arrives <= day < self.ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """coefs @ x <= high. Loosened by u units: (coefs + u * give_coefs) @ x <= high + u * give.

    `day` is that of a row of power.
    """

    group: Group
    coefs: Any
    high: float
    give: float = 1.0
    give_coefs: Any = None
    day: float | None = None

    @property
    def places(self) -> Any:
        """The columns in it."""
        return np.flatnonzero(self.coefs)

    def loosened(self, by: float) -> Row:
        """The row with so many units more."""
        coefs = self.coefs if self.give_coefs is None else self.coefs + by * self.give_coefs
        return replace(self, coefs=coefs, high=self.high + by * self.give)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """Lots by column; the objective, the bound that is proved for it, the relative gap."""

    lots: Any
    value: float
    bound: float
    gap: float


class Undecided(Exception):
    """The solver's time was over before it had an answer."""


@dataclass(frozen=True)
class Programme:
    """The columns and rows of a case."""

    case: Case

    @cached_property
    def bounds(self) -> list[float]:
        """The boundaries of the steps."""
        return self.case.offers.boundaries()

    @cached_property
    def columns(self) -> list[Column]:
        """Every order that some budget may pay, by offer and step."""
        found = []
        for offer in self.case.offers.offer:
            for step, (begin, end) in enumerate(pairwise(self.bounds)):
                ordered = max(begin, offer.since.toordinal() if offer.since else begin)
                if ordered < end and offer.holds(ordered):
                    column = self._column(offer, step, ordered)
                    paid = [any(self._covers(b, column, d) for b in self.case.offers.budget)
                            for d, _ in column.payments]  # fmt: skip
                    days = (column.ordered, column.arrives)
                    if all(paid) and not self.case.is_closed(offer.name, *days):
                        found.append(column)
        return found

    def _column(self, offer: Offer, step: int, ordered: float) -> Column:
        """A lot ordered on a day; a lease is paid step by step while it lasts."""
        arrives, (price, currency) = ordered + offer.lead_days, offer.money()
        if offer.kind == "buy":
            return Column(
                offer=offer, step=step, ordered=ordered, arrives=arrives, ends=math.inf,
                payments=((ordered, price * offer.lot),), currency=currency,
            )  # fmt: skip
        usual = self.bounds[step + 1] - self.bounds[step]
        ends = arrives + (units.parse_seconds(offer.term) / DAY if offer.term else usual)
        edges = [arrives, *(day for day in self.bounds if arrives < day < ends), ends]
        spans = pairwise(edges)
        return Column(
            offer=offer, step=step, ordered=ordered, arrives=arrives, ends=ends, currency=currency,
            payments=tuple((a, price * offer.lot * DAY * (b - a)) for a, b in spans),
        )  # fmt: skip

    def _covers(self, budget: Budget, column: Column, day: float) -> bool:
        """Whether a budget pays what a column costs on a day."""
        if not self.case.is_at(column.offer.site, budget.place) or not budget.holds(day):
            return False
        return budget.converts or budget.currency == column.currency

    def _vector(self, values: Iterable[float]) -> Any:
        return np.fromiter(values, dtype=float, count=len(self.columns))

    @cached_property
    def cost(self) -> Any:
        """What a lot of each column costs in all, in the one currency."""
        offers = self.case.offers
        return self._vector(
            offers.rate(c.currency, offers.added_in) * sum(amount for _, amount in c.payments)
            for c in self.columns
        )

    def tokens_by(self, day: float) -> Any:
        """The tokens that a lot of each column has computed by a day."""
        seconds = self.case.offers.availability * DAY
        return self._vector(
            self.case.speed[c.offer.name] * c.offer.lot * seconds * c.days_by(day)
            for c in self.columns
        )

    def speed_on(self, day: float, lots: Any) -> float:
        """Tokens a second on a day, the fleet's own chips among them."""
        own = sum(one.speed for one in self.case.own if one.day <= day)
        each = (self.case.speed[c.offer.name] * c.offer.lot * c.is_there(day) for c in self.columns)
        return self.case.offers.availability * (own + float(self._vector(each) @ lots))

    def spent(self, budget: Budget) -> Any:
        """What a lot of each column costs a budget, in its currency."""
        rate = self.case.offers.rate
        return self._vector(
            sum(
                amount * rate(c.currency, budget.currency)
                for day, amount in c.payments
                if self._covers(budget, c, day)
            )
            for c in self.columns
        )

    @cached_property
    def rows(self) -> list[Row]:
        """Budgets, limits, stock and power, in this order."""
        offers = self.case.offers
        found = [
            Row(group=("budget", one.name), coefs=self.spent(one), high=one.number)
            for one in offers.budget
        ]
        found += [self._limit(one) for one in offers.limit]
        for offer in offers.offer:
            found += self._stock(offer)
        for site, watts in self.case.power.items():
            found += self._power(site, watts)
        return found

    def _limit(self, limit: Limit) -> Row:
        """A share of the spend at a place; a unit loosens it by the whole (1.0)."""
        here = self._vector(self.case.is_at(c.offer.site, limit.place) for c in self.columns)
        named = self._vector(c.offer.seller in limit.sellers for c in self.columns)
        spend = self.cost * here
        if limit.at_least is not None:
            coefs = spend * (limit.at_least - named)
        else:
            coefs = spend * (named - (limit.at_most or 0.0))
        name = ("limit", limit.name)
        return Row(group=name, coefs=coefs, high=0.0, give=0.0, give_coefs=-spend)

    def _stock(self, offer: Offer) -> list[Row]:
        """What is there in all (of a lease: at a time), and what is taken in a month."""
        mine = [c.offer is offer for c in self.columns]
        if offer.kind == "buy":
            held = [self._vector(mine)]
        else:
            days = [c.arrives for c, own in zip(self.columns, mine, strict=True) if own]
            held = [
                self._vector(
                    own and c.is_there(day) for c, own in zip(self.columns, mine, strict=True)
                )
                for day in days
            ]
        rows = [
            Row(group=("stock", offer.name), coefs=offer.lot * one, high=_whole(offer, offer.stock))
            for one in held
        ]
        if offer.a_month is not None:
            most, give = offer.a_month * self.case.offers.step_months, self.case.offers.step_months
            for step in range(len(self.bounds) - 1):
                here = self._vector(c.offer is offer and c.step == step for c in self.columns)
                if here.any():
                    group = ("pace", offer.name)
                    coefs = offer.lot * here
                    rows.append(
                        Row(group=group, coefs=coefs, high=_whole(offer, most), give=float(give))
                    )
        return rows

    def _power(self, site: str, watts: float) -> list[Row]:
        """At every instant at which something begins: what stands there draws at most the power."""
        start, end = self.bounds[0], self.bounds[-1]
        days = {start, *(c.arrives for c in self.columns if c.offer.site == site)}
        days |= {max(start, one.day) for one in self.case.own if one.site == site}
        found: list[Row] = []
        for day in sorted(days, reverse=True):
            if day >= end:
                continue
            coefs = self._vector(
                self.case.watts[c.offer.name] * c.offer.lot
                if c.offer.site == site and c.is_there(day) else 0.0
                for c in self.columns
            )  # fmt: skip
            high = watts - self.case.own_watts(site, day)
            if not any(high >= row.high and bool((coefs <= row.coefs).all()) for row in found):
                found.append(Row(group=("power", site), coefs=coefs, high=high, day=day))
        return found

    def tokens_row(self, step: int, tokens: float | None = None) -> Row:
        """The tokens are done by the end of a step."""
        day = self.bounds[step + 1]
        wanted = self.case.tokens if tokens is None else tokens
        high = self.case.own_tokens(day) - wanted
        return Row(group=("tokens", ""), coefs=-self.tokens_by(day), high=high)

    def most_tokens(self, rows: Sequence[Row], last: int) -> float:
        """Tokens that fractions of lots compute by the end of a step: whole lots do no more."""
        day = self.bounds[last + 1]
        found = self.solve(-self.tokens_by(day), rows, last=last, whole=False)
        return -math.inf if found is None else self.case.own_tokens(day) - found.value

    def solve(
        self,
        least: Any,
        rows: Sequence[Row],
        *,
        last: int,
        whole: bool = True,
        seconds: float = 10.0,
        slack: Sequence[tuple[Group, float]] = (),
        near: tuple[Any, float] | None = None,
    ) -> Solved | None:
        """The lots for which `least` @ x is least; None if the rows allow none.

        Orders after step `last` are not placed. `whole` asks for whole lots. Each `slack` is a
        group that may be loosened, at a cost of so much a unit, and is an entry of `lots` behind
        the columns. `near` keeps to lots so near to some. Raises `Undecided` if the time is over
        before there is any answer.
        """
        num, extra = len(self.columns), len(slack)
        costs = np.concatenate([least, [price for _, price in slack]])
        if num + extra == 0:
            fits = all(row.high >= 0 for row in rows)
            return Solved(lots=np.zeros(0), value=0.0, bound=0.0, gap=0.0) if fits else None
        groups = [group for group, _ in slack]
        alone, others = _parted(rows, groups)
        a, high = _matrix(others, num, groups)
        open_ = self._vector(c.step <= last for c in self.columns) > 0
        upper = np.concatenate([np.where(open_, np.inf, 0.0), np.full(extra, np.inf)])
        for row, index in alone:
            most = row.high / row.coefs[index]
            upper[index] = min(upper[index], math.floor(most + 1e-9) if whole else most)
        lower = np.zeros(num + extra)
        if near is not None:
            lots, reach = near
            lower[:num] = np.maximum(0.0, np.floor(lots) - reach)
            upper[:num] = np.minimum(upper[:num], np.ceil(lots) + reach)
            lower = np.minimum(lower, upper)
        if (upper < 0).any():
            return None
        bounds = (lower, upper)
        result, scale = _highs(costs, a, high, bounds, num if whole else 0, seconds)
        if result.status == 2:
            return None
        if result.x is None:
            raise Undecided
        if not whole:
            value = float(costs @ result.x)
            return Solved(lots=result.x, value=value, bound=value, gap=0.0)
        lots = np.concatenate([np.rint(result.x[:num]), result.x[num:]])
        value, bound = float(costs @ lots), float(result.mip_dual_bound) * scale
        gap = abs(value - bound) / abs(value) if value else 0.0
        return Solved(lots=lots, value=value, bound=bound, gap=gap)

    def best(self, least: Any, rows: Sequence[Row], *, last: int, seconds: float) -> Solved | None:
        """The whole lots for which `least` @ x is least, as `solve`.

        Where lots are small beside what is bought, lots near the best fractions are all but as
        good, which the fractions themselves prove; only where they are not, all lots are searched.
        """
        clocks = time.perf_counter(), time.process_time()
        relaxed = self.solve(least, rows, last=last, whole=False)
        if relaxed is None:
            return None
        # The solver's limit is wall time: where others use the machine too it gets more of it.
        crowd = _crowd(time.perf_counter() - clocks[0], time.process_time() - clocks[1])
        begun, found = time.perf_counter(), list[Solved]()
        limits = [*((reach, 0.35 * seconds) for reach in NEAR), (None, seconds)]
        for reach, limit in limits:
            spent = (time.perf_counter() - begun) / crowd
            left = crowd * max(0.1, min(limit, seconds - spent))
            near = None if reach is None else (relaxed.lots, reach)
            with contextlib.suppress(Undecided):
                again = self.solve(least, rows, last=last, seconds=left, near=near)
                if again is None and reach is None:
                    return None
                if again is not None:
                    bound = relaxed.bound if reach is not None else again.bound
                    found.append(_proved(again, max(relaxed.bound, bound)))
            if any(one.gap <= GOOD for one in found):
                break
        if not found:
            raise Undecided
        best = min(found, key=lambda one: one.value)
        return _proved(best, max(one.bound for one in found))

    def violated(self, lots: Any, rows: Sequence[Row]) -> list[Group]:
        """Groups whose rows the lots break by more than a millionth: a check of the solver."""
        return [
            row.group
            for row in rows
            if float(row.coefs @ lots) - row.high > 1e-6 * max(abs(row.high), _largest(row.coefs))
        ]


def _crowd(wall: float, processor: float) -> float:
    """How many times as long something takes because others use the machine too, 1 to 4."""
    return min(4.0, max(1.0, wall / processor)) if processor > 0.01 else 1.0


def _whole(offer: Offer, chips: int) -> float:
    """The chips that whole lots make of so many: what fractions of lots may not exceed either."""
    return float(chips // offer.lot * offer.lot)


def _proved(found: Solved, bound: float) -> Solved:
    """A solution with the gap to a bound that is proved elsewhere."""
    gap = max(0.0, found.value - bound) / abs(found.value) if found.value else 0.0
    return replace(found, bound=bound, gap=gap)


def _largest(coefs: Any) -> float:
    return float(np.abs(coefs).max(initial=0.0))


def _parted(rows: Sequence[Row], slack: Sequence[Group]) -> tuple[list[tuple[Row, int]], list[Row]]:
    """Rows that bound one column alone, with its index, and the others."""
    alone: list[tuple[Row, int]] = []
    others: list[Row] = []
    for row in rows:
        places = row.places
        if len(places) == 1 and row.coefs[places[0]] > 0 and row.group not in slack:
            alone.append((row, int(places[0])))
        else:
            others.append(row)
    return alone, others


def _matrix(rows: Sequence[Row], num: int, slack: Sequence[Group]) -> tuple[Any, Any]:
    """The rows, each divided by its largest entry, with a column for every slack; right sides."""
    from scipy.sparse import csr_array

    high, values, columns, ends = np.zeros(len(rows)), list[Any](), list[Any](), [0]
    for index, row in enumerate(rows):
        scale = _largest(row.coefs) or max(abs(row.high), 1.0)
        high[index] = row.high / scale
        own = [num + place for place, group in enumerate(slack) if row.group == group]
        columns += [row.places, np.array(own, dtype=np.intp)]
        values += [row.coefs[row.places] / scale, np.full(len(own), -row.give / scale)]
        ends.append(ends[-1] + len(row.places) + len(own))
    if not rows:
        return None, high
    content = (np.concatenate(values), np.concatenate(columns), np.array(ends))
    return csr_array(content, shape=(len(rows), num + len(slack))), high


def _highs(
    costs: Any, a: Any, high: Any, bounds: tuple[Any, Any], whole: int, seconds: float
) -> tuple[Any, float]:
    """scipy's result and the number by which its objective is to be multiplied."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    scale = _largest(costs) or 1.0
    constraints = LinearConstraint(a, -np.inf, high) if len(high) else ()
    result = milp(
        costs / scale,
        integrality=np.arange(len(costs)) < whole,
        bounds=Bounds(*bounds),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )
    return result, scale


def without(rows: Sequence[Row], group: Group) -> list[Row]:
    """The rows that are not of a group."""
    return [row for row in rows if row.group != group]


def loosened(rows: Sequence[Row], group: Group, by: float) -> list[Row]:
    """The rows with a group loosened by so many units."""
    return [row.loosened(by) if row.group == group else row for row in rows]
