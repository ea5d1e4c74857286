"""All cores against the Hugging Face Trainer and against a plain PyTorch loop.

Claim: at least 1.2 x the tokens a second of the Trainer with its own LlamaForCausalLM of the same
shape, and at least 1.0 x those of a plain loop over our own decoder. All train in fp32 on the
same batch (a grain is the Trainer's batch of a device, the grains of a step are its gradient
accumulation), with the same number of threads, on tokens that are ready in memory. Ours goes
through `atoll train`'s own session: island processes, ledger, digests, fingerprints. Start-up is
not counted.

The contenders are alive at once and compute in turn; a ratio is the median over the rounds.
The last column is processor time, which other work on the machine moves less; a thread that waits
for others in a loop counts as work there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from common import (
    QUICKSTART,
    TINY,
    WIDTH_384,
    Report,
    arguments,
    cores,
    data_of,
    fleet_file,
    median_ratio,
    model_of,
    recipe_of,
    run_main,
    sampler_of,
    scratch,
    shape_of,
    spread,
)
from contenders import Contender, Pace, PacedDisplay, Stopped, take_turns

from atoll.recipe import Recipe

ENDLESS = "schedule.steps=100000"
SHAPES: dict[str, tuple[Path, tuple[str, ...]]] = {
    "width-384": (QUICKSTART, (*WIDTH_384, "batch.sequences=32", "batch.grain=4")),
    "quickstart": (QUICKSTART, ()),
    "tiny": (TINY, ("batch.sequences=8")),
}
STEPS = {"width-384": 2, "quickstart": 12, "tiny": 3}
BATCHES_IN_MEMORY = 64


def recipe_for(shape: str) -> Recipe:
    """The recipe of a shape; long enough to be stopped, with no checkpoint and no validation."""
    path, overrides = SHAPES[shape]
    quiet = ("run.checkpoint_every=100000", "run.validate_every=100000", "schedule.warmup=5")
    return recipe_of(path, *overrides, ENDLESS, *quiet)


def main() -> None:
    """Parent: start the contenders and compare; child: be one of them."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--shape", choices=SHAPES, help="one shape only (all but tiny)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="counted steps of a round")
    parser.add_argument("--threads", type=int, default=cores(), help="cores to use (%(default)s)")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        try:
            CONTENDERS[options.contender](options, Pace())
        except Stopped:
            sys.exit(0)
    shapes = [options.shape] if options.shape else ["width-384", "quickstart"]
    if options.quick:
        shapes, options.rounds, options.steps = ["tiny"], 1, 2
    claim = "All cores against the Hugging Face Trainer and a plain PyTorch loop"
    report = Report(claim, quick=options.quick)
    for shape in shapes:
        compare(shape, options, report)
    report.show()


def compare(shape: str, options: argparse.Namespace, report: Report) -> None:
    """All contenders on one shape."""
    recipe = recipe_for(shape)
    data = data_of(recipe, options.cache)
    threads = options.threads
    names = {
        "own": "atoll, without a fleet file",
        "lanes": f"atoll, 1 island of {threads} lanes",
        "trainer": f"transformers Trainer, {threads} threads",
        "plain": f"plain loop over our decoder, {threads} threads",
    }
    given = ["--shape", shape, "--threads", str(threads), "--cache", str(options.cache)]
    contenders = {
        key: Contender(name, ["--contender", key, *given], tokens_per_step=recipe.tokens_per_step)
        for key, name in names.items()
    }
    steps = options.steps or STEPS[shape]
    take_turns(list(contenders.values()), num_rounds=options.rounds, num_steps=steps)
    rates = {key: contender.rates for key, contender in contenders.items()}
    rows = []
    for key, contender in contenders.items():
        ratio = f"{median_ratio(rates['own'], rates[key]):.2f}"
        work = f"{statistics.median(contender.core_seconds):.3f}"
        rows.append(
            [contender.name, f"{contender.rate:,.0f}", spread(contender.rates), ratio, work]
        )
    head = ["contender", "tokens/s (median)", "rounds", "ours, no fleet file / this"]
    head.append("core-seconds a 1,000 tokens")
    report.table(f"{shape}: {shape_of(recipe, data)}.", head, rows)
    for key, bound in (("trainer", 1.2), ("plain", 1.0)):
        value = median_ratio(rates["own"], rates[key])
        what = f"{shape}, against {contenders[key].name}:"
        report.check(what, value, bound, at_least=True, form=".2f")


