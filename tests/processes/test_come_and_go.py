"""Islands that end, join and leave at any point of a step: no step is lost, bits stay the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.processes import training_faults as faults
from tests.processes.what_a_run_says import (
    events_of,
    every_grain_once,
    ledger_of,
    lost,
    same_run,
)

from atoll import facts
from atoll.cli import main
from atoll.run import Events
from atoll.training.display import SilentDisplay

pytestmark = pytest.mark.processes


WHAT = {"killed": "died", "hung": "hung", "raised": "failed"}


@pytest.mark.parametrize(
    ("how", "point"),
    [*(("killed", point) for point in faults.POINTS),
     ("hung", "exchanging"), ("hung", "committing"), ("hung", "saving"),
     ("raised", "exchanged"), ("raised", "committed")],
)  # fmt: skip
def test_an_island_that_ends_costs_no_step(world, reference, tmp_path, leaves_nobody, point, how):
    result = world.train("three", tmp_path / "run", entry=f"{how}_{point}")
    same_run(result, reference)
    every_grain_once(result.run, 6)
    ((what, who),) = lost(result.run)
    assert who == ("a" if point == "saving" else "b")
    # What raises says so and ends: either may be seen first.
    assert what == WHAT[how] or (how == "raised" and what == "died")


@pytest.mark.parametrize(
    ("fleet", "entry", "what"),
    [("two", "dies_in_b", "died"), ("reshare", "dies_in_b", "died"),
     ("three", "hangs_in_b", "hung")],
)  # fmt: skip
def test_an_island_that_ends_while_it_computes(
    world, reference, tmp_path, leaves_nobody, fleet, entry, what
):
    result = world.train(fleet, tmp_path / "run", entry=entry)
    same_run(result, reference)
    every_grain_once(result.run, 6)
    assert lost(result.run) in ([(what, "b")], [])  # a seeded split may give b nothing to compute
    line = ledger_of(result.run)[3]
    if lost(result.run):
        assert line.reassigned and all(part[0] == "b" for part in line.reassigned)
        assert "b" not in line.grains and "b" not in ledger_of(result.run)[4].grains
    assert json.loads((result.run / "ledger.jsonl").read_text().splitlines()[-1])["step"] == 8


def test_an_audit_replays_a_run_that_lost_an_island(world, tmp_path):
    result = world.train("three", tmp_path / "run", entry="dies_in_b")
    assert world.audit(result.run, steps=8).ok


LONGER = ["schedule.steps=60"]


@pytest.fixture(scope="module")
def longer(world):
    """The reference of a run that is long enough for islands to come back."""
    return world.train("one", world.folder / "longer", overrides=LONGER)


def test_an_island_that_died_comes_back_heals_and_gets_grains(world, longer, tmp_path):
    run = tmp_path / "run"
    result = world.train("three", run, entry="slow_dies_once_in_b", overrides=LONGER)
    same_run(result, longer)
    every_grain_once(run, 6)
    story = events_of(run, "died", "restarted", "joined", "healed")
    assert story == [(kind, "b") for kind in ("died", "restarted", "joined", "healed")]
    assert "b" in ledger_of(run)[-1].grains, "it computes again"


# Joining from anywhere, and leaving


class Listening(SilentDisplay):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def dial_in(run, name, *, chip="cpu", grace="30", entry=None):
    """An island of any name, started by hand beside a run that goes on; `entry`: with a fault."""
    address = json.loads((run / "pilot.json").read_text())["address"]
    words = ["--pilot", address, "--token-file", str(run / "token"), "--name", name]
    words += ["--chip", chip, "--lanes", "1", "--threads", "1", "--grace", grace]
    command = ["-m", "atoll", "island"]
    if entry is not None:
        command = ["-c", f"import sys, training_faults as t; sys.exit(t.{entry}(sys.argv[1:]))"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **facts.chip(chip).environment, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, *command, *words], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def while_running(world, run, act, *, fleet="two", steps=40, entry="slow"):
    """The result of a slow run during which `act` is called after its second step."""
    with ThreadPoolExecutor(1) as pool:
        overrides = [f"schedule.steps={steps}"]
        running = pool.submit(world.train, fleet, run, entry=entry, overrides=overrides)
        deadline = time.monotonic() + 60
        while not (run / "ledger.jsonl").exists() or len(ledger_of(run)) < 2:
            assert time.monotonic() < deadline and not running.done(), running.exception()
            time.sleep(0.02)
        act()
        return running.result(120)


@pytest.fixture(scope="module")
def forty(world):
    return world.train("one", world.folder / "forty", overrides=["schedule.steps=40"])


def test_an_island_of_any_name_joins_a_run_that_goes_on_and_leaves_by_sigterm(
    world, forty, tmp_path, wait_until
):
    run, started = tmp_path / "run", []

    def act():
        island = dial_in(run, "guest")
        started.append(island)
        wait_until(lambda: any("guest" in line.grains for line in ledger_of(run)))
        island.send_signal(signal.SIGTERM)
        assert island.wait(30) == 0, island.stdout.read()

    result = while_running(world, run, act)
    same_run(result, forty)
    every_grain_once(run, 6)
    story = events_of(run, "joined", "healed", "left")
    assert story == [("joined", "guest"), ("healed", "guest"), ("left", "guest")]
    assert not any(line.reassigned for line in ledger_of(run)), "a planned end costs nothing"


def test_an_island_that_dies_while_it_heals_costs_nothing(world, forty, tmp_path, wait_until):
    run = tmp_path / "run"

    def act():
        guest = dial_in(run, "guest", entry="dies_while_it_heals")
        assert guest.wait(60) == -signal.SIGKILL, guest.stdout.read()
        wait_until(lambda: ("died", "guest") in events_of(run, "died"))

    result = while_running(world, run, act)
    same_run(result, forty)
    every_grain_once(run, 6)
    assert events_of(run, "joined", "healed", "died") == [("died", "guest")]
    assert not any("guest" in line.grains or line.reassigned for line in ledger_of(run))


def test_another_kind_may_not_join_a_bitwise_run(world, forty, tmp_path):
    run, outputs = tmp_path / "run", []

    def act():
        outputs.append(dial_in(run, "unlike", chip="cpu-compat").communicate(timeout=60)[0])

    result = while_running(world, run, act, steps=40)
    same_run(result, forty)
    assert "this run is bitwise" in outputs[0] and "Traceback" not in outputs[0]
    assert events_of(run, "refused") == [("refused", "unlike")]


def test_an_island_may_be_asked_to_leave(world, forty, tmp_path, capsys):
    run, codes = tmp_path / "run", []

    def act():
        codes.append(main(["leave", str(run), "b"]))
        codes.append(main(["leave", str(run), "nobody"]))
        codes.append(main(["leave", str(run), "a"]))

    result = while_running(world, run, act)
    same_run(result, forty)
    assert codes == [0, 1, 1]
    printed = capsys.readouterr().out
    assert "'b' has left" in printed and "no island 'nobody'" in printed and "last one" in printed
    assert main(["leave", str(run), "a"]) == 2, "nobody trains it any more"


# Silent corruption


@pytest.mark.parametrize("fleet", ["two", "three"])
def test_a_grain_computed_twice_finds_who_computes_wrong(world, reference, tmp_path, fleet):
    """No sum is too large and no replica differs: only computing it again shows it."""
    run = tmp_path / "run"
    twice = ["run.double_check=1.0"]
    result = world.train(fleet, run, entry="wrong_in_b", overrides=twice)
    (event,) = [e for e in Events(run / "events.jsonl").read() if e["kind"] == "corrupt"]
    assert event["island"] == "b" and event["step"] == 5 and "in step 5" in event["reason"]
    same_run(result, reference)


def test_without_the_second_look_it_goes_unseen(world, reference, tmp_path):
    """The control of the test above: the fault does change the run."""
    once = ["run.double_check=0.0"]
    result = world.train("two", tmp_path / "run", entry="wrong_in_b", overrides=once)
    assert lost(result.run) == []
    assert result.fingerprint != reference.fingerprint


# The pilot dies


PILOT = """
import sys
from pathlib import Path
from atoll.training.crewing import Starting
from atoll.training.display import SilentDisplay
from atoll.training.session import train
target, fleet, run, cache, listen, here = sys.argv[1:]
result = train(
    target, display=SilentDisplay(), fleet=Path(fleet), run=Path(run) if target != run else None,
    cache=Path(cache), listen=listen, overrides=["schedule.steps=40"] if target != run else [],
    starting=Starting(entry="training_faults:slow", python_path=[Path(here)]),
)
sys.exit(result.exit_code)
"""


def start_pilot(world, target, run, address):
    here = Path(faults.__file__).parent
    arguments = [target, world.fleet("dial-in"), run, world.cache, address, here]
    return subprocess.Popen(
        [sys.executable, "-c", PILOT, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_an_island_waits_for_another_pilot_and_no_step_is_lost(world, forty, tmp_path, wait_until):
    """The pilot and the island of its own machine are killed; the one that dialled in waits."""
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pilot = start_pilot(world, world.recipe, run, address)
    wait_until((run / "pilot.json").exists)
    island = dial_in(run, "b")
    wait_until(lambda: (run / "ledger.jsonl").exists() and len(ledger_of(run)) >= 5)
    pilot.kill()
    pilot.wait()
    with (run / "ledger.jsonl").open("a") as file:
        file.write('{"step": 6, "gra')  # a line that was being written
    committed = len(ledger_of(run))
    again = start_pilot(world, run, run, address)
    output, _ = again.communicate(timeout=100)
    assert again.returncode == 0, output
    assert island.wait(30) == 0, island.stdout.read()
    (event,) = [e for e in Events(run / "events.jsonl").read() if e["kind"] == "taken_over"]
    assert event["islands"] == ["b"] and event["step"] >= committed - 1
    mine, theirs = ledger_of(run), ledger_of(forty.run)
    assert [line.fingerprint for line in mine] == [line.fingerprint for line in theirs]
    assert events_of(run, "joined", "healed") == [("joined", "a"), ("healed", "a")]


# The fleet file changes


def test_a_fleet_file_is_followed_while_the_run_goes_on(world, forty, tmp_path, wait_until):
    """b is taken out, c is put in; then nobody is left and the run waits; then c alone comes."""
    run, file = tmp_path / "run", world.fleet("changing")
    named = '[[island]]\nname = "{}"\n'.format
    file.write_text(named("a") + named("b"))

    def act():
        file.write_text(named("a") + named("c"))
        wait_until(lambda: ("healed", "c") in events_of(run, "healed"))
        file.write_text("# nobody\n")
        time.sleep(1.5)
        before = len(ledger_of(run))
        time.sleep(1.0)
        assert len(ledger_of(run)) == before, "it waits"
        file.write_text(named("c"))

    result = while_running(world, run, act, fleet="changing")
    same_run(result, forty)
    assert events_of(run, "enlisted", "left", "healed") == [
        ("enlisted", "c"), ("left", "b"), ("healed", "c"), ("left", "a"),
    ]  # fmt: skip
    assert set(ledger_of(run)[-1].grains) == {"c"}


def test_an_island_that_is_too_slow_for_a_grain_is_parked(world, longer, tmp_path):
    run = tmp_path / "run"
    result = world.train("three", run, entry="snail_b", overrides=[*LONGER])
    same_run(result, longer)
    assert events_of(run, "parked") == [("parked", "b")]
