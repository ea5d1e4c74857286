"""Validation: how far the cost model is from a table of measured runs, and a factor for one's own.

A run that the model was fitted on is never predicted with itself: it is predicted from the runs of
other groups (source, chip and model) or of other sources, whichever is asked. All other runs are
predicted by the formulas and the correction as `atoll plan` uses them. Nothing is fitted here.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atoll.errors import InputError
from atoll.facts.measured import Measured
from atoll.planning.calibration import Calibration, Known, known_by, known_runs, log_formula
from atoll.planning.correction import Array, correction, fitted, likeness_of
from atoll.planning.cost import Coefficients
from atoll.planning.memory import MemoryCoefficients, memory_use
from atoll.planning.published import RESULTS, Published, read_runs, runs_folder

Leave = Literal["group", "source"]

SCORED_TIER = "core"
IMPOSSIBLE = "numbers that no run can have"
SMALLEST_SWEEP = 2
LARGER = 3
"""What a sweep has at least: rows in all; rows, or plans, where it must be more than a pair."""

CONFIGURATION = ("count", "seq_len", "gbs_seqs", "mbs", "TP", "PP", "CP", "EP")
"""With source, chip, model and results: columns that tell a run again whatever its row_id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of `rows` runs: median, mean and 90th percentile of |predicted / measured - 1|.

    `bias` is the median of predicted / measured - 1, with its sign.
    """

    rows: int
    median: float
    mean: float
    p90: float
    bias: float

    @classmethod
    def of(cls, relative: Sequence[float]) -> Errors:
        """From predicted / measured - 1 of at least one run."""
        sizes = np.abs(relative)
        return cls(
            rows=len(relative),
            median=float(np.median(sizes)),
            mean=float(sizes.mean()),
            p90=float(np.quantile(sizes, 0.9)),
            bias=float(np.median(relative)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One run with what was measured and what was predicted, in seconds and bytes.

    `held_out` says that the model was fitted on this run, and predicted it without its group or
    source. `peak` is None where no memory was measured.
    """

    row: Published
    chip: str
    kind: str
    plan: str
    tokens: float
    seconds: float
    predicted: float
    held_out: bool
    assumed: tuple[str, ...]
    peak: float | None
    memory: float

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted / self.seconds - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Runs of the same model, batch and machine: how good is the one that the model ranks first.

    `reached` is the fewest measured seconds a token over those of the row ranked first (over the
    mean of all that share the first rank); `rank` is Spearman's correlation of measured and
    predicted seconds a token. `plans` of the rows differ in layout, micro-batch or number format:
    rows that differ in nothing that a plan says, as an ablation of a stack does, no planner can
    rank.
    """

    name: str
    tokens: float
    rows: int
    plans: int
    reached: float
    rank: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What came out. `rows` of the table were to be scored; each is in `scored` or `skipped`.

    `other_tiers` counts rows that were not to be scored, `calibrated_on` those that gave `factors`.
    """

    file: str
    leave: Leave
    rows: int
    scored: tuple[Scored, ...]
    skipped: Mapping[str, int]
    other_tiers: Mapping[str, int]
    calibrated_on: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def errors(self) -> Errors:
        """Of all scored runs."""
        return Errors.of([one.error for one in self.scored])

    def by(self) -> dict[str, dict[str, Errors]]:
        """Errors by completeness (added up: A, A+B, all), source, chip and kind."""
        groups: dict[str, dict[str, list[float]]] = {
            "completeness": {"A": [], "A+B": [], "all": []}, "source": {}, "chip": {}, "kind": {},
        }  # fmt: skip
        for one in self.scored:
            grade = one.row.completeness
            names = [("completeness", "all")]
            names += [("completeness", "A+B")] if grade in ("A", "B") else []
            names += [("completeness", "A")] if grade == "A" else []
            names += [("source", one.row.source), ("chip", one.chip), ("kind", one.kind)]
            for by, name in names:
                groups[by].setdefault(name, []).append(one.error)
        return {
            by: {name: Errors.of(found) for name, found in named.items() if found}
            for by, named in groups.items()
        }

    def memory(self) -> Errors | None:
        """Of the runs whose peak memory was measured; None without any."""
        found = [one.memory / one.peak - 1.0 for one in self.scored if one.peak]
        return Errors.of(found) if found else None

    def sweeps(self) -> list[Sweep]:
        """Every sweep of at least two scored runs with the same batch."""
        groups: dict[tuple[str, int], list[Scored]] = {}
        for one in self.scored:
            if one.row.sweep:
                groups.setdefault((one.row.sweep, round(one.tokens)), []).append(one)
        return [
            _sweep(name, group)
            for (name, _), group in groups.items()
            if len(group) >= SMALLEST_SWEEP
        ]

    def as_json(self, *, rows: bool = False) -> dict[str, Any]:
        """One object, errors as fractions; with `rows` each run too."""
        whole = asdict(self.errors)
        num_predicted, memory = len(self.scored), self.memory()
        assert whole.pop("rows") == num_predicted
        by = {
            name: {key: asdict(found) for key, found in group.items()}
            for name, group in self.by().items()
        }
        content = {
            "file": self.file, "leave": self.leave, "rows": self.rows, "predicted": num_predicted,
            "skipped": dict(self.skipped), "other_tiers": dict(self.other_tiers), **whole,
            "held_out": sum(one.held_out for one in self.scored),
            "by": by, "memory": None if memory is None else asdict(memory),
            "sweeps": sweeps_json(self.sweeps()),
            "calibrated_on": self.calibrated_on, "factors": dict(self.factors),
        }  # fmt: skip
        if rows:
            content["each"] = [_each(one) for one in self.scored]
        return content


