"""Purchase: the whole question about orders, from the files' nouns to all that is told.

Rules first, then rates, then the programme. How it is shown is `ordertable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from atoll.fleet import Fleet
from atoll.planning.closing import Ruled, ruled_of
from atoll.planning.offers import Offers
from atoll.planning.orders import Goal, Ordered, orders
from atoll.planning.planner import Asked
from atoll.planning.rates import Rate, case_of, flops_a_token, together
from atoll.planning.shortage import NoOrders
from atoll.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer with what else is told: rates by offer, FLOP of a token, the planner's own tokens a
    second of the whole fleet that comes out (None: not asked, or no plan), and what rules refuse
    (None: not asked).
    """

    answer: Ordered
    rates: Mapping[str, Rate]
    flops_a_token: float
    together: float | None
    ruled: Ruled | None = None

    @property
    def added(self) -> float:
        """Tokens a second of the same chips, added up one by one; availability is not in it."""
        answer = self.answer
        day = (answer.last if answer.finish is None else answer.finish) - 1e-6
        speed = sum(one.speed for one in answer.case.own if one.day <= day)
        for order in answer.orders:
            if order.column.is_there(day):
                speed += order.chips * answer.case.speed[order.column.offer.name]
        return speed


def purchase(
    recipe: Recipe,
    fleet: Fleet,
    offers: Offers,
    asked: Asked,
    *,
    goal: Goal = "soonest",
    by: date | None = None,
    at: str | None = None,
    seconds: float = 5.0,
) -> Told:
    """What to buy or lease. `at` counts one site alone; `seconds` limits each solve.

    InputError for what is wrong in a file or a flag, its key that of the file; `NoOrders` where
    nothing is enough, with what rules refuse.
    """
    ruled = None if asked.rules is None else ruled_of(fleet, offers, asked.rules)
    fleet = fleet if ruled is None else ruled.fleet
    closed = () if ruled is None else ruled.closed
    case, rates = case_of(recipe, fleet, offers, asked, at=at, closed=closed)
    try:
        answer = orders(case, goal=goal, by=by, seconds=seconds)
    except NoOrders as none:
        raise none if ruled is None else none.beside("rules", ruled.lines()) from None
    whole = None if at is not None else together(recipe, fleet, answer, asked)
    return Told(
        answer=answer, rates=rates, flops_a_token=flops_a_token(recipe), together=whole,
        ruled=ruled,
    )  # fmt: skip
