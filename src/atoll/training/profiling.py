"""The processes that `atoll measure` starts: they time one device, or collectives among several.

Each is given a file with its order (JSON) and its rank, and writes what it found as JSON lines into
the order's results file; only rank 0 writes. Nothing here decides what is measured (`sweep`) or
what becomes of the numbers (`measure`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from atoll import backends
from atoll.backends import Backend, Feature
from atoll.facts.measured import exact_size
from atoll.training.sweep import Sweep
from atoll.training.target import num_cores
from atoll.units import format_rate, format_seconds

_dist: Any = distributed  # its stubs are partial

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats whose products are measured, as torch names them."""
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
MOST_CALLS = 10_000
"""Calls within one timing: enough for the shortest."""
FEWEST_REPEATS = 3
TIMEOUT = timedelta(seconds=60)
"""How long a collective may hang."""
LOOPBACK = "127.0.0.1"

Agree = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one stage shall do: `ranks` empty is one device alone, else collectives among them."""

    chip: str
    threads: int
    sweep: Sweep
    ranks: Sequence[int]
    num_devices: int
    results: str
    meeting: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one call: the median and the extremes of the repeats."""

    median: float
    low: float
    high: float
    repeats: int


def main(arguments: Sequence[str]) -> int:
    """ORDER RANK: carry out one process's part of an order."""
    content = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    order = Order(**{**content, "sweep": Sweep(**content["sweep"])})
    rank = int(arguments[1])
    backend = backends.of_chip(order.chip)
    backend.prepare(threads=order.threads)
    index = rank if order.num_devices > 1 else 0
    device = backend.device(index)
    if index:
        getattr(torch, device.type).set_device(device)
    bench = _Bench(order, backend, device, rank)
    with torch.no_grad():
        if order.ranks:
            bench.collectives()
        else:
            bench.alone()
    return 0


