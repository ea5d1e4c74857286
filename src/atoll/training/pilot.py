"""The pilot: the one process that hands out grains and commits steps. It never touches a tensor.

The life of a step: assign -> (islands compute) -> judge (finite? overflow?) -> exchange -> compare
-> **ledger line, synced: the commit** -> update. Before that line the step is open and may be
computed again; after it every island that lives has it. The fingerprint of the weights after step s
arrives with s + 1 and stands in that line.

`Pilot` runs steps; where they come from (a schedule, an audit's replay) is its caller's.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from atoll.crew import wire
from atoll.digest import digest_of
from atoll.errors import IslandError, RunError
from atoll.model import Model
from atoll.recipe import Recipe
from atoll.run import LedgerLine
from atoll.training import exponents as exp
from atoll.training import scalars, shares
from atoll.training.step import Totals, add_up, check_exchange, check_replicas, not_finite

MOST_ATTEMPTS = 8
"""Attempts at one step; each overflow lowers the exponents by what its loads demand."""
WORD_SECONDS = 5.0
"""Between two words about islands that are waited for."""
SPEED_WINDOW = 8
"""Steps whose speeds decide the next split."""


@dataclass(slots=True)
class Member:
    """One island that has arrived, as the pilot knows it."""

    name: str
    chip: str
    lanes: int
    connection: wire.Connection
    kind: dict[str, Any] = field(default_factory=dict)
    kind_id: str = ""
    memory: dict[str, Any] = field(default_factory=dict)
    failed_operations: list[str] = field(default_factory=list)
    updates_on_host: bool = False
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    grains: int = 0

    @property
    def grain_seconds(self) -> float:
        """Seconds that one lane needs for a grain: the median of the last steps."""
        ordered = sorted(self.seconds)
        return ordered[len(ordered) // 2] if ordered else 1.0

    @property
    def grains_per_second(self) -> float:
        """Speed of the whole island."""
        return self.lanes / self.grain_seconds


class Crewed:
    """The members and the queue their messages come through: ask all, wait for all."""

    def __init__(self, listener: wire.Listener, explain: Callable[[str], str]) -> None:
        self.members: dict[str, Member] = {}
        self._names: set[str] = set()  # of the islands that belong here
        self._events = listener.events
        self._explain = explain  # what to show of an island that died
        self._late: list[tuple[str, wire.Message]] = []
        self._finished: set[str] = set()

    def admit(self, names: Sequence[str], *, waiting: Callable[[list[str]], None]) -> None:
        """Wait until every island of `names` has dialled in; members keep the order of `names`."""
        self._names = set(names)
        arrived: dict[str, Member] = {}
        last_word = time.monotonic()
        while missing := [name for name in names if name not in arrived]:
            event = self._next(1.0)
            if event is None and time.monotonic() - last_word > WORD_SECONDS:
                waiting(missing)
                last_word = time.monotonic()
            if event is not None and isinstance(event[1], wire.Arrival):
                name, arrival = event[0], event[1]
                told = arrival.hello["facts"]
                arrived[name] = Member(name, told["chip"], told["lanes"], arrival.connection)
        # Whoever comes first must not decide ranks, ranges or who writes checkpoints.
        self.members = {name: arrived[name] for name in names}

    def _next(self, timeout: float | None = None) -> tuple[str, Any] | None:
        """The next event that is not the end of an island; None after `timeout` seconds.

        An island that fails, or leaves before it has said that it is finished, raises IslandError.
        """
        while True:
            try:
                name, what = self._events.get(timeout=timeout)
            except queue.Empty:
                return None
            if name not in self._names:
                _turn_away(name, what)
                continue
            if isinstance(what, wire.Message) and what.kind == "finished":
                self._finished.add(name)
            if not _is_end(what):
                return name, what
            if isinstance(what, wire.Exit) and what.status == 0 and name in self.members:
                continue  # its goodbye may still be on the wire; the wire's end comes after it
            if name not in self._finished:
                raise self._why_gone(name, what)

    def _why_gone(self, name: str, what: object) -> IslandError:
        """The error for the end of an island, from the best of the words that explain it.

        Its own last word may arrive just after its end is seen; and an island whose exchange broke
        off only follows another, whose end may be told later.
        """
        ends = [(name, what)]
        deadline = time.monotonic() + 1.0
        while _blame(ends[-1][1]) < 2 and (left := deadline - time.monotonic()) > 0:
            try:
                other, late = self._events.get(timeout=left)
            except queue.Empty:
                break
            if _is_end(late) and other in self._names:
                ends.append((other, late))
        name, what = max(ends, key=lambda end: _blame(end[1]))
        if isinstance(what, wire.Message):
            return IslandError(
                f"island {name!r} failed:\n{what.get('traceback') or what['reason']}"
            )
        return IslandError(f"island {name!r} is gone ({what}).\n{self._explain(name)}")

    def tell(self, kind: str, fields: Mapping[str, Mapping[str, Any]]) -> None:
        """Send each island its own fields."""
        for name, values in fields.items():
            try:
                self.members[name].connection.send(kind, **values)
            except wire.ConnectionClosed as error:
                raise self._why_gone(name, error) from error

    def tell_all(self, kind: str, **fields: Any) -> None:
        """Send all islands the same."""
        self.tell(kind, dict.fromkeys(self.members, fields))

    def gather(self, kind: str, names: list[str] | None = None) -> dict[str, wire.Message]:
        """One message of `kind` from each island (or those of `names`), in the members' order.

        Other kinds that arrive meanwhile wait for the `gather` or `take` that asks for them.
        """
        wanted = list(self.members) if names is None else names
        got: dict[str, wire.Message] = {}
        for item in [x for x in self._late if x[1].kind == kind and x[0] in wanted]:
            if item[0] not in got:
                got[item[0]] = item[1]
                self._late.remove(item)
        while len(got) < len(wanted):
            event = self._next()
            assert event is not None
            name, message = event
            if (
                isinstance(message, wire.Message)
                and message.kind == kind
                and name in wanted
                and name not in got
            ):
                got[name] = message
            elif isinstance(message, wire.Message):
                self._late.append((name, message))
        return {name: got[name] for name in wanted}

    def take(self, *kinds: str) -> list[tuple[str, wire.Message]]:
        """What has arrived of these kinds, without waiting."""
        while (event := self._next(0.0)) is not None:
            if isinstance(event[1], wire.Message):
                self._late.append((event[0], event[1]))
        taken = [x for x in self._late if x[1].kind in kinds]
        self._late = [x for x in self._late if x[1].kind not in kinds]
        return taken


def _is_end(what: object) -> bool:
    """Whether an event is the end of an island."""
    if isinstance(what, wire.Message):
        return what.kind == "failed"
    return isinstance(what, wire.ConnectionClosed | wire.Exit)


def _turn_away(name: str, what: object) -> None:
    """An island of another name has the token, but no place here; it must not end the run."""
    if isinstance(what, wire.Arrival):
        with contextlib.suppress(wire.ConnectionClosed):
            what.connection.send("failed", reason=f"the fleet has no island {name!r}")
        what.connection.close()


def _blame(what: object) -> int:
    """How well an island's end explains what happened: 3 its own failure, 2 a signal, 0 that of
    another.
    """
    if isinstance(what, wire.Message):
        return 0 if what.get("follows") else 3
    return 2 if isinstance(what, wire.Exit) and what.status < 0 else 1


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
        self.step = 0
        self.fingerprint = ""
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
        self.fingerprint = check_replicas(0, {n: a["fingerprint"] for n, a in ready.items()})

    def form_group(self) -> None:
        """Let all members meet for the exchange."""
        members = self.crew.members
        ranks = {n: {"epoch": 1, "rank": i, "size": len(members)} for i, n in enumerate(members)}
        self.crew.tell("join", ranks)
        self.crew.gather("joined")

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

        Nothing is committed: the caller appends the line, then calls `commit`.
        """
        step, started = self.step + 1, time.perf_counter()
        ranges = {name: list(ranges.get(name, [])) for name in self.crew.members}
        totals, num_requantised = self._compute(step, ranges)
        self.crew.tell_all("exchange", step=step)
        answers = self.crew.gather("exchanged")
        squares = check_exchange(step, totals, answers)
        line, values = self._close(step, totals, squares)
        line = line.model_copy(
            update={
                "grains": {
                    name: [list(r) for r in parts] for name, parts in ranges.items() if parts
                },
                "kinds": {n: m.kind_id for n, m in self.crew.members.items()},
                "seconds": time.perf_counter() - started,
                "requantised": num_requantised,
            }
        )
        self._loads = totals.loads
        return line, values

    def _compute(self, step: int, ranges: Mapping[str, shares.Ranges]) -> tuple[Totals, int]:
        """Attempts until every grain is finite and no tensor overflows; the second not-finite one
        ends the run. All grains have finished before an overflow is judged, so it depends on the
        step alone.
        """
        measuring, num_requantised, seen_not_finite = not self.exponents.measured, 0, False
        for attempt in range(MOST_ATTEMPTS):
            results = self._assign(step, attempt, ranges, exchange=not measuring)
            error = not_finite(step, results)
            if error is not None and seen_not_finite:
                raise error
            if error is not None:
                seen_not_finite = True
                continue
            totals = add_up(results)
            if not measuring and not self.exponents.overflown(totals.loads):
                return totals, num_requantised
            self.exponents.current = self.exponents.retry(totals.loads)
            num_requantised += not measuring
            measuring = False
        raise RunError(
            f"step {step} still overflows after {MOST_ATTEMPTS} attempts: a bug in Atoll"
        )

    def _assign(
        self, step: int, attempt: int, ranges: Mapping[str, shares.Ranges], *, exchange: bool
    ) -> dict[str, wire.Message]:
        self.crew.tell(
            "assign",
            {
                name: {
                    "step": step,
                    "attempt": attempt,
                    "exponents": self.exponents.current,
                    "ranges": [list(r) for r in parts],
                    "probe_grain": _draw(self.recipe.seed, step, parts),
                    "exchange": exchange,
                }
                for name, parts in ranges.items()
            },
        )
        self.settle()  # the update of the last step ends before any grain of this one begins
        results = self.crew.gather("result")
        for name, result in results.items():
            member = self.crew.members[name]
            member.grains = len(result["losses"])
            if result["lane_seconds"]:
                ordered = sorted(result["lane_seconds"])
                member.seconds.append(ordered[len(ordered) // 2])
        return results

    def settle(self) -> None:
        """Take in the fingerprints of the last update; all replicas must be identical."""
        if self._pending_update:
            self._pending_update = False
            updated = self.crew.gather("updated")
            self.fingerprint = check_replicas(
                self.step, {n: a["fingerprint"] for n, a in updated.items()}
            )

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
            step,
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
        self.exponents.commit(self._loads)
        self.step += 1
        self.crew.tell_all("commit", step=self.step, scalars=values)
        self._pending_update = True

    # ------------------------------------------------------------------ beside the steps

    def validate(self, num_windows: int) -> float:
        """Mean loss in nats a token over the first validation windows, split by speed."""
        self.settle()
        size = self.recipe.batch.grain
        counts = shares.by_speed(
            -(-num_windows // size),
            grain_seconds={n: m.grain_seconds for n, m in self.crew.members.items()},
            lanes={n: m.lanes for n, m in self.crew.members.items()},
        )
        first = 0
        asked: list[str] = []
        for name, batches in counts.items():
            count = min(batches * size, num_windows - first)
            if count > 0:
                self.crew.tell("validate", {name: {"first": first, "count": count}})
                asked.append(name)
                first += count
        answers = self.crew.gather("validated", asked)
        total = tokens = 0.0
        for answer in answers.values():
            for loss in answer["losses"]:
                total += loss
            tokens += answer["tokens"]
        return total / tokens

    def probe_grains(self, step: int, ranges: Mapping[str, shares.Ranges]) -> dict[str, Any]:
        """[grain, digest] of single grains of `step` at the exponents now in force; commits
        nothing.
        """
        if not ranges:
            return {}
        wanted = {name: list(ranges.get(name, [])) for name in self.crew.members}
        results = self._assign(step, 0, wanted, exchange=False)
        return {name: results[name]["probe"] for name in ranges}

    def contract(self) -> str:
        """What this crew promises, from the kinds that were proved."""
        kinds = {member.kind_id for member in self.crew.members.values()}
        return "bitwise" if len(kinds) == 1 else "replicas identical, replayable"

    def kinds(self) -> dict[str, dict[str, Any]]:
        """Every kind present, spelled out, by its id."""
        return {member.kind_id: member.kind for member in self.crew.members.values()}


def _draw(seed: int, step: int, ranges: shares.Ranges) -> int | None:
    """One grain of these ranges, drawn from (seed, step): its own digest goes into the ledger."""
    grains = shares.grains_in(ranges)
    if not grains:
        return None
    return grains[int(digest_of([seed, step, grains[0]])[:12], 16) % len(grains)]
