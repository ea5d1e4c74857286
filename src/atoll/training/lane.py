"""A lane: the devices or threads that compute one grain, and the proof of what kind of lane it is.

A grain is one forward and backward call of a fixed shape; nothing of another grain enters it. Every
parameter's gradient is handed to a sink the moment autograd has finished it, and freed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.model import Model
from atoll.modeling.decoder import Decoder
from atoll.training.accumulator import Accumulator
from atoll.training.digests import add_digests
from atoll.training.exponents import load_of

Sink = Callable[[int, Tensor], None]
"""Takes (index of the tensor, its finished gradient)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrainResult:
    """One computed grain: summed loss in nats, loads of all tensors, what was not finite."""

    grain: int
    loss: float
    loads: list[int]
    not_finite: str | None
    digest: int | None
    seconds: float


class Lane:
    """Computes grains on the island's weights; has its own graph leaves, so lanes may run at once.

    The weights are shared memory: the parameters of this lane's decoder alias `weights`.
    """

    def __init__(
        self, model: Model, *, weights: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self.decoder = Decoder(model).to(device)
        self.decoder.load_state_dict(dict(weights), assign=True, strict=True)
        self.names = [name for name, _ in self.decoder.named_parameters()]
        self.device = device
        self._sink: Sink = _refuse
        for index, parameter in enumerate(self.decoder.parameters()):
            parameter.requires_grad_(True)
            parameter.register_post_accumulate_grad_hook(self._hook(index))

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            self._sink(index, gradient)

        return take

    def backward(self, tokens: np.ndarray, sink: Sink) -> float:
        """Summed loss of a grain (int64 token ids [sequences, context + 1]); gradients go to
        `sink`.
        """
        self._sink = sink
        try:
            loss = self.decoder.loss(torch.from_numpy(tokens).to(self.device))
            loss.backward()
            return float(loss.detach().cpu())
        finally:
            self._sink = _refuse

    def compute(
        self,
        grain: int,
        tokens: np.ndarray,
        accumulator: Accumulator,
        *,
        digest: bool = False,
        added: Callable[[int], None] | None = None,
    ) -> GrainResult:
        """Add one grain to the sums; `digest` also takes the digest of its integers alone.

        `added` is told each tensor whose gradient has been added.
        """
        started = time.perf_counter()
        largest: list[Tensor | None] = [None] * len(self.names)
        digests: list[int] = []

        def add(index: int, gradient: Tensor) -> None:
            largest[index], part = accumulator.add(index, gradient, digest=digest)
            digests.append(part)
            if added is not None:
                added(index)

        loss = self.backward(tokens, add)
        maxima = _to_floats(largest)
        bad = [name for name, x in zip(self.names, maxima, strict=True) if not math.isfinite(x)]
        if not math.isfinite(loss):
            bad.insert(0, "the loss")
        loads = (
            [0] * len(maxima)
            if bad
            else [load_of(x, k) for x, k in zip(maxima, accumulator.exponents, strict=True)]
        )
        return GrainResult(
            grain=grain,
            loss=loss,
            loads=loads,
            not_finite=_name_some(bad) if bad else None,
            digest=add_digests(digests) if digest else None,
            seconds=time.perf_counter() - started,
        )

    def digest(self, tokens: np.ndarray, accumulator: Accumulator) -> int:
        """The digest of a grain's integers, computed for its own sake: nothing is added."""
        digests: list[int] = []
        self.backward(
            tokens,
            lambda index, gradient: digests.append(accumulator.digest_alone(index, gradient)),
        )
        return add_digests(digests)

    def loss_only(self, tokens: np.ndarray) -> float:
        """Summed loss of a batch without gradients, in nats."""
        with torch.no_grad():
            return float(self.decoder.loss(torch.from_numpy(tokens).to(self.device)).cpu())

    def probe(self, tokens: np.ndarray) -> str:
        """SHA-256 over the loss and all gradient bits of a grain: equal for lanes of a kind."""
        parts = [""] * len(self.names)

        def keep(index: int, gradient: Tensor) -> None:
            parts[index] = hashlib.sha256(
                gradient.detach().cpu().contiguous().numpy().tobytes()
            ).hexdigest()

        loss = self.backward(tokens, keep)
        return hashlib.sha256((loss.hex() + "".join(parts)).encode()).hexdigest()


def probe_tokens(*, sequences: int, context: int, vocab: int) -> np.ndarray:
    """Token ids [sequences, context + 1] of the probe grain: a fixed pattern, no data needed.

    The counts are scattered by a multiplication (Knuth's hash), so that all the vocabulary is met.
    """
    count = np.arange(sequences * (context + 1), dtype=np.int64)
    scattered = (count * 2654435761 % 2**32) >> 8
    return (scattered % vocab).reshape(sequences, context + 1)


def _refuse(_index: int, _gradient: Tensor) -> None:
    raise AssertionError("a gradient arrived outside a grain")


def _to_floats(largest: list[Tensor | None]) -> list[float]:
    """One transfer for all maxima; a tensor that got no gradient has the maximum 0."""
    present = [x for x in largest if x is not None]
    values = iter(torch.stack(present).cpu().tolist() if present else [])
    return [0.0 if x is None else float(next(values)) for x in largest]


def _name_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
