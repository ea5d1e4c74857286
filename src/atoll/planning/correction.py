"""Correction: what published runs say beyond the formulas, as a factor on the step time.

A Gaussian process (Rasmussen and Williams 2006, chapter 2) over the logarithm of measured by
computed seconds. Runs that share a stack, a chip or a model are alike, and so are runs whose shapes
and layouts are near each other; far from every published run the factor is 1 and the formulas
stand alone. It can be explained: a factor is a sum over published runs, and `nearest` names those
that weigh most. The runs and their weights are facts (facts/fitted, by scripts/fit_cost.py).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from atoll import strict
from atoll.plan import Layout
from atoll.planning.machine import Machine
from atoll.planning.work import Work

NUMBERS = (
    "tokens", "columns", "sequence", "tp", "pp", "microbatches", "devices", "cp", "ep",
    "recompute", "zero", "parameters", "year", "experts", "vocab", "network",
)  # fmt: skip
LABELS = ("source", "stack", "family", "chip", "format", "sparse", "model")

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Features:
    """A run as the correction sees it: numbers (mostly binary logarithms) and labels."""

    numbers: tuple[float, ...]
    labels: tuple[str, ...]


def features_of(
    work: Work,
    layout: Layout,
    machine: Machine,
    microbatches: int,
    *,
    source: str = "",
    stack: str = "",
    model: str = "",
) -> Features:
    """The features of a run; an empty label is like no published one."""
    shape, log2 = work.shape, math.log2
    numbers = (
        log2(layout.microbatch * work.sequence / layout.cp),
        log2(shape.width / layout.tp),
        log2(work.sequence),
        log2(layout.tp),
        log2(layout.pp),
        log2(microbatches),
        log2(layout.num_devices),
        log2(layout.cp),
        log2(layout.ep),
        {"none": 0.0, "selective": 1.0, "full": 2.0}[layout.recompute],
        float(layout.zero),
        log2(shape.parameters),
        work.software.year / 2.0,
        log2(max(1, shape.experts)),
        log2(shape.vocab),
        log2(machine.network),
    )
    narrow = "8" if work.precision in ("fp8", "int8") else "16"
    sparse = "sparse" if shape.experts else "dense"
    labels = (source, stack, work.software.family, machine.chip, narrow, sparse, model)
    return Features(numbers, labels)


class Table:
    """Features of many runs as arrays: numbers (n, 16), and one array of (n,) for each label."""

    def __init__(self, features: Sequence[Features]) -> None:
        """Copies the features into arrays."""
        self.numbers = np.array([f.numbers for f in features], dtype=float).reshape(
            len(features), len(NUMBERS)
        )
        self.labels = {
            name: np.array([f.labels[i] for f in features], dtype=object)
            for i, name in enumerate(LABELS)
        }

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How alike two runs are: variances of each cause, and the scale of each number.

    `near_*` apply to the part that decays with distance (a rational quadratic), the others to
    whatever shares the label. `noise` is what no two runs share, `coefficients` the doubt of the
    logarithm of each coefficient of the formulas before any run is seen.
    """

    source: float = 0.004
    stack: float = 0.004
    family: float = 0.002
    chip: float = 0.003
    kind: float = 0.004
    model: float = 0.001
    near: float = 0.004
    near_source: float = 0.006
    near_stack: float = 0.004
    noise: float = 0.002
    coefficients: float = 0.15
    scales: tuple[float, ...] = (3.0,) * len(NUMBERS)

    def between(self, a: Table, b: Table) -> Array:
        """The covariance of the runs of `a` with those of `b`: (len(a), len(b))."""
        scales = np.array(self.scales)
        x, y = a.numbers / scales, b.numbers / scales
        squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * x @ y.T
        near = 1.0 / (1.0 + np.maximum(squares, 0.0) / 2.0)

        def same(label: str) -> Array:
            # Runs of one island share their labels: each is compared once, not once a run.
            left, right = a.labels[label], b.labels[label]
            rows = {name: (right == name) & (name != "") for name in dict.fromkeys(left)}
            both: Array = np.array([rows[name] for name in left]).reshape(len(a), len(b))
            return both

        source, stack, family, chip = (same(x) for x in ("source", "stack", "family", "chip"))
        kind = chip & family & same("format") & same("sparse")
        found: Array = (
            self.source * source
            + self.stack * stack
            + self.family * family
            + self.chip * chip
            + self.kind * kind
            + self.model * same("model")
            + near * (self.near + self.near_source * source + self.near_stack * (stack & chip))
        )
        return found


class Correction:
    """The fitted process: log seconds = log formula + `log_factor`."""

    def __init__(self, table: Table, names: Sequence[str], weights: Array, likeness: Likeness):
        """`weights` (n,) are the fitted weights of the runs of `table`, whose names are `names`."""
        self.table, self.names, self.weights, self.likeness = table, names, weights, likeness

    def log_factor(self, features: Sequence[Features]) -> Array:
        """Natural logarithm of measured by computed seconds to expect, one a run: (n,)."""
        if not features:
            return np.zeros(0)
        found: Array = self.likeness.between(Table(features), self.table) @ self.weights
        return found

    def nearest(self, features: Features, count: int = 3) -> list[tuple[str, float]]:
        """The published runs that move the factor most, with their parts of its logarithm."""
        parts = self.likeness.between(Table([features]), self.table)[0] * self.weights
        order = np.argsort(-np.abs(parts))[:count]
        return [(self.names[i], float(parts[i])) for i in order]


def fitted_folder() -> Path:
    """Where the fitted facts lie."""
    return Path(str(resources.files("atoll.facts"))) / "fitted"


@cache
def fitted() -> Mapping[str, Any]:
    """The tables of facts/fitted/cost.toml."""
    path = fitted_folder() / "cost.toml"
    return strict.take_schema(strict.load_toml(path), file=path)


def likeness_of(table: Mapping[str, float]) -> Likeness:
    """A [likeness] table of the fitted facts as numbers; scales stand in [likeness.scales]."""
    plain = dict(table)
    scales = plain.pop("scales")
    assert isinstance(scales, Mapping)
    return Likeness(**plain, scales=tuple(float(scales[name]) for name in NUMBERS))


@cache
def correction() -> Correction:
    """The fitted correction of the package."""
    path = fitted_folder() / "correction.csv"
    names, weights, features = [], [], []
    for row in csv.DictReader(strict.read_text(path).splitlines()):
        names.append(row["row_id"])
        weights.append(float(row["weight"]))
        features.append(
            Features(
                tuple(float(row[name]) for name in NUMBERS),
                tuple(row[f"label_{name}"] for name in LABELS),
            )
        )
    likeness = likeness_of(fitted()["likeness"])
    return Correction(Table(features), names, np.array(weights), likeness)
