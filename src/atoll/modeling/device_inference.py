"""Inference by torch's own operations: any device.

Exactness: a row's bits depend on its own sequence alone. Two things see to it. Every operation runs
in row counts that were seen to agree (agreeing.py). And attention goes by whole pages, the same
ones for a position however many queries are asked at once: what comes later has probability 0.

Shape suffixes as in decoder.py, and: N rows of a step, P positions of a page, G = H/K query heads
share one key head, M query rows that meet one key head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from atoll.model import Model
from atoll.modeling import rotary
from atoll.modeling.inference import PAGE, Inference, Piece, Weights
from atoll.modeling.products import Matrix, layout


class _Part(NamedTuple):
    """A piece, or what of it lies in one page: rows [start, stop) and the pages they look at."""

    start: int
    stop: int
    pages: Sequence[int]
    offset: int  # of the first row in the last page


class _Group(NamedTuple):
    """Parts with equally many rows and pages; what is common to all layers of a step.

    Of every part: its rows of the queries and of the results, [K, M, D], M = rows * G, repeated if
    they are too few. ``raw`` [pages, parts, K, M, P] are products of queries and keys, ``scores``
    [parts, K, M, S] the probabilities. ``before`` and ``after``: (target, source) to copy where the
    order of the rows is not that of the heads.
    """

    parts: list[_Part]
    queries: list[Tensor]
    results: list[Tensor]
    raw: Tensor
    scores: Tensor
    mask: Tensor  # of the last page, [parts, 1, M, P]
    before: list[tuple[Tensor, Tensor]]
    after: list[tuple[Tensor, Tensor]]


class _Layer(NamedTuple):
    """One block: its weights, a norm's multiplied into the matrices behind it, and its store."""

    qkv: Matrix
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Matrix
    gate_up: Matrix
    down: Matrix
    store: Tensor  # [S, 2, K, D]: keys and values of all positions of all pages


