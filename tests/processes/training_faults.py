"""Island processes with one planted fault each, for test_training.py; and plain ones.

Every function here is an entry `training_faults:NAME` as `atoll.training.island:main` is one. It
notes its process id beside the token file, so that a test can see that nobody is left behind.
"""

import os
import resource
import signal
import time
from pathlib import Path

import torch

from atoll.training.dialling import run_island
from atoll.training.island import Island
from atoll.training.lane import Lane

FOLDER = []


def value_of(argv, flag):
    return argv[argv.index(flag) + 1]


def start(argv, island_type, *, only=None):
    """Run an island; with `only`, the fault is in the island of that name, the rest are sound."""
    name = value_of(argv, "--name")
    folder = Path(value_of(argv, "--token-file")).parent
    (folder / f"pid-{name}-{os.getpid()}").touch()
    FOLDER[:] = [folder]
    return run_island(argv, island_type if only in (None, name) else Island)


def plain(argv):
    return start(argv, Island)


class WatchedLane(Lane):
    """Knows which grain of which attempt it computes, and may change its gradients."""

    step = attempt = grain = 0

    def compute(self, grain, *arguments, **named):
        self.grain = grain
        return super().compute(grain, *arguments, **named)

    def backward(self, tokens, sink):
        def changed(index, gradient):
            sink(index, self.plant(index, gradient))

        return super().backward(tokens, changed)

    def plant(self, index, gradient):
        return gradient


class WatchedIsland(Island):
    lane_type = WatchedLane

    def assign(self, *, step, attempt, **fields):
        WatchedLane.step, WatchedLane.attempt = step, attempt
        super().assign(step=step, attempt=attempt, **fields)


def with_lane(lane):
    return type("PlantedIsland", (WatchedIsland,), {"lane_type": lane})


class Overflowing(WatchedLane):
    """One grain's gradient is a million times larger, at every attempt."""

    def plant(self, index, gradient):
        there = self.step == 4 and self.grain == 3
        return gradient * 1e6 if there else gradient


def overflow(argv):
    return start(argv, with_lane(Overflowing))


class NotFiniteOnce(WatchedLane):
    def plant(self, index, gradient):
        there = self.step == 3 and self.grain == 2 and self.attempt == 0
        return gradient * float("nan") if there and index == 1 else gradient


def not_finite_once(argv):
    return start(argv, with_lane(NotFiniteOnce))


class NotFinite(WatchedLane):
    def plant(self, index, gradient):
        there = self.step == 5 and self.grain == 2
        return gradient * float("inf") if there and index == 1 else gradient


def not_finite(argv):
    return start(argv, with_lane(NotFinite))


class Diverged(Lane):
    """Weights with which the held-out text has no loss."""

    def loss_only(self, tokens):
        return super().loss_only(tokens) * float("nan")


def diverged(argv):
    return start(argv, type("DivergedIsland", (Island,), {"lane_type": Diverged}))


class Raising(WatchedLane):
    def plant(self, index, gradient):
        if self.step == 4:
            raise ZeroDivisionError("a planted bug in a kernel")
        return gradient


def raises_in_b(argv):
    return start(argv, with_lane(Raising), only="b")


class Dying(WatchedLane):
    def plant(self, index, gradient):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return gradient


def dies_in_b(argv):
    return start(argv, with_lane(Dying), only="b")


class DyingWhileItHeals(Island):
    def heal(self, **fields):
        os.kill(os.getpid(), signal.SIGKILL)


def dies_while_it_heals(argv):
    return start(argv, DyingWhileItHeals)


def ending_at(where, number):
    """An island that gets a signal (or raises, number 0) in step 4 at one point of the step."""

    def end(self, step):
        if step == 4 and not number:
            raise ZeroDivisionError("a planted bug")
        if step == 4:
            os.kill(os.getpid(), number)

    class Ending(WatchedIsland):
        def exchange_sums(self, *, step, epoch):
            if where == "exchanging":
                end(self, step)
            super().exchange_sums(step=step, epoch=epoch)
            if where == "exchanged":
                end(self, step)

        def commit(self, *, step, **fields):
            if where == "committing":
                end(self, step)
            super().commit(step=step, **fields)
            if where == "committed":
                end(self, step)

        def save(self, *, step, state):
            super().save(step=step, state=state)
            if where == "saving":
                end(self, step)

    return Ending


SIGNALS = {"killed": signal.SIGKILL, "hung": signal.SIGSTOP, "raised": 0}
POINTS = ("exchanging", "exchanged", "committing", "committed", "saving")

for _point in POINTS:
    for _how, _number in SIGNALS.items():
        _who = "a" if _point == "saving" else "b"  # a writes the checkpoints

        def _entry(argv, point=_point, number=_number, who=_who):
            return start(argv, ending_at(point, number), only=who)

        globals()[f"{_how}_{_point}"] = _entry


