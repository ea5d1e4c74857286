"""Contenders that take turns: each is a process of its own that pauses between its rounds.

A machine's speed moves while one measures, so two programs are compared by rounds in turn (A B C,
C B A, ...), all alive at once, one computing at a time. The child calls `Pace.step_done` after
every step of its own loop; there it waits until it is told how many steps to run next. The first
step of a round is not counted: caches and clocks come back, and work that a step leaves behind is
paid for by the round it belongs to.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from common import tell

from atoll.training.display import SilentDisplay, Snapshot


def core_seconds(process: int) -> float:
    """Processor seconds of a process and all that live below it; 0 where the system is no Linux.

    What others do on the machine moves this far less than it moves the time on the wall.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except OSError:
        return 0.0
    user, system = text.rsplit(")", 1)[1].split()[11:13]
    own = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return own + sum(core_seconds(int(child)) for child in children.split())


class Stopped(Exception):
    """The parent has seen enough; unwinds a contender's loop."""


class Pace:
    """The child's side. It reports itself ready after `settling` steps."""

    def __init__(self, *, settling: int = 1) -> None:
        # Whatever a library prints goes to stderr; the pipe to the parent holds answers alone.
        self._answers = os.fdopen(os.dup(1), "w", encoding="ascii")
        os.dup2(2, 1)
        self._wanted = settling
        self._done = 0
        self._started = self._worked = 0.0

    def step_done(self, **facts: Any) -> None:
        """Call after every step; `facts` of the last step of a round go to the parent.

        Raises Stopped when there is nothing more to do.
        """
        now = time.perf_counter()
        self._done += 1
        if self._done == 0:
            self._started, self._worked = now, core_seconds(os.getpid())
        if self._done < self._wanted:
            return
        worked = core_seconds(os.getpid()) - self._worked
        self._answer({"seconds": now - self._started, "core_seconds": worked, "facts": facts})
        text = sys.stdin.readline().strip()
        if not text or text == "stop":
            raise Stopped
        self._wanted, self._done = int(text), -1  # the next step is not counted

    @property
    def round_ends(self) -> bool:
        """Whether the next call of `step_done` will wait."""
        return self._done + 1 >= self._wanted

    def _answer(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)


class PacedDisplay(SilentDisplay):
    """Lets `atoll`'s own training session run at a pace: a display that waits after a step."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def update(self, snapshot: Snapshot) -> None:
        """The step is committed; its update may still run, and is counted with the next step."""
        views = {view.name: view.grains for view in snapshot.islands}
        self.pace.step_done(grains=views, loss=snapshot.loss)


class Contender:
    """The parent's side: one process and what it measured."""

    def __init__(self, name: str, command: Sequence[str], *, tokens_per_step: int) -> None:
        self.name = name
        self.tokens_per_step = tokens_per_step
        self.rates: list[float] = []
        self.core_seconds: list[float] = []  # for a thousand tokens
        self.facts: dict[str, Any] = {}
        self._command = list(command)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process and wait until its first step is done."""
        tell(f"starting {self.name}")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(sys.argv[0]).resolve()), *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._receive()

    def round(self, num_steps: int) -> float:
        """Run some counted steps; tokens a second."""
        print(num_steps, file=self._pipe("stdin"), flush=True)
        answer = self._receive()
        rate = num_steps * self.tokens_per_step / float(answer["seconds"])
        self.rates.append(rate)
        self.core_seconds.append(
            1000.0 * float(answer["core_seconds"]) / (num_steps * self.tokens_per_step)
        )
        self.facts = answer["facts"]
        tell(f"  {self.name}: {rate:,.0f} tokens/s")
        return rate

    def stop(self) -> None:
        """End the process in order."""
        if self._process is None:
            return
        if self._process.poll() is None:
            print("stop", file=self._pipe("stdin"), flush=True)
        self._process.wait(timeout=60)

    @property
    def rate(self) -> float:
        """Median tokens a second."""
        return statistics.median(self.rates)

    def _pipe(self, which: str) -> IO[str]:
        assert self._process is not None
        pipe: IO[str] = getattr(self._process, which)
        return pipe

    def _receive(self) -> dict[str, Any]:
        line = self._pipe("stdout").readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; its own message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def take_turns(contenders: Sequence[Contender], *, num_rounds: int, num_steps: int) -> None:
    """Start all, run rounds in turn (every second one backwards), stop all."""
    try:
        for contender in contenders:
            contender.start()
        for index in range(num_rounds):
            tell(f"round {index + 1} of {num_rounds}")
            for contender in contenders if index % 2 == 0 else reversed(contenders):
                contender.round(num_steps)
    finally:
        for contender in contenders:
            contender.stop()
