"""Flags of Megatron-LM and of what is built on it: a launch script for one island.

`flags_of` is shared with FlagScale, which writes the same names into a file. A flag is written only
if the tool's list of flags has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from atoll.errors import InputError
from atoll.model import Model
from atoll.plan import Layout, Plan
from atoll.planning.emit.part import Part, checked_words, islands_for, part_of
from atoll.planning.emit.script import script
from atoll.recipe import Recipe

Words = Iterator[tuple[str, object]]
"""Flags with a value; True for a flag without one, None or False for a flag left out."""

DATA = "the prefix of the .bin and .idx files that tools/preprocess_data.py wrote"


def files(plan: Plan, tool: str, name: str | None) -> dict[str, str]:
    """run.sh for the island of a name, else for each that the tool runs on, in its own folder."""
    chosen = islands_for(plan, tool, name)
    alone = name is not None or len(plan.islands) == 1
    return {
        "run.sh" if alone else f"{island.name}/run.sh": run_script(part_of(plan, tool, island))
        for island in chosen
    }


def run_script(part: Part) -> str:
    """The launch script of one island. InputError for what the tool cannot express."""
    check(part)
    words = part.fact.words
    sharded = part.layout.zero > 1
    groups = [
        ("LAYOUT", [*layout_flags(part)]),
        ("MODEL", [*model_flags(part.recipe, part.model, part.vocab, words("first_dense"))]),
        ("TRAINING", [*training_flags(part.recipe, part.sequences, part.layout)]),
        ("FILES", [*file_flags(part.recipe, part.sequences), *_tokenizer(words("tokenizer"))]),
        ("TOOL", [*_words(tool_words(part))]),
    ]
    code = part.tool.upper()
    where = f"a checkout of {part.fact.repository} at {part.fact.commit}"
    environment = part.fact.sharded_environment if sharded else {}
    return script(
        part,
        needed={code: where, "DATA": DATA},
        environment=environment or part.fact.environment,
        command=[part.fact.entry],
        arguments=[(name, _lines(part, flags)) for name, flags in groups],
        directory=f"${code}",
    )


def check(part: Part) -> None:
    """InputError for what Megatron-LM cannot express."""
    layout, model = part.layout, part.model
    own_fsdp = bool(part.fact.words("sharded"))
    why = f"{part.fact.version} shards gradients and weights by another path than this one"
    part.require(layout.zero < 2 or own_fsdp, "layout.zero", why, value=layout.zero, fix="zero = 1")
    why = "its own FSDP is not known to work with pipeline stages"
    fits = layout.zero < 2 or layout.pp == 1
    part.require(fits, "layout.zero", why, value=layout.zero, fix="zero = 1, or pp = 1")
    why = "experts with tensor parallelism train only with sequence_parallel"
    fits = model.experts is None or layout.tp == 1 or layout.sequence_parallel
    part.require(fits, "layout.sequence_parallel", why, value=False, fix="write it as true")
    why = "model chunks need pipeline stages"
    part.require(layout.vpp == 1 or layout.pp > 1, "layout.vpp", why, value=layout.vpp)
    why = f"interleaved stages want micro-batches in turns of pp = {layout.pp}"
    fits = layout.vpp == 1 or part.microbatches % layout.pp == 0
    part.require(fits, "layout.vpp", why, value=layout.vpp, fix="vpp = 1")
    if not part.even and "--num-layer-list" in part.fact.words("uneven"):
        why = "an uneven split of layers excludes model chunks here"
        part.require(layout.vpp == 1, "layout.vpp", why, value=layout.vpp, fix="vpp = 1")
    if part.fact.words("first_dense"):
        why = "sparse layers follow one another after the dense ones"
        part.require(model.moe_every == 1, "model.moe_every", why, value=model.moe_every)
    check_model(model)
    compute = part.recipe.precision.compute
    fits = compute != "fp16" or layout.ep == 1
    part.require(fits, "layout.ep", "experts are not spread in fp16", value=layout.ep)


def check_model(model: Model) -> None:
    """InputError for what no flag of Megatron-LM can say."""
    if model.rope_base != int(model.rope_base):
        message = "feature rope_base: --rotary-base is a whole number"
        raise InputError(message, key="recipe.model.rope_base", value=model.rope_base)


def layout_flags(part: Part) -> Words:
    """Degrees, stages, recompute and state sharding."""
    layout, model = part.layout, part.model
    yield "--tensor-model-parallel-size", layout.tp
    yield "--pipeline-model-parallel-size", layout.pp
    yield "--context-parallel-size", layout.cp
    yield "--sequence-parallel", layout.sequence_parallel and layout.tp > 1
    if model.experts is not None:
        yield "--expert-model-parallel-size", layout.ep
        yield "--expert-tensor-parallel-size", 1
    if not part.even:
        (flag,) = part.fact.words("uneven")
        yield flag, stage_text(part) if flag.endswith("layout") else _joined(part.chunks)
    elif layout.vpp > 1:
        yield "--num-layers-per-virtual-pipeline-stage", part.chunks[0]
    yield from recompute_flags(layout)
    yield from sharding_flags(layout)


def stage_text(part: Part) -> str:
    """Stages in Megatron-LM's letters: E the embedding, t a layer, L the loss, | a border."""
    stages = [f"t*{layers}" for layers in part.chunks]
    return "'E" + "|".join(stages) + "L'"


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def recompute_flags(layout: Layout) -> Words:
    """What is computed again in the backward pass."""
    if layout.recompute == "full":
        yield "--recompute-granularity", "full"
        yield "--recompute-method", "uniform"
        yield "--recompute-num-layers", 1
    elif layout.recompute == "selective":
        yield "--recompute-granularity", "selective"