def timed(
    call: Callable[[], object],
    *,
    synchronize: Callable[[], None],
    sweep: Sweep,
    agree: Agree = lambda value: value,
) -> Timing:
    """Time a call after one to warm up.

    `agree` makes one number of those of several ranks, so that all call equally often.
    """

    def seconds_of(num_calls: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(num_calls):
            call()
        synchronize()
        return max(time.perf_counter() - start, 1e-9)

    seconds_of(1)
    once = agree(seconds_of(1))
    calls = min(MOST_CALLS, max(1, round(sweep.repeat_seconds / once)))
    affordable = int(sweep.point_seconds / (once * calls))
    repeats = max(min(sweep.repeats, affordable), min(sweep.repeats, FEWEST_REPEATS))
    found = [seconds_of(calls) / calls for _ in range(repeats)]
    return Timing(median=statistics.median(found), low=min(found), high=max(found), repeats=repeats)


class _Bench:
    """One process at work: `tell` writes lines, the other methods fill them."""

    def __init__(self, order: Order, backend: Backend, device: torch.device, rank: int) -> None:
        self.order, self.sweep, self.backend, self.device = order, order.sweep, backend, device
        self.rank = rank
        self._done, self._total = 0, 1

    def tell(self, **line: Any) -> None:
        """Append a line to the results, if this is the rank that speaks."""
        if self.rank == 0:
            with Path(self.order.results).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def leave_out(self, what: str, why: str) -> None:
        """Say that something is not measured."""
        self.tell(left_out={"what": what, "why": why})

    def _each(self, phase: str, points: Sequence[Any]) -> Iterator[Any]:
        for point in points:
            self.tell(phase=phase, fraction=min(1.0, self._done / self._total))
            yield point
            self._done += 1

    def _time(self, call: Callable[[], object]) -> Timing:
        return timed(call, synchronize=self.backend.synchronize, sweep=self.sweep)

    # -- one device -----------------------------------------------------------------------------

    def alone(self) -> None:
        """The host, products, memory and links of one device."""
        sweep, dtypes = self.sweep, self._dtypes()
        self._total = len(dtypes) * len(sweep.gemms) + len(sweep.copies) + len(sweep.messages)
        self.tell(host=self._host())
        for dtype in dtypes:
            self._products(dtype)
        self._copies()
        self._links()

    def _host(self) -> dict[str, Any]:
        facts = self.backend.kind_facts(index=self.device.index or 0)
        taken = {name: facts.pop(name) for name in ("device", "torch", "threads")}
        facts.pop("compute")
        return {
            **taken,
            "processor": backends.named("cpu").kind_facts()["device"],
            "cores": num_cores(),
            "driver": facts.pop("driver", None),
            "collective": self.backend.collective,
            "settings": facts,
        }

    def _dtypes(self) -> list[str]:
        unsupported = self.backend.unsupported
        found = [name for name in self.sweep.dtypes if name in DTYPES]
        if "bf16" in found and Feature.BF16 in unsupported:
            self.leave_out("gemm bf16", unsupported[Feature.BF16])
            found.remove("bf16")
        return found

    def _products(self, dtype: str) -> None:
        """Products from the smallest on; those that would take too long are left out."""
        best, too_long = 0.0, []
        longest = self.sweep.point_seconds / FEWEST_REPEATS
        for m, n, k in self._each(f"products in {dtype}", self.sweep.gemms):
            flop, size = 2.0 * m * n * k, DTYPES[dtype].itemsize * (m * k + k * n + m * n)
            if (best and flop / best > longest) or not self._has_room(size):
                too_long.append((m, n, k))
                continue
            try:
                timing = self._product(m, n, k, DTYPES[dtype])
            except RuntimeError as error:
                self.leave_out(f"gemm {dtype}", _first_line(error))
                return
            best = max(best, flop / timing.median)
            speeds = {
                "flops": format_rate(flop / timing.median, "FLOP/s"),
                "low": format_rate(flop / timing.high, "FLOP/s"),
                "high": format_rate(flop / timing.low, "FLOP/s"),
            }
            point = {"m": m, "n": n, "k": k, "dtype": dtype}
            self.tell(gemm={**point, **speeds, "repeats": timing.repeats})
        if too_long:
            first = "x".join(map(str, too_long[0]))
            count = f"{len(too_long)} of {len(self.sweep.gemms)} products"
            why = f"each would take longer than {format_seconds(longest)} or not fit into memory"
            self.leave_out(f"gemm {dtype}, {count}, the smallest {first}", why)

    def _product(self, m: int, n: int, k: int, dtype: torch.dtype) -> Timing:
        # As a linear layer has them: a weight of (n, k), transposed by the product itself.
        rows = torch.empty(m, k, dtype=dtype, device=self.device).uniform_(-1, 1)
        weight = torch.empty(n, k, dtype=dtype, device=self.device).uniform_(-1, 1)
        turned, out = weight.t(), torch.empty(m, n, dtype=dtype, device=self.device)
        return self._time(lambda: torch.mm(rows, turned, out=out))

    def _copies(self) -> None:
        total = self.backend.memory(self.device.index or 0).total
        self.tell(memory_size=None if total is None else exact_size(total))
        for size in self._each("memory", self.sweep.copies):
            if not self._has_room(2 * size):
                self.leave_out(f"memory.copies {exact_size(size)}", "not enough free memory")
                continue
            source, target = (self._block(size, self.device) for _ in range(2))
            timing = self._time(partial(target.copy_, source))
            speeds = {
                "bandwidth": format_rate(2 * size / timing.median),
                "low": format_rate(2 * size / timing.high),
                "high": format_rate(2 * size / timing.low),
            }
            self.tell(copy={"size": exact_size(size), **speeds, "repeats": timing.repeats})

    def _links(self) -> None:
        if self.device.type == "cpu":
            self.leave_out("link", "the device is the host: nothing lies between them")
            return
        host = torch.device("cpu")
        routes = [("host-to-device", host, self.device), ("device-to-host", self.device, host)]
        if self.order.num_devices > 1:
            routes.append(("device-to-device", self.device, self.backend.device(1)))
        else:
            self.leave_out("link device-to-device", "there is one device")
        for size in self._each("links", self.sweep.messages):
            if not self._has_room(size):
                self.leave_out(f"link {exact_size(size)}", "not enough free memory")
                continue
            for direction, start, end in routes:
                source, target = self._block(size, start), self._block(size, end)
                timing = self._time(partial(target.copy_, source))
                point = {"direction": direction, "size": exact_size(size)}
                self.tell(link={**point, **_seconds(timing)})

    def _block(self, size: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(size // 4, dtype=torch.float32, device=device)

    def _has_room(self, size: int) -> bool:
        free = self.backend.memory(self.device.index or 0).free
        return free is None or size <= free // 2

    # -- several --------------------------------------------------------------------------------

    def collectives(self) -> None:
        """Every operation over the first 2, 4, ... ranks and over all; the other ranks wait."""
        ranks = self.order.ranks
        self._total = len(ranks) * len(OPERATIONS) * len(self.sweep.messages)
        _dist.init_process_group(
            _library(self.backend),
            init_method=f"file://{self.order.meeting}",
            rank=self.rank,
            world_size=max(ranks),
            timeout=TIMEOUT,
        )
        # Where the library that adds is the host's, the tensors lie there.
        on_host = self.backend.collective == "gloo"
        device = torch.device("cpu") if on_host else self.device
        for size in ranks:
            group = _dist.new_group(list(range(size)))
            if self.rank < size:
                for operation in OPERATIONS:
                    self._collective(operation, size, group, device)
            _dist.barrier()
        _dist.destroy_process_group()

    def _collective(self, operation: str, size: int, group: Any, device: torch.device) -> None:
        longest = self.sweep.point_seconds / FEWEST_REPEATS
        seen = [(0, 0.0)]  # (bytes, seconds), the same on all ranks

        def agree(value: float) -> float:
            shared = torch.tensor([value], dtype=torch.float32, device=device)
            _dist.all_reduce(shared, op=_dist.ReduceOp.MAX, group=group)
            return float(shared.item())

        for wanted in self._each(f"{operation} over {size} ranks", self.sweep.messages):
            elements = max(size, wanted // 4 // size * size)
            num_bytes = 4 * elements
            if _expected(num_bytes, seen) > longest:
                what = f"collective {operation} over {size} ranks, {exact_size(num_bytes)}"
                self.leave_out(what, f"takes longer than {format_seconds(longest)}")
                continue
            whole = torch.zeros(elements, dtype=torch.float32, device=device)
            part = torch.zeros(elements // size, dtype=torch.float32, device=device)
            call = _call(operation, whole, part, group)
            try:
                timing = timed(
                    call, synchronize=self.backend.synchronize, sweep=self.sweep, agree=agree
                )
            except RuntimeError as error:
                self.leave_out(f"collective {operation} over {size} ranks", _first_line(error))
                return
            seen.append((num_bytes, agree(timing.median)))
            point = {"op": operation, "ranks": size, "size": exact_size(num_bytes)}
            self.tell(collective={**point, **_seconds(timing)})


def _expected(num_bytes: int, seen: Sequence[tuple[int, float]]) -> float:
    """Seconds that a message will take, on the line through the last two that were seen."""
    (small, below), (large, above) = ((0, 0.0), *seen)[-2:]
    if large == small:
        return above
    return above + max(0.0, above - below) / (large - small) * (num_bytes - large)


def _call(
    operation: str, whole: torch.Tensor, part: torch.Tensor, group: Any
) -> Callable[[], object]:
    """One collective on a tensor of all ranks and one rank's part of it."""
    other = torch.empty_like(whole)
    return {
        "all_reduce": lambda: _dist.all_reduce(whole, group=group),
        "all_gather": lambda: _dist.all_gather_into_tensor(whole, part, group=group),
        "reduce_scatter": lambda: _dist.reduce_scatter_tensor(part, whole, group=group),
        "all_to_all": lambda: _dist.all_to_all_single(other, whole, group=group),
    }[operation]


def _library(backend: Backend) -> str:
    """The collective library of a backend; gloo under a name that binds it to loopback.

    Left to itself gloo listens on the address of the host's name, for everybody.
    """
    if backend.collective != "gloo":
        return backend.collective
    gloo = _dist.ProcessGroupGloo

    def on_loopback(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
        options = gloo._Options()
        options._timeout = timeout
        options._devices = [gloo.create_device(hostname=LOOPBACK)]
        return gloo(store, rank, size, options)

    _dist.Backend.register_backend("loopback", on_loopback, devices=["cpu"])
    return "loopback"


def _seconds(timing: Timing) -> dict[str, str | int]:
    return {
        "seconds": format_seconds(timing.median),
        "low": format_seconds(timing.low),
        "high": format_seconds(timing.high),
        "repeats": timing.repeats,
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
