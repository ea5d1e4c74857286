"""Model: the shapes of a decoder and the arithmetic on them.

No weights and no torch: the module that computes is `atoll.modeling.decoder.Decoder`, and it has
exactly the tensors that `Model.tensors` lists, in that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from atoll.errors import InputError
from atoll.strict import Noun

Count = Annotated[int, Field(ge=1, le=2**40)]
"""A whole number of at least 1; the upper bound only refuses slips."""


class Model(Noun):
    """The shapes of a Llama/Qwen decoder: RMSNorm, rotary positions, grouped queries, SwiGLU.

    `kv_heads` None means as many as `heads`; `head_dim` None means width // heads; `vocab` None
    means that the tokenizer decides it. `flops_per_token` and the like need a vocab.
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

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
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
        return self

    @property
    def resolved_kv_heads(self) -> int:
        """The number of key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def resolved_head_dim(self) -> int:
        """The width of one head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def resolved_vocab(self) -> int:
        """The vocabulary; a ValueError while the tokenizer has not been seen."""
        if self.vocab is None:
            raise ValueError("the vocabulary is not known yet: use with_vocab")
        return self.vocab

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
        return {**self.model_dump(exclude_none=True), **derived}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every trained tensor, in the order that all parts use."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, vocab, head_dim = self.width, self.resolved_vocab, self.resolved_head_dim
        query, key = self.heads * head_dim, self.resolved_kv_heads * head_dim
        yield "embedding.weight", (vocab, width)
        for layer in range(self.layers):
            block = f"blocks.{layer}."
            yield block + "attention_norm.weight", (width,)
            yield block + "attention.query.weight", (query, width)
            yield block + "attention.key.weight", (key, width)
            yield block + "attention.value.weight", (key, width)
            yield block + "attention.output.weight", (width, query)
            if self.qk_norm:
                yield block + "attention.query_norm.weight", (head_dim,)
                yield block + "attention.key_norm.weight", (head_dim,)
            yield block + "ffn_norm.weight", (width,)
            yield block + "ffn.gate.weight", (self.ffn, width)
            yield block + "ffn.up.weight", (self.ffn, width)
            yield block + "ffn.down.weight", (width, self.ffn)
        yield "norm.weight", (width,)
        if not self.tied:
            yield "head.weight", (vocab, width)

    def num_parameters(self) -> int:
        """All trained numbers, a tied embedding once.

        By a formula, not by `tensors`, so that planning for very deep models stays cheap; a test
        holds the two equal.
        """
        embeddings = self.resolved_vocab * self.width * (1 if self.tied else 2)
        return embeddings + self._num_outside_vocabulary()

    def num_parameters_without_embedding(self) -> int:
        """Trained numbers without the input embedding; an untied head counts, a tied one not."""
        head = 0 if self.tied else self.resolved_vocab * self.width
        return head + self._num_outside_vocabulary()

    def _num_outside_vocabulary(self) -> int:
        norms = 2 * self.width + (2 * self.resolved_head_dim if self.qk_norm else 0)
        return self.layers * (self._num_matmul_per_layer() + norms) + self.width

    def _num_matmul_per_layer(self) -> int:
        heads = 2 * self.heads + 2 * self.resolved_kv_heads
        return self.width * heads * self.resolved_head_dim + 3 * self.width * self.ffn

    def flops_per_token(self) -> int:
        """FLOP to train on one token of a full context, forward and backward, no recompute.

        6 for each weight that is multiplied (output head yes, embedding lookup no), plus causal
        attention: scores and values are 2 matmuls of 2 H D T FLOP a token forward, three times
        that with the backward, half of it causal = 6 layers H D T. The usual count (Kaplan et al.
        2020, section 2.1; Chowdhery et al. 2022, appendix B), halved for causality.
        """
        matmul = self.layers * self._num_matmul_per_layer() + self.resolved_vocab * self.width
        attention = self.layers * self.heads * self.resolved_head_dim * self.context
        return 6 * (matmul + attention)


def _near_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` next to `wanted`, below and above."""
    below = next((n for n in range(min(wanted, number), 0, -1) if number % n == 0), 1)
    above = next((n for n in range(wanted, number + 1) if number % n == 0), number)
    return str(below) if below == above else f"{below} or {above}"
