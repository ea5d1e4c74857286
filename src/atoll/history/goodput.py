"""Goodput: which part of a run's wall time moved the model on, and what took the rest.

For each step that was kept, the useful time is the median of comparable steps: those that the same
islands computed at about the same time, undisturbed. What a step took beyond that is lost, by the
cause that stands in the events of the step. Every second of the wall time is in exactly one place,
so that the parts add up. It measures against the run itself: islands that are away make steps
slower, and these steps are compared with each other, not with those of the whole fleet.

Steps are timed by a clock that nobody sets, sessions by the wall clock. Where that was set back,
what was not computing is too short, never negative; where it was set forward, the time that it
left out counts as `between_steps` or `stopped`: nothing tells it from a pause.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from atoll.history.story import LOST, Attempt, History, island_of, step_of

CAUSES: Mapping[str, str] = {
    "lost_islands": "islands that died, hung, failed, computed wrongly or left",
    "joins": "islands that joined and were healed",
    "requantised": "steps that overflowed and were computed anew",
    "recomputed": "steps that were taken back and computed again",
    "first_steps": "the first step of a session",
    "uneven": "steps slower than their neighbours for no cause that is written down",
    "between_steps": "between steps: checks, checkpoints, validation, copies, start and end",
    "stopped": "no training was running",
}
"""Every cause that time is lost to, in this order, and what it means."""

_CHUNK = 32  # comparable steps in a row that one median is taken of


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One computed step: `usual_seconds` of comparable ones, and why it took longer (a key of
    `CAUSES`) by `lost_seconds`, 0.0 if it did not. `islands` are those that events blame."""

    attempt: Attempt
    usual_seconds: float
    lost_seconds: float
    cause: str
    islands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Seconds: `wall` from the first start to the last line, `useful` + all of `lost` is `wall`."""

    wall_seconds: float
    useful_seconds: float
    lost_seconds: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """Useful time of wall time, 0 to 1; 0.0 before the first step."""
        return self.useful_seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0

    @property
    def running_ratio(self) -> float:
        """The same, without the time in which nothing ran."""
        running = self.wall_seconds - self.lost_seconds["stopped"]
        return self.useful_seconds / running if running > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain tables for JSON."""
        return {
            "wall_seconds": self.wall_seconds,
            "useful_seconds": self.useful_seconds,
            "goodput": self.ratio,
            "goodput_while_running": self.running_ratio,
            "lost_seconds": dict(self.lost_seconds),
        }


def goodput(history: History) -> Goodput:
    """Where the wall time of a run went."""
    lost = dict.fromkeys(CAUSES, 0.0)
    useful = busy = 0.0
    for account in accounts(history):
        seconds = account.attempt.line.seconds
        busy += seconds
        if account.attempt.kept:
            useful += seconds - account.lost_seconds
            lost[account.cause] += account.lost_seconds
        else:
            lost["recomputed"] += seconds
    sessions = history.sessions
    if not sessions:  # no events: only what the lines tell
        return Goodput(wall_seconds=busy, useful_seconds=useful, lost_seconds=lost)
    running = sum(session.ended - session.started for session in sessions)
    gaps = (max(0.0, after.started - before.ended) for before, after in pairwise(sessions))
    lost["stopped"] = sum(gaps, start=0.0)
    lost["between_steps"] = max(0.0, running - busy)
    wall = busy + lost["between_steps"] + lost["stopped"]
    return Goodput(wall_seconds=wall, useful_seconds=useful, lost_seconds=lost)


def accounts(history: History) -> list[Account]:
    """One for each computed step, in the order of computation."""
    causes = _causes(history)
    firsts: dict[int, int] = {}
    for attempt in history.attempts:
        firsts.setdefault(attempt.session, attempt.line.step)
    usual = _usual(history, causes, firsts)
    found = []
    for attempt, seconds in zip(history.attempts, usual, strict=True):
        line = attempt.line
        cause, islands = causes.get((attempt.session, line.step), ("", ()))
        if not cause:
            is_first = firsts[attempt.session] == line.step
            cause = "first_steps" if is_first else "uneven"
        found.append(
            Account(
                attempt=attempt,
                usual_seconds=seconds,
                lost_seconds=max(0.0, line.seconds - seconds),
                cause=cause,
                islands=islands,
            )
        )
    return found


def _causes(history: History) -> dict[tuple[int, int], tuple[str, tuple[str, ...]]]:
    """(session, step) -> (cause, the islands it is about), of steps in which something happened.
    The gravest cause counts."""
    lost: dict[tuple[int, int], set[str]] = defaultdict(set)
    joins: dict[tuple[int, int], set[str]] = defaultdict(set)
    anew = set()
    last = history.lines[-1].step if history.lines else 0
    for attempt in history.attempts:
        place = (attempt.session, attempt.line.step)
        lost[place] |= {str(part[0]) for part in attempt.line.reassigned}
        if attempt.line.requantised:
            anew.add(place)
    for number, session in enumerate(history.sessions):
        healing: dict[str, int] = {}
        for event in session.events:
            name, step = island_of(event), step_of(event)
            if name is None or step is None:
                continue
            if event["kind"] in LOST:
                lost[number, step].add(name)
            elif event["kind"] == "joined":
                healing[name] = step
            if event["kind"] in (*LOST, "healed") and name in healing:
                for each in range(healing.pop(name), step + 1):
                    joins[number, each].add(name)
        for name, first in healing.items():
            for each in range(first, last + 1):
                joins[number, each].add(name)
    causes = {place: ("joins", tuple(sorted(names))) for place, names in joins.items()}
    causes |= dict.fromkeys(anew, ("requantised", ()))
    causes |= {
        place: ("lost_islands", tuple(sorted(names))) for place, names in lost.items() if names
    }
    return causes


def _usual(
    history: History, causes: Mapping[tuple[int, int], Any], firsts: Mapping[int, int]
) -> list[float]:
    """The median seconds of steps comparable with each one, in the order of `attempts`."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    calm = []
    for index, attempt in enumerate(history.attempts):
        line = attempt.line
        place = (attempt.session, line.step)
        calm.append(place not in causes and firsts[attempt.session] != line.step)
        # A step in which an island was lost began with it: it is compared with steps before.
        computing = {*line.grains, *(str(part[0]) for part in line.reassigned)}
        groups[(line.tokens, *sorted(computing))].append(index)
    lines = [attempt.line for attempt in history.attempts]
    every = [line.seconds for line, is_calm in zip(lines, calm, strict=True) if is_calm]
    usual = [0.0] * len(lines)
    for indexes in groups.values():
        own = [lines[index].seconds for index in indexes if calm[index]]
        num_chunks = max(1, len(indexes) // _CHUNK)
        for number in range(num_chunks):
            begin = number * _CHUNK
            chunk = indexes[begin:] if number == num_chunks - 1 else indexes[begin : begin + _CHUNK]
            seconds = [lines[index].seconds for index in chunk if calm[index]] or own or every
            for index in chunk:
                usual[index] = median(seconds) if seconds else lines[index].seconds
    return usual
