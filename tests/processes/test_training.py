"""Real runs on real processes: the recipe decides the bits, the fleet only the time."""

import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from atoll.errors import InputError
from atoll.run import Events, Ledger, RunFolder
from atoll.training import checkpoint
from atoll.training.display import SilentDisplay

pytestmark = pytest.mark.processes

HANG = 60.0  # seconds: a guard against hanging, never a measure


class Listening(SilentDisplay):
    """A display that keeps what it was told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def ledger_of(result_or_path):
    return Ledger(getattr(result_or_path, "run", result_or_path) / "ledger.jsonl").read()


def bits_of(lines):
    """What the recipe alone decides of a step, for lanes of one kind."""
    return [
        (s.step, s.loss, s.grad_norm, s.lr, s.clip, s.exponents_digest, s.sum_digest, s.fingerprint)
        for s in lines
    ]


def grains_of(line):
    """The grains of a step in order, each as often as it was computed."""
    spans = [span for spans in line.grains.values() for span in spans]
    return sorted(grain for first, last in spans for grain in range(first, last + 1))


def same_run(result, reference):
    assert result.fingerprint == reference.fingerprint
    assert bits_of(ledger_of(result)) == bits_of(ledger_of(reference))
    assert (result.loss, result.val_loss) == (reference.loss, reference.val_loss)
    assert all(grains_of(line) == list(range(6)) for line in ledger_of(result))


def shares_of(result):
    lines = ledger_of(result)
    return [
        {name: sum(b - a + 1 for a, b in spans) for name, spans in line.grains.items()}
        for line in lines
    ]


# One kind


def test_the_reference_run_is_complete_and_learns(reference, world):
    assert reference.step == reference.total_steps == 8
    assert reference.contract == "bitwise" and reference.exit_code == 0
    assert reference.tokens == 8 * 12 * 24
    lines = ledger_of(reference)
    assert lines[-1].loss < lines[0].loss - 0.5
    assert lines[0].requantised == 0 and len({line.fingerprint for line in lines}) == 8
    folder = RunFolder.open(reference.run)
    assert folder.record.status.state == "finished"
    assert folder.record.status.fingerprint == reference.fingerprint
    assert checkpoint.list_steps(folder.checkpoints_path) == [2, 4, 6, 8]
    assert not (reference.run / "token").exists()


def test_another_seed_gives_other_bits(world, reference, tmp_path):
    """The fingerprint can differ at all."""
    other = world.train("one", tmp_path / "run", overrides=["seed=4"], until=1)
    assert ledger_of(other)[0].fingerprint != ledger_of(reference)[0].fingerprint
    assert other.fingerprint != ledger_of(reference)[1].fingerprint


@pytest.mark.parametrize("fleet", ["two", "three-to-one", "three", "reshare", "three-lanes"])
def test_any_fleet_of_one_kind_gives_the_same_bits(world, reference, tmp_path, fleet):
    result = world.train(fleet, tmp_path / "run")
    same_run(result, reference)
    assert result.contract == "bitwise"
    counts = shares_of(result)
    if fleet == "three-to-one":
        assert all(count["a"] > count["b"] for count in counts)
    if fleet == "reshare":
        split = [count.get("a", 0) for count in counts]
        assert {0, 6} <= set(split) and len(set(split)) > 3, "each island is idle in some step"


def test_the_islands_of_a_run_are_of_one_kind_and_prove_it(reference, world):
    (kind,) = RunFolder.open(reference.run).record.kinds.values()
    assert kind["chip"] == "cpu" and kind["threads"] == 1 and len(kind["probe"]) == 64


# Stopping and going on


def test_a_run_stopped_anywhere_goes_on_on_another_fleet(world, reference, tmp_path):
    """Stops between checkpoints (3), at one (4), and just before the end (7)."""
    run = tmp_path / "run"
    for fleet, until in [("two", 3), ("three-lanes", 4), ("reshare", 7), ("one", None)]:
        if run.exists():
            result = world.resume(fleet, run, until=until)
        else:
            result = world.train(fleet, run, until=until)
        assert result.step == (until or 8)
        state = RunFolder.open(run).record.status.state
        assert state == ("stopped" if until else "finished")
    same_run(result, reference)


def test_a_run_needs_no_text_any_more_once_it_has_its_tokens(new_world, tmp_path, reference):
    own = new_world(tmp_path / "world")
    run = tmp_path / "run"
    own.train("one", run, until=3)
    shutil.rmtree(own.folder / "texts")
    assert own.resume("one", run).fingerprint == reference.fingerprint
    shutil.rmtree(own.cache)
    RunFolder.open(run).set_status("stopped", step=8)
    with pytest.raises(InputError, match="texts"):
        own.resume("one", run)


def test_a_finished_run_is_left_as_it_is(world, copy_of, reference):
    run = copy_of(reference)
    before = (run / "ledger.jsonl").read_bytes()
    result = world.resume("two", run)
    assert result.fingerprint == reference.fingerprint and result.step == 8
    assert (run / "ledger.jsonl").read_bytes() == before


def test_a_killed_run_rolls_back_to_its_checkpoint_and_goes_on(
    world, reference, tmp_path, wait_until, leaves_nobody
):
    run = tmp_path / "run"
    with world.pilot("two", run) as pilot:
        try:
            wait_until(lambda: (run / "checkpoints" / "step-2").exists() or pilot.poll())
            wait_until(lambda: len(ledger_of(run)) == 3 or pilot.poll())
        finally:
            pilot.kill()
    assert pilot.returncode == -signal.SIGKILL, pilot.stdout
    assert len(ledger_of(run)) == 3
    result = world.resume("one", run)
    same_run(result, reference)
    dropped = (run / "ledger-dropped.jsonl").read_text().splitlines()
    assert len(dropped) == 1 and '"step":3' in dropped[0]
    kinds = [event["kind"] for event in Events(run / "events.jsonl").read()]
    assert "rolled_back" in kinds


def test_an_interrupt_saves_and_leaves_with_130(
    world, reference, tmp_path, wait_until, leaves_nobody
):
    run = tmp_path / "run"
    with world.pilot("two", run) as pilot:
        wait_until(lambda: (run / "ledger.jsonl").exists() and len(ledger_of(run)) == 3)
        pilot.send_signal(signal.SIGINT)
        output, _ = pilot.communicate(timeout=HANG)
    assert pilot.returncode == 130, output
    status = RunFolder.open(run).record.status
    assert status.state == "interrupted" and status.step in (3, 4)
    assert checkpoint.list_steps(run / "checkpoints")[-1] == status.step
    same_run(world.resume("three-to-one", run), reference)


def test_a_second_interrupt_leaves_at_once_and_nobody_stays(
    world, reference, tmp_path, wait_until, leaves_nobody
):
    run = tmp_path / "run"
    with world.pilot("two", run) as pilot:
        wait_until(lambda: (run / "ledger.jsonl").exists() and len(ledger_of(run)) == 3)
        pilot.send_signal(signal.SIGINT)
        wait_until(lambda: not pilot.poll())
        pilot.send_signal(signal.SIGTERM)  # another signal: two equal ones may become one
        output, _ = pilot.communicate(timeout=HANG)
    assert pilot.returncode == 130, output
    assert RunFolder.open(run).record.status.state == "running", "nothing was saved any more"
    assert checkpoint.list_steps(run / "checkpoints") == [2]


# Islands that dial in


class DialIn:
    """Starts an island as the display says, with some of its words replaced."""

    def __init__(self, display, wait_until):
        told = wait_until(lambda: [text for text in display.said if "dials in" in text])
        self.words = shlex.split(told[0].splitlines()[-1])
        assert self.words[:2] == ["atoll", "island"]

    def start(self, **changes):
        words = list(self.words)
        for flag, value in changes.items():
            words[words.index(f"--{flag}") + 1] = value
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def test_an_island_that_dials_in_gives_the_same_bits(world, reference, tmp_path, wait_until):
    """Strangers that come before it are told why they are not wanted, and change nothing."""
    display = Listening()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(world.train, "dial-in", tmp_path / "run", display=display)
        command = DialIn(display, wait_until)
        strangers = [command.start(name="z"), command.start(chip="cpu-compat")]
        outputs = [stranger.communicate(timeout=HANG)[0] for stranger in strangers]
        island = command.start()
        result = running.result(HANG)
        output, _ = island.communicate(timeout=HANG)
    assert island.returncode == 0, output
    assert [stranger.returncode for stranger in strangers] == [1, 1]
    assert "no island 'z'" in outputs[0] and "cpu-compat" in outputs[1]
    assert not any("Traceback" in text for text in outputs), outputs
    same_run(result, reference)
    assert all(count == {"a": 3, "b": 3} for count in shares_of(result))


def test_a_run_outlives_an_island_that_dialled_in(
    world, reference, tmp_path, wait_until, leaves_nobody
):
    display, run = Listening(), tmp_path / "run"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(world.train, "dial-in", run, display=display, entry="slow")
        island = DialIn(display, wait_until).start()
        wait_until(lambda: (run / "ledger.jsonl").exists() and ledger_of(run))
        island.kill()
        result = running.result(HANG)
        island.communicate()
    assert result.fingerprint == reference.fingerprint
    assert any("island 'b' is gone" in text for text in display.said)


def test_two_kinds_hold_the_same_weights_after_every_step(two_kinds, reference):
    """Every step compares the islands' fingerprints; a difference would have ended the run."""
    assert two_kinds.contract == "replicas identical, replayable"
    lines = ledger_of(two_kinds)
    kinds = RunFolder.open(two_kinds.run).record.kinds
    assert len(kinds) == 2 and len({kind["probe"] for kind in kinds.values()}) == 2
    for line in lines:
        assert set(line.grains) == {"a", "b"} and set(line.kinds.values()) == set(kinds)
        assert set(line.probe) == {"a", "b"}
    assert two_kinds.fingerprint != reference.fingerprint, "these kinds must really differ"
    assert two_kinds.loss == pytest.approx(reference.loss, abs=0.02)


