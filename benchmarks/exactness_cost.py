"""What exactness costs: integer sums, digests, integer norm, exact AdamW and fingerprints, by part.

Claim: at 2,048 tokens a grain the step takes at most 3 % longer than with plain fp32
accumulation, `clip_grad_norm_` and torch's fused AdamW on the same gradients of the same decoder.

A step's forward and backward passes vary by more than that from one run to the next, so the parts
are timed where they happen, inside a step: each gradient is handed over by autograd as in
training, once to our accumulator and once to a plain fp32 sum. Both kinds of step are run in
turn. Times are processor time of one thread where the system tells it: waiting for a core that
others hold is not counted.
"""

from __future__ import annotations

import argparse

import torch
from common import (
    QUICKSTART,
    TINY,
    WIDTH_384,
    Report,
    arguments,
    data_of,
    model_of,
    recipe_of,
    run_main,
    sampler_of,
    shape_of,
)
from exact import Clock, ExactLoop, Sampled
from plain import PlainLoop
from torch import Tensor

from atoll import facts
from atoll.recipe import Recipe
from atoll.training.lane import Lane

# Bytes of main memory that a parameter costs in one grain, beside the gradient's own write.
HOST_PLAIN = 12  # read the gradient, read and write the fp32 sum
HOST_INT32 = 12  # the same: what lies between is done on a block that is in the cache
HOST_INT64 = 20  # read the gradient (4), read and write the sum (8 + 8)
# On a device every operation is a kernel over the whole tensor:
# maxima 4; times 2**k 4+4; round 4+4; convert 4+4 (int64: 4+8); add 4+4+4 (int64: 8+8+8).
DEVICE_INT32 = 4 + 8 + 8 + 8 + 12
DEVICE_INT64 = 4 + 8 + 8 + 12 + 24
DEVICE_FUSED = 12
UTILISATION = 0.4


class Plain:
    """The same step with fp32 sums, in two forms: timed by part, and as torch's users write it."""

    def __init__(self, recipe: Recipe, lane: Lane, loop: PlainLoop, clock: Clock) -> None:
        self.recipe, self.lane, self.loop, self.clock = recipe, lane, loop, clock
        self.sums: list[Tensor | None] = [None] * len(lane.names)

    def step(self, sample: Sampled) -> None:
        """One step on a lane like ours, whose gradients go into fp32 sums."""
        clock, sums = self.clock, self.sums

        def add(index: int, gradient: Tensor) -> None:
            with clock.part("accumulate"):
                mine = sums[index]
                if mine is None:
                    sums[index] = gradient
                else:
                    mine.add_(gradient)

        for grain in range(self.recipe.num_grains):
            tokens = sample(self.loop.num_steps + 1, grain)
            with clock.part("whole grains"):
                self.lane.backward(tokens, add)
        for index, parameter in enumerate(self.loop.decoder.parameters()):
            parameter.grad, sums[index] = sums[index], None
        with clock.part("norm and update"):
            self.loop.update(self.recipe.tokens_per_step)
        clock.close_step()


def main() -> None:
    """Measure, then derive what it means elsewhere."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=5, help="steps of each kind (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--shape", choices=("width-384", "quickstart"), default="width-384", help="(%(default)s)"
    )
    options = parser.parse_args()
    recipe = recipe_for(options)
    torch.set_num_threads(options.threads)
    report = Report("What exactness costs, by part", quick=options.quick)
    measure(recipe, options, report)
    if not options.quick:
        elsewhere(report)
    report.show()


def recipe_for(options: argparse.Namespace) -> Recipe:
    """8 grains of 4 sequences of 512 tokens, or the quickstart's own batch."""
    if options.quick:
        options.steps = 1
        return recipe_of(TINY, "batch.sequences=4")
    if options.shape == "quickstart":
        return recipe_of(QUICKSTART)
    return recipe_of(QUICKSTART, *WIDTH_384, "batch.sequences=32", "batch.grain=4")


