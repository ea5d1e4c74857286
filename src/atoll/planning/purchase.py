"""Purchase: the whole question about orders, from the files' nouns to all that is told.

Rules first, then rates, then the programme and the planner in turn. `ordertable` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from atoll.fleet import Fleet
from atoll.planning.agreeing import AGAIN, Agreed, agreed
from atoll.planning.closing import Ruled, ruled_of
from atoll.planning.ends import Ends, ends_of
from atoll.planning.joint import Joint
from atoll.planning.offers import Offers
from atoll.planning.orders import Ordered
from atoll.planning.planner import Asked
from atoll.planning.rates import Rate, case_of, flops_a_token
from atoll.planning.shortage import NoOrders
from atoll.planning.worth import Goal
from atoll.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer with what else is told: how it came about and how far the orders come by the
    planner (`agreed`), the ends of what is not known, rates by offer, FLOP of a token, and what
    rules refuse (None: not asked).
    """

    agreed: Agreed
    ends: Ends
    rates: Mapping[str, Rate]
    flops_a_token: float
    ruled: Ruled | None = None

    @property
    def answer(self) -> Ordered:
        """The orders."""
        return self.agreed.answer

    @property
    def standing(self) -> tuple[float, float]:
        """(tokens a second of all that stands at the end, added up; the planner's for them as one
        run); availability is in neither.
        """
        answer, finish = self.answer, self.agreed.finish
        end = answer.last if answer.goal == "largest" or finish is None else finish
        added, rate = self.agreed.progress.standing(end)
        return added, rate / answer.case.offers.availability


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
    again: int = AGAIN,
) -> Told:
    """What to buy or lease. `at` counts one site alone; `seconds` limits each solve, `again` how
    often the programme is solved again until the planner agrees.

    InputError for what is wrong in a file or a flag, its key that of the file; `NoOrders` where
    nothing is enough, with what rules refuse.
    """
    ruled = None if asked.rules is None else ruled_of(fleet, offers, asked.rules)
    fleet = fleet if ruled is None else ruled.fleet
    closed = () if ruled is None else ruled.closed
    case, rates = case_of(recipe, fleet, offers, asked, at=at, closed=closed)
    joint = Joint(recipe, fleet, case.offers, asked, at=at)
    try:
        found = agreed(case, joint, goal=goal, by=by, seconds=seconds, again=again)
    except NoOrders as none:
        raise none if ruled is None else none.beside("rules", ruled.lines()) from None
    return Told(
        agreed=found, ends=ends_of(found, joint), rates=rates,
        flops_a_token=flops_a_token(recipe), ruled=ruled,
    )  # fmt: skip