def sharding_flags(layout: Layout) -> Words:
    """How lanes share the state: 1 the optimizer's, 2 gradients too, 3 weights too."""
    yield "--use-distributed-optimizer", layout.zero >= 1
    if layout.zero >= 2:
        strategy = {2: "optim_grads", 3: "optim_grads_params"}[layout.zero]
        yield "--data-parallel-sharding-strategy", strategy
    if layout.zero and layout.shard is not None and layout.shard < layout.dp:
        yield "--num-distributed-optimizer-instances", layout.dp // layout.shard


def model_flags(recipe: Recipe, model: Model, vocab: int | None, first_dense: list[str]) -> Words:
    """Shapes, as of the recipe; a vocabulary only where the recipe tells it."""
    yield "--num-layers", model.layers
    yield "--hidden-size", model.width
    yield "--ffn-hidden-size", model.ffn
    yield "--num-attention-heads", model.heads
    if model.mla is None:
        yield "--kv-channels", model.resolved_head_dim
        grouped = model.resolved_kv_heads < model.heads
        yield "--group-query-attention", grouped
        yield "--num-query-groups", model.resolved_kv_heads if grouped else None
    else:
        yield from _latent_flags(model)
    yield "--qk-layernorm", model.qk_norm or model.mla is not None
    yield "--seq-length", model.context
    yield "--max-position-embeddings", model.context
    yield "--position-embedding-type", "rope"
    yield "--rotary-base", int(model.rope_base)
    yield "--normalization", "RMSNorm"
    yield "--norm-epsilon", model.norm_eps
    yield "--swiglu", model.gated
    yield "--disable-bias-linear", True
    yield "--untie-embeddings-and-output-weights", not model.tied
    yield "--attention-dropout", 0.0
    yield "--hidden-dropout", 0.0
    if model.experts is not None:
        yield from _expert_flags(recipe, model, first_dense)
    yield "--padded-vocab-size", vocab
    yield "--make-vocab-size-divisible-by", 1


def _latent_flags(model: Model) -> Words:
    assert model.mla is not None
    yield "--multi-latent-attention", True
    yield "--q-lora-rank", model.mla.q_rank
    yield "--kv-lora-rank", model.mla.kv_rank
    yield "--qk-head-dim", model.mla.nope_dim
    yield "--qk-pos-emb-head-dim", model.mla.rope_dim
    yield "--v-head-dim", model.mla.value_dim


