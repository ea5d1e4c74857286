"""An island: one process that dials the pilot, holds the weights and computes its grains.

It obeys a small set of messages (`Island.handle`): prepare, join, restore, assign, exchange,
commit, validate, fingerprint, checkpoint, finish. It decides nothing that could change a bit of the
run. Started by `atoll island` from any launcher, or forked by the local crew through the same
`main`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from atoll.crew import wire
from atoll.data.sampler import Sampler
from atoll.data.shards import Shards, open_shards
from atoll.digest import digest_of
from atoll.errors import CheckpointError, ExchangeError, InputError, RunError
from atoll.recipe import Recipe
from atoll.training import checkpoint, examination
from atoll.training.accumulator import IntegerSums, square_sum
from atoll.training.dialling import log, run_island
from atoll.training.exchange import Exchange, OpenExchange
from atoll.training.exponents import pack_loads
from atoll.training.healing import Gift, receive
from atoll.training.lane import GrainResult, Lane
from atoll.training.replica import Replica
from atoll.training.shares import grains_in

T = TypeVar("T")
R = TypeVar("R")


class Island(Replica):
    """A replica that obeys a pilot; `send` answers it."""

    def __init__(self, *, hosts: tuple[str, str], send: Callable[..., None], **own: Any) -> None:
        """`hosts` are (of this island, of the pilot), as this island sees them; `own` are the
        fields of a `Replica`.
        """
        super().__init__(**own)
        self.send = send
        self._hosts = hosts
        self._writer: checkpoint.Writer | None = None
        self._open_exchange: OpenExchange | None = None
        self.healing = False
        self._told = ""  # digest of what it was prepared with
        self.committed = self.committed_digest = self._summed = 0
        self.pilot_state: dict[str, Any] | None = None
        """What the pilot had to know after the step that was committed last."""
        self.post: Callable[[wire.Message], None] = _nowhere
        """Puts a message into this island's own inbox, from any thread; set by who runs it."""

    # ------------------------------------------------------------------ start

    def prepare(
        self,
        *,
        recipe: dict[str, Any],
        vocab: int,
        widths: list[Any],
        shards: dict[str, str] | None,
        run: str,
        store_port: int,
    ) -> None:
        """Build the model with its initial weights, prove the arithmetic, say what kind the lanes
        are. An island that already holds the weights of this very run keeps them.
        """
        told = digest_of([recipe, vocab, list(widths), shards, run])
        if self._told == told:
            self._present(store_port)
            return
        self._told = told
        self.recipe = Recipe.from_dict(recipe)
        self.model = self.recipe.model.with_vocab(vocab)
        self.run_folder = Path(run)
        batch, context = self.recipe.batch, self.model.context
        if shards is not None:
            self.sampler = Sampler(
                _the_shards(shards),
                seed=self.recipe.seed,
                context=context,
                sequences=batch.sequences,
                grain=batch.grain,
            )
        failed = self.backend.prove_exact(self.device_index)
        self.updates_on_host = bool(failed) and self.device.type != "cpu"
        self._build(widths)
        self.committed, self.pilot_state = 0, None
        probes, seconds = self._probe(batch.grain, context, vocab)
        memory = self.backend.memory(self.device_index)
        self._proof = {
            "lane_kind": self._kind(probes),
            "probes": probes,
            "grain_seconds": seconds,
            "failed": failed,
            "updates_on_host": self.updates_on_host,
            "memory": {"free": memory.free, "total": memory.total},
        }
        self._present(store_port)

    def _present(self, store_port: int) -> None:
        """Say what this island is, and after which step it holds which weights."""
        self.exchange = Exchange(
            store_host=self._hosts[1], store_port=store_port, local_host=self._hosts[0]
        )
        self.send(
            "ready",
            **self._proof,
            fingerprint=self.fingerprint(),
            step=self.committed,
            state=self.pilot_state,
            sum_digest=self.committed_digest,
        )

    def holds(self) -> dict[str, Any] | None:
        """After which step it could go on under another pilot; None if it has nothing whole."""
        if self.healing or not self._told:
            return None
        return {"step": self.committed}

    def join(self, *, epoch: int, rank: int, size: int) -> None:
        """Enter the exchange group of an epoch; the sums of the open step stay as they are."""
        self._leave_exchange()
        ok = True
        try:
            self.exchange.join(epoch=epoch, rank=rank, size=size)
        except ExchangeError as error:
            log(str(error))
            ok = False
        self._alone = size == 1
        if self._alone:
            self.exchanged = self.accumulator.sums
        elif self.exchanged is self.accumulator.sums:
            self.exchanged = self.accumulator.sums.like()
        self.send("joined", epoch=epoch, ok=ok)

    def _leave_exchange(self) -> None:
        """Give up an exchange that is open: what hangs in it may still write into its buffer."""
        if self._open_exchange is not None:
            self.exchange.park((self._open_exchange, self.exchanged))
            self._open_exchange = None
            self.exchanged = self.accumulator.sums.like()

    def notice(self, message: wire.Message) -> None:
        """See a message the moment it arrives, from the inbox's thread, before its turn."""
        if message.kind in ("join", "orphaned") and hasattr(self, "exchange"):
            self.exchange.cancel()

    def restore(self, *, step: int) -> None:
        """Load the checkpoint after `step`; step 0 is the initial weights."""
        if step == 0:
            self._fill_initial()
            for moments in (self.optimizer.moment1, self.optimizer.moment2):
                for tensor in moments.values():
                    tensor.zero_()
        else:
            saved = checkpoint.read(
                self.run_folder / "checkpoints",
                step,
                report=log,
                expected=self.model.tensors(),
                fall_back=False,
            )
            for group, live in self._groups().items():
                saved.load_into(group, live)
            self._sync_masters()
        self.committed, self.pilot_state = step, None
        self.send("restored", step=step, fingerprint=self.fingerprint())

    # ------------------------------------------------------------------ a step

    def assign(
        self,
        *,
        step: int,
        turn: int,
        attempt: int,
        fresh: bool,
        exponents: list[int],
        ranges: list[list[int]],
        probe_grain: int | None,
        exchange: bool,
    ) -> None:
        """Compute grains into fresh sums, or add them to those there are; report losses and loads.

        With `exchange`, what is finished leaves for the other islands during the last grains.
        """
        started = time.perf_counter()
        grains = grains_in(ranges)
        # Of an attempt that was given up; or what has left already lacks the grains that come now.
        self._leave_exchange()
        if fresh:
            self.accumulator.start(exponents)
        added = None
        if exchange and not self._alone:
            self._open_exchange = self.exchange.begin(
                self.accumulator.sums,
                self.exchanged,
                host=self.backend.host,
                num_grains=len(grains),
            )
            added = self._open_exchange.added
        results = self._compute(step, grains, probe_grain, added)
        loads = [0] * len(self.names)
        for result in results:
            loads = [a + b for a, b in zip(loads, result.loads, strict=True)]
        self._summed = self._digest(self.accumulator.sums)
        probe = [[r.grain, f"{r.digest:016x}"] for r in results if r.digest is not None]
        self.send(
            "result",
            step=step,
            turn=turn,
            attempt=attempt,
            loads=pack_loads(loads),
            losses=[[r.grain, r.loss] for r in results],
            tokens=len(results) * self.recipe.batch.grain * self.model.context,
            not_finite=[[r.grain, r.not_finite] for r in results if r.not_finite],
            probe=probe[0] if probe else None,
            sum_digest=self._summed,
            lane_seconds=[r.seconds for r in results],
            seconds=time.perf_counter() - started,
        )

    def _compute(
        self,
        step: int,
        grains: list[int],
        probe_grain: int | None,
        added: Callable[[int], None] | None,
    ) -> list[GrainResult]:
        """The grains by all lanes, each taking the next one when it is free; in grain order."""
        work: queue.SimpleQueue[int] = queue.SimpleQueue()
        for grain in grains:
            work.put(grain)

        def compute(lane: Lane) -> list[GrainResult]:
            done: list[GrainResult] = []
            while True:
                try:
                    grain = work.get_nowait()
                except queue.Empty:
                    return done
                tokens = self.sampler.grain(step, grain)
                digest = grain == probe_grain
                done.append(
                    lane.compute(grain, tokens, self.accumulator, digest=digest, added=added)
                )

        results = [r for done in self._pool.map(compute, self.lanes[: len(grains)]) for r in done]
        return sorted(results, key=lambda result: result.grain)

    def check(self, *, step: int, grain: int) -> None:
        """Compute a grain that another island has computed too, and say what comes out."""
        digest = self.lanes[0].digest(self.sampler.grain(step, grain), self.accumulator)
        self.send("checked", step=step, grain=grain, digest=f"{digest:016x}")

    def exchange_sums(self, *, step: int, epoch: int) -> None:
        """Finish the exchange into the second buffer; report the result's digest and squares."""
        try:
            if self._open_exchange is None and not self._alone:
                self._open_exchange = self.exchange.begin(
                    self.accumulator.sums, self.exchanged, host=self.backend.host, num_grains=0
                )
            self._finish_exchange()
        except ExchangeError as error:
            log(str(error))
            self._leave_exchange()
            self.send("exchanged", step=step, epoch=epoch, ok=False, squares=[], sum_digest=None)
            return
        if not self._alone:
            self._summed = self._digest(self.exchanged)
        squares = self._parallel(square_sum, self.exchanged.views)
        self.send(
            "exchanged",
            step=step,
            epoch=epoch,
            ok=True,
            squares=[[s.total, s.shift] for s in squares],
            sum_digest=None if self._alone else self._summed,
        )

    def _finish_exchange(self) -> None:
        if self._open_exchange is not None:
            self._open_exchange.finish()
            self._open_exchange = None

    def commit(
        self, *, step: int, scalars: dict[str, Any], state: dict[str, Any], change: str = "update"
    ) -> None:
        """Change the weights, mostly by an update (`guard.Change`): the step stands in the ledger
        now. `state` is the pilot's own, kept for another one if it dies.
        """
        self.committed, self.pilot_state, self.committed_digest = step, state, self._summed
        if self.healing:
            kept = self.exchanged.like()
            for width, flat in kept.flats.items():
                flat.copy_(self.exchanged.flats[width])
            self._kept_updates.append((step, change, scalars, kept))
            return
        if self._writer is not None:
            self._writer.wait_snapshot()  # a checkpoint may still be reading the live tensors
        self._change(change, self.exchanged, scalars)
        self.send("updated", step=step, fingerprint=self.fingerprint())

    def validate(self, *, first: int, count: int) -> None:
        """Summed loss of validation windows [first, first + count), in grain-sized batches."""
        size = self.recipe.batch.grain
        starts = list(range(first, first + count, size))
        batches = [self.sampler.validation(a, min(size, first + count - a)) for a in starts]
        lanes: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self.lanes:
            lanes.put(lane)

        def loss(tokens: Any) -> float:
            lane = lanes.get()
            try:
                return lane.loss_only(tokens)
            finally:
                lanes.put(lane)

        losses = list(self._pool.map(loss, batches))
        self.send("validated", first=first, losses=losses, tokens=count * self.model.context)

    # ------------------------------------------------------------------ healing

    def give(self, *, step: int, to: str) -> None:
        """Copy the state after `step` for an island that joins; it comes for it by itself."""
        gift = Gift(self._groups(), host=self.backend.host, local=self._hosts[0])
        host, port = gift.address
        self.send("giving", step=step, to=to, host=host, port=port, secret=gift.secret)

    def heal(self, *, step: int, host: str, port: int, secret: str, fingerprint: str) -> None:
        """Fetch the state after `step` in a thread; until it is here, updates are kept."""
        self._kept_updates: list[tuple[int, str, dict[str, Any], IntegerSums]] = []
        self.healing = True

        def fetch() -> None:
            try:
                state = receive(self._groups(), address=(host, port), secret=secret)
            except RunError as error:
                self.send("heal_failed", reason=str(error))
                return
            fields = {"step": step, "state": state, "fingerprint": fingerprint}
            self.post(wire.Message("fetched", fields, peer="this island"))

        threading.Thread(target=fetch, name="heal", daemon=True).start()

    def fetched(self, *, step: int, state: dict[str, Any], fingerprint: str) -> None:
        """The state is here: prove it, apply the updates that were kept, and say so."""
        for group, live in self._groups().items():
            for name, tensor in live.items():
                tensor.copy_(state[group][name])
        self._sync_masters()
        if self.fingerprint() != fingerprint:
            self.send("heal_failed", reason=f"the state of step {step} arrived with other bits")
            return
        for later, change, scalars, sums in self._kept_updates:
            self._change(change, sums, scalars)
            step = later
        self._kept_updates = []
        self.healing = False
        now = self.fingerprint()
        self.send("updated", step=step, fingerprint=now)
        self.send("healed", step=step, fingerprint=now)

    # ------------------------------------------------------------------ keeping

    def save(self, *, step: int, state: dict[str, Any]) -> None:
        """Start writing a checkpoint; the next update waits until its tensors have been read."""
        if self._writer is None:
            self._writer = checkpoint.Writer(self.run_folder / "checkpoints")
        self._writer.save(
            step,
            tensors=self._groups(),
            host=self.backend.host,
            state=state,
        )

    def report_checkpoints(self) -> None:
        """Tell the pilot what the writer has finished since the last call."""
        for outcome in self._writer.finished() if self._writer else []:
            if isinstance(outcome, CheckpointError):
                self.send("checkpoint_failed", reason=str(outcome))
            else:
                self.send(
                    "checkpointed", step=outcome.step, bytes=outcome.bytes, seconds=outcome.seconds
                )

    def finish(self) -> None:
        """Wait for the checkpoint being written, report it, and say goodbye."""
        if self._writer is not None:
            self._writer.close()
            self.report_checkpoints()
        self.send("finished")

    @property
    def hangs(self) -> bool:
        """Whether something is under way that this process could not end in good order."""
        return hasattr(self, "exchange") and self.exchange.hangs

    # ------------------------------------------------------------------ the doctor

    def trace(self, *, path: str) -> None:
        """Compute the probe grain and keep every stage's input and gradient in a file."""
        # A decoder of its own: a lane's hooks take the gradients away.
        kept = examination.trace(self._bare_decoder(), self._probe_grain())
        save_file(kept, path)
        self.send("traced", loss=float(kept["loss"]))

    def examine(self, *, path: str) -> None:
        """Compute every stage of the probe grain from another island's trace; report the errors."""
        decoder = self._bare_decoder()
        stages = examination.examine(decoder, self._probe_grain(), load_file(path))
        with torch.no_grad():
            loss = float(decoder.loss(self._probe_grain()))
        self.send("examined", stages=[stage.as_dict() for stage in stages], loss=loss)

    def link(self, *, num_bytes: int) -> None:
        """Time the exchange of `num_bytes` with the other members; the best of three."""
        sums = IntegerSums({"link": (num_bytes // 4,)}, [32], torch.device("cpu"))
        into = sums.like()
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            self.exchange.begin(sums, into, host=self.backend.host, num_grains=0).finish()
            seconds.append(time.perf_counter() - started)
        self.send("linked", seconds=min(seconds))

    def handle(self, message: wire.Message) -> bool:
        """Obey one message; False after the last one."""
        actions: dict[str, Callable[..., None]] = {
            "prepare": self.prepare,
            "join": self.join,
            "restore": self.restore,
            "assign": self.assign,
            "exchange": self.exchange_sums,
            "check": self.check,
            "commit": self.commit,
            "give": self.give,
            "heal": self.heal,
            "fetched": self.fetched,
            "validate": self.validate,
            "checkpoint": self.save,
            "finish": self.finish,
            "trace": self.trace,
            "examine": self.examine,
            "link": self.link,
        }
        actions[message.kind](**message.fields)
        self.report_checkpoints()
        return message.kind != "finish"


def _nowhere(message: wire.Message) -> None:
    raise AssertionError(f"no inbox takes {message!r}")


def _the_shards(expected: dict[str, str]) -> Shards:
    """The run's token shards as this host sees them; InputError if they are others."""
    shards = open_shards(Path(expected["folder"]))
    if shards.digest != expected["digest"]:
        raise InputError(
            "these are not the token shards of this run",
            file=shards.folder,
            fix=f"copy those whose digest begins with {expected['digest'][:12]}",
        )
    return shards


def main(argv: Sequence[str]) -> int:
    """Entry point of an island process: dial, obey, leave. Returns the exit code."""
    return run_island(argv, Island)
