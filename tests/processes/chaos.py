"""Chaos: from a seed, islands of a run are killed, stopped, asked to leave, and new ones dial in.

A driver in a thread beside the run. It reads who holds the weights from the run's own events, and
leaves at least one such island alone: the end of the last one ends a run, and that is by design.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

from atoll.errors import AtollError
from atoll.run import Events, Ledger
from atoll.training.crewing import ask

LOST = ("died", "failed", "hung", "corrupt", "left", "parked")
SAME = ("step", "loss", "grad_norm", "lr", "clip", "sum_digest", "fingerprint", "tokens")
MOST_ISLANDS = 4


def bits_of(lines):
    """What no fault may change, line by line."""
    return [{key: getattr(line, key) for key in SAME} for line in lines]


def check_grains(lines, num_grains):
    """Every grain of every step is in it once."""
    for line in lines:
        grains = [g for parts in line.grains.values() for a, b in parts for g in range(a, b + 1)]
        assert sorted(grains) == list(range(num_grains)), line.step


class Chaos:
    """Strikes until `num_faults` are done or `stop` is called; `faults` counts them by kind."""

    def __init__(self, run, *, seed, num_faults, pause=0.5):
        self.run, self.num_faults, self.pause = run, num_faults, pause
        self.drawn = random.Random(seed)
        self.faults = Counter()
        self.struck = Counter()  # name -> losses that its strikes will have brought about
        self.guests = {}
        self.num_guests = 0
        self.over = threading.Event()
        self.error = None
        self._thread = threading.Thread(target=self._drive, name="chaos", daemon=True)

    def start(self):
        self._thread.start()
        return self

    def stop(self):
        """End the driver, and whatever it started."""
        self.over.set()
        self._thread.join(150)
        for guest in self.guests.values():
            try:
                guest.wait(20 if self.error is None else 0)
            except subprocess.TimeoutExpired:
                guest.kill()
                guest.wait()
        if self.error is not None:
            raise self.error

    def _drive(self):
        try:
            while not (self.run / "pilot.json").exists() or len(self._lines()) < 2:
                if self.over.wait(0.05):
                    return
            while self.faults.total() < self.num_faults:
                if self.over.wait(self.pause * self.drawn.uniform(0.2, 1.8)):
                    return
                self._strike()
        except BaseException as error:
            self.error = error

    def _lines(self):
        path = self.run / "ledger.jsonl"
        return Ledger(path).read() if path.exists() else []

    def whole(self):
        """Who holds the weights, and is not struck already."""
        here, losses = set(), Counter()
        for event in Events(self.run / "events.jsonl").read():
            if event["kind"] == "started":
                here |= set(event["islands"])
            elif event["kind"] == "healed":
                here.add(event["island"])
            elif event["kind"] in LOST:
                here.discard(event["island"])
                losses[event["island"]] += 1
        return sorted(name for name in here if self.struck[name] <= losses[name])

    def _pid(self, name):
        if name in self.guests:
            return self.guests[name].pid
        found = max(self.run.glob(f"pid-{name}-*"), key=lambda path: path.stat().st_mtime)
        return int(found.name.rpartition("-")[2])

    def _strike(self):
        whole = self.whole()
        living = [name for name, guest in self.guests.items() if guest.poll() is None]
        if len(living) < MOST_ISLANDS - 1 and (len(whole) < 2 or self.drawn.random() < 0.3):
            self._invite()
        if len(whole) < 2:
            return
        name = self.drawn.choice(whole)
        how = self.drawn.choices(["kill", "stop", "leave", "term"], [6, 1, 2, 2])[0]
        if how == "term" and name not in self.guests:
            how = "kill"
        self.struck[name] += 1
        if how == "leave":
            try:
                ask(self.run, leave=name)
            except AtollError:
                return  # the run has ended meanwhile
        else:
            number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[how]
            try:
                os.kill(self._pid(name), number)
            except ProcessLookupError:
                return
        self.faults[how] += 1
        if how == "stop":
            self._bury(name)

    def _bury(self, name):
        """A guest that hangs is nobody's child but ours: end it when it has been dropped."""
        guest = self.guests.get(name)
        if guest is None:
            return
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not self.over.wait(0.1):
            events = Events(self.run / "events.jsonl").read()
            if any(e["kind"] in LOST and e.get("island") == name for e in events):
                break
        guest.kill()

    def _invite(self):
        """Start an island of a new name beside the run."""
        try:
            address = json.loads((self.run / "pilot.json").read_text())["address"]
        except OSError:
            return
        name = f"guest-{self.num_guests}"
        self.num_guests += 1
        words = ["--pilot", address, "--token-file", str(self.run / "token"), "--name", name]
        words += ["--lanes", "1", "--threads", "1"]
        self.guests[name] = subprocess.Popen(
            [sys.executable, "-m", "atoll", "island", *words],
            stdout=(self.run / f"{name}.log").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.faults["join"] += 1
