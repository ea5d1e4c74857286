"""Does a chip compute right? One grain on it and on another, compared layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atoll import facts
from atoll.errors import InputError
from atoll.fleet import Fleet, Island
from atoll.plan import plan_trivially
from atoll.recipe import Recipe, require_supported
from atoll.strict import nearest
from atoll.training.crewing import Starting, assemble, members_of
from atoll.training.display import Display
from atoll.training.examination import TOLERANCE, StageError
from atoll.training.pilot import Pilot
from atoll.training.target import this_machine
from atoll.units import format_bytes, format_rate

SUBJECT, REFERENCE = "subject", "reference"
LINK_BYTES = 16 * 2**20

_BUILT_IN: dict[str, Any] = {
    "name": "doctor",
    "seed": 1,
    "model": {"layers": 4, "width": 256, "heads": 4, "kv_heads": 2, "ffn": 704, "context": 256},
    "data": {"corpus": "stdlib", "tokenizer": {"train": 4096}},
    "batch": {"sequences": 2, "grain": 2},
    "optimizer": {"lr": 1e-3},
    "schedule": {"steps": 1},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One side of the comparison, as it presented itself."""

    chip: str
    kind_id: str
    kind: dict[str, Any]
    free_memory: int | None
    failed_operations: list[str]
    grain_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorResult:
    """The findings; `ok` if every stage is within rounding and the update is exact."""

    subject: Patient
    reference: Patient
    stages: list[StageError]
    loss: tuple[float, float]
    link_bytes_per_second: float | None

    @property
    def ok(self) -> bool:
        """Whether the subject may train."""
        return not self.wrong_stages and not self.subject.failed_operations

    @property
    def wrong_stages(self) -> list[str]:
        """Names of the stages that are further off than rounding explains."""
        return [stage.stage for stage in self.stages if stage.wrong]

    def json(self) -> dict[str, Any]:
        """All findings as plain values."""
        return {
            "ok": self.ok,
            "wrong": self.wrong_stages,
            "same_kind": self.subject.kind_id == self.reference.kind_id,
            "stages": [stage.as_dict() for stage in self.stages],
            "loss": list(self.loss),
            "kind": {"subject": self.subject.kind_id, "reference": self.reference.kind_id},
            "failed_operations": self.subject.failed_operations,
            "free_memory": self.subject.free_memory,
            "link_bytes_per_second": self.link_bytes_per_second,
            "tolerance": TOLERANCE,
        }

    def text(self) -> str:
        """The findings for a person."""
        a, b = self.subject, self.reference
        lines = [
            f"subject    {a.chip}, kind {a.kind_id}, {a.grain_seconds:.3f} s a grain",
            f"reference  {b.chip}, kind {b.kind_id}, {b.grain_seconds:.3f} s a grain",
            "the two are of one kind: the same bits"
            if a.kind_id == b.kind_id
            else "the two are of different kinds: a bitwise run cannot mix them",
            "free memory " + ("unknown" if a.free_memory is None else format_bytes(a.free_memory)),
        ]
        if self.link_bytes_per_second is not None:
            lines.append(f"exchange between the two: {format_rate(self.link_bytes_per_second)}")
        lines.append(
            f"loss of the grain: {self.loss[0]:.6f} against {self.loss[1]:.6f} nats a token"
        )
        lines.append(f"\n{'stage':<12} {'output':>10} {'gradients':>10}  worst tensor")
        lines += [
            f"{s.stage:<12} {s.output:>10.1e} {s.gradients:>10.1e}  {s.worst}"
            + ("   WRONG" if s.wrong else "")
            for s in self.stages
        ]
        if a.failed_operations:
            lines.append(
                f"\nNOT EXACT: {', '.join(a.failed_operations)}; "
                "weights would drift from other chips'"
            )
        verdict = (
            "computes right"
            if self.ok
            else f"computes WRONG in {', '.join(self.wrong_stages) or 'the update'}"
        )
        return "\n".join(
            [
                *lines,
                f"\nverdict: {a.chip} {verdict} (relative errors up to {TOLERANCE:g} are rounding)",
            ]
        )


