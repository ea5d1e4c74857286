"""Huawei Ascend NPUs through torch_npu, written from its sources; never run on a card by us.

torch_npu registers itself when torch is imported (torch >= 2.5), as device type "npu" and
collective "hccl". It must match torch and CANN exactly, and CANN's set_env.sh must have been
sourced; without CANN's libraries even `import torch` fails where the package is installed, unless
TORCH_DEVICE_BACKEND_AUTOLOAD=0. So it is nobody's hard dependency: it comes with the vendor's
container.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from atoll.backends.base import Backend, Feature
from atoll.errors import RunError


class Ascend(Backend):
    """Ascend 910-series NPUs; fp32 without HF32, plain tensor layouts, deterministic kernels.

    Exact roots and, if need be, the whole update fall back to the host by proof, as these chips
    have no float64 kernels to go through.
    """

    name = "ascend"
    device_type = "npu"
    visible_devices_variable = "ASCEND_RT_VISIBLE_DEVICES"
    unsupported: ClassVar[Mapping[Feature, str]] = {
        Feature.FLOAT64: "most kernels take no float64, or take it very slowly",
        Feature.FP8: "the 910 series computes none",
        Feature.COMPILE: "needs triton-ascend in place of triton; not tried, and off for bits",
        Feature.INT64_SUM: "documented for all_reduce only: reduce_scatter takes int8 and int32",
        Feature.TENSOR_PARALLEL: "parallelize_module is not on the vendor's list for 910B and C",
    }

    @property
    def collective(self) -> str:
        """hccl (the name is another vendor's too: go by the device type, not by this)."""
        return "hccl"

    @property
    def ray_resource(self) -> str:
        """NPU: Ray's own name, counted by Ray itself."""
        return "NPU"

    def available(self) -> bool:
        """True if torch_npu loads and sees a device."""
        return _load() is None and self.num_devices() > 0

    def prepare(self, *, threads: int = 1, deterministic: bool = True) -> None:
        """Settings of the base, no HF32, no private tensor layouts, ready-made kernels.

        torch's deterministic flag is the one that torch_npu hands on to CANN; the collective has
        its own, HCCL_DETERMINISTIC, in the chip's environment. Raises RunError with the loader's
        own message where torch_npu cannot be loaded.
        """
        problem = _load()
        if problem is not None:
            raise RunError(
                f"torch_npu cannot be loaded: {problem}. Source CANN's set_env.sh before the "
                "start, and use the torch_npu that matches this torch and CANN exactly."
            )
        super().prepare(threads=threads, deterministic=deterministic)
        npu = self._module()
        npu.matmul.allow_hf32 = False
        npu.conv.allow_hf32 = False
        # Private ("NZ") layouts refuse views with an offset, and parameters are views to us.
        npu.config.allow_internal_format = False
        # Kernels compiled while running differ by shape history; the shipped ones do not.
        npu.set_compile_mode(jit_compile=False)

    def _libraries(self) -> dict[str, str | int | bool]:
        npu = self._module()
        return {
            "torch_npu": _version_of("torch_npu"),
            "cann": _cann("CANN"),
            "kernels": _cann("OPP_KERNEL"),
            "hccl": _cann("HCCL"),
            "driver": _cann("DRIVER"),
            "hf32": bool(npu.matmul.allow_hf32),
        }


def _load() -> str | None:
    """Load torch_npu unless torch has already; the reason why that failed, or None."""
    import torch

    if hasattr(torch, "npu"):
        return None
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _version_of(package: str) -> str:
    module: Any = importlib.import_module(package)
    return str(getattr(module, "__version__", "unknown"))


def _cann(part: str) -> str:
    """Version of a part of CANN as torch_npu reads it; "unknown" where it cannot."""
    try:
        utils: Any = importlib.import_module("torch_npu.npu.utils")
        found = str(utils.get_cann_version(part))
    except (ImportError, AttributeError, RuntimeError):
        return "unknown"
    return found or "unknown"
