"""Orders: what to buy or lease when, to finish soonest, or cheapest by a day, or to train the
largest model.

The answer is of whole lots, with the gap that the solver proved. What one more unit of money,
power or a chip would be worth comes from solving again with a little more of it, lots relaxed to
fractions: one unit is less than the gap of a solve in whole lots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np

from atoll.errors import InputError
from atoll.planning.case import Case
from atoll.planning.programme import (
    GAP,
    Column,
    Programme,
    Row,
    Solved,
    Undecided,
)
from atoll.planning.shortage import NoOrders, explain
from atoll.planning.what import TOKENS_A_PARAMETER
from atoll.planning.worth import Goal, Worth, worths


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """So many lots of an offer ordered on a day; `cost` in the offer's currency."""

    column: Column
    lots: int

    @property
    def chips(self) -> int:
        """The chips of the order."""
        return self.lots * self.column.offer.lot

    @property
    def cost(self) -> float:
        """What it costs in all, in the currency of its offer."""
        return self.lots * sum(amount for _, amount in self.column.payments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What an answer was found from: the programme, lots by column, the step that counts."""

    programme: Programme
    lots: Any
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """What to order, and what that comes to. Days are ordinals.

    `worths` are of what binds, `chips` of one more chip in hand of each kind. `unusable` are offers
    that are out of the calendar, or that no budget covers on the day.
    """

    case: Case
    goal: Goal
    orders: tuple[Order, ...]
    last: float
    finish: float | None
    tokens: float
    cost: float
    spend: tuple[tuple[str, float], ...]
    gap: float
    bound: float
    proof: str
    worths: tuple[Worth, ...]
    chips: tuple[Worth, ...]
    unusable: tuple[str, ...]
    seconds: float
    basis: Basis

    def finish_day(self) -> date | None:
        """The day on which the last token is done."""
        return None if self.finish is None else date.fromordinal(math.floor(self.finish))


def orders(
    case: Case,
    *,
    goal: Goal = "soonest",
    by: date | None = None,
    seconds: float = 5.0,
    priced: bool = True,
) -> Ordered:
    """The best orders. InputError for a day that cannot be; `NoOrders` if nothing is enough.

    `seconds` limits each solve in whole lots; the gap says how far it came. Unless `priced`, what
    one more unit is worth is left out (`with_worths` adds it).
    """
    begun = time.perf_counter()
    programme = Programme(case)
    last = _last_step(programme, goal, by)
    rows = programme.rows
    try:
        if goal == "largest":
            found, proof = _largest(programme, rows, last, seconds)
        else:
            if goal == "soonest":
                last = _first_enough(programme, rows, last)
            last, found, proof = _cheapest(programme, rows, last, seconds, later=goal == "soonest")
    except Undecided:
        message = f"the solver found no orders within {seconds:g} s"
        raise NoOrders(f"{message}\n  give it more time: --seconds {3 * seconds:g}") from None
    broken = programme.violated(found.lots, rows)
    assert not broken, f"the solver's lots break {broken}"
    answer = _ordered(programme, goal, found, last, proof, begun)
    return with_worths(answer) if priced else answer


def _last_step(programme: Programme, goal: Goal, by: date | None) -> int:
    """The last step that ends by the day. InputError for a day outside the calendar."""
    bounds = programme.bounds
    if by is None:
        if goal != "soonest":
            fix = "--by 2026-07-01, or --goal soonest"
            raise InputError(f'goal "{goal}" needs a day to be done by', key="--by", fix=fix)
        return len(bounds) - 2
    day = by.toordinal()
    if not bounds[1] <= day <= bounds[-1]:
        first, final = (date.fromordinal(int(bounds[i])) for i in (1, -1))
        fix = f"a day from {first} to {final}, or more months in the offers file"
        raise InputError("is outside the months of the file", key="--by", value=str(by), fix=fix)
    return max(step for step in range(len(bounds) - 1) if bounds[step + 1] <= day)


def _first_enough(programme: Programme, rows: Sequence[Row], last: int) -> int:
    """The first step by whose end enough tokens could be done by fractions of lots (bisection)."""
    if programme.most_tokens(rows, last) < programme.case.tokens * (1 - 1e-9):
        raise explain(programme, rows, last)
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        if programme.most_tokens(rows, middle) < programme.case.tokens * (1 - 1e-9):
            low = middle + 1
        else:
            high = middle
    return low


def _cheapest(
    programme: Programme, rows: Sequence[Row], last: int, seconds: float, *, later: bool
) -> tuple[int, Solved, str]:
    """The cheapest lots that are done by the end of a step, or of the first later one where whole
    lots are enough. `NoOrders` if there are none.
    """
    proof, final = "", len(programme.bounds) - 2
    while True:
        why = "no whole lots are done by {}, although fractions would be"
        enough = [*rows, programme.tokens_row(last)]
        try:
            found = programme.best(programme.cost, enough, last=last, seconds=seconds)
        except Undecided:
            if not later:
                raise
            found = _enough(programme, enough, last, seconds)
            if found is None and last == final:
                raise
            why = "whether whole lots are done by {} was not decided in the time"
        if found is not None:
            return last, found, proof or (_proof(programme, rows, last) if later else "")
        if not later or last == final:
            raise explain(programme, rows, last)
        day = date.fromordinal(int(programme.bounds[last + 1]))
        last, proof = last + 1, why.format(day)


def _enough(programme: Programme, enough: list[Row], last: int, seconds: float) -> Solved | None:
    """Lots that are enough whatever they cost, where the cheapest were not found in the time: those
    with the most tokens. The gap is to the cost of the cheapest fractions.
    """
    tokens = programme.tokens_by(programme.bounds[last + 1])
    try:
        found = programme.best(-tokens, enough[:-1], last=last, seconds=seconds)
    except Undecided:
        return None
    relaxed = programme.solve(programme.cost, enough, last=last, whole=False)
    if found is None or relaxed is None or programme.violated(found.lots, enough):
        return None
    value = float(programme.cost @ found.lots)
    gap = (value - relaxed.value) / value if value else 0.0
    return Solved(lots=found.lots, value=value, bound=relaxed.value, gap=gap)


def _proof(programme: Programme, rows: Sequence[Row], last: int) -> str:
    """Why no orders are done a step sooner."""
    if last == 0:
        return "it is the first step"
    most = max(0.0, programme.most_tokens(rows, last - 1)) / programme.case.tokens
    day = date.fromordinal(int(programme.bounds[last]))
    return f"by {day} no orders compute more than {100 * most:.1f} % of the tokens"


def _largest(
    programme: Programme, rows: Sequence[Row], last: int, seconds: float
) -> tuple[Solved, str]:
    """The lots with the most tokens by the end of a step, and among those the cheapest."""
    day = programme.bounds[last + 1]
    tokens = programme.tokens_by(day)
    dear = programme.solve(-programme.cost, rows, last=last, whole=False)
    if dear is None:
        raise explain(programme, rows, last, tokens=0.0)
    # Money counts so little that all of it together outweighs a fifth of the gap.
    most = programme.most_tokens(rows, last) - programme.case.own_tokens(day)
    weight = 0.2 * GAP * most / -dear.value if dear.value < 0 else 0.0
    found = programme.best(weight * programme.cost - tokens, rows, last=last, seconds=seconds)
    if found is None:
        raise explain(programme, rows, last, tokens=0.0)
    own = programme.case.own_tokens(day)
    value, bound = own + float(tokens @ found.lots), own - found.bound - weight * dear.value
    gap = max(0.0, bound - value) / value if value else 0.0
    return Solved(lots=found.lots, value=value, bound=bound, gap=gap), ""


def tokens_on(programme: Programme, lots: Any, day: float) -> float:
    """Tokens that the fleet and the lots have computed by a day."""
    return programme.case.own_tokens(day) + float(programme.tokens_by(day) @ lots)


def _finish(programme: Programme, lots: Any, last: float) -> float | None:
    """The instant at which the recipe's tokens are done, None if not by the last day."""
    start, wanted = programme.bounds[0], programme.case.tokens * (1 - 2e-6)
    if tokens_on(programme, lots, last) < wanted:
        return None
    low, high = start, last
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if tokens_on(programme, lots, middle) >= wanted else (middle, high)
        )
    return high


