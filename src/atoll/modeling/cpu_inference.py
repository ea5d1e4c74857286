"""Inference on a CPU by kernels.py: weights in tiles, keys and values in pages, any rows at all.

What it is: the memory, and a step as numbers for the kernels. What it is not: needed. Where numba
is missing or does not compute what it should (`step_works`), device_inference.py does it by torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.model import Model
from atoll.modeling import initial, kernels, rotary
from atoll.modeling.decoder import Decoder
from atoll.modeling.inference import PAGE, Inference, Piece, Weights
from atoll.modeling.kernels import WIDTH, Floats

_ONE_AT_A_TIME = threading.Lock()
"""Some of numba's thread pools end the process when two threads use them at once."""


def product_works() -> bool:
    """Whether products are what they should be here, with the same bits in any company."""
    draw = np.random.default_rng(0)
    x, w = (draw.standard_normal(shape).astype(np.float32) for shape in ((20, 50), (70, 50)))
    tiles, ones = packed(torch.from_numpy(w)), np.ones(len(x), np.float32)
    with _ONE_AT_A_TIME:
        alone = np.concatenate([_product(row[None], tiles, ones[:1]) for row in x])
        right = np.allclose(alone[:, :70], x.astype(np.float64) @ w.T, rtol=0, atol=1e-4)
        some = (np.array_equal(_product(x[:n], tiles, ones[:n]), alone[:n]) for n in range(1, 21))
        return right and all(some)


def step_works() -> bool:
    """Whether steps give the logits of the decoder here, for a small model; compiles the rest."""
    sizes = {"layers": 1, "width": 40, "heads": 4, "kv_heads": 2, "ffn": 72, "context": 16}
    decoder = Decoder(Model.model_validate({**sizes, "vocab": 97, "qk_norm": True}))
    initial.fill(decoder, 0)
    tensors = {name: 8.0 * part.detach() for name, part in decoder.named_parameters()}
    decoder.load_state_dict(tensors)
    tokens = list(range(12))
    with torch.no_grad():
        right_V = decoder(torch.tensor([tokens]))[0, -1].numpy()
    inference = CpuInference(decoder.model, tensors, num_pages=2, page=8)
    inference.step([Piece([1, 0], 0, tokens[:-1], False)])
    found_V = inference.step([Piece([1, 0], 11, tokens[-1:], True)])[0]
    return np.allclose(found_V, right_V, rtol=0, atol=1e-4 * float(np.abs(right_V).max()))


def waits_long() -> bool:
    """Whether numba's threads meet by a slow way: tens of microseconds, 150 times a step."""
    return str(numba.threading_layer()) == "workqueue"


class CpuInference(Inference):
    """By compiled kernels, with at most ``threads`` threads; step it in the thread that made it."""

    def __init__(
        self,
        model: Model,
        tensors: Mapping[str, Any],
        *,
        num_pages: int,
        page: int = PAGE,
        threads: int | None = None,
    ) -> None:
        super().__init__(model, num_pages=num_pages, page=page)
        if threads:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        read = Weights(model, tensors)
        head = read["embedding.weight" if model.tied else "head.weight"]
        self._head = packed(head)
        self._embedding = None if model.tied else read["embedding.weight"].numpy()
        self._norm = read["norm.weight"].numpy()
        self._weights = _packed_layers(model, read)
        each = (model.layers, num_pages, model.resolved_kv_heads)
        dim = model.resolved_head_dim
        self._keys, self._values = _room((*each, dim, page)), _room((*each, page, dim))

    def step(
        self, pieces: Sequence[Piece], *, num_layers: int | None = None
    ) -> npt.NDArray[np.float32]:
        """One step; see the base."""
        lengths = [len(piece.tokens) for piece in pieces]
        spans = [piece.first + np.arange(len(piece.tokens)) for piece in pieces]
        pages = np.zeros((len(pieces), max(len(piece.pages) for piece in pieces)), np.int64)
        for row, piece in zip(pages, pieces, strict=True):
            row[: len(piece.pages)] = piece.pages
        rows = kernels.Rows(
            positions=np.concatenate(spans),
            pieces=np.repeat(np.arange(len(pieces)), lengths),
            pages=pages,
        )
        x_NC = self._embedded([token for piece in pieces for token in piece.tokens])
        num = self.model.layers if num_layers is None else num_layers
        with _ONE_AT_A_TIME:
            kernels.layers(
                num, x_NC, self.model.width, self._weights, rows, self._keys, self._values
            )
            wanted = [piece.wanted for piece in pieces]
            return self._logits(x_NC[np.cumsum(lengths)[wanted] - 1])

    def copy(self, source: int, target: int, num_positions: int) -> None:
        """Copy the beginning of a page. What lies behind is never looked at."""
        if source != target and num_positions:
            for part in (self._keys.swapaxes(3, 4), self._values):
                part[:, target, :, :num_positions] = part[:, source, :, :num_positions]

    def _embedded(self, tokens: list[int]) -> Floats:
        """Rows of the embedding, with columns to the end of a tile."""
        x_NC = np.zeros((len(tokens), _tiled(self.model.width)), np.float32)
        block, column = np.divmod(np.array(tokens), WIDTH)
        rows = self._head[block, :, column] if self._embedding is None else self._embedding[tokens]
        x_NC[:, : self.model.width] = rows
        return x_NC

    def _logits(self, x_NC: Floats) -> Floats:
        """Of the last layer's rows, [N, V]."""
        factors = np.empty(len(x_NC), np.float32)
        kernels.norms(x_NC, self.model.width, self._weights.epsilon, factors)
        x_NC[:, : self.model.width] *= self._norm
        return _product(x_NC, self._head, factors)[:, : self.model.resolved_vocab]


