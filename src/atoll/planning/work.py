"""Work: what a step computes, as the few numbers that the cost model needs.

A `Shape` is a model's matrices, a `Software` the habits of the stack that computes them, a `Work`
both with a sequence length and a number format. No machine and no layout: those are `Machine` and
`atoll.plan.Layout`.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder as totals a layer, all in numbers of elements.

    `query`, `value` are the widths of all heads together in scores and in values; `attention` the
    parameters of a layer's attention; `matrices` 3 for gated feed-forwards, 2 for plain ones;
    `shared` the hidden width of the shared experts together. Layers without experts number
    `layers - sparse_layers`. `window` bounds how far a token looks back, None for all of the
    sequence.
    """

    layers: int
    width: int
    query: int
    value: int
    heads: int
    attention: int
    kv: int
    ffn: int
    matrices: int
    vocab: int
    tied: bool
    sparse_layers: int = 0
    experts: int = 0
    top_k: int = 0
    shared: int = 0
    moe_ffn: int = 0
    window: int | None = None

    @classmethod
    def of(cls, model: Model) -> Shape:
        """The totals of a model whose vocabulary is known."""
        sparse = model.num_sparse_layers
        return cls(
            layers=model.layers,
            width=model.width,
            query=model.qk_dim,
            value=model.v_dim,
            heads=model.heads,
            attention=model.attention_parameters_per_layer(),
            kv=model.kv_dim,
            ffn=model.ffn,
            matrices=3 if model.gated else 2,
            vocab=model.resolved_vocab,
            tied=model.tied,
            sparse_layers=sparse,
            experts=model.experts or 0,
            top_k=model.top_k or 0,
            shared=model.shared_experts * (model.moe_ffn or 0),
            moe_ffn=model.moe_ffn or 0,
        )

    @property
    def dense_ffn(self) -> int:
        """Parameters of the feed-forward of a layer without experts."""
        return self.matrices * self.width * self.ffn

    @property
    def expert(self) -> int:
        """Parameters of one routed expert."""
        return self.matrices * self.width * self.moe_ffn

    @property
    def shared_ffn(self) -> int:
        """Parameters of a sparse layer that every token passes: shared experts and router."""
        return self.matrices * self.width * self.shared + self.width * self.experts

    @property
    def dense_parameters(self) -> int:
        """All parameters outside the routed experts and the embeddings."""
        dense = (self.layers - self.sparse_layers) * self.dense_ffn
        return self.layers * self.attention + dense + self.sparse_layers * self.shared_ffn

    @property
    def expert_parameters(self) -> int:
        """All parameters of the routed experts."""
        return self.sparse_layers * self.experts * self.expert

    @property
    def embedding(self) -> int:
        """Parameters of one vocabulary matrix."""
        return self.vocab * self.width

    @property
    def parameters(self) -> int:
        """All parameters (norms left out: they are under 0.1 %)."""
        embeddings = self.embedding * (1 if self.tied else 2)
        return self.dense_parameters + self.expert_parameters + embeddings

    @property
    def active_matmul(self) -> int:
        """Parameters that multiply a token: with the output head, without the embedding."""
        routed = self.sparse_layers * self.top_k * self.expert
        return self.dense_parameters + routed + self.embedding

    def attention_flops(self, sequence: int) -> float:
        """Forward FLOP of scores and values for a token of one layer, causal (half)."""
        span = sequence if self.window is None else min(sequence, 2 * self.window)
        return float(span) * (self.query + self.value)

    def flops_per_token(self, sequence: int) -> float:
        """FLOP to train on a token: forward and backward, causal attention, no recompute."""
        attention = self.layers * self.attention_flops(sequence)
        return 6.0 * self.active_matmul + 3.0 * attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """The habits of a stack that matter for time; see facts/fitted for what they cost.

    `family` groups stacks with the same engine. `flash`: attention never writes its scores.
    `fused`: one kernel for a chain of elementwise operations. `overlap`: gradients and state move
    while the backward computes. `overlap_tp`: tensor-parallel collectives move beside the matmuls.
    `fused_loss`: logits stay in 16 bits, never copied. `gradients`: bytes a parameter beside
    weights in bf16. `accumulate`: bytes moved a parameter to add up a micro-batch's gradients
    beside the backward pass. `on_host`: seconds a parameter that a step spends on an accelerator's
    host. `year` of the release.
    """

    family: str = "megatron"
    flash: bool = True
    fused: bool = True
    overlap: bool = True
    overlap_tp: bool = False
    fused_loss: bool = False
    gradients: float = 4.0
    accumulate: float = 0.0
    on_host: float = 0.0
    year: float = 2025.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model's shape on sequences of one length in one number format, by one software.

    `row_scaled`: in 8 bits, operands have a scale for each row and not one for all.
    """

    shape: Shape
    sequence: int
    precision: str = "bf16"
    row_scaled: bool = False
    software: Software = Software()
