"""Joint: what all chips of a day do as one run over their links, by the planner itself.

Own chips are the fleet's islands; what is ordered stands beside them as islands of its own, one for
each chip, site and network of the offers. Failures are not counted here: `availability` is. Nor is
the sites' power, which the programme keeps.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from atoll.fleet import Fleet, Shares
from atoll.planning.calendar import Rated, Rates, stock_of
from atoll.planning.offers import Offers
from atoll.planning.planner import Answer, Asked
from atoll.planning.rates import island_of
from atoll.recipe import Recipe
from atoll.supply import Failures, Which


@dataclass(frozen=True, slots=True, kw_only=True)
class Stood:
    """The chips of a day as one run: tokens a second, and each island's part of them (sum 1)."""

    low: float
    mid: float
    high: float
    parts: Mapping[str, float]


class Joint:
    """The planner's speeds of a fleet with its orders; each stock is planned once."""

    def __init__(
        self, recipe: Recipe, fleet: Fleet, offers: Offers, asked: Asked, *, at: str | None = None
    ) -> None:
        """For chips of these offers beside a fleet's own; `at` counts those of one site alone."""
        own = [one for one in fleet.island if at in (None, one.site)]
        sites, of = {one.name: one.site for one in own}, dict[str, str]()
        islands, names = list(own), dict[tuple[str, str, str], str]()
        for offer in offers.offer:
            key = (offer.chip, offer.site, str(offer.network))
            if key not in names:
                names[key] = _free_name(len(names), sites)
                sites[names[key]] = offer.site
                new = island_of(offer, site=offer.site)
                islands.append(new.model_copy(update={"name": names[key]}))
            of[offer.name] = names[key]
        self.fleet = fleet.model_copy(update={"island": own})
        self.island: Mapping[str, str] = of
        self.sites: Mapping[str, str] = sites
        self.changes: Sequence[float] = [
            float(day.toordinal()) for day in fleet.change_days(offers.start)
        ]
        whole = fleet.model_copy(
            update={
                "island": [one.model_copy(update={"share": None}) for one in islands],
                "site": [one.model_copy(update={"power": None}) for one in fleet.site],
                "delivery": [], "withdrawal": [], "shares": Shares(),
                "failures": Failures(mode="none"),
            }
        )  # fmt: skip
        self.rates = Rates(recipe, whole, replace(asked, day=None, rules=None))

    def own(self, day: float, which: Which) -> dict[str, int]:
        """Island -> the fleet's own chips on a day (an ordinal), in whole nodes."""
        names = {one.name for one in self.fleet.island}
        there = stock_of(self.fleet, date.fromordinal(int(day)), which) if names else {}
        return {name: number for name, number in there.items() if name in names}

    def of(self, chips: Mapping[str, int]) -> Stood:
        """What chips by island do together; of sites without a link the best one alone."""
        rated = self.rates.of(chips)
        if rated.answer is None:
            alone = [
                self.rates.of({name: n for name, n in chips.items() if self.sites[name] == site})
                for site in dict.fromkeys(self.sites[name] for name in chips)
            ]
            rated = max(alone, key=lambda one: one.rate(), default=rated)
        return _stood(rated)


def _free_name(number: int, taken: Container[str]) -> str:
    """A name for ordered chips that no island of the fleet has."""
    name = f"ordered-{number}"
    return name if name not in taken else _free_name(number + 1000, taken)


def _stood(rated: Rated) -> Stood:
    if rated.answer is None:
        return Stood(low=0.0, mid=0.0, high=0.0, parts={})
    speed = rated.answer.tokens_per_second
    return Stood(low=speed.low, mid=speed.mid, high=speed.high, parts=_parts(rated.answer))


def _parts(answer: Answer) -> dict[str, float]:
    """Each island's part: of its grains; of a chain, where all work at all grains, of its peak."""
    if answer.way.chain is None:
        weights = {one.island.name: float(one.grains) for one in answer.islands}
    else:
        weights = {
            one.island.name: one.machine.speed(one.work.precision) * one.layout.num_devices
            for one in answer.islands
        }
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
