"""The pilot: the one process that hands out grains and commits steps. It never touches a tensor.

The life of a step: assign -> (islands compute) -> judge (finite? overflow?) -> exchange -> compare
-> **ledger line, synced: the commit** -> update. Before that line the step is open and may be
computed again; after it every island that lives has it. The fingerprint of the weights after step s
arrives with s + 1 and stands in that line.

`Pilot` runs steps; where they come from (a schedule, an audit's replay) is its caller's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from atoll.digest import digest_of
from atoll.errors import IslandError, RunError
from atoll.model import Model
from atoll.recipe import Recipe
from atoll.run import LedgerLine
from atoll.training import exponents as exp
from atoll.training import scalars, shares
from atoll.training.guard import Guard
from atoll.training.membership import Crewed
from atoll.training.second_look import draw, judge, second_looks
from atoll.training.step import (
    OpenStep,
    Totals,
    add_up,
    bad_sums,
    check_exchange,
    check_replicas,
    not_finite,
    odd_replicas,
)

MOST_ATTEMPTS = 8
"""Attempts at one step; each overflow lowers the exponents by what its loads demand."""
GRACE = 1.0
"""Seconds in which an island that holds the whole sum has said so after another was lost."""
LEAST_EXCHANGE = 30.0
"""Seconds after which an exchange between islands that live counts as broken, at the earliest."""
REMEMBERED = 256
"""Steps whose fingerprints are known, for islands that heal."""
MOST_EXCHANGES = 8
"""Exchanges of one step that may break off before the run gives up."""


class Pilot:
    """Runs steps on the crew; holds the run state that is not tensors (exponents, fingerprint)."""

    def __init__(self, *, recipe: Recipe, model: Model, crew: Crewed) -> None:
        self.recipe = recipe
        self.crew = crew
        self.names = list(model.tensors())
        head = "embedding.weight" if model.tied else "head.weight"
        self.widths = exp.choose_widths(
            self.names,
            head=head,
            num_grains=recipe.num_grains,
            accumulator=recipe.exact.accumulator,
        )
        self.exponents = exp.Exponents.fresh(self.widths)
        self.guard = Guard(recipe.guard)
        self.step = 0
        self.fingerprint = ""
        self.epoch = 0
        self._grouped: tuple[str, ...] = ()
        self._turns = 0
        self.held: dict[str, Any] = {}  # what islands say that hold the weights of a later step
        self.fingerprints: dict[int, str] = {}  # of the weights after the last steps
        self._pending_update = False

    # ------------------------------------------------------------------ start

    def prepare(self, *, vocab: int, shards: dict[str, str], run: str, store_port: int) -> None:
        """Have every island build the model, prove itself and say its kind; then form the group.

        IslandError for one whose arithmetic would let its weights drift from the others'.
        """
        self.introduce(vocab=vocab, shards=shards, run=run, store_port=store_port)
        for member in self.crew.members.values():
            if member.failed_operations and not member.updates_on_host:
                raise IslandError(
                    f"island {member.name!r} ({member.chip}) does not round these operations as "
                    f"IEEE 754 asks: {', '.join(member.failed_operations)}. "
                    "Its weights would drift from the others'."
                )
        self.form_group()

    def introduce(
        self, *, vocab: int, shards: dict[str, str] | None, run: str, store_port: int
    ) -> None:
        """Have every island build the model with its initial weights and present itself.

        `shards` names the folder and the digest of the token shards; None where no text is read.
        """
        crew = self.crew
        crew.tell_all(
            "prepare",
            recipe=self.recipe.as_dict(),
            vocab=vocab,
            widths=list(self.widths),
            shards=shards,
            run=run,
            store_port=store_port,
        )
        ready = crew.gather("ready")
        for name, answer in ready.items():
            member = crew.members[name]
            member.kind = answer["lane_kind"]
            member.kind_id = digest_of(member.kind)[:16]
            member.memory = answer["memory"]
            member.failed_operations = answer["failed"]
            member.updates_on_host = answer["updates_on_host"]
            member.seconds.append(answer["grain_seconds"])
        self.held = {name: answer for name, answer in ready.items() if answer["step"]}
        if not self.held:
            self.fingerprint = check_replicas(0, {n: a["fingerprint"] for n, a in ready.items()})

    def form_group(self) -> None:
        """Let all members meet for the exchange, in a new epoch; again if one is lost meanwhile."""
        while self._grouped != tuple(self.crew.members):
            self.epoch += 1
            names = tuple(self.crew.members)
            ranks = {
                name: {"epoch": self.epoch, "rank": rank, "size": len(names)}
                for rank, name in enumerate(names)
            }
            self.crew.tell("join", ranks)
            answers = self.crew.gather("joined", match={"epoch": self.epoch})
            if all(name in answers and answers[name]["ok"] for name in names):
                self._grouped = names

    def restore(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Take every island to the checkpoint after `step` (0: the initial weights)."""
        self.settle()
        self.crew.tell_all("restore", step=step)
        answers = self.crew.gather("restored")
        self.fingerprint = check_replicas(step, {n: a["fingerprint"] for n, a in answers.items()})
        if state is None:
            self.exponents = exp.Exponents.fresh(self.widths)
        else:
            self.exponents = exp.Exponents.restore(self.widths, state["exponents"])
            if state["fingerprint"] != self.fingerprint:
                raise RunError(
                    f"the weights of the checkpoint of step {step} have the fingerprint "
                    f"{self.fingerprint[:16]}, its state says {str(state['fingerprint'])[:16]}"
                )
        self.step = step

    def take_over(self, step: int, names: Sequence[str]) -> None:
        """Go on after `step` with what these islands hold: a pilot before this one died."""
        told = {name: self.held[name]["fingerprint"] for name in names}
        self.step = step
        self._remember(check_replicas(step, told))
        state = self.held[names[0]]["state"]
        self.exponents = exp.Exponents.restore(self.widths, state["exponents"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors; settle first."""
        assert not self._pending_update
        return {
            "step": self.step,
            "fingerprint": self.fingerprint,
            "exponents": self.exponents.state(),
        }

    # ------------------------------------------------------------------ a step

    def open_step(self, ranges: Mapping[str, shares.Ranges]) -> tuple[LedgerLine, dict[str, Any]]:
        """Compute, judge and exchange the next step; returns its ledger line and the update to
        send.

        Islands may be lost at any point: the others keep their sums, compute what is missing, and
        the step is the same. Nothing is committed: the caller appends the line, then calls
        `commit`.
        """
        step, started = self.step + 1, time.perf_counter()
        self.crew.step = step
        open_step = OpenStep.begin(step, ranges)
        measuring = not self.exponents.measured
        for _ in range(MOST_EXCHANGES):
            totals = self._compute(open_step, measuring=measuring)
            measuring = False
            squares = self._exchange(open_step, totals)
            if squares is not None:
                break
        else:
            raise RunError(f"the exchange of step {step} broke off {MOST_EXCHANGES} times")
        line, values = self._close(step, totals, squares)
        line = line.model_copy(
            update={
                "grains": open_step.contributed(),
                "kinds": {**open_step.kinds, **{n: m.kind_id for n, m in self.whole().items()}},
                "seconds": time.perf_counter() - started,
                "requantised": open_step.num_requantised,
                "reassigned": open_step.reassigned,
                "spike": self.guard.judge(step=step, loss=line.loss, grad_norm=line.grad_norm),
            }
        )
        self._open, self._loads = line, totals.loads
        self.crew.follow_pace(line.seconds)
        return line, values

    def whole(self) -> dict[str, Any]:
        """The members that hold the weights: all but those that are healing."""
        return {name: m for name, m in self.crew.members.items() if not m.healing}

    def _compute(self, open_step: OpenStep, *, measuring: bool) -> Totals:
        """Attempts until every grain is finite and no tensor overflows; the second not-finite one
        ends the run. All grains have finished before an overflow is judged, so it depends on the
        step alone.
        """
        for _ in range(MOST_ATTEMPTS):
            while open_step.todo:
                self._assign(open_step, exchange=not measuring)
            error = not_finite(open_step.step, open_step.held)
            if error is not None and open_step.seen_not_finite:
                raise error
            if error is not None:
                open_step.seen_not_finite = True
                self._again(open_step, measuring=measuring)
                continue
            totals = add_up(open_step.held)
            if not measuring and not self.exponents.overflown(totals.loads):
                return totals
            self.exponents.current = self.exponents.retry(totals.loads)
            open_step.num_requantised += not measuring
            self._again(open_step, measuring=measuring)
            measuring = False
        raise RunError(
            f"step {open_step.step} still overflows after {MOST_ATTEMPTS} attempts: a bug in Atoll"
        )

    def _again(self, open_step: OpenStep, *, measuring: bool) -> None:
        """Begin another attempt, in a new group if the exchange of this one has begun: its end must
        not be waited for, because somebody may be lost who has not sent yet.
        """
        open_step.again(self._whole_split(open_step))
        if not measuring:
            self._grouped = ()

    def _whole_split(self, open_step: OpenStep) -> Mapping[str, shares.Ranges]:
        """All grains once more: as they were planned, or by speed if an island is gone since."""
        if all(name in self.crew.members for name, part in open_step.planned.items() if part):
            return open_step.planned
        return self._by_speed(range(self.recipe.num_grains))

    def _by_speed(self, grains: Sequence[int]) -> dict[str, shares.Ranges]:
        """Some grains split between the whole members, by their speed."""
        whole = self.whole()
        counts = shares.by_speed(
            len(grains),
            grain_seconds={name: member.grain_seconds for name, member in whole.items()},
            lanes={name: member.lanes for name, member in whole.items()},
        )
        return shares.lay_out(counts, grains)

    def _assign(self, open_step: OpenStep, *, exchange: bool) -> None:
        """Hand out what is to do and take in the results; what a lost island had is to do again.

        Only the first turn of an attempt lets sums leave early: later ones add to sums that may
        have left already.
        """
        self._turns += 1
        first = not open_step.held
        asked = list(self.crew.members) if first else list(open_step.todo)
        todo = {name: open_step.todo.get(name, []) for name in asked}
        self.crew.tell(
            "assign",
            {
                name: {
                    "step": open_step.step,
                    "turn": self._turns,
                    "attempt": open_step.attempt,
                    "fresh": first,
                    "exponents": self.exponents.current,
                    "ranges": [list(r) for r in parts],
                    "probe_grain": draw(self.recipe.seed, open_step.step, parts) if first else None,
                    "exchange": exchange and first and self._grouped == tuple(self.crew.members),
                }
                for name, parts in todo.items()
            },
        )
        self.settle()  # the update of the last step ends before any grain of this one begins
        looks = second_looks(self, open_step.step, todo) if first and exchange else []
        for look in looks:
            self.crew.tell("check", {look.other: {"step": look.step, "grain": look.grain}})
        results = self.crew.gather("result", asked, match={"turn": self._turns})
        for name, result in results.items():
            member = self.crew.members[name]
            open_step.take(name, todo[name], result, kind=member.kind_id)
            member.grains = len(shares.grains_in(open_step.held_ranges[name]))
            if result["lane_seconds"]:
                ordered = sorted(result["lane_seconds"])
                member.seconds.append(ordered[len(ordered) // 2])
        for look in looks:
            judge(self, look, results)
        missing = open_step.give_up(set(asked) - set(results), todo)
        missing += open_step.forget(set(self.crew.members))
        open_step.todo = self._by_speed(sorted(missing)) if missing else {}

    def _exchange(self, open_step: OpenStep, totals: Totals) -> Any | None:
        """The squares of the summed gradient once all islands hold it; None if grains are missing.

        If an island is lost when the others hold the whole sum already, its part is in it.
        """
        for _ in range(MOST_EXCHANGES):
            self.form_group()
            if self._lost(open_step):
                return None
            self.crew.tell_all("exchange", step=open_step.step, epoch=self.epoch)
            answers = self.crew.gather(
                "exchanged",
                match={"epoch": self.epoch},
                grace=GRACE,
                limit=max(LEAST_EXCHANGE, 5.0 * self.crew.patience),
            )
            broken = [name for name in self.crew.members if not _went_well(answers.get(name))]
            if not broken:
                bad = bad_sums(totals, answers)
                if bad and self.crew.elastic and len(bad) < len(answers):
                    for name in bad:
                        self.crew.drop(name, "corrupt", "its exchanged sums are wrong")
                    self._grouped = ()
                else:
                    return check_exchange(open_step.step, totals, answers)
            if not self.crew.elastic and broken:
                raise IslandError(f"the exchange of step {open_step.step} broke off")
            self._grouped = ()
            self.form_group()  # at once: it calls away whoever still waits for the lost one
            if self._lost(open_step):
                return None
        return None

    def _lost(self, open_step: OpenStep) -> bool:
        """Whether islands are gone whose sums are not exchanged yet; their grains are to do."""
        missing = open_step.forget(set(self.crew.members))
        if missing:
            open_step.todo = self._by_speed(sorted(missing))
        return bool(missing)

    def settle(self) -> None:
        """Take in the fingerprints of the last update; all replicas must be identical."""
        if self._pending_update:
            self._pending_update = False
            updated = self.crew.gather("updated", list(self.whole()), match={"step": self.step})
            told = {name: answer["fingerprint"] for name, answer in updated.items()}
            odd = odd_replicas(told)
            if odd and self.crew.elastic and len(told) > 2:
                for name in odd:
                    self.crew.drop(name, "corrupt", f"other weights after step {self.step}")
                    told.pop(name)
            self._remember(check_replicas(self.step, told))

    def _remember(self, fingerprint: str) -> None:
        """These are the weights after the step that was committed last."""
        self.fingerprint = self.fingerprints[self.step] = fingerprint
        self.fingerprints.pop(self.step - REMEMBERED, None)

    def _close(self, step: int, totals: Totals, squares: Any) -> tuple[LedgerLine, dict[str, Any]]:
        """Norm, clip, learning rate and the update's scalars of a computed step."""
        recipe, current = self.recipe, self.exponents.current
        norm = scalars.gradient_norm(
            [(total, shift, k) for (total, shift), k in zip(squares, current, strict=True)],
            tokens=totals.tokens,
        )
        clip = scalars.clip_factor(norm, recipe.optimizer.clip)
        lr = scalars.round32(
            scalars.learning_rate(
                step,
                lr=recipe.optimizer.lr,
                schedule=recipe.schedule,
                total_steps=recipe.total_steps(),
            )
        )
        values = scalars.update_scalars(
            step - self.guard.lost,  # how many updates the moments will hold
            lr=lr,
            clip=clip,
            tokens=totals.tokens,
            exponents=current,
            optimizer=recipe.optimizer,
        )
        line = LedgerLine(
            step=step,
            grains={},
            kinds={},
            loss=totals.loss / totals.tokens,
            grad_norm=norm,
            lr=lr,
            clip=clip,
            exponents_digest=self.exponents.digest(),
            sum_digest=f"{totals.sum_digest:016x}",
            fingerprint=self.fingerprint,
            probe=totals.probe,
            seconds=0.0,
            tokens=totals.tokens,
            requantised=0,
            reassigned=[],
        )
        return line, asdict(values)

    def commit(self, values: dict[str, Any]) -> None:
        """The step stands in the ledger: have the islands update. Their answer is taken with the
        next.
        """
        change = self.guard.take(self._open)
        if change in ("update", "keep"):
            self.exponents.commit(self._loads)
        else:
            self.exponents.forget_attempts()
        self.step += 1
        state = {"exponents": self.exponents.state()}
        self.crew.tell_all("commit", step=self.step, scalars=values, state=state, change=change)
        self._pending_update = True

    # ------------------------------------------------------------------ beside the steps

    def validate(self, num_windows: int) -> float:
        """Mean loss in nats a token over the first validation windows, split by speed."""
        self.settle()
        size = self.recipe.batch.grain
        counts = shares.by_speed(
            -(-num_windows // size),
            grain_seconds={n: m.grain_seconds for n, m in self.whole().items()},
            lanes={n: m.lanes for n, m in self.whole().items()},
        )
        first = 0
        pieces: dict[str, tuple[int, int]] = {}
        for name, batches in counts.items():
            count = min(batches * size, num_windows - first)
            if count > 0:
                pieces[name] = (first, count)
                first += count
        answers = self._validated(pieces)
        total = tokens = 0.0
        for begin in sorted(answers):
            for loss in answers[begin]["losses"]:
                total += loss
            tokens += answers[begin]["tokens"]
        return total / tokens

    def _validated(self, pieces: dict[str, tuple[int, int]]) -> dict[int, Any]:
        """First window -> answer; a piece whose island is lost goes to another one."""
        done: dict[int, Any] = {}
        while pieces:
            for name, (first, count) in pieces.items():
                self.crew.tell("validate", {name: {"first": first, "count": count}})
            answers = self.crew.gather("validated", list(pieces))
            done |= {answer["first"]: answer for answer in answers.values()}
            lost = [piece for name, piece in pieces.items() if name not in answers]
            whole = list(self.whole())
            pieces = dict(zip(whole, lost, strict=False))
            # More pieces than islands wait for the next turn.
            for piece in lost[len(whole) :]:
                pieces |= {}
                done |= self._validated({whole[0]: piece})
        return done

    def probe_grains(self, step: int, ranges: Mapping[str, shares.Ranges]) -> dict[str, Any]:
        """[grain, digest] of single grains of `step` at the exponents now in force; commits
        nothing.
        """
        if not ranges:
            return {}
        open_step = OpenStep.begin(step, ranges)
        self._assign(open_step, exchange=False)
        return {name: open_step.held[name]["probe"] for name in ranges}

    def contract(self) -> str:
        """What this crew promises, from the kinds that were proved."""
        kinds = {member.kind_id for member in self.crew.members.values()}
        return "bitwise" if len(kinds) == 1 else "replicas identical, replayable"

    def kinds(self) -> dict[str, dict[str, Any]]:
        """Every kind present, spelled out, by its id."""
        return {member.kind_id: member.kind for member in self.crew.members.values()}


def _went_well(answer: Any) -> bool:
    """Whether an island has answered, and that its exchange went well."""
    return answer is not None and bool(answer["ok"])