# ---------------------------------------------------------------------- the contenders


def be_atoll(options: argparse.Namespace, pace: Pace) -> None:
    """Train through the real session until stopped."""
    from atoll.training import session

    island = {"name": "a", "chip": "cpu", "threads": 1, "lanes": options.threads}
    path, _ = SHAPES[options.shape]
    with scratch() as folder:
        session.train(
            str(path),
            display=PacedDisplay(pace),
            fleet=fleet_file(folder, "one", island) if options.contender == "lanes" else None,
            run=folder / "run",
            overrides=overrides_for(options.shape),
            cache=options.cache,
        )


def overrides_for(shape: str) -> list[str]:
    """The same overrides as `recipe_for`."""
    quiet = ["run.checkpoint_every=100000", "run.validate_every=100000", "schedule.warmup=5"]
    return [*SHAPES[shape][1], ENDLESS, *quiet]


def be_plain(options: argparse.Namespace, pace: Pace) -> None:
    """The loop that one would write by hand."""
    import torch
    from plain import PlainLoop

    torch.set_num_threads(options.threads)
    recipe = recipe_for(options.shape)
    data = data_of(recipe, options.cache)
    sampler = sampler_of(recipe, data)
    loop = PlainLoop(recipe, model_of(recipe, data))
    grains = [
        [sampler.grain(step, index) for index in range(recipe.num_grains)]
        for step in range(1, BATCHES_IN_MEMORY + 1)
    ]
    while True:
        loop.step(grains[loop.num_steps % BATCHES_IN_MEMORY])
        pace.step_done()


def be_trainer(options: argparse.Namespace, pace: Pace) -> None:
    """The Trainer as its users set it up for fp32 on a CPU; logging and saving are off."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(options.threads)
    recipe = recipe_for(options.shape)
    data = data_of(recipe, options.cache)
    sampler, model = sampler_of(recipe, data), model_of(recipe, data)
    rows = [
        torch.from_numpy(row[:-1].copy())
        for step in range(1, BATCHES_IN_MEMORY + 1)
        for index in range(recipe.num_grains)
        for row in sampler.grain(step, index)
    ]
    # Its loss shifts the labels itself: the last position of a sequence is computed, not learned.
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    config = LlamaConfig(
        vocab_size=model.resolved_vocab,
        hidden_size=model.width,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.resolved_kv_heads,
        head_dim=model.resolved_head_dim,
        max_position_embeddings=model.context,
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.tied,
        use_cache=False,
    )

    class Wait(TrainerCallback):
        def on_step_end(self, *_args: object, **_kwargs: object) -> None:
            pace.step_done()

    spec = recipe.optimizer
    with scratch() as folder:
        Trainer(
            model=LlamaForCausalLM(config),
            args=TrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=recipe.batch.grain,
                gradient_accumulation_steps=recipe.num_grains,
                max_steps=100_000,
                learning_rate=spec.lr,
                weight_decay=spec.weight_decay,
                adam_beta1=spec.beta1,
                adam_beta2=spec.beta2,
                max_grad_norm=spec.clip,
                use_cpu=True,
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            callbacks=[Wait()],
        ).train()


CONTENDERS = {"own": be_atoll, "lanes": be_atoll, "trainer": be_trainer, "plain": be_plain}

if __name__ == "__main__":
    run_main(main)
