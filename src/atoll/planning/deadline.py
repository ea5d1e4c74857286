"""Deadline: the largest model of a recipe's family that is done by a day.

Each size on the way is planned for every period of the fleet until that day. The sizes are rungs of
a ladder that no fleet and no day changes, and bisection on one ladder answers a later day never
with a smaller model: where two searches first part, the later day went up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from atoll.errors import InputError
from atoll.facts.scaling import Rule, laws
from atoll.fleet import Fleet
from atoll.model import Model
from atoll.planning.calendar import (
    DAY,
    WHICH,
    Course,
    Rates,
    by_rules,
    course_of,
    day_after,
    stock_of,
)
from atoll.planning.family import ladder, near, rule_for, sized
from atoll.planning.planner import Asked, NoPlan, peaks_of, require_here
from atoll.recipe import Recipe, require_supported
from atoll.supply import Which
from atoll.units import format_count

MOST_OF_PEAK = 1.25
"""No plan is so many times as fast as large matrix products alone: sizes beyond are not planned."""


BESIDE = 3
"""Rungs that are tried in a row before a size is held to be too large."""

NEARLY = 0.8
"""Part of its tokens that a size must have in time for the next ones to be tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size of the family: its recipe, and the second at which it would be done (None: never).

    `part` of its tokens is done by the last day; `why` it is not planned, or computes nothing.
    """

    recipe: Recipe
    done: float | None
    part: float
    why: str = ""

    @property
    def model(self) -> Model:
        """Its model."""
        return self.recipe.model

    @property
    def tokens(self) -> float:
        """Tokens of the whole run."""
        return float(self.recipe.total_steps() * self.recipe.tokens_per_step)

    def loss(self) -> float:
        """Nats a token by the recipe's law, or by the first one where the rule is no law."""
        law = next(iter(laws().values()))
        return law.loss(self.model.num_active_parameters(), self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The largest size by `by` on each course that was asked (None: not even the smallest).

    `larger` is the next size on mid deliveries, which is not done by then (None: there is none).
    """

    start: date
    by: date
    rule: Rule
    sizes: Mapping[Which, Size | None]
    larger: Size | None
    planned: int

    @property
    def mid(self) -> Size:
        """The size on mid deliveries and speed, which there is."""
        size = self.sizes["mid"]
        assert size is not None
        return size


def largest(
    recipe: Recipe,
    fleet: Fleet,
    asked: Asked,
    *,
    by: date,
    courses: Sequence[Which] = ("mid", "low", "high"),
    report: Callable[[str], None] | None = None,
) -> Deadline:
    """The largest models that are done by the end of a day, on some courses, "mid" among them.

    InputError for what is wrong; `NoPlan` if on mid deliveries not even the smallest is done.
    """
    start = asked.day
    if start is None:
        fix = "--from 2024-07-01 --by 2025-01-01"
        raise InputError("a day to be done by needs a first day", key="--by", value=by, fix=fix)
    if by <= start:
        fix = f"a day after {start}"
        raise InputError("is not after the first day", key="--by", value=str(by), fix=fix)
    if asked.executor == "atoll":  # no size of the family would train here either
        require_supported(recipe)
        require_here(recipe, asked.only)
    search = _Search(recipe, fleet, asked, by, report)
    rungs: dict[Which, int] = {which: search.rung(which) for which in courses}
    if rungs["mid"] < 0:
        smallest = search.size(0, "mid")
        why = smallest.why or f"it would be done on {day_after(start, smallest.done) or 'no day'}"
        name = format_count(search.models[0].num_parameters())
        raise NoPlan(f"not even {name} parameters are done by {by}\n  {why}")
    larger = rungs["mid"] + 1
    return Deadline(
        start=start, by=by, rule=search.rule,
        sizes={
            which: search.size(rung, which) if rung >= 0 else None for which, rung in rungs.items()
        },
        larger=search.size(larger, "mid") if larger < len(search.models) else None,
        planned=len(search.rates),
    )  # fmt: skip


def highest(number: int, holds: Callable[[int], bool]) -> int:
    """By bisection a rung below `number` that holds while the next one does not; -1 for none.

    What holds for more rungs never gives a lower one, whether or not they are all in one piece:
    where two searches first part, the one that holds went up.
    """
    low, high = -1, number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class _Search:
    """Sizes of one family on one fleet by one day; each is planned once."""

    def __init__(
        self,
        recipe: Recipe,
        fleet: Fleet,
        asked: Asked,
        by: date,
        report: Callable[[str], None] | None,
    ) -> None:
        assert asked.day is not None
        self.recipe, self.report = recipe, report
        self.fleet, _, self.asked = by_rules(fleet, asked)
        self.rule = rule_for(recipe)
        self.models: Sequence[Model] = ladder(recipe)
        self.seconds = ((by - asked.day).days + 1) * DAY
        days = [asked.day, *self.fleet.change_days(asked.day)]
        self.days = [day for day in days if day <= by]
        self.peak = {which: self._peak(which) for which in WHICH}
        self.rates: dict[int, Rates] = {}
        self.found: dict[tuple[int, Which], Size] = {}

    def rung(self, which: Which) -> int:
        """A rung that is done in time while none of the next ones is, -1 for none.

        Days are no smooth function of the size: some layers divide worse than the next ones.
        """
        return highest(len(self.models), lambda rung: self._holds(rung, which, BESIDE))

    def _holds(self, rung: int, which: Which, beside: int) -> bool:
        """Whether a size is done in time, or nearly, and one of the next ones is done in time.

        More time makes neither untrue, so `highest` stays in order; and what it finds is done.
        """
        if rung == len(self.models) or beside == 0:
            return False
        if self._in_time(rung, which):
            return True
        return self._nearly(rung, which) and self._holds(rung + 1, which, beside - 1)

    def _nearly(self, rung: int, which: Which) -> bool:
        """Whether a size has most of its tokens in time; on few chips it never has more of them."""
        known = (self.found.get((rung, other)) for other in WHICH[WHICH.index(which) :])
        if any(one is not None and one.part < NEARLY for one in known):
            return False
        return self.size(rung, which).part >= NEARLY

    def size(self, rung: int, which: Which) -> Size:
        """A size with its end on one course, as far as that is known by the last day."""
        key = (rung, which)
        if key not in self.found:
            self.found[key] = self._followed(rung, which)
        return self.found[key]

    def _in_time(self, rung: int, which: Which) -> bool:
        """Whether a size is done on a course.

        What is done on few chips is done on many too, and the other way round: so that no course
        of more chips ends with a smaller model.
        """
        order = {"low": 0, "mid": 1, "high": 2}
        for other in WHICH:
            known = self.found.get((rung, other))
            if known is None or other == which:
                continue
            done = self._is_done(known)
            if done and order[other] < order[which]:
                return True
            if not done and order[other] > order[which]:
                return False
        return self._is_done(self.size(rung, which))

    def _is_done(self, size: Size) -> bool:
        return size.done is not None and size.done < self.seconds

    def _followed(self, rung: int, which: Which) -> Size:
        """The run of one size through the fleet until the last day."""
        recipe = sized(self.recipe, self.models[rung], self.rule)
        flops = recipe.model.flops_per_token() * recipe.total_steps() * recipe.tokens_per_step
        if flops > self.peak[which]:
            why = f"its {flops:.2g} FLOP are more than all chips could compute by then"
            return Size(recipe=recipe, done=None, part=0.0, why=why)
        if self.report is not None:
            self.report(f"{format_count(recipe.model.num_parameters())} parameters")
        if rung not in self.rates:
            self.rates[rung] = Rates(recipe, self.fleet, self.asked)
        tokens = float(recipe.total_steps() * recipe.tokens_per_step)
        course = course_of(self.rates[rung], self.days, tokens, which)
        last = course.done is not None and course.done <= self.seconds
        part = 1.0 if last else course.tokens_at(self.seconds) / tokens
        why = self._why(rung, course, which)
        return Size(recipe=recipe, done=course.done, part=part, why=why)

    def _why(self, rung: int, course: Course, which: Which) -> str:
        """Why nothing is computed on any day; empty where something is."""
        if course.done is not None or course.curve[-1][1] > 0:
            return ""
        last = self.days[-1]
        return self.rates[rung].of(stock_of(self.fleet, last, which)).why

    def _peak(self, which: Which) -> float:
        """FLOP that all chips of a course could compute by the last day at their peak."""
        peaks, total = peaks_of(self.recipe, self.fleet, self.asked), 0.0
        ends = [*((day - self.days[0]).days * DAY for day in self.days[1:]), self.seconds]
        for day, end in zip(self.days, ends, strict=True):
            chips = stock_of(self.fleet, day, which)
            begin = (day - self.days[0]).days * DAY
            total += (end - begin) * sum(peaks[name] * n for name, n in chips.items())
        return MOST_OF_PEAK * total


def summary(found: Deadline) -> list[tuple[str, str]]:
    """The answer as lines of a name and a text."""
    lines = [("largest", f"by {found.by}: {_told(found, 'mid')}")]
    if "low" in found.sizes:
        lines.append(("if few come", _told(found, "low")))
    if "high" in found.sizes:
        lines.append(("if many come", _told(found, "high")))
    if found.larger is not None:
        size, day = found.larger, day_after(found.start, found.larger.done)
        why = size.why or (f"done on {day}" if day is not None else "not done by then")
        number = format_count(size.model.num_parameters())
        lines.append(("one larger", f"{number} parameters: {why}"))
    return lines


def _told(found: Deadline, which: Which) -> str:
    size = found.sizes[which]
    if size is None:
        return "none is done"
    model, law = size.model, next(iter(laws()))
    number = format_count(model.num_parameters())
    if model.experts is not None:
        number += f" ({format_count(model.num_active_parameters())} of them in a token)"
    text = f"{number} parameters on {format_count(size.tokens)} tokens"
    if which == "mid":
        text += f" ({found.rule.text}), {model.layers} layers of width {model.width:,}"
        published = near(model)
        text += f", near {published}" if published is not None else ""
        text += f"; loss {size.loss():.3f} by {law}"
    return text + f"; done on {day_after(found.start, size.done)}"


def notes(found: Deadline) -> list[str]:
    """What a reader should know before believing a size."""
    own = "sizes in the proportions of the recipe's own model, each about 2 % above the one before"
    lines = [f"{own}; the learning rate stays the recipe's"]
    if found.mid.model.experts is not None:
        lines.append(
            "tokens are counted by the parameters that take part in a token; the laws were fitted "
            "on dense models"
        )
    return lines


def as_json(found: Deadline | None) -> dict[str, Any]:
    """The key `deadline` of `atoll plan --json`."""
    if found is None:
        return {"deadline": None}
    return {
        "deadline": {
            "by": found.by.isoformat(),
            "rule": found.rule.text,
            **{which: _plain(found, found.sizes.get(which)) for which in WHICH},
            "larger": _plain(found, found.larger),
            "planned": found.planned,
            "notes": notes(found),
        }
    }


def _plain(found: Deadline, size: Size | None) -> dict[str, Any] | None:
    if size is None:
        return None
    model, day = size.model, day_after(found.start, size.done)
    return {
        "parameters": model.num_parameters(),
        "active_parameters": model.num_active_parameters(),
        "layers": model.layers, "width": model.width, "heads": model.heads,
        "tokens": size.tokens, "batch_tokens": size.recipe.tokens_per_step,
        "flops": model.flops_per_token() * size.tokens,
        "loss": size.loss(), "loss_law": next(iter(laws())), "near": near(model),
        "done": None if day is None or math.isinf(size.done or 0.0) else day.isoformat(),
        "why": size.why,
    }  # fmt: skip
