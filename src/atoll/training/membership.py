"""Membership: who belongs to the run now, what they said, and who is gone.

`Crewed` asks and waits. Before the run has begun the end of an island is an error; afterwards
(`elastic`) it is an event: the island is dropped, the others go on, and the pilot reads `losses`.
An island is gone when its process or its connection ends, when it says that it failed, or when
nothing has been heard of it for `patience` seconds: a stopped process and a cut cable say nothing.
"""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.crew import wire
from atoll.errors import IslandError

WORD_SECONDS = 5.0
"""Between two words about islands that are waited for."""
SPEED_WINDOW = 8
"""Steps whose speeds decide the next split."""
TICK = 0.1
"""Seconds between two looks at who is silent."""
LEAST_PATIENCE, MOST_PATIENCE = 4.0, 60.0
"""Bounds of the seconds of silence after which an island counts as gone."""


@dataclass(slots=True)
class Member:
    """One island that has arrived, as the pilot knows it."""

    name: str
    chip: str
    lanes: int
    connection: wire.Line
    kind: dict[str, Any] = field(default_factory=dict)
    kind_id: str = ""
    memory: dict[str, Any] = field(default_factory=dict)
    failed_operations: list[str] = field(default_factory=list)
    updates_on_host: bool = False
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    grains: int = 0
    healing: bool = False

    @property
    def grain_seconds(self) -> float:
        """Seconds that one lane needs for a grain: the median of the last steps."""
        ordered = sorted(self.seconds)
        return ordered[len(ordered) // 2] if ordered else 1.0

    @property
    def grains_per_second(self) -> float:
        """Speed of the whole island."""
        return self.lanes / self.grain_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A member that is gone: `how` is "died", "failed", "hung", "corrupt", "left" or "parked"."""

    name: str
    how: str
    reason: str
    step: int


class Crewed:
    """The members and the queue their messages come through: ask all, wait for all."""

    def __init__(
        self,
        *,
        explain: Callable[[str], str],
        fence: Callable[[str], None] = lambda _name: None,
    ) -> None:
        """`explain` shows the last words of an island that died; `fence` ends a dropped one's
        process where this machine can.
        """
        self.members: dict[str, Member] = {}
        self.elastic = False
        self.step = 0  # that is open
        self.patience = LEAST_PATIENCE
        self.losses: list[Loss] = []
        self.arrivals: list[wire.Arrival] = []
        self._names: set[str] = set()  # of the islands that belong here
        self._events: queue.SimpleQueue[wire.Event] = queue.SimpleQueue()
        self.wishes: list[wire.Arrival] = []
        self._explain = explain
        self._fence = fence
        self.restart: Callable[[str], bool] = lambda _name: True
        """Starts an island of this machine again; False while its old process has not ended."""
        self.starts: Callable[[str], bool] = lambda _name: True
        """Whether this pilot starts the island; the others dial in by themselves."""
        self.enlist: Callable[[Any], bool] = lambda _member: True
        """Takes an island (a `MemberSpec`) into the fleet and starts it; False while its old
        process has not ended."""
        self._late: list[tuple[str, wire.Message]] = []
        self.finished: set[str] = set()
        self._paces: deque[float] = deque(maxlen=SPEED_WINDOW)
        self._looked_at = self._awake_since = -math.inf

    def listen_to(self, listener: wire.Listener) -> None:
        """Hear what islands say at this door."""
        self._events = listener.events

    def admit(self, names: Sequence[str], *, waiting: Callable[[list[str]], None]) -> None:
        """Wait until every island of `names` has dialled in; members keep the order of `names`."""
        self._names = set(names)
        arrived: dict[str, Member] = {}
        last_word = time.monotonic()
        while missing := [name for name in names if name not in arrived]:
            event = self._next(1.0)
            if event is None and time.monotonic() - last_word > WORD_SECONDS:
                waiting(missing)
                last_word = time.monotonic()
            if event is not None and isinstance(event[1], wire.Arrival):
                arrived[event[0]] = member_of(event[1])
        # Whoever comes first must not decide ranks, ranges or who writes checkpoints.
        self.members = {name: arrived[name] for name in names}

    # ------------------------------------------------------------------ who is gone

    def drop(self, name: str, how: str, reason: str) -> None:
        """A member is gone: forget it, close its door so that it cannot speak again, remember why.

        RunError's child IslandError if it was the last one.
        """
        member = self.members.pop(name, None)
        self._names.discard(name)
        self._late = [item for item in self._late if item[0] != name]
        if member is None:
            return
        member.connection.close()
        self._fence(name)  # a stopped process must not come back and write
        self.losses.append(Loss(name=name, how=how, reason=reason, step=self.step))
        if not any(not other.healing for other in self.members.values()):
            raise IslandError(f"no island is left: {name!r} was the last one ({reason})")

    def release(self, name: str, how: str = "left", reason: str = "as asked") -> None:
        """A member leaves as it was asked to: it is told so, and its end is no loss."""
        member = self.members.pop(name)
        self.finished.add(name)
        self.losses.append(Loss(name=name, how=how, reason=reason, step=self.step + 1))
        with contextlib.suppress(wire.ConnectionClosed):
            member.connection.send("finish")

    def turn_away(self, name: str, member: Member, reason: str) -> None:
        """An arrival that is no member may not become one; without a reason it is gone already."""
        self._names.discard(name)
        self._late = [item for item in self._late if item[0] != name]
        with contextlib.suppress(wire.ConnectionClosed):
            if reason:
                member.connection.send("failed", reason=reason)
        member.connection.close()

    def call_off(self, name: str) -> None:
        """An island that was started and is no member yet is not wanted any more."""
        self._names.discard(name)
        self.arrivals = [arrival for arrival in self.arrivals if arrival.name != name]
        self._late = [item for item in self._late if item[0] != name]
        self._fence(name)

    def take_arrivals(self) -> list[wire.Arrival]:
        """Who has arrived since the last call."""
        arrivals, self.arrivals = self.arrivals, []
        return arrivals

    def is_known(self, name: str) -> bool:
        """Whether an island is a member, or has arrived and is still connected."""
        return name in self._names

    def follow_pace(self, step_seconds: float) -> None:
        """Set the patience from the median time of the last steps: one in which somebody was waited
        for must not make the next wait longer.
        """
        self._paces.append(step_seconds)
        self.patience = min(MOST_PATIENCE, max(LEAST_PATIENCE, 3.0 * self.pace))

    @property
    def pace(self) -> float:
        """Seconds of the last steps, their median; 0 before the first."""
        return sorted(self._paces)[len(self._paces) // 2] if self._paces else 0.0

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        if now < self._looked_at + TICK:
            return
        if now > self._looked_at + self.patience / 2:
            self._awake_since = now  # who was stopped itself cannot tell who was silent meanwhile
        self._looked_at = now
        for name, member in list(self.members.items()):
            silent = now - max(member.connection.heard_at, self._awake_since)
            if silent > self.patience:
                self.drop(name, "hung", f"nothing was heard of it for {silent:.1f} s")

    def _next(self, timeout: float | None = None) -> tuple[str, Any] | None:
        """The next event that is not the end of an island; None after `timeout` seconds.

        An island that fails, or leaves before it has said that it is finished, raises IslandError;
        if `elastic` it is dropped, and None is returned so that the caller looks again.
        """
        while True:
            if self.elastic:
                self._look_for_silence()
            wait = timeout if not self.elastic else min(TICK, TICK if timeout is None else timeout)
            try:
                name, what = self._events.get(timeout=wait)
            except queue.Empty:
                return None
            if isinstance(what, wire.Arrival) and "ask" in what.hello["facts"]:
                self.wishes.append(what)
                continue
            if isinstance(what, wire.Arrival) and self.elastic and name not in self._names:
                self.arrivals.append(what)
                self._names.add(name)
                self.finished.discard(name)  # an island of its name has left before
                continue
            if name not in self._names:
                _turn_away(name, what)
                continue
            if isinstance(what, wire.Message) and what.kind == "finished":
                self.finished.add(name)
            if not _is_end(what):
                return name, what
            if isinstance(what, wire.Exit) and what.status >= 0 and name in self.members:
                continue  # its last words may still be on the wire; the wire's end comes after them
            if name in self.finished:
                self._names.discard(name)  # the name is free for another island
                continue
            if not self.elastic:
                raise self._why_gone(name, what)
            self._forget(name, what)
            return None

    def _forget(self, name: str, what: object) -> None:
        """Drop an island that has ended; one that was not a member yet just goes."""
        if name in self.members:
            failed = isinstance(what, wire.Message)
            reason = _own_words(what) if isinstance(what, wire.Message) else str(what)
            self.drop(name, "failed" if failed else "died", reason)
        else:
            self._names.discard(name)
            self.arrivals = [arrival for arrival in self.arrivals if arrival.name != name]
            self._late = [item for item in self._late if item[0] != name]

    def _why_gone(self, name: str, what: object) -> IslandError:
        """The error for the end of an island, from the best of the words that explain it.

        Its own last word may arrive just after its end is seen; and an island whose exchange broke
        off only follows another, whose end may be told later.
        """
        ends = [(name, what)]
        deadline = time.monotonic() + 1.0
        while _blame(ends[-1][1]) < 2 and (left := deadline - time.monotonic()) > 0:
            try:
                other, late = self._events.get(timeout=left)
            except queue.Empty:
                break
            if _is_end(late) and other in self._names:
                ends.append((other, late))
        name, what = max(ends, key=lambda end: _blame(end[1]))
        if isinstance(what, wire.Message):
            return IslandError(f"island {name!r} failed:\n{_own_words(what)}")
        return IslandError(f"island {name!r} is gone ({what}).\n{self._explain(name)}")

    # ------------------------------------------------------------------ asking

    def tell(self, kind: str, fields: Mapping[str, Mapping[str, Any]]) -> None:
        """Send each island its own fields; one that is gone is dropped if `elastic`."""
        for name, values in fields.items():
            self._send(name, wire.encode(kind, values))

    def tell_all(self, kind: str, **fields: Any) -> None:
        """Send all islands the same."""
        frame = wire.encode(kind, fields)
        for name in list(self.members):
            self._send(name, frame)

    def _send(self, name: str, frame: bytes) -> None:
        member = self.members.get(name)
        if member is None:
            return
        try:
            member.connection.send_frame(frame)
        except wire.ConnectionClosed as error:
            if not self.elastic:
                raise self._why_gone(name, error) from error
            self.drop(name, "died", str(error))

    def gather(
        self,
        kind: str,
        names: Sequence[str] | None = None,
        match: Mapping[str, Any] | None = None,
        grace: float | None = None,
        limit: float = math.inf,
    ) -> dict[str, wire.Message]:
        """One message of `kind` from each island (or those of `names`), in the members' order.

        Other kinds that arrive meanwhile wait for the `gather` or `take` that asks for them.
        Messages of the kind whose fields are not those of `match` are answers to an older question
        and are thrown away. Whoever is lost on the way is missing in the answer. If the others may
        wait for the lost one themselves, `grace` is how many seconds they are still waited for; no
        answer is waited for longer than `limit` seconds.
        """
        num_losses, end = len(self.losses), time.monotonic() + limit
        wanted = list(self.members) if names is None else [n for n in names if n in self.members]
        left, got = dict.fromkeys(wanted), dict[str, wire.Message]()
        asked = list((match or {}).items())

        def offer(name: str, message: wire.Message) -> bool:
            if message.kind != kind or name not in left:
                return False
            for key, value in asked:
                if message.get(key) != value:
                    return True
            got[name] = message
            del left[name]
            return True

        self._late = [item for item in self._late if not offer(*item)]
        while any(name in self.members for name in left):
            if grace is not None and len(self.losses) > num_losses:
                num_losses, end = len(self.losses), min(end, time.monotonic() + grace)
            if time.monotonic() > end:
                break
            event = self._next()
            if event is not None and isinstance(event[1], wire.Message) and not offer(*event):
                self._late.append(event)
        return {name: got[name] for name in wanted if name in got and name in self.members}

    def take(self, *kinds: str) -> list[tuple[str, wire.Message]]:
        """What has arrived of these kinds, without waiting."""
        while (event := self._next(0.0)) is not None:
            if isinstance(event[1], wire.Message):
                self._late.append((event[0], event[1]))
        taken = [x for x in self._late if x[1].kind in kinds]
        self._late = [x for x in self._late if x[1].kind not in kinds]
        return taken


def member_of(arrival: wire.Arrival) -> Member:
    """The member that an island becomes when it arrives."""
    told = arrival.hello["facts"]
    return Member(arrival.name, told["chip"], told["lanes"], arrival.connection)


def _own_words(message: wire.Message) -> str:
    """What an island said about its own failure."""
    return str(message.get("traceback") or message["reason"])


def _is_end(what: object) -> bool:
    """Whether an event is the end of an island."""
    if isinstance(what, wire.Message):
        return what.kind == "failed"
    return isinstance(what, wire.ConnectionClosed | wire.Exit)


def _turn_away(name: str, what: object) -> None:
    """An island of another name has the token, but no place here; it must not end the run."""
    if isinstance(what, wire.Arrival):
        with contextlib.suppress(wire.ConnectionClosed):
            what.connection.send("failed", reason=f"the fleet has no island {name!r}")
        what.connection.close()


def _blame(what: object) -> int:
    """How well an island's end explains what happened: 3 its own failure, 2 a signal, 0 that of
    another.
    """
    if isinstance(what, wire.Message):
        return 0 if what.get("follows") else 3
    return 2 if isinstance(what, wire.Exit) and what.status < 0 else 1
