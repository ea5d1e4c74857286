"""torchtitan and what plugs into it: a configuration file, a module of shapes, a launch script.

torchtitan picks a model by a name and a flavor, so the shapes go into a small module that it is
told to import. Which of its own model families can hold a recipe's shapes is decided here.
"""

from __future__ import annotations

import json

from atoll.errors import InputError
from atoll.plan import Plan
from atoll.planning.emit.part import Part, islands_for, part_of
from atoll.planning.emit.script import script
from atoll.planning.emit.text import header, toml
from atoll.recipe import Recipe

DATA = "a folder or name that datasets.load_dataset reads, with a column text and a split train"
NO_CLIPPING = float("inf")

Tables = dict[str, dict[str, object]]


def files(plan: Plan, tool: str, name: str | None) -> dict[str, str]:
    """Three files for the island of a name, else for each that the tool runs on."""
    alone = name is not None or len(plan.islands) == 1
    out = {}
    for island in islands_for(plan, tool, name):
        texts = texts_of(part_of(plan, tool, island))
        out.update({k if alone else f"{island.name}/{k}": text for k, text in texts.items()})
    return out


def texts_of(part: Part) -> dict[str, str]:
    """The files of one island. InputError for what torchtitan cannot express."""
    family = family_of(part)
    _check(part, family)
    tables = configuration(part, family)
    for table, keys in tables.items():
        for key in keys:
            assert part.fact.knows(f"{table}.{key}"), f"{part.fact.version} has no {table}.{key}"
    lines = [f"{part.title()}.", f"For {part.fact.version}; run.sh starts it.", *part.notes]
    lines += _remarks(part)
    return {
        "train.toml": header(part.tool, lines) + "\n" + toml(tables),
        "atoll_shapes.py": _shapes(part, family),
        "run.sh": script(
            part,
            needed={"DATA": DATA},
            environment={**part.fact.environment, "PYTHONPATH": '"$here:${PYTHONPATH:-}"'},
            command=["-m", part.fact.entry, "--job.config_file", '"$here/train.toml"'],
            arguments=[("FILES", _paths())],
        ),
    }


def _paths() -> list[str]:
    """The paths that a person sets, as arguments that win over the file."""
    return [
        '--training.dataset_path "$DATA"',
        '--model.hf_assets_path "$TOKENIZER"',
        '--job.dump_folder "$CHECKPOINTS"',
    ]


def family_of(part: Part) -> str:
    """The family of models of torchtitan that holds the recipe's shapes. InputError if none."""
    model = part.model
    if not model.gated:
        why = "every feed-forward of torchtitan is gated"
        part.require(False, "model.gated", why, value=False)
    if model.mla is not None:
        part.require(not model.tied, "model.tied", "its deepseek_v3 has a head of its own")
        part.require(model.moe_every == 1, "model.moe_every", "its experts are in every layer")
        return "deepseek_v3"
    if model.experts is not None:
        why = "its qwen3 has experts in every layer"
        part.require(model.num_dense_layers == 0, "model.dense_layers", why)
        return "qwen3"
    plain = model.resolved_head_dim * model.heads == model.width
    return "llama3" if plain and not model.tied and not model.qk_norm else "qwen3"


