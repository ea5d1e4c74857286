"""Audits replay real runs on real islands: sound runs pass, one changed bit is found and placed."""

import json

import pytest
import torch

from atoll.errors import AtollError, InputError
from atoll.run import Ledger, RunFolder
from atoll.training import checkpoint
from atoll.training.digests import combine_sha256, tensor_bytes_sha256

pytestmark = pytest.mark.processes


def rewrite(run, step, **changes):
    """Change one ledger line, with a sound check value, as a careful forger would."""
    path = run / "ledger.jsonl"
    lines = Ledger(path).read()
    path.unlink()
    ledger = Ledger(path)
    for line in lines:
        ledger.append(line.model_copy(update=changes) if line.step == step else line)
    ledger.close()


def forge(run, step, group, name, change):
    """Change a checkpoint's tensor; the manifest and the fingerprint are made to fit."""
    folder = run / "checkpoints"
    saved = checkpoint.read(folder, step, report=print, fall_back=False)
    groups = {g: dict(saved.tensors(g)) for g in saved.groups}
    groups[group][name] = change(groups[group][name])
    recipe = RunFolder.open(run).recipe()
    vocab = groups["weights"]["embedding.weight"].shape[0]
    order = recipe.model.with_vocab(vocab).tensors()
    parts = {name: tensor_bytes_sha256(groups["weights"][name]) for name in order}
    checkpoint.write(
        folder,
        step,
        tensors=groups,
        host=lambda tensor: tensor,
        state={**saved.state, "fingerprint": combine_sha256(parts)},
        on_snapshot=lambda: None,
    )


def flip(tensor):
    """The lowest bit of one number."""
    changed = tensor.clone()
    changed.view(-1)[5:6].view(torch.int32).bitwise_xor_(1)
    assert not torch.equal(changed, tensor)
    return changed


def test_a_sound_run_passes_on_another_fleet_of_its_kind(world, reference):
    result = world.audit(reference.run, fleet="two")
    assert result.ok and result.first_difference is None and result.skipped_grains == {}
    assert result.steps == result.drawn == list(range(1, 9))


def test_a_run_of_two_kinds_passes_where_both_are(world, two_kinds):
    result = world.audit(two_kinds.run)
    assert result.ok and result.steps == list(range(1, 9)) and not result.skipped_grains


def test_where_a_kind_is_absent_its_grains_are_named_and_single_grains_checked(world, two_kinds):
    result = world.audit(two_kinds.run, fleet="one")
    assert not result.ok and result.steps == [] and result.first_difference is None
    (absent,) = result.skipped_grains
    record = RunFolder.open(two_kinds.run).record
    assert record.kinds[absent]["chip"] == "cpu-compat"
    assert result.skipped_grains[absent] > 0
    assert result.probes_checked >= 3, "a step after each checkpoint has a grain of this kind"
    assert absent in result.text() and "no whole step" in result.text()


def test_a_false_digest_of_a_single_grain_is_found_where_a_kind_is_absent(
    world, two_kinds, copy_of
):
    run = copy_of(two_kinds)
    (line,) = [line for line in Ledger(run / "ledger.jsonl").read() if line.step == 5]
    grain, digest = line.probe["a"]
    rewrite(
        run,
        5,
        probe={**line.probe, "a": [grain, digest[:-1] + ("1" if digest[-1] == "0" else "0")]},
    )
    result = world.audit(run, fleet="one")
    assert not result.ok and result.first_difference["step"] == 5
    assert str(grain) in result.first_difference["key"]


def test_an_audit_draws_what_it_is_told(world, reference):
    near = world.audit(reference.run, steps=8, within=1)
    assert near.ok and near.drawn == near.steps == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("key", "value"), [("loss", 4.0), ("sum_digest", "0" * 16), ("grad_norm", 1.0)]
)
def test_a_changed_ledger_line_is_found_and_named(world, reference, copy_of, key, value):
    run = copy_of(reference)
    rewrite(run, 6, **{key: value})
    result = world.audit(run)
    assert not result.ok
    assert (result.first_difference["step"], result.first_difference["key"]) == (6, key)
    assert result.first_difference["ledger"] == value
    assert "step 6 DIFFERS" in result.text()
    assert json.loads(json.dumps(result.json()))["ok"] is False


def test_a_flipped_bit_in_the_weights_of_a_checkpoint_is_found(world, reference, copy_of):
    run = copy_of(reference)
    forge(run, 4, "weights", "blocks.0.ffn.up.weight", flip)
    result = world.audit(run)
    assert not result.ok and result.first_difference["step"] == 4
    assert result.first_difference["key"] == "fingerprint"


def test_a_changed_moment_in_a_checkpoint_is_found_in_the_next_step(world, reference, copy_of):
    run = copy_of(reference)
    forge(run, 4, "moment1", "embedding.weight", lambda tensor: tensor * 1.5)
    result = world.audit(run)
    assert not result.ok and result.first_difference["step"] == 5
    assert result.first_difference["key"] == "fingerprint"


def test_a_bug_that_the_run_had_is_found_by_sound_islands(world, tmp_path):
    """And is not, where the same bug replays it: an audit needs other hands than the run."""
    run = tmp_path / "run"
    world.train("one", run, until=4, entry="overflow")
    result = world.audit(run)
    assert not result.ok and result.first_difference["step"] == 4
    assert result.steps == [1, 2, 3]
    again = world.audit(run, fleet="two", entry="overflow")
    assert again.ok and again.steps == [1, 2, 3, 4]


def test_a_changed_end_of_the_run_is_found(world, reference, copy_of):
    """The weights after the last step stand in no ledger line, only in the status."""
    run = copy_of(reference)
    RunFolder.open(run).set_status("finished", step=8, fingerprint="0" * 64)
    result = world.audit(run)
    assert not result.ok and result.first_difference["step"] == 8


def test_a_run_without_a_step_is_bad_input(world, reference, copy_of):
    run = copy_of(reference)
    (run / "ledger.jsonl").unlink()
    with pytest.raises(InputError, match="no committed step"):
        world.audit(run)


def test_a_damaged_ledger_is_told(world, reference, copy_of):
    run = copy_of(reference)
    path = run / "ledger.jsonl"
    path.write_text(path.read_text().replace('"step":3', '"step":4', 1))
    with pytest.raises(AtollError, match="line 3"):
        world.audit(run)
