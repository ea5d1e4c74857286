"""A model as a server needs it: many sequences a step, keys and values in pages, no gradients.

What it is: the same formulas as decoder.py on rows of tokens that may belong to any sequences, at
any positions. On a CPU they are compiled for it (cpu_inference.py), on any other device they are
torch's operations (device_inference.py). What it is not: a schedule (atoll.serving). Its caller
says which pages a sequence has; the memory for them is taken at the start.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.errors import InputError
from atoll.model import Model

PAGE = 256
"""Positions of a page."""

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


class Inference(ABC):
    """A model's weights on a device and the pages of its sequences, all memory taken here.

    InputError for a form that `Model.not_computed` names.
    """

    def __init__(self, model: Model, *, num_pages: int, page: int) -> None:
        for key, value, message in model.not_computed():
            raise InputError(message, key=f"model.{key}", value=value)
        self.model, self.num_pages, self.page = model, num_pages, page

    @abstractmethod
    def step(
        self, pieces: Sequence[Piece], *, num_layers: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Take tokens in; the logits [wanted pieces, V] after those that want them, on the host.

        ``num_layers`` leaves out the layers after the first few: for tests.
        """

    @abstractmethod
    def copy(self, source: int, target: int, num_positions: int) -> None:
        """Copy the first positions of a page to another one; nothing else of it matters after.

        With 0 positions the target is as if new; source and target may be the same.
        """


class Weights:
    """A model's tensors in fp32, in the forms that a server lays out."""

    def __init__(self, model: Model, tensors: Mapping[str, Any]) -> None:
        self._tensors, self._head_dim = tensors, model.resolved_head_dim

    def __getitem__(self, name: str) -> Tensor:
        return torch.as_tensor(self._tensors[name]).detach().float()

    def behind_norm(self, norm: str, *names: str, paired: bool = False) -> Tensor:
        """Matrices one below another, with the weight of the norm before them multiplied in.

        ``paired``: rows of queries and keys as `paired` puts them.
        """
        turned = ("query.weight", "key.weight") if paired else ()
        parts = [self.paired(n) if turned and n.endswith(turned) else self[n] for n in names]
        return torch.cat(parts) * self[norm]

    def paired(self, name: str) -> Tensor:
        """Rows of heads with the two numbers of a rotated pair beside each other, not in halves."""
        whole = self[name]
        halves = whole.view(-1, 2, self._head_dim // 2, *whole.shape[1:])
        return halves.transpose(1, 2).reshape(whole.shape)


def page_bytes(model: Model, page: int = PAGE) -> int:
    """Bytes of one page of keys and values of all layers, in fp32."""
    return 2 * FLOAT * page * model.layers * model.resolved_kv_heads * model.resolved_head_dim