class DeviceInference(Inference):
    """By torch on one device.

    ``row_counts``: a step is filled up to the next of these. ``min_queries``: fewer queries that
    meet one key head are asked several times. Both are free until `agreeing.settle` has chosen
    them.
    """

    def __init__(
        self,
        model: Model,
        tensors: Mapping[str, Any],
        *,
        device: torch.device,
        num_pages: int,
        page: int = PAGE,
    ) -> None:
        super().__init__(model, num_pages=num_pages, page=page)
        self.device = device
        self.row_counts: Sequence[int] = ()
        self.min_queries = 1
        self._num_heads, self._num_kv = model.heads, model.resolved_kv_heads
        self._head_dim = model.resolved_head_dim
        self._scale = self._head_dim**-0.5
        weights = Weights(model, tensors)
        lay = layout(device)
        self._embedding_VC = weights["embedding.weight"].contiguous().to(device)
        head = "embedding.weight" if model.tied else "head.weight"
        self._head = lay(weights.behind_norm("norm.weight", head))
        shape = (num_pages * page, 2 * self._num_kv, self._head_dim)

        def per_head(name: str) -> Tensor | None:
            return weights.paired(name).to(device) if model.qk_norm else None

        self._layers: list[_Layer] = []
        for layer in range(model.layers):
            b = f"blocks.{layer}."
            a, norm, ffn_norm = f"{b}attention.", f"{b}attention_norm.weight", f"{b}ffn_norm.weight"
            gate_up = (f"{b}ffn.gate.weight", f"{b}ffn.up.weight")
            qkv = (f"{a}query.weight", f"{a}key.weight", f"{a}value.weight")
            self._layers.append(
                _Layer(
                    qkv=lay(weights.behind_norm(norm, *qkv, paired=True)),
                    query_norm=per_head(f"{a}query_norm.weight"),
                    key_norm=per_head(f"{a}key_norm.weight"),
                    output=lay(weights[f"{a}output.weight"]),
                    gate_up=lay(weights.behind_norm(ffn_norm, *gate_up)),
                    down=lay(weights[f"{b}ffn.down.weight"]),
                    store=torch.empty(shape, device=device).zero_(),
                )
            )
        cos, sin = rotary.table(model.context, self._head_dim, model.rope_base)
        self._cos_TD = torch.from_numpy(cos).to(device)
        self._sin_TD = torch.from_numpy(sin).to(device)
        if device.type == "cpu":
            self._turns_TD = torch.complex(self._cos_TD, self._sin_TD)
        self._eps = torch.tensor(model.norm_eps).to(device)
        mask_PP = torch.full((page, page), -torch.inf).triu_(1)
        self._mask_MP = mask_PP.repeat_interleave(self._num_heads // self._num_kv, 0).to(device)
        self._views: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def step(
        self, pieces: Sequence[Piece], *, num_layers: int | None = None
    ) -> npt.NDArray[np.float32]:
        """One step; see the base."""
        with self.without_gradients():
            return self._step(pieces, num_layers)

    def _step(self, pieces: Sequence[Piece], num_layers: int | None) -> npt.NDArray[np.float32]:
        tokens, positions, places, parts, wanted = self._laid_out(pieces)
        num_rows = len(places)
        padded = self.padded(num_rows)

        def put(numbers: list[int], num: int) -> Tensor:
            filled = numbers + [0] * (num - len(numbers))
            return torch.tensor(filled, dtype=torch.int64).to(self.device)

        places_N, turns = put(places, num_rows), self._turns(put(positions, padded))
        x_NC = self._embedding_VC.index_select(0, put(tokens, padded))
        q_NC = x_NC.new_empty(padded, self._num_heads * self._head_dim)
        y_NC = torch.zeros_like(q_NC)
        groups = self._grouped(parts, q_NC, y_NC)
        for number, layer in enumerate(self._layers[:num_layers]):
            self._queries(layer, x_NC, q_NC, turns, places_N)
            for group in groups:
                self._attend(number, group)
            x_NC = layer.output.added(y_NC, x_NC)
            gate_NF, up_NF = layer.gate_up.of(self._normed(x_NC)).chunk(2, -1)
            x_NC = layer.down.added(F.silu(gate_NF).mul_(up_NF), x_NC)
        if not wanted:
            return np.zeros((0, self.model.resolved_vocab), dtype=np.float32)
        last_NC = x_NC.index_select(0, put(wanted, self.padded(len(wanted))))
        return self._head.of(self._normed(last_NC))[: len(wanted)].cpu().numpy()

    def copy(self, source: int, target: int, num_positions: int) -> None:
        """Copy the beginning of a page and clear the rest, which is multiplied by probability 0."""
        a, b, stop = source * self.page, target * self.page, (target + 1) * self.page
        with self.without_gradients():
            for layer in self._layers:
                if source != target and num_positions:
                    layer.store[b : b + num_positions].copy_(layer.store[a : a + num_positions])
                layer.store[b + num_positions : stop].zero_()

    def stored(self, pages: Sequence[int], *, num_layers: int) -> list[Tensor]:
        """What the first layers hold in these pages, for comparing: [page, 2K, D] of each."""
        layers = self._layers[:num_layers]
        return [la.store[p * self.page : (p + 1) * self.page] for la in layers for p in pages]

    def padded(self, num_rows: int) -> int:
        """The next row count that agrees with the others; beyond the largest, its multiples."""
        if not self.row_counts:
            return num_rows
        for count in self.row_counts:
            if num_rows <= count:
                return count
        largest = self.row_counts[-1]
        return -(-num_rows // largest) * largest

    def without_gradients(self) -> AbstractContextManager[None]:
        """The leaner of torch's two modes on the CPU; some devices' tensors do not know it."""
        mode = torch.inference_mode if self.device.type == "cpu" else torch.no_grad
        return mode()

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

    def _grouped(self, parts: Sequence[_Part], q_NC: Tensor, y_NC: Tensor) -> list[_Group]:
        """Parts that are alike, and views of the step's queries and results for each."""
        alike: dict[tuple[int, int], list[_Part]] = {}
        for part in parts:
            alike.setdefault((part.stop - part.start, len(part.pages)), []).append(part)
        return [self._group(members, q_NC, y_NC) for members in alike.values()]

    def _group(self, parts: list[_Part], q_NC: Tensor, y_NC: Tensor) -> _Group:
        num_kv, dim, page = self._num_kv, self._head_dim, self.page
        group = self._num_heads // num_kv
        num, num_pages = parts[0].stop - parts[0].start, len(parts[0].pages)
        times = -(-self.min_queries // (num * group))
        num_queries = times * num * group
        rows = [slice(part.start, part.stop) for part in parts]
        masks = [
            self._mask_MP[part.offset * group : (part.offset + num) * group].repeat(times, 1)
            for part in parts
        ]
        before: list[tuple[Tensor, Tensor]] = []
        after: list[tuple[Tensor, Tensor]] = []
        if num == times == 1:
            queries = [q_NC[part.start].view(num_kv, group, dim) for part in parts]
            results = [y_NC[part.start].view(num_kv, group, dim) for part in parts]
        else:
            queries, results = (
                list(q_NC.new_empty(len(parts), num_kv, num_queries, dim)) for _ in range(2)
            )
            split, asked = (num, num_kv, group, dim), (num_kv, times, num, group, dim)
            for row, query, result in zip(rows, queries, results, strict=True):
                by_head = q_NC[row].view(split).transpose(0, 1).unsqueeze(1)
                before.append((query.view(asked), by_head))
                after.append((y_NC[row].view(split), result.view(asked)[:, 0].transpose(0, 1)))
        shape = (len(parts), num_kv, num_queries)
        return _Group(
            parts=parts,
            queries=queries,
            results=results,
            raw=q_NC.new_empty(num_pages, *shape, page),
            scores=q_NC.new_empty(*shape, num_pages * page),
            mask=torch.stack(masks).unsqueeze(1),
            before=before,
            after=after,
        )

    def _queries(
        self, layer: _Layer, x_NC: Tensor, q_NC: Tensor, turns: tuple[Tensor, ...], places_N: Tensor
    ) -> None:
        """Queries of all rows into ``q_NC``, keys and values of the real ones into the store."""
        num_heads, num_kv, num_rows = self._num_heads, self._num_kv, len(places_N)
        qkv_NC = layer.qkv.of(self._normed(x_NC))
        heads_NHD = qkv_NC.view(len(x_NC), num_heads + 2 * num_kv, self._head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            for part, weight in (
                (heads_NHD[:, :num_heads], layer.query_norm),
                (heads_NHD[:, num_heads : num_heads + num_kv], layer.key_norm),
            ):
                part.copy_(self._normed(part).mul_(weight))
        _turn(heads_NHD[:, : num_heads + num_kv], turns)
        layer.store.index_copy_(0, places_N, heads_NHD[:num_rows, num_heads:])
        q_NC.copy_(qkv_NC[:, : q_NC.shape[1]])

    def _attend(self, layer: int, group: _Group) -> None:
        """Every part's queries look at all positions up to their own."""
        page, last = self.page, len(group.raw) - 1
        for target, source in group.before:
            target.copy_(source)
        views = [[self._of_page(number)[layer] for number in part.pages] for part in group.parts]
        for part, (query, of_pages) in enumerate(zip(group.queries, views, strict=True)):
            for number, (k_KDP, _) in enumerate(of_pages):
                torch.bmm(query, k_KDP, out=group.raw[number, part])
        for number in range(last):
            columns = group.scores[..., number * page : (number + 1) * page]
            torch.mul(group.raw[number], self._scale, out=columns)
        columns = group.scores[..., last * page :]
        torch.add(group.mask, group.raw[last], alpha=self._scale, out=columns)
        torch.softmax(group.scores, -1, out=group.scores)
        for p_KMS, y_KMD, of_pages in zip(group.scores, group.results, views, strict=True):
            for number, (_, v_KPD) in enumerate(of_pages):
                p_KMP = p_KMS[..., number * page : (number + 1) * page]
                if number == 0:
                    torch.bmm(p_KMP, v_KPD, out=y_KMD)
                else:
                    y_KMD.baddbmm_(p_KMP, v_KPD)
        for target, source in group.after:
            target.copy_(source)

    def _of_page(self, page: int) -> list[tuple[Tensor, Tensor]]:
        """A page's keys [K, D, P] and values [K, P, D] in each layer: views, made once."""
        views = self._views.get(page)
        if views is None:
            rows = slice(page * self.page, (page + 1) * self.page)
            views = self._views[page] = [
                (
                    layer.store[rows, : self._num_kv].permute(1, 2, 0),
                    layer.store[rows, self._num_kv :].transpose(0, 1),
                )
                for layer in self._layers
            ]
        return views

    def _normed(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, length, length, value=1.0 / x.shape[-1]).rsqrt_()

    def _turns(self, positions_N: Tensor) -> tuple[Tensor, ...]:
        """The rotations of these positions, for `_turn`."""
        on_cpu = self.device.type == "cpu"
        tables = [self._turns_TD] if on_cpu else [self._cos_TD, self._sin_TD]
        return tuple(table.index_select(0, positions_N).unsqueeze(1) for table in tables)


def _turn(x_NHD: Tensor, turns: tuple[Tensor, ...]) -> None:
    """Turn every pair (x[2i], x[2i + 1]) by its row's angle i, in place (Su et al. 2021)."""
    pairs = x_NHD.unflatten(-1, (-1, 2))
    if len(turns) == 1:
        torch.view_as_complex(pairs).mul_(turns[0])
        return
    cos_N1D, sin_N1D = turns
    first, second = pairs[..., 0], pairs[..., 1]
    turned = first * cos_N1D - second * sin_N1D
    second.copy_(second * cos_N1D + first * sin_N1D)
    first.copy_(turned)
