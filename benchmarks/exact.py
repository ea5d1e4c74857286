"""One lane's exact step with the parts of `atoll.training`, in one process and with a clock.

What it is: the arithmetic of a run (integer sums, exponents, digests, norm, update, fingerprint)
in the order of a step. What it is not: islands, a ledger, an exchange; scripts that need those go
through `atoll.training.session`.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from atoll import backends
from atoll.recipe import Recipe
from atoll.training import exponents as exp
from atoll.training import scalars
from atoll.training.accumulator import Accumulator, IntegerSums, SquareSum, square_sum
from atoll.training.digests import add_digests, combine_sha256, sum_digest, tensor_bytes_sha256
from atoll.training.lane import Lane
from atoll.training.optimizer import AdamW

Sampled = Callable[[int, int], np.ndarray]
"""The tokens of a grain by (step, index)."""


class Clock:
    """Seconds by part, of the step being measured and of all before.

    With one thread it reads that thread's processor time, so that work of others is not counted.
    """

    def __init__(self) -> None:
        self.now: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.read = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what the block takes to a part."""
        started = self.read()
        yield
        self.now[name] += self.read() - started

    def close_step(self) -> None:
        """One step is complete."""
        self.steps.append(dict(self.now))
        self.now.clear()

    def median(self, name: str) -> float:
        """Median seconds a step of one part."""
        return statistics.median(step.get(name, 0.0) for step in self.steps)


class ExactLoop:
    """Trains the lane's weights; `step` is one optimizer step."""

    def __init__(self, recipe: Recipe, lane: Lane, clock: Clock) -> None:
        self.recipe, self.lane, self.clock = recipe, lane, clock
        self.weights = {name: p.data for name, p in lane.decoder.named_parameters()}
        shapes = {name: tuple(w.shape) for name, w in self.weights.items()}
        widths = exp.choose_widths(
            list(shapes),
            head="head.weight" if "head.weight" in shapes else "embedding.weight",
            num_grains=recipe.num_grains,
            accumulator=recipe.exact.accumulator,
        )
        self.accumulator = Accumulator(IntegerSums(shapes, widths, torch.device("cpu")))
        self.exponents = exp.Exponents.fresh(widths)
        self.optimizer = AdamW(self.weights, square_root=backends.of_chip("cpu").sqrt)
        self.num_steps = 0
        self.num_requantised = 0

    def step(self, sample: Sampled) -> None:
        """One whole step: attempts until no tensor overflows, then the update."""
        self.num_steps += 1
        measuring = not self.exponents.measured
        loads = self._compute(sample)
        while measuring or self.exponents.overflown(loads):
            self.exponents.current = self.exponents.retry(loads)
            self.num_requantised += not measuring
            measuring = False
            loads = self._compute(sample)
        self._update()
        self.exponents.commit(loads)
        self.clock.close_step()

    def _compute(self, sample: Sampled) -> list[int]:
        """Fresh sums of all grains; the load of each tensor."""
        clock, num_grains = self.clock, self.recipe.num_grains
        with clock.part("start"):
            self.accumulator.start(self.exponents.current)
        loads = [0] * len(self.weights)
        maxima: list[Tensor] = [torch.zeros(())] * len(self.weights)
        probe = self.num_steps % num_grains  # its own digest goes into the ledger
        for grain in range(num_grains):

            def add(index: int, gradient: Tensor, digest: bool = grain == probe) -> None:
                with clock.part("accumulate"):
                    maxima[index], _ = self.accumulator.add(index, gradient, digest=digest)

            tokens = sample(self.num_steps, grain)
            with clock.part("whole grains"):
                self.lane.backward(tokens, add)
            with clock.part("accumulate"):
                values = torch.stack(maxima).tolist()
                found = map(exp.load_of, values, self.exponents.current)
                loads = [a + b for a, b in zip(loads, found, strict=True)]
        return loads

    def _update(self) -> None:
        clock, recipe, current = self.clock, self.recipe, self.exponents.current
        sums, num_tokens = self.accumulator.sums, recipe.tokens_per_step
        with clock.part("digest of the sums"):
            add_digests(sum_digest(view, tensor=i) for i, view in enumerate(sums.views))
        with clock.part("norm"):
            squares: list[SquareSum] = [square_sum(view) for view in sums.views]
            terms = [(s.total, s.shift, k) for s, k in zip(squares, current, strict=True)]
            norm = scalars.gradient_norm(terms, tokens=num_tokens)
        rate = scalars.learning_rate(
            self.num_steps,
            lr=recipe.optimizer.lr,
            schedule=recipe.schedule,
            total_steps=recipe.total_steps(),
        )
        values = scalars.update_scalars(
            self.num_steps,
            lr=scalars.round32(rate),
            clip=scalars.clip_factor(norm, recipe.optimizer.clip),
            tokens=num_tokens,
            exponents=current,
            optimizer=recipe.optimizer,
        )
        with clock.part("update"):
            for index, name in enumerate(self.weights):
                view = sums.views[index]
                self.optimizer.update(name, view, scale=values.scale[index], scalars=values)
        with clock.part("fingerprint"):
            combine_sha256({n: tensor_bytes_sha256(w) for n, w in self.weights.items()})
