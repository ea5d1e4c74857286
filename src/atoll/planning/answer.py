"""Answer: what the planner is asked and what it says, as nouns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from atoll.errors import AtollError
from atoll.facts.measured import Measured
from atoll.fleet import Fleet, Island
from atoll.plan import Estimate, Layout, LeftOut
from atoll.planning.cost import Cost
from atoll.planning.machine import Machine
from atoll.planning.options import Option
from atoll.planning.placing import Chosen, Placed, placed
from atoll.planning.search import Way
from atoll.planning.work import Work
from atoll.recipe import Recipe


class NoPlan(AtollError):
    """No feasible plan exists; the message says why, by how much, and what would make one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for besides recipe and fleet.

    `day` picks the stock; `only` fixes keys of the layouts; `every` overrides how often islands
    exchange; `executor` is "auto" or "atoll"; `tool` is another tool that shall run the plan: only
    makes that it runs on and layouts that it can express are tried. `measured` are measurements by
    chip, `factors` calibrations by chip. `rules` refuse islands; None asks none. `among` names
    layouts by island (`Answer.tried` of other stocks): only their like are tried, and nothing is
    explained; several times as quick, for a plan that nobody reads.
    """

    day: date | None = None
    only: Mapping[str, Any] = field(default_factory=dict)
    every: str | None = None
    executor: str = "auto"
    measured: Mapping[str, Measured] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    tool: str | None = None
    rules: Chosen | None = None
    among: Mapping[str, Sequence[Layout]] = field(default_factory=dict)

    def placed(self, stock: Fleet) -> Placed:
        """What the rules say of the islands of a stock on the first day, today without one."""
        if self.rules is None:
            return Placed(refused={}, notes=())
        return placed(stock, self.rules, self.day or date.today())


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandAnswer:
    """An island that takes part: its layout, its grains, where its time and memory go."""

    island: Island
    machine: Machine
    work: Work
    layout: Layout
    grains: int
    seconds: float
    memory: Mapping[str, float]
    memory_size: float
    cost: Cost | None
    factor: float
    stages: tuple[int, ...] = ()

    @property
    def chips(self) -> int:
        """Chips that take part."""
        return self.layout.num_devices // max(1, self.machine.devices_per_chip)

    @property
    def memory_used(self) -> float:
        """Bytes on the fullest device."""
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a recipe on a fleet comes to; seconds, bytes and FLOP/s.

    `unpowered` is island -> chips that stand idle because their site's power is not enough, `tried`
    island -> its fastest options.
    """

    recipe: Recipe
    fleet: Fleet
    day: date | None
    islands: tuple[IslandAnswer, ...]
    way: Way
    every: str
    step_seconds: Estimate
    tokens_per_second: Estimate
    mfu: float
    steps: int
    finish_seconds: Estimate
    rejected: tuple[LeftOut, ...]
    helps: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    executor: str
    executor_why: str
    contract: str
    search_seconds: float
    unpowered: Mapping[str, int] = field(default_factory=dict)
    tried: Mapping[str, Sequence[Option]] = field(default_factory=dict)

    @property
    def chips(self) -> int:
        """Chips that take part."""
        return sum(one.chips for one in self.islands)

    def finish_days(self) -> tuple[date, date, date] | None:
        """Low, mid and high day of the last step; None beyond the calendar."""
        begin = self.day or date.today()
        seconds = (self.finish_seconds.low, self.finish_seconds.mid, self.finish_seconds.high)
        try:
            low, mid, high = (begin + timedelta(seconds=s) for s in seconds)
        except OverflowError:
            return None
        return low, mid, high
