"""The planner against published runs: errors, calibration, memory, sweeps, search time, peers.

Claims: a run is predicted without its group (source, chip and model) within 6 % by the median, 10 %
by the mean and 22 % in nine of ten cases, and without its whole source within 11 % and 40 %; three
runs of one's own lower the error of the others; peak memory within 10 %; of a sweep the plan ranked
first reaches 97 % of the best; a plan for 100,000 chips is a matter of seconds on one core.

--llm-analysis PYTHON names an interpreter with the peer (pip install llm-analysis); boosted trees
run where scikit-learn can be imported. What is not there is said to be left out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import io
import json
import math
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import llm_analysis_peer as peer
import numpy as np
from common import ROOT, Report, arguments, median_ratio, run_main, tell

from atoll.fleet import Fleet
from atoll.planning.calibration import Known
from atoll.planning.memory import MemoryCoefficients, memory_use
from atoll.planning.planner import plan
from atoll.planning.validate import (
    Errors,
    Leave,
    factors,
    log_seconds,
    own_runs,
    own_table,
    sweeps_json,
    validate,
)
from atoll.recipe import Recipe

RECIPES = ("dense-400b", "moe-700b")
FLEET = ROOT / "examples" / "fleets" / "hundred-thousand.toml"
BOUNDS = {"group": (0.06, 0.10, 0.22), "source": (0.11, None, 0.40)}
LEAVES: tuple[Leave, Leave] = ("group", "source")
SEED = 1


def main() -> None:
    """All claims; each part says with which command it can be seen."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--llm-analysis", type=Path, metavar="PYTHON", help="see above")
    options = parser.parse_args()
    report = Report("The planner against published runs", quick=options.quick)
    runs = list(own_runs())
    measured = np.array([math.log(run.seconds) for run in runs])
    scored = np.array([run.row.tier == "core" for run in runs])
    grade_a = scored & np.array([run.row.completeness == "A" for run in runs])
    known = {leave: log_seconds(runs, leave=leave)[0] for leave in LEAVES}
    show_errors(report, runs, measured, grade_a, known, quick=options.quick)
    show_sources(report)
    show_calibration(report, runs, measured, scored, known, quick=options.quick)
    show_memory(report, runs)
    show_sweeps(report)
    show_peer(report, runs, measured, grade_a, known["group"], options)
    show_search(report, quick=options.quick)
    report.show()


# ---------------------------------------------------------------------- errors


def errors_of(predicted: np.ndarray, measured: np.ndarray, mask: np.ndarray) -> Errors:
    return Errors.of([float(x) for x in np.expm1(predicted - measured)[mask]])


def cells(errors: Errors) -> list[str]:
    numbers = (errors.median, errors.mean, errors.p90)
    return [str(errors.rows), *(f"{x:.1%}" for x in numbers), f"{errors.bias:+.1%}"]


def show_errors(
    report: Report,
    runs: Sequence[Known],
    measured: np.ndarray,
    mask: np.ndarray,
    known: dict[Leave, np.ndarray],
    *,
    quick: bool,
) -> None:
    """Ours, a mean MFU for each chip, and boosted trees, all on the same splits and rows."""
    rows, trees = [], importable("sklearn.ensemble")
    for leave in LEAVES:
        ours = errors_of(known[leave], measured, mask)
        groups = [run.row.group if leave == "group" else run.row.source for run in runs]
        plain = errors_of(constant_mfu(runs, measured, groups), measured, mask)
        rows.append([f"without its {leave}", "atoll", *cells(ours)])
        rows.append(["", "mean MFU of the chip", *cells(plain)])
        if trees and not quick:
            boosted = errors_of(boosted_trees(runs, measured, groups), measured, mask)
            rows.append(
                ["", f"boosted trees, scikit-learn {version('scikit-learn')}", *cells(boosted)]
            )
        names = ("median", "mean", "p90")
        for name, bound in zip(names, BOUNDS[leave], strict=True):
            if bound is not None:
                what = f"error without the {leave}, {name}"
                report.check(what, getattr(ours, name), bound, at_least=False, form=".1%")
    report.table(
        "Step time of core runs whose whole configuration is known (completeness A). "
        "`atoll validate --leave group`, `atoll validate --leave source`.",
        ["predicted", "by", "rows", "median", "mean", "p90", "bias"],
        rows,
    )
    if not trees:
        report.note("Boosted trees were left out: scikit-learn cannot be imported here.")


