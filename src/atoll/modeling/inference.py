"""The decoder as a server needs it: many sequences a step, keys and values in pages, no gradients.

What it is: the same formulas as decoder.py on rows of tokens that may belong to any sequences, at
any positions, with weights laid out for few rows. What it is not: a schedule (atoll.serving). Its
caller says which pages a sequence has; here nothing is allocated after the start.

Exactness: a row's bits depend on its own sequence alone. Two things see to it. Matrix products run
in row counts that were seen to agree (`agreeing_rows`), with sums of at most `LONGEST_SUM` terms,
because above that a library may cut a sum in another way for another number of rows. And attention
goes by whole pages, position by position the same ones, however many queries are asked at once.

Shape suffixes as in decoder.py, and: N rows of a step, P positions of a page, G = H/K query heads
share one key head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import rotary

PAGE = 256
"""Positions of a page: also the block in which probabilities meet values."""

LONGEST_SUM = 768
"""Terms of one matrix product's sums; longer ones are added up from parts in a fixed order."""

ROW_COUNTS = (2, 4, 8, 16, 32, 64, 128)
"""A step is filled up to one of these many rows. One row alone would go through the library's
product of a matrix and a vector, which adds up in another order."""

MIN_QUERIES = 8
"""Queries that meet the keys of one head together: a few are asked twice to make so many."""

FLOAT = 4  # bytes


class Piece(NamedTuple):
    """Tokens of one sequence that follow one another: what a step computes of it.

    ``pages`` are all that the sequence has up to the last of these tokens, in order; ``first`` is
    the position of the first one. ``wanted``: give the logits after the last one.
    """

    pages: Sequence[int]
    first: int
    tokens: Sequence[int]
    wanted: bool


class _Part(NamedTuple):
    """A piece, or what of it lies in one page: rows [start, stop) and the pages they look at."""

    start: int
    stop: int
    pages: Sequence[int]
    offset: int  # of the first row in the last page


class _Layer(NamedTuple):
    """One block's weights, each matrix [in, out] in parts of its first dimension."""

    attention_norm: Tensor
    qkv: list[Tensor]
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: list[Tensor]
    ffn_norm: Tensor
    gate_up: list[Tensor]
    down: list[Tensor]
    keys: Tensor  # [S, K, D], S all positions of all pages
    values: Tensor


def page_bytes(model: Model, page: int = PAGE) -> int:
    """Bytes of one page of keys and values of all layers, in fp32."""
    return 2 * FLOAT * page * model.layers * model.resolved_kv_heads * model.resolved_head_dim


