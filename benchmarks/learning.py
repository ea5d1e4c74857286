"""Whether exact training learns as plain fp32 training does.

Claim: after the quickstart's steps the validation loss of `atoll train` is within 0.02 nats of a
plain fp32 AdamW loop over the same grains (same sampler, initial weights, schedule and decoder),
and it is at most 2.7 bits per byte on held-out Shakespeare. Nothing here is timed.

A third curve says what the difference is worth: the same plain loop with the grains of each step
added in reverse order. It differs from the first by rounding alone, as it would on another number
of workers. Where training is unstable (a high learning rate, early steps) that grows until it is
seen in the loss, and no arithmetic can be nearer to one of the two than they are to each other.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import (
    QUICKSTART,
    TINY,
    Report,
    arguments,
    cores,
    data_of,
    fleet_file,
    model_of,
    recipe_of,
    run_main,
    sampler_of,
    scratch,
    shape_of,
    tell,
)
from plain import PlainLoop

from atoll.recipe import Recipe
from atoll.training.display import SilentDisplay, Snapshot

Curve = dict[int, float]


class Validations(SilentDisplay):
    """Keeps the validation losses of a session by step."""

    def __init__(self, every: int) -> None:
        self.curve: Curve = {}
        self._every = every

    def update(self, snapshot: Snapshot) -> None:
        """Comes after each step; a validation's loss is there when its step is shown."""
        if snapshot.step % self._every == 0 and snapshot.val_loss is not None:
            self.curve[snapshot.step] = snapshot.val_loss
            tell(f"  atoll: step {snapshot.step}, validation loss {snapshot.val_loss:.4f}")


def main() -> None:
    """Train twice, compare at the steps that validate."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, help="the schedule's steps (the quickstart's own)")
    options = parser.parse_args()
    path, overrides = QUICKSTART, ["run.validation_sequences=0", "run.checkpoint_every=100000"]
    if options.quick:
        path, options.steps = TINY, 4
        overrides += ["schedule.warmup=1", "run.validate_every=2"]
    if options.steps:
        overrides.append(f"schedule.steps={options.steps}")
    recipe = recipe_of(path, *overrides)
    data = data_of(recipe, options.cache)
    report = Report("Exact training learns as plain fp32 training does", quick=options.quick)
    started = time.perf_counter()
    ours = train_ours(str(path), overrides, recipe, options)
    seconds = time.perf_counter() - started
    theirs = train_plain(recipe, options, reverse=False)
    reversed_ = train_plain(recipe, options, reverse=True)
    rows = [
        [
            step,
            f"{theirs[step]:.4f}",
            f"{loss:.4f}",
            f"{loss - theirs[step]:+.4f}",
            f"{reversed_[step] - theirs[step]:+.4f}",
            f"{data.bits_per_byte(loss):.3f}",
        ]
        for step, loss in ours.items()
    ]
    head = ["step", "plain fp32, nats a token", "atoll, nats a token", "atoll - plain"]
    head += ["plain reversed - plain"]
    title = f"{recipe.data.corpus}; {shape_of(recipe, data)}; all held-out windows."
    report.table(title, [*head, "atoll, bits per byte"], rows)
    report.note(f"`atoll train` took {seconds:.0f} s here, with start and validation.")
    last = max(ours)
    what = "difference at the last step, nats:"
    report.check(what, abs(ours[last] - theirs[last]), 0.02, at_least=False, form=".4f")
    bits = data.bits_per_byte(ours[last])
    report.check("bits per byte at the last step:", bits, 2.7, at_least=False, form=".3f")
    report.show()


def train_ours(
    path: str, overrides: list[str], recipe: Recipe, options: argparse.Namespace
) -> Curve:
    """The real session on one island with a lane a core."""
    from atoll.training import session

    display = Validations(recipe.run.validate_every)
    island = {"name": "a", "chip": "cpu", "threads": 1, "lanes": cores()}
    with scratch() as folder:
        session.train(
            path,
            display=display,
            fleet=fleet_file(folder, "one", island),
            run=folder / "run",
            overrides=overrides,
            cache=options.cache,
        )
    return display.curve


def train_plain(recipe: Recipe, options: argparse.Namespace, *, reverse: bool) -> Curve:
    """The plain loop over the same grains, validated at the same steps on the same windows."""
    torch.set_num_threads(1)  # its grains are small; more threads would mostly wait for each other
    data = data_of(recipe, options.cache)
    sampler = sampler_of(recipe, data)
    loop = PlainLoop(recipe, model_of(recipe, data))
    size, total = recipe.batch.grain, sampler.num_validation_windows
    windows = [
        sampler.validation(first, min(size, total - first)) for first in range(0, total, size)
    ]
    curve: Curve = {}
    for step in range(1, recipe.total_steps() + 1):
        grains = range(recipe.num_grains)
        order = reversed(grains) if reverse else grains
        loop.step(sampler.grain(step, index) for index in order)
        if step % recipe.run.validate_every == 0:
            curve[step] = loop.validation_loss(windows)
            tell(f"  plain{' reversed' * reverse}: step {step}, validation loss {curve[step]:.4f}")
    return curve


if __name__ == "__main__":
    run_main(main)