def base_seconds(run: Known) -> float:
    """Seconds if the chips computed the model's FLOP at their peak."""
    case = run.case
    tokens = case.sequences * case.work.sequence
    speed = case.machine.speed(case.work.precision) * case.layout.num_devices
    return case.work.shape.flops_per_token(case.work.sequence) * tokens / speed


def constant_mfu(runs: Sequence[Known], measured: np.ndarray, groups: list[str]) -> np.ndarray:
    """A planner that knows a mean MFU a chip, for 8 bits or not and sparse or not."""
    base = np.array([math.log(base_seconds(run)) for run in runs])
    kinds = [
        (run.case.work.precision in ("fp8", "int8"), run.case.work.shape.experts > 0)
        for run in runs
    ]
    keys = [(run.case.machine.chip, *kind) for run, kind in zip(runs, kinds, strict=True)]
    found = np.zeros(len(runs))
    for index, group in enumerate(groups):
        others = np.array([other != group for other in groups])
        for same in (
            np.array([key == keys[index] for key in keys]),
            np.array([kind == kinds[index] for kind in kinds]),
            np.ones(len(runs), dtype=bool),
        ):
            if np.any(same & others):
                mfu = np.exp(base - measured)[same & others].mean()
                found[index] = base[index] - math.log(mfu)
                break
    return found


