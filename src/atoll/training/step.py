"""One step as the pilot sees it: what the islands reported, added up and judged. No tensor, no
socket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import IslandError, NonFiniteError
from atoll.run import LedgerLine
from atoll.training.digests import PRIME
from atoll.training.exponents import pack_loads, unpack_loads
from atoll.training.shares import Ranges, grains_in, ranges_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """An attempt's grains added up over all islands."""

    loads: list[int]
    loss: float
    tokens: int
    sum_digest: int
    probe: dict[str, list[int]]


@dataclass(slots=True, kw_only=True)
class OpenStep:
    """A step that is being computed: what is to do, and whose sums hold which grains.

    `planned` is the split that was asked for. `held` are the results of the present attempt, one an
    island, added up over its turns.
    """

    step: int
    planned: Mapping[str, Ranges]
    todo: dict[str, Ranges]
    held: dict[str, dict[str, Any]] = field(default_factory=dict)
    held_ranges: dict[str, Ranges] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    reassigned: list[Any] = field(default_factory=list)
    attempt: int = 0
    num_requantised: int = 0
    seen_not_finite: bool = False

    @classmethod
    def begin(cls, step: int, ranges: Mapping[str, Ranges]) -> OpenStep:
        """A step of which nothing is computed yet."""
        todo = {name: list(part) for name, part in ranges.items()}
        return cls(step=step, planned=ranges, todo=todo)

    def again(self, todo: Mapping[str, Ranges]) -> None:
        """Begin another attempt: all sums so far are worthless."""
        self.todo = {name: list(part) for name, part in todo.items()}
        self.held, self.held_ranges, self.kinds = {}, {}, {}
        self.attempt += 1

    def take(self, name: str, ranges: Ranges, result: Mapping[str, Any], *, kind: str) -> None:
        """An island has computed more grains; its sums, and so their digest, hold all of them."""
        before = self.held.get(name)
        now = {key: result[key] for key in RESULT_KEYS}
        if before is not None:
            own, more = unpack_loads(before["loads"]), unpack_loads(now["loads"])
            now["loads"] = pack_loads([a + b for a, b in zip(own, more, strict=True)])
            for key in ("losses", "not_finite", "tokens"):
                now[key] = before[key] + now[key]
            now["probe"] = before["probe"]
        self.held[name] = now
        self.held_ranges[name] = [*self.held_ranges.get(name, []), *((a, b) for a, b in ranges)]
        self.kinds[name] = kind

    def give_up(self, lost: set[str], todo: Mapping[str, Ranges]) -> list[int]:
        """Grains that were handed to islands which are gone, and that nobody computed."""
        missing = [grain for name in lost for grain in grains_in(todo.get(name, []))]
        self.reassigned += [
            [name, *part] for name in sorted(lost) for part in todo.get(name, []) if part
        ]
        return missing

    def forget(self, present: set[str]) -> list[int]:
        """Grains in the sums of islands that are not present any more: theirs are gone too."""
        missing: list[int] = []
        for name in [name for name in self.held if name not in present]:
            missing += grains_in(self.held_ranges[name])
            self.reassigned += [[name, *part] for part in self.held_ranges[name]]
            del self.held[name], self.held_ranges[name], self.kinds[name]
        return missing

    def contributed(self) -> dict[str, list[list[int]]]:
        """Island -> closed ranges of the grains that are in the step by its hand."""
        return {
            name: [list(part) for part in ranges_of(sorted(grains_in(ranges)))]
            for name, ranges in self.held_ranges.items()
            if ranges
        }


RESULT_KEYS = ("loads", "losses", "tokens", "not_finite", "probe", "sum_digest")
"""What the pilot keeps of an island's `result`."""


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


def bad_sums(totals: Totals, answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Islands whose exchanged sums do not have the digest of the total."""
    return [
        name
        for name, answer in answers.items()
        if answer["sum_digest"] is not None and answer["sum_digest"] != totals.sum_digest
    ]


def check_exchange(
    step: int, totals: Totals, answers: Mapping[str, Mapping[str, Any]]
) -> Sequence[Sequence[int]]:
    """The squares that all islands agree on, once every island holds the sum of all.

    Raises IslandError naming the islands whose exchanged sums do not have the digest of the total.
    """
    bad = bad_sums(totals, answers)
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
    common, odd = _majority(fingerprints), odd_replicas(fingerprints)
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


def proved(lines: Sequence[LedgerLine], told: Mapping[str, Any]) -> bool:
    """Whether the ledger says that an island holds what it says: the next line has the fingerprint
    of its weights, or, of the last step, the line itself the digest of its sums.
    """
    step = told["step"]
    if step > len(lines):
        return False
    if step < len(lines):
        return lines[step].fingerprint == told["fingerprint"]
    return lines[step - 1].sum_digest == f"{told['sum_digest']:016x}"


def _majority(fingerprints: Mapping[str, str]) -> str:
    """The fingerprint of most islands; of the first if there is no telling."""
    values = list(fingerprints.values())
    return max(set(values), key=lambda value: (values.count(value), value == values[0]))


def odd_replicas(fingerprints: Mapping[str, str]) -> list[str]:
    """Islands whose weights are not those of most."""
    common = _majority(fingerprints)
    return [name for name, value in fingerprints.items() if value != common]


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"island {name!r}" for name in names)
