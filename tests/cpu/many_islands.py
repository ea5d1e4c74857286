"""Islands as threads, for test_many_events.py: the real `Island` over the real wire, tiny tensors.

What is a stand-in: the lane (a grain's gradient is a hash of the weights, the step and the grain),
and gloo (`Meeting` adds up in this process). A process that dies is a thread that hangs up; one
that hangs is a thread that says nothing more while its sockets stay open.
"""

import contextlib
import hashlib
import queue
import random
import sys
import threading
import time
import traceback

import numpy as np
import torch

from atoll.crew import wire
from atoll.errors import AtollError, ExchangeError, RunError
from atoll.training.exponents import load_of
from atoll.training.healing import Gift
from atoll.training.island import Island
from atoll.training.lane import GrainResult

VERSION, TOKEN, BEAT = "many", "t" * 32, 0.1
PRIME = 2**61 - 1
MEETING_SECONDS = 0.08
"""How long members look for one another, where gloo takes 10 s."""


class Dead(SystemExit):
    """Unwinds the threads of an island that has died, without a word."""


# The exchange


class Group:
    """One epoch's members and their collectives, matched by their order as gloo's are."""

    def __init__(self, size):
        self.size = size
        self.joined = set()
        self.collectives = []  # of {rank: {width: flat}}
        self.torn = {}  # collective -> ranks that never see its end
        self.dead = set()


class Meeting:
    """Where all islands of a run meet."""

    def __init__(self, seed):
        self.changed = threading.Condition()
        self.groups = {}
        self.drawn = random.Random(seed)

    def lose(self, name):
        with self.changed:
            for group in self.groups.values():
                group.dead |= {rank for rank, who in group.joined if who == name}
            self.changed.notify_all()


class ThreadExchange:
    """What `training.exchange.Exchange` is to an island."""

    def __init__(self, **_places):
        self.island = threading.current_thread().island
        self.meeting = self.island.meeting
        self.away = threading.Event()
        self.group = self.rank = None
        self.num_sent = 0

    def cancel(self):
        self.away.set()
        with self.meeting.changed:
            self.meeting.changed.notify_all()

    def park(self, _unfinished):
        self.group = None

    def join(self, *, epoch, rank, size):
        self.away.clear()
        self.group, self.rank, self.num_sent = None, rank, 0
        if size == 1:
            return
        changed = self.meeting.changed
        with changed:
            group = self.meeting.groups.setdefault(epoch, Group(size))
            group.joined.add((rank, self.island.name))
            changed.notify_all()
            deadline = time.monotonic() + MEETING_SECONDS
            while len(group.joined) < size:
                self.island.check_alive()
                changed.wait(0.05)
                if len(group.joined) < size and time.monotonic() > deadline:
                    raise ExchangeError(f"epoch {epoch} did not meet")
        self.group = group

    def begin(self, sums, into, *, host, num_grains):
        return ThreadOpenExchange(self, sums, into, num_grains)


class ThreadOpenExchange:
    """What `training.exchange.OpenExchange` is: one bucket."""

    def __init__(self, exchange, sums, into, num_grains):
        self.exchange, self.sums, self.into = exchange, sums, into
        self.group = exchange.group
        self.waiting = num_grains * len(sums.views)
        self.number = None

    def added(self, _index):
        self.waiting -= 1
        if self.waiting == 0:
            self.send()

    def send(self):
        if self.group is None or self.number is not None:
            return
        exchange, group, drawn = self.exchange, self.group, self.exchange.meeting.drawn
        with exchange.meeting.changed:
            self.number = exchange.num_sent
            exchange.num_sent += 1
            while len(group.collectives) <= self.number:
                group.collectives.append({})
            mine = {width: flat.clone() for width, flat in self.sums.flats.items()}
            if exchange.island.is_doomed("exchange", "torn"):
                group.torn[self.number] = {r for r in range(group.size) if drawn.random() < 0.5}
            group.collectives[self.number][exchange.rank] = mine
            exchange.meeting.changed.notify_all()
        exchange.island.boundary("exchange", "torn")

    def finish(self):
        self.send()
        group, exchange = self.group, self.exchange
        if group is None:
            raise ExchangeError("in no group")
        changed = exchange.meeting.changed
        with changed:
            blind = exchange.meeting.drawn.random() < 0.5  # has no link to the dead
            while True:
                exchange.island.check_alive()
                parts = group.collectives[self.number]
                torn = exchange.rank in group.torn.get(self.number, ())
                if len(parts) == group.size and not (torn and group.dead):
                    break
                if exchange.away.is_set():
                    raise ExchangeError("called away")
                if group.dead and not blind:
                    raise ExchangeError("somebody is gone")
                changed.wait(0.05)
            for width, flat in self.into.flats.items():
                flat.copy_(sum(part[width] for part in parts.values()))