def packed(weight_OI: Tensor, into: Floats | None = None) -> Floats:
    """A weight as the kernels read it: [B, I, WIDTH], columns of a tile beside each other.

    What is missing of the last tile is 0. ``into``: an array of that shape, full of zeros.
    """
    num, terms = weight_OI.shape
    if into is None:
        into = np.zeros((_tiled(num) // WIDTH, terms, WIDTH), np.float32)
    target, whole = torch.from_numpy(into), num // WIDTH
    target[:whole] = weight_OI[: whole * WIDTH].unflatten(0, (whole, WIDTH)).transpose(1, 2)
    if whole < len(into):
        target[whole, :, : num - whole * WIDTH] = weight_OI[whole * WIDTH :].t()
    return into


def _packed_layers(model: Model, read: Weights) -> kernels.Weights:
    """All layers' weights, a norm's multiplied into the matrices behind it."""
    dim, ffn = model.resolved_head_dim, model.ffn
    of_heads, of_all = model.heads * dim, (model.heads + 2 * model.resolved_kv_heads) * dim
    shapes = {
        "qkv": (of_all, model.width),
        "output": (model.width, of_heads),
        "gate": (ffn, model.width),
        "up": (ffn, model.width),
        "down": (model.width, ffn),
    }
    made = {
        name: np.zeros((model.layers, _tiled(num) // WIDTH, terms, WIDTH), np.float32)
        for name, (num, terms) in shapes.items()
    }
    head_norms = np.ones((model.layers, 2, dim), np.float32)
    for layer in range(model.layers):
        b = f"blocks.{layer}."
        a, norm, ffn_norm = f"{b}attention.", f"{b}attention_norm.weight", f"{b}ffn_norm.weight"
        names = (f"{a}query.weight", f"{a}key.weight", f"{a}value.weight")
        packed(read.behind_norm(norm, *names), made["qkv"][layer])
        packed(read[f"{a}output.weight"], made["output"][layer])
        packed(read.behind_norm(ffn_norm, f"{b}ffn.gate.weight"), made["gate"][layer])
        packed(read.behind_norm(ffn_norm, f"{b}ffn.up.weight"), made["up"][layer])
        packed(read[f"{b}ffn.down.weight"], made["down"][layer])
        if model.qk_norm:
            for which, name in enumerate(("query_norm", "key_norm")):
                head_norms[layer, which] = read[f"{a}{name}.weight"].numpy()
    cos, sin = rotary.table(model.context, dim, model.rope_base)
    return kernels.Weights(
        **made,
        head_norms=head_norms,
        cos=cos,
        sin=sin,
        epsilon=np.float32(model.norm_eps),
        has_head_norms=model.qk_norm,
    )


def _tiled(num: int) -> int:
    """Up to the end of a tile."""
    return -(-num // WIDTH) * WIDTH


def _room(shape: tuple[int, ...]) -> Floats:
    """Zeros, with so much behind them that a tile may begin at the last one."""
    num = int(np.prod(shape))
    whole = np.empty(num + WIDTH, np.float32)
    whole.fill(0.0)  # the memory is taken now, and not when it is used
    return whole[:num].reshape(shape)


def _product(x_NI: Floats, w_BIW: Floats, factors_N: Floats) -> Floats:
    """x times a packed weight, each row times its factor, to the end of the last tile."""
    y_NO = np.empty((len(x_NI), len(w_BIW) * WIDTH), np.float32)
    kernels.product(x_NI, w_BIW, factors_N, y_NO, 0)
    return y_NO
