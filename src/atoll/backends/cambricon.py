"""Cambricon MLUs through torch_mlu, written from its public sources; never run on a card by us.

The public copy of torch_mlu stops at torch 2.4 (autumn 2024) and wants the vendor's own torch
build for some versions; later ones come from the vendor only. What is said here holds for the
public copy: where a newer one can do more, it shows by trying, and this file follows.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from atoll.backends.base import Backend, Feature
from atoll.errors import RunError


class Cambricon(Backend):
    """MLU devices; fp32 without TF32, deterministic kernels as far as torch_mlu has them."""

    name = "cambricon"
    device_type = "mlu"
    visible_devices_variable = "MLU_VISIBLE_DEVICES"
    unsupported: ClassVar[Mapping[Feature, str]] = {
        Feature.FP8: "the public torch_mlu has no fp8 matrix product",
        Feature.COMPILE: "its compiler wants a patched torch; not tried, and off for bits",
        Feature.FSDP2: "fully_shard is nowhere in the public torch_mlu (torch 2.4)",
        Feature.TENSOR_PARALLEL: "unproven there, as its sharded parameters are FSDP2's",
    }

    @property
    def collective(self) -> str:
        """cncl."""
        return "cncl"

    @property
    def ray_resource(self) -> str:
        """MLU: a custom resource, as Ray does not know these chips."""
        return "MLU"

    def available(self) -> bool:
        """True if torch_mlu loads and sees a device."""
        return _load() is None and self.num_devices() > 0

    def prepare(self, *, threads: int = 1, deterministic: bool = True) -> None:
        """Settings of the base, and no TF32 in matrix products or convolutions.

        Raises RunError with the loader's own message where torch_mlu cannot be loaded.
        """
        import torch

        problem = _load()
        if problem is not None:
            raise RunError(
                f"torch_mlu cannot be loaded: {problem}. Set NEUWARE_HOME and use the torch_mlu "
                "that matches this torch, in the vendor's container."
            )
        super().prepare(threads=threads, deterministic=deterministic)
        backends: Any = torch.backends
        backends.mlu.matmul.allow_tf32 = False
        backends.cnnl.allow_tf32 = False

    def _libraries(self) -> dict[str, str | int | bool]:
        import torch

        backends: Any = torch.backends
        module: Any = importlib.import_module("torch_mlu")
        return {
            "torch_mlu": str(getattr(module, "__version__", "unknown")),
            "driver": _driver_version(),
            "tf32": bool(backends.mlu.matmul.allow_tf32),
        }


def _load() -> str | None:
    """Load torch_mlu unless torch has already; the reason why that failed, or None."""
    import torch

    if hasattr(torch, "mlu"):
        return None
    try:
        importlib.import_module("torch_mlu")
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _driver_version() -> str:
    """The kernel driver's version as it tells the system; "unknown" where it does not."""
    try:
        path = Path("/proc/driver/cambricon/version")
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        return text.splitlines()[0] if text else "unknown"
    except OSError:
        return "unknown"
