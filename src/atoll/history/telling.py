"""How a run's past is told to a person: times, events in words, marks on a curve.

Shared by all that shows a run: the terminal, the page, the web. Nothing here reads a file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from atoll.history.story import LOST, History, island_of, step_of
from atoll.units import format_seconds

QUANTITIES = {"loss": "the loss", "grad_norm": "the gradient's norm"}
"""What a guard may watch, in words."""
MARKS: Mapping[str, tuple[str, str, str]] = {
    "lost": ("x", "bold red", "died or put out"),
    "left": ("<", "bold magenta", "left"),
    "joined": ("+", "bold yellow", "joined"),
    "healed": ("*", "bold green", "healed"),
    "resumed": ("|", "bold blue", "resumed"),
    "split": ("~", "bold white", "re-split"),
}
"""Kind of a mark on the curve -> its character, style and meaning; the first of a place wins."""

_MOST_REASON = 160


def words_of(event: Mapping[str, Any]) -> str:
    """What happened, for a person, without the time."""
    kind, island = event["kind"], event.get("island")
    reason = " ".join(str(event.get("reason", "")).split())
    if len(reason) > _MOST_REASON:
        reason = reason[: _MOST_REASON - 3] + "..."
    reason = f": {reason}" if reason else ""
    if kind == "checkpointed":
        return f"checkpoint written by {island} in {format_seconds(float(event['seconds']))}"
    if kind == "checkpoint_failed":
        return f"no checkpoint from {island}{reason}"
    if kind == "started":
        names = list(event.get("islands", {}))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"training started after step {event.get('step', 0)} on {shown}"
    if kind == "rolled_back":
        return f"{event.get('dropped')} steps taken back, to step {event.get('to')}"
    if kind == "taken_over":
        waiting = ", ".join(event.get("islands", []))
        return f"{waiting} waited for a pilot with the weights after step {event.get('step')}"
    if kind == "requantised":
        times = event.get("times", 1)
        often = "once" if times == 1 else f"{times} times"
        return f"computed anew {often}, because a sum overflowed"
    if kind == "spike":
        return spike_words(event)
    texts = {
        "died": "died",
        "failed": "failed",
        "hung": "was silent and given up",
        "corrupt": "computed something else than the others and was put out",
        "left": "left",
        "joined": "joined and is being healed",
        "healed": "holds the weights and gets grains",
        "restarted": "is started again",
        "lent": "is there for its hours and is started",
        "refused": "was refused",
    }
    if island is None:
        return f"training {kind}{reason}"
    return f"{island} {texts.get(kind, kind)}{reason}"


def clock_of(seconds: float) -> str:
    """A time of day in local time, with the day."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Seconds for a person, none below a millisecond."""
    return format_seconds(seconds) if seconds >= 1e-3 else "0 s"


def spike_words(spike: Mapping[str, Any]) -> str:
    """What was seen and done, for a person, from the fields of a `Spike`."""
    done = "its update is skipped"
    if spike["did"] == "roll-back":
        done = f"the weights go back to those after step {spike['to']}"
    seen = f"{QUANTITIES[spike['why']]} was {spike['value']:.4g}, usual is {spike['reference']:.4g}"
    return f"{seen}: {done}"


def marks_of(history: History) -> list[tuple[int, str]]:
    """(step, key of `MARKS`) of what happened to islands, and of steps that other islands than
    those of the step before computed."""
    marks = []
    for event in history.events:
        kind, step = event["kind"], step_of(event)
        if step is None or (island_of(event) is None and kind != "started"):
            continue
        if kind == "left":
            marks.append((step, "left"))
        elif kind in LOST:
            marks.append((step, "lost"))
        elif kind in ("joined", "healed"):
            marks.append((step, kind))
        elif kind == "started" and step > 1:
            marks.append((step, "resumed"))
    before: set[str] | None = None
    for line in history.lines:
        if before is not None and set(line.grains) != before:
            marks.append((line.step, "split"))
        before = set(line.grains)
    return sorted(marks)


def end_of_steps(last: int, total: int) -> float:
    """Where `curve.draw` ends its axis of steps: halved while the curve fills less than half."""
    end = float(max(total, last, 1))
    while end / 2 >= max(last, 10.0):
        end /= 2
    return end
