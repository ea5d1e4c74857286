"""What goes wrong is told, costs no bit, leaves no process; the run goes on from its checkpoint."""

import pytest
import torch

from atoll.errors import AtollError, CheckpointError, IslandError, NonFiniteError
from atoll.run import Events, Ledger, RunFolder
from atoll.training import checkpoint
from atoll.training.display import SilentDisplay

pytestmark = pytest.mark.processes


class Listening(SilentDisplay):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def ledger_of(run):
    return Ledger(run / "ledger.jsonl").read()


def kept(run):
    return checkpoint.list_steps(run / "checkpoints")


def events_of(run, kind):
    return [event for event in Events(run / "events.jsonl").read() if event["kind"] == kind]


def fails(world, run, fleet, entry, error):
    """The text of the error that ends a run; its status and the display say so too."""
    display = Listening()
    with pytest.raises(error) as caught:
        world.train(fleet, run, entry=entry, display=display)
    assert RunFolder.open(run).record.status.state == "failed"
    assert any(str(run) in text and "Go on with" in text for text in display.said)
    assert not (run / "token").exists()
    return str(caught.value)


def goes_on(world, run, fleet, reference):
    assert world.resume(fleet, run).fingerprint == reference.fingerprint


# Overflow and values that are not finite


@pytest.fixture(scope="module")
def overflown(world):
    """A run on one island, of which one grain's gradient is a million times larger in step 4."""
    return world.train("one", world.folder / "overflown", entry="overflow")


def test_an_overflow_is_computed_once_more_with_other_exponents(overflown, reference):
    lines, sound = ledger_of(overflown.run), ledger_of(reference.run)
    assert [line.requantised for line in lines] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [e["step"] for e in events_of(overflown.run, "requantised")] == [4]
    for line, other in zip(lines[:3], sound[:3], strict=True):
        assert line.sum_digest == other.sum_digest
    assert lines[3].exponents_digest != sound[3].exponents_digest
    assert lines[3].grad_norm > 1e4 * sound[3].grad_norm and lines[3].loss == sound[3].loss
    assert overflown.fingerprint != reference.fingerprint


def test_an_overflow_gives_the_same_bits_on_any_fleet(world, overflown, run):
    result = world.train("reshare", run, entry="overflow")
    assert [line.requantised for line in ledger_of(run)] == [0, 0, 0, 1, 0, 0, 0, 0]
    digests = [(line.exponents_digest, line.sum_digest) for line in ledger_of(run)]
    assert digests == [(s.exponents_digest, s.sum_digest) for s in ledger_of(overflown.run)]
    assert result.fingerprint == overflown.fingerprint


def test_a_grain_that_is_not_finite_once_changes_nothing(world, reference, run):
    result = world.train("two", run, entry="not_finite_once")
    assert result.fingerprint == reference.fingerprint


def test_a_grain_that_is_never_finite_ends_the_run_and_names_itself(
    world, reference, run, leaves_nobody
):
    text = fails(world, run, "three-to-one", "not_finite", NonFiniteError)
    assert all(part in text for part in ("step 5", "grain 2", "island 'a'"))
    assert "blocks.0.attention_norm.weight" in text, "the tensor"
    assert len(ledger_of(run)) == 4 and kept(run) == [2, 4]
    goes_on(world, run, "one", reference)


def test_a_validation_loss_that_is_none_ends_the_run(world, reference, run, leaves_nobody):
    text = fails(world, run, "one", "diverged", NonFiniteError)
    assert "after step 4" in text and "held-out" in text
    assert kept(run) == [2], "weights that have diverged are not kept"
    goes_on(world, run, "one", reference)


# Islands that fail


def test_an_island_that_raises_costs_its_grains_and_shows_its_traceback(
    world, reference, run, leaves_nobody
):
    display = Listening()
    result = world.train("three-to-one", run, entry="raises_in_b", display=display)
    assert result.fingerprint == reference.fingerprint
    (event,) = events_of(run, "failed")
    assert event["island"] == "b" and event["step"] == 4
    assert "ZeroDivisionError: a planted bug in a kernel" in event["reason"]
    assert any("island 'b'" in text and "no step is lost" in text for text in display.said)


def test_the_last_island_ends_the_run_with_its_own_words(world, reference, run, leaves_nobody):
    text = fails(world, run, "only-b", "raises_in_b", IslandError)
    assert "'b' was the last one" in text and "ZeroDivisionError" in text
    # It takes a checkpoint that it is still writing along.
    assert kept(run) in ([], [2]) and len(ledger_of(run)) == 3
    goes_on(world, run, "two", reference)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be such a card here")
