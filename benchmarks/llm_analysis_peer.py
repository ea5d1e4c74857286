"""The planner llm-analysis (cli99, package index 0.2.2) on our rows, in an interpreter of its own.

Its step is FLOP by a given efficiency: no bubble and no exchange of gradients.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from atoll.planning.calibration import Known

PROGRAM = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from llm_analysis.analysis import LLMAnalysis, ActivationRecomputation as R, DSZeRO
from llm_analysis.config import GPUConfig, ModelConfig, ParallelismConfig, get_gpu_config_by_name
out = []
for row in json.load(sys.stdin):
    try:
        model = ModelConfig(name="m", num_layers=row["layers"], n_head=row["heads"],
            hidden_dim=row["width"], vocab_size=row["vocab"], max_seq_len=row["sequence"],
            num_key_value_heads=row["kv_heads"], ffn_embed_dim=row["ffn"],
            expansion_ratio=row["ffn"] / row["width"])
        layout = ParallelismConfig(tp_size=row["tp"], pp_size=row["pp"], dp_size=row["dp"],
            sp_size=row["tp"] if row["sp"] else 1)
        analysis = LLMAnalysis(model, get_gpu_config_by_name(row["gpu"]), parallelism_config=layout)
        found = analysis.training(batch_size_per_gpu=row["mb"],
            gradient_accumulation_steps=row["steps"],
            global_batch_size=row["mb"] * row["steps"] * row["dp"], seq_len=row["sequence"],
            activation_recomputation={"none": R.NONE, "selective": R.SELECTIVE, "full": R.FULL}[
                row["recompute"]],
            ds_zero=DSZeRO(row["zero"]), flash_attn=row["flash"],
            mlp_gated_linear_units=row["gated"])
        out.append(found["latency_per_iter"])
    except Exception as error:
        out.append(str(error)[:80])
print(json.dumps(out))
"""
"""Runs in the peer's own environment: rows in, seconds or a reason out."""

CHIPS = ("a100-sxm-80gb", "a100-sxm-40gb", "h100-sxm-80gb", "v100-sxm2-16gb")


def knows(run: Known) -> bool:
    """Dense 16-bit runs on the chips that it has a file for, without context parallelism."""
    case = run.case
    plain = not case.work.shape.experts and case.work.precision in ("bf16", "fp16")
    return plain and case.machine.chip in CHIPS and case.layout.cp == 1


def row_of(run: Known) -> dict[str, object]:
    """A run in the peer's words."""
    case, shape, layout = run.case, run.case.work.shape, run.case.layout
    return {
        "layers": shape.layers, "heads": shape.heads, "width": shape.width, "vocab": shape.vocab,
        "kv_heads": max(1, round(shape.kv / (shape.query / shape.heads))), "ffn": shape.ffn,
        "sequence": case.work.sequence, "gpu": case.machine.chip.replace("sxm2", "sxm"),
        "tp": layout.tp, "pp": layout.pp, "dp": layout.dp, "sp": layout.sequence_parallel,
        "mb": layout.microbatch, "steps": case.microbatches, "recompute": layout.recompute,
        "zero": layout.zero, "flash": case.work.software.flash, "gated": shape.matrices == 3,
    }  # fmt: skip


def seconds_of(rows: list[dict[str, object]], *, python: Path) -> list[float | str]:
    """Seconds of a step for each row, or why it gave none."""
    done = subprocess.run(
        [python, "-c", PROGRAM],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        check=True,
    )
    answers: list[float | str] = json.loads(done.stdout.splitlines()[-1])
    return answers
