"""Layouts: all that could be tried on an island, and why one cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from atoll.errors import InputError
from atoll.plan import Layout
from atoll.planning.machine import Machine
from atoll.planning.work import Work

FEWEST_TOKENS = 4096
"""Tokens of a sequence that one context-parallel device should keep at least."""

MOST_STAGES = 64
"""Pipelines deeper than this are not tried."""


DEFAULTS = {name: field.default for name, field in Layout.model_fields.items()}


def problem(work: Work, layout: Layout, devices: int) -> tuple[str, str] | None:
    """Why a layout cannot compute a model on an island: (key, reason); None if it can."""
    return shape_problem(work, layout) or _device_problem(layout, devices)


def shape_problem(work: Work, layout: Layout) -> tuple[str, str] | None:
    """What the model's shape says against a layout."""
    shape, tp, ep = work.shape, layout.tp, layout.ep
    if shape.heads % tp:
        return "tp", f"does not divide the {shape.heads} heads"
    kv_heads = max(1, round(shape.heads * shape.kv / shape.query))
    if kv_heads % tp and tp % kv_heads:
        return "tp", f"neither divides the {kv_heads} key/value heads nor is a multiple of them"
    if shape.ffn % tp:
        return "tp", f"does not divide ffn = {shape.ffn}"
    if layout.pp > shape.layers:
        return "pp", f"is more than the {shape.layers} layers"
    if layout.vpp > 1 and layout.pp == 1:
        return "vpp", "needs pp above 1"
    if layout.vpp > 1 and shape.layers % (layout.pp * layout.vpp):
        return "vpp", f"times pp = {layout.pp} does not divide the {shape.layers} layers"
    if work.sequence % layout.cp:
        return "cp", f"does not divide {work.sequence} tokens"
    if ep > 1 and not shape.experts:
        return "ep", "is above 1, and the model has no experts"
    if ep > 1 and shape.experts % ep:
        return "ep", f"does not divide the {shape.experts} experts"
    return None


def _device_problem(layout: Layout, devices: int) -> tuple[str, str] | None:
    """What the island's devices say against a layout."""
    lanes = layout.dp * layout.cp * layout.tp
    if lanes % layout.ep:
        return "ep", f"does not divide dp x cp x tp = {lanes}"
    if layout.zero == 3 and layout.pp > 1:
        return "zero", "beside pp above 1 is not planned"
    if layout.shard is not None and (layout.dp * layout.cp) % layout.shard:
        return "shard", f"does not divide dp x cp = {layout.dp * layout.cp}"
    if layout.num_devices > devices:
        return "dp", f"makes {layout.num_devices} devices in all, the island has {devices}"
    return None


def require(work: Work, layout: Layout, devices: int, *, island: str) -> None:
    """InputError if a layout that a person asked for cannot be, saying which degree and why."""
    found = problem(work, layout, devices)
    if found is not None:
        key, reason = found
        fix = "degrees that divide: see `atoll plan` without --layout"
        message = f"on island {island}: {reason}"
        raise InputError(message, key=f"--layout {key}", value=getattr(layout, key), fix=fix)


