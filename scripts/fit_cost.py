"""Fit the cost model to the published runs of the package, and write facts/fitted.

    python scripts/fit_cost.py              coefficients and correction, from the likeness there is
    python scripts/fit_cost.py --tune 300   first search the likeness for so many seconds (seeded)

Prints the error of every run predicted without its group, and without its source.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from atoll.planning.calibration import Calibration, Known, errors, known_by, known_runs
from atoll.planning.correction import (
    LABELS,
    NUMBERS,
    Likeness,
    fitted,
    fitted_folder,
    likeness_of,
)
from atoll.planning.memory import MemoryCoefficients, memory_use
from atoll.planning.published import read_runs, runs_folder

GRADES = ("A", "AB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    tables = [runs_folder() / f"{name}.csv" for name in ("published", "bulk")]
    rows = [row for path in tables for row in read_runs(path)]
    runs, skipped = known_runs(rows)
    print(f"{len(runs)} runs, left out: {dict(skipped)}")
    try:
        likeness = likeness_of(fitted()["likeness"])
    except Exception:
        likeness = Likeness()
    if chosen.tune:
        likeness = tuned(runs, likeness, seconds=chosen.tune, seed=chosen.seed)
    fit = Calibration(runs, likeness)
    for by in ("group", "source"):
        print(f"without its {by}:", *(text for text in report(fit, by)), sep="\n  ")
    memory = fitted_memory(runs)
    write(fit, memory, spread(fit))


def masks(runs: list[Known]) -> dict[str, np.ndarray]:
    core = np.array([run.row.tier == "core" for run in runs])
    grade = np.array([run.row.completeness for run in runs])
    return {name: core & np.isin(grade, list(name)) for name in GRADES}


def report(fit: Calibration, by: str) -> list[str]:
    measured = np.array([math.log(run.seconds) for run in fit.runs])
    error = np.abs(errors(fit.held_out(known_by(fit.runs, by)), measured))
    return [
        f"{name:2}: median {np.median(error[mask]):.4f} mean {error[mask].mean():.4f} "
        f"p90 {np.quantile(error[mask], 0.9):.4f} of {mask.sum()} rows"
        for name, mask in masks(fit.runs).items()
    ]


def goal(fit: Calibration) -> float:
    """What the search lowers: errors beside what was asked of them, both ways of leaving out."""
    measured = np.array([math.log(run.seconds) for run in fit.runs])
    error = {
        by: np.abs(errors(fit.held_out(known_by(fit.runs, by)), measured))
        for by in ("group", "source")
    }
    rows = masks(fit.runs)
    group, source = error["group"][rows["A"]], error["source"][rows["A"]]
    all_source = error["source"][rows["AB"]]
    return float(
        np.median(group) / 0.06 + group.mean() / 0.10 + np.quantile(group, 0.9) / 0.22
        + 1.2 * np.median(source) / 0.11 + np.quantile(source, 0.9) / 0.40
        + 0.3 * source.mean() / 0.14 + 0.3 * np.median(all_source) / 0.11
    )  # fmt: skip


def tuned(runs: list[Known], likeness: Likeness, *, seconds: float, seed: int) -> Likeness:
    """A random search over the likeness; every second bulk row is enough for it."""
    draw = np.random.default_rng(seed)
    some = [run for index, run in enumerate(runs) if run.row.tier == "core" or index % 2 == 0]
    start = Calibration(some, likeness)
    best = goal(start)
    names = [name for name in asdict(likeness) if name != "scales"]
    end, tried = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        changes: dict[str, object] = {}
        for name in draw.choice(names, 2, replace=False):
            moved = getattr(likeness, name) * math.exp(draw.normal() * 0.6)
            changes[str(name)] = float(np.clip(moved, 1e-5, 0.5))
        scales = np.array(likeness.scales)
        which = draw.integers(0, len(scales), 2)
        scales[which] = np.clip(scales[which] * np.exp(draw.normal(size=2) * 0.5), 0.3, 30.0)
        changes["scales"] = tuple(map(float, scales))
        candidate = replace(likeness, **changes)
        value = goal(start.again(candidate))
        tried += 1
        if value < best:
            best, likeness = value, candidate
            print(f"  {tried} tried, {value:.4f}", flush=True)
    return likeness


REFUSED = 1.5
"""What a run that is counted above its device's memory costs beside a peak that is as far off."""


