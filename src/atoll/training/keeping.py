"""Keeping: the checkpoints of a run - which island writes them, and what if it is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atoll.run import Events, RunFolder
from atoll.training import checkpoint
from atoll.training.crewing import MemberSpec
from atoll.training.pilot import Pilot


class Keeping:
    """The pilot's side of checkpoints."""

    def __init__(
        self,
        pilot: Pilot,
        *,
        folder: RunFolder,
        members: Sequence[MemberSpec],
        events: Events,
        told: Callable[[], Mapping[str, Any]],
        note_losses: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """`told` gives what a checkpoint keeps beside the pilot's state; `note_losses` writes down
        who is gone.
        """
        self._pilot, self._path, self._members = pilot, folder.checkpoints_path, members
        self._cadence = pilot.recipe.run
        self._events, self._told, self._say = events, told, say
        self._note_losses = note_losses
        self.saved_steps: set[int] = set()
        self.not_kept = ""
        """Why the last checkpoint that failed did."""
        self._writing: dict[int, str] = {}  # steps that are being saved, and by whom

    def save(self) -> None:
        """Ask one island to write a checkpoint; steps go on meanwhile.

        Only weights that all islands hold are kept: had the writer alone other ones, the run would
        end at the next step, and go on from them later.
        """
        if self._pilot.step in self.saved_steps:
            return
        self._pilot.settle()
        writer = self._writer()
        state = {**self._pilot.state(), **self._told()}
        self._pilot.crew.tell("checkpoint", {writer: {"step": self._pilot.step, "state": state}})
        self.saved_steps.add(self._pilot.step)
        self._writing[self._pilot.step] = writer

    def _writer(self) -> str:
        """The island that writes checkpoints: one that runs here, if any does, where the folder
        is, and rather one that need not leave before it is written."""
        here = {member.name for member in self._members if not member.dials_in}
        stays = {member.name for member in self._members if member.hours is None}
        whole = [m.name for m in self._pilot.crew.members.values() if not m.healing]
        return min(whole, key=lambda name: (name not in here, name not in stays))

    def save_again(self) -> None:
        """A checkpoint whose writer was lost is not kept: the next step is saved in its stead."""
        lost = [
            step for step, name in self._writing.items() if name not in self._pilot.crew.members
        ]
        for step in lost:
            del self._writing[step]
            self.saved_steps.discard(step)
        if lost and self._pilot.step:
            self.save()

    def collect(self) -> None:
        """Take in what writers have finished, and remove checkpoints that need not be kept."""
        for name, message in self._pilot.crew.take("checkpointed", "checkpoint_failed"):
            self._events.append(message.kind, island=name, **message.fields)
            self._writing.pop(message.get("step", -1), None)
            if message.kind == "checkpoint_failed":
                self.not_kept = str(message["reason"])
                self._say(self.not_kept)
                continue
            cadence = self._cadence
            checkpoint.prune(
                self._path,
                keep_last=cadence.keep_last,
                keep_best=cadence.keep_best,
            )

    def part(self) -> None:
        """Keep the end of the run, by another island if its writer is lost; then all may go."""
        pilot = self._pilot
        while pilot.step and pilot.step not in checkpoint.list_steps(self._path):
            self.saved_steps.discard(pilot.step)
            self.save()
            writer = self._writing[pilot.step]
            pilot.crew.tell("finish", {writer: {}})
            if writer in pilot.crew.gather("finished", [writer]):
                break
            self._note_losses()
        told = [name for name in pilot.crew.members if name not in pilot.crew.finished]
        pilot.crew.tell("finish", {name: {} for name in told})
        pilot.crew.gather("finished", told)
        self._note_losses()
        self.collect()
