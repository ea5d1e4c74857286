"""Memory: the bytes that a step holds on the fullest device of an island, part by part.

Activations are counted as in Korthikanti et al. 2022 (arXiv:2205.05198, section 4), written out for
grouped queries, gated feed-forwards and experts; states as in Rajbhandari et al. 2020
(arXiv:1910.02054, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from atoll.plan import Layout
from atoll.planning.cost import HALF, held_parameters, state_lanes
from atoll.planning.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes on the fullest device by cause; `total` is their sum."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    reserve: float

    @property
    def total(self) -> float:
        """All of it."""
        held = self.weights + self.gradients + self.optimizer
        return held + self.activations + self.working + self.reserve

    def parts(self) -> dict[str, float]:
        """The causes and their bytes, in a fixed order."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCoefficients:
    """What the formulas leave out; fitted on published peaks (facts/fitted/cost.toml)."""

    gaps: float = 1.05
    """Memory that the allocator holds for each byte that tensors use."""
    reserve: float = 1.5e9
    """Bytes of the vendor's libraries and of communication buffers."""
    kept: float = 0.6
    """Part of a layer's activations that selective recompute keeps where attention is fused."""
    logits: float = 8.0
    """Bytes for each logit at the peak."""
    flight: float = 1.0
    """Micro-batches in flight beside those that the schedule needs and one."""
    buffers: float = 1.0
    """Residual streams that a pipeline stage keeps besides of a micro-batch in flight."""
    layer: float = 1.0
    """Working set of a layer that is being recomputed, beside its activations."""
    gathered: float = 8.0
    """Bytes for each parameter of the largest layer where weights are sharded: it and the next
    one are gathered, and their gradients not yet scattered."""


FUSED_LOSS = 4.0
"""Bytes for each logit where loss and logits are one kernel: it and its gradient in 16 bits."""


def memory_use(work: Work, layout: Layout, microbatches: int, c: MemoryCoefficients) -> MemoryUse:
    """The bytes on the first pipeline stage, which holds the most micro-batches in flight."""
    dense, experts = held_parameters(work, layout)
    lanes, expert_lanes = state_lanes(layout)
    weights, gradients, states = _state_bytes(work, layout)
    by_stage = [
        (dense / (lanes if layout.zero >= stage else 1))
        + (experts / (expert_lanes if layout.zero >= stage else 1))
        for stage in (3, 2, 1)
    ]
    if layout.zero == 3 and layout.pp > 1 and lanes > 1:
        # Between the micro-batches of a pipeline weights stay gathered and gradients whole.
        by_stage[0] += HALF / weights * (dense + experts)
        by_stage[1] = dense + experts
    tokens = layout.microbatch * work.sequence / layout.cp
    layer = layer_activations(work, layout, tokens)
    held = _held_a_layer(work, layout, tokens, layer, c)
    flight = held_in_flight(in_flight(layout, microbatches), microbatches, c)
    layers = work.shape.layers / layout.pp
    kept = held * layers + (stage_buffers(work, layout, c) if layout.pp > 1 else 0.0)
    working = c.layer * (layer - held) if layout.recompute == "full" else 0.0
    working += _logits(work, layout, tokens, c)
    if layout.zero == 3 and lanes > 1:
        working += c.gathered * _largest_layer(work, layout)
    used = weights * by_stage[0] + gradients * by_stage[1] + states * by_stage[2]
    used += kept * flight + working
    return MemoryUse(
        weights=weights * by_stage[0],
        gradients=gradients * by_stage[1],
        optimizer=states * by_stage[2],
        activations=kept * flight,
        working=working,
        reserve=c.reserve + (c.gaps - 1.0) * used,
    )


def _state_bytes(work: Work, layout: Layout) -> tuple[float, float, float]:
    """Bytes a parameter of weights, gradients and optimizer state.

    Mixed precision computes with 16-bit weights and keeps fp32 weights beside two moments. In what
    format gradients are added up is the stack's habit: fp32 mostly, beside bf16 ones in some.
    Sharded weights (zero 3) are the fp32 ones themselves.
    """
    if work.precision in ("fp32", "tf32") or layout.zero == 3:
        return 4.0, 4.0, 8.0
    return 2.0, work.software.gradients if work.precision != "fp16" else 4.0, 12.0


def layer_activations(work: Work, layout: Layout, tokens: float) -> float:
    """Bytes that the backward pass of one layer needs, nothing recomputed, for `tokens` tokens."""
    shape, tp = work.shape, layout.tp
    residual = tp if layout.sequence_parallel else 1
    sparse = shape.sparse_layers / shape.layers
    routed = shape.top_k * (2.0 * shape.width + 2.0 * shape.matrices * shape.moe_ffn)
    routed += 2.0 * shape.matrices * shape.shared
    feed_forward = (1.0 - sparse) * 2.0 * shape.matrices * shape.ffn + sparse * routed
    inside = 2.0 * (shape.query + 2.0 * shape.kv + shape.value) + feed_forward
    scores = 0.0
    if not work.software.flash and layout.recompute != "selective":
        scores = 5.0 * shape.heads * work.sequence
    return _wide(work) * tokens * (10.0 * shape.width / residual + (inside + scores) / tp)


def _held_a_layer(
    work: Work, layout: Layout, tokens: float, layer: float, c: MemoryCoefficients
) -> float:
    """Bytes that stay from the forward to the backward pass of a layer."""
    if layout.recompute == "full":
        residual = layout.tp if layout.sequence_parallel else 1
        return 2.0 * _wide(work) * tokens * work.shape.width / residual
    if layout.recompute == "selective" and work.software.flash:
        return c.kept * layer
    return layer


def _wide(work: Work) -> float:
    """Width of an activation beside 16 bits."""
    return 2.0 if work.precision in ("fp32", "tf32") else 1.0


def stage_buffers(work: Work, layout: Layout, c: MemoryCoefficients) -> float:
    """Bytes that a pipeline stage keeps of a micro-batch in flight besides its layers' own."""
    residual = layout.tp if layout.sequence_parallel else 1
    tokens = layout.microbatch * work.sequence / layout.cp
    return c.buffers * 2.0 * _wide(work) * tokens * work.shape.width / residual


def held_in_flight(flight: float, microbatches: int, c: MemoryCoefficients) -> float:
    """Micro-batches that a stage holds where its schedule needs `flight`; never more than all."""
    return min(float(microbatches), 1.0 + c.flight * (flight - 1.0))


def in_flight(layout: Layout, microbatches: int) -> float:
    """Micro-batches whose activations the first stage holds: p, somewhat more interleaved."""
    if layout.pp == 1:
        return 1.0
    extra = 1.0 + (layout.pp - 1) / (layout.pp * layout.vpp) if layout.vpp > 1 else 1.0
    return min(float(microbatches), layout.pp * extra)


def _logits(work: Work, layout: Layout, tokens: float, c: MemoryCoefficients) -> float:
    """Logits and their gradient on the last stage, beyond what the first stage holds more of."""
    if layout.pp > 1:
        return 0.0
    each = FUSED_LOSS if work.software.fused_loss else c.logits
    return tokens * work.shape.vocab / layout.tp * each


def _largest_layer(work: Work, layout: Layout) -> float:
    """Parameters of one layer as it is gathered for use."""
    shape = work.shape
    sparse = shape.expert * shape.experts / layout.ep if shape.sparse_layers else shape.dense_ffn
    return (shape.attention + max(sparse, shape.dense_ffn)) / layout.tp
