"""Ends: what fixed orders come to where deliveries, lead times, speeds and prices are at their best
or at their worst. The orders are those of the mid numbers; nothing is solved again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atoll.planning.agreeing import Agreed
from atoll.planning.programme import Column
from atoll.planning.progress import OPPOSITE, Speeds, progress
from atoll.supply import Which

WHICH: tuple[Which, ...] = ("low", "mid", "high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The same orders at both ends. Days are ordinals; "low" of `done_by` is the earliest (many
    chips, soon, fast), None is not in the calendar. `tokens` are those by the end of the step that
    counts, `cost` is in the one currency, `spend` by budget in its own.
    """

    done_by: Mapping[Which, float | None]
    tokens: Mapping[Which, float]
    cost: Mapping[Which, float]
    spend: Mapping[str, Mapping[Which, float]]

    def overrun(self, budget: str, amount: float) -> float:
        """By how much a budget is too small if prices are high."""
        return max(0.0, self.spend[budget]["high"] - amount * (1 + 1e-9))


def ends_of(found: Agreed, speeds: Speeds) -> Ends:
    """What the orders come to at both ends; the planner is not asked again."""
    answer, case, asked = found.answer, found.case, found.progress.asked
    made = {
        which: found.progress
        if which == "mid"
        else progress(case, answer, speeds, which=which, asked=asked)
        for which in WHICH
    }
    programme, offers = answer.basis.programme, case.offers
    dearer = {
        which: np.array([_price(one, which) / _price(one, "mid") for one in programme.columns])
        for which in WHICH
    }
    lots = {which: ratio * answer.basis.lots for which, ratio in dearer.items()}
    return Ends(
        done_by={which: made[OPPOSITE[which]].finish(case.tokens) for which in WHICH},
        tokens={which: made[which].tokens_by(answer.last) for which in WHICH},
        cost={which: float(programme.cost @ lots[which]) for which in WHICH},
        spend={
            one.name: {which: float(programme.spent(one) @ lots[which]) for which in WHICH}
            for one in offers.budget
        },
    )


def _price(column: Column, which: Which) -> float:
    """The price of a chip at one end, in the offer's currency."""
    return column.offer.at(which).money()[0]
