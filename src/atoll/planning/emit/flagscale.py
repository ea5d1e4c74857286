"""FlagScale: its two files for a fleet of unlike chips, a hostfile, and a script.

Its unlike meshes follow one another along the pipeline: each is an island with its own degrees and
its own stages. So it takes one island alone, or the islands that hold one lane together; islands
that each hold all layers it cannot join.
"""

from __future__ import annotations

from collections.abc import Mapping

from atoll import facts
from atoll.errors import InputError
from atoll.facts.engines import Tool, tools
from atoll.plan import Plan, PlanIsland
from atoll.planning.emit import megatron
from atoll.planning.emit.part import (
    ROUTER,
    check_format,
    check_make,
    check_shapes,
    chunks_of,
    plan_chain,
    processes,
    refuse_unless,
    vocab_of,
)
from atoll.planning.emit.script import NEEDED, ask
from atoll.planning.emit.text import header, yaml
from atoll.recipe import Recipe

NO_RECOMPUTE, RECOMPUTE = 0, 1


def files(plan: Plan, tool: str, name: str | None) -> dict[str, str]:
    """All files of the fleet. InputError for what FlagScale cannot express."""
    fact, recipe = tools()[tool], plan.read_recipe()
    first = plan.islands[0] if name is None else next(i for i in plan.islands if i.name == name)
    chain = list(plan_chain(plan, first))
    _check_whole(plan, chain, name)
    check_format(fact, recipe)
    for island in chain:
        _check_island(plan, fact, recipe, island)
    _check_together(plan, recipe, chain)
    lines = [
        f'the fleet of "{recipe.name}": {", ".join(island.name for island in chain)}.',
        f"For {fact.version}. run.sh starts it, on the first node of the hostfile.",
        "Meshes stand in the order of their pipeline stages; so do the nodes of the hostfile.",
        *(note for island in chain for note in processes(island)[2]),
        *([ROUTER] if recipe.model.experts is not None else []),
    ]
    return {
        "conf/train.yaml": header(tool, lines) + yaml(_experiment(fact, recipe)),
        "conf/train/fleet.yaml": header(tool, lines) + yaml(_train(fact, recipe, chain)),
        "hostfile": header(tool, [*lines, "Write addresses for the words ADDRESS-..."])
        + "".join(_hosts(island) for island in chain),
        "run.sh": _script(tool, fact, lines),
    }


def _check_whole(plan: Plan, chain: list[PlanIsland], name: str | None) -> None:
    """InputError for islands that each hold all layers."""
    if name is None and len(chain) < len(plan.islands):
        other = next(one for one in plan.islands if one not in chain)
        index = plan.islands.index(other)
        why = (
            f"FlagScale's meshes follow one another along the pipeline, and {other.name} holds "
            f"layers that {chain[0].name} holds too"
        )
        fix = "--island NAME launches one alone; atoll train adds up gradients of several"
        refuse_unless(False, index, "pipeline", why, value=other.pipeline, fix=fix)


def _check_island(plan: Plan, fact: Tool, recipe: Recipe, island: PlanIsland) -> None:
    """InputError for one island's make, degrees and sharding."""
    index, layout = plan.islands.index(island), island.layout

    def require(fits: bool, key: str, why: str, **rest: object) -> None:
        refuse_unless(fits, index, key, why, value=rest.get("value"))

    check_make(fact, index, island)
    check_shapes(require, layout, recipe.model)
    why = "FlagScale's unlike meshes exclude model chunks"
    require(layout.vpp == 1, "layout.vpp", why, value=layout.vpp)
    why = "its meshes share the optimizer's state alone"
    require(layout.zero < 2, "layout.zero", why, value=layout.zero)
    why = "its meshes know one copy of the state, shared by all lanes"
    require(layout.shard in (None, layout.dp), "layout.shard", why, value=layout.shard)
    why = "experts with tensor parallelism train only with sequence_parallel"
    fits = recipe.model.experts is None or layout.tp == 1 or layout.sequence_parallel
    require(fits, "layout.sequence_parallel", why, value=False)
    why = f"there are {layout.pp} pipeline devices"
    fits = not island.stages or len(island.stages) == layout.pp
    require(fits, "stages", why, value=island.stages)


