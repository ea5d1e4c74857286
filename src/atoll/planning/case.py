"""Case: a question about orders as numbers: offers, speeds, power, and what stands already.

Days are ordinals with a fraction. `programme` makes columns and rows of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from atoll.planning.offers import Offers

DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnChange:
    """Chips of the fleet that begin (or cease, where negative) to compute at a site on a day."""

    day: float
    site: str
    speed: float
    watts: float
    island: str = ""
    chips: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Days on which rules keep an offer's chips away: orders and arrivals from `since` to the day
    before `until`.
    """

    offer: str
    since: date
    until: date
    why: str

    def holds(self, day: float) -> bool:
        """Whether a day (an ordinal, with a fraction) is one of them."""
        return self.since.toordinal() <= day < self.until.toordinal()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Offers and all that is known beside them.

    `speed` is tokens a second and `watts` watts of one chip, by the offer's name; `countries` and
    `power` (watts) by site; `tokens` is what the recipe needs; `closed` is what rules refuse.
    """

    offers: Offers
    speed: Mapping[str, float]
    watts: Mapping[str, float]
    tokens: float
    countries: Mapping[str, str] = field(default_factory=dict)
    power: Mapping[str, float] = field(default_factory=dict)
    own: Sequence[OwnChange] = ()
    closed: Sequence[Closed] = ()

    def is_closed(self, offer: str, *days: float) -> bool:
        """Whether rules refuse an offer on one of the days, of the order and of the arrival."""
        return any(one.holds(day) for one in self.closed if one.offer == offer for day in days)

    def is_at(self, site: str, place: str) -> bool:
        """Whether a site is, or lies in, a place; every site is anywhere ("")."""
        return place in ("", site) or self.countries.get(site) == place

    def own_tokens(self, day: float) -> float:
        """Tokens that the fleet's own chips have computed by a day."""
        start = self.offers.boundaries()[0]
        spans = ((one.speed, day - max(start, one.day)) for one in self.own)
        return self.offers.availability * DAY * sum(v * span for v, span in spans if span > 0)

    def own_watts(self, site: str, day: float) -> float:
        """Watts of the fleet's own chips at a site on a day."""
        return sum(one.watts for one in self.own if one.site == site and one.day <= day)
