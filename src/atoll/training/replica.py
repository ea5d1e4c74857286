"""A replica: what an island holds (weights, moments, integer sums, lanes) and what it does to them.

No wire and no step: `Island` obeys the pilot with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from atoll import backends
from atoll.digest import digest_of
from atoll.errors import AtollError
from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder
from atoll.recipe import Recipe
from atoll.training.accumulator import Accumulator, IntegerSums
from atoll.training.digests import add_digests, combine_sha256, sum_digest, tensor_bytes_sha256
from atoll.training.lane import Lane, probe_tokens
from atoll.training.optimizer import AdamW
from atoll.training.scalars import UpdateScalars
from atoll.training.target import num_cores

T = TypeVar("T")
R = TypeVar("R")

HOST_THREADS = 8
"""Threads beside an accelerator that take digests of what it holds, where the host has so many."""


class Replica:
    """The state of one island on its device. `recipe` and `model` are set before `_build`."""

    lane_type = Lane  # a test plants faults here, in a process of its own
    recipe: Recipe
    model: Model
    updates_on_host: bool

    def __init__(self, *, chip: str, lanes: int, threads: int, device_index: int) -> None:
        """Takes the device; builds nothing yet."""
        self.chip = chip
        self.num_lanes = lanes
        self.threads = threads
        self.backend = backends.of_chip(chip)
        if not self.backend.available():
            raise AtollError(
                f"no device of chip {chip} (backend {self.backend.name}) is seen here by torch "
                f"{torch.__version__}: name a chip that this machine has in the fleet file, or "
                "install the torch build (and plugin) of that chip"
            )
        self.backend.prepare(threads=threads)
        self.device_index = device_index
        self.device = self.backend.device(device_index)
        self._pool = _pool_of(lanes, name="lane", threads=threads)
        self._host_pool = self._pool  # a CPU's lanes are its host's threads
        if self.device.type != "cpu":
            size = max(1, min(HOST_THREADS, num_cores() // max(1, self.backend.num_devices())))
            self._host_pool = _pool_of(size, name="host", threads=threads)

    def _build(self, widths: list[Any]) -> None:
        """Weights, the lanes that alias them, moments and sums."""
        shapes = self.model.tensors()
        self.weights = {
            name: torch.empty(shape, dtype=torch.float32, device=self.device)
            for name, shape in shapes.items()
        }
        self.names = list(self.weights)
        self.lanes = [
            self.lane_type(self.model, weights=self.weights, device=self.device)
            for _ in range(self.num_lanes)
        ]
        updating, self.masters = self.backend, self.weights
        if self.updates_on_host:
            updating = _sound_host()
            self.masters = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self.optimizer = AdamW(self.masters, square_root=updating.sqrt)
        self._fill_initial()
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        if self.recipe.guard.on_spike == "roll-back":
            groups = ("weights", "moment1", "moment2")
            self._kept = {
                group: {name: torch.zeros(shape) for name, shape in shapes.items()}
                for group in groups
            }
        self.accumulator = Accumulator(IntegerSums(shapes, widths, self.device))
        self.exchanged = self.accumulator.sums  # alone, the own sums are the result

    def _fill_initial(self) -> None:
        initial.fill(self.lanes[0].decoder, self.recipe.seed)  # its parameters are the weights
        self._sync_masters()

    def _sync_masters(self) -> None:
        """Take over into the host's masters what was written into the device's weights."""
        if self.updates_on_host:
            for name, weight in self.weights.items():
                self.masters[name].copy_(self.backend.host(weight))

    def _probe(self, sequences: int, context: int, vocab: int) -> tuple[list[str], float]:
        """Every lane computes the probe grain on the initial weights; the second pass is timed."""
        tokens = probe_tokens(sequences=sequences, context=context, vocab=vocab)
        first = list(self._pool.map(lambda lane: lane.probe(tokens), self.lanes))
        started = time.perf_counter()
        second = list(self._pool.map(lambda lane: lane.probe(tokens), self.lanes))
        seconds = time.perf_counter() - started
        if first != second:
            raise AtollError(
                f"a lane of {self.chip} gave other bits the second time it computed a grain: "
                "its kernels are not deterministic"
            )
        return first, seconds

    def _kind(self, probes: list[str]) -> dict[str, Any]:
        if len(set(probes)) > 1:
            raise AtollError(
                f"the lanes of this {self.chip} island are not of one kind: probes {probes}"
            )
        return {
            **self.backend.kind_facts(index=self.device_index),
            "chip": self.chip,
            "threads": self.threads,
            "compute": self.recipe.precision.compute,
            "grain": [self.recipe.batch.grain, self.model.context],
            "model": digest_of(self.model.expanded()),
            "probe": probes[0],
        }

    def _change(self, change: str, sums: IntegerSums, scalars: dict[str, Any]) -> None:
        """What a committed step does to weights and moments: one of `guard.Change`."""
        if change in ("keep", "roll-back"):
            for group, live in self._live().items():
                for name, tensor in live.items():
                    kept = self._kept[group][name]
                    if change == "keep":
                        kept.copy_(self.backend.host(tensor))
                    else:
                        tensor.copy_(kept)
        if change == "roll-back":
            self._sync_masters()
        if change in ("update", "keep"):
            self._update(sums, scalars)

    def _update(self, sums: IntegerSums, scalars: dict[str, Any]) -> None:
        """AdamW by these integers."""
        values = UpdateScalars(**{**scalars, "scale": tuple(scalars["scale"])})

        def update(index: int) -> None:
            name, integers = self.names[index], sums.views[index]
            if self.updates_on_host:
                integers = self.backend.host(integers)
            self.optimizer.update(name, integers, scale=values.scale[index], scalars=values)
            if self.updates_on_host:
                self.weights[name].copy_(self.masters[name])

        pool = self._host_pool if self.updates_on_host else self._pool
        list(pool.map(update, range(len(self.names))))

    def fingerprint(self) -> str:
        """Hex SHA-256 over all weights."""
        parts = self._host_pool.map(
            lambda w: tensor_bytes_sha256(self.backend.host(w)), self.weights.values()
        )
        return combine_sha256(dict(zip(self.names, parts, strict=True)))

    def _groups(self) -> dict[str, dict[str, torch.Tensor]]:
        """All that a replica has to hold to go on: what is live, and what the guard keeps."""
        kept = {f"kept_{group}": tensors for group, tensors in self._kept.items()}
        return self._live() | kept

    def _live(self) -> dict[str, dict[str, torch.Tensor]]:
        optimizer = self.optimizer
        return {"weights": self.weights, "moment1": optimizer.moment1, "moment2": optimizer.moment2}

    def _digest(self, sums: IntegerSums) -> int:
        indexed = list(enumerate(sums.views))
        return add_digests(
            self._host_pool.map(
                lambda item: sum_digest(self.backend.host(item[1]), tensor=item[0]), indexed
            )
        )

    def _parallel(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Map over tensors on the lanes' threads, in order."""
        return list(self._pool.map(function, items))

    def _bare_decoder(self) -> Decoder:
        decoder = Decoder(self.model).to(self.device)
        decoder.load_state_dict(self.weights)
        return decoder

    def _probe_grain(self) -> torch.Tensor:
        tokens = probe_tokens(
            sequences=self.recipe.batch.grain,
            context=self.model.context,
            vocab=self.model.resolved_vocab,
        )
        return torch.from_numpy(tokens).to(self.device)


def _pool_of(size: int, *, name: str, threads: int) -> ThreadPoolExecutor:
    """Threads that compute with `threads` threads of the libraries, as the main one does.

    torch tells a new thread so only at its first large operation; until then a matrix product
    there may use as many as the machine has cores, and round differently.
    """
    return ThreadPoolExecutor(
        max_workers=size,
        thread_name_prefix=name,
        initializer=torch.set_num_threads,
        initargs=(threads,),
    )


def _sound_host() -> backends.Backend:
    """This host's own backend, for a chip that may not update; AtollError if it may not either."""
    host = backends.named("cpu")
    wrong = host.prove_exact()
    if wrong:
        raise AtollError(
            "neither this chip nor its host rounds every operation of the update as IEEE 754 asks; "
            f"the host fails {', '.join(wrong)}"
        )
    return host