def _expert_flags(recipe: Recipe, model: Model, first_dense: list[str]) -> Words:
    assert model.moe_ffn is not None
    yield "--num-experts", model.experts
    yield "--moe-router-topk", model.top_k
    yield "--moe-ffn-hidden-size", model.moe_ffn
    shared = model.shared_experts * model.moe_ffn
    yield "--moe-shared-expert-intermediate-size", shared or None
    if first_dense:
        yield first_dense[0], model.dense_layers
        yield "--moe-layer-freq", 1
    else:
        yield "--moe-layer-freq", f"'{layer_pattern(model)}'"
    yield "--moe-grouped-gemm", recipe.precision.compute in ("bf16", "fp8")


def layer_pattern(model: Model) -> str:
    """Which layers are sparse, as the Python expression that --moe-layer-freq evaluates."""
    every, after = model.moe_every, model.layers - model.dense_layers
    turns, rest = divmod(after, every)
    one = "[1]" if every == 1 else f"([0]*{every - 1}+[1])"
    parts = [f"[0]*{model.dense_layers}"] if model.dense_layers else []
    parts += [f"{one}*{turns}"] + ([f"[0]*{rest}"] if rest else [])
    return "(" + "+".join(parts) + ")"


def training_flags(recipe: Recipe, sequences: int, layout: Layout) -> Words:
    """Batch, optimizer, schedule, number format, seed."""
    optimizer, schedule = recipe.optimizer, recipe.schedule
    yield "--micro-batch-size", layout.microbatch
    yield "--global-batch-size", sequences
    yield "--train-iters", recipe.total_steps()
    yield "--lr", optimizer.lr
    yield "--lr-decay-style", schedule.kind
    floor = float(f"{optimizer.lr * schedule.floor:.12g}")
    yield "--min-lr", floor if schedule.kind != "constant" else None
    yield "--lr-warmup-iters", schedule.warmup
    yield "--adam-beta1", optimizer.beta1
    yield "--adam-beta2", optimizer.beta2
    yield "--adam-eps", optimizer.eps
    yield "--weight-decay", optimizer.weight_decay
    yield "--clip-grad", optimizer.clip
    compute = recipe.precision.compute
    yield "--bf16", compute in ("bf16", "fp8")
    yield "--fp16", compute == "fp16"
    if compute == "fp8":
        yield "--fp8-format", "hybrid"
    yield "--seed", recipe.seed % 2**31


def file_flags(recipe: Recipe, sequences: int) -> Words:
    """Data, checkpoints, and how often to validate; the paths are shell variables."""
    held_out, run = recipe.data.validation, recipe.run
    yield "--data-path", '"$DATA"'
    yield "--split", f"{1 - held_out:g},{held_out:g},0"
    yield "--save", '"$CHECKPOINTS"'
    yield "--load", '"$CHECKPOINTS"'
    yield "--save-interval", run.checkpoint_every
    yield "--log-interval", 1
    yield "--eval-interval", run.validate_every
    yield "--eval-iters", eval_steps(recipe, sequences)


def eval_steps(recipe: Recipe, sequences: int) -> int:
    """Global batches of a validation; "all sequences" becomes one batch, the least there is."""
    if recipe.data.validation == 0:
        return 0
    return max(1, math.ceil(recipe.run.validation_sequences / sequences))


def tool_words(part: Part) -> list[str]:
    """What the tool itself wants in this island's situation, from the facts."""
    layout, model, words = part.layout, part.model, part.fact.words
    out = words("all")
    out += words("gated") if model.gated else []
    out += words("context") if layout.cp > 1 else []
    out += words("sparse") if model.experts is not None else []
    out += words("latent") if model.mla is not None else []
    out += words("normed") if model.qk_norm else []
    out += words("sharded") if layout.zero >= 2 else []
    return out


def _tokenizer(words: list[str]) -> Words:
    kind, where = words
    flag, value = kind.split()
    yield flag, value
    yield where, '"$TOKENIZER"'


def _words(words: list[str]) -> Words:
    """ "--a b" -> ("--a", "b"); a flag alone stands for itself."""
    for text in words:
        flag, _, value = text.partition(" ")
        yield flag, value or True


def _lines(part: Part, words: list[tuple[str, object]]) -> list[str]:
    """A line for each flag."""
    return [f"{flag} {value}".rstrip() for flag, value in checked_words(part.fact, words)]