def fitted_memory(runs: list[Known]) -> MemoryCoefficients:
    """Coordinate descent on the error of published peaks, each source counting alike.

    A core run of completeness A ran, so it fits: one that is counted above its device's memory
    costs too, as far as it is above.
    """
    said = [run for run in runs if "recompute" not in run.case.assumed]
    known = [(run, peak * 2**30) for run in said if (peak := run.row.number("peak_mem_GiB"))]
    ran = [run for run in said if run.row.tier == "core" and run.row.completeness == "A"]
    peaks = _weights([run for run, _ in known])
    counts = _weights(ran)

    def used(run: Known, c: MemoryCoefficients) -> float:
        case = run.case
        return memory_use(case.work, case.held, case.microbatches, c).total

    def error(c: MemoryCoefficients) -> np.ndarray:
        return np.array([math.log(used(run, c) / peak) for run, peak in known])

    def above(c: MemoryCoefficients) -> np.ndarray:
        return np.array([math.log(used(run, c) / run.case.machine.memory) for run in ran])

    def loss(c: MemoryCoefficients) -> float:
        off = (peaks * np.minimum(np.abs(error(c)), 0.5)).sum() / peaks.sum()
        over = (counts * np.clip(above(c) + MARGIN, 0.0, 0.3)).sum() / counts.sum()
        return float(off + REFUSED * over)

    best = MemoryCoefficients()
    for _ in range(12):
        for name in asdict(best):
            value = getattr(best, name)
            tries = [replace(best, **{name: value * factor}) for factor in STEPS]
            best = min([best, *filter(_possible, tries)], key=loss)
    found, over = np.abs(np.expm1(error(best))), above(best) > 0
    print(
        f"peak memory: median {np.median(found):.4f} mean {found.mean():.4f} of {len(found)} rows; "
        f"{over.sum()} of {len(ran)} runs that ran are counted as too large"
    )
    return best


STEPS = (0.8, 0.95, 0.98, 1.02, 1.05, 1.25)
MARGIN = 0.02


def _possible(c: MemoryCoefficients) -> bool:
    """No gaps below nothing; some reserve."""
    return 1.0 <= c.gaps <= 1.3 and 2e8 <= c.reserve <= 4e9 and c.gathered >= 0.5


def _weights(runs: list[Known]) -> np.ndarray:
    """1 / sqrt(rows of the source): a source of many rows counts more, but not as many times."""
    sources = [run.row.source for run in runs]
    return np.array([1.0 / math.sqrt(sources.count(source)) for source in sources])


def spread(fit: Calibration) -> dict[str, tuple[float, float]]:
    """10th and 90th percentile of measured by predicted seconds, by how well a case is known."""
    measured = np.array([math.log(run.seconds) for run in fit.runs])
    grade = np.isin([run.row.completeness for run in fit.runs], ["A", "B"])
    found = {}
    for name, by in (("known", "group"), ("unknown", "source")):
        ratio = np.exp(measured - fit.held_out(known_by(fit.runs, by)))[grade]
        found[name] = (float(np.quantile(ratio, 0.1)), float(np.quantile(ratio, 0.9)))
    return found


def write(
    fit: Calibration, memory: MemoryCoefficients, spread: dict[str, tuple[float, float]]
) -> None:
    folder = fitted_folder()
    folder.mkdir(exist_ok=True)
    likeness = asdict(fit.likeness)
    scales = dict(zip(NUMBERS, likeness.pop("scales"), strict=True))
    lines = [
        "# Written by scripts/fit_cost.py from facts/runs; do not edit. Explained in",
        "# atoll.planning.cost.Coefficients, .memory.MemoryCoefficients and .correction.Likeness.",
        "schema = 1",
        f'source = "fitted on {len(fit.runs)} published runs, facts/runs/*.csv"',
    ]
    tables = {
        "time": asdict(fit.coefficients), "memory": asdict(memory), "likeness": likeness,
        "likeness.scales": scales,
    }  # fmt: skip
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {value:.6g}" for key, value in table.items())]
    lines += ["", "# Measured by predicted seconds, of runs that were not fitted on: 10th and 90th"]
    lines += ["# percentile where the source is known from other runs, and where it is not."]
    for name, (low, high) in spread.items():
        lines += ["", f"[spread.{name}]", f"low = {low:.4f}", f"high = {high:.4f}"]
    text = "\n".join(lines).replace("e+09", "e9")
    (folder / "cost.toml").write_text(text + "\n", encoding="ascii")
    with Path(folder / "correction.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["row_id", "weight", *NUMBERS, *(f"label_{name}" for name in LABELS)])
        for run, weight in zip(fit.runs, fit.weights, strict=True):
            features = run.features()
            numbers = [f"{value:.4g}" for value in features.numbers]
            out.writerow([run.row.row_id, f"{weight:.5g}", *numbers, *features.labels])
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
