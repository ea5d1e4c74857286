"""Calendar: a run on a fleet that grows and shrinks, planned anew at every change.

The recipe decides the bits, so a change of plan costs none: whoever arrives is healed beside the
steps, and a period may keep the plan of a smaller stock where that is faster. It knows three
fleets, of low, mid and high deliveries; the doubt between them is drawn in `draws`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from atoll import facts
from atoll.errors import AtollError, InputError
from atoll.fleet import Fleet
from atoll.plan import Layout
from atoll.planning.goodput import Goodput, goodput_of
from atoll.planning.placing import NoPlacement, allowed
from atoll.planning.planner import Answer, Asked, NoPlan, plan
from atoll.planning.power import meter_text, told
from atoll.recipe import Recipe
from atoll.supply import Which

if TYPE_CHECKING:
    from atoll.planning.draws import Draws

DAY = 86400.0
WHICH: tuple[Which, ...] = ("low", "mid", "high")

ENDS: Mapping[str, Which] = {"low": "high", "mid": "mid", "high": "low"}
"""End of the range of days -> course: the earliest day is that of most chips."""

Curve = list[tuple[float, float]]
"""Points (seconds since the first day, tokens), straight in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A stock and how fast it computes: tokens a second after failures, or why it does not.

    `chips` is what is there by island; `answer` may be the plan of a smaller stock. `unpowered` is
    how many of the chips have no power. Where chips are lent by the hour (`sharing`) the plan is
    that of the hours at which they are; `share` is what a mean second of the day makes beside one
    of these hours, `parts` the part of the day that an island's chips train.
    """

    chips: Mapping[str, int]
    answer: Answer | None
    goodput: Goodput | None
    why: str = ""
    unpowered: Mapping[str, int] = field(default_factory=dict)
    share: float = 1.0
    parts: Mapping[str, float] = field(default_factory=dict)

    def rate(self, which: Which = "mid") -> float:
        """Tokens a second that stay; "low" is slow."""
        if self.answer is None or self.goodput is None:
            return 0.0
        speed = float(getattr(self.answer.tokens_per_second, which))
        return speed * self.goodput.factor * self.share

    @property
    def used(self) -> int:
        """Chips that take part."""
        return 0 if self.answer is None else self.answer.chips

    @property
    def present(self) -> int:
        """Chips that are there in whole nodes."""
        return sum(self.chips.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A time in which the fleet stays as it is: from a day to the next change or to the end."""

    begin: float
    end: float
    rated: Rated
    tokens: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end - self.begin

    @property
    def megawatt_hours(self) -> float | None:
        """Energy of the chips that take part by their rated power; None if nobody published it."""
        watts = 0.0
        for name, count in self.working().items():
            power = facts.chip(name).power
            if power is None:
                return None
            watts += count * power.value
        return watts * self.seconds / 3.6e9

    @property
    def dollars(self) -> tuple[float, float] | None:
        """What renting the chips that take part would cost, low and high; None if unknown."""
        low = high = 0.0
        for name, count in self.working().items():
            rent = facts.chip(name).rent
            if rent is None:
                return None
            low += count * rent.low * self.seconds / 3600.0
            high += count * rent.high * self.seconds / 3600.0
        return low, high

    def unpowered(self) -> dict[str, int]:
        """Island -> chips that stand idle because their site's power is not enough."""
        answer = self.rated.answer
        used = {one.island.name: one.chips for one in (answer.islands if answer else ())}
        idle = {
            name: min(number, self.rated.chips.get(name, 0) - used.get(name, 0))
            for name, number in self.rated.unpowered.items()
        }
        return {name: number for name, number in idle.items() if number > 0}

    def working(self) -> dict[str, float]:
        """Chip, as its island names it -> how many of it take part, on average over a day."""
        counts: dict[str, float] = {}
        for one in self.rated.answer.islands if self.rated.answer is not None else ():
            part = self.rated.parts.get(one.island.name, 1.0)
            counts[one.island.chip] = counts.get(one.island.chip, 0.0) + one.chips * part
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One fleet over time: its periods, its tokens, when it is done (None: never)."""

    periods: tuple[Period, ...]
    curve: Curve
    done: float | None

    def tokens_at(self, seconds: float) -> float:
        """Tokens that are done by then."""
        for (a, before), (b, after) in zip(self.curve, self.curve[1:], strict=False):
            if a <= seconds <= b:
                return before + (after - before) * (seconds - a) / (b - a) if b > a else after
        return self.curve[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """The run over time; `courses` by deliveries: "low" is few and slow, "high" many and fast."""

    start: date
    tokens: float
    courses: Mapping[Which, Course]
    rates: Rates
    notes: tuple[str, ...]
    draws: Draws | None = None

    @property
    def mid(self) -> Course:
        """The course of mid deliveries and mid speed."""
        return self.courses["mid"]

    def done_by(self) -> dict[str, date | None]:
        """Low (earliest), mid and high (latest) day of the last step; None: never."""
        return {name: self.day(self.courses[which].done) for name, which in ENDS.items()}

    def begins(self) -> date | None:
        """The first day on which something is computed; None: never."""
        working = (one.begin for one in self.mid.periods if one.rated.answer is not None)
        return self.day(next(working, None))

    def lease_dollars(self, period: Period) -> float:
        """What all chips of leased islands cost in a period, by the prices of their leases."""
        hourly = sum(
            island.lease.price * period.rated.chips.get(island.name, 0)
            for island in self.rates.fleet.island
            if island.lease is not None and island.lease.price is not None
        )
        return hourly * period.seconds / 3600.0

    def day(self, seconds: float | None) -> date | None:
        """The day on which so many seconds since the start fall; None beyond the calendar."""
        return day_after(self.start, seconds)


def day_after(start: date, seconds: float | None) -> date | None:
    """The day on which so many seconds since a first day fall; None beyond the calendar."""
    if seconds is None or not math.isfinite(seconds):
        return None
    try:
        return (datetime(start.year, start.month, start.day) + timedelta(seconds=seconds)).date()
    except OverflowError:
        return None


class Rates:
    """How fast any stock of a fleet computes; each stock is planned once."""

    def __init__(
        self, recipe: Recipe, fleet: Fleet, asked: Asked, *, known: Rates | None = None
    ) -> None:
        """For stocks of this fleet; of `asked.day` only the rules of that day count.

        `known` are those of another fleet: where it has the same islands, whatever comes and goes
        there, what is planned for one of the two is known to both.
        """
        self.recipe, self.fleet, self.asked = recipe, fleet, asked
        alike = known is not None and known.recipe == recipe and _same_islands(known.fleet, fleet)
        self.known: dict[tuple[int, ...], Rated] = known.known if known and alike else {}
        self.quick: dict[tuple[int, ...], Rated] = known.quick if known and alike else {}
        self._at_all_hours: Rates | None = None

    def know(self, answer: Answer) -> None:
        """A plan that was made before, so that it is not made again."""
        chips = {one.name: one.num_chips for one in answer.fleet.island}
        goodput = goodput_of(answer, self.fleet.failures)
        self.known[self._key(chips)] = Rated(
            chips=chips, answer=answer, goodput=goodput, unpowered=answer.unpowered
        )

    def of(self, chips: Mapping[str, int], which: Which = "mid") -> Rated:
        """The best plan for chips by island, the one that is fastest at one end of its range; chips
        that fill no node are left out.
        """
        stock = self._stock(chips)
        whole = {one.name: one.num_chips for one in stock.island}
        key = self._key(whole)
        if key not in self.known:
            self.known[key] = self._planned(whole, stock, self.asked)
        return self._best(key, which)

    def near(self, chips: Mapping[str, int], like: Sequence[Rated]) -> Rated:
        """A plan for chips that are like other stocks, with the like of their layouts alone.

        Ten times as quick as `of`, and nothing is explained: for draws.
        """
        stock = self._stock(chips)
        whole = {one.name: one.num_chips for one in stock.island}
        key = self._key(whole)
        if key in self.known:
            return self._best(key, "mid")
        if key not in self.quick:
            among: dict[str, list[Layout]] = {}
            for rated in like:
                for name, tried in (rated.answer.tried if rated.answer else {}).items():
                    among.setdefault(name, []).extend(option.layout for option in tried)
            found = self._planned(whole, stock, replace(self.asked, among=among))
            self.quick[key] = found if found.answer is not None else self.of(chips)
        return self.quick[key]

    def _key(self, chips: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(chips.get(one.name, 0) for one in self.fleet.island)

    def _stock(self, chips: Mapping[str, int]) -> Fleet:
        """A fleet of whole nodes that stays as it is; it may have no island."""
        islands = [
            one.model_copy(
                update={"nodes": chips.get(one.name, 0) // one.chips_per_node, "lease": None}
            )
            for one in self.fleet.island
        ]
        left = [one for one in islands if one.nodes]
        return self.fleet.model_copy(update={"island": left, "delivery": [], "withdrawal": []})

    def _planned(self, chips: Mapping[str, int], stock: Fleet, asked: Asked) -> Rated:
        if not stock.island:
            return Rated(chips=chips, answer=None, goodput=None, why="no chips")
        try:
            if stock.shares_hours:
                return self._over_a_day(stock, asked)
            answer = plan(self.recipe, stock, asked)
        except (NoPlan, InputError) as fault:
            first, *more = (" ".join(line.split()) for line in str(fault).splitlines())
            why = ": ".join([first, *more[:1]])
            return Rated(chips=chips, answer=None, goodput=None, why=why)
        goodput = goodput_of(answer, self.fleet.failures)
        return Rated(chips=chips, answer=answer, goodput=goodput, unpowered=answer.unpowered)

    def _over_a_day(self, stock: Fleet, asked: Asked) -> Rated:
        """A stock whose chips are lent by the hour: the mean of a day."""
        from atoll.planning.sharing import as_if_always, over_a_day

        if self._at_all_hours is None:
            self._at_all_hours = Rates(self.recipe, as_if_always(self.fleet), self.asked)
        return over_a_day(self.recipe, stock, asked, self._at_all_hours)

    def _best(self, key: tuple[int, ...], which: Which) -> Rated:
        """The plan of this stock, or a faster one that was found for a part of it."""
        own = best = self.known[key]
        for other, rated in self.known.items():
            inside = all(a <= b for a, b in zip(other, key, strict=True))
            if inside and rated.rate(which) > best.rate(which):
                best = rated
        return own if best is own else replace(best, chips=own.chips, unpowered=own.unpowered)


def _same_islands(a: Fleet, b: Fleet) -> bool:
    """Whether two fleets differ in nothing but how many chips they hold when."""
    bare = {"nodes": 0, "lease": None}
    one, other = ([each.model_copy(update=bare) for each in fleet.island] for fleet in (a, b))
    same = (a.site, a.link, a.failures, a.traffic) == (b.site, b.link, b.failures, b.traffic)
    return same and one == other


def run_through(
    total: float, begins: Sequence[float], rates: Iterable[float]
) -> tuple[Curve, float | None]:
    """The tokens over time and the second at which `total` is reached, None if it never is.

    Each period has a rate in tokens a second and ends where the next one begins; the last one has
    no end. No rate is asked for after the end.
    """
    tokens, curve = 0.0, [(0.0, 0.0)]
    ends = [*begins[1:], math.inf]
    for begin, end, rate in zip(begins, ends, rates, strict=False):
        if rate > 0 and tokens + rate * (end - begin) >= total:
            done = begin + (total - tokens) / rate
            return [*curve, (done, total)], done
        if math.isfinite(end):
            tokens += rate * (end - begin)
            curve.append((end, tokens))
    return curve, None


def first_plan(recipe: Recipe, fleet: Fleet, asked: Asked) -> Answer:
    """The plan of the first day from `asked.day` on for whose stock there is one.

    Rules are asked as in `calendar_from`. InputError for what is wrong; `NoPlan` if the model fits
    on no day, saying by how much.
    """
    from atoll.planning.sharing import plan_by_hours

    assert asked.day is not None, "a calendar begins on a day"
    try:
        return plan_by_hours(recipe, fleet, asked)
    except (NoPlan, NoPlacement, InputError) as fault:
        faults: list[AtollError] = [fault]
    left, _, free = by_rules(fleet, asked)
    for day in left.change_days(asked.day):
        try:
            return plan_by_hours(recipe, left, replace(free, day=day))
        except (NoPlan, InputError) as fault:
            faults.append(fault)
    misfits = [fault for fault in faults if isinstance(fault, NoPlan)]
    raise misfits[-1] if misfits else faults[0]


def calendar_of(answer: Answer, fleet: Fleet, asked: Asked) -> Calendar:
    """The run from `asked.day` on; `answer` is the plan of a stock that `fleet` has on some day.

    InputError if more is withdrawn on a day than is there.
    """
    assert asked.day is not None, "a calendar begins on a day"
    rates = Rates(answer.recipe, fleet, asked)
    if not fleet.shares_hours:  # else it is the plan of some hours, not of a day
        rates.know(answer)
    return calendar_from(rates, asked.day)


def calendar_from(rates: Rates, start: date) -> Calendar:
    """The run from a day on, with or without a chip there yet. InputError as `calendar_of`."""
    left, refused, asked = by_rules(rates.fleet, replace(rates.asked, day=start))
    rates = Rates(rates.recipe, left, asked, known=rates)
    recipe = rates.recipe
    days = [start, *left.change_days(start)]
    tokens = float(recipe.total_steps()) * recipe.tokens_per_step
    courses: dict[Which, Course] = {}
    for which in WHICH:  # few chips first: what is found for them holds for more of them too
        courses[which] = course_of(rates, days, tokens, which)
    found = Calendar(start=start, tokens=tokens, courses=courses, rates=rates, notes=())
    kept_out = (f"left out: {what}: {why}" for what, why in refused)
    return replace(found, notes=(*kept_out, *_notes(found)))


def calendars_from(every: Sequence[Rates], start: date) -> list[Calendar]:
    """The run on every fleet, gone through until no plan is new, so that all of them know the same.

    So less on every day is never sooner, whichever of the fleets a fast plan was found for.
    Fleets with other islands than the first one's know their own plans only.
    """
    shared = [Rates(one.recipe, one.fleet, one.asked, known=every[0]) for one in every]
    found, before = list[Calendar](), -1
    while (now := sum(len(one.known) for one in shared)) != before:
        before = now
        found = [calendar_from(one, start) for one in shared]
    return found


def by_rules(fleet: Fleet, asked: Asked) -> tuple[Fleet, Sequence[tuple[str, str]], Asked]:
    """The fleet without what the rules refuse, what that is, and the rest of what is asked."""
    if asked.rules is None or asked.day is None:
        return fleet, (), asked
    left, refused = allowed(fleet, asked.rules, asked.day)
    return left, refused, replace(asked, rules=None)


def course_of(rates: Rates, days: Sequence[date], total: float, which: Which) -> Course:
    """The run of so many tokens through stocks that begin on these days."""
    begins = [(day - days[0]).days * DAY for day in days]
    found: list[Rated] = []

    def each() -> Iterator[float]:
        for day in days:
            found.append(rates.of(stock_of(rates.fleet, day, which), which))
            yield found[-1].rate(which)

    curve, done = run_through(total, begins, each())
    periods = []
    for index, rated in enumerate(found):
        last = index + 1 == len(days)
        if last and done is None:
            break
        end = done if done is not None and index + 1 == len(found) else begins[index + 1]
        assert end is not None
        made = curve[index + 1][1] - curve[index][1]
        periods.append(Period(begin=begins[index], end=end, rated=rated, tokens=made))
    return Course(periods=tuple(periods), curve=curve, done=done)


def stock_of(fleet: Fleet, day: date, which: Which) -> dict[str, int]:
    """Island -> chips in whole nodes on a day; empty where nothing is left."""
    try:
        return {one.name: one.num_chips for one in fleet.stock(day, which=which).island}
    except InputError:
        return {}


def _notes(calendar: Calendar) -> Iterator[str]:
    """What a reader should know before believing the days."""
    course = calendar.mid
    begins = calendar.begins()
    if begins is not None and begins > calendar.start:
        why = course.periods[0].rated.why
        yield f"the run begins on {begins}; on {calendar.start} nothing can compute: {why}"
    first = next((one.rated for one in course.periods if one.rated.goodput is not None), None)
    if first is not None and first.goodput is not None and first.goodput.per_second:
        good = first.goodput
        text = (
            f"failures: one in {good.hours:.1f} h at first, each costs {good.lost:.0f} s: "
            f"{100 * good.factor:.1f} % of the time computes what stays"
        )
        if good.going_on != good.restarting:
            text += (
                f" (going on with the other islands, as Atoll does, {100 * good.going_on:.1f} %; "
                f"restarting from checkpoints {100 * good.restarting:.1f} %)"
            )
        yield text
        if not good.known:
            yield "nobody published how often these chips fail: the rate of others stands for them"
    yield from _unpowered(calendar)
    fleet = calendar.rates.fleet
    priced = any(site.electricity is not None for site in fleet.site)
    if priced or any(period.unpowered() for period in course.periods):
        yield f"power: {meter_text(fleet)}"
    if course.done is None:
        yield "the run is never done on what is left of the fleet"


def _unpowered(calendar: Calendar) -> Iterator[str]:
    """A note for each time in which chips stand idle for want of power."""
    before: Mapping[str, int] = {}
    for period in calendar.mid.periods:
        idle = period.unpowered()
        if idle and idle != before:
            stock = calendar.rates.fleet
            lines = "; ".join(f"{one.what} ({one.why})" for one in told(stock, idle))
            yield f"from {calendar.day(period.begin)} on stand idle: {lines}"
        before = idle
