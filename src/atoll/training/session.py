"""From a target to a finished run: prepare, assemble the crew, run and keep its steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from atoll.data.sampler import Sampler
from atoll.data.shards import Shards, matched_model
from atoll.errors import AtollError, CheckpointError, InputError, Interrupted, RunError
from atoll.history.telling import spike_words
from atoll.model import Model
from atoll.run import Events, Ledger, LedgerLine, RunFolder
from atoll.training import checkpoint, exponents, shares
from atoll.training.crewing import Starting, assemble, members_of, require_dialable
from atoll.training.display import Display, IslandView, Snapshot
from atoll.training.fleet_file import FleetFile
from atoll.training.guard import require_no_stop
from atoll.training.interruption import interruptible
from atoll.training.joining import Joining
from atoll.training.keeping import Keeping
from atoll.training.metrics import Metrics
from atoll.training.opening import folder_of, sampler_of, text_of
from atoll.training.pilot import Pilot
from atoll.training.result import TrainResult
from atoll.training.roster import Roster
from atoll.training.step import finite, proved
from atoll.training.target import Target, resolve
from atoll.training.timetable import Clock, Timetable, WallClock

DEFAULT_CACHE = Path.home() / ".cache" / "atoll"


def train(
    target: str,
    *,
    display: Display,
    fleet: Path | None = None,
    run: Path | None = None,
    until: int | None = None,
    overrides: Sequence[str] = (),
    listen: str | None = None,
    cache: Path | None = None,
    starting: Starting | None = None,
    clock: Clock | None = None,
) -> TrainResult:
    """Train a recipe, a plan, or go on with a run folder; see `atoll train --help`.

    `clock` tells the hours of islands that have some; this machine's, if None.

    Raises InputError before anything is written if the input is wrong, RunError if the run fails;
    its last checkpoint is then good.
    """
    if listen is not None:
        require_dialable(listen)
    found = resolve(target, fleet=fleet, overrides=overrides)
    total = found.recipe.total_steps()
    if until is not None and not 0 < until <= total:
        raise InputError(f"--until {until} is outside this run", fix=f"choose 1 to {total}")
    if (
        found.folder is not None
        and run is not None
        and run.resolve() != found.folder.path.resolve()
    ):
        raise InputError("a run is resumed in its own folder", file=run, fix="leave --run out")
    if found.folder is None and run is not None and RunFolder.is_run(run):
        RunFolder.open(run).check_recipe(found.recipe)  # before any text is read
    data = text_of(found, cache or DEFAULT_CACHE, display)
    if found.plan.recipe_digest not in (None, found.recipe.digest(data.digest)):
        raise InputError(
            "this plan was made for another text or recipe: its recipe_digest differs",
            file=target,
            fix="make a new plan, or remove recipe_digest from this one",
        )
    matched_model(found.recipe.model, data)
    sampler = sampler_of(found.recipe, data)  # raises before a folder is made
    folder = folder_of(found, data, run)
    with folder.lock():
        timetable = Timetable(members_of(found.plan.islands), clock or WallClock())
        file = None
        if fleet is not None:
            file = FleetFile(fleet, found.recipe, timetable.members, display.say)
        while True:
            session = _Session(found, folder, data, sampler, display, until or total, timetable)
            session.fleet_file = file
            if folder.record.status.state == "finished":
                display.say(f"this run finished at step {total}; nothing is left to train")
                return session.finished_result()
            timetable.wait(display.say, look=file.changes if file else None)
            result = session.run(listen=listen, starting=starting or Starting())
            if not session.roster.deserted:
                return result


class _Session:
    """One `train` call on an open run folder."""

    def __init__(
        self,
        found: Target,
        folder: RunFolder,
        data: Shards,
        sampler: Sampler,
        display: Display,
        last_step: int,
        timetable: Timetable,
    ) -> None:
        self.recipe, self.folder, self.data, self.display = found.recipe, folder, data, display
        self.plan = found.plan
        self.fleet = found.fleet
        self.last_step = last_step
        self.model: Model = matched_model(found.recipe.model, data)
        self.sampler = sampler
        self.ledger = Ledger(folder.ledger_path)
        self.events = Events(folder.events_path)
        self.timetable = timetable
        self.members = timetable.members
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.interrupted = threading.Event()
        self.fleet_file: FleetFile | None = None
        """The fleet file, if one was given: it is followed while the run goes on."""
        self._seconds_here = 0.0
        self._tokens_here = 0

    def run(self, *, listen: str | None, starting: Starting) -> TrainResult:
        """Assemble the crew, run to the last step, close everything down in order."""
        checkpoint.remove_leftovers(self.folder.checkpoints_path)
        self.display.phase("starting the islands", None)
        self._absent = self.timetable.absent()
        with (
            assemble(
                self.members,
                folder=self.folder.path,
                logs=self.folder.logs_path,
                display=self.display,
                listen=listen,
                starting=starting,
                absent=self._absent,
            ) as (crew, store_port),
            # Only now is there something to save: while islands are waited for, Ctrl-C just ends.
            interruptible(self.interrupted),
        ):
            self.pilot = Pilot(recipe=self.recipe, model=self.model, crew=crew)
            self.roster = Roster(
                self.pilot, folder=self.folder, events=self.events, say=self.display.say
            )
            self.keeping = self.roster.keeping = Keeping(
                self.pilot,
                folder=self.folder,
                members=self.members,
                events=self.events,
                told=lambda: {"loss": self.loss, "val_loss": self.val_loss},
                note_losses=self.roster.note_losses,
                say=self.display.say,
            )
            self._announce_bits()
            try:
                self._begin(store_port)
                with Metrics(
                    self.folder.metrics_path,
                    first_step=self.pilot.step + 1,
                    report=self.display.say,
                ) as self.metrics:
                    self._loop()
                    return self._finish()
            except AtollError as error:
                self._fail(error)
                raise

    # ------------------------------------------------------------------ begin

    def _announce_bits(self) -> None:
        grains, widths = self.recipe.num_grains, self.pilot.widths
        left = {w: exponents.bits_left(w, grains) for w in sorted(set(widths))}
        text = ", ".join(f"{b:.1f} in int{w} ({widths.count(w)} tensors)" for w, b in left.items())
        self.display.say(f"bits left for one of {grains} grains: {text}")

    def _begin(self, store_port: int) -> None:
        pilot = self.pilot
        given: dict[str, Any] = {
            "vocab": self.model.resolved_vocab,
            "shards": {"folder": str(self.data.folder), "digest": self.data.digest},
            "run": str(self.folder.path.resolve()),
            "store_port": store_port,
        }
        pilot.prepare(**given)
        for member in pilot.crew.members.values():
            if member.updates_on_host:
                self.display.say(
                    f"island {member.name!r} updates its weights on its host: its chip does not "
                    f"round {', '.join(member.failed_operations)} as IEEE 754 asks"
                )
        self.contract = pilot.contract()
        chips = {one.chip for one in self.members}
        if self._absent and len(chips) > 1:  # the others come at their hours, of other kinds
            self.contract = "replicas identical, replayable"
        self.joining = self.roster.joining = Joining(
            pilot,
            prepare={
                "recipe": self.recipe.as_dict(),
                "widths": list(pilot.widths),
                **given,
            },
            bitwise=lambda: self.contract == "bitwise",
            note=self.roster.note_change,
        )
        self._resume()
        pilot.guard.replay(self.ledger.read())
        self._note_kinds()
        self.display.say(f"contract: {self.contract}")
        self.folder.set_status("running", step=pilot.step, fingerprint=pilot.fingerprint)
        self.events.append(
            "started",
            step=pilot.step,
            contract=self.contract,
            islands={
                m.name: {"kind": m.kind_id, "lanes": m.lanes} for m in pilot.crew.members.values()
            },
        )

    def _note_kinds(self) -> None:
        """Kinds are proved now: write them down, and say if the run's earlier steps had others."""
        kinds = {**self.folder.record.kinds, **self.pilot.kinds()}
        lines = self.ledger.read()
        used = {line.kinds[name] for line in lines for name in line.grains}
        if len(used | set(self.pilot.kinds())) > 1 and self.contract == "bitwise":
            self.contract = "replicas identical, replayable"
            self.display.say(
                "other kinds computed earlier steps: the bits depend on who computed what"
            )
        self.folder.update(kinds=kinds, contract=self.contract, fleet=self.fleet.as_dict())
        digest = self.folder.record.recipe_digest
        plan = self.plan.model_copy(update={"recipe_digest": digest, "contract": self.contract})
        plan.save(self.folder.path / "plan.json")

    def _resume(self) -> None:
        """Take up the newest good checkpoint and cut the ledger back to it."""
        lines = self.ledger.read()
        steps = checkpoint.list_steps(self.folder.checkpoints_path)
        if self._take_over(lines, steps[-1] if steps else 0):
            return
        if not steps:
            if lines:
                self.display.say("no checkpoint yet: the run begins again at step 1")
                self._roll_back(0)
            return
        saved = checkpoint.read(
            self.folder.checkpoints_path, report=self.display.say, expected=self.model.tensors()
        )
        committed = lines[-1].step if lines else 0
        if saved.step > committed:
            raise InputError(
                f"the checkpoint of step {saved.step} is ahead of the ledger's end, {committed}",
                file=self.folder.ledger_path,
                fix="restore the ledger that belongs to this run",
            )
        self._roll_back(saved.step)
        self.pilot.restore(saved.step, saved.state)
        self.loss, self.val_loss = saved.state.get("loss"), saved.state.get("val_loss")
        self.keeping.saved_steps.add(saved.step)
        self.display.say(f"resumed after step {saved.step}")

    def _take_over(self, lines: Sequence[LedgerLine], kept: int) -> bool:
        """Go on from what islands of a pilot that died still hold, if the ledger proves it right
        and no checkpoint is newer; the others are healed. False if nobody holds anything of use.
        """
        pilot = self.pilot
        found: dict[int, list[str]] = {}
        for name, told in pilot.held.items():
            step = told["step"]
            if step < kept or told["state"] is None or not proved(lines, told):
                continue
            found.setdefault(step, []).append(name)
        if not found:
            return False
        step = max(found)
        pilot.take_over(step, found[step])
        for name in [name for name in pilot.crew.members if name not in found[step]]:
            self.joining.expect(pilot.crew.members.pop(name))
        self._roll_back(step)
        self.loss = lines[step - 1].loss
        names = ", ".join(found[step])
        self.display.say(f"island {names} waited with the weights after step {step}: going on")
        self.events.append("taken_over", step=step, islands=found[step])
        return True

    def _roll_back(self, step: int) -> None:
        dropped = self.ledger.truncate_after(step)
        if dropped:
            self.events.append("rolled_back", to=step, dropped=len(dropped))
            self.display.say(
                f"{len(dropped)} steps after step {step} had no checkpoint and are computed again"
            )

    # ------------------------------------------------------------------ the steps

    def _loop(self) -> None:
        pilot, cadence = self.pilot, self.recipe.run
        started = time.perf_counter()
        pilot.crew.elastic = True
        self.roster.stopped = self.interrupted.is_set
        self.roster.fleet_file = self.fleet_file
        if self.timetable.matters or self.fleet_file is not None:
            self.roster.timetable = self.timetable
        while pilot.step < self.last_step and not self.interrupted.is_set():
            self.roster.between_steps()
            if self.roster.deserted:
                self.display.say("the hours of all islands are over: the run is kept and waits")
                break
            line, values = pilot.open_step(self._ranges(pilot.step + 1))
            self._stop_at_spike(line)
            self.ledger.append(line)
            pilot.commit(values)
            self._note_spike(line)
            if self.plan.shares.mode == "auto":
                self.roster.park_idle(line.grains)
            self.loss = line.loss
            self._tokens_here += line.tokens
            if line.requantised:
                self.events.append("requantised", step=line.step, times=line.requantised)
            if pilot.step % cadence.validate_every == 0:
                self._validate()
            if pilot.step % cadence.checkpoint_every == 0:
                self.keeping.save()
            self.keeping.collect()
            self._seconds_here = time.perf_counter() - started
            self._show(line)

    def _stop_at_spike(self, line: LedgerLine) -> None:
        """End the run before this step if the recipe's guard says so; what is committed is kept."""
        try:
            require_no_stop(line, spec=self.recipe.guard)
        except RunError:
            self.keeping.part()
            raise

    def _note_spike(self, line: LedgerLine) -> None:
        if line.spike is not None:
            told = line.spike.model_dump(exclude_none=True)
            self.events.append("spike", step=line.step, **told)
            self.display.say(f"step {line.step}: {spike_words(told)} (the recipe's guard)")

    def _ranges(self, step: int) -> dict[str, shares.Ranges]:
        """The split of a step: by the plan's rule, over the members that are here."""
        return shares.of_step(
            self.plan.shares,
            self.recipe.num_grains,
            step=step,
            members=self.pilot.whole(),
            given={member.name: member.share for member in self.members},
        )

    def _validate(self) -> None:
        available = self.sampler.num_validation_windows
        if not available:
            return
        wanted = self.recipe.run.validation_sequences or available
        self.val_loss = finite(self.pilot.step, self.pilot.validate(min(wanted, available)))
        try:
            checkpoint.record_loss(self.folder.checkpoints_path, self.pilot.step, self.val_loss)
        except OSError as error:  # only the choice of the best checkpoint needs it
            self.display.say(f"the validation loss could not be noted: {error}")
        self.metrics.record(
            self.pilot.step, val_loss=self.val_loss, bits_per_byte=self._bits_per_byte()
        )

    def _show(self, line: LedgerLine) -> None:
        members = self.pilot.crew.members
        speed = line.tokens / line.seconds
        views = tuple(
            IslandView(
                name=m.name,
                chip=m.chip,
                lanes=m.lanes,
                grains=m.grains,
                grains_per_second=m.grains_per_second,
                state="healing" if m.healing else "computing",
            )
            for m in members.values()
        )
        self.display.update(
            Snapshot(
                run=str(self.folder.path),
                step=line.step,
                total_steps=self.last_step,
                loss=line.loss,
                val_loss=self.val_loss,
                bits_per_byte=self._bits_per_byte(),
                tokens=line.step * self.recipe.tokens_per_step,
                tokens_per_second=speed,
                contract=self.contract,
                islands=views,
                message=None,
            )
        )
        self.metrics.record(
            line.step,
            loss=line.loss,
            grad_norm=line.grad_norm,
            lr=line.lr,
            tokens_per_second=speed,
            shares={view.name: view.grains or 0 for view in views},
            speeds={m.name: m.grains_per_second for m in members.values()},
        )

    def _bits_per_byte(self) -> float | None:
        """The validation loss in bits per byte of the held-out text."""
        return None if self.val_loss is None else self.data.bits_per_byte(self.val_loss)

    # ------------------------------------------------------------------ end

    def _finish(self) -> TrainResult:
        pilot = self.pilot
        pilot.settle()
        at_end = pilot.step == self.recipe.total_steps()
        if (
            pilot.step
            and not self.interrupted.is_set()
            and pilot.step % self.recipe.run.validate_every
        ):
            self._validate()
        self.keeping.part()
        if pilot.step and pilot.step not in checkpoint.list_steps(self.folder.checkpoints_path):
            raise CheckpointError(f"the end of the run was not kept: {self.keeping.not_kept}")
        state: Literal["finished", "interrupted", "stopped"] = "stopped"
        if at_end:
            state = "finished"
        elif self.interrupted.is_set():
            state = "interrupted"
        self.folder.set_status(state, step=pilot.step, fingerprint=pilot.fingerprint)
        self.events.append(state, step=pilot.step, fingerprint=pilot.fingerprint)
        self.ledger.close()
        return self._result(
            pilot.step,
            pilot.fingerprint,
            islands={
                m.name: {
                    "chip": m.chip,
                    "lanes": m.lanes,
                    "kind": m.kind_id,
                    "grains": m.grains,
                    "grains_per_second": m.grains_per_second,
                }
                for m in pilot.crew.members.values()
            },
        )

    def _fail(self, error: AtollError) -> None:
        step = self.pilot.step
        self.events.append("failed", step=step, reason=str(error))
        with suppress(AtollError):  # nobody shall wait for another pilot of a run that has failed
            self.pilot.crew.tell_all("failed", reason=f"the run has stopped: {error}"[:500])
        steps = checkpoint.list_steps(self.folder.checkpoints_path)
        kept = (
            f"its last checkpoint is of step {steps[-1]}" if steps else "it has no checkpoint yet"
        )
        self.display.say(
            f"the run stopped after step {step}; {kept}. Go on with: atoll train {self.folder.path}"
        )
        try:
            self.folder.set_status("failed", step=step, message=str(error)[:2000])
        except AtollError:
            return  # the disk that stopped the run stops this note too; the error itself is raised

    def finished_result(self) -> TrainResult:
        """The result of a run that had reached its last step before this call."""
        status = self.folder.record.status
        self.loss = self.ledger.read()[-1].loss
        self.val_loss = checkpoint.recorded_losses(self.folder.checkpoints_path).get(status.step)
        self.contract = self.folder.record.contract
        return self._result(status.step, status.fingerprint or "", islands={})

    def _result(self, step: int, fingerprint: str, *, islands: dict[str, Any]) -> TrainResult:
        seconds = self._seconds_here
        return TrainResult(
            run=self.folder.path,
            step=step,
            total_steps=self.recipe.total_steps(),
            loss=self.loss,
            val_loss=self.val_loss,
            bits_per_byte=self._bits_per_byte(),
            tokens=step * self.recipe.tokens_per_step,
            tokens_per_second=self._tokens_here / seconds if seconds else 0.0,
            fingerprint=fingerprint,
            contract=self.contract,
            islands=islands,
            exit_code=Interrupted.exit_code if step < self.last_step else 0,
        )
