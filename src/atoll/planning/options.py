"""Options: the layouts of one island that fit its memory, each with its time for a share of grains.

Memory comes first: a layout takes the least recompute that fits; where that holds for a smaller
share only, it is kept up to that share, and more recompute beyond it. What no share could ever make
the best is left out at once, so that the search between islands sees a handful.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll.plan import Layout
from atoll.planning.cost import Coefficients, Cost, step_cost
from atoll.planning.layouts import layouts, refitted
from atoll.planning.machine import Machine
from atoll.planning.memory import MemoryCoefficients, MemoryUse, memory_use
from atoll.planning.work import Work

USABLE = 0.94
"""Part of a device's memory that a plan fills at most; the rest is for what nobody foresaw."""

CORRECTED = 48
"""Of the layouts that are fastest by the formulas, how many get the correction."""

RECOMPUTES = ("none", "selective", "full")

Corrector = Callable[[Work, Machine, Sequence[tuple[Layout, int]]], Sequence[float]]
"""Factors on the seconds of layouts with so many micro-batches a lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A layout on an island; a step in which a lane computes n grains takes fixed + n * each.

    It holds at most `most` grains of a step. `tail` seconds go by after the last grain before the
    next step can begin: what an exchange with other islands adds.
    """

    layout: Layout
    fixed: float
    each: float
    memory: MemoryUse
    cost: Cost
    factor: float
    most: float = math.inf
    tail: float = 0.0

    def seconds(self, grains: int) -> float:
        """Seconds of a step in which the island computes `grains` grains; inf if it cannot."""
        if not grains:
            return 0.0
        if grains > self.most:
            return math.inf
        return self.fixed + -(-grains // self.layout.dp) * self.each + self.tail

    def within(self, seconds: float) -> int:
        """How many grains the island computes in `seconds`."""
        turns = int((seconds - self.fixed - self.tail) / self.each + 1e-9)
        return int(min(self.layout.dp * max(0, turns), self.most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tightest:
    """The layout that comes nearest to fitting where none does, and what it needs: bytes."""

    layout: Layout
    need: float
    have: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """Both sets of fitted coefficients."""

    time: Coefficients
    memory: MemoryCoefficients


def island_options(
    work: Work,
    machine: Machine,
    devices: int,
    *,
    grain: int,
    grains: int,
    share: int,
    coefficients: Coefficient,
    correct: Corrector | None = None,
    only: Mapping[str, Any] | None = None,
    suits: Callable[[Layout], bool] | None = None,
    among: Sequence[Layout] | None = None,
) -> tuple[list[Option], Tightest | None]:
    """The options worth keeping, fastest first for about `share` grains.

    And what came nearest where no layout holds all grains. `grain` is sequences a grain, `grains`
    all grains of a step. `among` are layouts of other numbers of devices: then only their like.
    """
    only = only or {}
    found: list[Option] = []
    tightest: Tightest | None = None
    usable = machine.memory * USABLE
    every = (
        layouts(work, machine, devices, grain=grain, grains=grains, only=only, suits=suits)
        if among is None
        else refitted(work, among, devices, grains=grains)
    )
    for layout in every:
        choices = (only["recompute"],) if "recompute" in only else RECOMPUTES
        for tried, use, most in _fitting(
            work, layout, usable, grain, grains, coefficients, choices
        ):
            if most:
                found.append(option_of(work, tried, machine, grain, share, coefficients, use, most))
            elif tightest is None or use.total < tightest.need:
                tightest = Tightest(layout=tried, need=use.total, have=usable)
    found.sort(key=lambda option: option.seconds(share))
    if correct is not None and found:
        found = _corrected(work, machine, found[:CORRECTED], share, correct)
    whole = any(option.most >= grains for option in found)
    return undominated(found), None if whole else tightest


def _fitting(
    work: Work,
    layout: Layout,
    usable: float,
    grain: int,
    grains: int,
    c: Coefficient,
    choices: Sequence[str],
) -> Iterator[tuple[Layout, MemoryUse, float]]:
    """The layout with each recompute that is of use: bytes, and the most grains that it holds.

    The least that holds all `grains` ends the list. A pipeline holds more micro-batches the more
    there are, so that one with less recompute may hold some of them. Last 0 grains: nothing holds
    all, and the bytes are what all would need.
    """
    per_grain = grain // layout.microbatch
    turns = max(1, -(-grains // layout.dp))
    for recompute in choices:
        tried = layout.model_copy(update={"recompute": recompute})
        use = memory_use(work, tried, turns * per_grain, c.memory)
        if use.total <= usable:
            yield tried, use, math.inf
            return
        if layout.pp > 1:
            few, some = _most_turns(work, tried, usable, per_grain, c)
            if few:
                yield tried, some, float(layout.dp * few)
    yield tried, use, 0.0


def _most_turns(
    work: Work, layout: Layout, usable: float, per_grain: int, c: Coefficient
) -> tuple[int, MemoryUse]:
    """The most grains of a lane whose micro-batches in flight fit, and their bytes.

    Bytes are a line in the micro-batches. No grain: the bytes of one micro-batch.
    """
    one = memory_use(work, layout, 1, c.memory)
    if one.total > usable:
        return 0, one
    more = int((usable - one.total) / (c.memory.gaps * one.activations))
    for turns in range((1 + more) // per_grain, 0, -1):  # a second turn only after rounding
        use = memory_use(work, layout, turns * per_grain, c.memory)
        if use.total <= usable:
            return turns, use
    return 0, one


def option_of(
    work: Work,
    layout: Layout,
    machine: Machine,
    grain: int,
    share: int,
    c: Coefficient,
    use: MemoryUse,
    most: float = math.inf,
) -> Option:
    """A layout with its seconds by the formulas alone."""
    per_grain = grain // layout.microbatch
    microbatches = max(1, -(-share // layout.dp)) * per_grain
    cost = step_cost(work, layout, machine, microbatches, c.time)
    return Option(
        layout=layout,
        fixed=cost.fixed,
        each=cost.each * per_grain,
        memory=use,
        cost=cost,
        factor=1.0,
        most=most,
    )


def _corrected(
    work: Work,
    machine: Machine,
    options: Sequence[Option],
    share: int,
    correct: Corrector,
) -> list[Option]:
    """The options with published experience in their seconds, fastest first."""
    tried = [(option.layout, option.cost.microbatches) for option in options]
    factors = correct(work, machine, tried)
    found = [
        replace(option, fixed=option.fixed * f, each=option.each * f, factor=f)
        for option, f in zip(options, map(float, factors), strict=True)
    ]
    return sorted(found, key=lambda option: option.seconds(share))


def undominated(options: Sequence[Option]) -> list[Option]:
    """The options that are the fastest for at least one number of grains, in the given order.

    One that starts sooner, has as many lanes, needs no longer a grain and holds as many grains is
    better for all shares. It stays so with a tail that grows by less than a grain gets shorter.
    """
    kept: list[Option] = []
    for option in options:
        if not any(
            other.fixed <= option.fixed
            and other.each <= option.each
            and other.layout.dp >= option.layout.dp
            and other.most >= option.most
            for other in kept
        ):
            kept.append(option)
    return kept


def capacity(options: Sequence[Option], seconds: float) -> int:
    """The most grains that an island computes in `seconds` by any of its options."""
    return max((option.within(seconds) for option in options), default=0)


def room(options: Sequence[Option]) -> float:
    """The most grains of a step that an island holds by any of its options."""
    return max((option.most for option in options), default=0.0)


def fastest(options: Sequence[Option], grains: int) -> Option:
    """The option that is soonest done with `grains` grains; of equal ones that of least memory."""
    soonest = min(option.seconds(grains) for option in options)
    equal = [option for option in options if option.seconds(grains) == soonest]
    return equal[0] if len(equal) == 1 else min(equal, key=lambda option: option.memory.total)


def contenders(options: Sequence[Option], low: float, high: float) -> Sequence[Option]:
    """The options of which one has the `capacity` of all, at any time from `low` to `high`."""
    first = max(options, key=lambda option: option.within(low))
    sure = first.within(low)
    return [option for option in options if option is first or option.within(high) > sure]


def spread_of(machine: Machine, low: float, high: float) -> tuple[float, float]:
    """Factors on seconds: the model's own doubt, and the chip's peak where sources disagree."""
    slow, fast = machine.spread
    return (
        math.exp(-math.hypot(math.log(1.0 / low), math.log(fast))),
        math.exp(math.hypot(math.log(high), math.log(1.0 / slow))),
    )
