"""Islands with hours come at them and leave before their end; no bit of the run changes."""

import os
import signal
import time

import pytest
from tests.processes.what_a_run_says import events_of, every_grain_once, ledger_of, same_run

from atoll.run import Events

pytestmark = pytest.mark.processes

HOUR = 3600.0
LENT = '[[island]]\nname = "b"\nhours = "22:00-07:00 +08:00"\n'
"""Hours of UTC: 14:00 to 23:00."""
DAY_TIME, NIGHT = 12.0, 15.0


class Script:
    """A clock that stands still until something has happened in the run: (hour, until when).

    The run looks at it between two steps; it answers the later the longer it has waited, so that
    the run is not over before an island has come.
    """

    speed = 1.0

    def __init__(self, *acts):
        self.acts, self.looks = list(acts), 0

    def now(self):
        hour, happened = self.acts[0]
        if len(self.acts) > 1:
            end = time.monotonic() + min(1.0, 0.05 * 2**self.looks)
            self.looks += 1
            while not (over := happened()) and time.monotonic() < end:
                time.sleep(0.02)
            if over:
                self.acts.pop(0)
                self.looks = 0
        return hour * HOUR


def has_computed(run, name, times):
    """Whether an island has got grains `times` times over, each time after an absence."""

    def happened():
        if not (run / "ledger.jsonl").exists():
            return False
        here = [name in line.grains for line in ledger_of(run)]
        rises = sum(now and not before for before, now in zip([False, *here], here, strict=False))
        return rises >= times

    return happened


def told(run, kind, name, times):
    return lambda: events_of(run, kind).count((kind, name)) >= times


@pytest.fixture(scope="module")
def fifty(world):
    return world.train("one", world.folder / "fifty", overrides=["schedule.steps=50"])


def test_an_island_is_lent_twice_and_no_bit_changes(world, fifty, tmp_path, leaves_nobody):
    run = tmp_path / "run"
    world.fleet("lent").write_text('[[island]]\nname = "a"\n' + LENT)
    clock = Script(
        (DAY_TIME, (run / "ledger.jsonl").exists),
        (NIGHT, has_computed(run, "b", 1)), (DAY_TIME, told(run, "left", "b", 1)),
        (NIGHT, has_computed(run, "b", 2)), (DAY_TIME, lambda: False),
    )  # fmt: skip
    steps = ["schedule.steps=50"]
    result = world.train("lent", run, overrides=steps, clock=clock)
    same_run(result, fifty)
    every_grain_once(run, 6)
    night = ["lent", "joined", "healed", "left"]
    assert events_of(run, *night) == [(kind, "b") for kind in night * 2]
    assert not any(line.reassigned for line in ledger_of(run)), "leaving costs nothing"
    reasons = [e["reason"] for e in Events(run / "events.jsonl").read() if e["kind"] == "left"]
    assert reasons == ["its hours are over: 22:00-07:00 +08:00"] * 2
    assert world.audit(run, steps=2).ok


def test_a_lent_island_that_is_killed_costs_no_step(world, fifty, tmp_path, leaves_nobody):
    """It is started again in its hours; the night goes on, and in the morning it leaves."""
    run, killed = tmp_path / "run", []
    world.fleet("lent").write_text('[[island]]\nname = "a"\n' + LENT)

    def kill():
        if has_computed(run, "b", 1)() and not killed:
            pid = next(int(path.name.rpartition("-")[2]) for path in run.glob("pid-b-*"))
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return has_computed(run, "b", 2)()

    clock = Script((NIGHT, kill), (DAY_TIME, lambda: False))
    steps = ["schedule.steps=50"]
    result = world.train("lent", run, overrides=steps, clock=clock)
    same_run(result, fifty)
    every_grain_once(run, 6)
    story = events_of(run, "lent", "died", "restarted", "healed", "left")
    assert story == [(kind, "b") for kind in ("died", "restarted", "healed", "left")]


def test_a_run_that_has_chips_at_night_only_waits_for_the_next_one(world, fifty, tmp_path):
    """All islands are lent: it keeps its state, lets all chips go, and goes on the next night."""
    run = tmp_path / "run"
    world.fleet("night").write_text(LENT)

    def kept():
        return any(event["kind"] == "stopped" for event in Events(run / "events.jsonl").read())

    clock = Script(
        (DAY_TIME, (run / "run.json").exists),
        (NIGHT, has_computed(run, "b", 1)), (DAY_TIME, kept), (NIGHT, lambda: False),
    )  # fmt: skip
    result = world.train("night", run, overrides=["schedule.steps=50"], clock=clock)
    same_run(result, fifty)
    kinds = [e["kind"] for e in Events(run / "events.jsonl").read()]
    assert [k for k in kinds if k in ("started", "stopped", "finished")] == [
        "started", "stopped", "started", "finished",
    ]  # fmt: skip
