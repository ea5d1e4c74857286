"""What a person sees on stderr while a run is prepared and trained.

One protocol, three forms: a live page on a terminal (`live.LiveDisplay`), lines where stderr is a
file or a pipe (`PlainDisplay`), nothing (`SilentDisplay`). The program tells a display what it
knows and never asks it anything. It is not a log: events.jsonl and the ledger are.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from atoll.units import format_seconds

_LINE_SECONDS = 2.0
_PHASE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandView:
    """One island as a person sees it: `grains` of the step are its share; `state` is one word
    such as "training", "joining", "lost"."""

    name: str
    chip: str
    lanes: int
    grains: int
    grains_per_second: float | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The run after `step` steps. Losses are nats a token; `val_loss` and `bits_per_byte` are the
    newest known, None before the first validation. `message` is the newest event, if any."""

    run: str
    step: int
    total_steps: int
    loss: float | None
    val_loss: float | None
    bits_per_byte: float | None
    tokens: int
    tokens_per_second: float | None
    contract: str
    islands: tuple[IslandView, ...]
    message: str | None = None


class Display(Protocol):
    """Where a run shows itself. Calls are cheap, come from one thread, and never fail a run."""

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now."""

    def say(self, text: str) -> None:
        """Show a message that stays, one line or several."""

    def phase(self, text: str, fraction: float | None) -> None:
        """Show what is being prepared and how far it is (0 to 1; None: not known)."""

    def close(self) -> None:
        """Leave the terminal as it was, with the last state standing. Idempotent."""


class SilentDisplay:
    """Shows nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def phase(self, text: str, fraction: float | None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Pace:
    """Steps a second over the last steps seen, and from it the seconds that are left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque(maxlen=32)

    def seen(self, step: int) -> None:
        """Note that `step` is done now."""
        if not self._seen or step > self._seen[-1][1]:
            self._seen.append((self._clock(), step))

    def left(self, total_steps: int) -> float | None:
        """Seconds until `total_steps` at the present pace; None before two steps were seen."""
        if len(self._seen) < 2:
            return None
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return max(0.0, (end - begin) / (last - first) * (total_steps - last))


class PlainDisplay:
    """A line of text every two seconds, at each validation, and at the last step."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream: TextIO | None = stream
        self._clock = clock
        self._pace = Pace(clock)
        self._printed: float | None = None
        self._val_loss: float | None = None
        self._message: str | None = None
        self._phase: str | None = None
        self._shown: Snapshot | None = None
        self._latest: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Print a line if one is due."""
        self._pace.seen(snapshot.step)
        if snapshot.message and snapshot.message != self._message:
            self.say(snapshot.message)
        self._message = snapshot.message
        self._latest = snapshot
        validated = snapshot.val_loss is not None and snapshot.val_loss != self._val_loss
        last = snapshot.step >= snapshot.total_steps
        if validated or last or self._due(_LINE_SECONDS):
            self._show(snapshot)

    def say(self, text: str) -> None:
        """Print the text as it is."""
        self._print(text)

    def phase(self, text: str, fraction: float | None) -> None:
        """Print a new phase, and now and then how far it is."""
        # Phases that know their fraction may change often (one for each step): not all are shown.
        known = fraction is not None and fraction < 1.0
        if text != self._phase and (not known or self._due(_LINE_SECONDS)):
            self._phase = text
            self._print(text if fraction == 1.0 else f"{text} ...")
            self._printed = self._clock()
        elif text == self._phase and known and self._due(_PHASE_SECONDS):
            self._print(f"{text}: {fraction:.0%}")
            self._printed = self._clock()

    def close(self) -> None:
        """Print the last state if it was not yet."""
        if self._latest is not None and self._latest is not self._shown:
            self._show(self._latest)

    def _due(self, seconds: float) -> bool:
        return self._printed is None or self._clock() - self._printed >= seconds

    def _show(self, snapshot: Snapshot) -> None:
        self._printed = self._clock()
        self._shown = snapshot
        line = line_of(
            snapshot,
            self._pace.left(snapshot.total_steps),
            validated=snapshot.val_loss != self._val_loss,
        )
        self._val_loss = snapshot.val_loss
        self._print(line)

    def _print(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError:  # the pipe's reader has gone; the run goes on
            self._stream = None


def line_of(snapshot: Snapshot, seconds_left: float | None, *, validated: bool = True) -> str:
    """A snapshot as one line of text, with the validation loss if `validated` says it is new."""
    parts = [f"step {snapshot.step}/{snapshot.total_steps}"]
    if snapshot.loss is not None:
        parts.append(f"loss {snapshot.loss:.4f}")
    if snapshot.val_loss is not None and validated:
        parts.append(f"val {validation_of(snapshot)}")
    if snapshot.tokens_per_second is not None:
        parts.append(f"{snapshot.tokens_per_second:,.0f} tokens/s")
    shares = " ".join(f"{island.name}:{island.grains}" for island in snapshot.islands)
    if shares:
        parts.append(f"grains {shares}")
    if seconds_left is not None and snapshot.step < snapshot.total_steps:
        parts.append(f"{format_seconds(max(1, round(seconds_left)))} left")
    return "  ".join(parts)


def validation_of(snapshot: Snapshot) -> str:
    """The newest validation loss in words, with the bits a byte where known."""
    text = f"{snapshot.val_loss:.4f}"
    if snapshot.bits_per_byte is not None:
        text += f" ({snapshot.bits_per_byte:.3f} bits/byte)"
    return text


def open_display(*, quiet: bool = False, stream: TextIO | None = None) -> Display:
    """The display that fits `stream` (stderr if not given): live on a terminal, else lines."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return SilentDisplay()
    if not stream.isatty():
        return PlainDisplay(stream)
    from rich.console import Console

    from atoll.training.live import LiveDisplay

    console = Console(file=stream)
    return LiveDisplay(console) if not console.is_dumb_terminal else PlainDisplay(stream)
