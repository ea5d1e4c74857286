"""Study: the planner's answers to a scenario - done by when, bought what, and what would change it.

Every model is planned alone, as if it had all chips for itself. Fleets that differ only in what
comes and goes share their plans, and all of them are gone through again until no plan is new: so a
fleet with more chips on every day is never later. What is ordered for a question is another
solve, whose aim is that of the scenario's orders; there days may move either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.planning.calendar import DAY, WHICH, Calendar, Period, Rates, calendars_from, run_through
from atoll.planning.draws import draw
from atoll.planning.planner import Asked
from atoll.planning.purchase import Told, purchase
from atoll.planning.scenario.change import changed, with_orders
from atoll.planning.scenario.file import Question, Scenario, Side
from atoll.planning.shortage import NoOrders
from atoll.planning.whatif import alike
from atoll.supply import Which

Kind = Literal["shortfall", "what_if"]

HAND = {"dense": 0.38, "sparse": 0.18}
"""Parts of the peak (MFU by 6 N D) for a reckoning by hand: judged, in the middle of what was
published of chips as in the scenarios that ship, 25 to 50 % and 10 to 30 % (arXiv:2504.07866,
arXiv:2505.04519)."""

AVAILABLE = 0.9
"""Part of the time that chips compute, by hand: judged, 0.8 to 0.95."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A fleet over time, with what is ordered for it; `why` nothing is, where something was asked.

    `told` is None without an offers file, and where no orders are enough.
    """

    fleet: Fleet
    told: Told | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A question and its two sides; calendars in the order of the scenario's models."""

    kind: Kind
    question: Question
    before: Variant
    after: Variant
    befores: tuple[Calendar, ...]
    afters: tuple[Calendar, ...]

    def days(self, model: int, which: Which = "mid") -> float | None:
        """Days later (above 0) or sooner that a model is done by the change; None if either side
        is never done.
        """
        before = self.befores[model].courses[which].done
        after = self.afters[model].courses[which].done
        return None if before is None or after is None else (after - before) / DAY

    def range(self, model: int) -> tuple[float, float, float] | None:
        """(least, mid, most) days over the three courses; None if mid has none."""
        mid = self.days(model)
        if mid is None:
            return None
        all_ = [one for one in (self.days(model, which) for which in WHICH) if one is not None]
        return min(all_), mid, max(all_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All answers. `calendars` are of the scenario as it stands, in the order of its models."""

    scenario: Scenario
    asked: Asked
    base: Variant
    calendars: tuple[Calendar, ...]
    effects: tuple[Effect, ...]
    plans: int

    def of_kind(self, kind: Kind) -> tuple[Effect, ...]:
        """The answers to one list of questions."""
        return tuple(one for one in self.effects if one.kind == kind)

    @property
    def labels(self) -> tuple[str, ...]:
        """The models' labels."""
        return tuple(one.label for one in self.scenario.told.model)

    @property
    def longest(self) -> int:
        """The model that takes longest by mid; one that is never done before all others."""
        ends = [math.inf if one.mid.done is None else one.mid.done for one in self.calendars]
        return ends.index(max(ends))


def study(
    scenario: Scenario,
    asked: Asked | None = None,
    *,
    draws: int = 1000,
    seed: int = 1,
    seconds: float = 5.0,
    tell: Callable[[str], None] | None = None,
) -> Study:
    """Asks the planner everything. The same scenario and seed, the same answers, as long as no
    solve of orders runs into its limit of `seconds`.

    `tell` is called with what is being reckoned. InputError for what is wrong in a file.
    """
    say = tell or (lambda _: None)
    told = scenario.told
    asked = replace(asked or Asked(), day=scenario.start)
    questions: list[tuple[Kind, int, Question]] = []
    questions += [("shortfall", number, one) for number, one in enumerate(told.shortfall)]
    questions += [("what_if", number, one) for number, one in enumerate(told.what_if)]
    sides = {repr(Side()): (Side(), "")}
    for kind, number, question in questions:
        for side in question.sides():
            sides.setdefault(repr(side), (side, f"{kind}[{number}]"))
    variants = []
    for number, (side, key) in enumerate(sides.values()):
        if scenario.offers is not None:
            say(f"orders, {number + 1} of {len(sides)}")
        variants.append(_variant(scenario, side, key, asked, seconds))
    fleets = alike([one.fleet for one in variants])
    place = {name: number for number, name in enumerate(sides)}
    found = []
    for entry, recipe in zip(told.model, scenario.recipes, strict=True):
        say(f"{entry.label}: {len(variants)} fleets")
        rates = [Rates(recipe, fleet, asked) for fleet in fleets]
        courses = calendars_from(rates, scenario.start)
        if draws:
            say(f"{entry.label}: {draws:,} draws")
            courses[0] = replace(courses[0], draws=draw(courses[0], number=draws, seed=seed))
        found.append(courses)
    effects = []
    for kind, _, question in questions:
        before, after = (place[repr(side)] for side in question.sides())
        effects.append(
            Effect(
                kind=kind, question=question, before=variants[before], after=variants[after],
                befores=tuple(one[before] for one in found),
                afters=tuple(one[after] for one in found),
            )
        )  # fmt: skip
    return Study(
        scenario=scenario, asked=asked, base=variants[0],
        calendars=tuple(one[0] for one in found), effects=tuple(effects),
        plans=sum(len(one[0].rates.known) + len(one[0].rates.quick) for one in found),
    )  # fmt: skip


def _variant(scenario: Scenario, side: Side, key: str, asked: Asked, seconds: float) -> Variant:
    """The fleet of one side of the question `key`, and what is then ordered for it."""
    try:
        fleet, offers = changed(scenario, side)
    except InputError as fault:
        fault.file, fault.key = str(scenario.file), f"{key}.{fault.key}"
        raise
    ordering, recipe = scenario.told.orders, scenario.order_recipe
    if scenario.offers is None or offers is None or ordering is None or recipe is None:
        return Variant(fleet=fleet)
    why, told = "", None
    try:
        told = purchase(
            recipe, fleet, offers, asked, goal=ordering.goal, by=ordering.by, at=ordering.at,
            seconds=seconds, again=ordering.again,
        )  # fmt: skip
    except NoOrders as fault:
        why = str(fault)
    except InputError as fault:
        raise _named(fault, scenario) from None
    fleet = with_orders(fleet, scenario.offers, None if told is None else told.answer)
    return Variant(fleet=fleet, told=told, why=why)


def _named(fault: InputError, scenario: Scenario) -> InputError:
    """The fault with the file that its key stands in."""
    key = fault.key or ""
    asked = scenario.told.orders
    if fault.file is None and key.startswith(("offer[", "budget[", "limit[")) and asked is not None:
        fault.file = str(scenario.place(asked.offers))
    elif fault.file is None and key.startswith(("island[", "site[", "withdrawal[")):
        fault.file = str(scenario.place(scenario.told.fleet))
    elif fault.file is None:
        fault.file = str(scenario.file)
        fault.key = {"--by": "orders.by", "--at": "orders.at"}.get(key, key) or None
    return fault


def by_hand(calendar: Calendar) -> float | None:
    """Seconds by 6 N D over the peak of the chips that take part, at `HAND` of it; None: never.

    N is the number of active parameters (arXiv:2001.08361, section 2.1). The chips are those of the
    mid course, so that it checks the planner's speeds and failures, not its choice of chips.
    """
    model = calendar.rates.recipe.model
    part = HAND["sparse" if model.experts else "dense"] * AVAILABLE
    flops = 6.0 * model.num_active_parameters()
    periods = calendar.mid.periods
    rates = [part * _peak(one) / flops for one in periods]
    return run_through(calendar.tokens, [one.begin for one in periods], rates)[1]


def _peak(period: Period) -> float:
    """FLOP/s at the peak of the devices that take part."""
    answer = period.rated.answer
    return sum(
        one.machine.speed(one.work.precision) * one.layout.num_devices
        for one in (answer.islands if answer is not None else ())
    )
