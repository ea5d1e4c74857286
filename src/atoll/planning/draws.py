"""Draws: many fleets as they may come, and when the run would be done on each.

A count that is not known exactly is drawn from the triangle over its low, mid and high, each by
itself, and whether it comes at all by its probability; the speed of all plans from the range of a
step, which holds 80 % of published runs, once a fleet; failures by their rate, which is drawn from
its range too. A stock is planned at few points of every period only; in between tokens a second go
straight in the peak of the chips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from atoll.facts.failures import rate_of
from atoll.fleet import Fleet
from atoll.planning.planner import peaks_of
from atoll.supply import Change, Failures, Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atoll.planning.calendar import Calendar, Rates

    Floats = NDArray[np.float64]

DAY = 86400.0
NINTH_TENTH = 1.2815515655446004
"""Standard deviations of a normal distribution between its median and its 90th percentile."""

APART = 1.35
"""Peak of neighbouring support points, one by the other."""

MOST = 6
"""Support points of a period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Seconds at which each drawn run is done, sorted; infinite where it never is.

    `plans` is how many stocks were planned for them.
    """

    seed: int
    ends: tuple[float, ...]
    plans: int

    @property
    def number(self) -> int:
        """How many runs were drawn."""
        return len(self.ends)

    @property
    def never(self) -> float:
        """The share of runs that are never done."""
        return sum(not math.isfinite(end) for end in self.ends) / len(self.ends)

    def quantile(self, part: float) -> float:
        """Seconds by which this part of the runs is done."""
        return self.ends[max(0, math.ceil(part * len(self.ends)) - 1)]

    def quantiles(self) -> dict[str, float]:
        """The tenth, the half and nine tenths of the runs."""
        return {"p10": self.quantile(0.1), "p50": self.quantile(0.5), "p90": self.quantile(0.9)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What is drawn once for every run: counts of every change, speed, failures by their rate."""

    counts: Floats
    speed: Floats
    failures: Floats


def draw(calendar: Calendar, *, number: int, seed: int) -> Draws:
    """Draws so many runs; the same seed, the same runs."""
    import numpy as np

    rates, start = calendar.rates, calendar.start
    fleet = rates.fleet
    before = len(rates.known)
    random = np.random.default_rng(seed)
    changes = _changes(fleet)
    drawn = _Drawn(
        counts=np.array([_counts(random, one[2], number) for one in changes]),
        speed=random.standard_normal(number),
        failures=triangle_of(random.random(number), *_failure_range(fleet.failures)),
    )
    days = [start, *fleet.change_days(start)]
    chips = np.tile(np.array([float(one.num_chips) for one in fleet.island]), (number, 1))
    by_name = peaks_of(rates.recipe, fleet, rates.asked)
    peaks = np.array([by_name[one.name] for one in fleet.island])
    tokens, ends = np.zeros(number), np.full(number, np.inf)
    done = 0
    for index, day in enumerate(days):
        while done < len(changes) and changes[done][0] <= day:
            _, sign, _, island = changes[done]
            chips[:, island] = np.maximum(0.0, chips[:, island] + sign * drawn.counts[done])
            done += 1
        open_ = np.flatnonzero(np.isinf(ends))
        if not len(open_):
            break
        begin = (day - start).days * DAY
        end = (days[index + 1] - start).days * DAY if index + 1 < len(days) else math.inf
        there = np.array([float(one.is_there(day)) for one in fleet.island])
        rate = _rates(rates, chips[open_] * there, peaks, drawn, open_)
        with np.errstate(divide="ignore", over="ignore"):
            left = (calendar.tokens - tokens[open_]) / rate.raw
        rate_now = rate.raw * _stays(random, rate, np.minimum(left, end - begin), drawn, open_)
        with np.errstate(divide="ignore", over="ignore"):
            over = begin + (calendar.tokens - tokens[open_]) / rate_now
        ends[open_] = np.where(over <= end, over, np.inf)
        if math.isfinite(end):
            tokens[open_] += rate_now * (end - begin)
    ends.sort()
    return Draws(seed=seed, ends=tuple(map(float, ends)), plans=len(rates.known) - before)


def _changes(fleet: Fleet) -> list[tuple[date, int, Change, int]]:
    """(day, +1 or -1, change, index of the island), of one day deliveries first."""
    places = {one.name: index for index, one in enumerate(fleet.island)}
    found: list[tuple[date, int, Change, int]]
    found = [(one.date, 1, one, places[one.island]) for one in fleet.delivery]
    found += [(one.date, -1, one, places[one.island]) for one in fleet.withdrawal]
    return sorted(found, key=lambda change: (change[0], -change[1]))