# The island


class HashLane:
    """A grain's gradient, loss and digest from a hash; now and then a very large one."""

    def __init__(self, model, *, weights, device):
        self.weights = weights
        self.patterns = [
            torch.linspace(0.5, 1.0, t.numel()).reshape(t.shape) for t in weights.values()
        ]

    def gradients(self, step, grain):
        state = hashlib.blake2b(f"{step} {grain}".encode())
        for weight in self.weights.values():
            state.update(weight.numpy().tobytes())
        drawn = np.frombuffer(state.digest() * 2, dtype=np.int8)
        spike = 2.0**12 if drawn[0] == 77 else 1.0
        values = [float(v) / 64.0 * spike + 0.01 for v in drawn[: len(self.patterns)]]
        return [p * v for p, v in zip(self.patterns, values, strict=True)], float(drawn[1]) + 200.0

    def compute(self, grain, place, accumulator, *, digest, added):
        found, loss = self.gradients(*place)
        loads, digests = [], 0
        for index, gradient in enumerate(found):
            largest, one = accumulator.add(index, gradient, digest=digest)
            digests += one
            loads.append(load_of(float(largest), accumulator.exponents[index]))
            if added is not None:
                added(index)
        return GrainResult(
            grain=grain, loss=loss, loads=loads, not_finite=None,
            digest=digests % PRIME if digest else None, seconds=1e-3,
        )  # fmt: skip

    def digest(self, place, accumulator):
        found, _ = self.gradients(*place)
        return sum(accumulator.digest_alone(i, g) for i, g in enumerate(found)) % PRIME


class Places:
    """A sampler whose tokens are the place of the grain."""

    def grain(self, step, grain):
        return (step, grain)


