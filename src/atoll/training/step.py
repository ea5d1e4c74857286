"""One step as the pilot sees it: what the islands reported, added up and judged. No tensor, no
socket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.errors import IslandError, NonFiniteError
from atoll.training.digests import PRIME
from atoll.training.exponents import unpack_loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """An attempt's grains added up over all islands."""

    loads: list[int]
    loss: float
    tokens: int
    sum_digest: int
    probe: dict[str, list[int]]


def add_up(results: Mapping[str, Mapping[str, Any]]) -> Totals:
    """Totals of all islands' `result` messages. The loss is the correctly rounded sum over the
    grains: `math.fsum` is exact, so neither the split nor the Python version can change it.
    """
    loads: list[int] = []
    tokens = digest = 0
    losses: list[float] = []
    for result in results.values():
        own = unpack_loads(result["loads"])
        loads = [a + b for a, b in zip(loads, own, strict=True)] if loads else own
        tokens += result["tokens"]
        digest += result["sum_digest"]
        losses += [loss for _, loss in result["losses"]]
    return Totals(
        loads=loads,
        loss=math.fsum(losses),
        tokens=tokens,
        sum_digest=digest % PRIME,
        probe={name: list(r["probe"]) for name, r in results.items() if r["probe"]},
    )


def not_finite(step: int, results: Mapping[str, Mapping[str, Any]]) -> NonFiniteError | None:
    """The error for grains that were not finite, naming step, grain, island and tensor; or None."""
    found = [
        f"grain {grain} on island {name!r} ({where})"
        for name, result in results.items()
        for grain, where in result["not_finite"]
    ]
    if not found:
        return None
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return NonFiniteError(
        f"step {step}: a value that is not finite in {', '.join(found[:3])}{more}, twice in a row. "
        "The run stops; the last checkpoint is good. A lower optimizer.lr, a longer "
        "schedule.warmup or a smaller optimizer.clip usually help; `atoll doctor` tells whether "
        "the chip computes right."
    )


def finite(step: int, val_loss: float) -> float:
    """The validation loss itself; NonFiniteError if the weights of `step` give none."""
    if not math.isfinite(val_loss):
        raise NonFiniteError(
            f"after step {step} the loss on the held-out text is {val_loss}: the weights have "
            "diverged. A lower optimizer.lr or a longer schedule.warmup usually help."
        )
    return val_loss


def check_exchange(
    step: int, totals: Totals, answers: Mapping[str, Mapping[str, Any]]
) -> Sequence[Sequence[int]]:
    """The squares that all islands agree on, once every island holds the sum of all.

    Raises IslandError naming the islands whose exchanged sums do not have the digest of the total.
    """
    bad = [
        name
        for name, answer in answers.items()
        if answer["sum_digest"] is not None and answer["sum_digest"] != totals.sum_digest
    ]
    if bad:
        raise IslandError(
            f"step {step}: the exchange gave wrong sums on {_names(bad)}: their digest is not the "
            "sum of the islands' digests. Nothing was committed. Its memory or network is at fault."
        )
    squares = next(iter(answers.values()))["squares"]
    odd = [name for name, answer in answers.items() if answer["squares"] != squares]
    if odd:
        raise IslandError(
            f"step {step}: {_names(odd)} computed another norm from the same integers"
        )
    agreed: Sequence[Sequence[int]] = squares
    return agreed


def check_replicas(step: int, fingerprints: Mapping[str, str]) -> str:
    """The fingerprint that all islands hold after `step`; IslandError names those that differ."""
    values = list(fingerprints.values())
    common = max(set(values), key=lambda value: (values.count(value), value == values[0]))
    odd = [name for name, value in fingerprints.items() if value != common]
    if odd and len(fingerprints) == 2:
        raise IslandError(
            f"after step {step} the weights of {_names(list(fingerprints))} differ, and with two "
            "of them there is no telling which is wrong. The run stops here; "
            "`atoll doctor` tells whether a chip computes right."
        )
    if odd:
        raise IslandError(
            f"after step {step} the weights of {_names(odd)} differ from the others' "
            f"({fingerprints[odd[0]][:16]} against {common[:16]}). The run stops here; "
            "`atoll doctor` tells whether that chip computes right."
        )
    return common


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"island {name!r}" for name in names)
