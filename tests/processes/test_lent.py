"""Islands with hours come at them and leave before their end; no bit of the run changes."""

import os
import signal
import time

import pytest
from tests.processes.conftest import is_running
from tests.processes.test_come_and_go import dial_in
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
    """The first night is quiet; in the second it is killed and comes back. By day another one, lent
    too, dials in although people need its chips.
    """
    run, early, killed = tmp_path / "run", [], []
    early_one = LENT.replace('"b"', '"c"') + 'start = "dial-in"\n'
    world.fleet("lent").write_text('[[island]]\nname = "a"\n' + LENT + early_one)

    def turned_out():
        if (run / "ledger.jsonl").exists() and not early:
            early.append(dial_in(run, "c"))
        return told(run, "left", "c", 1)()

    def back_again():
        if has_computed(run, "b", 2)() and not killed:
            started = [int(path.name.rpartition("-")[2]) for path in run.glob("pid-b-*")]
            killed.extend(pid for pid in started if is_running(pid))
            os.kill(killed[0], signal.SIGKILL)
        return has_computed(run, "b", 3)()

    clock = Script(
        (DAY_TIME, turned_out),
        (NIGHT, has_computed(run, "b", 1)), (DAY_TIME, told(run, "left", "b", 1)),
        (NIGHT, back_again), (DAY_TIME, lambda: False),
    )  # fmt: skip
    result = world.train("lent", run, overrides=["schedule.steps=50"], clock=clock)
    same_run(result, fifty)
    every_grain_once(run, 6)
    came = ["lent", "joined", "healed"]
    kinds = [*came, "left", *came, "died", "restarted", "joined", "healed", "left"]
    told_of_b = [one for one in events_of(run, *kinds) if one[1] == "b"]
    assert told_of_b == [(kind, "b") for kind in kinds]
    events = Events(run / "events.jsonl").read()
    reasons = {event["reason"] for event in events if event["kind"] == "left"}
    assert reasons == {"its hours are over: 22:00-07:00 +08:00"}
    died = next(event["step"] for event in events if event["kind"] == "died")
    lines = ledger_of(run)
    assert {line.step for line in lines if line.reassigned} <= {died}, "leaving costs nothing"
    assert early[0].wait(30) == 0, early[0].stdout.read()
    assert not any("c" in line.grains for line in lines), "it never had a grain"
    assert world.audit(run, fleet="two", steps=2).ok


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
