"""Nvidia GPUs through torch's own CUDA build, from Volta to the export-grade Hopper chips.

Devices that other vendors present to torch as "cuda" (ROCm and some domestic chips) are not this
backend where torch says so; the rest must be told apart by the chip's fact file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from atoll.backends.base import Backend, Feature
from atoll.errors import RunError

_WORKSPACES = (":4096:8", ":16:8")
"""What CUBLAS_WORKSPACE_CONFIG must be for cuBLAS to give the same bits twice (its manual)."""


class Nvidia(Backend):
    """CUDA devices; fp32 without TF32, kernels whose bits do not depend on timing."""

    name = "nvidia"
    device_type = "cuda"
    visible_devices_variable = "CUDA_VISIBLE_DEVICES"
    unsupported: ClassVar[Mapping[Feature, str]] = {
        Feature.FP8: "needs compute capability 8.9; A100, A800 and older have none",
        Feature.COMPILE: "off: the compiler picks kernels by timing them, so bits would differ",
    }

    @property
    def collective(self) -> str:
        """nccl, where this torch was built with it (not on Windows)."""
        import torch.distributed as dist

        return "nccl" if dist.is_available() and dist.is_nccl_available() else "gloo"

    @property
    def ray_resource(self) -> str:
        """GPU: Ray's own name, counted by Ray itself."""
        return "GPU"

    def available(self) -> bool:
        """True with a CUDA build of torch (not ROCm) and at least one device."""
        import torch

        if torch.version.cuda is None or torch.version.hip is not None:
            return False
        return torch.cuda.is_available() and self.num_devices() > 0

    def num_devices(self) -> int:
        """How many CUDA devices this process sees."""
        import torch

        return torch.cuda.device_count()

    def prepare(self, *, threads: int = 1, deterministic: bool = True) -> None:
        """Settings of the base, no TF32, no shortened sums, no choice of kernels by timing.

        Raises RunError if deterministic kernels are wanted and cuBLAS was not told so by the
        environment that the chip's facts ask for: torch would refuse at the first product.
        """
        import torch

        super().prepare(threads=threads, deterministic=deterministic)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = deterministic
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        if deterministic and workspace not in _WORKSPACES:
            raise RunError(
                f"CUBLAS_WORKSPACE_CONFIG is {workspace or 'not set'}, so cuBLAS may give other "
                f"bits each time. Start this process with CUBLAS_WORKSPACE_CONFIG={_WORKSPACES[0]}"
                " (the chip's facts hold it under [environment])."
            )

    def _libraries(self) -> dict[str, str | int | bool]:
        import torch

        major, minor = torch.cuda.get_device_capability()
        return {
            "compute_capability": f"{major}.{minor}",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "cublas": _cublas_version(),
            "driver": _driver_version(),
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "not set"),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE", "not set"),
        }


def _cublas_version() -> str:
    """Version of the cuBLAS wheel that torch runs on; "with cuda" where it is not a wheel."""
    for package in ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "with cuda"


def _driver_version() -> str:
    """The kernel driver's version as it tells the system; "unknown" where it does not."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        for word in text.split():
            if word.count(".") >= 1 and word.replace(".", "").isdigit():
                return word
    except OSError:
        pass
    return "unknown"
