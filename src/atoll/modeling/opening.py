"""Which way a model is computed for serving: compiled for this CPU where one can, else by torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from atoll.model import Model
from atoll.modeling.agreeing import settle
from atoll.modeling.device_inference import DeviceInference
from atoll.modeling.inference import Inference

_log = logging.getLogger(__name__)


def open_inference(
    model: Model,
    tensors: Mapping[str, Any],
    *,
    device: torch.device,
    num_pages: int,
    page: int,
    max_rows: int,
    threads: int,
    fast: bool,
    tell: Callable[[str], None],
) -> tuple[Inference, bool]:
    """A model with its memory taken, and whether a row's bits do not depend on other rows.

    Call it in the thread that will compute. ``max_rows`` of a step; ``fast``: do not look for row
    counts that agree; ``tell`` gets a line before something takes seconds.
    """
    if device.type == "cpu":
        missing = _why_not_compiled(tell)
        if not missing:
            from atoll.modeling import cpu_inference as cpu

            if threads > 1 and cpu.waits_long():
                tell(
                    "numba finds no OpenMP here (libgomp, libomp); with it steps take half the time"
                )
            compiled = cpu.CpuInference(
                model, tensors, num_pages=num_pages, page=page, threads=threads
            )
            return compiled, True
        _log.warning("serving at less than half the speed: %s", missing)
    # OpenMP counts for each thread by itself, and the number is part of the bits.
    torch.set_num_threads(threads)
    inference = DeviceInference(model, tensors, device=device, num_pages=num_pages, page=page)
    invariant = not fast and settle(inference, most=max_rows)
    if not (fast or invariant):
        _log.warning("on this device a request's tokens depend on what else is being served")
    return inference, invariant


def _why_not_compiled(tell: Callable[[str], None]) -> str:
    """What is in the way of the compiled kernels; nothing: "".

    Whatever numba or LLVM raise on a processor or system that we have not seen: torch can serve.
    """
    try:
        from llvmlite import binding

        if not binding.get_host_cpu_features().get("fma", True):  # a call each: 60 times slower
            return "this processor has no fused multiply-add"
        from atoll.modeling import cpu_inference, kernels

        works = cpu_inference.product_works()
        if any(kernels.product.stats.cache_misses.values()):
            tell("compiling for this processor; the next start is quicker if numba can keep it")
        works = works and cpu_inference.step_works()
    except ImportError as error:
        return f"{error} (pip install 'atoll[cpu]')"
    except Exception as error:
        return f"numba cannot compile here: {' '.join(str(error).split())[:200]}"
    return "" if works else "the compiled kernels compute something else here"
