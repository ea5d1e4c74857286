"""Problem: what a search is asked, with everything looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.fleet import Fleet, Island
from atoll.plan import Layout
from atoll.planning.exchange import Member
from atoll.planning.machine import Machine
from atoll.planning.options import Coefficient, Corrector
from atoll.planning.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An island of the fleet with its machine and the work in its stack's hands."""

    island: Island
    machine: Machine
    work: Work
    correct: Corrector | None = None

    @property
    def name(self) -> str:
        """The island's name."""
        return self.island.name

    @property
    def devices(self) -> int:
        """All torch devices of the island."""
        return self.island.nodes * self.machine.node_devices

    @property
    def speed(self) -> float:
        """FLOP/s of the whole island: only to guess shares before anything is known."""
        machine = self.machine
        return machine.speed(self.work.precision) * (machine.matmul or 0.8) * self.devices

    def member(self) -> Member:
        """The island as the exchange sees it."""
        return Member(
            name=self.name, site=self.island.site, machine=self.machine, devices=self.devices
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Places, the batch in grains, how islands exchange, what a person fixed.

    `grain` is sequences a grain, `grains` all grains of a step, `every` "step" or "rounds" of
    `round_steps` steps. `only` fixes keys of every layout, `suits` narrows them, `shares` the
    shares of the islands. `among` names, by island, the layouts whose like alone are tried; then
    nothing is compared with the best way.
    """

    places: Sequence[Place]
    fleet: Fleet
    grain: int
    grains: int
    every: str
    round_steps: int
    coefficients: Coefficient
    only: Mapping[str, Any] = field(default_factory=dict)
    suits: Callable[[Layout], bool] | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    among: Mapping[str, Sequence[Layout]] = field(default_factory=dict)
