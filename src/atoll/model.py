"""Model: the shapes of a decoder and the arithmetic on them.

No weights and no torch: the module that computes is `atoll.modeling.decoder.Decoder`, and it has
exactly the tensors that `Model.tensors` lists, in that order. Experts, latent attention and plain
feed-forwards are here for planning; the decoder does not compute them yet (`not_computed`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from atoll.errors import InputError
from atoll.strict import Noun

Count = Annotated[int, Field(ge=1, le=2**40)]
"""A whole number of at least 1; the upper bound only refuses slips."""


class LatentAttention(Noun):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1 and appendix C).

    Keys and values come from one latent of `kv_rank` numbers a token, and a rotary key of
    `rope_dim` that all heads share; queries from a latent of `q_rank`, or straight from the
    residual stream where it is None. A head's score is over `nope_dim` + `rope_dim` numbers, its
    value has `value_dim`. With C = width, H = heads, a layer has

        C q_rank + q_rank H (nope_dim + rope_dim)      or  C H (nope_dim + rope_dim)  without q_rank
        + C (kv_rank + rope_dim) + kv_rank H (nope_dim + value_dim)
        + H value_dim C

    parameters, and a norm of q_rank and one of kv_rank.
    """

    q_rank: Count | None = None
    kv_rank: Count = Field(examples=[512])
    rope_dim: Count = Field(examples=[64])
    nope_dim: Count = Field(examples=[128])
    value_dim: Count = Field(examples=[128])

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.rope_dim % 2:
            fix = "rotary positions turn pairs of numbers: an even number is needed"
            raise InputError("is odd", key="rope_dim", value=self.rope_dim, fix=fix)
        return self

    @property
    def score_dim(self) -> int:
        """The width of one head's queries and keys."""
        return self.nope_dim + self.rope_dim