class Stopping(WatchedLane):
    def plant(self, index, gradient):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGSTOP)
        return gradient


def hangs_in_b(argv):
    return start(argv, with_lane(Stopping), only="b")


class Slow(WatchedIsland):
    """Slow enough to be interrupted in the middle of a step."""

    def assign(self, **fields):
        time.sleep(0.3)
        super().assign(**fields)


def slow(argv):
    return start(argv, Slow)


class Snail(WatchedLane):
    """A grain takes it longer than the others need for all of them."""

    def plant(self, index, gradient):
        if index == 1:
            time.sleep(0.5)
        return gradient


def snail_b(argv):
    return start(argv, with_lane(Snail), only="b")


class SlowDying(Slow):
    """Dies in its fourth step, in its first life only."""

    def commit(self, *, step, **fields):
        if step == 4 and first_life("b"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit(step=step, **fields)


class LongFetch(SlowDying):
    """Dies once; in its second life the state is a long time on its way: many updates are kept."""

    def post_late(self, message):
        if message.kind == "fetched":
            time.sleep(2.0)
        self.post_now(message)

    def heal(self, **fields):
        self.post_now, self.post = self.post, self.post_late
        super().heal(**fields)


def slow_dies_and_heals_long_in_b(argv):
    return start(argv, LongFetch if value_of(argv, "--name") == "b" else Slow)


class Noting(Island):
    """Notes what it is told to do to the weights, and by which correction of the second moments."""

    def commit(self, *, step, scalars, change, **fields):
        with (FOLDER[0] / "commits").open("a") as file:
            file.write(f"{step} {change} {scalars['inverse_correction2']!r}\n")
        super().commit(step=step, scalars=scalars, change=change, **fields)


def noting(argv):
    return start(argv, Noting)


def first_life(name):
    return len(list(FOLDER[0].glob(f"pid-{name}-*"))) == 1


def slow_dies_once_in_b(argv):
    return start(argv, SlowDying if value_of(argv, "--name") == "b" else Slow)


class WrongOnce(WatchedLane):
    """Silent corruption: one grain's gradient is off in one element, only where it is added."""

    def compute(self, grain, tokens, accumulator, *, digest=False, added=None):
        self.adding = True
        try:
            return super().compute(grain, tokens, accumulator, digest=digest, added=added)
        finally:
            self.adding = False

    def plant(self, index, gradient):
        if self.step == 5 and index == 1 and getattr(self, "adding", False):
            gradient = gradient.clone()
            gradient.view(-1)[3] += 1.0
        return gradient


def wrong_in_b(argv):
    return start(argv, with_lane(WrongOnce), only="b")


class Fickle(Lane):
    """Its kernels depend on the time of day."""

    def probe(self, tokens):
        return super().probe(tokens)[:40] + str(time.perf_counter_ns())


def fickle(argv):
    return start(argv, type("FickleIsland", (Island,), {"lane_type": Fickle}))


class BadExchange(Island):
    """The sum that this island received is off by one in one element."""

    step = 0

    def assign(self, *, step, **fields):
        super().assign(step=step, **fields)
        self.step = step

    def _finish_exchange(self):
        super()._finish_exchange()
        if self.step == 3:
            self.exchanged.flats[32][7] += 1


def bad_exchange_in_b(argv):
    return start(argv, BadExchange, only="b")


class Flipping(Island):
    """Its memory loses a bit of a weight in the update of a step that is checkpointed."""

    def commit(self, *, step, **fields):
        if step == 6:
            self.weights["norm.weight"][3] += 2.0**-20
        super().commit(step=step, **fields)


class Lagging(Island):
    """Late to say what weights it holds after that update: time enough to keep the bad ones."""

    def commit(self, *, step, **fields):
        if step == 6:
            time.sleep(1.0)
        super().commit(step=step, **fields)


def flips_in_a(argv):
    return start(argv, Flipping if value_of(argv, "--name") == "a" else Lagging)


def limited(full_at):
    """An island for which the disk is full while it saves one of these steps."""

    class FullDisk(Island):
        def save(self, *, step, state):
            if self._writer is not None:
                self._writer.close()  # one checkpoint at a time, each under its own limit
                self.report_checkpoints()
                self._writer = None
            most = 20_000 if step in full_at else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            super().save(step=step, state=state)

    return FullDisk


def full_disk_once(argv):
    return start(argv, limited({4}))


def full_disk_to_the_end(argv):
    return start(argv, limited(set(range(4, 100))))


class Brisk(WatchedLane):
    """Slow enough that a signal lands in the middle of a grain."""

    def compute(self, grain, *arguments, **named):
        time.sleep(0.015)
        return super().compute(grain, *arguments, **named)


def brisk(argv):
    return start(argv, with_lane(Brisk))


torch.set_num_threads(1)
