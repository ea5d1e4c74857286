"""Draws: many fleets as they may come, and when the run would be done on each.

A count that is not known exactly is drawn from the triangle over its low, mid and high, each by
itself, and whether it comes at all by its probability; the speed of all plans from the range of a
step, which holds 80 % of published runs, once a fleet; failures by their rate, which is drawn from
its range too. A stock is planned at few points of every period only; in between tokens a second go
straight in the peak of the chips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from atoll.facts.failures import rate_of
from atoll.fleet import Fleet
from atoll.planning.pace import pace_of
from atoll.planning.planner import peaks_of
from atoll.supply import Change, Failures, Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atoll.planning.calendar import Calendar, Rated, Rates

    Floats = NDArray[np.float64]

DAY = 86400.0
NINTH_TENTH = 1.2815515655446004
"""Standard deviations of a normal distribution between its median and its 90th percentile."""

CLOSE = 0.01
"""A stock that is planned between two others: so far from the line between them is near enough."""

MOST = 24
"""Stocks that are planned for a period at most."""

FEW = 6
"""The same where chips are lent by the hour, and a stock is a plan for each of many hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Seconds at which each drawn run is done, sorted; infinite where it never is.

    `plans` is how many stocks were planned for them; `off` how far tokens a second of a planned
    stock were from the line between its neighbours, at most, where no more were planned.
    """

    seed: int
    ends: tuple[float, ...]
    plans: int
    off: float = 0.0

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
    """Draws so many runs; the same seed, the same runs.

    Each change has random numbers of its own: a fleet with one change more has the others as
    before.
    """
    import numpy as np

    rates, start = calendar.rates, calendar.start
    fleet = rates.fleet
    before = len(rates.known) + len(rates.quick)
    drawn = _drawn(fleet, number, seed)
    days = [start, *fleet.change_days(start)]
    tokens, ends = np.zeros(number), np.full(number, np.inf)
    off = 0.0
    for index, day in enumerate(days):
        open_ = np.flatnonzero(np.isinf(ends))
        if not len(open_):
            break
        begin = (day - start).days * DAY
        end = (days[index + 1] - start).days * DAY if index + 1 < len(days) else math.inf
        line = _line(rates, _whole(fleet, day, drawn)[open_])
        off = max(off, line.off)
        rate = _rates(line, drawn.speed[open_])
        with np.errstate(divide="ignore", over="ignore"):
            left = (calendar.tokens - tokens[open_]) / rate.raw
        random, lasting = _stream(seed, f"failures from {day}"), np.minimum(left, end - begin)
        rate_now = rate.raw * _stays(random, rate, lasting, drawn.failures[open_])
        with np.errstate(divide="ignore", over="ignore"):
            over = begin + (calendar.tokens - tokens[open_]) / rate_now
        ends[open_] = np.where(over <= end, over, np.inf)
        if math.isfinite(end):
            tokens[open_] += rate_now * (end - begin)
    ends.sort()
    plans = len(rates.known) + len(rates.quick) - before
    return Draws(seed=seed, ends=tuple(map(float, ends)), plans=plans, off=off)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Stocks as they are drawn for a day, chips by island, and tokens a second that draws take."""

    stocks: tuple[Mapping[str, int], ...]
    tokens_per_second: tuple[float, ...]


def speeds_on(calendar: Calendar, day: date, *, number: int, seed: int) -> Speeds:
    """Stocks of a day, drawn, and how fast the draws take them to be at mid speed."""
    fleet = calendar.rates.fleet
    whole = _whole(fleet, day, _drawn(fleet, number, seed))
    line = _line(calendar.rates, whole)
    names = [one.name for one in fleet.island]
    return Speeds(
        stocks=tuple(dict(zip(names, map(int, row), strict=True)) for row in whole),
        tokens_per_second=tuple(map(float, line.column(0))),
    )


def _stream(seed: int, name: str) -> np.random.Generator:
    """Random numbers of their own for everything that has a name."""
    import zlib

    import numpy as np

    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _drawn(fleet: Fleet, number: int, seed: int) -> _Drawn:
    """What is drawn once: counts in the order of `_changes`, speed, rates of failures."""
    import numpy as np

    counts, seen = [], dict[str, int]()
    for day, sign, change, _ in _changes(fleet):
        name = f"{'delivery' if sign > 0 else 'withdrawal'} {change.island} {day}"
        seen[name] = seen.get(name, 0) + 1
        counts.append(_counts(_stream(seed, f"{name} {seen[name]}"), change, number))
    rates = _stream(seed, "rate of failures").random(number)
    return _Drawn(
        counts=np.array(counts),
        speed=_stream(seed, "speed").standard_normal(number),
        failures=triangle_of(rates, *_failure_range(fleet.failures)),
    )


def _whole(fleet: Fleet, day: date, drawn: _Drawn) -> Floats:
    """Chips in whole nodes on a day, a row a run and a column an island."""
    import numpy as np

    number = len(drawn.speed)
    chips = np.tile(np.array([float(one.num_chips) for one in fleet.island]), (number, 1))
    for (when, sign, _, island), counts in zip(_changes(fleet), drawn.counts, strict=True):
        if when <= day:
            chips[:, island] = np.maximum(0.0, chips[:, island] + sign * counts)
    there = np.array([float(one.is_there(day)) for one in fleet.island])
    per_node = np.array([float(one.chips_per_node) for one in fleet.island])
    nodes: Floats = np.floor(chips * there / per_node) * per_node
    return nodes


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


