"""Audit: compute steps of a finished or running run again and compare them with its ledger.

A replay begins at the nearest kept checkpoint (or at the initial weights) and gives every grain to
a lane of the kind that computed it. Compared are, for each replayed step, the exponents, the digest
of the summed integers, the loss and the norm, and the fingerprint of the weights that the step
began with, so that the fingerprint after the last replayed step is compared too. Where a kind is
absent, a whole step cannot be computed; the recorded digests of single grains still can, for the
kinds that are here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atoll.data.shards import matched_model, open_shards
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.plan import plan_trivially
from atoll.run import Ledger, LedgerLine, RunFolder
from atoll.training import checkpoint, shares
from atoll.training.crewing import Starting, assemble, members_of
from atoll.training.display import Display
from atoll.training.pilot import Pilot

_COMPARED = (
    "fingerprint",
    "exponents_digest",
    "sum_digest",
    "loss",
    "grad_norm",
    "lr",
    "clip",
    "tokens",
    "spike",
)


@dataclass(slots=True, kw_only=True)
class AuditResult:
    """What was recomputed. `ok` needs at least one whole step, and no difference anywhere."""

    run: str
    drawn: list[int]
    steps: list[int] = field(default_factory=list)
    first_difference: dict[str, Any] | None = None
    skipped_grains: dict[str, int] = field(default_factory=dict)
    probes_checked: int = 0

    @property
    def ok(self) -> bool:
        """Whether the run passes."""
        return self.first_difference is None and bool(self.steps)

    def json(self) -> dict[str, Any]:
        """The keys of the contract."""
        return {
            "ok": self.ok,
            "run": self.run,
            "drawn": self.drawn,
            "steps": self.steps,
            "first_difference": self.first_difference,
            "skipped_grains": self.skipped_grains,
            "probes_checked": self.probes_checked,
        }

    def text(self) -> str:
        """What a person reads."""
        lines = [f"drawn steps: {_spans(self.drawn)}; recomputed whole: {_spans(self.steps)}"]
        if self.probes_checked:
            lines.append(f"single grains recomputed and equal: {self.probes_checked}")
        for kind, count in self.skipped_grains.items():
            lines.append(f"could not check {count} grains: no lane of kind {kind} is here")
        if self.first_difference is not None:
            d = self.first_difference
            lines.append(
                f"step {d['step']} DIFFERS in {d['key']}: "
                f"ledger {d['ledger']}, recomputed {d['found']}"
            )
        elif not self.steps:
            lines.append("FAILED: no whole step could be recomputed")
        else:
            lines.append("every recomputed step is bit for bit what the ledger says")
        return "\n".join(lines)


def audit(
    run: Path,
    *,
    display: Display,
    steps: int = 1,
    within: int | None = None,
    seed: int | None = None,
    fleet: Path | None = None,
    starting: Starting | None = None,
) -> AuditResult:
    """Replay `steps` steps drawn at random, at most `within` steps after a kept checkpoint.

    `fleet` replaces the fleet that the run used last. InputError if there is nothing to audit.
    """
    folder = RunFolder.open(run)
    lines = {line.step: line for line in Ledger(folder.ledger_path).read()}
    if not lines:
        raise InputError("has no committed step to audit", file=folder.path)
    starts = [0, *(s for s in checkpoint.list_steps(folder.checkpoints_path) if s in lines)]
    drawn = _draw(list(lines), starts, steps=steps, within=within, seed=seed)
    crew_fleet = Fleet.load(fleet) if fleet is not None else folder.fleet()
    assert crew_fleet is not None, "train writes the fleet before the first step"
    recipe = folder.recipe()
    data = open_shards(Path(folder.record.shards.folder))
    if data.digest != folder.record.shards.digest:
        raise InputError("the token shards of this run have changed", file=data.folder)
    members = members_of(plan_trivially(recipe, crew_fleet).islands)
    result = AuditResult(run=str(folder.path), drawn=drawn)
    display.phase("starting the islands", None)
    with (
        TemporaryDirectory(prefix="atoll-audit-") as scratch,
        assemble(
            members,
            folder=Path(scratch),
            logs=Path(scratch) / "logs",
            display=display,
            listen=None,
            starting=starting or Starting(),
        ) as (crew, store_port),
    ):
        model = matched_model(recipe.model, data)
        pilot = Pilot(recipe=recipe, model=model, crew=crew)
        pilot.prepare(
            vocab=model.resolved_vocab,
            shards={"folder": str(data.folder), "digest": data.digest},
            run=str(folder.path.resolve()),
            store_port=store_port,
        )
        _Replay(pilot, folder, lines, result, display).run(starts)
        crew.tell_all("finish")
        crew.gather("finished")
    return result


def _draw(
    steps_there: Sequence[int],
    starts: Sequence[int],
    *,
    steps: int,
    within: int | None,
    seed: int | None,
) -> list[int]:
    """Steps to audit, each at most `within` after a start."""
    near = [
        s
        for s in steps_there
        if within is None or s - max(start for start in starts if start < s) <= within
    ]
    chosen = random.Random(seed).sample(near, min(steps, len(near)))
    return sorted(chosen)


class _Replay:
    """Replays the drawn steps on a crew, and compares."""

    def __init__(
        self,
        pilot: Pilot,
        folder: RunFolder,
        lines: Mapping[int, LedgerLine],
        result: AuditResult,
        display: Display,
    ) -> None:
        self.pilot, self.folder, self.lines, self.result, self.display = (
            pilot,
            folder,
            lines,
            result,
            display,
        )
        self.by_kind: dict[str, list[str]] = {}
        for member in pilot.crew.members.values():
            self.by_kind.setdefault(member.kind_id, []).append(member.name)

    def run(self, starts: Sequence[int]) -> None:
        """Group the drawn steps by the checkpoint they follow, and replay each stretch."""
        stretches: dict[int, int] = {}
        for step in self.result.drawn:
            start = max(s for s in starts if s < step)
            stretches[start] = max(stretches.get(start, 0), step)
        for start, last in stretches.items():
            if self.result.first_difference is not None:
                return
            self._stretch(start, last)

    def _stretch(self, start: int, last: int) -> None:
        state = None
        if start:
            saved = checkpoint.read(self.folder.checkpoints_path, start, report=self.display.say)
            start, state = saved.step, saved.state
        self.pilot.restore(start, state)
        self.pilot.guard.replay(self.lines[step] for step in range(1, start + 1))
        for step in range(start + 1, last + 1):
            self.display.phase(
                f"replaying step {step} of {start + 1} to {last}", (step - start) / (last - start)
            )
            line = self.lines[step]
            missing = self._missing(line)
            if missing:
                for kind, count in missing.items():
                    self.result.skipped_grains[kind] = (
                        self.result.skipped_grains.get(kind, 0) + count
                    )
                self._check_probes(line)
                return  # without this step's sum there are no weights for the next one
            found, values = self.pilot.open_step(self._ranges(line))
            if self._differs(line, found):
                return
            self.pilot.commit(values)
            self.result.steps.append(step)
        self.pilot.settle()
        self._compare_weights(last)

    def _missing(self, line: LedgerLine) -> dict[str, int]:
        """Grains of kinds that are not here, by kind."""
        missing: dict[str, int] = {}
        for island, ranges in line.grains.items():
            kind = line.kinds[island]
            if kind not in self.by_kind:
                count = len(shares.grains_in(ranges))
                missing[kind] = missing.get(kind, 0) + count
        return missing

    def _ranges(self, line: LedgerLine) -> dict[str, shares.Ranges]:
        """The step's grains on the islands that are here, kind by kind, split evenly."""
        ranges: dict[str, shares.Ranges] = {name: [] for name in self.pilot.crew.members}
        for kind, names in self.by_kind.items():
            grains = sorted(
                grain
                for island, parts in line.grains.items()
                if line.kinds[island] == kind
                for grain in shares.grains_in(parts)
            )
            for i, name in enumerate(names):
                first, last = i * len(grains) // len(names), (i + 1) * len(grains) // len(names)
                ranges[name] = [(g, g) for g in grains[first:last]]
        return ranges

    def _differs(self, line: LedgerLine, found: LedgerLine) -> bool:
        for key in _COMPARED:
            ledger, here = (one.model_dump(include={key})[key] for one in (line, found))
            if ledger != here:
                # The weights a step begins with are the product of the step before it.
                step = line.step - 1 if key == "fingerprint" and line.step > 1 else line.step
                self._note(step, key, ledger, here)
                return True
        return False

    def _compare_weights(self, last: int) -> None:
        status = self.folder.record.status
        after = self.lines.get(last + 1)
        recorded = (
            after.fingerprint if after else status.fingerprint if status.step == last else None
        )
        if recorded is not None and recorded != self.pilot.fingerprint:
            self._note(last, "fingerprint", recorded, self.pilot.fingerprint)

    def _check_probes(self, line: LedgerLine) -> None:
        """Recompute the recorded single grains of the kinds that are here."""
        if self.pilot.exponents.digest() != line.exponents_digest:
            return  # the step was measured or requantised with grains that cannot be had here
        ranges: dict[str, shares.Ranges] = {}
        recorded: dict[str, tuple[int, Any]] = {}
        for island, (grain, digest) in line.probe.items():
            names = self.by_kind.get(line.kinds[island], [])
            name = next((n for n in names if n not in ranges), None)
            if name is not None:
                ranges[name] = [(grain, grain)]
                recorded[name] = (grain, digest)
        for name, found in self.pilot.probe_grains(line.step, ranges).items():
            if list(found) != list(recorded[name]):
                self._note(line.step, f"grain {recorded[name][0]}", recorded[name][1], found[1])
                return
            self.result.probes_checked += 1

    def _note(self, step: int, key: str, ledger: object, found: object) -> None:
        self.result.first_difference = {"step": step, "key": key, "ledger": ledger, "found": found}


def _spans(steps: Sequence[int]) -> str:
    """[1, 2, 3, 7] as "1-3, 7"."""
    spans: list[list[int]] = []
    for step in sorted(steps):
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "none"
