"""Goodput: which part of its time a plan computes what stays, given how often chips fail.

Two ways to go on after a failure are reckoned side by side. Atoll's: the other islands compute the
open step's lost grains and go on; the island that failed is away until it is started again.
Restart from a checkpoint: everybody waits, and what was computed since the checkpoint is lost.
Checkpoints are written beside the training, so that writing one costs nothing in either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.facts.failures import rate_of, restart_seconds
from atoll.supply import Failures
from atoll.units import parse_seconds

if TYPE_CHECKING:
    from atoll.planning.planner import Answer, IslandAnswer

STEPS_LOST = 1.5
"""Steps of an island's share that its death costs: the open one, and up to one until it is seen."""

DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Shares of time from 0 to 1, and what they rest on.

    `factor` is the share that counts for this plan: `going_on` where Atoll carries it out,
    `restarting` where another tool does, which knows no other islands. `lost` are the seconds that
    a failure costs by that way, `per_second` the failures of all chips that take part.
    """

    factor: float
    going_on: float
    restarting: float
    per_second: float
    lost: float
    known: bool

    @property
    def hours(self) -> float | None:
        """Hours between two failures; None without any."""
        return 1.0 / (3600.0 * self.per_second) if self.per_second else None

    def scaled(self, times: float) -> float:
        """`factor` if chips failed so many times as often."""
        return share(self.per_second * times, self.lost)


def share(per_second: float, lost: float) -> float:
    """The part of time that stays, if failures come at a rate while it computes."""
    return 1.0 / (1.0 + per_second * lost)


def goodput_of(answer: Answer, failures: Failures | None) -> Goodput:
    """The goodput of a plan on its islands; of a fleet that counts no failures it is 1."""
    failures = failures or Failures()
    if failures.mode == "none":
        return Goodput(
            factor=1.0, going_on=1.0, restarting=1.0, per_second=0.0, lost=0.0, known=True
        )
    again = parse_seconds(failures.restart) if failures.restart else restart_seconds()[1]
    step = answer.way.seconds
    back = again + answer.recipe.run.checkpoint_every * step / 2.0
    rates = [_rate(one, failures) for one in answer.islands]
    total = sum(rates)
    alone = len(answer.islands) == 1 or answer.way.chain is not None
    grains = sum(one.grains for one in answer.islands)
    own = back
    if not alone and total > 0:
        own = sum(
            rate / total * one.grains / grains * (STEPS_LOST * step + again)
            for rate, one in zip(rates, answer.islands, strict=True)
        )
    ours = answer.executor == "atoll"
    return Goodput(
        factor=share(total, own if ours else back),
        going_on=share(total, own),
        restarting=share(total, back),
        per_second=total,
        lost=own if ours else back,
        known=failures.days is not None
        or all(rate_of(one.machine.chip).known for one in answer.islands),
    )


def _rate(one: IslandAnswer, failures: Failures) -> float:
    """Failures a second of an island's chips that take part."""
    each = rate_of(one.machine.chip).mid if failures.days is None else 1.0 / (failures.days * DAY)
    return one.chips * each