class Inference:
    """A model's weights on a device and the pages of its sequences, all memory taken here.

    ``row_counts``: a step is filled up to the next of these, so that its bits are those of any
    other. ``min_queries``: see MIN_QUERIES. InputError for a form that `Model.not_computed` names.
    """

    def __init__(
        self,
        model: Model,
        tensors: Mapping[str, Any],
        *,
        device: torch.device,
        num_pages: int,
        page: int = PAGE,
        row_counts: Sequence[int] = ROW_COUNTS,
        min_queries: int = MIN_QUERIES,
    ) -> None:
        for key, value, message in model.not_computed():
            raise InputError(message, key=f"model.{key}", value=value)
        self.model, self.device, self.page, self.num_pages = model, device, page, num_pages
        self.row_counts = sorted(row_counts)
        self.min_queries = min_queries
        self._num_heads, self._num_kv = model.heads, model.resolved_kv_heads
        self._head_dim = model.resolved_head_dim
        self._scale = self._head_dim**-0.5

        def weight(*names: str) -> Tensor:
            found = [torch.as_tensor(tensors[name]).float() for name in names]
            return found[0] if len(found) == 1 else torch.cat(found)

        def rows(name: str) -> Tensor:
            return weight(name).to(device)

        def matrix(*names: str) -> list[Tensor]:
            whole_CO = weight(*names).t()
            return [part.contiguous().to(device) for part in whole_CO.split(_part(len(whole_CO)))]

        self._embedding_VC = rows("embedding.weight")
        self._head = matrix("embedding.weight" if model.tied else "head.weight")
        self._norm = rows("norm.weight")
        shape = (num_pages * page, self._num_kv, self._head_dim)
        self._layers = []
        for layer in range(model.layers):
            b = f"blocks.{layer}."
            a = f"{b}attention."
            self._layers.append(
                _Layer(
                    attention_norm=rows(f"{b}attention_norm.weight"),
                    qkv=matrix(f"{a}query.weight", f"{a}key.weight", f"{a}value.weight"),
                    query_norm=rows(f"{a}query_norm.weight") if model.qk_norm else None,
                    key_norm=rows(f"{a}key_norm.weight") if model.qk_norm else None,
                    output=matrix(f"{a}output.weight"),
                    ffn_norm=rows(f"{b}ffn_norm.weight"),
                    gate_up=matrix(f"{b}ffn.gate.weight", f"{b}ffn.up.weight"),
                    down=matrix(f"{b}ffn.down.weight"),
                    keys=torch.empty(shape, device=device).zero_(),
                    values=torch.empty(shape, device=device).zero_(),
                )
            )
        cos, sin = rotary.table(model.context, self._head_dim, model.rope_base)
        self._cos_TD = torch.from_numpy(cos).to(device)
        self._sin_TD = torch.from_numpy(sin).to(device)
        group = self._num_heads // self._num_kv
        mask_PP = torch.full((page, page), -torch.inf).triu_(1)
        self._mask_MP = mask_PP.repeat_interleave(group, 0).to(device)

    @torch.inference_mode()
    def step(self, pieces: Sequence[Piece]) -> npt.NDArray[np.float32]:
        """Take tokens in; the logits [wanted pieces, V] after those that want them, on the host."""
        tokens, positions, places, parts, wanted = self._laid_out(pieces)
        num_rows = len(places)

        def put(numbers: list[int], num: int) -> Tensor:
            filled = numbers + [0] * (num - len(numbers))
            return torch.tensor(filled, dtype=torch.int64).to(self.device)

        padded = self._padded(num_rows)
        positions_N = put(positions, padded)
        places_N = put(places, num_rows)
        tables = tuple(t.index_select(0, positions_N).unsqueeze(1) for t in self._tables())
        x_NC = self._embedding_VC.index_select(0, put(tokens, padded))
        y_NC = x_NC.new_zeros(padded, self._num_heads * self._head_dim)
        for layer in self._layers:
            self._attention(layer, x_NC, y_NC, tables, places_N, parts)
            self._feed_forward(layer, x_NC)
        if not wanted:
            return np.zeros((0, self.model.resolved_vocab), dtype=np.float32)
        last_NC = x_NC.index_select(0, put(wanted, self._padded(len(wanted))))
        logits_NV = _product(_normed(last_NC, self._norm, self.model.norm_eps), self._head)
        return logits_NV[: len(wanted)].cpu().numpy()

    @torch.inference_mode()
    def copy(self, source: int, target: int, num_positions: int) -> None:
        """Copy the first positions of a page to another one and clear the rest of that.

        With 0 positions the target is cleared; source and target may be the same.
        """
        a, b, stop = source * self.page, target * self.page, (target + 1) * self.page
        for layer in self._layers:
            for kept_SKD in (layer.keys, layer.values):
                if source != target and num_positions:
                    kept_SKD[b : b + num_positions].copy_(kept_SKD[a : a + num_positions])
                kept_SKD[b + num_positions : stop].zero_()

    def _tables(self) -> tuple[Tensor, Tensor]:
        return self._cos_TD, self._sin_TD

    def _padded(self, num_rows: int) -> int:
        """The next row count that agrees with the others; beyond the largest, its multiples."""
        for count in self.row_counts:
            if num_rows <= count:
                return count
        largest = self.row_counts[-1]
        return -(-num_rows // largest) * largest

    def _laid_out(
        self, pieces: Sequence[Piece]
    ) -> tuple[list[int], list[int], list[int], list[_Part], list[int]]:
        """Rows one after another: token, position, place in the store; the parts; wanted rows."""
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        parts: list[_Part] = []
        wanted: list[int] = []
        for piece in pieces:
            first, last = piece.first, piece.first + len(piece.tokens)
            tokens += piece.tokens
            positions += range(first, last)
            while first < last:
                number, offset = divmod(first, self.page)
                stop = min(last, (number + 1) * self.page)
                row = len(places)
                place = piece.pages[number] * self.page + offset
                places += range(place, place + stop - first)
                parts.append(_Part(row, len(places), piece.pages[: number + 1], offset))
                first = stop
            if piece.wanted:
                wanted.append(len(places) - 1)
        return tokens, positions, places, parts, wanted

    def _attention(
        self,
        layer: _Layer,
        x_NC: Tensor,
        y_NC: Tensor,
        tables: tuple[Tensor, ...],
        places_N: Tensor,
        parts: Sequence[_Part],
    ) -> None:
        """Add a block's attention to ``x_NC``; ``y_NC`` is room for the heads' results."""
        eps, num_heads, num_kv = self.model.norm_eps, self._num_heads, self._num_kv
        num_rows = len(places_N)
        qkv_NC = _product(_normed(x_NC, layer.attention_norm, eps), layer.qkv)
        heads_NHD = qkv_NC.view(len(x_NC), num_heads + 2 * num_kv, self._head_dim)
        turned_NHD = heads_NHD[:, : num_heads + num_kv]
        if layer.query_norm is not None and layer.key_norm is not None:
            q_NHD = _normed(heads_NHD[:, :num_heads], layer.query_norm, eps)
            k_NKD = _normed(heads_NHD[:, num_heads : num_heads + num_kv], layer.key_norm, eps)
            turned_NHD = torch.cat((q_NHD, k_NKD), 1)
        turned_NHD = _turned(turned_NHD, *tables)
        layer.keys.index_copy_(0, places_N, turned_NHD[:num_rows, num_heads:])
        layer.values.index_copy_(0, places_N, heads_NHD[:num_rows, num_heads + num_kv :])
        for part in parts:
            self._attend(layer, turned_NHD, y_NC, part)
        _add_product(x_NC, y_NC, layer.output)

    def _attend(self, layer: _Layer, q_NHD: Tensor, y_NC: Tensor, part: _Part) -> None:
        """One part's queries look at all positions up to their own; the result goes to y_NC."""
        num_kv, dim, page = self._num_kv, self._head_dim, self.page
        group, num = self._num_heads // num_kv, part.stop - part.start
        q_KMD = q_NHD[part.start : part.stop, : self._num_heads].reshape(num, num_kv, group, dim)
        q_KMD = q_KMD.transpose(0, 1).reshape(num_kv, num * group, dim)
        mask_MP = self._mask_MP[part.offset * group : (part.offset + num) * group]
        if num * group < self.min_queries:
            times = -(-self.min_queries // (num * group))
            q_KMD, mask_MP = q_KMD.repeat(1, times, 1), mask_MP.repeat(times, 1)
        last = len(part.pages) - 1
        scores = []
        for number, place in enumerate(part.pages):
            k_KDP = layer.keys[place * page : (place + 1) * page].permute(1, 2, 0)
            if number == last:
                scores.append(torch.baddbmm(mask_MP, q_KMD, k_KDP, alpha=self._scale))
            else:
                scores.append(torch.bmm(q_KMD, k_KDP).mul_(self._scale))
        scores_KMS = scores[0] if last == 0 else torch.cat(scores, -1)
        p_KMS = torch.softmax(scores_KMS, -1)
        y_KMD: Tensor | None = None
        for number, place in enumerate(part.pages):
            v_KPD = layer.values[place * page : (place + 1) * page].transpose(0, 1)
            p_KMP = p_KMS[:, :, number * page : (number + 1) * page]
            y_KMD = torch.bmm(p_KMP, v_KPD) if y_KMD is None else y_KMD.baddbmm_(p_KMP, v_KPD)
        assert y_KMD is not None
        y_KTGD = y_KMD[:, : num * group].reshape(num_kv, num, group, dim)
        y_NC[part.start : part.stop].view(num, num_kv, group, dim).copy_(y_KTGD.transpose(0, 1))

    def _feed_forward(self, layer: _Layer, x_NC: Tensor) -> None:
        """Add a block's SwiGLU to ``x_NC``."""
        both_NF = _product(_normed(x_NC, layer.ffn_norm, self.model.norm_eps), layer.gate_up)
        gate_NF, up_NF = both_NF.chunk(2, -1)
        _add_product(x_NC, F.silu(gate_NF).mul_(up_NF), layer.down)


def _part(length: int) -> int:
    """The length of the parts of a sum of ``length`` terms: at most LONGEST_SUM, in 64s."""
    num_parts = -(-length // LONGEST_SUM)
    return min(length, -(-length // (64 * num_parts)) * 64)


def _product(x_NC: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """x times a matrix whose rows come in parts."""
    if len(parts) == 1:
        return torch.mm(x_NC, parts[0])
    columns = x_NC.split([len(part) for part in parts], -1)
    y_NC = torch.mm(columns[0], parts[0])
    for column, part in zip(columns[1:], parts[1:], strict=True):
        y_NC.addmm_(column, part)
    return y_NC


def _add_product(sum_NC: Tensor, x_NC: Tensor, parts: Sequence[Tensor]) -> None:
    """Add x times a matrix, whose rows come in parts, to ``sum_NC``."""
    for column, part in zip(x_NC.split([len(part) for part in parts], -1), parts, strict=True):
        sum_NC.addmm_(column, part)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    root = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (x * root).mul_(weight)


def _turned(x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """Every head turned by its row's angles, the two halves against each other."""
    half = x_NHD.shape[-1] // 2
    first, second = x_NHD[..., :half], x_NHD[..., half:]
    y_NHD = torch.empty_like(x_NHD, memory_format=torch.contiguous_format)
    torch.mul(first, cos_N1D, out=y_NHD[..., :half]).addcmul_(second, sin_N1D, value=-1.0)
    torch.mul(second, cos_N1D, out=y_NHD[..., half:]).addcmul_(first, sin_N1D)
    return y_NHD
