"""Roster: who is gone, who comes back, who joins - written down and told, between two steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from atoll.run import Events, RunFolder
from atoll.training.joining import Joining
from atoll.training.keeping import Keeping
from atoll.training.pilot import Pilot

STRIKES = 3
"""How often an island may be lost before it is put out for good."""


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

    def between_steps(self) -> None:
        """Who is gone, who leaves, who joins."""
        self.note_losses()
        self.keeping.save_again()
        self._restart()
        self.joining.between_steps()
        self.note_losses()

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
            how = {"hung": "is silent", "corrupt": "computed something else", "left": "has left"}
            self._say(
                f"island {loss.name!r} {how.get(loss.how, 'is gone')}: {loss.reason}; "
                f"{len(crew.members)} go on, no step is lost"
            )
            self._strikes[loss.name] += 1
            if loss.how != "left" and self._strikes[loss.name] < STRIKES:
                self._to_restart.append(loss.name)
            self._events.append(
                loss.how, island=loss.name, reason=loss.reason[-2000:], step=loss.step
            )
