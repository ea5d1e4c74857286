"""Plans whose launch files are kept as golden files in tests/golden/emit, and how to write them."""

import shutil
from pathlib import Path
from typing import Any

from atoll.plan import Plan
from atoll.planning.emit import emit

GOLDEN = Path(__file__).parents[1] / "golden" / "emit"


def recipe(name: str, model: dict[str, Any], sequences: int, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": name,
        "seed": 7,
        "model": model,
        "data": {"corpus": "text/**/*.parquet", "tokenizer": {"path": "tokenizer.json"}},
        "batch": {"sequences": sequences, "grain": 2},
        "optimizer": {"lr": 3e-4, "weight_decay": 0.1, "clip": 1.0},
        "schedule": {"steps": 1000, "warmup": 100, "kind": "cosine"},
        "precision": {"compute": "bf16"},
    }
    return {**plain, **changes}


LLAMA = {
    "layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336, "context": 8192,
    "tied": False, "rope_base": 500000.0, "vocab": 128256,
}  # fmt: skip
SPARSE = {
    "layers": 27, "width": 2048, "heads": 16, "ffn": 10944, "context": 4096, "tied": False,
    "norm_eps": 1e-6, "vocab": 102400, "experts": 64, "top_k": 6, "shared_experts": 2,
    "moe_ffn": 1408, "dense_layers": 1,
    "mla": {"q_rank": 1536, "kv_rank": 512, "rope_dim": 64, "nope_dim": 128, "value_dim": 128},
}  # fmt: skip
QWEN = {
    "layers": 28, "width": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "ffn": 3072,
    "context": 4096, "tied": True, "qk_norm": True, "norm_eps": 1e-6, "rope_base": 1000000.0,
    "vocab": 151936,
}  # fmt: skip


def island(name: str, chip: str, devices: int, **keys: Any) -> dict[str, Any]:
    stages, share, pipeline = (keys.pop(key, None) for key in ("stages", "share", "pipeline"))
    plain = {"name": name, "chip": chip, "devices": devices, "layout": keys}
    given = {"stages": stages, "share": share, "pipeline": pipeline}
    return {**plain, **{key: value for key, value in given.items() if value is not None}}


def plan(recipe_: dict[str, Any], *islands: dict[str, Any]) -> Plan:
    return Plan.from_dict({"recipe": recipe_, "islands": list(islands)})


def dense(chip: str, **keys: Any) -> Plan:
    """Llama 3 8B on 8 nodes of 8."""
    layout = {"dp": 4, "tp": 8, "pp": 2, "zero": 1, "sequence_parallel": True, **keys}
    return plan(recipe("dense", LLAMA, 256), island("a", chip, 64, **layout))


def sparse(chip: str, **keys: Any) -> Plan:
    """A 16 B model of experts with latent attention on 2 nodes of 8."""
    layout = {"dp": 16, "ep": 8, "zero": 1, "recompute": "full", **keys}
    return plan(recipe("sparse", SPARSE, 512), island("a", chip, 16, **layout))


def chain() -> Plan:
    """One lane over two makes, with stages of unlike length."""
    first = island(
        "east", "h800", 32, dp=4, tp=4, pp=2, zero=1, sequence_parallel=True, recompute="full",
        stages=[[0, 10], [11, 20]], share=128.0, pipeline=0,
    )  # fmt: skip
    second = island(
        "west", "ascend-910b2", 32, dp=4, tp=8, zero=1, sequence_parallel=True,
        stages=[[21, 31]], share=0.0, pipeline=0,
    )  # fmt: skip
    return plan(recipe("chain", LLAMA, 256), first, second)


def pair() -> Plan:
    """Two makes that each hold the whole model."""
    first = island("a", "h800", 16, dp=16, zero=3, share=3.0)
    second = island("b", "ascend-910b2", 8, dp=8, zero=3, share=1.0)
    return plan(recipe("pair", QWEN, 256), first, second)


CASES: dict[str, tuple[Plan, list[str]]] = {
    "dense": (dense("h800"), ["megatron"]),
    "dense-stages": (
        dense("h800", stages=[[0, 16], [17, 31]], recompute="selective"),
        ["megatron", "flagscale"],
    ),
    "dense-fsdp": (
        dense("h100-sxm-80gb", zero=2, vpp=2, recompute="selective"),
        ["torchtitan", "skypilot"],
    ),
    "dense-other-make": (dense("ascend-910b2", stages=[[0, 16], [17, 31]]), ["mindspeed"]),
    "sparse": (sparse("h20"), ["megatron", "flagscale", "skypilot"]),
    "sparse-fsdp": (sparse("h200", zero=3), ["torchtitan"]),
    "sparse-other-make": (sparse("ascend-910b2"), ["mindspeed"]),
    "sparse-fsdp-other-make": (sparse("ascend-910b2", zero=3), ["torchtitan-npu"]),
    "chain": (chain(), ["flagscale"]),
    "pair": (pair(), ["torchtitan", "torchtitan-npu"]),
}
"""A plan by name, and the tools whose files of it are kept."""

PAIRS = [(case, tool) for case, (_, tools) in CASES.items() for tool in tools]


def update() -> None:
    """Writes all golden files anew."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for case, tool in PAIRS:
        emit(CASES[case][0], tool, GOLDEN / case / tool)