def test_a_chip_that_is_not_here_is_named(world, run, leaves_nobody):
    text = fails(world, run, "of-h20", "plain", IslandError)
    assert "no device of chip h20" in text and "Traceback" not in text


def test_a_lane_that_computes_other_bits_each_time_is_refused(world, run, leaves_nobody):
    text = fails(world, run, "two", "fickle", IslandError)
    assert "not deterministic" in text and "Traceback" not in text
    assert ledger_of(run) == []


def test_a_bad_exchange_costs_its_island_and_is_not_committed(world, reference, run, leaves_nobody):
    result = world.train("two", run, entry="bad_exchange_in_b")
    assert result.fingerprint == reference.fingerprint
    (event,) = events_of(run, "corrupt")
    assert event["island"] == "b" and event["step"] == 3


def test_a_bad_replica_is_put_out_before_it_is_kept(world, reference, run, leaves_nobody):
    """The island that writes the checkpoints is the bad one, in the very step of a checkpoint."""
    result = world.train("three", run, entry="flips_in_a")
    assert result.fingerprint == reference.fingerprint
    (event,) = events_of(run, "corrupt")
    assert event["island"] == "a" and "after step 6" in event["reason"]
    copy = checkpoint.read(run / "checkpoints", 6, report=str)
    assert copy.state["fingerprint"] == ledger_of(run)[6].fingerprint


# Disks and checkpoints


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(world, reference, run):
    """The kernel itself refuses, through the limit on the size of a file."""
    display = Listening()
    result = world.train("two", run, entry="full_disk_once", display=display)
    assert result.fingerprint == reference.fingerprint and result.exit_code == 0
    assert kept(run) == [2, 6, 8]
    (event,) = events_of(run, "checkpoint_failed")
    told = [text for text in display.said if "was not written" in text]
    assert told == [event["reason"]]
    assert "step 4" in told[0] and "full" in told[0] and "Older checkpoints were kept" in told[0]
    assert not list((run / "checkpoints").glob("*.tmp"))


def test_a_run_that_cannot_keep_its_end_says_so_and_can_be_finished(world, reference, run):
    text = fails(world, run, "one", "full_disk_to_the_end", CheckpointError)
    assert "step 8" in text
    assert kept(run) == [2] and len(ledger_of(run)) == 8
    goes_on(world, run, "two", reference)
    assert kept(run)[-1] == 8


def harmed(run, step, group, name, change):
    """Write a checkpoint anew, sound in itself, with a changed tensor; the state stays."""
    folder = run / "checkpoints"
    saved = checkpoint.read(folder, step, report=print, fall_back=False)
    groups = {g: dict(saved.tensors(g)) for g in saved.groups}
    groups[group][name] = change(groups[group][name])
    checkpoint.write(
        folder,
        step,
        tensors=groups,
        host=lambda tensor: tensor,
        state=saved.state,
        on_snapshot=lambda: None,
    )


def test_a_checkpoint_of_another_shape_names_tensor_and_shapes(world, reference, copy_of):
    run = copy_of(reference)
    status = RunFolder.open(run)
    status.set_status("stopped", step=8)
    harmed(run, 8, "weights", "norm.weight", lambda tensor: torch.ones(33))
    with pytest.raises(CheckpointError, match=r"norm\.weight has shape \(33,\).*\(32,\)"):
        world.resume("one", run)


def test_a_torn_checkpoint_is_told_and_the_one_before_is_used(world, reference, copy_of):
    run = copy_of(reference)
    RunFolder.open(run).set_status("stopped", step=8)
    weights = run / "checkpoints" / "step-8" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    display = Listening()
    result = world.resume("one", run, display=display)
    assert result.fingerprint == reference.fingerprint
    assert any("step-8" in text and "damaged" in text for text in display.said)
    assert any("resumed after step 6" in text for text in display.said)


def test_a_checkpoint_whose_weights_are_not_those_it_claims_is_refused(world, reference, copy_of):
    run = copy_of(reference)
    RunFolder.open(run).set_status("stopped", step=8)
    harmed(run, 8, "weights", "norm.weight", lambda tensor: tensor + 2.0**-20)
    with pytest.raises(AtollError, match="fingerprint"):
        world.resume("one", run)
