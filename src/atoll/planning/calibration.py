"""Calibration: fits the cost model to published runs, and predicts each of them without itself.

The logarithm of a run's seconds is the formula's, linear in the logarithms of its coefficients
around the best ones, plus the correction's process, plus noise. All three are Gaussian, so that the
prediction of any group of runs from all the others has a closed form (Rasmussen and Williams 2006,
equations 2.25 and 5.12): no run is used to predict itself, and leaving out 170 groups costs one
matrix inverse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.facts.measured import Measured
from atoll.planning.correction import Array, Features, Likeness, Table, features_of
from atoll.planning.cost import Coefficients, step_cost
from atoll.planning.published import Case, Published, Unusable, case_of

FRACTIONS = {
    "matmul": 0.97, "eight_bit": 1.0, "row_scales": 1.0, "experts": 1.0, "flash": 1.0,
    "plain": 1.0, "memory": 0.92, "link": 1.0, "network": 1.0, "tensor_hidden": 1.0,
    "state_exposed": 1.0, "gather_exposed": 1.0, "stage_exposed": 1.0, "context_exposed": 1.0,
}  # fmt: skip
"""Coefficients that are parts of a whole, and the most that a machine can reach."""

NOISE_OF = {"A": 1.0, "B": 2.0, "C": 6.0}
"""Variance of a row beside one whose whole configuration is known."""

STEP = 0.02


@dataclass(frozen=True, slots=True)
class Known:
    """A published run that the cost model can predict, and its measured seconds."""

    row: Published
    case: Case
    seconds: float

    def features(self) -> Features:
        """Its features, with the source's name."""
        case, row = self.case, self.row
        return features_of(
            case.work, case.layout, case.machine, case.microbatches,
            source=row.source, stack=row.framework, model=row.model,
        )  # fmt: skip


def known_runs(
    rows: Sequence[Published], measured: Mapping[str, Measured] | None = None
) -> tuple[list[Known], Counter[str]]:
    """The rows that can be predicted and compared; why others cannot: reason -> how many.

    Chips among `measured` are taken as measured.
    """
    found, skipped = [], Counter[str]()
    for row in rows:
        try:
            case = case_of(row, measured)
            seconds = row.step_seconds(case.sequences)
            if not seconds or seconds <= 0:
                raise Unusable("no measured speed")
        except Unusable as reason:
            skipped[str(reason)] += 1
        else:
            found.append(Known(row, case, seconds))
    return found, skipped


def log_formula(coefficients: Coefficients, cases: Sequence[Case]) -> Array:
    """Logarithms of the formula's seconds, without any correction: (n,)."""
    return np.array(
        [
            math.log(
                step_cost(
                    case.work, case.layout, case.machine, case.microbatches, coefficients
                ).seconds
            )
            for case in cases
        ]
    )


def _coefficients(x: Array) -> Coefficients:
    return Coefficients(**dict(zip(Coefficients.names(), map(float, np.exp(x)), strict=True)))


def _logs(coefficients: Coefficients) -> Array:
    return np.array([math.log(getattr(coefficients, name)) for name in Coefficients.names()])


class Calibration:
    """The cost model fitted to known runs; `coefficients` and `weights` are the result."""

    def __init__(
        self, runs: Sequence[Known], likeness: Likeness, start: Coefficients | None = None
    ) -> None:
        """Fits from `Coefficients()`, which were chosen before any run was seen.

        From `start`, the result of an earlier fit, only what `held_out` needs is computed again.
        """
        self.runs, self.likeness = list(runs), likeness
        self._cases = [run.case for run in runs]
        self._y = np.array([math.log(run.seconds) for run in runs])
        self._table = Table([run.features() for run in runs])
        self._prior = _logs(Coefficients())
        self._top = np.array([math.log(FRACTIONS.get(name, 1e9)) for name in Coefficients.names()])
        self._noise = likeness.noise * np.array(
            [NOISE_OF.get(run.row.completeness, 6.0) for run in runs]
        )
        self._near = likeness.between(self._table, self._table)
        self._at: tuple[Array, Array, Array] | None = None
        x = np.minimum(self._prior, self._top) if start is None else _logs(start)
        for _ in range(6 if start is None else 0):
            x = self._solve(x)
        self._solve(x)
        self.coefficients = _coefficients(x)

    def _jacobian(self, x: Array, at: Array) -> Array:
        columns = []
        for index in range(len(x)):
            moved = x.copy()
            moved[index] += STEP
            columns.append((log_formula(_coefficients(moved), self._cases) - at) / STEP)
        return np.array(columns).T

    def _solve(self, x: Array) -> Array:
        """One step of the joint fit around `x`; keeps what `held_out` and `weights` need."""
        if self._at is None or not np.array_equal(self._at[0], x):
            at = log_formula(_coefficients(x), self._cases)
            self._at = (x, at, self._jacobian(x, at))
        _, at, whole = self._at
        free = x < self._top - 1e-9
        jacobian = whole[:, free]
        rest = self._y - at - jacobian @ (self._prior - x)[free]
        doubt = self.likeness.coefficients**2
        covariance = self._near + doubt * jacobian @ jacobian.T
        noise = self._noise.copy()
        for _ in range(2):
            inverse = np.linalg.inv(covariance + np.diag(noise))
            left_out = (inverse @ rest) / np.diag(inverse)
            # A row that the others miss by more than 30 % says less about them.
            noise = self._noise * np.maximum(1.0, np.abs(left_out) / 0.3) ** 2
        self._inverse = np.linalg.inv(covariance + np.diag(noise))
        self.weights = self._inverse @ rest
        moved = x.copy()
        moved[free] = self._prior[free] + doubt * jacobian.T @ self.weights
        step = np.clip(moved - x, -0.3, 0.3)
        found: Array = np.minimum(x + step, self._top)
        return found

    def held_out(self, groups: Sequence[str]) -> Array:
        """Logarithms of predicted seconds of each run from the runs of other groups: (n,)."""
        names, predicted = np.array(groups, dtype=object), self._y.copy()
        for name in dict.fromkeys(groups):
            block = np.flatnonzero(names == name)
            inverse = self._inverse[np.ix_(block, block)]
            predicted[block] -= np.linalg.solve(inverse, self.weights[block])
        return predicted

    def again(self, likeness: Likeness) -> Calibration:
        """The same runs under another likeness, linear around these coefficients: no new fit."""
        other = object.__new__(Calibration)
        other.__dict__.update(self.__dict__)
        other.likeness = likeness
        other._noise = likeness.noise / self.likeness.noise * self._noise
        other._near = likeness.between(self._table, self._table)
        other._solve(_logs(self.coefficients))
        return other


def errors(predicted: Array, measured: Array) -> Array:
    """predicted / measured - 1 from logarithms."""
    found: Array = np.expm1(predicted - measured)
    return found


def known_by(runs: Sequence[Known], by: str) -> list[str]:
    """The group of each run: by "group" (source, chip and model) or by "source"."""
    return [run.row.group if by == "group" else run.row.source for run in runs]
