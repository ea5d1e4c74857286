"""The guard of a recipe at real spikes: a learning rate that is far too high.

The bits are those of one island whatever happens to the fleet in a spike; a resume, an audit, a
joiner and another pilot know what was skipped and where the weights went back to.
"""

import json
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import training_faults as faults
from tests.processes.test_come_and_go import dial_in, start_pilot
from tests.processes.what_a_run_says import events_of, every_grain_once, ledger_of, lost, same_run

from atoll.cli import main
from atoll.errors import RunError
from atoll.run import Events, Ledger
from atoll.training import checkpoint
from atoll.training.display import SilentDisplay
from atoll.training.scalars import round32

pytestmark = pytest.mark.processes

SPIKY = ["schedule.steps=12", "optimizer.lr=0.3", "run.checkpoint_every=3"]
GUARD = ["guard.loss=1.01", "guard.grad_norm=1.5", "guard.window=3"]
"""Low factors: step 4 of this run is a spike of the loss, which is where the faults are planted."""
ON_SPIKE = {
    "skip": [*SPIKY, *GUARD, "guard.on_spike=skip"],
    "roll-back": [*SPIKY, *GUARD, "guard.on_spike=roll-back", "guard.every=2"],
}
BUSY = {
    on_spike: [
        "schedule.steps=40", "optimizer.lr=0.3", "run.checkpoint_every=3", "guard.loss=1.001",
        "guard.grad_norm=1.001", "guard.window=2", "guard.limit=1000", f"guard.on_spike={on_spike}",
        *(["guard.every=2"] if on_spike == "roll-back" else []),
    ]
    for on_spike in ON_SPIKE
}  # fmt: skip
"""Nearly every other step is a spike."""

either = pytest.mark.parametrize("on_spike", ON_SPIKE)


def spikes_of(run):
    return {line.step: line.spike for line in ledger_of(run) if line.spike is not None}


def fingerprints_of(result):
    """Step -> fingerprint of the weights after it."""
    found = {line.step - 1: line.fingerprint for line in ledger_of(result.run)}
    return found | {result.step: result.fingerprint}


@pytest.fixture(scope="module")
def guarded(world):
    """The result of each guard's run on one island."""
    folder = world.folder
    return {
        name: world.train("one", folder / f"guarded-{name}", overrides=overrides)
        for name, overrides in ON_SPIKE.items()
    }


@pytest.fixture(scope="module")
def busy(world):
    folder = world.folder
    return {
        name: world.train("one", folder / f"busy-{name}", overrides=overrides)
        for name, overrides in BUSY.items()
    }


def test_a_skipped_step_leaves_the_weights(guarded):
    result = guarded["skip"]
    spikes, after = spikes_of(result.run), fingerprints_of(result)
    assert 4 in spikes and len(spikes) < 6
    for line in ledger_of(result.run):
        same = after[line.step] == after[line.step - 1]
        assert same == (line.spike is not None), line.step
    assert spikes[4].did == "skip" and spikes[4].why == "loss"
    assert spikes[4].value > 1.01 * spikes[4].reference


def test_going_back_takes_up_the_weights_of_a_step_of_the_recipe(guarded):
    result = guarded["roll-back"]
    spikes, after = spikes_of(result.run), fingerprints_of(result)
    assert 4 in spikes
    for step, spike in spikes.items():
        assert spike.to % 2 == 0 and spike.to <= step - 2
        assert after[step] == after[spike.to] != after[step - 1]


@either
def test_the_moments_are_corrected_for_the_updates_that_are_in_them(
    world, guarded, tmp_path, on_spike
):
    run = tmp_path / "run"
    result = world.train("one", run, entry="noting", overrides=ON_SPIKE[on_spike])
    same_run(result, guarded[on_spike])
    updates = kept = 0
    for text in (run / "commits").read_text().splitlines():
        _, change, correction = text.split()
        if change == "keep":
            kept = updates
        if change in ("keep", "update"):
            updates += 1
            power = 1.0
            for _ in range(updates):
                power *= 0.95
            assert float(correction) == round32(1.0 / (1.0 - power)), text
        elif change == "roll-back":
            updates = kept
    assert updates < 12


@either
def test_a_spike_leaves_no_trace_in_the_exponents(guarded, on_spike):
    run = guarded[on_spike].run
    spikes = spikes_of(run)
    for step in (3, 6, 9, 12):
        state = json.loads((run / "checkpoints" / f"step-{step}" / "state.json").read_text())
        taken = [s for s in range(1, step + 1) if s not in spikes]
        assert len(state["state"]["exponents"]["levels"]) == len(taken)


