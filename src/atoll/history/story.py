"""The story of a run: its steps as they were computed, its sessions, its islands.

A session is one call of `atoll train`. A step may have been computed more than once: a resume from
an older checkpoint takes steps back. The ledger's lines carry no time of day, so `Attempt.ended`
is estimated from the start of the session and the seconds of its steps.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.run import LedgerLine, RunRecord

LOST = ("died", "failed", "hung", "corrupt", "left")
"""Kinds of events that end an island's part in the run."""
_ENDS = ("finished", "stopped", "interrupted", "failed")

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A step that was computed; `kept` is False if a later resume took it back.

    `ended` is estimated, seconds since 1970; 0.0 if nothing is known.
    """

    line: LedgerLine
    session: int
    kept: bool
    ended: float


@dataclass(slots=True, kw_only=True)
class Session:
    """One call of `atoll train`: from its `started` event to its end, seconds since 1970.

    `how` it ended: finished, stopped, interrupted, failed, crashed, or running.
    """

    started: float
    first_step: int
    ended: float = 0.0
    how: str = ""
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class IslandStory:
    """An island over the whole run; grains and steps are of kept lines.

    `state` is computing, healing, starting, refused, ended (the run does not go on), or how it was
    lost (died, failed, hung, corrupt, left). `speed` is grains a second of the step's time, the
    median of its last steps, None before the first.
    """

    name: str
    chip: str = ""
    site: str = ""
    owner: str = ""
    lanes: int | None = None
    state: str = "computing"
    kinds: list[str] = field(default_factory=list)
    num_steps: int = 0
    num_grains: int = 0
    last_step: int | None = None
    last_seen: float = 0.0
    last_grains: int = 0
    speed: float | None = None
    events: list[Event] = field(default_factory=list)


def num_grains(ranges: Sequence[Sequence[int]]) -> int:
    """How many grains closed ranges hold."""
    return sum(last - first + 1 for first, last in ranges)


def island_of(event: Event) -> str | None:
    """The island whose part in the run an event is about; None for those about the run."""
    name = event.get("island")
    return str(name) if name is not None and not event["kind"].startswith("checkpoint") else None


class History:
    """All of it; immutable once made."""

    def __init__(
        self,
        *,
        folder: Path,
        record: RunRecord,
        lines: Sequence[LedgerLine],
        dropped: Sequence[LedgerLine] = (),
        events: Sequence[Event] = (),
        val_losses: Mapping[int, float] | None = None,
        running: bool = False,
        written: float = 0.0,
        num_damaged: int = 0,
    ) -> None:
        """`written` is when the ledger was written last, `running` whether it still is."""
        self.folder, self.record, self.running = folder, record, running
        self.lines = [line for index, line in enumerate(lines) if _follows(lines, index)]
        self.events = list(events)
        self.val_losses = dict(sorted((val_losses or {}).items()))
        self.num_damaged = num_damaged
        self.sessions: list[Session] = []
        placed = self._place()
        by_step = {line.step: line for line in self.lines}
        spare: dict[int, deque[LedgerLine]] = defaultdict(deque)
        for line in dropped:
            spare[line.step].append(line)
        found: list[tuple[LedgerLine, int, bool]] = []
        for step, session, kept in placed:
            if kept and step in by_step:
                found.append((by_step[step], session, True))
            elif not kept and spare[step]:
                found.append((spare[step].popleft(), session, False))
        self._close_sessions(found, written)
        self.attempts = self._timed(found)
        self.islands = self._tell_islands()

    @property
    def state(self) -> str:
        """Where the run stands, in a word: as run.json says, or crashed."""
        state = self.record.status.state
        return "crashed" if state == "running" and not self.running else state

    @cached_property
    def total_steps(self) -> int:
        """The last step of the recipe."""
        from atoll.recipe import Recipe  # slow to import, and the command line gets here

        return Recipe.from_dict(self.record.recipe).total_steps()

    def events_of(self, step: int) -> list[Event]:
        """The events about a step, or between the step before it and it."""
        return [event for event in self.events if step_of(event) == step]

    def _place(self) -> list[tuple[int, int, bool]]:
        """(step, session, kept) of every step that was computed, in that order; builds sessions."""
        placed: list[list[Any]] = []
        alive: list[int] = []  # indexes into placed, of steps 1, 2, ...

        def extend(last: int) -> None:
            for step in range(len(alive) + 1, last + 1):
                alive.append(len(placed))
                placed.append([step, max(0, len(self.sessions) - 1), True])

        def cut(last: int) -> None:
            for index in alive[last:]:
                placed[index][2] = False
            del alive[last:]

        for event in self.events:
            kind = event["kind"]
            if kind == "rolled_back":
                to = int(event.get("to", 0))
                extend(to + int(event.get("dropped", 0)))
                cut(to)
            elif kind == "started":
                step = int(event.get("step", 0))
                extend(step)
                cut(step)
                self.sessions.append(Session(started=event["time"], first_step=step + 1))
            if self.sessions:
                self.sessions[-1].events.append(event)
        last = self.lines[-1].step if self.lines else 0
        extend(last)
        cut(last)
        return [(step, session, kept) for step, session, kept in placed]

    def _close_sessions(self, found: list[tuple[LedgerLine, int, bool]], written: float) -> None:
        busy: dict[int, float] = defaultdict(float)
        for line, place, _ in found:
            busy[place] += line.seconds
        for number, session in enumerate(self.sessions):
            ends = [e for e in session.events if e["kind"] in _ENDS and island_of(e) is None]
            is_last = number == len(self.sessions) - 1
            # A rolled_back event belongs to the session that comes next.
            times = [e["time"] for e in session.events if e["kind"] != "rolled_back"]
            least = session.started + busy[number]
            if ends:
                session.how, session.ended = str(ends[-1]["kind"]), float(ends[-1]["time"])
            elif is_last and self.running:
                session.how, session.ended = "running", max(*times, least, written)
            else:
                session.how, session.ended = "crashed", max(*times, least)
            # Steps are timed by a clock that nobody sets: where the wall clock was set back, the
            # session took at least as long as they did.
            session.ended = max(session.ended, least)

    def _timed(self, found: list[tuple[LedgerLine, int, bool]]) -> list[Attempt]:
        """Attempts with the estimated time of their end: what is not in any step's seconds is
        spread evenly over the steps of the session."""
        sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for line, number, _ in found:
            sums[number][0] += line.seconds
            sums[number][1] += 1
        clock = {number: session.started for number, session in enumerate(self.sessions)}
        attempts = []
        for line, number, kept in found:
            if number in clock:
                wall = self.sessions[number].ended - self.sessions[number].started
                between = max(0.0, wall - sums[number][0]) / sums[number][1]
                clock[number] += line.seconds + between
            ended = clock.get(number, 0.0)
            attempts.append(Attempt(line=line, session=number, kept=kept, ended=ended))
        return attempts

    def _tell_islands(self) -> dict[str, IslandStory]:
        islands: dict[str, IslandStory] = {}

        def island(name: str) -> IslandStory:
            return islands.setdefault(name, IslandStory(name=name))

        self._take_fleet(islands)
        for attempt in self.attempts:
            if attempt.kept:
                for name, kind in attempt.line.kinds.items():
                    self._count(island(name), attempt, kind)
        speeds: dict[str, list[float]] = defaultdict(list)
        for line in self.lines[-9:]:
            for name, ranges in line.grains.items():
                speeds[name].append(num_grains(ranges) / max(line.seconds, 1e-9))
        for name, values in speeds.items():
            island(name).speed = sorted(values)[len(values) // 2]
        for event in self.events:
            if event["kind"] == "started":
                for name, told in event.get("islands", {}).items():
                    island(name).lanes = told.get("lanes")
                    island(name).state = "computing"
                continue
            name = island_of(event) or ""
            if name and event["kind"] != "refused":
                _live_through(island(name), event)
            elif name and name not in islands:
                island(name).state = "refused"
            if name:
                island(name).events.append(event)
        if not self.running:
            for story in islands.values():
                if story.state in ("computing", "healing", "starting"):
                    story.state = "ended"
        return islands

    def _count(self, story: IslandStory, attempt: Attempt, kind: str) -> None:
        grains = num_grains(attempt.line.grains.get(story.name, ()))
        if kind not in story.kinds:
            story.kinds.append(kind)
            story.chip = chip_of(self.record, kind) or story.chip
        story.num_steps += grains > 0
        story.num_grains += grains
        story.last_step, story.last_seen = attempt.line.step, attempt.ended
        story.last_grains = grains

    def _take_fleet(self, islands: dict[str, IslandStory]) -> None:
        """Sites and chips, from the fleet that the run used last; plain tables, as one's own chip
        files need not be here any more. Islands that took no part are left out again."""
        owners = {site["name"]: site.get("owner", "") for site in self.record.fleet.get("site", [])}
        known = {name for line in self.lines for name in line.kinds}
        known |= {name for event in self.events if (name := island_of(event))}
        for event in self.events:
            known |= set(event.get("islands", {})) if event["kind"] == "started" else set()
        for told in self.record.fleet.get("island", []):
            if told["name"] in known or not self.lines:
                site = told.get("site", "here")
                islands[told["name"]] = IslandStory(
                    name=told["name"],
                    chip=told.get("chip", "cpu"),
                    site=site,
                    owner=owners.get(site, ""),
                )


def step_of(event: Event) -> int | None:
    """The step that an event falls into: the one that was open, or the next one to be computed
    for what happens between steps."""
    step = event.get("step")
    if step is None:
        return None
    between = event["kind"] in ("joined", "healed", "restarted", "lent", "refused", "started")
    return int(step) + between


def chip_of(record: RunRecord, kind: str) -> str:
    """The chip of a kind id; "" if the run's record does not hold the kind."""
    facts = record.kinds.get(kind)
    return str(facts.get("chip", "")) if isinstance(facts, Mapping) else ""


def _live_through(story: IslandStory, event: Event) -> None:
    kind = event["kind"]
    states = {
        "joined": "healing",
        "healed": "computing",
        "restarted": "starting",
        "lent": "starting",
    }
    if kind in LOST:
        story.state = kind
    elif kind in states:
        story.state = states[kind]
    if kind == "joined":
        story.chip = str(event.get("chip") or story.chip)
        story.lanes = event.get("lanes", story.lanes)


def _follows(lines: Sequence[LedgerLine], index: int) -> bool:
    return index == 0 or lines[index].step > lines[index - 1].step
