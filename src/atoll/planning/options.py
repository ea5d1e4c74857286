"""Options: the layouts of one island that fit its memory, each with its time for a share of grains.

Memory comes first: a layout takes the least recompute that fits. What no share could ever make the
best is left out at once, so that the search between islands sees a handful.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll.plan import Layout
from atoll.planning.cost import Coefficients, Cost, step_cost
from atoll.planning.layouts import layouts
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
    """A layout on an island; a step in which a lane computes n grains takes fixed + n * each."""

    layout: Layout
    fixed: float
    each: float
    memory: MemoryUse
    cost: Cost
    factor: float

    def seconds(self, grains: int) -> float:
        """Seconds of a step in which the island computes `grains` grains."""
        return self.fixed + -(-grains // self.layout.dp) * self.each if grains else 0.0

    def within(self, seconds: float) -> int:
        """How many grains the island computes in `seconds`."""
        if seconds < self.fixed + self.each:
            return 0
        return self.layout.dp * int((seconds - self.fixed) / self.each + 1e-9)


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
) -> tuple[list[Option], Tightest | None]:
    """The options worth keeping, fastest first for about `share` grains; else what came nearest.

    `grain` is sequences a grain, `grains` all grains of a step.
    """
    only = only or {}
    found: list[Option] = []
    tightest: Tightest | None = None
    for layout in layouts(work, machine, devices, grain=grain, grains=grains, only=only):
        tried, use = _fitting(work, layout, machine, grain, grains, coefficients, only)
        if use.total > machine.memory * USABLE:
            if tightest is None or use.total < tightest.need:
                have = machine.memory * USABLE
                tightest = Tightest(layout=tried, need=use.total, have=have)
            continue
        found.append(option_of(work, tried, machine, grain, share, coefficients, use))
    found.sort(key=lambda option: option.seconds(share))
    if correct is not None and found:
        found = _corrected(work, machine, found[:CORRECTED], share, correct)
    return undominated(found), None if found else tightest


def _fitting(
    work: Work,
    layout: Layout,
    machine: Machine,
    grain: int,
    grains: int,
    c: Coefficient,
    only: Mapping[str, Any],
) -> tuple[Layout, MemoryUse]:
    """The layout with the least recompute that fits, else with full recompute.

    It must fit with all `grains`: the share is found later, and a pipeline holds more micro-batches
    the more there are.
    """
    flight = max(1, -(-grains // layout.dp)) * grain // layout.microbatch
    choices = (only["recompute"],) if "recompute" in only else RECOMPUTES
    for recompute in choices:
        tried = layout.model_copy(update={"recompute": recompute})
        use = memory_use(work, tried, flight, c.memory)
        if use.total <= machine.memory * USABLE:
            break
    return tried, use


def option_of(
    work: Work,
    layout: Layout,
    machine: Machine,
    grain: int,
    share: int,
    c: Coefficient,
    use: MemoryUse,
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

    One that starts sooner, has as many lanes and needs no longer a grain is better for all shares.
    """
    kept: list[Option] = []
    for option in options:
        if not any(
            other.fixed <= option.fixed
            and other.each <= option.each
            and other.layout.dp >= option.layout.dp
            for other in kept
        ):
            kept.append(option)
    return kept


def capacity(options: Sequence[Option], seconds: float) -> int:
    """The most grains that an island computes in `seconds` by any of its options."""
    return max((option.within(seconds) for option in options), default=0)


def fastest(options: Sequence[Option], grains: int) -> Option:
    """The option that is soonest done with `grains` grains."""
    return min(options, key=lambda option: (option.seconds(grains), option.memory.total))


def spread_of(machine: Machine, low: float, high: float) -> tuple[float, float]:
    """Factors on seconds: the model's own doubt, and the chip's peak where sources disagree."""
    slow, fast = machine.spread
    return (
        math.exp(-math.hypot(math.log(1.0 / low), math.log(fast))),
        math.exp(math.hypot(math.log(high), math.log(1.0 / slow))),
    )
