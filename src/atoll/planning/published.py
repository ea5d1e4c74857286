"""Published runs: a table of measured training runs, and what the cost model makes of a row.

`read_runs` reads the table strictly; `Published.case` turns a row's configuration (never its
results) into a work, a layout, a machine and a number of micro-batches, or says why it cannot.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from atoll import facts, strict
from atoll.errors import InputError
from atoll.facts.measured import Measured
from atoll.facts.stacks import stack_of
from atoll.plan import Layout
from atoll.planning.machine import Machine, machine_of
from atoll.planning.memory import MemoryCoefficients, memory_use
from atoll.planning.work import Shape, Software, Work

REQUIRED = (
    "row_id", "source", "chip", "count", "framework", "model", "layers", "hidden", "heads", "ffn",
    "vocab", "seq_len", "gbs_seqs", "mbs", "TP", "PP", "DP", "recompute", "precision",
)  # fmt: skip
"""Columns without which a table of runs cannot be read."""

RESULTS = ("step_time_s", "derived_step_time_s", "tokens_s_chip", "derived_tokens_s_chip",
           "tokens_s_total")  # fmt: skip
"""Columns that hold a measured speed; a table needs one of them."""

WORST = 1e12


class Unusable(Exception):
    """A row that cannot be predicted; its text is the reason, short enough to count by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row as the cost model sees it."""

    work: Work
    layout: Layout
    machine: Machine
    microbatches: int
    sequences: float
    assumed: tuple[str, ...] = ()
    offloads: bool = False

    @property
    def held(self) -> Layout:
        """The layout as memory sees it: what went to the host is as good as computed again."""
        if self.offloads:
            return self.layout.model_copy(update={"recompute": "full"})
        return self.layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row of a table of published runs."""

    cells: Mapping[str, str] = field(repr=False)
    row_id: str
    source: str
    chip: str
    framework: str
    model: str
    tier: str
    completeness: str
    group: str
    sweep: str
    whole: bool = True

    def number(self, column: str) -> float | None:
        """A cell as a number, None where it is empty or text."""
        text = self.cells.get(column, "").strip()
        try:
            value = float(text)
        except ValueError:
            return None
        return value if -WORST < value < WORST * 1e6 else None

    def text(self, column: str) -> str:
        """A cell as text."""
        return self.cells.get(column, "").strip()

    def count(self, column: str, default: int) -> int:
        """A cell as a whole number of at least 1."""
        value = self.number(column)
        return default if value is None else max(1, round(value))

    def step_seconds(self, sequences: float) -> float | None:
        """The measured seconds of a step of `sequences` sequences, None where nothing tells."""
        direct = self.number("step_time_s") or self.number("derived_step_time_s")
        if direct and self.number("gbs_seqs"):
            return direct
        rate = self.number("tokens_s_chip") or self.number("derived_tokens_s_chip")
        chips, length = self.number("count"), self.number("seq_len")
        total = self.number("tokens_s_total") or (rate * chips if rate and chips else None)
        if total and length:
            return sequences * length / total
        return direct


def runs_folder() -> Path:
    """Where the published runs of the package lie."""
    return Path(str(resources.files("atoll.facts"))) / "runs"


def read_runs(path: Path | str) -> list[Published]:
    """The rows of a table of runs. InputError for a missing column, naming all that are missing.

    A row with another number of cells than the header is kept, and `case_of` refuses it.
    """
    lines = strict.read_text(path).splitlines()
    reader = csv.DictReader(lines)
    columns = list(reader.fieldnames or [])
    missing = [name for name in REQUIRED if name not in columns]
    if not columns or missing:
        fix = "columns that every table needs: " + ", ".join(REQUIRED)
        message = "columns are missing: " + ", ".join(missing)
        raise InputError(message, file=path, fix=fix)
    if not any(name in columns for name in RESULTS):
        message = "holds no measured speed: one of these columns is needed"
        raise InputError(message, file=path, fix=", ".join(RESULTS))
    rows = [_published(cells) for cells in reader]
    if not rows:
        raise InputError("holds no rows", file=path)
    return rows


