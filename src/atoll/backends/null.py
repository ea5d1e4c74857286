# ruff: noqa: ARG002  (overrides keep the arguments of the base)
"""The null backend: accepts everything, computes nothing, on torch's "meta" device.

A tensor there has a shape and no numbers, so a whole loop (forward, backward, hooks, update) runs
in no time and no memory; what comes to the host is zeros. For checking control flow and shapes of
models far larger than this machine. It proves nothing about arithmetic: a run must not commit
what it gives, and its kind says so.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from atoll.backends.base import Backend, Feature, Memory

if TYPE_CHECKING:
    import torch


class Null(Backend):
    """Shapes without numbers."""

    name = "null"
    device_type = "meta"
    unsupported: ClassVar[Mapping[Feature, str]] = {
        Feature.TRAINING: "nothing is computed: every number that reaches the host is zero",
        Feature.COLLECTIVE: "there is nothing to add: a meta tensor has no memory",
    }

    @property
    def collective(self) -> str:
        """gloo, for the zeros that come to the host."""
        return "gloo"

    @property
    def ray_resource(self) -> str:
        """None: nothing is computed."""
        return ""

    def available(self) -> bool:
        """Always."""
        return True

    def num_devices(self) -> int:
        """One: meta devices are not told apart."""
        return 1

    def device(self, index: int = 0) -> torch.device:
        """torch's meta device, whatever the index."""
        import torch

        return torch.device("meta")

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def memory(self, index: int = 0) -> Memory:
        """Unknown: nothing is held, so nothing limits."""
        return Memory(free=None, total=None, peak=None)

    def host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Zeros of the tensor's shape and type; a tensor of the CPU stays itself."""
        import torch

        if tensor.device.type != "meta":
            return tensor.detach()
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def sqrt(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor of x's shape."""
        import torch

        return torch.empty_like(x) if out is None else out

    def prove_exact(self, index: int = 0) -> list[str]:
        """Empty: there is no number that could be wrong."""
        return []

    @functools.cached_property
    def host_update(self) -> bool:
        """False: the update is as empty as the rest."""
        return False

    def _device_name(self, index: int) -> str:
        return "none: computes nothing"
