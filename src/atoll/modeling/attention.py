"""Causal attention with rotary positions: the blocked form for processors, and the plain one.

What it is: the same formula twice. ``attend`` takes the fused kernel that the device's own torch
has; on the CPU, whose fused kernel works one head at a time, it takes ``BlockedAttention``, which
is nearly twice as fast there. What it is not: a kernel of a vendor.

Shape suffixes as in decoder.py; G = H/K query heads share one key head; S queries make a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

QUERY_BLOCK = 64
"""Queries of a block: keys after the block are never touched."""

_KNOWS_GROUPS = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 5)


def attend(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    *,
    numbers_to_keep: int,
) -> Tensor:
    """Rotate q and k by their positions and attend causally; [B, T, H*D].

    Query head h reads key head h // (H/K); the tables are [T, D/2]. ``numbers_to_keep`` is how
    many numbers a token the probabilities may take until the backward pass; above that they are
    computed again.
    """
    num_tokens, num_heads = q_BTHD.shape[1:3]
    if q_BTHD.device.type == "cpu" and num_tokens % QUERY_BLOCK == 0:
        numbers = num_heads * (num_tokens + QUERY_BLOCK) // 2
        keep = torch.is_grad_enabled() and numbers <= numbers_to_keep
        return BlockedAttention.apply(q_BTHD, k_BTKD, v_BTKD, cos_TD, sin_TD, keep)
    q_BTHD, k_BTKD = rotate(q_BTHD, cos_TD, sin_TD), rotate(k_BTKD, cos_TD, sin_TD)
    return grouped_attention(q_BTHD, k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2), causal=True)


def grouped_attention(
    q_BTHD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    *,
    causal: bool = False,
    mask_TS: Tensor | None = None,
) -> Tensor:
    """The device's own attention, [B, T, H*D]; ``mask_TS`` is True where a query may look."""
    group = q_BTHD.shape[2] // k_BKSD.shape[1]
    more = {}
    if group > 1 and _KNOWS_GROUPS:
        more = {"enable_gqa": True}
    elif group > 1:
        k_BKSD, v_BKSD = (x.repeat_interleave(group, dim=1) for x in (k_BKSD, v_BKSD))
    y_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2), k_BKSD, v_BKSD, attn_mask=mask_TS, is_causal=causal, **more
    )
    return y_BHTD.transpose(1, 2).flatten(2)


def rotate(x_BTHD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turn the pair (x[i], x[i + D/2]) of every head of x by its position's angle i."""
    return Rotation.apply(x_BTHD, cos_TD.unsqueeze(1), sin_TD.unsqueeze(1))


class Rotation(torch.autograd.Function):
    """x [..., D] turned by tables that broadcast to [..., D/2].

    A rotation's transpose is the rotation by the opposite angle: d_x turns d_y back. Saves the
    tables only. Formula: Su et al. 2021, in the half-split order of Hugging Face's Llama.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, torch.empty_like(x, memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        d_x = torch.empty_like(d_y, memory_format=torch.contiguous_format)
        return _turn(d_y, cos, -sin, d_x), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Write x rotated by the tables' angles into ``out`` and return it."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


class BlockedAttention(torch.autograd.Function):
    """softmax(q' k'^T / sqrt(D) + causal mask) v with q' and k' rotated, in blocks of queries.

    The G heads that share keys go through one matrix product, and keys after a block are never
    touched: half of the work of the full square. With P the probabilities and O the result of a
    block, and 1/sqrt(D) part of q':
        d_v = P^T d_O;  d_P = d_O v^T;  d_S = P (d_P - sum(P d_P));  d_q' = d_S k';  d_k' = d_S^T q'
    Saves q', k', v, and P if ``keep``. Formula: Vaswani et al. 2017.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHD: Tensor,
        k_BTKD: Tensor,
        v_BTKD: Tensor,
        cos_TD: Tensor,
        sin_TD: Tensor,
        keep: bool,
    ) -> Tensor:
        blocks = _Blocks(q_BTHD, k_BTKD)
        q, k, v = (blocks.empty_queries(), blocks.empty_keys(), blocks.empty_keys())
        _turn(q_BTHD.view(blocks.split), *blocks.query_tables(cos_TD, sin_TD), blocks.by_token(q))
        _turn(k_BTKD, cos_TD.unsqueeze(1), sin_TD.unsqueeze(1), blocks.keys_by_token(k))
        blocks.keys_by_token(v).copy_(v_BTKD)
        y = blocks.empty_queries()
        kept = []
        for block in range(blocks.num):
            p = blocks.probabilities(q, k, block)
            torch.bmm(p, v[:, : blocks.end(block)], out=y[block])
            if keep:
                kept.append(p)
        ctx.blocks = blocks
        ctx.save_for_backward(q, k, v, cos_TD, sin_TD, *kept)
        return blocks.by_token(y).reshape(*q_BTHD.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, cos_TD, sin_TD, *kept = ctx.saved_tensors
        blocks: _Blocks = ctx.blocks
        d_o, d_q = blocks.empty_queries(), blocks.empty_queries()
        d_k, d_v = blocks.empty_keys(), blocks.empty_keys()
        blocks.by_token(d_o).copy_(d_y_BTC.reshape(blocks.split))
        for block in reversed(range(blocks.num)):
            end = blocks.end(block)
            p = kept[block] if kept else blocks.probabilities(q, k, block)
            # The last block reads all keys: it comes first and fills what the others add to.
            beta = 0 if block == blocks.num - 1 else 1
            d_v[:, :end].baddbmm_(p.transpose(1, 2), d_o[block], beta=beta)
            d_p = torch.bmm(d_o[block], v[:, :end].transpose(1, 2))
            d_s = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype)
            torch.bmm(d_s, k[:, :end], out=d_q[block])
            d_k[:, :end].baddbmm_(d_s.transpose(1, 2), q[block], beta=beta)
        cos, sin = blocks.query_tables(cos_TD, sin_TD)
        d_q_tokens = _turn(blocks.by_token(d_q), cos, -sin, d_y_BTC.new_empty(blocks.split))
        d_k_tokens = d_y_BTC.new_empty(blocks.key_shape)
        _turn(blocks.keys_by_token(d_k), cos_TD.unsqueeze(1), -sin_TD.unsqueeze(1), d_k_tokens)
        d_v_tokens = blocks.keys_by_token(d_v).contiguous()
        return d_q_tokens.view(blocks.query_shape), d_k_tokens, d_v_tokens, None, None, None