def _check_together(plan: Plan, recipe: Recipe, chain: list[PlanIsland]) -> None:
    """InputError for what must be alike over the meshes (arguments_fs.py, pre_validate_args)."""
    first, model = chain[0].layout, recipe.model
    sequences = first.dp * first.microbatch
    for island in chain:
        index, layout = plan.islands.index(island), island.layout
        for key in ("cp", "zero", "sequence_parallel"):
            value = getattr(layout, key)
            if key == "sequence_parallel" and layout.tp == 1:
                continue
            why = f"must be as in {chain[0].name}"
            refuse_unless(value == getattr(first, key), index, f"layout.{key}", why, value=value)
        why = f"dp x microbatch must be {sequences} as in {chain[0].name}"
        fits = layout.dp * layout.microbatch == sequences
        refuse_unless(fits, index, "layout.microbatch", why, value=layout.microbatch)
        fits = (layout.ep == 1) == (first.ep == 1)
        refuse_unless(fits, index, "layout.ep", "is 1 in all meshes or in none", value=layout.ep)
    fits = not model.tied or chain[-1].layout.tp == first.tp
    why = "a tied head wants the same tp in the first and the last mesh"
    last = plan.islands.index(chain[-1])
    refuse_unless(fits, last, "layout.tp", why, value=chain[-1].layout.tp)
    if recipe.batch.sequences % sequences:
        message = f"is not a multiple of dp x microbatch = {sequences}"
        key = "recipe.batch.sequences"
        raise InputError(message, key=key, value=recipe.batch.sequences)
    split = _split(recipe, chain)
    if sum(split) != model.layers:
        message = f"the stages of all meshes hold {sum(split)} of {model.layers} layers"
        raise InputError(message, key="islands.stages", value=split)
    kinds = {island.layout.recompute for island in chain}
    fits = len(kinds) == 1 or "selective" not in kinds
    why = "meshes may differ in full recompute only"
    refuse_unless(fits, last, "layout.recompute", why, value=chain[-1].layout.recompute)
    megatron.check_model(model)


def _split(recipe: Recipe, chain: list[PlanIsland]) -> list[int]:
    """Layers of each pipeline stage, over all meshes."""
    if len(chain) == 1:
        return list(chunks_of(chain[0], recipe.model.layers))
    return [last - first + 1 for island in chain for first, last in island.stages]


def _experiment(fact: Tool, recipe: Recipe) -> Mapping[str, object]:
    """conf/train.yaml: how FlagScale starts."""
    return {
        "defaults": [{"train": "fleet"}, "_self_"],
        "experiment": {
            "exp_name": recipe.name,
            "exp_dir": "${oc.env:CHECKPOINTS}",
            "task": {"type": "train", "backend": "megatron", "entrypoint": fact.entry},
            "runner": {
                "per_node_task": False,
                "no_shared_fs": False,
                "rdzv_backend": "static",
                "hostfile": "${oc.env:HOSTFILE}",
            },
            "cmds": {"before_start": "ulimit -n 1048576"},
            "envs": dict(fact.environment),
        },
        "action": "run",
        "hydra": {"run": {"dir": "${experiment.exp_dir}/hydra"}},
    }


def _train(fact: Tool, recipe: Recipe, chain: list[PlanIsland]) -> Mapping[str, object]:
    """conf/train/fleet.yaml: layout, shapes, training."""
    model, first = recipe.model, chain[0].layout
    shapes = dict(megatron.model_flags(recipe, model, vocab_of(recipe), []))
    training = dict(megatron.training_flags(recipe, recipe.batch.sequences, first))
    files_ = dict(megatron.file_flags(recipe, recipe.batch.sequences))
    numbers = {key: training.pop(key, None) for key in ("--bf16", "--fp16")}
    linear = {key: shapes.pop(key, None) for key in ("--disable-bias-linear", "--qk-layernorm")}
    tokens = {
        key: shapes.pop(key, None)
        for key in ("--padded-vocab-size", "--make-vocab-size-divisible-by")
    }
    latent = {"--rope-type": "rope"} if model.mla is not None else {}
    sparse = {"--moe-token-dispatcher-type": "alltoall"} if model.experts is not None else {}
    return {
        "system": {
            **_keys(fact, _degrees(fact, chain)),
            **_keys(fact, linear),
            "precision": _keys(fact, numbers),
            "logging": _keys(fact, {"--log-interval": 1}),
            "checkpoint": _keys(
                fact, {"--save-interval": files_["--save-interval"], "--ckpt-format": "torch"}
            ),
            "recompute": _recompute(fact, recipe, chain),
            "hetero": _hetero(fact, recipe, chain),
        },
        "model": _keys(
            fact,
            {
                **shapes,
                **latent,
                **sparse,
                **training,
                "--eval-interval": files_["--eval-interval"],
                "--eval-iters": files_["--eval-iters"],
            },
        ),
        "data": {
            **_keys(fact, {"--data-path": "${oc.env:DATA}", "--split": files_["--split"]}),
            "tokenizer": _keys(
                fact,
                {
                    "--tokenizer-type": "HuggingFaceTokenizer",
                    "--tokenizer-model": "${oc.env:TOKENIZER}",
                    **tokens,
                },
            ),
        },
    }


