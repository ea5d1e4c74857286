"""Cost: the seconds of a step on one island, part by part, from first principles.

Formulas count FLOP and bytes; how much of a peak is reached comes from `Coefficients`, which are
fitted on published runs (facts/fitted/cost.toml) by scripts/fit_cost.py. Nothing here knows a
vendor or a make. What published runs say beyond the formulas is in `correction.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from atoll.plan import Layout
from atoll.planning.machine import Machine
from atoll.planning.work import Work

HALF = 2.0
"""Bytes of a 16-bit number: activations and weights that are computed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """How far real machines stay behind the formulas; all positive and without unit, unless said.

    The defaults are where the fit starts.
    """

    matmul: float = 0.88
    """Fraction of the measured GEMM speed (or of 0.8 of the peak) that large matmuls reach."""
    rows: float = 1.0
    """Loss of matmuls with few rows (tokens), in tiles of 128 on a chip of 312 TFLOP/s."""
    columns: float = 1.0
    """The same for few columns: the width of a tensor-parallel part."""
    eight_bit: float = 0.75
    """Fraction of the 8-bit peak that 8-bit matmuls reach beside what 16-bit ones do."""
    row_scales: float = 0.7
    """Speed of 8-bit matmuls whose operands are scaled row by row, beside those scaled whole."""
    experts: float = 0.8
    """Speed of grouped expert matmuls beside dense ones."""
    flash: float = 0.6
    """Speed of fused attention beside large matmuls."""
    scores: float = 6.0
    """Times that unfused attention moves its score matrix through memory, forward."""
    plain: float = 0.5
    """Speed of the unfused attention's matmuls beside large ones."""
    norms: float = 8.0
    """16-bit numbers moved for each element of the residual stream and layer, forward."""
    activations: float = 4.0
    """The same for each element inside the feed-forward and attention."""
    unfused: float = 1.5
    """Factor on both where a stack fuses nothing."""
    routing: float = 8.0
    """16-bit numbers moved for each routed element of a sparse layer, forward."""
    logits: float = 12.0
    """Bytes moved for each logit, forward and backward."""
    memory: float = 0.8
    """Fraction of the memory bandwidth that elementwise kernels reach."""
    link: float = 0.75
    """Fraction of the fast link's bandwidth that collectives reach."""
    network: float = 0.65
    """Fraction of the network's bandwidth that collectives reach."""
    tensor_hidden: float = 0.5
    """Part of tensor-parallel traffic that is hidden where a stack overlaps it."""
    state_exposed: float = 0.15
    """Part of the exchange of gradients and state that is never hidden."""
    state_behind: float = 0.6
    """Part of one micro-batch behind which an overlapping stack can hide that exchange."""
    gather_exposed: float = 0.1
    """Part of a sharded weight's gathering that is never hidden behind compute."""
    stage_exposed: float = 0.3
    """Part of the traffic between pipeline stages that is never hidden."""
    expert_exposed: float = 0.8
    """Part of the exchange between experts that is not hidden."""
    context_exposed: float = 0.3
    """Part of the exchange along the context that is not hidden."""
    bubble: float = 1.0
    """Length of the pipeline's bubble beside the formula (p - 1) / v."""
    update: float = 1.0
    """Length of the update beside moving 30 bytes a parameter once."""
    launch: float = 5e-4
    """Seconds that the host needs to launch the kernels of a layer once; compute hides them."""
    step: float = 5e-3
    """Seconds a step that nothing hides."""
    progress: float = 0.08
    """Yearly gain of software since 2022 on everything but large matmuls."""
    scale: float = 0.005
    """Loss for each doubling of the number of domains: stragglers, congestion."""

    @classmethod
    def names(cls) -> list[str]:
        """The names in the order of the fit."""
        return [field.name for field in fields(cls)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of a step on one island by cause; all add up to `seconds`, but `hidden`.

    `fixed` does not grow with the number of micro-batches and `each` is what one more of them
    takes, so that a share of m micro-batches takes `fixed + m * each`.
    """

    matmul: float
    attention: float
    elementwise: float
    recompute: float
    head: float
    bubble: float
    tensor: float
    context: float
    experts: float
    stages: float
    state: float
    update: float
    overhead: float
    hidden: float
    fixed: float
    each: float
    microbatches: int

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.fixed + self.microbatches * self.each

    def parts(self) -> dict[str, float]:
        """The causes and their seconds, in a fixed order."""
        left_out = ("hidden", "fixed", "each", "microbatches")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}


@dataclass(slots=True)
class _Layer:
    """Forward seconds of one layer of one kind on one device, and its traffic."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    experts: float = 0.0


def step_cost(
    work: Work, layout: Layout, machine: Machine, microbatches: int, c: Coefficients
) -> Cost:
    """The cost of a step in which every lane computes `microbatches` micro-batches.

    Assumes that the layout divides what it must (see `layouts.problem`).
    """
    tokens = layout.microbatch * work.sequence / layout.cp
    each = _microbatch(work, layout, machine, tokens, c)
    each["overhead"] += _accumulation(work, layout, machine, c)
    head = _head(work, layout, machine, tokens, c)
    hop = _hop(work, layout, machine, tokens, c)
    stages = 2.0 * layout.vpp * hop if layout.pp > 1 else 0.0
    stage = sum(each.values())
    # The output head sits on the last stage and makes it the slowest one.
    head_each = head if layout.pp == 1 else head * (0.5 + 0.5 / layout.pp)
    busy = stage + head_each
    gather, gather_hidden = _gathering(work, layout, machine, busy, c)
    one = busy + gather + c.stage_exposed * stages
    bubble = c.bubble * (layout.pp - 1) / layout.vpp * (stage + head / layout.pp + gather)
    bubble += (layout.pp - 1) * 2.0 * hop
    state, state_hidden = _state(work, layout, machine, one, c)
    update = _update(work, layout, machine, c)
    growth = 1.0 + c.scale * math.log2(max(1.0, layout.num_devices / machine.domain))
    m = microbatches
    plain = bubble + state + update + c.step
    lost = (growth - 1.0) * (plain + m * one)
    host = work.software.on_host * sum(held_parameters(work, layout))
    return Cost(
        **{name: seconds * m for name, seconds in each.items() if name != "overhead"},
        head=head_each * m,
        bubble=bubble,
        stages=c.stage_exposed * stages * m,
        state=state + gather * m,
        update=update,
        overhead=each["overhead"] * m + c.step + lost + host,
        hidden=gather_hidden * m + state_hidden + (1.0 - c.stage_exposed) * stages * m,
        fixed=plain * growth + host,
        each=one * growth,
        microbatches=m,
    )


def _microbatch(
    work: Work, layout: Layout, machine: Machine, tokens: float, c: Coefficients
) -> dict[str, float]:
    """Seconds of one micro-batch on one stage, forward and backward, by cause; without the head."""
    shape, flash = work.shape, work.software.flash
    dense, sparse = _layers(work, layout, machine, tokens, c)
    # The stage with the most layers sets the pace of a pipeline.
    depth = stage_layers(shape.layers, layout)
    num_sparse = depth * shape.sparse_layers / shape.layers
    num_dense = depth - num_sparse

    def total(name: str) -> float:
        return float(num_dense * getattr(dense, name) + num_sparse * getattr(sparse, name))

    matmul, attention, elementwise = total("matmul"), total("attention"), total("elementwise")
    passes = 3.0 if layout.recompute == "full" else 2.0
    each = {
        "matmul": 3.0 * matmul,
        "attention": (3.5 if flash else 3.0) * attention,
        "elementwise": 3.0 * elementwise,
        "recompute": _recompute(layout, flash, matmul, attention, elementwise),
        "tensor": passes * total("tensor"),
        "context": passes * total("context"),
        "experts": passes * total("experts"),
    }
    host = c.launch * depth * (passes + 1.0)
    busy = sum(each.values())
    each["overhead"] = math.hypot(busy, host) - busy
    return each


def stage_layers(layers: int, layout: Layout) -> int:
    """Layers of the fullest pipeline device: whole layers in each of its `vpp` chunks."""
    return -(-layers // (layout.pp * layout.vpp)) * layout.vpp


def _layers(
    work: Work, layout: Layout, machine: Machine, tokens: float, c: Coefficients
) -> tuple[_Layer, _Layer]:
    """A dense and a sparse layer, forward, on one device, for `tokens` tokens of its lane."""
    shape, software, tp = work.shape, work.software, layout.tp
    speed = _speed(machine, work.precision, c) * (c.row_scales if work.row_scaled else 1.0)
    memory = machine.memory_bandwidth * c.memory
    unit = 128.0 * machine.speed(work.precision) / 312e12
    few_rows = c.rows * unit / tokens
    residual = tp if layout.sequence_parallel else 1
    fuse = (1.0 if software.fused else c.unfused) * _age(work, c)

    def product(parameters: float, columns: float, rows_lost: float, rate: float = 1.0) -> float:
        moved = HALF * parameters / memory
        flops = 2.0 * tokens * parameters
        if machine.measured is not None:
            depth = max(1, round(parameters / columns))
            shape_of = (max(1, round(tokens)), max(1, round(columns)), depth)
            seen = machine.measured.flops(*shape_of, work.precision)
            if seen:
                return flops / (seen * rate)
        lost = 1.0 + rows_lost + c.columns * unit / columns
        return flops / (speed * rate) * lost + moved

    attention = product(shape.attention / tp, shape.query / tp, few_rows)
    inside = (shape.query + shape.value + 2.0 * shape.kv) / tp
    norms = c.norms * tokens * shape.width / residual
    both = HALF * fuse / memory
    core = _attention_core(work, layout, machine, tokens, c)
    all_reduce = _all_reduce(work, layout, machine, tokens, c)
    context = _context(work, layout, machine, tokens, c)
    dense = _Layer(
        matmul=attention + product(shape.dense_ffn / tp, shape.ffn / tp, few_rows),
        attention=core,
        elementwise=both
        * (norms + c.activations * tokens * (inside + shape.matrices * shape.ffn / tp)),
        tensor=2.0 * all_reduce,
        context=context,
    )
    if not shape.sparse_layers:
        return dense, _Layer()
    routed = tokens * shape.top_k / tp
    hidden_width = shape.matrices * (shape.shared + shape.top_k * shape.moe_ffn) / tp
    shared = product(shape.shared_ffn / tp, max(shape.shared, 128) / tp, few_rows)
    wide = norms + c.activations * tokens * (inside + hidden_width)
    sparse = _Layer(
        matmul=attention + shared + _grouped(work, layout, machine, routed, speed, c),
        attention=core,
        elementwise=both * (wide + c.routing * routed * shape.width),
        tensor=2.0 * all_reduce,
        context=context,
        experts=_expert_exchange(work, layout, machine, routed, c),
    )
    return dense, sparse


def _grouped(
    work: Work, layout: Layout, machine: Machine, routed: float, speed: float, c: Coefficients
) -> float:
    """Grouped matmuls of the experts of one layer, forward, for `routed` tokens of a device."""
    shape = work.shape
    unit = 128.0 * machine.speed(work.precision) / 312e12
    rows = max(1.0, routed * layout.ep / shape.experts)
    sharded = 1 if layout.ep > 1 else layout.tp
    lost = c.rows * unit / rows + c.columns * unit * sharded / shape.moe_ffn
    flops = 2.0 * routed * shape.expert
    weights = HALF * shape.expert * shape.experts / (layout.ep * sharded)
    moved = weights / (machine.memory_bandwidth * c.memory)
    return flops / (speed * c.experts) * (1.0 + lost) + moved


def _age(work: Work, c: Coefficients) -> float:
    """What the year of the software does to everything that is not a large matmul."""
    return math.exp(-c.progress * (work.software.year - 2022.0))


def _speed(machine: Machine, precision: str, c: Coefficients) -> float:
    """FLOP/s of large matrix products."""
    reached = (machine.matmul or 0.8) * c.matmul
    rate = c.eight_bit if precision in ("fp8", "int8") else 1.0
    return machine.speed(precision) * reached * rate


def _attention_core(
    work: Work, layout: Layout, machine: Machine, tokens: float, c: Coefficients
) -> float:
    """Scores, softmax and values of one layer, forward."""
    shape = work.shape
    speed = _speed(machine, "bf16", c)
    flops = tokens * shape.attention_flops(work.sequence) / layout.tp
    if work.software.flash:
        return flops / (speed * c.flash)
    scores = tokens * work.sequence * shape.heads / layout.tp
    moved = c.scores * HALF * scores / (machine.memory_bandwidth * c.memory)
    return 2.0 * flops / (speed * c.plain) + moved


def _recompute(
    layout: Layout, flash: bool, matmul: float, attention: float, elementwise: float
) -> float:
    """Seconds of forward work done again in the backward pass of a micro-batch."""
    if layout.recompute == "full":
        return matmul + attention + elementwise
    if layout.recompute == "selective":
        return 0.3 * elementwise if flash else attention
    return 0.0


def _head(work: Work, layout: Layout, machine: Machine, tokens: float, c: Coefficients) -> float:
    """Output head and loss, forward and backward, always in 16 bits."""
    shape = work.shape
    columns = shape.vocab / layout.tp
    flops = 6.0 * tokens * shape.width * columns
    moved = c.logits * tokens * columns
    return flops / _speed(machine, "bf16", c) + moved / (machine.memory_bandwidth * c.memory)


def _wire(machine: Machine, size: int, stride: int, c: Coefficients) -> float:
    """Bytes a second that a ring over `size` devices really moves."""
    inside = size * stride <= machine.domain
    return machine.group_bandwidth(size, stride) * (c.link if inside else c.network)


def _all_reduce(
    work: Work, layout: Layout, machine: Machine, tokens: float, c: Coefficients
) -> float:
    """One tensor-parallel all-reduce of the residual stream, what of it is not hidden.

    A ring moves 2 (n - 1) / n of the bytes; a gather and a scatter beside sequence parallelism
    move the same.
    """
    if layout.tp == 1:
        return 0.0
    moved = 2.0 * (layout.tp - 1) / layout.tp * tokens * work.shape.width * HALF
    seconds = moved / _wire(machine, layout.tp, 1, c) + 2.0 * machine.group_latency(layout.tp)
    return seconds * (1.0 - c.tensor_hidden) if work.software.overlap_tp else seconds


def _context(work: Work, layout: Layout, machine: Machine, tokens: float, c: Coefficients) -> float:
    """Keys and values that go round the context-parallel ring in one layer, forward."""
    if layout.cp == 1:
        return 0.0
    moved = (layout.cp - 1) * tokens * 2.0 * work.shape.kv / layout.tp * HALF
    wire = _wire(machine, layout.cp, layout.tp, c)
    return c.context_exposed * (moved / wire + layout.cp * machine.group_latency(layout.cp))


def _expert_exchange(
    work: Work, layout: Layout, machine: Machine, routed: float, c: Coefficients
) -> float:
    """Tokens to their experts and back in one layer, forward: two all-to-alls."""
    if layout.ep == 1:
        return 0.0
    inside = min(layout.ep, machine.domain) / layout.ep
    moved = 2.0 * routed * work.shape.width * HALF
    far = moved * (1.0 - inside) / (machine.network * c.network)
    near = moved * inside / (machine.link * c.link)
    return c.expert_exposed * (far + near + 2.0 * machine.group_latency(layout.ep))


def _hop(work: Work, layout: Layout, machine: Machine, tokens: float, c: Coefficients) -> float:
    """Activations from one pipeline stage to the next, once."""
    if layout.pp == 1:
        return 0.0
    stride = layout.tp * layout.cp * layout.dp
    inside = stride * layout.pp <= machine.domain
    wire = machine.link * c.link if inside else machine.network * c.network
    part = layout.tp if layout.sequence_parallel else 1
    latency = machine.link_latency if inside else machine.network_latency
    return tokens * work.shape.width * HALF / part / wire + latency


def held_parameters(work: Work, layout: Layout) -> tuple[float, float]:
    """Parameters on one device before any sharding over lanes: outside experts, in experts."""
    shape = work.shape
    embeddings = shape.embedding * (1 if shape.tied or layout.pp > 1 else 2)
    dense = shape.dense_parameters / layout.pp + embeddings
    sharded = 1 if layout.ep > 1 else layout.tp
    return dense / layout.tp, shape.expert_parameters / (layout.pp * layout.ep * sharded)


def state_lanes(layout: Layout) -> tuple[int, int]:
    """Over how many devices the state is sharded: of dense parameters, of experts."""
    lanes = layout.shard or layout.dp * layout.cp
    experts = max(1, layout.dp * layout.cp * layout.tp // layout.ep) if layout.ep > 1 else lanes
    return lanes, min(lanes, experts)


def _gathering(
    work: Work, layout: Layout, machine: Machine, busy: float, c: Coefficients
) -> tuple[float, float]:
    """Gathering sharded weights twice and scattering gradients for a micro-batch (zero 3).

    Returns what is seen and what is hidden behind `busy` seconds of compute.
    """
    lanes, expert_lanes = state_lanes(layout)
    if layout.zero < 3 or lanes == 1:
        return 0.0, 0.0
    dense, experts = held_parameters(work, layout)
    stride = layout.tp
    seconds = 3.0 * HALF * dense * (lanes - 1) / lanes / _wire(machine, lanes, stride, c)
    if expert_lanes > 1:
        moved = 3.0 * HALF * experts * (expert_lanes - 1) / expert_lanes
        seconds += moved / _wire(machine, expert_lanes, layout.ep, c)
    seconds += 3.0 * work.shape.layers * math.log2(lanes) * machine.group_latency(lanes, stride)
    hides = busy if work.software.overlap else 0.0
    seen = max(seconds - hides, 0.0) + c.gather_exposed * min(seconds, hides)
    return seen, seconds - seen


def _state(
    work: Work, layout: Layout, machine: Machine, one: float, c: Coefficients
) -> tuple[float, float]:
    """Exchange of gradients (and of updated weights) over the lanes, once a step: seen, hidden."""
    lanes, _ = state_lanes(layout)
    all_lanes = layout.dp * layout.cp
    if all_lanes == 1:
        return 0.0, 0.0
    dense, experts = held_parameters(work, layout)
    # zero 0 adds up 16-bit gradients everywhere; sharded states add fp32 ones and send weights.
    width = 2.0 * HALF if layout.zero == 0 else 3.0 * HALF
    stride = layout.tp
    if layout.zero >= 3:
        outer = all_lanes // lanes
        if outer == 1:
            return 0.0, 0.0
        wire = _wire(machine, outer, stride * lanes, c)
        seconds = 2.0 * HALF * (dense + experts) / lanes * (outer - 1) / outer / wire
    else:
        wire = _wire(machine, all_lanes, stride, c)
        seconds = width * dense * (all_lanes - 1) / all_lanes / wire
        replicas = max(1, all_lanes * layout.tp // layout.ep) if layout.ep > 1 else all_lanes
        if experts and replicas > 1:
            moved = width * experts * (replicas - 1) / replicas
            seconds += moved / _wire(machine, replicas, max(stride, layout.ep), c)
        seconds += 2.0 * all_lanes * machine.group_latency(all_lanes, stride)
    behind = c.state_behind * one if work.software.overlap else 0.0
    seen = max(seconds - behind, c.state_exposed * seconds)
    return seen, seconds - seen


def _accumulation(work: Work, layout: Layout, machine: Machine, c: Coefficients) -> float:
    """Adding up a micro-batch's gradients, in stacks that do it beside the backward pass."""
    moved = work.software.accumulate * sum(held_parameters(work, layout))
    return moved / (machine.memory_bandwidth * c.memory)


def _update(work: Work, layout: Layout, machine: Machine, c: Coefficients) -> float:
    """Reading and writing weights, gradients and two moments: about 30 bytes a parameter."""
    dense, experts = held_parameters(work, layout)
    lanes, expert_lanes = state_lanes(layout)
    if layout.zero >= 1:
        dense, experts = dense / lanes, experts / expert_lanes
    return c.update * 30.0 * (dense + experts) / (machine.memory_bandwidth * c.memory)
