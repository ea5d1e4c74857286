# ruff: noqa: ARG002  (overrides keep the arguments of the base)
"""The CPU as a device: one lane is a fixed number of threads of one process.

What fixes the bits here is the instruction set that torch and MKL really use, not the one that
was asked for: `kind_facts` reads both from the loaded libraries. This is not the host side of an
accelerator; that is `Backend.host`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from atoll.backends.base import Backend, Feature, Memory

if TYPE_CHECKING:
    import torch

# mkl_types.h of MKL 2024: what mkl_cbwr_get answers. 2^16 is added for STRICT.
_CBWR_BRANCHES = {
    1: "off",
    2: "AUTO",
    3: "COMPATIBLE",
    4: "SSE2",
    6: "SSSE3",
    7: "SSE4_1",
    8: "SSE4_2",
    9: "AVX",
    10: "AVX2",
    11: "AVX512_MIC",
    12: "AVX512",
    13: "AVX512_MIC_E1",
    14: "AVX512_E1",
}
_CBWR_UNBOUND = (1, 2)
_CBWR_ALL = -1
_CBWR_STRICT = 1 << 16


class Cpu(Backend):
    """This machine's cores; torch's own kernels, gloo between processes."""

    name = "cpu"
    device_type = "cpu"
    unsupported: ClassVar[Mapping[Feature, str]] = {
        Feature.FP8: "torch has no fp8 matrix product on CPUs",
        Feature.COMPILE: "off by default: compiling takes 20 to 55 s and gives 0.85 to 1.25 x",
    }

    @property
    def collective(self) -> str:
        """gloo: the one library of torch that adds tensors in host memory."""
        return "gloo"

    @property
    def ray_resource(self) -> str:
        """None: CPUs are asked for by their number."""
        return ""

    def available(self) -> bool:
        """Always: there is a CPU."""
        return True

    def num_devices(self) -> int:
        """One: lanes of a CPU are told apart by threads and processes, not by an index."""
        return 1

    def device(self, index: int = 0) -> torch.device:
        """The CPU, whatever the index."""
        import torch

        return torch.device("cpu")

    def synchronize(self) -> None:
        """Nothing to wait for: operations are done when they return."""

    def memory(self, index: int = 0) -> Memory:
        """Bytes free and in all for this process (its cgroup's limit counts), and its own peak."""
        import resource

        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = _cgroup_bytes("memory.max")
        used = _cgroup_bytes("memory.current")
        free = _meminfo_available()
        if limit is not None and limit < total:
            total = limit
            if used is not None:
                within = max(0, limit - used)
                free = within if free is None else min(free, within)
        unit = 1 if platform.system() == "Darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return Memory(free=free, total=total, peak=peak)

    def host(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, sharing memory."""
        return tensor.detach()

    def sqrt(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Correctly rounded fp32 square root, by NumPy, which uses the processor's instruction.

        torch's own fp32 sqrt goes through a vector library and is one place off for 0.6 to 25 %
        of inputs, by machine (`tests/cpu/test_proof.py` shows it).
        """
        import numpy as np
        import torch

        source = x.detach()
        target = torch.empty_like(source) if out is None else out.detach()
        np.sqrt(source.numpy(), out=target.numpy())
        return target if out is None else out

    def _device_name(self, index: int) -> str:
        return _processor_name()

    def _libraries(self) -> dict[str, str | int | bool]:
        import torch

        return {
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "mkl_branch": _mkl_branch(),
            "libraries": "; ".join(_library_lines()),
        }

    @functools.cached_property
    def host_update(self) -> bool:
        """False: the host is here. A CPU that fails the proof cannot update, and this says so."""
        from atoll.errors import RunError

        failed = self.prove_exact()
        if failed:
            raise RunError(
                f"this CPU does not compute the update exactly: {', '.join(failed)} failed the "
                "shipped vectors. Its torch build cannot take part in an exact run; install the "
                "pinned torch, or report this processor."
            )
        return False


def _library_lines() -> list[str]:
    """What torch was built with that computes: MKL, oneDNN, OpenMP, LAPACK lines of its config."""
    import torch

    wanted = ("Kernel Library", "MKL-DNN", "oneDNN", "OpenMP", "LAPACK", "BLAS", "Compute Library")
    lines = []
    for line in torch.__config__.show().splitlines():
        text = line.strip(" -")
        if text.startswith("Build settings"):
            pairs = [part.strip() for part in text.split(":", 1)[1].split(",")]
            lines += [pair for pair in pairs if pair.startswith(("BLAS_INFO=", "LAPACK_INFO="))]
        elif any(word in text for word in wanted):
            lines.append(text)
    return lines


def _mkl_branch() -> str:
    """The code path that MKL is bound to, asked of the MKL inside torch; not the variable.

    MKL reads MKL_CBWR once, when it is loaded, so only the library knows what is in force. Where
    its symbol cannot be reached the variable is quoted, and the text says that it was only asked.
    """
    import torch

    if not torch.backends.mkl.is_available():
        return "no MKL"
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        loaded = ctypes.CDLL(str(library))
        setting = int(loaded.mkl_serv_cbwr_get(ctypes.c_int(_CBWR_ALL)))
        own = int(loaded.mkl_serv_cbwr_get_auto_branch())
    except (OSError, AttributeError):
        asked = os.environ.get("MKL_CBWR", "nothing")
        return f"unknown, MKL_CBWR asks for {asked}"
    branch = setting & ~_CBWR_STRICT
    text = _CBWR_BRANCHES.get(branch, f"branch {branch}")
    if setting & _CBWR_STRICT:
        text += ", strict"
    if branch in _CBWR_UNBOUND:
        text += f" (the processor's own: {_CBWR_BRANCHES.get(own, f'branch {own}')})"
    return text


def _processor_name() -> str:
    """The processor as the system names it, with its family numbers where Linux tells them."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, separator, value = line.partition(":")
                if not separator and found:
                    break
                if key.strip() in wanted:
                    found.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    if not found:
        return platform.processor() or platform.machine()
    told = (f"{key} {found[key]}" for key in wanted if key in found)
    return f"{platform.machine()}, " + ", ".join(told)


def _meminfo_available() -> int | None:
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _cgroup_bytes(name: str) -> int | None:
    """A number of this process's memory cgroup (v2), None if there is none or no limit."""
    try:
        text = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