def powers_of_two(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to `most`."""
    value = 1
    while value <= most:
        yield value
        value *= 2


def pipeline_degrees(layers: int) -> list[int]:
    """Numbers of stages worth trying: those that leave at most 15 % of the stages' places empty."""
    found = []
    for pp in range(1, min(layers, MOST_STAGES) + 1):
        deepest = -(-layers // pp)
        if layers / (deepest * pp) >= 0.85 and (
            pp & (pp - 1) == 0 or layers % pp == 0 or pp % 2 == 0
        ):
            found.append(pp)
    return found


def divisors(number: int, most: int) -> list[int]:
    """Divisors of `number` up to `most`, ascending."""
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def layouts(
    work: Work,
    machine: Machine,
    devices: int,
    *,
    grain: int,
    grains: int,
    only: Mapping[str, Any],
    suits: Callable[[Layout], bool] | None = None,
) -> Iterator[Layout]:
    """All layouts worth trying on `devices` devices, without recompute (see `Options`).

    Tensor parallelism stays inside the fast fabric; data parallelism takes what is left, up to one
    lane a grain. `only` fixes keys; `suits` says what the tool that shall run it can express, and
    then degrees are tried that a free search has no use for. The number of layouts does not depend
    on the number of devices.
    """
    shape = work.shape

    def choose(key: str, values: list[int]) -> list[int]:
        return [int(only[key])] if key in only else values

    reach = min(machine.domain, machine.node_devices)
    for tp in choose("tp", [t for t in powers_of_two(min(reach, devices)) if shape.heads % t == 0]):
        for pp in choose("pp", [p for p in pipeline_degrees(shape.layers) if p * tp <= devices]):
            for cp in choose(
                "cp", list(powers_of_two(max(1, work.sequence // FEWEST_TOKENS // 2)))
            ):
                dp = min(devices // (tp * pp * cp), grains)
                if dp < 1:
                    continue
                # Most tools want the same number of grains in every lane.
                lanes = {dp} if suits is None else {dp, divisors(grains, dp)[-1]}
                for dp in choose("dp", sorted(lanes)):
                    base = {"tp": tp, "pp": pp, "cp": cp, "dp": dp}
                    for layout in _finer(
                        work, devices, base, grain=grain, only=only, tool=bool(suits)
                    ):
                        if suits is None or suits(layout):
                            yield layout


def refitted(work: Work, among: Sequence[Layout], devices: int, *, grains: int) -> Iterator[Layout]:
    """Layouts of another number of devices with the lanes that these devices fill.

    As from `layouts`, without recompute; each once.
    """
    seen: set[tuple[object, ...]] = set()
    for one in among:
        dp = min(devices // one.lane_devices, grains)
        if dp < 1:
            continue
        sharded = one.zero or 1
        changes = {"dp": dp, "zero": 0 if dp * one.cp == 1 else sharded, "recompute": "none"}
        layout = Layout.model_construct(**{**one.__dict__, **changes})
        key = tuple(layout.__dict__.values())
        if key not in seen and problem(work, layout, devices) is None:
            seen.add(key)
            yield layout


def _finer(
    work: Work,
    devices: int,
    base: Mapping[str, int],
    *,
    grain: int,
    only: Mapping[str, Any],
    tool: bool,
) -> Iterator[Layout]:
    """Expert and virtual-stage degrees, micro-batch and sharding for fixed tp, pp, cp, dp."""
    shape = work.shape
    spread = base["dp"] * base["cp"] * base["tp"]
    experts = [1]
    if shape.experts:
        experts = [e for e in powers_of_two(min(shape.experts, spread)) if spread % e == 0]
        experts = [e for e in experts if shape.experts % e == 0][-4:]
    chunks = [1]
    if base["pp"] > 1:
        per = shape.layers // base["pp"]
        chunks = [v for v in divisors(per, 8) if shape.layers % (base["pp"] * v) == 0] or [1]
        chunks = sorted({1, *chunks[-1:], *[v for v in chunks if v in (2, 4)]})
    zeros = [0] if base["dp"] * base["cp"] == 1 else [1, 3] if base["pp"] == 1 else [1]
    if tool and zeros != [0]:
        zeros = [1, 2, 3] if base["pp"] == 1 else [1, 2]
    sizes = divisors(grain, grain)
    fixed = {**DEFAULTS, **base, "shard": only.get("shard")}
    fixed["sequence_parallel"] = bool(only.get("sequence_parallel", base["tp"] > 1))
    for ep in [int(only["ep"])] if "ep" in only else experts:
        for vpp in [int(only["vpp"])] if "vpp" in only else chunks:
            for zero in [int(only["zero"])] if "zero" in only else zeros:
                for size in [int(only["microbatch"])] if "microbatch" in only else sizes:
                    free = {"ep": ep, "vpp": vpp, "zero": zero, "microbatch": size}
                    # All values are whole numbers in range: checking them again costs more than
                    # the estimate itself.
                    layout = Layout.model_construct(**{**fixed, **free})
                    if problem(work, layout, devices) is None:
                        yield layout