def doctor(
    *,
    recipe: str | None,
    island: str | None,
    against: str,
    fleet: Path | None,
    display: Display,
    starting: Starting | None = None,
) -> DoctorResult:
    """Compare an island (of `fleet`, or this machine's) with another island or a chip.

    `recipe` gives the model and the grain; without it a small built-in one is used. No text is
    needed: the grain is a fixed pattern.
    """
    model_recipe = Recipe.from_dict(_BUILT_IN) if recipe is None else Recipe.load(recipe)
    require_supported(model_recipe, file=recipe)
    crew_fleet = this_machine() if fleet is None else Fleet.load(fleet)
    pair = Fleet(
        island=[
            _one_lane(_find(crew_fleet, island), SUBJECT),
            _one_lane(_named_or_chip(crew_fleet, against), REFERENCE),
        ]
    )
    members = members_of(plan_trivially(model_recipe, pair).islands)
    vocab = model_recipe.model.vocab or model_recipe.data.tokenizer.train or 4096
    display.phase("starting the two", None)
    with (
        TemporaryDirectory(prefix="atoll-doctor-") as scratch,
        assemble(
            members,
            folder=Path(scratch),
            logs=Path(scratch) / "logs",
            display=display,
            listen=None,
            starting=starting or Starting(),
        ) as (crew, store_port),
    ):
        pilot = Pilot(recipe=model_recipe, model=model_recipe.model.with_vocab(vocab), crew=crew)
        pilot.introduce(vocab=vocab, shards=None, run=scratch, store_port=store_port)
        pilot.form_group()
        display.phase("computing one grain on both", None)
        path = str(Path(scratch) / "trace.safetensors")
        crew.tell("trace", {REFERENCE: {"path": path}})
        expected = crew.gather("traced", [REFERENCE])[REFERENCE]
        crew.tell("examine", {SUBJECT: {"path": path}})
        found = crew.gather("examined", [SUBJECT])[SUBJECT]
        crew.tell_all("link", num_bytes=LINK_BYTES)
        seconds = max(answer["seconds"] for answer in crew.gather("linked").values())
        patients = {name: _patient(pilot, name) for name in (SUBJECT, REFERENCE)}
        crew.tell_all("finish")
        crew.gather("finished")
    tokens = model_recipe.batch.grain * model_recipe.model.context
    return DoctorResult(
        subject=patients[SUBJECT],
        reference=patients[REFERENCE],
        stages=[StageError(**stage) for stage in found["stages"]],
        loss=(found["loss"] / tokens, expected["loss"] / tokens),
        link_bytes_per_second=LINK_BYTES / seconds if seconds else None,
    )


def _patient(pilot: Pilot, name: str) -> Patient:
    member = pilot.crew.members[name]
    return Patient(
        chip=member.chip,
        kind_id=member.kind_id,
        kind=member.kind,
        free_memory=member.memory["free"],
        failed_operations=member.failed_operations,
        grain_seconds=member.grain_seconds,
    )


def _find(fleet: Fleet, name: str | None) -> Island:
    if name is None:
        return fleet.island[0]
    names = [island.name for island in fleet.island]
    if name not in names:
        raise InputError(
            "there is no such island",
            key="--island",
            value=name,
            fix=nearest(name, names, what="islands"),
        )
    return fleet.island[names.index(name)]


def _named_or_chip(fleet: Fleet, name: str) -> Island:
    """`--against`: an island of the fleet, else a chip of the facts."""
    for island in fleet.island:
        if island.name == name:
            return island
    if name not in facts.chips():
        known = [*(island.name for island in fleet.island), *facts.chips()]
        raise InputError(
            "is neither an island of the fleet nor a chip",
            key="--against",
            value=name,
            fix=nearest(name, known, what="islands and chips"),
        )
    return Island(name=name, chip=name)


def _one_lane(island: Island, name: str) -> Island:
    return Island(name=name, chip=island.chip, threads=island.threads, start=island.start)