def _keys(fact: Tool, flags: Mapping[str, object]) -> dict[str, object]:
    """Flags as keys; what is off or unset is left out. An unknown key is a bug of ours."""
    out = {}
    for flag, value in flags.items():
        key = flag.removeprefix("--").replace("-", "_")
        if value is None or value is False:
            continue
        assert fact.knows(key), f"{fact.version} has no {key}"
        out[key] = value.strip("'") if isinstance(value, str) else value
    return out


def _degrees(fact: Tool, chain: list[PlanIsland]) -> dict[str, object]:
    """The degrees that FlagScale wants outside the meshes: the first mesh's, and all stages."""
    first = chain[0].layout
    makes = {facts.chip(island.chip).backend for island in chain}
    mixed = len({island.chip for island in chain}) > 1 and not _over_hosts(fact, chain)
    return {
        "--tensor-model-parallel-size": first.tp,
        "--pipeline-model-parallel-size": sum(island.layout.pp for island in chain),
        "--context-parallel-size": first.cp,
        "--expert-model-parallel-size": first.ep,
        "--sequence-parallel": any(one.layout.sequence_parallel for one in chain),
        "--use-distributed-optimizer": first.zero == 1,
        "--distributed-backend": fact.words("mixed")[0] if mixed and len(makes) > 1 else None,
    }


def _over_hosts(fact: Tool, chain: list[PlanIsland]) -> bool:
    """Whether unlike makes must exchange through their hosts."""
    makes = {facts.chip(island.chip).backend for island in chain}
    return len(makes) > 1 and bool(makes & set(fact.words("host_communication")))


def _hetero(fact: Tool, recipe: Recipe, chain: list[PlanIsland]) -> dict[str, object]:
    """The table of meshes: tp, cp, ep, dp, pp of each, then its chips."""
    meshes: list[int] = []
    for island in chain:
        layout = island.layout
        meshes += [layout.tp, layout.cp, layout.ep, layout.dp, layout.pp]
    return _keys(
        fact,
        {
            "--enable-hetero": True,
            "--hetero-use-cpu-communication": _over_hosts(fact, chain),
            "--hetero-pipeline-layer-split": _split(recipe, chain),
            "--hetero-process-meshes": meshes,
            "--expert-tensor-parallel-size-per-process-mesh": [1] * len(chain)
            if recipe.model.experts is not None
            else None,
            "--use-partial-reduce-for-shared-embedding": recipe.model.tied and len(chain) > 1,
            "--hetero-device-types": [island.chip for island in chain],
            "--hetero-current-device-type": chain[0].chip,
        },
    )


def _recompute(fact: Tool, recipe: Recipe, chain: list[PlanIsland]) -> dict[str, object]:
    """One answer for all meshes, or a list with one for each."""
    kinds = [island.layout.recompute for island in chain]
    if len(set(kinds)) == 1:
        return _keys(fact, dict(megatron.recompute_flags(chain[0].layout)))
    layout = chain[0].layout
    turns = recipe.batch.sequences // (layout.dp * layout.microbatch)
    suffix = "-per-stage-micro-batch"
    lists: dict[str, object] = {
        f"--recompute-granularity{suffix}": [
            f"[{one.layout.pp}, {turns}, {RECOMPUTE if kind == 'full' else NO_RECOMPUTE}]"
            for one, kind in zip(chain, kinds, strict=True)
        ],
        f"--recompute-method{suffix}": [f"[{one.layout.pp}, {turns}, 0]" for one in chain],
        f"--recompute-num-layers{suffix}": [f"[{one.layout.pp}, {turns}, 1]" for one in chain],
    }
    full = next(one.layout for one in chain if one.layout.recompute == "full")
    return _keys(fact, {**dict(megatron.recompute_flags(full)), **lists})


def _hosts(island: PlanIsland) -> str:
    """The island's lines of the hostfile."""
    nodes, per_node, _ = processes(island)
    return "".join(
        f"ADDRESS-OF-{island.name}-{node} slots={per_node} type={island.chip}\n"
        for node in range(nodes)
    )


def _script(tool: str, fact: Tool, lines: list[str]) -> str:
    """The script that hands the files to FlagScale's own launcher."""
    asked = {
        "FLAGSCALE": f"a checkout of {fact.repository} at {fact.commit}",
        "DATA": megatron.DATA,
        **NEEDED,
    }
    out = f"#!/usr/bin/env bash\n{header(tool, lines)}set -euo pipefail\n"
    out += 'here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)\n\n'
    out += "".join(ask(name, what) for name, what in asked.items())
    out += 'export DATA TOKENIZER CHECKPOINTS HOSTFILE="$here/hostfile"\n'
    out += "if grep -q '^ADDRESS-OF-' \"$HOSTFILE\"; then\n"
    out += '  echo "write the addresses of the nodes into $HOSTFILE" >&2\n  exit 2\nfi\n\n'
    out += 'cd "$FLAGSCALE"\nexec python run.py --config-path "$here/conf" --config-name train '
    return out + "action=run\n"
