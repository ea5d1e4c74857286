"""What integer sums lose, for 8 to 32,768 grains a step, and whether it is felt.

First part: the share of non-zero gradient entries of a grain that round to nothing, by kind of
tensor, with int32 and with int64 sums, at the exponents that the trainer would choose. More
grains need more room above a single grain, so each keeps fewer bits. The gradients are those of
real text on a model that has trained for some steps; there are 32 different grains, and for
larger steps their loads are taken as often as it needs (the loads of more different grains would
be much the same: each is the largest entry of a tensor, added up). "Of the gradient" is the lost
part of the squared norm.

Second part: the validation loss after equal steps with int32, int64 and plain fp32 sums, for
steps of as many grains as can be trained here: a small model on tiny grains.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from common import (
    QUICKSTART,
    TINY,
    Report,
    arguments,
    data_of,
    model_of,
    recipe_of,
    run_main,
    sampler_of,
    shape_of,
    tell,
)
from exact import Clock, ExactLoop, Sampled
from plain import PlainLoop
from torch import Tensor

from atoll.recipe import Recipe
from atoll.training import exponents as exp
from atoll.training.lane import Lane

NUM_GRAINS = (8, 32, 128, 1024, 8192, 32768)
POOL = 32
CLASSES = ("head (tied embedding)", "attention", "feed-forward", "norms")
TINY_GRAINS = (
    "name=tiny-grains",
    "model.layers=2",
    "model.width=64",
    "model.heads=4",
    "model.kv_heads=2",
    "model.ffn=192",
    "model.context=32",
    "data.tokenizer={train = 1024}",
    "batch.grain=1",
)


def main() -> None:
    """Both parts."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--warm-steps", type=int, default=60, help="training before the gradients")
    parser.add_argument("--steps", type=int, default=60, help="steps of the second part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("Integer sums against fp32 sums", quick=options.quick)
    if options.quick:
        options.warm_steps, options.steps = 2, 2
    show_lost(options, report)
    show_trained(options, report)
    report.show()


def class_of(name: str) -> str:
    """The class of a tensor by its name."""
    if name.endswith("norm.weight"):
        return CLASSES[3]
    if ".attention." in name:
        return CLASSES[1]
    return CLASSES[2] if ".ffn." in name else CLASSES[0]


# ---------------------------------------------------------------------- what is lost


def show_lost(options: argparse.Namespace, report: Report) -> None:
    """Share of non-zero entries that round to 0, by width, class and grains a step."""
    recipe = recipe_of(QUICKSTART)
    pool, counts = POOL, NUM_GRAINS
    if options.quick:
        recipe = recipe_of(TINY)
        pool, counts = 4, (8, 32768)
    data = data_of(recipe, options.cache)
    gradients = pool_of_gradients(recipe, options, pool)
    rows = []
    for width in (32, 64):
        for num_grains in counts:
            entries, norm = lost(gradients, width=width, num_grains=num_grains)
            left = exp.bits_left(width, num_grains)  # type: ignore[arg-type]  # 32 or 64
            shares = [f"{entries[c]:.2%}" for c in CLASSES]
            rows.append([f"int{width}", f"{num_grains:,}", f"{left:.0f}", *shares, f"{norm:.1e}"])
    grain = recipe.batch.grain * recipe.model.context
    title = (
        f"Share of a grain's non-zero entries that round to nothing. {recipe.data.corpus}, "
        f"{grain} tokens a grain, {model_of(recipe, data).num_parameters() / 1e6:.1f} M parameters "
        f"after {options.warm_steps} steps, {pool} different grains."
    )
    head = ["sums", "grains a step", "bits left", *CLASSES, "of the gradient (head)"]
    report.table(title, head, rows)


def pool_of_gradients(
    recipe: Recipe, options: argparse.Namespace, pool: int
) -> list[dict[str, Tensor]]:
    """The gradients of some grains of the summed loss, on weights that have trained a little."""
    data = data_of(recipe, options.cache)
    sampler = sampler_of(recipe, data)
    loop = PlainLoop(recipe, model_of(recipe, data))
    for step in range(1, options.warm_steps + 1):
        loop.step(sampler.grain(step, index) for index in range(recipe.num_grains))
    tell(f"trained {options.warm_steps} steps")
    gradients = []
    for index in range(pool):
        step, grain = divmod(index, recipe.num_grains)
        tokens = sampler.grain(options.warm_steps + 1 + step, grain)
        loop.decoder.loss(torch.from_numpy(tokens)).backward()
        named = loop.decoder.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
        loop.optimizer.zero_grad(set_to_none=True)
    return gradients


def lost(
    gradients: list[dict[str, Tensor]], *, width: int, num_grains: int
) -> tuple[dict[str, float], float]:
    """Lost share of the non-zero entries by class, and of the head's squared norm."""
    names = list(gradients[0])
    exponents = exp.Exponents.fresh([width] * len(names))  # type: ignore[list-item]  # 32 or 64
    loads = [
        sum(exp.load_of(float(g[name].abs().max()), k) for g in gradients)
        * num_grains
        // len(gradients)
        for name, k in zip(names, exponents.current, strict=True)
    ]
    exponents.commit(loads)
    num_lost: dict[str, int] = defaultdict(int)
    num_all: dict[str, int] = defaultdict(int)
    lost_square = square = 0.0
    for gradient in gradients:
        for name, k in zip(names, exponents.current, strict=True):
            values = gradient[name].flatten()
            values = values[values != 0]
            gone = values[(values * 2.0**k).round_() == 0]
            kind = class_of(name)
            num_lost[kind] += gone.numel()
            num_all[kind] += values.numel()
            if kind == CLASSES[0]:
                lost_square += float(gone.double().square().sum())
                square += float(values.double().square().sum())
    return {kind: num_lost[kind] / num_all[kind] for kind in CLASSES}, lost_square / square


# ---------------------------------------------------------------------- whether it is felt


def show_trained(options: argparse.Namespace, report: Report) -> None:
    """Validation loss after equal steps, by sums and grains a step."""
    rows = []
    for num_grains in (4,) if options.quick else (8, 32, 128):
        overrides = (*TINY_GRAINS, f"batch.sequences={num_grains}", "schedule.warmup=2")
        length = f"schedule.steps={options.steps}"
        path = TINY if options.quick else QUICKSTART
        recipe = recipe_of(path, *overrides, length)
        losses = {"fp32": trained(recipe, options)}
        for width in ("int32", "int64"):
            exact = recipe_of(path, *overrides, length, f"exact.accumulator={width}")
            losses[width] = trained(exact, options)
        plain = losses["fp32"]
        difference = [f"{losses[width] - plain:+.1e}" for width in ("int32", "int64")]
        rows.append([num_grains, *(f"{loss:.4f}" for loss in losses.values()), *difference])
    title = f"Validation loss, nats a token, after {options.steps} steps: "
    title += shape_of(recipe, data_of(recipe, options.cache)).split(";")[0] + ", 32 tokens a grain."
    head = ["grains a step", "fp32 sums", "int32", "int64", "int32 - fp32", "int64 - fp32"]
    report.table(title, head, rows)


def trained(recipe: Recipe, options: argparse.Namespace) -> float:
    """Train with the sums that the recipe asks for ("auto": plain fp32), then validate."""
    data = data_of(recipe, options.cache)
    sampler = sampler_of(recipe, data)
    loop = PlainLoop(recipe, model_of(recipe, data))
    total = min(sampler.num_validation_windows, 512)
    batches = [sampler.validation(first, 1) for first in range(total)]
    if recipe.exact.accumulator == "auto":
        for step in range(1, recipe.total_steps() + 1):
            loop.step(sampler.grain(step, index) for index in range(recipe.num_grains))
    else:
        train_exactly(recipe, loop, sampler.grain)
    loss = loop.validation_loss(batches)
    tell(f"  {recipe.num_grains} grains, sums {recipe.exact.accumulator}: {loss:.4f}")
    return loss


def train_exactly(recipe: Recipe, loop: PlainLoop, sample: Sampled) -> None:
    """Train the weights of `loop` with integer sums of one width."""
    weights = {name: p.data for name, p in loop.decoder.named_parameters()}
    lane = Lane(loop.decoder.model, weights=weights, device=torch.device("cpu"))
    exact = ExactLoop(recipe, lane, Clock())
    for _ in range(recipe.total_steps()):
        exact.step(sample)


if __name__ == "__main__":
    run_main(main)
