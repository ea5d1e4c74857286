"""Roster: who is gone, who comes back, who joins - written down and told, between two steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from atoll.run import Events, RunFolder
from atoll.training.crewing import MemberSpec
from atoll.training.fleet_file import LOOK_SECONDS, FleetFile
from atoll.training.joining import Joining
from atoll.training.keeping import Keeping
from atoll.training.pilot import Pilot
from atoll.training.timetable import Timetable

STRIKES = 3
"""How often an island may be lost before it is put out for good."""
IDLE_STEPS = 16
"""Steps without a grain, by speed, after which an island is parked."""


class Roster:
    """The islands of a run over its time."""

    def __init__(
        self, pilot: Pilot, *, folder: RunFolder, events: Events, say: Callable[[str], None]
    ) -> None:
        """`keeping` and `joining` are set before the first step."""
        self._pilot, self._folder, self._events, self._say = pilot, folder, events, say
        self.keeping: Keeping
        self.joining: Joining
        self._to_restart: list[str] = []
        self._strikes: Counter[str] = Counter()
        self._idle: Counter[str] = Counter()
        self.fleet_file: FleetFile | None = None
        self.timetable: Timetable | None = None
        self._lent: list[MemberSpec] = []  # whose hours have begun, to be started
        self._awaited: set[str] = set()  # started for their hours, and no members yet
        self.deserted = False
        """Whether the hours of all islands are over: the run has to wait, kept, without any."""
        self.stopped: Callable[[], bool] = lambda: False

    def between_steps(self) -> None:
        """Who is gone, who leaves, who joins."""
        self.note_losses()
        self.keeping.save_again()
        self._follow_hours()
        self._restart()
        self._follow_fleet_file()
        self.joining.between_steps()
        self.note_losses()

    def _follow_hours(self) -> None:
        """Start islands whose hours have begun, let those go whose hours end."""
        if self.timetable is None:
            return
        crew = self._pilot.crew
        coming, away = self.timetable.changes(crew.pace)
        self._awaited -= set(crew.members)
        self._lent += coming
        for member in away:
            name = member.name
            if name in crew.members:
                why = f"its hours are over: {member.hours.text}" if member.hours else ""
                if not self.joining.let_go(name, reason=why) and name in crew.members:
                    gone = {one.name for one in away}
                    self.deserted = set(self._pilot.whole()) <= gone
            elif name in self._awaited:
                crew.call_off(name)
            self._awaited.discard(name)
        names = {member.name for member in away}
        self._lent = [member for member in self._lent if member.name not in names]
        self._to_restart = [name for name in self._to_restart if name not in names]
        for member in list(self._lent):
            if crew.enlist(member):
                self._lent.remove(member)
                self._awaited.add(member.name)
                self._strikes.pop(member.name, None)  # it may have been mended since
                self.note_change("lent", island=member.name, step=self._pilot.step)

    def _follow_fleet_file(self) -> None:
        """Start islands that the file names now, let others go; wait while it names none."""
        file = self.fleet_file
        if file is None:
            return
        while True:
            coming, going = file.changes()
            for member in coming:
                if self.timetable is not None and member.hours is not None:
                    continue  # the timetable brings it at its hours
                self._pilot.crew.enlist(member)
                self.note_change("enlisted", island=member.name, step=self._pilot.step)
            for name in going:
                self.joining.let_go(name, reason="the fleet file does not name it any more")
            if not file.empty or self.stopped():
                return
            self.joining.between_steps()
            time.sleep(LOOK_SECONDS)

    def park_idle(self, grains: Mapping[str, object]) -> None:
        """After a step split by speed: an island too slow for even one grain, many times running,
        costs the others its part in the exchange and gives nothing; it is let go, and said so.
        """
        for name in self._pilot.whole():
            self._idle[name] = 0 if grains.get(name) else self._idle[name] + 1
            if self._idle[name] >= IDLE_STEPS:
                self._idle[name] = 0
                why = f"it was too slow for a single grain in {IDLE_STEPS} steps"
                self.joining.let_go(name, "parked", why)

    def note_change(self, kind: str, **fields: Any) -> None:
        """Write down what happened to an island, and tell it."""
        if kind == "joined":
            self._folder.update(kinds={**self._folder.record.kinds, **self._pilot.kinds()})
        self._events.append(kind, **fields)
        words = {
            "joined": "joins and is being healed",
            "healed": "holds the weights and gets grains",
            "refused": f"is refused: {fields.get('reason')}",
            "restarted": "is started again",
            "lent": "is there for its hours and is started",
            "enlisted": "is new in the fleet file and is started",
        }
        self._say(f"island {fields['island']!r} {words[kind]}")

    def _restart(self) -> None:
        """Start an island of this machine again that was lost, but not for ever."""
        for name in list(self._to_restart):
            if self._pilot.crew.restart(name):
                self._to_restart.remove(name)
                self.note_change("restarted", island=name, step=self._pilot.step)

    def note_losses(self) -> None:
        """Tell and write down who is gone since the last step."""
        crew = self._pilot.crew
        while crew.losses:
            loss = crew.losses.pop(0)
            how = {
                "hung": "is silent",
                "corrupt": "computed something else",
                "left": "has left",
                "parked": "is parked",
            }
            self._say(
                f"island {loss.name!r} {how.get(loss.how, 'is gone')}: {loss.reason}; "
                f"{len(crew.members)} go on, no step is lost"
            )
            lost = loss.how not in ("left", "parked")
            self._strikes[loss.name] += lost
            if lost and crew.starts(loss.name) and self._strikes[loss.name] < STRIKES:
                self._to_restart.append(loss.name)
            self._events.append(
                loss.how, island=loss.name, reason=loss.reason[-2000:], step=loss.step
            )