class _Blocks:
    """The shapes of blocked attention: queries as [block, B*K, G*S, D], keys as [B*K, T, D]."""

    def __init__(self, q_BTHD: Tensor, k_BTKD: Tensor) -> None:
        self.query_shape, self.key_shape = q_BTHD.shape, k_BTKD.shape
        num_sequences, num_tokens, num_heads, self.head_dim = q_BTHD.shape
        num_kv_heads = k_BTKD.shape[2]
        self.group = num_heads // num_kv_heads
        self.batch = num_sequences * num_kv_heads
        self.num = num_tokens // QUERY_BLOCK
        self.split = (num_sequences, self.num, QUERY_BLOCK, num_kv_heads, self.group, self.head_dim)
        self.like = q_BTHD.new_empty(0)
        # What each query of a block may not see among the block's own keys.
        self.mask = q_BTHD.new_full((QUERY_BLOCK, QUERY_BLOCK), -math.inf).triu_(1)

    def empty_queries(self) -> Tensor:
        """Memory for all queries, block by block."""
        return self.like.new_empty(self.num, self.batch, self.group * QUERY_BLOCK, self.head_dim)

    def empty_keys(self) -> Tensor:
        """Memory for the keys or the values."""
        return self.like.new_empty(self.batch, self.key_shape[1], self.head_dim)

    def by_token(self, queries: Tensor) -> Tensor:
        """A view of block-wise queries as [B, block, S, K, G, D], which is [B, T, H, D] split."""
        num_sequences, num, size, num_kv_heads, group, head_dim = self.split
        shape = (num, num_sequences, num_kv_heads, group, size, head_dim)
        return queries.view(shape).permute(1, 0, 4, 2, 3, 5)

    def keys_by_token(self, keys: Tensor) -> Tensor:
        """A view of keys or values as [B, T, K, D]."""
        num_sequences, num_tokens, num_kv_heads, head_dim = self.key_shape
        return keys.view(num_sequences, num_kv_heads, num_tokens, head_dim).transpose(1, 2)

    def query_tables(self, cos_TD: Tensor, sin_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The tables times 1/sqrt(D), shaped to broadcast over split queries."""
        scale, shape = 1.0 / math.sqrt(self.head_dim), (self.num, QUERY_BLOCK, 1, 1, -1)
        return (cos_TD * scale).view(shape), (sin_TD * scale).view(shape)

    def end(self, block: int) -> int:
        """One past the last key that a block's queries see."""
        return (block + 1) * QUERY_BLOCK

    def probabilities(self, q: Tensor, k: Tensor, block: int) -> Tensor:
        """[B*K, G*S, keys up to the block's end]: the softmax of the masked scores."""
        end = self.end(block)
        scores = torch.bmm(q[block], k[:, :end].transpose(1, 2))
        own = scores.view(-1, QUERY_BLOCK, end)[:, :, end - QUERY_BLOCK :]
        own.add_(self.mask)
        return torch.softmax(scores, -1, out=scores)
