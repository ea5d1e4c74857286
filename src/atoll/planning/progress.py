"""Progress: how far orders come from day to day, by the planner's speeds of what stands there.

The planner is asked on a few days only; between them goes straight what it says in parts of the
sum of all chips' speeds. So it is exact where the stock changes no oftener than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from atoll.planning.case import DAY, Case
from atoll.planning.joint import Stood
from atoll.planning.orders import Ordered
from atoll.supply import Which

SUPPORTS = 6
"""Days on which the planner is asked at most, of few islands; of more than `FEW`, half as many."""

FEW = 8

AT_ONCE = 12
"""Islands of which the planner is asked at once; of more, the fastest, and the others stand idle.
A plan of 50 unlike islands takes four times as long and used five of them.
"""

OPPOSITE: Mapping[Which, Which] = {"low": "high", "mid": "mid", "high": "low"}
"""Few and slow goes with late."""


class Speeds(Protocol):
    """Who says how fast chips are together: `joint.Joint`, the planner."""

    island: Mapping[str, str]
    sites: Mapping[str, str]
    changes: Sequence[float]

    def own(self, day: float, which: Which) -> dict[str, int]:
        """Island -> the fleet's own chips on a day."""

    def of(self, chips: Mapping[str, int]) -> Stood:
        """What chips by island do together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What was asked on a day: the chips' own speeds by island, and what they do together."""

    day: float
    alone: Mapping[str, float]
    stood: Stood

    def part(self, which: Which) -> float:
        """What they do together in parts of the sum of their own speeds."""
        total = sum(self.alone.values())
        return float(getattr(self.stood, which)) / total if total else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Tokens over time. `begins` are ordinals from which on a rate (tokens a second, availability
    in it) holds; the last one holds to `end`. `sums` are the chips' own speeds added up, without
    availability.
    """

    begins: Sequence[float]
    rates: Sequence[float]
    sums: Sequence[float]
    end: float
    asked: Sequence[Support]

    def tokens_by(self, day: float) -> float:
        """Tokens that are computed by a day."""
        ends = [*self.begins[1:], self.end]
        spans = zip(self.begins, ends, self.rates, strict=True)
        return DAY * sum(rate * max(0.0, min(day, b) - a) for a, b, rate in spans)

    def finish(self, tokens: float) -> float | None:
        """The instant at which so many tokens are done; None if not by the end."""
        done = 0.0
        for begin, end, rate in zip(self.begins, [*self.begins[1:], self.end], self.rates,
                                    strict=True):  # fmt: skip
            more = rate * DAY * (end - begin)
            if rate > 0 and done + more >= tokens * (1 - 1e-9):
                return begin + max(0.0, tokens - done) / (rate * DAY)
            done += more
        return None

    def standing(self, day: float) -> tuple[float, float]:
        """(what stands just before a day, added up; the rate that it has), tokens a second."""
        last = max(0, sum(begin < day for begin in self.begins) - 1)
        return self.sums[last], self.rates[last]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrived:
    """Chips of an order as they come at one end of what is not known."""

    island: str
    speed: float
    chips: int
    arrives: float
    ends: float


def _arrived(case: Case, answer: Ordered, speeds: Speeds, which: Which) -> list[_Arrived]:
    """The orders; "low" is few and late. Of less stock than was ordered the last orders lack."""
    left = {one.name: one.at(which).stock for one in case.offers.offer}
    found = []
    for order in answer.orders:
        column, offer = order.column, order.column.offer
        shift = offer.at(OPPOSITE[which]).lead_days - offer.lead_days
        chips = order.chips
        if offer.kind == "buy":
            chips = min(chips, left[offer.name])
            left[offer.name] -= chips
        elif which == "low":
            chips = min(chips, left[offer.name])
        if chips:
            found.append(
                _Arrived(
                    island=speeds.island[offer.name], speed=case.speed[offer.name], chips=chips,
                    arrives=column.arrives + shift, ends=column.ends + shift,
                )
            )  # fmt: skip
    return found


def progress(
    case: Case,
    answer: Ordered,
    speeds: Speeds,
    *,
    which: Which = "mid",
    asked: Sequence[Support] = (),
) -> Progress:
    """How far orders come; `case` holds each chip's own speed. `asked` is taken as it is, so that
    the other ends cost no plans.
    """
    bounds = case.offers.boundaries()
    start, end = bounds[0], bounds[-1]
    each = {one.island: one.speed / one.chips for one in case.own if one.chips}
    there = _arrived(case, answer, speeds, which)
    days = {start, *speeds.changes, *(d for one in there for d in (one.arrives, one.ends))}
    begins = sorted({max(start, day) for day in days if day < end})
    stocks, alone = [], []
    for day in begins:
        own = {name: n for name, n in speeds.own(day, which).items() if each.get(name)}
        stock, alike = dict(own), {name: n * each[name] for name, n in own.items()}
        for one in there:
            if one.arrives <= day < one.ends:
                stock[one.island] = stock.get(one.island, 0) + one.chips
                alike[one.island] = alike.get(one.island, 0.0) + one.chips * one.speed
        stocks.append(stock)
        alone.append(alike)
    sums = [sum(one.values()) for one in alone]
    if not asked:
        there_is = [i for i, total in enumerate(sums) if total] or [0]
        most = SUPPORTS if max(map(len, stocks)) <= FEW else SUPPORTS // 2
        asked = [
            Support(day=begins[i], alone=alone[i], stood=speeds.of(_fastest(stocks[i], alone[i])))
            for i in (there_is[place] for place in _spread(len(there_is), most))
        ]
    rates = [
        case.offers.availability * total * _between(asked, day, which)
        for day, total in zip(begins, sums, strict=True)
    ]
    return Progress(begins=begins, rates=rates, sums=sums, end=end, asked=tuple(asked))


def _fastest(stock: Mapping[str, int], alone: Mapping[str, float]) -> dict[str, int]:
    """The islands of a stock that compute most, as many as the planner is asked of at once."""
    names = sorted(stock, key=lambda name: (-alone[name], name))[:AT_ONCE]
    return {name: chips for name, chips in stock.items() if name in names}


def _spread(count: int, most: int) -> list[int]:
    """Places of at most so many of a count, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _between(asked: Sequence[Support], day: float, which: Which) -> float:
    """The part on a day, straight between those that were asked."""
    if day <= asked[0].day:
        return asked[0].part(which)
    for a, b in pairwise(asked):
        if a.day <= day <= b.day:
            along = (day - a.day) / (b.day - a.day)
            return a.part(which) + along * (b.part(which) - a.part(which))
    return asked[-1].part(which)
