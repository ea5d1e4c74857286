"""Backend: what the rest of Atoll may ask of one vendor's stack, with plain-torch answers.

The base class serves any accelerator that `torch.accelerator` names, so that an unknown vendor
works before it has a file here. A vendor's file overrides only what its stack does otherwise.
This is not where facts about chips live (`atoll.facts`), and not where arithmetic is decided: the
exact operations are listed and proved in `proof.py`.

torch is imported inside functions only: asking for a name must not cost an import of torch.
Read next: `cpu.py` (the smallest complete backend), then `proof.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch


class Feature(StrEnum):
    """Something a backend may lack; `Backend.unsupported` gives the reason in a sentence."""

    BF16 = "bf16"
    FP8 = "fp8"
    FLOAT64 = "float64"
    COMPILE = "compile"
    DETERMINISTIC = "deterministic-kernels"
    COLLECTIVE = "collective"
    INT32_SUM = "int32-sum"
    INT64_SUM = "int64-sum"
    FSDP2 = "fsdp2"
    TENSOR_PARALLEL = "tensor-parallel"
    MEMORY = "memory-report"
    TRAINING = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of one device in bytes; None where the stack does not say (an unknown is not 0)."""

    free: int | None
    total: int | None
    peak: int | None


class Backend:
    """One vendor stack, about a dozen members; an instance keeps nothing but its proofs.

    Args:
        device_type: the name torch has for the device ("xpu", a PrivateUse1 name, ...). Vendor
            classes fix it; only the base class, which serves any type, needs it.
    """

    name: str = "generic"
    device_type: str = ""
    visible_devices_variable: str | None = None
    unsupported: ClassVar[Mapping[Feature, str]] = {}

    def __init__(self, device_type: str | None = None) -> None:
        if device_type is not None:
            self.device_type = device_type
        self._roots: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        assert self.device_type, "the generic backend needs a device type"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.device_type!r})"

    @property
    def collective(self) -> str:
        """The torch.distributed backend that adds tensors on this device.

        Asks torch for the default of the device type; "gloo" (through the host) where torch
        knows none.
        """
        import torch.distributed as dist

        if not dist.is_available():
            return "gloo"
        known: Mapping[str, str] = dist.Backend.default_device_backend_map
        return known.get(self.device_type, "gloo")

    @property
    def ray_resource(self) -> str:
        """What a Ray cluster calls one device of this stack; empty for none.

        Ray counts the devices of the vendors it knows by itself; nodes with others are started
        with a custom resource of this name. Here the device type's name.
        """
        return self.device_type

    # -- devices ------------------------------------------------------------------------------

    def available(self) -> bool:
        """True if a process here can compute on this device now."""
        return current_accelerator() == self.device_type and self.num_devices() > 0

    def num_devices(self) -> int:
        """How many devices this process sees."""
        return int(self._module().device_count())

    def device(self, index: int = 0) -> torch.device:
        """The index-th device that this process sees."""
        import torch

        return torch.device(self.device_type, index)

    def synchronize(self) -> None:
        """Wait until all that was asked of the current device is done."""
        self._module().synchronize()

    def memory(self, index: int = 0) -> Memory:
        """Free, total and peak bytes of a device, as far as its torch module says."""
        module = self._module()
        free: int | None = None
        total: int | None = None
        peak: int | None = None
        if hasattr(module, "mem_get_info"):
            free, total = (int(value) for value in module.mem_get_info(index))
        if hasattr(module, "max_memory_allocated"):
            peak = int(module.max_memory_allocated(index))
        return Memory(free=free, total=total, peak=peak)

    def _module(self) -> Any:
        """The module that every vendor registers on torch under its device type."""
        import torch

        return getattr(torch, self.device_type)

    # -- settings of a process ----------------------------------------------------------------

    def prepare(self, *, threads: int = 1, deterministic: bool = True) -> None:
        """Settle what this process must have before its first tensor: threads, flags, kernels.

        Args:
            threads: of the process on the host; part of a CPU lane's kind.
            deterministic: ask torch for kernels whose bits do not depend on timing; a kernel
                that has no such form then raises. False lets a run trade replay for speed.
        """
        import torch

        torch.set_num_threads(threads)
        # The same as use_deterministic_algorithms, which first imports the compiler: a second and
        # dozens of megabytes for every island.
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        # torch fills every new tensor in this mode, to show reads of unset memory: costs time
        # and changes no bit of a program that never reads one.
        filling: Any = getattr(torch.utils, "deterministic", None)
        if filling is not None:
            filling.fill_uninitialized_memory = False
        torch.set_float32_matmul_precision("highest")

    def kind_facts(self, *, compute: str = "fp32", index: int = 0) -> dict[str, str | int | bool]:
        """All that fixes the bits of a lane of this process, spelled out (docs/kinds.md).

        Call it after `prepare`. Two lanes with equal facts are expected to compute the same
        bits; the probe grain proves it.
        """
        import torch

        facts: dict[str, str | int | bool] = {
            "backend": self.name,
            "device_type": self.device_type,
            "device": self._device_name(index),
            "compute": compute,
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul": torch.get_float32_matmul_precision(),
        }
        facts.update(self._libraries())
        return facts

    def _device_name(self, index: int) -> str:
        """The name the device gives itself, or its type."""
        module = self._module()
        if hasattr(module, "get_device_name"):
            return str(module.get_device_name(index))
        return self.device_type

    def _libraries(self) -> dict[str, str | int | bool]:
        """Versions and flags that only this vendor has; the base class knows none."""
        return {}

    # -- the exact update ---------------------------------------------------------------------

    def host(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the CPU: itself where it is there already, else a copy."""
        return tensor.detach().cpu()

    def sqrt(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Correctly rounded fp32 square root of x >= 0, into `out` (may be x) or a new tensor.

        The first of three ways that passes the shipped vectors on x's device: the device's own
        root, its float64 root (`root_by_float64`), the host's. Which one cannot change a bit.
        """
        root = self._exact_root(x.device)(x.detach())
        return root if out is None else out.copy_(root)

    def _exact_root(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The way of taking roots on this device, chosen by proof once and remembered."""
        import torch

        from atoll.backends import proof

        key = str(device)
        if key not in self._roots:
            found: Callable[[torch.Tensor], torch.Tensor] = self._root_on_host
            for candidate in (torch.sqrt, root_by_float64):
                if proof.root_failure(self, device, candidate) is None:
                    found = candidate
                    break
            self._roots[key] = found
        return self._roots[key]

    def _root_on_host(self, x: torch.Tensor) -> torch.Tensor:
        """Roots taken by the host's processor; costs two copies over the chip's link."""
        import numpy as np
        import torch

        roots = np.sqrt(self.host(x).numpy())
        return torch.from_numpy(roots).to(x.device)

    def prove_exact(self, index: int = 0) -> list[str]:
        """Names of the update's operations that are not IEEE-exact on this device; [] is good."""
        from atoll.backends import proof

        return proof.failures(self, self.device(index))

    @functools.cached_property
    def host_update(self) -> bool:
        """True if the update must run on this island's host, as an operation failed its proof."""
        return bool(self.prove_exact())


def root_by_float64(x: torch.Tensor) -> torch.Tensor:
    """fp32 square root through float64, right even where the float64 root is not quite.

    The root of a 24-bit number in [1, 4) stays at least 2^-50 away from every point halfway
    between two fp32 numbers, so a float64 root that is off by up to three of its last places
    (2^-52 each) still rounds to the right fp32.
    """
    import torch

    return x.to(torch.float64).sqrt_().to(torch.float32)


def current_accelerator() -> str | None:
    """The accelerator type of this process as torch names it ("npu", ...), None without one.

    Works on torch 2.4 and 2.5 as well, which have no `torch.accelerator`: there the modules that
    a vendor's package registers on torch are asked in turn.
    """
    import torch

    if hasattr(torch, "accelerator"):
        found = torch.accelerator.current_accelerator()
        return None if found is None else str(found.type)
    candidates = ["cuda", "mlu", "xpu", torch._C._get_privateuse1_backend_name()]
    for device_type in candidates:
        module = getattr(torch, device_type, None)
        if module is not None and module.is_available():
            return device_type
    return None
