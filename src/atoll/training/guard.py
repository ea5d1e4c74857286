"""The guard: what the recipe says about a step whose loss or gradient norm is a spike.

Pure: no torch, no clock, no island. A step is judged by what stands in the ledger, which is the
same whoever computed it: its value against the median of the last steps whose updates are in the
weights, by one product and comparisons. All state follows from the ledger's lines (`replay`), so
a resume, another pilot and an audit judge as the run did. What it does not judge: values that are
not finite, which end a run by themselves (`training.step.not_finite`).

What a step does to the weights and moments is one of `CHANGES`:

    update      the update of the optimizer
    keep        the state before the step is kept to go back to, then the update
    skip        nothing: the step's text is passed over
    roll-back   the state that was kept last is taken up again

Step numbers, the learning rate and the order of the text go on as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from atoll.errors import RunError
from atoll.history.telling import QUANTITIES
from atoll.recipe import GuardSpec
from atoll.run import LedgerLine, Spike

Change = Literal["update", "keep", "skip", "roll-back"]


@dataclass(slots=True, kw_only=True)
class _Taken:
    """A step whose update is in the weights."""

    step: int
    loss: float
    grad_norm: float


@dataclass(slots=True)
class Guard:
    """Judges steps; `lost` is how many committed steps have no update in the weights."""

    spec: GuardSpec
    lost: int = 0
    kept_step: int = 0
    _kept_lost: int = 0
    _num_spikes: int = 0
    _num_calm: int = 0
    _recent: list[_Taken] = field(default_factory=list)

    def replay(self, lines: Iterable[LedgerLine]) -> None:
        """Be as after these committed lines, which begin with step 1."""
        self.lost = self.kept_step = self._kept_lost = self._num_spikes = self._num_calm = 0
        self._recent = []
        for line in lines:
            self.take(line)

    def judge(self, *, step: int, loss: float, grad_norm: float) -> Spike | None:
        """The spike that a step is, if it is one; of two the loss is named. Changes nothing."""
        spec = self.spec
        if spec.on_spike == "none" or step <= spec.after or len(self._recent) < spec.window:
            return None
        window = self._recent[-spec.window :]
        judged: tuple[tuple[Literal["loss", "grad_norm"], float, float | None], ...] = (
            ("loss", loss, spec.loss),
            ("grad_norm", grad_norm, spec.grad_norm),
        )
        for why, value, factor in judged:
            reference = median([getattr(one, why) for one in window])
            if factor is not None and value > factor * reference:
                did = spec.on_spike if self._num_spikes < spec.limit else "stop"
                to = self.kept_step if did == "roll-back" else None
                return Spike(did=did, why=why, value=value, reference=reference, to=to)
        return None

    def take(self, line: LedgerLine) -> Change:
        """What this committed line does to the weights; the next step is judged by it too."""
        spike = line.spike
        if spike is None:
            return self._update(line)
        assert spike.did != "stop", "a step that stops the run is not committed"
        self._num_spikes += 1
        self._num_calm = 0
        if spike.did == "skip":
            self.lost += 1
            return "skip"
        self.lost = self._kept_lost + line.step - self.kept_step
        self._recent = [one for one in self._recent if one.step <= self.kept_step]
        return "roll-back"

    def _update(self, line: LedgerLine) -> Change:
        spec = self.spec
        change: Change = "update"
        if spec.on_spike == "roll-back" and (line.step - 1) % spec.every == 0:
            change, self.kept_step, self._kept_lost = "keep", line.step - 1, self.lost
        self._recent.append(_Taken(step=line.step, loss=line.loss, grad_norm=line.grad_norm))
        # Going back takes at most `every` of them away; a whole window stays.
        del self._recent[: -(spec.window + spec.every)]
        self._num_calm += 1
        if self._num_calm >= spec.window:
            self._num_spikes = 0
        return change


def median(values: Sequence[float]) -> float:
    """The middle of the values by size; of an even number the larger of the two in the middle."""
    return sorted(values)[len(values) // 2]


def require_no_stop(line: LedgerLine, *, spec: GuardSpec) -> None:
    """RunError for a step at which the recipe's guard stops the run; it is not committed."""
    spike = line.spike
    if spike is None or spike.did != "stop":
        return
    factor = spec.loss if spike.why == "loss" else spec.grad_norm
    limit = "" if spec.on_spike == "stop" else f", and guard.limit = {spec.limit} is used up"
    raise RunError(
        f"step {line.step}: {QUANTITIES[spike.why]} is {spike.value:.6g}, more than "
        f"guard.{spike.why} = {factor:g} times the median of the last {spec.window} steps "
        f"({spike.reference:.6g}){limit}. Nothing of this step was committed, the weights before "
        "it are kept; going on with this recipe meets the same spike. For a new run: a lower "
        "optimizer.lr, a longer schedule.warmup or a smaller optimizer.clip; or guard.on_spike = "
        '"skip" or "roll-back", or a larger factor or limit.'
    )
