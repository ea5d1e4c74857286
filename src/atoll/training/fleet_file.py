"""The fleet file of a run that goes on: islands that are added to it come, those that are taken out
leave, and a file without islands makes the run wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from atoll import strict
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.plan import plan_trivially
from atoll.recipe import Recipe
from atoll.training.crewing import MemberSpec, members_of

LOOK_SECONDS = 0.5
"""Between two looks at the file."""


class FleetFile:
    """Looks whether the file has changed; `members` is kept up to date with it."""

    def __init__(
        self, path: Path, recipe: Recipe, members: list[MemberSpec], say: Callable[[str], None]
    ) -> None:
        """`members` are the islands that the run begins with, by the file as it was when it was
        read first: it may have changed since.
        """
        self._path, self._recipe, self._say = path, recipe, say
        self.members = members
        self.empty = False
        """Whether the file names no island: the run then waits."""
        self._seen = (0, 0)
        self._looked = time.monotonic()

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return self._seen  # being replaced, or gone: the islands stay
        return status.st_mtime_ns, status.st_size

    def changes(self) -> tuple[list[MemberSpec], list[str]]:
        """Islands to start and names of those that shall leave, since the last call."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return [], []
        self._looked = now
        stamp = self._stamp()
        if stamp == self._seen:
            return [], []
        self._seen = stamp
        try:
            wanted = self._read()
        except InputError as error:
            self._say(f"the fleet file is not used as it is now: {error}")
            return [], []
        names = {member.name for member in wanted}
        before = {member.name for member in self.members}
        coming = [member for member in wanted if member.name not in before]
        going = [member.name for member in self.members if member.name not in names]
        self.empty = not wanted
        if self.empty:
            self._say(f"{self._path} names no island: the run waits until it names one")
            return [], []
        self.members[:] = wanted
        return coming, going

    def _read(self) -> list[MemberSpec]:
        if not strict.load_toml(self._path).get("island"):
            return []
        fleet = Fleet.load(self._path)
        fleet.require_present(file=self._path)
        fleet.require_no_traffic(file=self._path)
        return members_of(plan_trivially(self._recipe, fleet).islands)