def measure(recipe: Recipe, options: argparse.Namespace, report: Report) -> None:
    """Steps of both kinds in turn."""
    data = data_of(recipe, options.cache)
    sample, model = sampler_of(recipe, data).grain, model_of(recipe, data)
    ours, theirs = Clock(), Clock()

    def lane() -> tuple[Lane, PlainLoop]:
        loop = PlainLoop(recipe, model)
        weights = {name: p.data for name, p in loop.decoder.named_parameters()}
        return Lane(model, weights=weights, device=torch.device("cpu")), loop

    exact = ExactLoop(recipe, lane()[0], ours)
    plain = Plain(recipe, *lane(), theirs)
    for index in range(options.steps + 2):  # the first measures exponents, the second warms up
        exact.step(sample)
        plain.step(sample)
        if index == 1:
            ours.steps.clear()
            theirs.steps.clear()
    compute = theirs.median("whole grains") - theirs.median("accumulate")
    base = theirs.median("whole grains") + theirs.median("norm and update")
    num = model.num_parameters()
    rows = [["forward and backward", f"{compute:.3f}", "", f"{compute / base:.1%}", ""]]
    pairs = [
        ("accumulate", "accumulate"),
        ("start", ""),
        ("digest of the sums", ""),
        ("norm", "norm and update"),
        ("update", ""),
        ("fingerprint", ""),
    ]
    extra = 0.0
    for part, peer in pairs:
        mine, other = ours.median(part), theirs.median(peer) if peer else 0.0
        extra += mine - other
        calls = recipe.num_grains if part == "accumulate" else 1
        rows.append(
            [
                f"{part}{' (plain: ' + peer + ')' if peer and peer != part else ''}",
                f"{other:.4f}" if peer else "-",
                f"{mine:.4f}",
                f"{(mine - other) / base:+.2%}",
                f"{mine / calls / num * 1e9:.2f}",
            ]
        )
    rows.append(["together", f"{base:.3f}", f"{base + extra:.3f}", f"{extra / base:+.2%}", ""])
    head = [
        "part",
        "plain, s a step",
        "exact, s a step",
        "of the plain step",
        "ns a parameter, once",
    ]
    title = f"{shape_of(recipe, data)}; {options.threads} thread(s), one lane."
    report.table(title, head, rows)
    report.check("exactness costs", extra / base, 0.03, at_least=False, form=".2%")


def elsewhere(report: Report) -> None:
    """Bytes moved, and what they are against the compute of each chip that facts know."""
    report.table(
        "Bytes of memory traffic a parameter and grain, beside the write of the gradient itself.",
        ["", "plain fp32", "int32", "int64"],
        [
            ["on the host: a block stays in the cache", HOST_PLAIN, HOST_INT32, HOST_INT64],
            ["on a device: one kernel an operation", HOST_PLAIN, DEVICE_INT32, DEVICE_INT64],
            ["on a device: one fused kernel", HOST_PLAIN, DEVICE_FUSED, HOST_INT64],
        ],
    )
    rows = []
    for name in facts.chips():
        chip = facts.chip(name)
        flops = chip.flops.per_second("bf16") if chip.flops else None
        bandwidth = chip.memory.bytes_per_second if chip.memory else None
        if flops is None or bandwidth is None:
            continue

        def share(num_bytes: int, num_tokens: int, f: float = flops, b: float = bandwidth) -> float:
            return (num_bytes / b) / (6 * num_tokens / (f * UTILISATION))

        extra = DEVICE_INT32 - HOST_PLAIN
        needed = extra / bandwidth * flops * UTILISATION / 6 / 0.03
        rows.append(
            [
                name,
                f"{flops / bandwidth:.0f}",
                f"{share(extra, 2048):.1%}",
                f"{share(extra, 16384):.2%}",
                f"{share(DEVICE_INT64 - HOST_PLAIN, 16384):.2%}",
                f"{needed:,.0f}",
            ]
        )
    report.table(
        "Extra time of the sums on the chips of `facts`, derived, not measured: bytes "
        "beyond those of plain fp32 sums / bandwidth, against 6 FLOP a parameter and token at "
        f"{UTILISATION:.0%} of the dense bf16 speed, with one kernel an operation. (int32 in one "
        "fused kernel moves no byte more than plain fp32 sums.)",
        [
            "chip",
            "FLOP a byte",
            "int32, 2,048 tokens a grain",
            "int32, 16,384 tokens",
            "int64, 16,384 tokens",
            "tokens a grain for 3 %, int32",
        ],
        rows,
    )


if __name__ == "__main__":
    run_main(main)
