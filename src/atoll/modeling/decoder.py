"""The decoder: one causal language model of the Llama and Qwen family, written for one device.

What it is: RMSNorm, rotary positions (the two halves of a head rotated against each other, as in
Hugging Face's Llama), grouped-query attention, SwiGLU, tied or untied embeddings, and optionally
a norm on queries and keys (as in Qwen3). What it is not: parallel. Layouts are applied from
outside. Next to read: functions.py, where the hand-derived gradients are.

Shape suffixes: B sequences, T tokens of a sequence, N = B*T tokens, C model width, H query heads,
K key-value heads, D numbers of a head, F feed-forward width, V vocabulary, S cached positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atoll.model import Model
from atoll.modeling import rotary


class Weight(nn.Module):
    """One parameter called ``weight``; zeros until initial.fill or a checkpoint sets it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class Cache:
    """The keys and values of the tokens seen so far, for generation; all memory is taken at once."""

    def __init__(self, decoder: Decoder, *, num_sequences: int, num_positions: int) -> None:
        model, like = decoder.model, decoder.embedding.weight
        shape = (num_sequences, model.resolved_kv_heads, num_positions, model.resolved_head_dim)
        self.keys = [like.new_zeros(shape) for _ in range(model.layers)]
        self.values = [like.new_zeros(shape) for _ in range(model.layers)]
        self.num_positions = num_positions
        self.length = 0


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = model.heads, model.resolved_kv_heads
        self.head_dim, self.eps = model.resolved_head_dim, model.norm_eps
        self.query = Weight(self.num_heads * self.head_dim, model.width)
        self.key = Weight(self.num_kv_heads * self.head_dim, model.width)
        self.value = Weight(self.num_kv_heads * self.head_dim, model.width)
        self.output = Weight(model.width, self.num_heads * self.head_dim)
        if model.qk_norm:
            self.query_norm = Weight(self.head_dim)
            self.key_norm = Weight(self.head_dim)

    def forward(
        self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor, cache: Cache | None, layer: int
    ) -> Tensor:
        num_sequences, num_tokens, _ = x_BTC.shape
        split = (num_sequences, num_tokens, -1, self.head_dim)
        q_BTHD = F.linear(x_BTC, self.query.weight).view(split)
        k_BTKD = F.linear(x_BTC, self.key.weight).view(split)
        v_BTKD = F.linear(x_BTC, self.value.weight).view(split)
        if hasattr(self, "query_norm"):
            q_BTHD = rms_norm(q_BTHD, self.query_norm.weight, self.eps)
            k_BTKD = rms_norm(k_BTKD, self.key_norm.weight, self.eps)
        q_BHTD = rotate(q_BTHD, cos_TD, sin_TD).transpose(1, 2)
        k_BKTD = rotate(k_BTKD, cos_TD, sin_TD).transpose(1, 2)
        v_BKTD = v_BTKD.transpose(1, 2)
        mask = None
        if cache is not None:
            first, last = cache.length, cache.length + num_tokens
            cache.keys[layer][:, :, first:last] = k_BKTD
            cache.values[layer][:, :, first:last] = v_BKTD
            k_BKTD, v_BKTD = cache.keys[layer][:, :, :last], cache.values[layer][:, :, :last]
            if first > 0 and num_tokens > 1:
                ahead = torch.ones(num_tokens, last, dtype=torch.bool, device=x_BTC.device)
                mask = ahead.tril(first)
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BKTD,
            v_BKTD,
            attn_mask=mask,
            is_causal=mask is None and num_tokens > 1,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return F.linear(y_BHTD.transpose(1, 2).flatten(2), self.output.weight)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate = Weight(model.ffn, model.width)
        self.up = Weight(model.ffn, model.width)
        self.down = Weight(model.width, model.ffn)

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate_BTF = F.linear(x_BTC, self.gate.weight)
        up_BTF = F.linear(x_BTC, self.up.weight)
        return F.linear(F.silu(gate_BTF) * up_BTF, self.down.weight)


class Block(nn.Module):
    """One layer: attention, then the feed-forward part, each added to the residual stream."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.eps = model.norm_eps
        self.attention_norm = Weight(model.width)
        self.attention = Attention(model)
        self.ffn_norm = Weight(model.width)
        self.ffn = FeedForward(model)

    def forward(
        self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor, cache: Cache | None, layer: int
    ) -> Tensor:
        normed_BTC = rms_norm(x_BTC, self.attention_norm.weight, self.eps)
        x_BTC = x_BTC + self.attention(normed_BTC, cos_TD, sin_TD, cache, layer)
        return x_BTC + self.ffn(rms_norm(x_BTC, self.ffn_norm.weight, self.eps))


class Decoder(nn.Module):
    """The whole model. Its parameters are ``model.tensors()``, by the same names, in that order.

    Parameters are fp32 zeros until ``initial.fill`` or a checkpoint sets them. ``model.vocab``
    must be set.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert model.vocab is not None, "Model.with_vocab comes before Decoder"
        self.model = model
        self.embedding = Weight(model.vocab, model.width)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.layers))
        self.norm = Weight(model.width)
        if not model.tied:
            self.head = Weight(model.vocab, model.width)
        cos, sin = rotary.table(model.context, model.resolved_head_dim, model.rope_base)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, C]: the output head's weight, which is the embedding's when they are tied."""
        weight: Tensor = self.embedding.weight if self.model.tied else self.head.weight
        return weight

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """The residual stream after all blocks and the last norm, [B, T, C]."""
        first = 0 if cache is None else cache.length
        last = first + tokens_BT.shape[1]
        assert last <= self.model.context, "more tokens than the model's context"
        cos_TD, sin_TD = self.cos[first:last], self.sin[first:last]
        x_BTC = F.embedding(tokens_BT, self.embedding.weight)
        for layer, block in enumerate(self.blocks):
            x_BTC = block(x_BTC, cos_TD, sin_TD, cache, layer)
        if cache is not None:
            cache.length = last
        return rms_norm(x_BTC, self.norm.weight, self.model.norm_eps)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each of ``tokens_BT`` (int64, [B, T])."""
        return F.linear(self.hidden(tokens_BT, cache), self.head_weight)

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """The SUM over all positions of the cross entropy in nats, an fp32 scalar.

        ``tokens_BT`` is int64 [B, T+1]: token t+1 is what position t is to predict.
        """
        logits_BTV = self(tokens_BT[:, :-1])
        targets_N = tokens_BT[:, 1:].reshape(-1)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_N, reduction="sum")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x_BTHD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turn the pair (x[i], x[i + D/2]) of each head by its position's angle i."""
    first, second = x_BTHD.chunk(2, dim=-1)
    cos, sin = cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