def _published(raw: Mapping[str | None, Any]) -> Published:
    """A row of the reader: cells that are too many stand under None, missing ones are None."""
    cells = {name: text or "" for name, text in raw.items() if name is not None}
    source, chip, model = cells["source"], cells["chip"], cells["model"]
    return Published(
        cells=cells,
        whole=len(cells) == len(raw) and None not in raw.values(),
        row_id=cells["row_id"],
        source=source,
        chip=chip,
        framework=cells["framework"],
        model=model,
        tier=cells.get("tier") or "core",
        completeness=cells.get("completeness") or "A",
        group=cells.get("group_id") or f"{source}|{chip}|{model}",
        sweep=cells.get("sweep_id") or "",
    )


def case_of(row: Published, measured: Mapping[str, Measured] | None = None) -> Case:
    """What the cost model needs of a row's configuration. `Unusable` says why it cannot.

    A chip among `measured` is taken as measured, not as published.
    """
    if not row.whole:
        raise Unusable("another number of cells than the header")
    assumed: list[str] = []
    shape = _shape(row)
    chips = row.number("count")
    length = row.number("seq_len")
    if not chips:
        raise Unusable("no number of chips")
    if not length:
        raise Unusable("no sequence length")
    tp, pp, cp = (row.count(name, 1) for name in ("TP", "PP", "CP"))
    machine = _machine(row, measured or {})
    devices = int(chips)
    if tp * pp * cp > devices:
        raise Unusable("a layout larger than the machine")
    dp = max(1, devices // (tp * pp * cp))
    software = _software(row)
    zero, shard = _zero(row, dp * cp)
    sequences, microbatch, microbatches = _batch(row, dp, pp, int(length), zero, assumed)
    ep = min(row.count("EP", 1), max(1, shape.experts), dp * cp * tp) if shape.experts else 1
    layout = Layout(
        dp=dp,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=ep,
        vpp=row.count("VPP", 1) if pp > 1 else 1,
        microbatch=microbatch,
        zero=zero,
        shard=shard,
        sequence_parallel=tp > 1 and not row.text("seq_parallel").lower().startswith("no"),
        recompute=_recompute(row) or "none",
    )
    work = Work(
        shape=shape, sequence=int(length), precision=_precision(row), software=software,
        row_scaled="rowwise" in row.text("precision").lower(),
    )  # fmt: skip
    if _recompute(row) is None:
        assumed.append("recompute")
        layout = _least_recompute(work, layout, machine, microbatches)
    return Case(
        work=work,
        layout=layout,
        machine=machine,
        microbatches=microbatches,
        sequences=sequences,
        assumed=tuple(assumed),
        offloads="offload" in row.text("recompute").lower(),
    )


def _machine(row: Published, measured: Mapping[str, Measured]) -> Machine:
    """The chips by their name in the facts, with the network in the source's own words."""
    try:
        chip = facts.resolve_chip(row.chip)
    except InputError:
        raise Unusable("a chip that the facts do not have") from None
    node = row.count("chips_per_node", chip.node_chips or 8)
    wire = _network(row.text("inter_node_net"), node)
    if wire is None and chip.network is None:
        wire = ASSUMED_NETWORK
    try:
        return machine_of(
            chip, node_chips=node, network=wire, whole_chips=True, measured=measured.get(chip.name)
        )
    except InputError:
        raise Unusable("a chip without published speed or memory") from None


ASSUMED_NETWORK = 25e9
"""Bytes a second of a chip where neither the row nor the facts say; 200 Gb/s is the commonest."""


def _network(text: str, node_chips: int) -> float | None:
    """ "8x400G IB", "800 Gb/s per node", "400 Gb/s per GPU" -> bytes a second of one chip."""
    text = re.sub(r"(?i)omni-path |ib |edr ", "", text)
    many = re.search(r"(\d+)x\s?(\d+)\s?G", text)
    if many:
        return int(many[1]) * int(many[2]) * 1e9 / 8 / node_chips
    one = re.search(r"(\d+)\s?(?:Gb/s|Gbps|G)\b[^;,(]*?(?:per |/)([A-Za-z]+)", text)
    if not one:
        return None
    return int(one[1]) * 1e9 / 8 / (node_chips if one[2] == "node" else 1)


def _shape(row: Published) -> Shape:
    """The model's shape from its columns."""
    needed = {name: row.number(name) for name in ("layers", "hidden", "heads")}
    if not all(needed.values()):
        raise Unusable("no model shape")
    layers, width, heads = (int(value or 0) for value in needed.values())
    vocab = int(row.number("vocab") or 50304)
    kv_heads = int(row.number("kv_heads") or heads)
    head_dim = row.number("head_dim") or width / heads
    query = int(heads * head_dim)
    value = query
    kv = int(kv_heads * head_dim)
    attention = width * (2 * query + 2 * kv)
    experts = int(row.number("experts") or 0)
    top_k = int(row.number("topk") or 0)
    moe_ffn = int(row.number("moe_ffn") or 0) if experts else 0
    ffn = int(row.number("ffn") or moe_ffn or 4 * width)
    latent = _latent(width, heads, head_dim) if experts else None
    if latent is not None:
        attention, query, value, kv = latent
    text = row.text("shared_experts")
    total = (row.number("params_B") or 0.0) * 1e9
    base = {
        "layers": layers, "width": width, "query": query, "value": value, "heads": heads,
        "attention": attention, "kv": kv, "ffn": ffn, "vocab": vocab,
    }  # fmt: skip
    if min(base.values()) < 1:
        raise ValueError("no model has less than one of anything")
    every = 2 if "every 2nd" in text else 1
    sparse_kinds = [0]
    if experts and moe_ffn and top_k:
        sparse_kinds = [(layers - dense) // every for dense in (0, 1, 3) if dense < layers]
    tables = [
        Shape(
            **base, matrices=matrices, tied=tied, sparse_layers=sparse, experts=experts,
            top_k=top_k, shared=_shared(text) if experts else 0, moe_ffn=moe_ffn,
        )
        for sparse in sparse_kinds
        for matrices in (3, 2)
        for tied in (False, True)
    ]  # fmt: skip
    if not total:
        return tables[0]
    # Nobody prints whether a feed-forward is gated, the embeddings are tied, or the first layers
    # are dense: take what comes nearest to the published number of parameters.
    return min(tables, key=lambda shape: abs(shape.parameters - total))


def _latent(width: int, heads: int, head_dim: float) -> tuple[int, int, int, int] | None:
    """Latent attention (arXiv:2412.19437) where the width of a head gives it away.

    Heads of 192 are 128 numbers and 64 rotary ones; ranks 1536 and 512 as published for all models
    that have it.
    """
    if head_dim != 192:
        return None
    rank = 1536
    attention = width * rank + rank * heads * 192 + width * (512 + 64) + 512 * heads * 256
    attention += heads * 128 * width
    return attention, heads * 192, heads * 128, heads * 160


def _shared(text: str) -> int:
    """ "2x1536" -> the hidden width of all shared experts together."""
    found = re.match(r"(\d+)\s*x\s*(\d+)", text)
    return int(found[1]) * int(found[2]) if found else 0


def _software(row: Published) -> Software:
    """The stack's habits on the day of the row, from facts/software.toml and the row's notes."""
    notes = row.text("notes").lower()
    stack = stack_of(row.framework)
    year = _year(row.text("date")) or stack.year
    # Tables of one family note where matmuls and collectives were fused; others always do it.
    overlap_tp = stack.overlap_tp and ("modellink" not in stack.family or "mc2" in notes)
    return Software(
        family=stack.family,
        flash=year >= stack.flash_since,
        fused=stack.fused or "compile" in notes,
        overlap=(stack.overlap and year >= 2021.9) or "overlapped" in row.text("zero_fsdp").lower(),
        overlap_tp=overlap_tp or re.search(r"async[ -]?tp", notes) is not None,
        fused_loss=stack.fused_loss,
        gradients=stack.gradients,
        accumulate=stack.accumulate,
        year=year,
    )


def _year(text: str) -> float | None:
    """ "2024-09" -> 2024.67; the middle of a span of years."""
    years = [int(year) for year in re.findall(r"\b(20\d\d)\b", text)]
    if not years:
        return None
    month = re.search(r"20\d\d-(\d\d)\b", text)
    return sum(years) / len(years) + ((int(month[1]) - 0.5) / 12 if month else 0.5)


def _zero(row: Published, lanes: int) -> tuple[int, int | None]:
    """The stage of state sharding and over how many lanes, from the source's own words."""
    text = row.text("zero_fsdp").lower()
    stage, group = 0, None
    if text.startswith("ddp"):
        return 0, None
    if "fsdp" in text or "zero-3" in text:
        stage = 3
        if "shard_grad_op" in text:
            stage = 2
        if "hsdp" in text or "intra-node" in text:
            group = row.count("chips_per_node", 8)
        found = re.search(r"fsdp\s*(\d+)", text)
        if found and "ici" not in text:
            group = int(found[1])
    elif "zero-2" in text or "stage 2" in text or "parallel_optimizer" in text:
        # Where it is called a parallel optimizer, gradients are scattered as they are made.
        stage = 2
    elif "zero" in text or "distributed" in text or "stage 1" in text:
        stage = 1
    found = re.search(r"(?:over|degree) (\d+)", text)
    if found:
        group = int(found[1])
    if group is not None and (group >= lanes or group < 2 or lanes % group):
        group = None
    return stage, group


def _batch(
    row: Published, dp: int, pp: int, length: int, zero: int, assumed: list[str]
) -> tuple[float, int, int]:
    """Sequences of a step, of a micro-batch, and micro-batches of a lane."""
    sequences = row.number("gbs_seqs")
    if not sequences and (tokens := row.number("gbs_tokens")):
        sequences = tokens / length
    microbatch = row.number("mbs")
    steps = row.number("grad_accum")
    if not sequences:
        assumed.append("batch")
        filled = max(1.0, 16384 / length) if zero >= 3 else 1.0
        lane = (microbatch or filled) * (steps or (8 * pp if pp > 1 else 1))
        sequences = lane * dp
    lane = max(sequences / dp, 1e-9)
    if not microbatch:
        assumed.append("micro-batch")
        microbatch = lane / steps if steps else (1.0 if pp > 1 or zero < 3 else lane)
    microbatch = max(1.0, min(microbatch, lane))
    return sequences, max(1, round(microbatch)), max(1, round(lane / microbatch))


def _least_recompute(work: Work, layout: Layout, machine: Machine, microbatches: int) -> Layout:
    """The layout with the least recompute that fits the memory: what a sensible person runs."""
    for recompute in ("none", "selective"):
        tried = layout.model_copy(update={"recompute": recompute})
        if memory_use(work, tried, microbatches, MemoryCoefficients()).total <= machine.memory:
            return tried
    return layout.model_copy(update={"recompute": "full"})


def _recompute(row: Published) -> Literal["none", "selective", "full"] | None:
    """What is computed again, from the source's own words; None where it does not say."""
    text = row.text("recompute").lower()
    if text.startswith("full"):
        found = re.search(r"block (\d+)", text)
        layers = row.number("layers") or 1.0
        few = found and float(found[1]) < 0.5 * layers / row.count("PP", 1)
        return "selective" if few else "full"
    if not text or text.startswith("unknown"):
        return None
    if text.startswith(("none", "no ")) or "= none" in text:
        return "none"
    if any(
        word in text for word in ("selective", "partial", "minimal", "custom", "save", "offload")
    ):
        return "selective"
    return None


def _precision(row: Published) -> str:
    """The format of matrix products."""
    text = row.text("precision").lower()
    if "fp8" in text or "float8" in text:
        return "fp8"
    if "int8" in text:
        return "int8"
    if "fp32" in text and "/" not in text and "16" not in text:
        return "fp32"
    return "fp16" if "fp16" in text else "bf16"