@either
def test_every_fleet_gives_the_same_bits(world, guarded, tmp_path, on_spike):
    for fleet in ("three", "reshare", "three-lanes"):
        result = world.train(fleet, tmp_path / fleet, overrides=ON_SPIKE[on_spike])
        same_run(result, guarded[on_spike])
        assert spikes_of(result.run) == spikes_of(guarded[on_spike].run)


@pytest.mark.parametrize(
    ("on_spike", "entry"),
    [("roll-back", "dies_in_b"), ("roll-back", "killed_exchanged"),
     ("roll-back", "killed_committing"), ("skip", "killed_exchanging"),
     ("skip", "killed_committed")],
)  # fmt: skip
def test_an_island_that_is_killed_in_a_spike_changes_no_bit(
    world, guarded, tmp_path, leaves_nobody, on_spike, entry
):
    run = tmp_path / "run"
    result = world.train("three", run, entry=entry, overrides=ON_SPIKE[on_spike])
    assert lost(run) == [("died", "b")]
    same_run(result, guarded[on_spike])
    every_grain_once(run, 6)
    assert spikes_of(run) == spikes_of(guarded[on_spike].run)


@either
@pytest.mark.parametrize("until", [3, 4])
def test_a_run_that_is_stopped_around_a_spike_goes_on_as_if_it_had_not_been(
    world, guarded, tmp_path, on_spike, until
):
    run = tmp_path / "run"
    world.train("two", run, overrides=ON_SPIKE[on_spike], until=until)
    result = world.resume("three-lanes", run)
    same_run(result, guarded[on_spike])
    assert spikes_of(run) == spikes_of(guarded[on_spike].run)


@either
@pytest.mark.parametrize("kept", [0, 6])
def test_a_run_resumes_from_a_checkpoint_before_a_spike(world, guarded, copy_of, on_spike, kept):
    """The steps after it, spikes too, are taken back and computed again: the same."""
    run = copy_of(guarded[on_spike])
    for step in checkpoint.list_steps(run / "checkpoints"):
        if step > kept:
            (run / "checkpoints" / f"step-{step}").rename(run / f"away-{step}")
    set_back(run)
    result = world.resume("one", run)
    assert any(e["kind"] == "rolled_back" and e["to"] == kept for e in all_events(run))
    same_run(result, guarded[on_spike])


def set_back(run):
    """As a crash leaves run.json: the run is not finished."""
    path = run / "run.json"
    text = path.read_text()
    assert '"state":"finished"' in text
    path.write_text(text.replace('"state":"finished"', '"state":"running"'))


def all_events(run):
    return Events(run / "events.jsonl").read()