def _counts(random: np.random.Generator, change: Change, number: int) -> Floats:
    """Chips of a change, drawn: 0 where it does not happen."""
    counts = triangle(random.random(number), change.count)
    if change.probability is not None:
        counts = counts * (random.random(number) < change.probability)
    return counts


def triangle(uniform: Floats, count: Range) -> Floats:
    """Whole numbers from the triangular distribution, by numbers between 0 and 1."""
    import numpy as np

    rounded: Floats = np.rint(triangle_of(uniform, count.low, count.mid, count.high))
    return rounded


def triangle_of(uniform: Floats, low: float, mid: float, high: float) -> Floats:
    """The inverse of the triangular distribution; all three may be equal."""
    import numpy as np

    wide = high - low
    if wide <= 0:
        return np.full(len(uniform), float(mid))
    rising = low + np.sqrt(uniform * wide * (mid - low))
    falling = high - np.sqrt((1.0 - uniform) * wide * (high - mid))
    chosen: Floats = np.where(uniform * wide < mid - low, rising, falling)
    return chosen


def _failure_range(failures: Failures | None) -> tuple[float, float, float]:
    """Times of the usual rate, low to high; exactly once where the fleet says the rate."""
    if failures is not None and (failures.mode == "none" or failures.days is not None):
        return 1.0, 1.0, 1.0
    rate = rate_of("")
    return rate.low / rate.mid, 1.0, rate.high / rate.mid


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """By run: tokens a second without failures; failures a second, and seconds that one costs."""

    raw: Floats
    per_second: Floats
    lost: Floats


def _rates(
    rates: Rates, chips: Floats, peaks: Floats, drawn: _Drawn, open_: NDArray[np.intp]
) -> _Rates:
    """Plans the support points of a period, and what lies between them for every run."""
    import numpy as np

    per_node = np.array([float(one.chips_per_node) for one in rates.fleet.island])
    whole = np.floor(chips / per_node) * per_node
    size = whole @ peaks
    places, rows = [], []
    for index in support(size):
        names = (one.name for one in rates.fleet.island)
        rated = rates.of({name: int(n) for name, n in zip(names, whole[index], strict=True)})
        good, answer = rated.goodput, rated.answer
        places.append(float(size[index]))
        if answer is None or good is None:
            rows.append((0.0, 0.0, 0.0, 1.0, 1.0))
            continue
        step = answer.step_seconds
        rows.append(
            (
                answer.tokens_per_second.mid * rated.share, good.per_second, good.lost,
                step.low / step.mid, step.high / step.mid,
            )
        )  # fmt: skip
    table = np.array(rows)
    table[:, 0] = np.maximum.accumulate(table[:, 0])
    speed, per_second, lost, fast, slow = (np.interp(size, places, column) for column in table.T)
    z = drawn.speed[open_] / NINTH_TENTH
    longer = np.where(z < 0, fast ** np.abs(z), slow ** np.abs(z))
    return _Rates(raw=speed / longer, per_second=per_second, lost=lost)


def support(size: Floats) -> Sequence[int]:
    """Runs whose stocks are planned, smallest first: the ends, and some that lie between them."""
    import numpy as np

    order = np.argsort(size, kind="stable")
    low, high = float(size[order[0]]), float(size[order[-1]])
    if low == high:
        return [int(order[0])]
    ratio = high / max(low, high * APART**-MOST)
    count = min(MOST, max(2, 1 + math.ceil(math.log(ratio) / math.log(APART))), len(order))
    wanted = np.linspace(low, high, count)
    found = np.clip(np.searchsorted(size[order], wanted), 0, len(order) - 1)
    chosen = [int(order[place]) for place in sorted({int(place) for place in found})]
    kept = [chosen[0]]
    for index in chosen[1:]:
        if size[index] > size[kept[-1]]:
            kept.append(index)
    return kept


def _stays(
    random: np.random.Generator,
    rate: _Rates,
    seconds: Floats,
    drawn: _Drawn,
    open_: NDArray[np.intp],
) -> Floats:
    """The part of a period that is not lost to the failures that are drawn for it."""
    import numpy as np

    span = np.clip(seconds, 1.0, 1e9)
    expected = rate.per_second * drawn.failures[open_] * span
    share: Floats = 1.0 / (1.0 + random.poisson(np.minimum(expected, 1e12)) / span * rate.lost)
    return share