class Model(Noun):
    """The shapes of a decoder: RMSNorm, rotary positions, attention, feed-forward, in each layer.

    `kv_heads` None means as many as `heads`; `head_dim` None means width // heads; `vocab` None
    means that the tokenizer decides it. `flops_per_token` and the like need a vocab. `gated` is
    SwiGLU with three matrices of width x `ffn`; without it there are two, as in GPT.

    A model with `experts` sends each token through `top_k` of them, chosen by a router, and through
    all `shared_experts`; one expert is a feed-forward of hidden width `moe_ffn`. The first
    `dense_layers` layers keep the plain feed-forward, and of those after them every `moe_every`th
    is sparse. Where all layers are sparse, `ffn` decides nothing. `mla` replaces grouped-query
    attention. Layers that predict further tokens (multi-token prediction) are not counted.
    """

    FILE_KEYS = ("preset",)

    layers: Count = Field(examples=[4])
    width: Count = Field(examples=[192])
    heads: Count = Field(examples=[6])
    kv_heads: Count | None = None
    head_dim: Count | None = None
    ffn: Count = Field(examples=[512])
    context: Count = Field(examples=[128])
    tied: bool = True
    qk_norm: bool = False
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    rope_base: float = Field(default=10000.0, gt=1)
    vocab: Count | None = None
    gated: bool = True
    experts: Count | None = Field(default=None, examples=[64])
    top_k: Count | None = Field(default=None, examples=[8])
    shared_experts: int = Field(default=0, ge=0, le=2**20)
    moe_ffn: Count | None = Field(default=None, examples=[1024])
    dense_layers: int = Field(default=0, ge=0, le=2**20)
    moe_every: Count = 1
    mla: LatentAttention | None = Field(
        default=None,
        examples=[{"kv_rank": 512, "rope_dim": 64, "nope_dim": 128, "value_dim": 128}],
    )

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.mla is None:
            self._heads_fit()
        else:
            self._nothing_beside_mla()
        if self.experts is None:
            self._nothing_without_experts()
        else:
            self._experts_fit(self.experts)
        return self

    def _heads_fit(self) -> None:
        """InputError for heads that do not divide what they should."""
        if self.head_dim is None and self.width % self.heads:
            fix = f"heads that fit: {_near_divisors(self.width, self.heads)}; or set head_dim"
            message = f"does not divide width = {self.width}"
            raise InputError(message, key="heads", value=self.heads, fix=fix)
        if self.kv_heads is not None and self.heads % self.kv_heads:
            fix = f"kv_heads that fit: {_near_divisors(self.heads, self.kv_heads)}"
            message = f"does not divide heads = {self.heads}"
            raise InputError(message, key="kv_heads", value=self.kv_heads, fix=fix)
        if self.resolved_head_dim % 2:
            if self.head_dim is None:
                message = f"gives heads of width / heads = {self.resolved_head_dim}"
                key, value = "heads", self.heads
            else:
                message, key, value = "is odd", "head_dim", self.head_dim
            fix = "rotary positions turn pairs of numbers: the width of a head must be even"
            raise InputError(message, key=key, value=value, fix=fix)

    def _nothing_beside_mla(self) -> None:
        """InputError for a key of grouped-query attention beside `mla`."""
        for key in ("kv_heads", "head_dim", "qk_norm"):
            value = getattr(self, key)
            if value not in (None, False):
                message = "has no meaning beside mla, which has its own widths and norms"
                raise InputError(message, key=key, value=value, fix=f"leave {key} or mla out")

    def _nothing_without_experts(self) -> None:
        """InputError for a key of sparse models in a model without experts."""
        for key in ("top_k", "shared_experts", "moe_ffn", "dense_layers", "moe_every"):
            value = getattr(self, key)
            if value != Model.model_fields[key].default:
                fix = f"add for example experts = 64, or leave {key} out"
                raise InputError("has no meaning without experts", key=key, value=value, fix=fix)

    def _experts_fit(self, experts: int) -> None:
        """InputError for a sparse model that lacks a number or cannot be."""
        for key, example in (("top_k", min(8, experts)), ("moe_ffn", 1024)):
            if getattr(self, key) is None:
                message = f"is missing beside experts = {experts}"
                raise InputError(message, key=key, fix=f"for example {key} = {example}")
        assert self.top_k is not None
        if self.top_k > experts:
            message = f"is more than experts = {experts}"
            raise InputError(message, key="top_k", value=self.top_k, fix=f"at most {experts}")
        if self.dense_layers >= self.layers:
            message = f"leaves none of layers = {self.layers} for the experts"
            fix = f"at most {self.layers - 1}, or leave experts out"
            raise InputError(message, key="dense_layers", value=self.dense_layers, fix=fix)
        if self.moe_every > self.layers - self.dense_layers:
            left = self.layers - self.dense_layers
            message = f"makes none of the {left} layers after the dense ones sparse"
            raise InputError(message, key="moe_every", value=self.moe_every, fix=f"at most {left}")

    @property
    def resolved_kv_heads(self) -> int:
        """The number of key/value heads; with latent attention each head has its own."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def resolved_head_dim(self) -> int:
        """The width of one head's queries and keys."""
        if self.mla is not None:
            return self.mla.score_dim
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def resolved_vocab(self) -> int:
        """The vocabulary; a ValueError while the tokenizer has not been seen."""
        if self.vocab is None:
            raise ValueError("the vocabulary is not known yet: use with_vocab")
        return self.vocab

    @property
    def qk_dim(self) -> int:
        """The width of all heads' queries together: what a score is summed over, times heads."""
        return self.heads * self.resolved_head_dim

    @property
    def v_dim(self) -> int:
        """The width of all heads' outputs together, before the output matrix."""
        return self.heads * (self.resolved_head_dim if self.mla is None else self.mla.value_dim)

    @property
    def kv_dim(self) -> int:
        """The width of a token's keys while training, and of its values.

        With latent attention keys and values are wide as all heads and differ: their mean.
        """
        if self.mla is not None:
            return (self.qk_dim + self.v_dim) // 2
        return self.resolved_kv_heads * self.resolved_head_dim

    @property
    def num_sparse_layers(self) -> int:
        """The number of layers with experts."""
        return 0 if self.experts is None else (self.layers - self.dense_layers) // self.moe_every

    @property
    def num_dense_layers(self) -> int:
        """The number of layers with one plain feed-forward."""
        return self.layers - self.num_sparse_layers

    def is_sparse_layer(self, layer: int) -> bool:
        """Whether a layer has experts; layers count from 0."""
        after = layer - self.dense_layers + 1
        return self.experts is not None and after > 0 and after % self.moe_every == 0

    def with_vocab(self, vocab: int) -> Model:
        """The same model with `vocab` tokens. InputError if the recipe asks for another number."""
        if self.vocab is not None and self.vocab != vocab:
            fix = f"leave model.vocab out, or write {vocab}, or use another tokenizer"
            message = f"but the tokenizer has {vocab} tokens"
            raise InputError(message, key="model.vocab", value=self.vocab, fix=fix)
        return Model.model_validate({**self.model_dump(), "vocab": vocab})

    def expanded(self) -> dict[str, Any]:
        """All keys with their values, derived ones included; `vocab` only where it is known."""
        derived = {"kv_heads": self.resolved_kv_heads, "head_dim": self.resolved_head_dim}
        return {**self.model_dump(exclude_none=True), **(derived if self.mla is None else {})}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every trained tensor, in the order that all parts use."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, vocab = self.width, self.resolved_vocab
        yield "embedding.weight", (vocab, width)
        for layer in range(self.layers):
            block = f"blocks.{layer}."
            yield block + "attention_norm.weight", (width,)
            if self.mla is None:
                yield from self._grouped_tensors(block + "attention.")
            else:
                yield from self._latent_tensors(block + "attention.", self.mla)
            yield block + "ffn_norm.weight", (width,)
            if self.is_sparse_layer(layer):
                yield from self._sparse_tensors(block + "ffn.")
            else:
                yield from self._ffn_tensors(block + "ffn.", self.ffn)
        yield "norm.weight", (width,)
        if not self.tied:
            yield "head.weight", (vocab, width)

    def _grouped_tensors(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, head_dim = self.width, self.resolved_head_dim
        query, key = self.heads * head_dim, self.resolved_kv_heads * head_dim
        yield prefix + "query.weight", (query, width)
        yield prefix + "key.weight", (key, width)
        yield prefix + "value.weight", (key, width)
        yield prefix + "output.weight", (width, query)
        if self.qk_norm:
            yield prefix + "query_norm.weight", (head_dim,)
            yield prefix + "key_norm.weight", (head_dim,)

    def _latent_tensors(
        self, prefix: str, mla: LatentAttention
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, score = self.width, self.heads * mla.score_dim
        if mla.q_rank is None:
            yield prefix + "query.weight", (score, width)
        else:
            yield prefix + "query_down.weight", (mla.q_rank, width)
            yield prefix + "query_norm.weight", (mla.q_rank,)
            yield prefix + "query_up.weight", (score, mla.q_rank)
        yield prefix + "latent_down.weight", (mla.kv_rank + mla.rope_dim, width)
        yield prefix + "latent_norm.weight", (mla.kv_rank,)
        latent = self.heads * (mla.nope_dim + mla.value_dim)
        yield prefix + "latent_up.weight", (latent, mla.kv_rank)
        yield prefix + "output.weight", (width, self.heads * mla.value_dim)

    def _sparse_tensors(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        assert self.experts is not None
        assert self.moe_ffn is not None
        yield prefix + "router.weight", (self.experts, self.width)
        for expert in range(self.experts):
            yield from self._ffn_tensors(f"{prefix}experts.{expert}.", self.moe_ffn)
        for expert in range(self.shared_experts):
            yield from self._ffn_tensors(f"{prefix}shared.{expert}.", self.moe_ffn)

    def _ffn_tensors(self, prefix: str, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.gated:
            yield prefix + "gate.weight", (hidden, self.width)
        yield prefix + "up.weight", (hidden, self.width)
        yield prefix + "down.weight", (self.width, hidden)

    def num_parameters(self) -> int:
        """All trained numbers, a tied embedding once.

        By a formula, not by `tensors`, so that planning for very deep models stays cheap; a test
        holds the two equal.
        """
        embeddings = self.resolved_vocab * self.width * (1 if self.tied else 2)
        return embeddings + self._num_outside_vocabulary()

    def num_active_parameters(self) -> int:
        """Trained numbers that take part in one token: of the routed experts `top_k` a layer.

        The embedding counts as in `num_parameters`, as it does in the numbers that are published
        ("37B active"). A model without experts has all its parameters active.
        """
        idle = self.expert_parameters_per_layer() - self._num_routed_active()
        return self.num_parameters() - self.num_sparse_layers * idle

    def num_parameters_without_embedding(self) -> int:
        """Trained numbers without the input embedding; an untied head counts, a tied one not."""
        head = 0 if self.tied else self.resolved_vocab * self.width
        return head + self._num_outside_vocabulary()

    def attention_parameters_per_layer(self) -> int:
        """The matrices of a layer's attention, without norms."""
        if self.mla is None:
            heads = 2 * self.heads + 2 * self.resolved_kv_heads
            return self.width * heads * self.resolved_head_dim
        mla, score = self.mla, self.qk_dim
        query = self.width * score
        if mla.q_rank is not None:
            query = mla.q_rank * (self.width + score)
        latent = self.width * (mla.kv_rank + mla.rope_dim)
        latent += mla.kv_rank * self.heads * (mla.nope_dim + mla.value_dim)
        return query + latent + self.v_dim * self.width

    def dense_ffn_parameters_per_layer(self) -> int:
        """The matrices of the feed-forward of a layer without experts."""
        return self._num_ffn(self.ffn)

    def expert_parameters_per_layer(self) -> int:
        """The matrices of all routed experts of a sparse layer; 0 in a model without experts."""
        return (self.experts or 0) * self._num_ffn(self.moe_ffn or 0)

    def sparse_active_ffn_parameters_per_layer(self) -> int:
        """What multiplies a token in a sparse layer's feed-forward: router, top_k, shared."""
        return self._num_routed_active() + self._num_shared_and_router()

    def _num_ffn(self, hidden: int) -> int:
        return (3 if self.gated else 2) * self.width * hidden

    def _num_routed_active(self) -> int:
        return (self.top_k or 0) * self._num_ffn(self.moe_ffn or 0)

    def _num_shared_and_router(self) -> int:
        shared = self.shared_experts * self._num_ffn(self.moe_ffn or 0)
        return shared + (self.experts or 0) * self.width

    def _num_norms_per_layer(self) -> int:
        if self.mla is not None:
            return 2 * self.width + (self.mla.q_rank or 0) + self.mla.kv_rank
        return 2 * self.width + (2 * self.resolved_head_dim if self.qk_norm else 0)

    def _num_outside_vocabulary(self) -> int:
        sparse = self.expert_parameters_per_layer() + self._num_shared_and_router()
        every = self.attention_parameters_per_layer() + self._num_norms_per_layer()
        feed_forward = self.num_dense_layers * self.dense_ffn_parameters_per_layer()
        feed_forward += self.num_sparse_layers * sparse
        return self.layers * every + feed_forward + self.width

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes that generation keeps for each token of the text so far.

        Keys and values of all layers; latent attention keeps the latent and the rotary key.
        """
        if self.mla is not None:
            return self.layers * (self.mla.kv_rank + self.mla.rope_dim) * element_size
        return self.layers * 2 * self.kv_dim * element_size

    def flops_per_token(self) -> int:
        """FLOP to train on one token of a full context, forward and backward, no recompute.

        6 for each weight that is multiplied (output head yes, embedding lookup no, of the routed
        experts `top_k`), plus causal attention: scores and values are 2 matmuls of 2 H D T FLOP a
        token forward, three times that with the backward, half of it causal = 6 layers H D T; with
        latent attention the D of scores and of values differ. The usual count (Kaplan et al.
        2020, section 2.1; Chowdhery et al. 2022, appendix B), halved for causality.
        """
        matmul = self.layers * self.attention_parameters_per_layer()
        matmul += self.num_dense_layers * self.dense_ffn_parameters_per_layer()
        matmul += self.num_sparse_layers * self.sparse_active_ffn_parameters_per_layer()
        matmul += self.resolved_vocab * self.width
        attention = self.layers * (self.qk_dim + self.v_dim) * self.context
        return 6 * matmul + 3 * attention

    def not_computed(self) -> list[tuple[str, object, str]]:
        """(key, value, message) of each form that the decoder does not compute yet."""
        found: list[tuple[str, object, str]] = []
        if self.experts is not None:
            message = "feature model.experts: only dense feed-forwards train so far"
            found.append(("experts", self.experts, message))
        if self.mla is not None:
            message = "feature model.mla: only grouped-query attention trains so far"
            found.append(("mla", self.mla.model_dump(exclude_none=True), message))
        if not self.gated:
            message = "feature model.gated = false: only gated feed-forwards train so far"
            found.append(("gated", self.gated, message))
        return found


def _near_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` next to `wanted`, below and above."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = {*small, *(number // n for n in small)}
    below = max(n for n in divisors if n <= wanted)
    above = min((n for n in divisors if n >= wanted), default=number)
    return str(below) if below == above else f"{below} or {above}"