@pytest.mark.parametrize("on_spike", ["roll-back"])
def test_a_pilot_that_is_killed_changes_no_bit(world, busy, tmp_path, wait_until, on_spike):
    run, recipe = tmp_path / "run", recipe_file(world, on_spike)
    arguments = [recipe, world.fleet("two"), run, world.cache]
    pilot = subprocess.Popen(
        [sys.executable, str(Path(faults.__file__).parent / "training_driver.py"),
         *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_until(lambda: (run / "ledger.jsonl").exists() and len(ledger_of(run)) >= 11)
    pilot.send_signal(signal.SIGKILL)
    pilot.wait()
    assert spikes_of(run), "it was killed after spikes"
    same_run(world.resume("three", run), busy[on_spike])


def recipe_file(world, on_spike):
    """The recipe of a busy guard as a file."""
    text = world.recipe.read_text()
    for old, new in [
        ("steps = 8", "steps = 40"), ("lr = 1e-2", "lr = 0.3"),
        ("checkpoint_every = 2", "checkpoint_every = 3"),
    ]:  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    keys = [key.removeprefix("guard.") for key in BUSY[on_spike] if key.startswith("guard.")]
    keys = [key.replace(f"={on_spike}", f'="{on_spike}"') for key in keys]
    path = world.folder / f"busy-{on_spike}.toml"
    path.write_text("\n".join([text, "[guard]", *keys]) + "\n")
    return path


@either
def test_an_audit_passes_over_a_spike(world, guarded, on_spike):
    """From the beginning, and from checkpoints before and after the spikes."""
    result = guarded[on_spike]
    for fleet in (None, "two"):
        found = world.audit(result.run, steps=12, fleet=fleet)
        assert found.ok, found.text()
        assert set(spikes_of(result.run)) <= set(found.steps)


@either
def test_an_audit_of_a_spike_alone_begins_at_a_checkpoint(world, guarded, on_spike):
    """What the guard knew there comes from the ledger."""
    seed = next(s for s in range(999) if random.Random(s).sample(range(1, 13), 1) == [4])
    found = world.audit(guarded[on_spike].run, steps=1, seed=seed)
    assert found.ok and found.steps == [4], found.text()


@either
def test_an_audit_sees_a_spike_that_the_ledger_hides(world, guarded, copy_of, on_spike):
    run = copy_of(guarded[on_spike])
    lines = Ledger(run / "ledger.jsonl").read()
    (run / "ledger.jsonl").unlink()
    ledger = Ledger(run / "ledger.jsonl")
    for line in lines:
        ledger.append(line.model_copy(update={"spike": None}) if line.step == 4 else line)
    ledger.close()
    found = world.audit(run, steps=12)
    assert not found.ok and found.first_difference is not None
    assert (found.first_difference["step"], found.first_difference["key"]) == (4, "spike")
    assert found.json()["first_difference"]["found"]["did"] == on_spike


@either
def test_unlike_kinds_are_judged_alike_and_replayed(world, tmp_path, on_spike):
    result = world.train("two-kinds", tmp_path / "run", overrides=ON_SPIKE[on_spike])
    assert spikes_of(result.run)
    found = world.audit(result.run, steps=12)
    assert found.ok, found.text()


@either
def test_an_island_heals_across_spikes(world, busy, tmp_path, on_spike):
    """Its copy of the state is on its way for some steps; spikes among them are kept as they are
    and done when it is there."""
    run = tmp_path / "run"
    entry = "slow_dies_and_heals_long_in_b"
    result = world.train("three", run, entry=entry, overrides=BUSY[on_spike])
    same_run(result, busy[on_spike])
    story = events_of(run, "died", "restarted", "joined", "healed")
    assert story == [(kind, "b") for kind in ("died", "restarted", "joined", "healed")]
    steps = {e["kind"]: e["step"] for e in all_events(run) if e["kind"] in ("joined", "healed")}
    missed = range(steps["joined"] + 1, steps["healed"] + 1)
    assert set(missed) & set(spikes_of(run)), f"no spike in steps {missed}"
    assert "b" in ledger_of(run)[-1].grains


@pytest.mark.parametrize("on_spike", ["roll-back"])
def test_another_pilot_goes_on_over_spikes(world, busy, tmp_path, wait_until, on_spike):
    run, recipe = tmp_path / "run", recipe_file(world, on_spike)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pilot = start_pilot(world, recipe, run, address)
    wait_until((run / "pilot.json").exists)
    island = dial_in(run, "b")
    wait_until(lambda: (run / "ledger.jsonl").exists() and len(ledger_of(run)) >= 8)
    pilot.kill()
    pilot.wait()
    assert spikes_of(run)
    again = start_pilot(world, run, run, address)
    output, _ = again.communicate(timeout=100)
    assert again.returncode == 0, output
    assert island.wait(30) == 0, island.stdout.read()
    assert any(event["kind"] == "taken_over" for event in all_events(run))
    mine, theirs = ledger_of(run), ledger_of(busy[on_spike].run)
    assert [line.fingerprint for line in mine] == [line.fingerprint for line in theirs]
    assert [line.spike for line in mine] == [line.spike for line in theirs]


# It is told


class Listening(SilentDisplay):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_a_spike_that_stops_the_run_is_not_committed_and_comes_again(world, tmp_path):
    run = tmp_path / "run"
    overrides = [*SPIKY, *GUARD, "guard.on_spike=stop", "run.checkpoint_every=100"]
    display = Listening()
    for _ in range(2):  # again: a resume goes as far, and no further
        with pytest.raises(RunError) as caught:
            if (run / "run.json").exists():
                world.resume("two", run, display=display)
            else:
                world.train("two", run, overrides=overrides, display=display)
        assert "step 4: the loss is 6.38" in str(caught.value) and caught.value.exit_code == 1
        assert [line.step for line in ledger_of(run)] == [1, 2, 3]
        assert checkpoint.list_steps(run / "checkpoints") == [3]
    assert any("its last checkpoint is of step 3" in text for text in display.said)
    assert world.audit(run, steps=3).ok


def test_spikes_are_told_and_shown(world, guarded, tmp_path, capsys):
    display = Listening()
    result = world.train("one", tmp_path / "run", overrides=ON_SPIKE["roll-back"], display=display)
    told = [event for event in all_events(result.run) if event["kind"] == "spike"]
    assert {event["step"] for event in told} == set(spikes_of(result.run))
    assert (told[0]["did"], told[0]["why"], told[0]["to"]) == ("roll-back", "loss", 2)
    assert any(text.startswith("step 4: the loss was 6.384") for text in display.said)
    assert main(["ledger", str(result.run), "--step", "4"]) == 0
    assert "go back to those after step 2" in capsys.readouterr().out
    assert main(["watch", str(result.run), "--once"]) == 0
    assert "the loss was 6.384" in capsys.readouterr().out
