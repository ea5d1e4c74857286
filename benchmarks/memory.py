"""Peak memory of one island against a plain loop for the same grain.

Claim: at most 1.3 x. The island is the process that `atoll train` starts (one lane of one thread:
weights, moments, integer sums, digests, fingerprints, update); the plain fp32 loop is a process
over the same decoder (weights, moments, `.grad`). Peak is the largest resident size that the
system saw, less the size after the imports, which is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from common import (
    QUICKSTART,
    TINY,
    WIDTH_384,
    Report,
    arguments,
    data_of,
    fleet_file,
    model_of,
    recipe_of,
    run_main,
    sampler_of,
    scratch,
    shape_of,
)

from atoll.model import Model
from atoll.recipe import Recipe
from atoll.training.display import SilentDisplay, Snapshot
from atoll.training.exponents import choose_widths

STEPS = 3


def settings(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """A recipe file and its overrides: a step of four grains of the wanted size."""
    length = [f"schedule.steps={STEPS}", "schedule.warmup=1"]
    if options.quick:
        return TINY, ["batch.sequences=8", *length]
    sizes = [f"batch.sequences={4 * options.grain}", f"batch.grain={options.grain}"]
    return QUICKSTART, [*WIDTH_384, *sizes, *length]


def recipe_for(options: argparse.Namespace) -> Recipe:
    """The recipe of `settings`."""
    path, overrides = settings(options)
    return recipe_of(path, *overrides)


def main() -> None:
    """Parent: run both; child: be one of them and print bytes."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--grain", type=int, help="sequences a grain (1 and then 4)")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(CONTENDERS[options.contender](options)))
        return
    report = Report("Peak memory of one island against a plain loop", quick=options.quick)
    for grain in [options.grain] if options.grain or options.quick else [1, 4]:
        options.grain = grain or 1
        compare(options, report)
    recipe = recipe_for(options)
    explain(recipe, model_of(recipe, data_of(recipe, options.cache)), report)
    report.show()


def compare(options: argparse.Namespace, report: Report) -> None:
    """Both processes, one after the other, for one grain."""
    recipe = recipe_for(options)
    data = data_of(recipe, options.cache)
    found = {key: _run(key, options) for key in CONTENDERS}
    num = model_of(recipe, data).num_parameters()
    peaks = {key: value["peak"] - value["imports"] for key, value in found.items()}
    rows = [
        [
            NAMES[key],
            *(f"{value[part] / 2**20:.0f}" for part in ("imports", "peak")),
            f"{peaks[key] / 2**20:.0f}",
            f"{peaks[key] / num:.1f}",
            f"{peaks[key] / peaks['plain']:.2f}",
        ]
        for key, value in found.items()
    ]
    head = ["process", "after imports, MiB", "peak, MiB", "difference, MiB"]
    head += ["bytes a parameter", "of the plain loop"]
    report.table(f"{shape_of(recipe, data)}.", head, rows)
    what = f"grain of {recipe.batch.grain} sequences, island / plain loop:"
    report.check(what, peaks["island"] / peaks["plain"], 1.3, at_least=False, form=".2f")


def _run(key: str, options: argparse.Namespace) -> dict[str, int]:
    command = [sys.executable, str(Path(sys.argv[0]).resolve()), "--contender", key]
    command += ["--grain", str(options.grain), "--cache", str(options.cache)]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return answer


def explain(recipe: Recipe, model: Model, report: Report) -> None:
    """The bytes that live for a whole step, by what they are."""
    shapes = model.tensors()
    head = "embedding.weight" if model.tied else "head.weight"
    widths = choose_widths(
        list(shapes), head=head, num_grains=recipe.num_grains, accumulator="auto"
    )
    sizes = [_size(shape) for shape in shapes.values()]
    total = sum(sizes)
    sums = sum(w // 8 * n for w, n in zip(widths, sizes, strict=True)) / total
    rows = [
        ["weights, fp32", "4", "4"],
        ["two moments, fp32", "8", "8"],
        ["gradient sums", "4", f"{sums:.2f}"],
        ["what an exchange adds up into", "-", f"0 ({sums:.2f})"],
        ["together", "16", f"{12 + sums:.2f} ({12 + 2 * sums:.2f})"],
    ]
    report.table(
        "Bytes a parameter that live as long as the process; in brackets with two islands or more. "
        "The output head's sums are int64, the others int32; a gradient lives until it is added.",
        ["", "plain loop", "island"],
        rows,
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


# ---------------------------------------------------------------------- the processes


class Look(SilentDisplay):
    """Reads the island's memory from the system when the last step stands in the ledger."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def update(self, snapshot: Snapshot) -> None:
        """The island is a child of the process that has imported everything once and forks."""
        if snapshot.step == STEPS:
            (preloaded,) = _children(os.getpid())
            (island,) = _children(preloaded)
            imports, peak = _status(preloaded, "VmRSS"), _status(island, "VmHWM")
            self.found = {"imports": imports, "peak": peak}


def be_island(options: argparse.Namespace) -> dict[str, int]:
    """Some steps of a fleet of one island through the real session."""
    from atoll.training import session

    path, overrides = settings(options)
    look = Look()
    island = {"name": "a", "chip": "cpu", "threads": 1, "lanes": 1}
    with scratch() as folder:
        session.train(
            str(path),
            display=look,
            fleet=fleet_file(folder, "one", island),
            run=folder / "run",
            overrides=overrides,
            cache=options.cache,
        )
    return look.found


def be_plain(options: argparse.Namespace) -> dict[str, int]:
    """As many steps of the plain loop; its imports are those of the island, and the compiler, which
    torch imports with the first step of an optimizer and which no gradient is to blame for."""
    import torch
    import torch.distributed
    from plain import PlainLoop

    import atoll.training.island  # noqa: F401

    number = torch.zeros((), requires_grad=True)
    number.backward()
    torch.optim.AdamW([number], fused=True).step()
    imports = _status(os.getpid(), "VmRSS")
    torch.set_num_threads(1)
    recipe = recipe_for(options)
    data = data_of(recipe, options.cache)
    sampler = sampler_of(recipe, data)
    loop = PlainLoop(recipe, model_of(recipe, data))
    for step in range(1, STEPS + 1):
        loop.step(sampler.grain(step, index) for index in range(recipe.num_grains))
    return {"imports": imports, "peak": _status(os.getpid(), "VmHWM")}


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def _status(process: int, key: str) -> int:
    """A line of /proc/PID/status in bytes: VmRSS is the resident size now, VmHWM its peak."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the size of a process; run this on Linux")


CONTENDERS = {"plain": be_plain, "island": be_island}
NAMES = {"plain": "plain loop", "island": "island of one lane"}

if __name__ == "__main__":
    run_main(main)