def _check(part: Part, family: str) -> None:
    """InputError for layouts that torchtitan does not have."""
    layout, recipe = part.layout, part.recipe
    if part.vocab is None:
        fix = "write model.vocab"
        message = "torchtitan needs the number of tokens"
        raise InputError(message, key="recipe.model.vocab", fix=fix)
    why = "FSDP2 shards weights, gradients and optimizer state together"
    fix = "zero = 2 keeps gathered weights for the backward pass, zero = 3 gathers them again"
    part.require(layout.zero != 1 or layout.dp == 1, "layout.zero", why, value=1, fix=fix)
    others = layout.tp * layout.pp * layout.cp
    why = "without sharded state torchtitan replicates over lanes of one device only"
    fits = layout.zero > 0 or layout.dp == 1 or others == 1
    part.require(fits, "layout.zero", why, value=layout.zero, fix="zero = 2 or 3")
    fits = layout.pp == 1 or family != "qwen3"
    why = "its qwen3, the only family with these shapes, has no pipeline stages"
    part.require(fits, "layout.pp", why, value=layout.pp, fix="pp = 1")
    why = "model chunks need pipeline stages"
    part.require(layout.vpp == 1 or layout.pp > 1, "layout.vpp", why, value=layout.vpp)
    mixed = recipe.precision.compute != "fp32"
    fits = not mixed or _shards(part) > 1 or layout.cp > 1 or layout.tp * layout.pp == 1
    why = "lower precision beside tp or pp comes with sharded state only, over 2 lanes or more"
    part.require(fits, "layout.dp", why, value=layout.dp, fix='dp = 2, zero = 2, or "fp32"')
    pieces = layout.tp * (2 * layout.cp if layout.cp > 1 else 1)
    why = f"tp x 2 cp = {pieces} does not divide model.context = {part.model.context}"
    part.require(part.model.context % pieces == 0, "layout.tp", why, value=layout.tp)
    rounds = max(1, part.microbatches // layout.pp)
    fits = layout.vpp == 1 or part.microbatches % rounds == 0
    why = f"Interleaved1F1B wants {part.microbatches} micro-batches in {rounds} equal rounds"
    part.require(fits, "layout.vpp", why, value=layout.vpp, fix="vpp = 1")


def _shards(part: Part) -> int:
    """Lanes that share one copy of the state."""
    layout = part.layout
    return 1 if layout.zero == 0 else layout.shard or layout.dp


def _remarks(part: Part) -> list[str]:
    """What differs from the plan without being in the way."""
    out = ["Validation is off: torchtitan wants a data set of its own for it."]
    if part.layout.tp > 1 and not part.layout.sequence_parallel:
        out.append("torchtitan always splits the sequence beside tp; the plan did not ask for it.")
    if part.recipe.run.keep_last == 1:
        out.append("torchtitan keeps two checkpoints at least: the last may be half written.")
    if part.model.mla is not None:
        out.append("rope_factor = 1: positions are not stretched.")
    return out


def configuration(part: Part, family: str) -> Tables:
    """The tables of train.toml."""
    recipe = part.recipe
    optimizer, schedule, run = recipe.optimizer, recipe.schedule, recipe.run
    job: dict[str, object] = {"description": recipe.name}
    if words := part.fact.words("configuration"):
        job["custom_config_module"] = words[0]
    converters = _converters(part)
    fp8 = recipe.precision.compute == "fp8"
    return {
        "job": job,
        "experimental": {"custom_import": "atoll_shapes"},
        "model": {"name": family, "flavor": "atoll"}
        | ({"converters": converters} if converters else {}),
        "optimizer": {
            "name": "AdamW",
            "lr": optimizer.lr,
            "beta1": optimizer.beta1,
            "beta2": optimizer.beta2,
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
        },
        "lr_scheduler": {"warmup_steps": schedule.warmup} | _decay(recipe),
        "training": _training(part),
        "parallelism": _parallelism(part),
        "activation_checkpoint": {"mode": part.layout.recompute}
        | ({"selective_ac_option": "op"} if part.layout.recompute == "selective" else {}),
        "checkpoint": {
            "enable": True,
            "folder": "checkpoint",
            "interval": run.checkpoint_every,
            "keep_latest_k": max(2, run.keep_last),
        },
        "quantize.linear.float8": {"recipe_name": "rowwise", "filter_fqns": ["output"]}
        if fp8
        else {},
        "metrics": {"log_freq": 1},
        "debug": {"seed": part.seed},
    }


def _converters(part: Part) -> list[str]:
    """The tool's replacements of modules, from the facts."""
    words, model = part.fact.words, part.model
    out = words("converters")
    out += words("sparse") if model.experts is not None else []
    out += words("latent") if model.mla is not None else []
    return out + (words("fp8") if part.recipe.precision.compute == "fp8" else [])


def _decay(recipe: Recipe) -> dict[str, object]:
    """The keys of the schedule after the warmup."""
    schedule = recipe.schedule
    if schedule.kind == "constant":
        return {"decay_ratio": 0.0}
    return {"decay_type": schedule.kind, "min_lr_factor": schedule.floor}


def _training(part: Part) -> dict[str, object]:
    """Batch, length, precision. With stages, torchtitan's local batch is all of a lane's step."""
    recipe, layout = part.recipe, part.layout
    local = layout.microbatch * (part.microbatches if layout.pp > 1 else 1)
    fp32 = recipe.precision.compute == "fp32"
    return {
        "dataset": "atoll",
        "local_batch_size": local,
        "global_batch_size": part.sequences,
        "seq_len": part.model.context,
        "max_norm": recipe.optimizer.clip or NO_CLIPPING,
        "steps": recipe.total_steps(),
        "dtype": "float32",
        "mixed_precision_param": "float32" if fp32 else "bfloat16",
        "mixed_precision_reduce": "float32",
    }


def _parallelism(part: Part) -> dict[str, object]:
    """Degrees, and the modules of each stage where there are stages."""
    layout, shards = part.layout, _shards(part)
    out: dict[str, object] = {
        "data_parallel_replicate_degree": layout.dp // shards,
        "data_parallel_shard_degree": shards,
        "fsdp_reshard_after_forward": "always" if layout.zero == 3 else "never",
        "tensor_parallel_degree": layout.tp,
        "context_parallel_degree": layout.cp,
        "pipeline_parallel_degree": layout.pp,
    }
    if part.model.experts is not None:
        out |= {"expert_parallel_degree": layout.ep, "expert_tensor_parallel_degree": 1}
    if layout.pp > 1:
        out |= {
            "pipeline_parallel_schedule": "Interleaved1F1B" if layout.vpp > 1 else "1F1B",
            "pipeline_parallel_microbatch_size": layout.microbatch,
            "module_fqns_per_model_part": _modules(part),
        }
    return out


def _modules(part: Part) -> list[list[str]]:
    """The names of the modules of each model chunk."""
    out, first = [], 0
    for layers in part.chunks:
        out.append([f"layers.{layer}" for layer in range(first, first + layers)])
        first += layers
    out[0].insert(0, "tok_embeddings")
    out[-1] += ["norm", "output"]
    return out


def _shapes(part: Part, family: str) -> str:
    """The module that gives torchtitan the recipe's shapes and the data set."""
    arguments, extra = {"llama3": _llama, "qwen3": _qwen, "deepseek_v3": _deepseek}[family](part)
    table, kind = {
        "llama3": ("llama3_args", "TransformerModelArgs"),
        "qwen3": ("qwen3_args", "Qwen3ModelArgs"),
        "deepseek_v3": ("deepseekv3_args", "DeepSeekV3ModelArgs"),
    }[family]
    lines = [
        f"the shapes of {part.title()}, and its text.",
        "train.toml makes torchtitan import it.",
    ]
    imports = [
        "from datasets import load_dataset",
        "from torchtitan.hf_datasets import DatasetConfig",
        "from torchtitan.hf_datasets.text_datasets import DATASETS",
        f"from torchtitan.models.{family} import {table}",
        f"from torchtitan.models.{family}.model.args import {kind}",
    ]
    imports += ["from torchtitan.models.moe import MoEArgs"] if extra else []
    rows = [f"    {key}={_python(value)},\n" for key, value in arguments.items()]
    if extra:
        inner = "".join(f"        {key}={_python(value)},\n" for key, value in extra.items())
        rows.append(f"    moe_args=MoEArgs(\n{inner}    ),\n")
    return (
        header(part.tool, lines)
        + "\n"
        + "\n".join(imports)
        + f'\n\n{table}["atoll"] = {kind}(\n{"".join(rows)})\n\n'
        + 'DATASETS["atoll"] = DatasetConfig(\n    path="",\n'
        + '    loader=lambda path: load_dataset(path, split="train", streaming=True),\n'
        + '    sample_processor=lambda sample: sample["text"],\n)\n'
    )


def _python(value: object) -> str:
    """A number, truth value or text as Python, as ruff writes it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


Arguments = tuple[dict[str, object], dict[str, object]]


def _llama(part: Part) -> Arguments:
    """Llama 3's. Its hidden width is 8/3 of the width times a factor, rounded up: aim below ffn."""
    model = part.model
    factor = model.ffn / (2 * (8 * model.width // 3))
    return {
        "dim": model.width,
        "n_layers": model.layers,
        "n_heads": model.heads,
        "n_kv_heads": model.resolved_kv_heads,
        "vocab_size": part.vocab,
        "multiple_of": model.ffn,
        "ffn_dim_multiplier": factor,
        "norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "max_seq_len": model.context,
    }, {}


def _qwen(part: Part) -> Arguments:
    model = part.model
    out: dict[str, object] = {
        "dim": model.width,
        "n_layers": model.layers,
        "n_heads": model.heads,
        "n_kv_heads": model.resolved_kv_heads,
        "vocab_size": part.vocab,
        "head_dim": model.resolved_head_dim,
        "hidden_dim": model.ffn,
        "norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "qk_norm": model.qk_norm,
        "max_seq_len": model.context,
        "enable_weight_tying": model.tied,
    }
    if model.experts is None:
        return out, {}
    return out | {"moe_enabled": True, "moe_inter_dim": model.moe_ffn}, _experts(part, "softmax")


def _deepseek(part: Part) -> Arguments:
    model = part.model
    assert model.mla is not None
    sparse = model.experts is not None
    return {
        "dim": model.width,
        "n_layers": model.layers,
        "n_dense_layers": model.dense_layers if sparse else model.layers,
        "n_heads": model.heads,
        "vocab_size": part.vocab,
        "inter_dim": model.ffn,
        "moe_inter_dim": model.moe_ffn or model.ffn,
        "norm_eps": model.norm_eps,
        "q_lora_rank": model.mla.q_rank or 0,
        "kv_lora_rank": model.mla.kv_rank,
        "qk_nope_head_dim": model.mla.nope_dim,
        "qk_rope_head_dim": model.mla.rope_dim,
        "v_head_dim": model.mla.value_dim,
        "rope_theta": model.rope_base,
        "rope_factor": 1.0,
        "original_seq_len": model.context,
        "max_seq_len": model.context,
    }, (_experts(part, "sigmoid") if sparse else {})


def _experts(part: Part, score: str) -> dict[str, object]:
    """A router that scores as the published models of its family do."""
    model = part.model
    return {
        "num_experts": model.experts,
        "num_shared_experts": model.shared_experts,
        "top_k": model.top_k,
        "score_func": score,
        "route_norm": True,
        "score_before_experts": False,
    }