class ThreadIsland(Island):
    """An island of one run. `doom` is (message kind, place, how): what happens to it and where."""

    lane_type = HashLane

    def __init__(self, name, address, meeting, *, events, local, doom=None):
        self.name, self.address, self.meeting = name, address, meeting
        self.local, self.events = local, events
        self.doom, self.happened, self.lies_about = doom, "", ""
        self.dead, self.hung = threading.Event(), threading.Event()
        self.doing, self.said = "dialling", ""
        self.gift_doors = []
        self.fetches = threading.Event()  # cleared: the state that heals it does not arrive
        self.fetches.set()
        self.inbox = queue.SimpleQueue()
        thread = threading.Thread(target=self.live, name=name, daemon=True)
        thread.island = self
        thread.start()

    # life and death

    def live(self):
        try:
            self.connection, _ = wire.dial(
                self.address, token=TOKEN, name=self.name, version=VERSION, timeout=10.0,
                facts={"chip": "cpu", "lanes": 1, "threads": 1},
            )  # fmt: skip
        except AtollError:
            self.dead.set()  # an island of its name is not gone yet
            return
        super().__init__(
            chip="cpu", lanes=1, threads=1, device_index=0,
            hosts=("127.0.0.1", "127.0.0.1"), send=self.say,
        )  # fmt: skip
        self.post = self.fetch
        for target in (self.read, self.beat):
            threading.Thread(target=target, daemon=True).start()
        try:
            self.obey()
        except Dead:
            pass
        except Exception as error:
            if not self.dead.is_set():
                if "planted" not in str(error):
                    traceback.print_exc(file=sys.stderr)
                with contextlib.suppress(AtollError):
                    self.connection.send("failed", reason=str(error), traceback=None)
        self.die()

    def obey(self):
        while True:
            self.doing = "idle"
            message = self.inbox.get()
            if message is None:
                raise Dead
            self.doing = message.kind
            self.boundary(message.kind, "before")
            going_on = self.handle(message)
            self.boundary(message.kind, "after")
            if not going_on:
                return

    def fetch(self, message):
        while not self.fetches.wait(0.05):
            self.check_alive()
        self.inbox.put(message)

    def read(self):
        last = ""
        try:
            while last != "finish":
                message = self.connection.receive()
                last = message.kind
                if self.hung.is_set():
                    return
                if last == "failed":
                    raise RunError(str(message["reason"]))
                self.notice(message)
                self.inbox.put(message)
        except (AtollError, OSError):
            if not self.hung.is_set():
                self.die()

    def beat(self):
        with contextlib.suppress(AtollError):
            while not self.dead.wait(BEAT) and not self.hung.is_set():
                self.connection.send(wire.ALIVE)

    def die(self):
        """What a kernel does with a process that ends; from any thread."""
        if self.dead.is_set():
            return
        self.dead.set()
        if hasattr(self, "connection"):
            self.connection.close()
        self.meeting.lose(self.name)
        for door in self.gift_doors:
            door.close()
        self.inbox.put(None)
        if self.local:
            status = 0 if self.doing == "finish" else -9
            self.events.put(wire.Event(self.name, wire.Exit(status=status)))

    def check_alive(self):
        if self.dead.is_set():
            raise Dead

    def is_doomed(self, kind, place):
        return self.doom is not None and self.doom[:2] == (kind, place)

    def boundary(self, kind, place):
        """Something may happen here."""
        self.check_alive()
        if not self.is_doomed(kind, place):
            return
        how, self.doom = self.doom[2], None
        self.happened = how
        if how == "die":
            self.die()
            raise Dead
        if how == "raise":
            raise RuntimeError("planted")
        if how == "hang":
            self.hung.set()
            self.dead.wait()
            raise Dead
        if how == "stall":
            self.dead.wait(0.1)
        if how == "leave":
            self.say("leaving")

    # what is not as in the real island

    def say(self, kind, **fields):
        if self.hung.is_set() or self.dead.is_set():
            raise Dead
        if kind == "exchanged" and self.lies_about == "sums" and fields["sum_digest"]:
            fields["sum_digest"] ^= 1
            self.lies_about, self.happened = "", "sums"
        if kind == "updated" and self.lies_about == "weights":
            fields["fingerprint"] = "0" * 64
            self.lies_about, self.happened = "", "weights"
        self.said = kind
        self.connection.send(kind, **fields)

    def prepare(self, **fields):
        super().prepare(**fields)
        self.sampler = Places()

    def _probe(self, sequences, context, vocab):
        return ["p"], 1e-3

    def _kind(self, probes):
        return {"kind": "thread"}

    def give(self, *, step, to):
        gift = Gift(self._groups(), host=self.backend.host, local=self._hosts[0])
        self.gift_doors.append(gift._door)
        host, port = gift.address
        self.send("giving", step=step, to=to, host=host, port=port, secret=gift.secret)

    def _fill_initial(self):
        for number, weight in enumerate(self.weights.values()):
            weight.fill_(1.0 / (number + 1))

    def _parallel(self, function, items):
        return [function(item) for item in items]

    def report_checkpoints(self):
        pass

    def __repr__(self):
        state = "dead" if self.dead.is_set() else "hung" if self.hung.is_set() else self.doing
        return f"{self.name}: {state}, said {self.said}, doom {self.doom}, had {self.happened!r}"


PLACES = ("before", "after")
POINTS = [(kind, p) for kind in ("assign", "exchange", "commit", "join") for p in PLACES]
POINTS += [("exchange", "torn"), ("exchange", "torn"), ("give", "before"), ("give", "after")]
JOINING_POINTS = [
    (kind, place)
    for kind in ("prepare", "join", "heal", "fetched", "assign", "commit", "exchange")
    for place in PLACES
]