def boosted_trees(runs: Sequence[Known], measured: np.ndarray, groups: list[str]) -> np.ndarray:
    """Gradient boosting on what the correction sees, on top of FLOP at peak; ten folds."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import GroupKFold

    features = [run.features() for run in runs]
    numbers = np.array([one.numbers for one in features])
    labels = np.array([one.labels[1:6] for one in features], dtype=object).T
    codes = np.array([np.unique(column.astype(str), return_inverse=True)[1] for column in labels])
    table = np.hstack([numbers, codes.T])
    base = np.array([math.log(base_seconds(run)) for run in runs])
    found = np.zeros(len(runs))
    for inside, outside in GroupKFold(n_splits=10).split(table, groups=groups):
        trees = HistGradientBoostingRegressor(
            loss="absolute_error", learning_rate=0.05, max_iter=400, random_state=SEED
        )
        trees.fit(table[inside], (measured - base)[inside])
        found[outside] = base[outside] + trees.predict(table[outside])
    return found


def show_sources(report: Report) -> None:
    """Every source with at least five core rows, of any completeness."""
    both = [validate(own_table(), leave=leave) for leave in LEAVES]
    by = [one.by()["source"] for one in both]
    names = sorted(by[0], key=lambda name: (-by[0][name].rows, name))
    rows = [
        [name, *cells(by[0][name])[:4], *cells(by[1][name])[1:]]
        for name in names
        if by[0][name].rows >= 5
    ]
    head = ["source", "rows", "median", "mean", "p90"]
    head += [f"{name}, source left out" for name in ("median", "mean", "p90", "bias")]
    report.table("By source, all core rows of sources with at least five.", head, rows)
    share = len(both[0].scored) / both[0].rows
    report.check("core rows predicted", share, 0.90, at_least=True, form=".1%")


def show_calibration(
    report: Report,
    runs: Sequence[Known],
    measured: np.ndarray,
    scored: np.ndarray,
    known: dict[Leave, np.ndarray],
    *,
    quick: bool,
) -> None:
    """One factor from three runs of a group, drawn by a seed, and the error of its other runs."""
    groups: dict[str, list[int]] = {}
    for index in np.flatnonzero(scored):
        groups.setdefault(runs[index].row.group, []).append(int(index))
    large = [members for members in groups.values() if len(members) >= 5]
    draws = 2 if quick else 20
    rows = []
    for leave in LEAVES:
        draw = np.random.default_rng(SEED)
        pairs = [
            [calibrated(runs, measured, known[leave], members, draw) for _ in range(draws)]
            for members in large
        ]
        before = [statistics.median(pair[0] for pair in group) for group in pairs]
        after = [statistics.median(pair[1] for pair in group) for group in pairs]
        better = sum(a < b for a, b in zip(after, before, strict=True))
        medians = statistics.median(before), statistics.median(after)
        rows.append(
            [f"without its {leave}", str(len(large)), *(f"{x:.1%}" for x in medians),
             f"{better} of {len(large)}"]
        )  # fmt: skip
        what = f"error beside the uncalibrated one, without the {leave}"
        report.check(what, medians[1] / medians[0], 1.0, at_least=False, form=".2f")
    report.table(
        f"A factor from three runs of a group ({draws} draws) and the median error of its other "
        "runs; the median over groups. One's own cluster is a source that nobody knows: the second "
        "line. `atoll validate RUNS.csv --calibrate THREE.csv`.",
        ["predicted", "groups of 5 rows or more", "before", "after", "groups that gain"],
        rows,
    )


def calibrated(
    runs: Sequence[Known],
    measured: np.ndarray,
    predicted: np.ndarray,
    members: list[int],
    draw: np.random.Generator,
) -> tuple[float, float]:
    """Median errors of all but three of the members, before and after the three gave a factor."""
    three = [int(i) for i in draw.choice(members, 3, replace=False)]
    rest = [i for i in members if i not in three]
    given = factors([runs[i] for i in three], predicted[three])
    log = np.array([math.log(given.get(runs[i].case.machine.chip, 1.0)) for i in rest])
    before = np.abs(np.expm1(predicted[rest] - measured[rest]))
    after = np.abs(np.expm1(predicted[rest] + log - measured[rest]))
    return float(np.median(before)), float(np.median(after))


# ---------------------------------------------------------------------- memory and sweeps


def show_memory(report: Report, runs: Sequence[Known]) -> None:
    """Published peaks, worked cases, and runs that ran although the planner says they cannot."""
    found = validate(own_table()).memory()
    assert found is not None
    rows = [["fitted on all of them", *cells(found)]]
    rows.append(["fitted without the source", *cells(peaks_left_out(runs))])
    report.table(
        "Peak memory of core runs, eight coefficients. `atoll validate` prints the first line.",
        ["coefficients", "rows", "median", "mean", "p90", "bias"],
        rows,
    )
    report.check("peak memory, median, in sample", found.median, 0.10, at_least=False, form=".1%")
    cases = runpy.run_path(str(ROOT / "tests" / "pure" / "test_memory_cases.py"))
    told = [
        [cases["named"](case), f"{case.size() / 1e9:.0f}", f"{case.used().total / 1e9:.0f}",
         case.reason, "ran" if case.at_least is None else "cannot fit"]
        for name in ("TOO_LARGE", "RAN")
        for case in cases[name]
    ]  # fmt: skip
    report.table(
        "Worked cases, GB. `pytest tests/pure/test_memory_cases.py`.",
        ["case", "device", "counted", "why", "truth"],
        told,
    )
    seen = sum(case.used().total > case.size() for case in cases["TOO_LARGE"])
    num = len(cases["TOO_LARGE"])
    report.check(f"of {num} cases that cannot fit, seen", seen, num, at_least=True, form="d")
    ran = [run for run in runs if run.row.tier == "core" and run.row.completeness == "A"
           and "recompute" not in run.case.assumed]  # fmt: skip
    refused = [run for run in ran if _used(run) > run.case.machine.memory]
    narrow = [run for run in refused if _used(run) < 1.25 * run.case.machine.memory]
    report.note(
        f"Of {len(ran)} core runs of completeness A, which all ran, the planner says of "
        f"{len(refused)} ({len(refused) / len(ran):.0%}) that they do not fit, of {len(narrow)} by "
        "less than a quarter: it is on the careful side."
    )


def peaks_left_out(runs: Sequence[Known]) -> Errors:
    """Every source's peaks by coefficients that scripts/fit_cost.py fits to the others."""
    fitted_memory = runpy.run_path(str(ROOT / "scripts" / "fit_cost.py"))["fitted_memory"]
    peaks = [run for run in runs if run.row.number("peak_mem_GiB")]
    found = []
    for source in sorted({run.row.source for run in peaks}):
        with contextlib.redirect_stdout(io.StringIO()):
            c = fitted_memory([run for run in runs if run.row.source != source])
        for run in peaks:
            if run.row.source == source and run.row.tier == "core":
                case = run.case
                used = memory_use(case.work, case.held, case.microbatches, c).total
                found.append(used / ((run.row.number("peak_mem_GiB") or 1.0) * 2**30) - 1.0)
    return Errors.of(found)