def test_a_run_may_change_its_kinds_and_says_so(world, tmp_path):
    """Three steps on two kinds, the rest on one: still replayable, no longer one kind's bits."""
    run = tmp_path / "run"
    world.train("two-kinds", run, until=3)
    result = world.resume("two", run)
    assert result.contract == "replicas identical, replayable"
    audit = world.audit(run, fleet="two-kinds")
    assert audit.ok and audit.steps == list(range(1, 9))


# What the user got wrong


def test_a_run_folder_of_another_recipe_is_refused_naming_the_key(world, copy_of, reference):
    run = copy_of(reference)
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    with pytest.raises(InputError, match=r"optimizer\.lr") as caught:
        world.train("one", run, overrides=["optimizer.lr=0.5"])
    assert "0.5" in str(caught.value) and "0.01" in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == before


def test_a_folder_in_which_a_run_is_going_on_is_refused(world, copy_of, reference):
    run = copy_of(reference)
    RunFolder.open(run).set_status("stopped", step=8)
    with RunFolder.open(run).lock(), pytest.raises(InputError, match="another process"):
        world.resume("one", run)


def test_until_beyond_the_run_is_refused_before_anything_is_written(world, tmp_path):
    for until in (0, 9):
        with pytest.raises(InputError, match="choose 1 to 8"):
            world.train("one", tmp_path / "run", until=until)
    assert not (tmp_path / "run").exists()


def test_another_text_under_the_same_run_is_refused(world, copy_of, reference, tmp_path):
    from atoll.training.session import train

    run = copy_of(reference)
    other = tmp_path / "other"
    (other / "texts").mkdir(parents=True)
    for path in (world.folder / "texts").glob("*.txt"):
        (other / "texts" / path.name).write_text(path.read_text() + "more")
    recipe = other / "small.toml"
    recipe.write_text(world.recipe.read_text())
    with pytest.raises(InputError, match="text of this run has changed"):
        train(str(recipe), display=SilentDisplay(), run=run, cache=tmp_path / "cache")
