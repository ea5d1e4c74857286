"""Costs: what a run over time costs in US dollars, low to high: energy, leases, a share of chips.

Energy is that of the chips that take part, at the meter. A leased island costs its price for every
chip that is there, used or not. What is bought goes evenly over the years of use (straight line):
a run pays for the chips that take part, as long as they do; chips that stand idle are free for
other work. What nobody priced is named, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from atoll import facts
from atoll.fleet import Fleet, Island
from atoll.planning.power import watts_at
from atoll.site import Site
from atoll.supply import Costs
from atoll.units import format_count

if TYPE_CHECKING:
    from atoll.planning.calendar import Calendar, Period

YEAR = 365.25 * 86400.0

Ends = tuple[float, float]
"""Low and high: dollars, or megawatt hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """Dollars of a run (mid course), low and high; a part is None where nobody priced it.

    `bought` is the price of all chips that are not leased and ever there; `share` what of it the
    run pays over `years`. `megawatt_hours` are at the meter. `unknown` says what is not counted.
    """

    energy: Ends | None
    leases: float
    share: Ends | None
    bought: Ends | None
    megawatt_hours: Ends | None
    years: float
    unknown: tuple[str, ...]

    @property
    def total(self) -> Ends:
        """All that is known: energy, leases, share."""
        parts = [part for part in (self.energy, self.share) if part is not None]
        low, high = (self.leases + sum(part[end] for part in parts) for end in (0, 1))
        return low, high


def cost_of(calendar: Calendar) -> RunCost:
    """What the run of the mid course costs until it is done, or until the last change."""
    fleet, periods = calendar.rates.fleet, calendar.mid.periods
    years = (fleet.costs or Costs()).years
    hours, energy, share = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    no_power, no_tariff, no_price = dict[str, None](), dict[str, None](), dict[str, None]()
    for period in periods:
        begin = calendar.day(period.begin)
        for island, chips in _working(fleet, period):
            watts, site = watts_at(fleet, island), _site(fleet, island)
            if watts is None:
                no_power[island.chip] = None
            else:
                drawn = [chips * watts[end] * period.seconds / 3.6e9 for end in (0, 2)]
                hours = [a + b for a, b in zip(hours, drawn, strict=True)]
                tariff = None if site is None else site.electricity
                if tariff is None:
                    no_tariff[island.site] = None
                else:
                    ends = (tariff.low, tariff.high)
                    energy = [e + 1e3 * d * t for e, d, t in zip(energy, drawn, ends, strict=True)]
            if island.lease is not None:
                continue
            price = price_of(fleet, island, begin)
            if price is None:
                no_price[island.chip] = None
            else:
                part = chips * period.seconds / (years * YEAR)
                share = [s + part * p for s, p in zip(share, price, strict=True)]
    unknown = [f"the power of {name}" for name in no_power]
    unknown += [f"electricity at {name} (site.electricity)" for name in no_tariff]
    unknown += [f"the price of {name} (island.price)" for name in no_price]
    unknown += _unpriced_leases(calendar)
    known = bool(periods)
    return RunCost(
        energy=None if no_power or no_tariff or not known else (energy[0], energy[1]),
        leases=sum(calendar.lease_dollars(period) for period in periods),
        share=None if no_price or not known else (share[0], share[1]),
        bought=_bought(calendar),
        megawatt_hours=None if no_power or not known else (hours[0], hours[1]),
        years=years, unknown=tuple(unknown),
    )  # fmt: skip


def price_of(fleet: Fleet, island: Island, day: date | None) -> Ends | None:
    """Dollars of a chip of an island that is bought: the mean of those delivered by a day (mid).

    A delivery costs its own price, else the island's, else that of the facts.
    """
    known = facts.chip(island.chip).price
    usual = None
    if island.price is not None:
        usual = island.price.low, island.price.high
    elif known is not None:
        usual = known.low, known.high
    paid = [(island.num_chips, usual)]
    for one in fleet.delivery:
        if one.island == island.name and (day is None or one.date <= day):
            own = None if one.price is None else (one.price.low, one.price.high)
            paid.append((one.chips("mid"), own or usual))
    paid = [(number, price) for number, price in paid if number]
    if not paid or any(price is None for _, price in paid):
        return None if paid else usual
    chips = sum(number for number, _ in paid)
    low, high = (sum(n * p[end] for n, p in paid if p is not None) / chips for end in (0, 1))
    return low, high


def _bought(calendar: Calendar) -> Ends | None:
    """The price of all chips that are bought and there on any day of the mid course."""
    fleet, total = calendar.rates.fleet, [0.0, 0.0]
    end = calendar.day(calendar.mid.done)
    for island in fleet.island:
        coming = (one for one in fleet.delivery if one.island == island.name)
        number = island.num_chips + sum(
            one.chips("mid") for one in coming if end is None or one.date <= end
        )
        if island.lease is not None or not number:
            continue
        price = price_of(fleet, island, end)
        if price is None:
            return None
        total = [sum_ + number * each for sum_, each in zip(total, price, strict=True)]
    return total[0], total[1]


def _working(fleet: Fleet, period: Period) -> Iterator[tuple[Island, float]]:
    """Islands of the fleet with their chips that take part in a period, the mean of a day."""
    islands = {one.name: one for one in fleet.island}
    for one in period.rated.answer.islands if period.rated.answer is not None else ():
        yield islands[one.island.name], one.chips * period.rated.parts.get(one.island.name, 1.0)


def _site(fleet: Fleet, island: Island) -> Site | None:
    return next((one for one in fleet.site if one.name == island.site), None)


def _unpriced_leases(calendar: Calendar) -> list[str]:
    return [
        f"the lease of {island.name} (lease.price)"
        for island in calendar.rates.fleet.island
        if island.lease is not None
        and island.lease.price is None
        and any(one.rated.chips.get(island.name) for one in calendar.mid.periods)
    ]


def cost_text(found: RunCost) -> str:
    """The costs as one line."""
    if not found.total[1]:
        return "not known: " + ", ".join(found.unknown) if found.unknown else "none"
    text = f"{_dollars(found.total)} ("
    parts = []
    if found.energy is not None:
        parts.append(f"energy {_dollars(found.energy)}")
    if found.leases:
        parts.append(f"leases {_dollars((found.leases,) * 2)}")
    if found.share is not None:
        parts.append(f"chips {_dollars(found.share)} of what they cost over {found.years:g} years")
    text += ", ".join(parts) + ")"
    if found.bought is not None and found.bought[1] > 0:
        text += f"; all that is bought by then {_dollars(found.bought)}"
    return text + (f"; not counted: {', '.join(found.unknown)}" if found.unknown else "")


def _dollars(found: Ends) -> str:
    low, high = (format_count(end) for end in found)
    return f"${low}" if low == high else f"${low} to ${high}"


def as_json(found: RunCost) -> dict[str, object]:
    """The key `cost` of a calendar."""
    return {
        "dollars": _plain(found.total),
        "energy_dollars": _plain(found.energy),
        "lease_dollars": found.leases,
        "share_dollars": _plain(found.share),
        "bought_dollars": _plain(found.bought),
        "megawatt_hours": _plain(found.megawatt_hours),
        "years": found.years,
        "unknown": list(found.unknown),
    }


def _plain(found: Ends | None) -> dict[str, float] | None:
    return None if found is None else {"low": found[0], "high": found[1]}