Row = tuple[float, float, float, float, float]
"""A planned stock: tokens a second, failures a second, seconds that one costs, step low and high by
mid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A period: a measure of every run's stock, and the stocks that were planned, smallest first.

    `off` is how far a planned stock is from the line between its neighbours, at most.
    """

    size: Floats
    places: Floats
    rows: Floats
    off: float

    def column(self, index: int) -> Floats:
        """A number of a `Row` for every run, straight between the planned stocks."""
        import numpy as np

        values = self.rows[:, index]
        if index == 0:
            values = np.maximum.accumulate(values)
        found: Floats = np.interp(self.size, self.places, values)
        return found


def _rates(line: _Line, z: Floats) -> _Rates:
    """What every run computes in a period, by its own speed."""
    import numpy as np

    speed, per_second, lost, fast, slow = (line.column(index) for index in range(5))
    power = np.abs(z) / NINTH_TENTH
    longer = np.where(z < 0, fast**power, slow**power)
    return _Rates(raw=speed / longer, per_second=per_second, lost=lost)


def _line(rates: Rates, whole: Floats) -> _Line:
    """Plans stocks of a period where the line between their neighbours is off, the worst first."""
    import numpy as np

    by_peak = whole @ _peaks(rates)
    like = _alike(rates, np.quantile(by_peak, (0.0, 0.5, 1.0)))
    if not like:
        like = (rates.of(_stock(rates, whole[np.argmax(by_peak)])),)
    found: dict[int, Rated] = {}

    def planned(run: int) -> None:
        found[run] = rates.near(_stock(rates, whole[run]), like)

    size = pace_of(rates, whole, like)
    size = by_peak if size is None else size
    for end in (np.argmin, np.argmax):
        planned(int(end(size)))
    off = _refine(size, found, planned, most=FEW if rates.fleet.shares_hours else MOST)
    runs = sorted(found, key=lambda run: (size[run], _row(found[run])))
    places = size[runs]
    once = np.flatnonzero(np.diff(places, append=math.inf) > 0)
    table = np.array([_row(found[run]) for run in runs])
    return _Line(size=size, places=places[once], rows=table[once], off=off)


def _refine(
    size: Floats, found: Mapping[int, Rated], plan: Callable[[int], None], *, most: int
) -> float:
    """Plans more runs where a planned one is off the line of its neighbours; how far one still is.

    A gap is as bad as the worse one of its ends, and is halved by the middle run inside of it.
    """
    import numpy as np

    order = np.argsort(size, kind="stable")
    sizes = size[order]
    while True:
        once = {float(size[run]): _row(found[run])[0] for run in found}
        points = sorted(once.items())
        offs = [0.0 if len(points) > 2 else math.inf, *map(_off, points, points[1:], points[2:])]
        offs.append(offs[0])
        worst = sorted(range(len(points) - 1), key=lambda gap: -max(offs[gap], offs[gap + 1]))
        for gap in worst:
            if len(points) >= most or max(offs[gap], offs[gap + 1]) < CLOSE:
                return max((off for off in offs if math.isfinite(off)), default=0.0)
            low = int(np.searchsorted(sizes, points[gap][0], side="right"))
            high = int(np.searchsorted(sizes, points[gap + 1][0], side="left"))
            if low < high:
                plan(int(order[(low + high) // 2]))
                break
        else:
            return max((off for off in offs if math.isfinite(off)), default=0.0)


def _off(low: tuple[float, float], point: tuple[float, float], high: tuple[float, float]) -> float:
    """How far (size, speed) is from the line between two others, as a part of itself."""
    (a, slow), (at, speed), (b, fast) = low, point, high
    line = slow + (fast - slow) * (at - a) / (b - a)
    return abs(line / speed - 1.0) if speed else math.inf if line else 0.0


def _peaks(rates: Rates) -> Floats:
    """FLOP/s of a chip of every island."""
    import numpy as np

    by_name = peaks_of(rates.recipe, rates.fleet, rates.asked)
    return np.array([by_name[one.name] for one in rates.fleet.island])


def _alike(rates: Rates, sizes: Floats) -> Sequence[Rated]:
    """Of the stocks that were planned in full the nearest one for each size, in FLOP/s."""
    import numpy as np

    known = [one for one in rates.known.values() if one.answer is not None]
    names = [one.name for one in rates.fleet.island]
    if not known:
        return ()
    there = np.array([[one.chips.get(name, 0) for name in names] for one in known]) @ _peaks(rates)
    return [known[place] for place in sorted({int(np.argmin(abs(there - one))) for one in sizes})]


def _stock(rates: Rates, row: Floats) -> dict[str, int]:
    """Chips by island."""
    names = (one.name for one in rates.fleet.island)
    return {name: int(number) for name, number in zip(names, row, strict=True)}


def _row(rated: Rated) -> Row:
    good, answer = rated.goodput, rated.answer
    if answer is None or good is None:
        return 0.0, 0.0, 0.0, 1.0, 1.0
    step = answer.step_seconds
    return (
        answer.tokens_per_second.mid * rated.share, good.per_second, good.lost,
        step.low / step.mid, step.high / step.mid,
    )  # fmt: skip


def _stays(random: np.random.Generator, rate: _Rates, seconds: Floats, failures: Floats) -> Floats:
    """The part of a period that is not lost to the failures that are drawn for it.

    `failures` are times of the usual rate.
    """
    import numpy as np

    span = np.clip(seconds, 1.0, 1e9)
    expected = np.minimum(rate.per_second * failures * span, 1e12)
    share: Floats = 1.0 / (1.0 + random.poisson(expected) / span * rate.lost)
    return share
