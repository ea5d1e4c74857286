"""Segments: the numbers behind the bars of a report, before anything is drawn.

Bytes and seconds; the seconds of an island's bar add up to the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.planning.explain import PARTS

if TYPE_CHECKING:
    from atoll.planning.planner import Answer, IslandAnswer

HATCHED = ("waiting", "bubble", "hidden")
"""What is time but no work, or work that takes no time: drawn hatched."""

MEMORY = {
    "weights": ("weights", "#0072b2"), "gradients": ("gradients", "#56b4e9"),
    "optimizer": ("optimizer", "#009e73"), "activations": ("activations", "#e69f00"),
    "working": ("working set", "#cc79a7"), "reserve": ("reserve", "#8d949c"),
    "all": ("all parts together", "#0072b2"),
}  # fmt: skip
"""Causes of memory: name and colour (Okabe and Ito 2008: safe for the colour-blind)."""

FAMILIES = {
    "computing": ("matmul", "attention", "elementwise", "recompute", "head", "work", "update"),
    "traffic": ("tensor", "context", "experts", "stages", "state", "exchange"),
    "lost": ("overhead", "bubble", "waiting"),
}
"""The causes of a step's seconds in the families that share a hue, in the order of a bar."""

TIME = {
    "matmul": "#0072b2", "attention": "#3d9bd6", "elementwise": "#8cc8ee", "recompute": "#1f4e79",
    "head": "#b9dcf3", "work": "#0072b2", "update": "#009e73",
    "tensor": "#d55e00", "context": "#f0a36b", "experts": "#e69f00", "stages": "#9c4400",
    "state": "#f3c65f", "exchange": "#cc79a7",
    "overhead": "#5d666f", "bubble": "#a7adb4", "waiting": "#a7adb4", "hidden": "#d55e00",
}  # fmt: skip
"""Colours of the causes of a step's seconds: blue computes, orange moves, grey is lost."""

NAMES = {
    **PARTS, "work": "computing stages", "exchange": "exchange between islands",
    "waiting": "waiting for the slowest", "hidden": "traffic hidden behind computing",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One part of a bar: what it is, how it reads, bytes or seconds, its colour."""

    key: str
    name: str
    size: float
    colour: str


def memory_segments(one: IslandAnswer) -> list[Segment]:
    """What fills the fullest device of an island, in bytes."""
    found = []
    for key, size in one.memory.items():
        name, colour = MEMORY.get(key, (key, "#8d949c"))
        found.append(Segment(key=key, name=name, size=float(size), colour=colour))
    return [segment for segment in found if segment.size > 0]


def time_segments(answer: Answer, one: IslandAnswer) -> list[Segment]:
    """Where an island's seconds of a step go; all together they are the step.

    The parts of the cost are scaled by the same factor, so that they add up to what the plan
    expects of the island, published runs included.
    """
    way = answer.way
    if way.chain is not None:
        seconds = dict(_chain_seconds(answer, one))
    elif one.cost is None:
        seconds = {"work": one.seconds}
    else:
        scale = time_scale(one)
        seconds = {key: scale * value for key, value in one.cost.parts().items()}
    if way.chain is None:
        seconds["exchange"] = way.seen
        seconds["waiting"] = max(0.0, way.seconds - way.seen - one.seconds)
    order = [key for family in FAMILIES.values() for key in family]
    order += [key for key in seconds if key not in order]
    return [
        Segment(
            key=key, name=NAMES.get(key, key), size=seconds[key], colour=TIME.get(key, "#5d666f")
        )
        for key in order
        if seconds.get(key, 0.0) > 0
    ]


def time_scale(one: IslandAnswer) -> float:
    """What makes the parts of an island's cost add up to its seconds."""
    total = sum(one.cost.parts().values()) if one.cost is not None else 0.0
    return one.seconds / total if total > 0 else 1.0


def hidden_seconds(one: IslandAnswer) -> float:
    """Seconds of traffic that computing hides: beside the step, not in it."""
    return time_scale(one) * one.cost.hidden if one.cost is not None else 0.0


def _chain_seconds(answer: Answer, one: IslandAnswer) -> Iterator[tuple[str, float]]:
    """The slowest stage sets the pace of all; the pipeline fills and drains once a step."""
    chain = answer.way.chain
    assert chain is not None
    part = next(part for part in chain.parts if part.name == one.island.name)
    total = sum(len(part.layers) for part in chain.parts)
    yield "work", chain.microbatches * part.stage_seconds
    yield "waiting", chain.microbatches * max(0.0, chain.slowest - part.stage_seconds)
    yield "bubble", (total - 1) * chain.slowest
    yield "update", max(0.0, chain.seconds - (chain.microbatches + total - 1) * chain.slowest)


def used_chips(one: IslandAnswer) -> int:
    """Chips of an island that its layout occupies."""
    return one.layout.num_devices // max(1, one.machine.devices_per_chip)