def sweeps_json(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Sweeps as one object; `rows` and `plans` are those of at least three rows, or plans."""
    rows = [sweep for sweep in sweeps if sweep.rows >= LARGER]
    plans = [sweep for sweep in sweeps if sweep.plans >= LARGER]
    each = [asdict(sweep) for sweep in sweeps]
    return {**_sweeps(sweeps), "rows": _sweeps(rows), "plans": _sweeps(plans), "each": each}


def _sweeps(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    reached = [sweep.reached for sweep in sweeps]
    return {
        "count": len(sweeps),
        "mean_reached": float(np.mean(reached)) if sweeps else None,
        "worst": min(reached, default=None),
        "mean_rank_correlation": float(np.mean([s.rank for s in sweeps])) if sweeps else None,
    }


def _each(one: Scored) -> dict[str, Any]:
    return {
        "row_id": one.row.row_id, "source": one.row.source, "chip": one.chip, "kind": one.kind,
        "measured": one.seconds, "predicted": one.predicted, "error": one.error,
        "held_out": one.held_out, "assumed": list(one.assumed), "peak_bytes": one.peak,
        "predicted_peak_bytes": one.memory,
    }  # fmt: skip


def _sweep(name: str, group: Sequence[Scored]) -> Sweep:
    measured = np.array([one.seconds / one.tokens for one in group])
    # Equal plans come out equal but for rounding.
    predicted = np.round([math.log(one.predicted / one.tokens) for one in group], 9)
    first = measured[predicted == predicted.min()]
    return Sweep(
        name=name,
        tokens=round(group[0].tokens),
        rows=len(group),
        plans=len({one.plan for one in group}),
        reached=float(measured.min() / first.mean()),
        rank=rank_correlation(measured, predicted),
    )


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's correlation; equal values share the mean of their ranks. 0 if one side is flat."""
    first, second = (
        np.array([(np.sum(x < value) + np.sum(x <= value)) / 2.0 for value in x]) for x in (a, b)
    )
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


# ---------------------------------------------------------------------- prediction


def own_table() -> Path:
    """The package's own table of published runs."""
    return runs_folder() / "published.csv"


@cache
def own_runs() -> tuple[Known, ...]:
    """The runs that the cost model was fitted on."""
    tables = [read_runs(runs_folder() / f"{name}.csv") for name in ("published", "bulk")]
    return tuple(known_runs([row for table in tables for row in table])[0])


@cache
def own_fit() -> Calibration:
    """The fit of the package, as scripts/fit_cost.py made it."""
    tables = fitted()
    return Calibration(
        own_runs(), likeness_of(tables["likeness"]), start=Coefficients(**tables["time"])
    )


@cache
def _own_predictions(leave: Leave) -> Array:
    return own_fit().held_out(known_by(own_runs(), leave))


@cache
def _own_rows() -> Mapping[tuple[object, ...], str]:
    """Every name that a run of the package goes by -> its row_id."""
    rows: dict[tuple[object, ...], str] = {}
    for name in ("published", "bulk"):
        for row in read_runs(runs_folder() / f"{name}.csv"):
            rows[(row.source, row.row_id)] = rows[_content(row)] = row.row_id
    return rows


def _content(row: Published) -> tuple[object, ...]:
    """What a run is whatever its row is called: the same copied with another row_id is found."""
    numbers = [row.number(name) for name in (*CONFIGURATION, *RESULTS)]
    return (row.source, row.chip, row.model, *numbers)


def _known_row(row: Published) -> str | None:
    rows = _own_rows()
    return rows.get((row.source, row.row_id)) or rows.get(_content(row))


def log_seconds(runs: Sequence[Known], *, leave: Leave = "group") -> tuple[Array, Array]:
    """Logarithms of the predicted seconds of a step, and which were held out: both (n,).

    A run of the package keeps the correction that the runs outside its group or source give it;
    its formulas are those of its own row, which may say something else than the package's.
    """
    coefficients = Coefficients(**fitted()["time"])
    found = log_formula(coefficients, [run.case for run in runs])
    names = [_known_row(run.row) for run in runs]
    held_out = np.zeros(len(runs), dtype=bool)
    if any(names):
        fit, predictions = own_fit(), _own_predictions(leave)
        place = {run.row.row_id: index for index, run in enumerate(own_runs())}
        inside = [
            (index, place[name]) for index, name in enumerate(names) if name and name in place
        ]
        formulas = log_formula(coefficients, [fit.runs[i].case for _, i in inside])
        for (index, i), formula in zip(inside, formulas, strict=True):
            found[index] += predictions[i] - formula
            held_out[index] = True
    others = [index for index, known in enumerate(held_out) if not known]
    found[others] += correction().log_factor([runs[i].features() for i in others])
    return found, held_out


def usable(
    rows: Sequence[Published], measured: Mapping[str, Measured] | None = None
) -> tuple[list[Known], Counter[str]]:
    """The rows that can be predicted and compared; why others cannot: reason -> how many.

    Numbers that no run can have (a width of -1) must not stop the other rows. Chips among
    `measured` are taken as measured.
    """
    found, skipped = [], Counter[str]()
    coefficients = Coefficients(**fitted()["time"])
    for row in rows:
        try:
            known, why = known_runs([row], measured)
            skipped.update(why)
            for run in known:
                features = run.features().numbers
                values = [float(log_formula(coefficients, [run.case])[0]), *features]
                values += [memory_use(*_memory_of(run)).total]
                if not all(map(math.isfinite, values)) or values[-1] <= 0:
                    raise ValueError
        except (ValueError, ArithmeticError):
            skipped[IMPOSSIBLE] += 1
        else:
            found += known
    return found, skipped


def _memory_of(run: Known) -> tuple[Any, ...]:
    case = run.case
    return case.work, case.held, case.microbatches, MemoryCoefficients(**fitted()["memory"])


def _read(path: Path | str) -> list[Published]:
    try:
        return read_runs(path)
    except csv.Error as error:
        raise InputError(f"is no table of comma-separated values: {error}", file=path) from None


# ---------------------------------------------------------------------- commands


def factors_of(
    path: Path | str, *, leave: Leave = "group", measured: Mapping[str, Measured] | None = None
) -> dict[str, float]:
    """By chip: exp(median(log measured - log predicted)) over its rows. InputError without any.

    Predictions are those that a plan makes: of a chip among `measured` its measurements and the
    formulas alone, without what published runs say.
    """
    runs, skipped = usable(_read(path), measured)
    if not runs:
        message = "no run of this table can be predicted, so nothing can be calibrated"
        raise InputError(message, file=path, fix=reasons(skipped))
    logs = log_seconds(runs, leave=leave)[0]
    alone = [i for i, run in enumerate(runs) if run.case.machine.measured is not None]
    coefficients = Coefficients(**fitted()["time"])
    logs[alone] = log_formula(coefficients, [runs[i].case for i in alone])
    return factors(runs, logs)


def factors(runs: Sequence[Known], predicted: Array) -> dict[str, float]:
    """The factors of runs whose predictions (logarithms) are known."""
    ratios: dict[str, list[float]] = {}
    for run, log in zip(runs, predicted, strict=True):
        ratios.setdefault(run.case.machine.chip, []).append(math.log(run.seconds) - float(log))
    return {chip: float(np.exp(np.median(found))) for chip, found in ratios.items()}


def validate(
    path: Path | str,
    *,
    leave: Leave = "group",
    calibrate: Path | str | None = None,
    every_tier: bool = False,
) -> Validation:
    """Predict the runs of a table and compare. InputError if not one can be predicted.

    `calibrate` is a table whose rows give one factor a chip and are not scored themselves.
    Without `every_tier` only rows of tier "core", or without a tier, are scored.
    """
    rows = _read(path)
    given = factors_of(calibrate, leave=leave) if calibrate is not None else {}
    taken = {_name(row) for row in _read(calibrate)} if calibrate is not None else set()
    left = [row for row in rows if _name(row) not in taken]
    wanted = [row for row in left if every_tier or _tier(row) == SCORED_TIER]
    other = Counter(_tier(row) for row in left) if not every_tier else Counter[str]()
    other.pop(SCORED_TIER, None)
    runs, skipped = usable(wanted)
    if not runs:
        told = Counter(
            {**skipped, **{f"tier {name} (--all scores it)": n for name, n in other.items()}}
        )
        if len(left) < len(rows):
            told["row of --calibrate"] = len(rows) - len(left)
        raise InputError("no row can be predicted", file=path, fix=reasons(told))
    logs, held_out = log_seconds(runs, leave=leave)
    scored = tuple(
        _scored(run, math.exp(log) * given.get(run.case.machine.chip, 1.0), inside)
        for run, log, inside in zip(runs, map(float, logs), map(bool, held_out), strict=True)
    )
    return Validation(
        file=str(path), leave=leave, rows=len(wanted), scored=scored, skipped=dict(skipped),
        other_tiers=dict(other), calibrated_on=len(rows) - len(left), factors=given,
    )  # fmt: skip


def _name(row: Published) -> tuple[str, str]:
    return row.source, row.row_id


def _tier(row: Published) -> str:
    return row.tier.strip().lower() or SCORED_TIER


def _scored(run: Known, predicted: float, held_out: bool) -> Scored:
    case, peak = run.case, run.row.number("peak_mem_GiB")
    sparse = "sparse" if case.work.shape.experts else "dense"
    return Scored(
        row=run.row,
        chip=case.machine.chip,
        kind=f"{sparse} {case.work.precision}",
        plan=f"{case.work.precision} {case.layout.model_dump_json()}",
        tokens=case.sequences * case.work.sequence,
        seconds=run.seconds,
        predicted=predicted,
        held_out=held_out,
        assumed=case.assumed,
        peak=peak * 2**30 if peak is not None and peak > 0 else None,
        memory=memory_use(*_memory_of(run)).total,
    )


def reasons(skipped: Mapping[str, int]) -> str:
    """Reasons with their counts, most rows first: one a line."""
    ordered = sorted(skipped.items(), key=lambda entry: (-entry[1], entry[0]))
    return "\n".join(f"{count} x {reason}" for reason, count in ordered)