def _used(run: Known) -> float:
    from atoll.planning.correction import fitted

    case, c = run.case, MemoryCoefficients(**fitted()["memory"])
    return memory_use(case.work, case.held, case.microbatches, c).total


def show_sweeps(report: Report) -> None:
    """How good is the plan that the model ranks first."""
    rows = []
    for leave in LEAVES:
        sweeps = validate(own_table(), leave=leave).sweeps()
        found = sweeps_json(sweeps)
        for name, one in (
            ("2 rows", found),
            ("3 rows", found["rows"]),
            ("3 different plans", found["plans"]),
        ):
            rows.append(
                [f"without its {leave}", name, str(one["count"]), f"{one['mean_reached']:.1%}",
                 f"{one['worst']:.1%}", f"{one['mean_rank_correlation']:.2f}"]
            )  # fmt: skip
        if leave == "group":
            for name, one in (
                ("of 2 rows or more", found),
                ("of 3 rows or more", found["rows"]),
                ("of 3 different plans or more", found["plans"]),
            ):
                what = f"first choice of a sweep ({name}) reaches of the best"
                report.check(what, one["mean_reached"], 0.97, at_least=True, form=".1%")
    report.table(
        "Sweeps: measured speed of the plan that the model ranks first, beside the best. Some "
        "sweeps of the table change switches of a stack and not the plan; the last line leaves "
        "them out. `atoll validate`.",
        ["predicted", "at least", "sweeps", "reached, mean", "worst", "rank correlation"],
        rows,
    )


# ---------------------------------------------------------------------- peers


def show_peer(
    report: Report,
    runs: Sequence[Known],
    measured: np.ndarray,
    grade_a: np.ndarray,
    ours: np.ndarray,
    options: argparse.Namespace,
) -> None:
    """llm-analysis on the dense 16-bit rows of the chips that it knows."""
    others = (
        "Other planners: Calculon is not on the package index (the `calculon` there is a library "
        "for threads); hetu-galvatron 2.4.0 is, but predicts from a profile that it measures on "
        "the cards themselves; vTrain, SimuMax and Sailor are repositories and were not tried."
    )
    if options.llm_analysis is None:
        report.note(f"llm-analysis was left out: no --llm-analysis PYTHON was given. {others}")
        return
    mask = grade_a & np.array([peer.knows(run) for run in runs])
    asked = [peer.row_of(runs[i]) for i in np.flatnonzero(mask)]
    answers = peer.seconds_of(asked, python=options.llm_analysis)
    logs = np.full(len(runs), np.nan)
    for i, answer in zip(np.flatnonzero(mask), answers, strict=True):
        if isinstance(answer, float) and answer > 0:
            logs[i] = math.log(answer)
    both = mask & np.isfinite(logs)
    groups = np.array([run.row.group for run in runs], dtype=object)
    tuned = logs.copy()
    for i in np.flatnonzero(both):
        same = both & (groups != groups[i])
        chip = runs[i].case.machine.chip
        same &= np.array([run.case.machine.chip == chip for run in runs])
        tuned[i] += np.median((measured - logs)[same]) if same.any() else 0.0
    halved = logs + math.log(2.0)
    found = {
        "atoll": errors_of(ours, measured, both),
        "llm-analysis, as it comes (peak FLOP/s)": errors_of(logs, measured, both),
        "llm-analysis, flops_efficiency 0.5": errors_of(halved, measured, both),
        "llm-analysis, best efficiency a chip": errors_of(tuned, measured, both),
    }
    reasons = sorted({answer for answer in answers if isinstance(answer, str)})
    report.table(
        f"A peer, llm-analysis, on {both.sum()} of {mask.sum()} dense 16-bit rows of the chips "
        "that it knows; the best efficiency is the median of other groups' runs on the same chip.",
        ["planner", "rows", "median", "mean", "p90", "bias"],
        [[name, *cells(one)] for name, one in found.items()],
    )
    ratio = found["llm-analysis, best efficiency a chip"].median / found["atoll"].median
    report.check(
        "median error of the peer at its best beside ours", ratio, 1.0, at_least=True, form=".1f"
    )
    told = (
        f" It gave no answer to {len(answers) - both.sum()} rows: {'; '.join(reasons)}."
        if reasons
        else ""
    )
    report.note(others + told)


