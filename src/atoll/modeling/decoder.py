"""The decoder: one causal language model of the Llama and Qwen family, written for one device.

What it is: RMSNorm, rotary positions (the two halves of a head rotated against each other, as in
Hugging Face's Llama), grouped-query attention, SwiGLU, tied or untied embeddings, and optionally
a norm on queries and keys (as in Qwen3). What it is not: parallel. Layouts are applied from
outside. Next to read: functions.py and attention.py, where the hand-derived gradients are.

Shape suffixes: B sequences, T tokens of a sequence, N = B*T tokens, C model width, H query heads,
K key-value heads, D numbers of a head, F feed-forward width, V vocabulary, S cached positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import rotary
from atoll.modeling.attention import attend, grouped_attention, rotate
from atoll.modeling.functions import CrossEntropy, Projections, RMSNorm, SwiGLU, TiedEmbedding


class Weight(nn.Module):
    """One parameter called ``weight``; zeros until initial.fill or a checkpoint sets it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class Cache:
    """The keys and values of the tokens seen so far, for generation; all memory is taken at once.

    ``length`` is how many positions are filled; the decoder moves it on after each call.
    """

    def __init__(self, decoder: Decoder, *, num_sequences: int, num_positions: int) -> None:
        model, like = decoder.model, decoder.embedding.weight
        shape = (num_sequences, model.resolved_kv_heads, num_positions, model.resolved_head_dim)
        self.keys = [like.new_zeros(shape) for _ in range(model.layers)]
        self.values = [like.new_zeros(shape) for _ in range(model.layers)]
        self.num_positions = num_positions
        self.length = 0

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Add rotated keys and values, and attend to all positions so far; [B, T, H*D]."""
        num_tokens = q_BTHD.shape[1]
        first, last = self.length, self.length + num_tokens
        keys_BKSD, values_BKSD = self.keys[layer][:, :, :last], self.values[layer][:, :, :last]
        keys_BKSD[:, :, first:].copy_(k_BTKD.transpose(1, 2))
        values_BKSD[:, :, first:].copy_(v_BTKD.transpose(1, 2))
        mask_TS = None
        if first > 0 and num_tokens > 1:
            mask_TS = torch.ones(num_tokens, last, dtype=torch.bool, device=q_BTHD.device)
            mask_TS = mask_TS.tril(first)
        causal = mask_TS is None and num_tokens > 1
        return grouped_attention(q_BTHD, keys_BKSD, values_BKSD, causal=causal, mask_TS=mask_TS)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.head_dim, self.eps = model.resolved_head_dim, model.norm_eps
        num_query, num_key = model.heads * self.head_dim, model.resolved_kv_heads * self.head_dim
        self.query = Weight(num_query, model.width)
        self.key = Weight(num_key, model.width)
        self.value = Weight(num_key, model.width)
        self.output = Weight(model.width, num_query)
        self.query_norm = Weight(self.head_dim) if model.qk_norm else None
        self.key_norm = Weight(self.head_dim) if model.qk_norm else None
        # Two arrays [N, F]: about what SwiGLU frees by computing its activation and product again,
        # so that a step takes no more memory than plain autograd would.
        self.numbers_to_keep = 2 * model.ffn

    def forward(
        self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor, cache: Cache | None, layer: int
    ) -> Tensor:
        num_sequences, num_tokens, _ = x_BTC.shape
        weights = (self.query.weight, self.key.weight, self.value.weight)
        q_BTHD, k_BTKD, v_BTKD = (
            y_NC.view(num_sequences, num_tokens, -1, self.head_dim)
            for y_NC in Projections.apply(x_BTC.flatten(0, 1), *weights)
        )
        if self.query_norm is not None and self.key_norm is not None:
            _, q_BTHD = RMSNorm.apply(q_BTHD, self.query_norm.weight, self.eps)
            _, k_BTKD = RMSNorm.apply(k_BTKD, self.key_norm.weight, self.eps)
        if cache is None:
            kept = self.numbers_to_keep
            y_BTC = attend(q_BTHD, k_BTKD, v_BTKD, cos_TD, sin_TD, numbers_to_keep=kept)
        else:
            q_BTHD, k_BTKD = rotate(q_BTHD, cos_TD, sin_TD), rotate(k_BTKD, cos_TD, sin_TD)
            y_BTC = cache.attend(layer, q_BTHD, k_BTKD, v_BTKD)
        return F.linear(y_BTC, self.output.weight)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate = Weight(model.ffn, model.width)
        self.up = Weight(model.ffn, model.width)
        self.down = Weight(model.width, model.ffn)

    def forward(self, x_BTC: Tensor) -> Tensor:
        weights = (self.gate.weight, self.up.weight, self.down.weight)
        y_NC: Tensor = SwiGLU.apply(x_BTC.flatten(0, 1), *weights)
        return y_NC.view(x_BTC.shape)


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
        x_BTC, normed_BTC = RMSNorm.apply(x_BTC, self.attention_norm.weight, self.eps)
        x_BTC = x_BTC + self.attention(normed_BTC, cos_TD, sin_TD, cache, layer)
        x_BTC, normed_BTC = RMSNorm.apply(x_BTC, self.ffn_norm.weight, self.eps)
        return x_BTC + self.ffn(normed_BTC)


class Decoder(nn.Module):
    """The whole model. Its parameters are ``model.tensors()``, by the same names, in that order.

    Parameters are fp32 zeros until ``initial.fill`` or a checkpoint sets them. ``model.vocab``
    must be set. The rotary tables are buffers that move with the module and are not saved.
    InputError for a form that `Model.not_computed` names.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        for key, value, message in model.not_computed():
            raise InputError(message, key=f"model.{key}", value=value)
        self.model = model
        self.embedding = Weight(model.resolved_vocab, model.width)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.layers))
        self.norm = Weight(model.width)
        self.head = None if model.tied else Weight(model.resolved_vocab, model.width)
        cos, sin = rotary.table(model.context, model.resolved_head_dim, model.rope_base)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)

    def forward(
        self, tokens_BT: Tensor, cache: Cache | None = None, *, last_only: bool = False
    ) -> Tensor:
        """Logits [B, T, V] of the token after each of ``tokens_BT`` (int64, [B, T]).

        With ``last_only`` [B, 1, V], after the last of them. A cache takes the tokens in and moves
        on.
        """
        x_BTC, head_VC = self._last_hidden(tokens_BT, cache)
        return F.linear(x_BTC[:, -1:] if last_only else x_BTC, head_VC)

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """The SUM over all positions of the cross entropy in nats, an fp32 scalar.

        ``tokens_BT`` is int64 [B, T+1]: token t+1 is what position t is to predict. With gradients
        enabled the head's gradient is computed here, and one backward pass may follow.
        """
        x_BTC, head_VC = self._last_hidden(tokens_BT[:, :-1], None)
        x_NC, targets_N = x_BTC.flatten(0, 1), tokens_BT[:, 1:].flatten()
        loss: Tensor = CrossEntropy.apply(x_NC, head_VC, targets_N, torch.is_grad_enabled())
        return loss

    def _last_hidden(self, tokens_BT: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """The normed residual stream after all blocks, [B, T, C], and the head's weight [V, C]."""
        first = 0 if cache is None else cache.length
        last = first + tokens_BT.shape[1]
        assert last <= self.model.context, "more tokens than the model's context"
        cos_TD, sin_TD = self.cos[first:last], self.sin[first:last]
        tokens_N = tokens_BT.flatten()
        head_VC: Any
        if self.head is None:
            x_NC, head_VC = TiedEmbedding.apply(self.embedding.weight, tokens_N)
        else:
            x_NC, head_VC = F.embedding(tokens_N, self.embedding.weight), self.head.weight
        x_BTC = x_NC.view(*tokens_BT.shape, -1)
        for layer, block in enumerate(self.blocks):
            x_BTC = block(x_BTC, cos_TD, sin_TD, cache, layer)
        if cache is not None:
            cache.length = last
        _, normed_BTC = RMSNorm.apply(x_BTC, self.norm.weight, self.model.norm_eps)
        return normed_BTC, head_VC
