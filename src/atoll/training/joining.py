"""Joining: the pilot's side of islands that arrive, and of those that leave, while the run goes on.

An arrival prepares itself beside the steps; when its kind is proved and allowed, a living island
gives it the state after a step, and from the next one on it sits in the exchange without grains,
keeping what it cannot apply yet. When its weights are those of the others it gets grains. The
others stop for the copy and for the new group, never for the transfer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from atoll.crew import wire
from atoll.digest import digest_of
from atoll.training.membership import Member, member_of
from atoll.training.pilot import Pilot

PREPARE_SECONDS = 300.0
"""How long an arrival may take to build the model and prove itself."""

Note = Callable[..., None]
"""Takes the kind of an event and its fields."""


@dataclass(slots=True)
class Candidate:
    """An island that has arrived and is no member yet."""

    member: Member
    since: float
    ready: bool = False


class Joining:
    """Called between two steps; holds who is on the way."""

    def __init__(
        self, pilot: Pilot, *, prepare: Mapping[str, Any], bitwise: Callable[[], bool], note: Note
    ) -> None:
        """`prepare` are the fields that every island was prepared with; `bitwise` says whether
        the contract forbids other kinds.
        """
        self._pilot, self._prepare, self._bitwise, self._note = pilot, dict(prepare), bitwise, note
        self._candidates: dict[str, Candidate] = {}

    def between_steps(self) -> None:
        """Let everybody who is on the way take the next step."""
        crew = self._pilot.crew
        for arrival in crew.take_arrivals():
            self._receive(arrival)
        self._answer_wishes()
        for name, message in crew.take("ready", "healed", "heal_failed", "leaving"):
            if message.kind == "ready" and name in self._candidates:
                self._judge(name, message)
            elif message.kind == "healed" and name in crew.members:
                self._welcome(name, message)
            elif message.kind == "heal_failed" and name in crew.members:
                crew.drop(name, "failed", f"could not be healed: {message['reason']}")
            elif message.kind == "leaving":
                self.let_go(name)
        for name, candidate in list(self._candidates.items()):
            late = time.monotonic() - candidate.since > PREPARE_SECONDS
            if not crew.is_known(name) or late:
                del self._candidates[name]
                crew.turn_away(
                    name, candidate.member, "it took too long to prepare" if late else ""
                )
        if not any(member.healing for member in crew.members.values()):
            for name in [n for n, one in self._candidates.items() if one.ready][:1]:
                self._admit(name)

    def _answer_wishes(self) -> None:
        """Do what somebody asked for beside the islands (`crewing.ask`), and say how it went."""
        crew = self._pilot.crew
        while crew.wishes:
            wish = crew.wishes.pop(0)
            name = str(wish.hello["facts"]["ask"].get("leave"))
            if self.let_go(name):
                text = f"island {name!r} has left after step {self._pilot.step}"
            elif name in crew.members:
                text = f"island {name!r} is the last one: stop the run instead"
            else:
                text = f"there is no island {name!r}; there are {', '.join(crew.members)}"
            with contextlib.suppress(wire.ConnectionClosed):
                wish.connection.send("answer", text=text)

    def expect(self, member: Member) -> None:
        """A member that has proved itself but does not hold the weights: it is healed in turn."""
        self._candidates[member.name] = Candidate(member, time.monotonic(), ready=True)

    def let_go(self, name: str, how: str = "left", reason: str = "as asked") -> bool:
        """Let a member leave between two steps; False if it is none, or the last one."""
        crew = self._pilot.crew
        self._pilot.settle()  # whoever is lost in it neither leaves nor stays
        if name not in crew.members or not set(self._pilot.whole()) - {name}:
            return False
        crew.release(name, how, reason)
        return True

    def _receive(self, arrival: wire.Arrival) -> None:
        member = member_of(arrival)
        self._candidates[arrival.name] = Candidate(member, time.monotonic())
        try:
            member.connection.send("prepare", **self._prepare)
        except wire.ConnectionClosed:
            del self._candidates[arrival.name]

    def _judge(self, name: str, message: wire.Message) -> None:
        """Whether an arrival that has proved its kind may take part."""
        member = self._candidates[name].member
        member.kind = message["lane_kind"]
        member.kind_id = digest_of(member.kind)[:16]
        member.memory = message["memory"]
        member.failed_operations = message["failed"]
        member.updates_on_host = message["updates_on_host"]
        member.seconds.append(message["grain_seconds"])
        present = {one.kind_id for one in self._pilot.crew.members.values()}
        reason = ""
        if member.failed_operations and not member.updates_on_host:
            reason = f"it does not round {', '.join(member.failed_operations)} as IEEE 754 asks"
        elif self._bitwise() and member.kind_id not in present:
            reason = (
                f"this run is bitwise, of kind {', '.join(sorted(present))}, and this island is of "
                f"kind {member.kind_id}"
            )
        if reason:
            del self._candidates[name]
            self._pilot.crew.turn_away(name, member, reason)
            self._note("refused", island=name, reason=reason)
        else:
            self._candidates[name].ready = True

    def _admit(self, name: str) -> None:
        """Give an arrival the state of now, and a seat in the exchange from the next step on."""
        pilot, crew = self._pilot, self._pilot.crew
        pilot.settle()
        member = self._candidates.pop(name).member
        giver = min(pilot.whole().values(), key=lambda one: one.grain_seconds).name
        crew.tell("give", {giver: {"step": pilot.step, "to": name}})
        answer = crew.gather("giving", [giver], match={"to": name}).get(giver)
        if answer is None:
            self._candidates[name] = Candidate(member, time.monotonic(), ready=True)
            return
        member.healing = True
        crew.members[name] = member
        crew.tell(
            "heal",
            {
                name: {
                    "step": pilot.step, "host": answer["host"], "port": answer["port"],
                    "secret": answer["secret"], "fingerprint": pilot.fingerprint,
                }
            },
        )  # fmt: skip
        pilot.form_group()
        if name in crew.members:
            self._note(
                "joined", island=name, step=pilot.step, chip=member.chip, lanes=member.lanes,
                lane_kind=member.kind_id,
            )  # fmt: skip

    def _welcome(self, name: str, message: wire.Message) -> None:
        """An arrival says that it holds the weights after a step: believe it if they are right."""
        crew, step = self._pilot.crew, message["step"]
        self._pilot.settle()
        if self._pilot.fingerprints.get(step) != message["fingerprint"]:
            crew.drop(name, "corrupt", f"after healing its weights of step {step} are others")
            return
        if name in crew.members:
            crew.members[name].healing = False
            self._note("healed", island=name, step=step)