# ---------------------------------------------------------------------- search time


def show_search(report: Report, *, quick: bool) -> None:
    """Whole commands on one core, and how the search grows with the fleet."""
    rounds = 1 if quick else 5
    rows = []
    for name in RECIPES:
        recipe = ROOT / "examples" / "recipes" / f"{name}.toml"
        whole, inside = zip(*(_command(recipe) for _ in range(rounds)), strict=True)
        rows.append(
            [name, f"{min(whole):.2f}", f"{statistics.median(whole):.2f}", f"{min(inside):.3f}",
             f"{statistics.median(inside):.3f}"]
        )  # fmt: skip
        seconds = min(whole), min(inside)
        report.check(f"{name}: the whole command, s,", seconds[0], 1.5, at_least=False, form=".2f")
        report.check(f"{name}: the search, s,", seconds[1], 1.0, at_least=False, form=".2f")
    report.table(
        f"`taskset -c 0 atoll plan RECIPE {FLEET.relative_to(ROOT)}`: seconds of the whole "
        f"command and of the search in it, {rounds} rounds.",
        ["recipe", "command, best", "median", "search, best", "median"],
        rows,
    )
    grow(report, quick=quick)


def _command(recipe: Path) -> tuple[float, float]:
    """Seconds of one whole command and of its search."""
    pinned = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    command = [*pinned, sys.executable, "-m", "atoll", "plan", str(recipe), str(FLEET), "--json"]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begun
    return seconds, float(json.loads(done.stdout.splitlines()[-1])["search_seconds"])


def grow(report: Report, *, quick: bool) -> None:
    """Copies of the islands under new names, and the same islands with more nodes."""
    recipe = Recipe.load(ROOT / "examples" / "recipes" / "dense-400b.toml", [])
    content = Fleet.load(FLEET).as_dict()
    islands = content["island"]

    def with_islands(count: int, *, smaller: int = 0) -> Fleet:
        copies = [
            {**islands[i % len(islands)], "name": f"{islands[i % len(islands)]['name']}-{i}"}
            for i in range(count)
        ]
        for i, one in enumerate(copies):
            one["nodes"] -= smaller * i
        return Fleet.from_dict({**content, "island": copies, "delivery": [], "withdrawal": []})

    def unlike(count: int) -> Fleet:
        return with_islands(count, smaller=1)

    def with_nodes(factor: int) -> Fleet:
        more = [{**one, "nodes": one["nodes"] * factor} for one in islands]
        return Fleet.from_dict({**content, "island": more, "delivery": [], "withdrawal": []})

    times, factors_ = ((1, 2), (1, 4)) if quick else ((1, 2, 4, 8), (1, 4, 16))
    counts = tuple(len(islands) * factor for factor in times)
    rows = []
    gc.freeze()  # what the other parts of this script hold is not in a planner's process
    tables: list[tuple[str, Callable[[int], Fleet], tuple[int, ...]]] = [
        ("islands", with_islands, counts), ("islands, no two alike", unlike, counts),
        ("chips an island, times", with_nodes, factors_),
    ]  # fmt: skip
    for name, fleet_of, sizes in tables:
        fleets = [fleet_of(size) for size in sizes]
        seconds: list[list[float]] = [[] for _ in sizes]
        for turn in range(1 if quick else 5):
            order = range(len(sizes)) if turn % 2 == 0 else reversed(range(len(sizes)))
            for i in order:
                tell(f"planning: {name} {sizes[i]}, round {turn + 1}")
                begun = time.perf_counter()
                plan(recipe, fleets[i])
                seconds[i].append(time.perf_counter() - begun)
        for size, took in zip(sizes, seconds, strict=True):
            ratio = median_ratio(took, seconds[0])
            rows.append([name, str(size), f"{statistics.median(took):.2f}", f"{ratio:.2f}"])
        power = math.log(ratio) / math.log(sizes[-1] / sizes[0])
        linear = 0.0 if fleet_of is with_nodes else 1.05  # 1 is linear; the rest is noise
        what = f"seconds grow with {name}, as the power"
        report.check(what, power, linear, at_least=False, form=".2f")
    report.table(
        "How the search grows (dense-400b; seconds in this process, other cores idle or not).",
        ["grows", "to", "seconds, median", "times the first"],
        rows,
    )


def importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run_main(main)
