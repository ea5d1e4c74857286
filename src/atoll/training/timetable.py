"""Timetable: which islands are there by the hours that the fleet gives them.

An island with hours is started when they begin, and leaves between two steps early enough that no
step of it runs over their end: other people wait for its chips. Hours change who computes, never
what is computed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from atoll.errors import InputError
from atoll.hours import DAY, format_time
from atoll.training.crewing import MemberSpec

MARGIN = 1.5
"""Usual steps that must fit into what is left of an island's hours, or it leaves before them."""
LOOK_SECONDS = 0.2
"""Between two looks at the clock while no island is there."""


class Clock(Protocol):
    """What time of the day it is, and how fast the day passes."""

    @property
    def speed(self) -> float:
        """Seconds of the day that pass in a second."""

    def now(self) -> float:
        """Seconds of the day in UTC."""


@dataclass(frozen=True, slots=True)
class WallClock:
    """The clock of this machine."""

    speed: float = 1.0

    def now(self) -> float:
        """Seconds of the day in UTC."""
        return time.time() % DAY


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A day that begins at a time one chooses, and may go faster than the sun."""

    begin: float
    speed: float
    _since: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Seconds of the day in UTC."""
        return (self.begin + self.speed * (time.monotonic() - self._since)) % DAY

    @classmethod
    def parse(cls, text: str) -> Rehearsal:
        """ "21:55" or "21:55x600": from five to ten on, 600 times as fast. InputError."""
        found = re.fullmatch(r"(\d{1,2}):(\d{2})(?:\s*x\s*(\d+(?:\.\d+)?))?", text.strip())
        if found is None or int(found[1]) > 23 or int(found[2]) > 59 or float(found[3] or 1) <= 0:
            fix = 'a time of the day in UTC, and how fast it goes: "21:55x600"'
            raise InputError("is no clock", key="--clock", value=text, fix=fix)
        begin = 3600.0 * int(found[1]) + 60.0 * int(found[2])
        return cls(begin, float(found[3] or 1))


class Timetable:
    """Says between two steps who comes and who goes."""

    def __init__(self, members: list[MemberSpec], clock: Clock) -> None:
        """`members` is read again at every look: a fleet file may change it."""
        self.members, self.clock = members, clock
        self._here: set[str] = set()
        self._early: set[str] = set()  # left before the end of hours that have not ended yet

    @property
    def matters(self) -> bool:
        """Whether any island has hours."""
        return any(one.hours is not None for one in self.members)

    def absent(self) -> set[str]:
        """The islands whose hours it is not, at the start of a crew; all others are here."""
        now = self.clock.now()
        away = {one.name for one in self.members if self._until(one, now)}
        self._here = {one.name for one in self.members} - away
        return away

    def _until(self, member: MemberSpec, now: float) -> float:
        """Seconds of the day until an island's hours begin; if it has left, the next ones."""
        if member.hours is None:
            return 0.0
        left = member.hours.left(now)
        if left and member.name in self._early:
            return left + member.hours.until(now + left)
        return member.hours.until(now)

    def changes(self, step_seconds: float) -> tuple[list[MemberSpec], list[MemberSpec]]:
        """Islands whose hours have begun since the last look, and all whose hours it is not.

        `step_seconds` is the usual length of a step.
        """
        now, margin = self.clock.now(), MARGIN * step_seconds * self.clock.speed
        coming, away = [], []
        for one in self.members:
            if one.hours is None:
                continue
            left = one.hours.left(now)
            if left <= 0:
                self._early.discard(one.name)
            elif left <= margin and one.name in self._here:
                self._early.add(one.name)
            if left <= margin or one.name in self._early:
                self._here.discard(one.name)
                away.append(one)
            elif one.name not in self._here:
                self._here.add(one.name)
                coming.append(one)
        return coming, away

    def is_away(self, name: str) -> bool:
        """Whether an island shall not be there by what `changes` said last."""
        hours = {one.name: one.hours for one in self.members}
        return hours.get(name) is not None and name not in self._here

    def wait(self, say: Callable[[str], None], *, look: Callable[[], object] | None = None) -> None:
        """Wait until it is the hours of an island; at once if it is those of any.

        `look` is called again and again: it may change the members.
        """
        told = False
        while True:
            if look is not None:
                look()
            now = self.clock.now()
            nearest = min(self._until(one, now) for one in self.members)
            if not nearest:
                return
            if not told:
                told = True
                say(f"no island is there at this hour; the next one comes at "
                    f"{format_time(now + nearest)} UTC")  # fmt: skip
            time.sleep(min(LOOK_SECONDS, nearest / self.clock.speed))