def _ordered(
    programme: Programme, goal: Goal, found: Solved, last: int, proof: str, begun: float
) -> Ordered:
    """A solution with everything that people ask about it."""
    case, lots, day = programme.case, found.lots, programme.bounds[last + 1]
    placed = tuple(
        Order(column=column, lots=int(number))
        for column, number in zip(programme.columns, lots, strict=True)
        if number > 0.5
    )
    usable = {column.offer.name for column in programme.columns}
    spend = tuple((one.name, float(programme.spent(one) @ lots)) for one in case.offers.budget)
    finish = None if goal == "largest" else _finish(programme, lots, day)
    return Ordered(
        case=case, goal=goal, orders=tuple(sorted(placed, key=lambda one: one.column.ordered)),
        last=day, finish=finish, tokens=tokens_on(programme, lots, day),
        cost=float(programme.cost @ lots), spend=spend, gap=found.gap, bound=found.bound,
        proof=proof, worths=(), chips=(), basis=Basis(programme=programme, lots=lots, last=last),
        unusable=tuple(one.name for one in case.offers.offer if one.name not in usable),
        seconds=time.perf_counter() - begun,
    )  # fmt: skip


def with_worths(answer: Ordered, case: Case | None = None) -> Ordered:
    """The answer with what one more unit of each thing is worth; `case` holds other speeds."""
    begun, basis = time.perf_counter(), answer.basis
    programme = basis.programme if case is None else Programme(case)
    found, chips = worths(programme, answer.goal, basis.lots, basis.last)
    seconds = answer.seconds + time.perf_counter() - begun
    return replace(answer, worths=tuple(found), chips=tuple(chips), seconds=seconds)


def by_budget(answer: Ordered) -> list[tuple[str, float, float, str]]:
    """(budget, spent, amount, currency) of each budget."""
    budgets = {one.name: one for one in answer.case.offers.budget}
    return [(n, s, budgets[n].number, budgets[n].currency) for n, s in answer.spend]


def largest_model(computed: float, flops_a_token: float) -> tuple[float, float, float]:
    """(FLOP, parameters, tokens) of the largest dense model on 20 tokens a parameter.

    C = 6 N D with D = 20 N (Hoffmann et al. 2022, arXiv:2203.15556, table 3), and C what the
    recipe's model would compute in the same time: so many tokens.
    """
    flops = computed * flops_a_token
    parameters = float(np.sqrt(flops / (6 * TOKENS_A_PARAMETER)))
    return flops, parameters, TOKENS_A_PARAMETER * parameters
