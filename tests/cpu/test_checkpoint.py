"""Checkpoints: complete or absent, damage found, live memory neither copied nor held for long."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from atoll.errors import CheckpointError
from atoll.training import checkpoint

PROGRAM = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    from atoll.errors import CheckpointError
    from atoll.training import checkpoint

    folder, step = Path(sys.argv[1]), int(sys.argv[2])

    def save(count, host=lambda tensor: tensor):
        tensors = {"weights": {f"t{i}": torch.full((1000,), float(step)) for i in range(count)}}
        return checkpoint.write(
            folder, step, tensors=tensors, host=host, state={"step": step},
            on_snapshot=lambda: print("snapshot", flush=True),
        )
    """
)


def same(tensor):
    return tensor


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "embedding.weight": torch.randn(7, 3, generator=generator),
        "norm.weight": torch.randn(5, generator=generator),
        "scalar": torch.tensor(2.5),
        "nothing": torch.empty(0, 4),
    }


def groups(seed=0):
    return {"weights": weights(seed), "moment1": weights(seed + 1), "moment2": weights(seed + 2)}


def save(folder, step, *, tensors=None, state=None):
    return checkpoint.write(
        folder,
        step,
        tensors=tensors if tensors is not None else groups(step),
        host=same,
        state=state if state is not None else {"exponents": [1, 2, step]},
        on_snapshot=lambda: None,
    )


def read(folder, step=None, **options):
    said = []
    found = checkpoint.read(folder, step, report=said.append, **options)
    return found, said


def assert_same(found, wanted):
    assert set(found.groups) == set(wanted)
    for group, named in wanted.items():
        assert dict(found.shapes(group)) == {n: tuple(t.shape) for n, t in named.items()}
        for name, tensor in found.tensors(group):
            assert tensor.dtype == named[name].dtype
            assert torch.equal(tensor, named[name])


def test_what_was_written_is_read(tmp_path):
    info = save(tmp_path, 20, state={"epoch": 3, "name": "水"})
    found, said = read(tmp_path)
    assert (found.step, found.state, said) == (20, {"epoch": 3, "name": "水"}, [])
    assert_same(found, groups(20))
    assert info.path == tmp_path / "step-20"
    assert info.bytes == sum(file.stat().st_size for file in info.path.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-20"]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8]
)
def test_the_safetensors_library_reads_every_type(tmp_path, dtype):
    named = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "x": torch.arange(6).reshape(2, 3).to(dtype),
    }
    save(tmp_path, 1, tensors={"weights": named})
    loaded = load_file(tmp_path / "step-1" / "weights.safetensors")
    assert {k: v.dtype for k, v in loaded.items()} == {k: v.dtype for k, v in named.items()}
    assert all(torch.equal(loaded[name], named[name]) for name in named)
    assert_same(read(tmp_path)[0], {"weights": named})


def test_tensors_that_are_not_contiguous(tmp_path):
    named = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save(tmp_path, 1, tensors={"weights": named})
    found, _ = read(tmp_path)
    live = {"turned": torch.zeros(2, 3).T, "parameter": torch.nn.Parameter(torch.zeros(2))}
    found.load_into("weights", live)
    assert all(torch.equal(live[name], named[name]) for name in named)


def test_load_into_fills_the_live_memory(tmp_path):
    save(tmp_path, 4)
    live = {name: torch.zeros_like(tensor) for name, tensor in weights().items()}
    places = {name: tensor.data_ptr() for name, tensor in live.items()}
    found, _ = read(tmp_path)
    found.load_into("moment1", live)
    assert all(torch.equal(live[name], tensor) for name, tensor in groups(4)["moment1"].items())
    assert {name: tensor.data_ptr() for name, tensor in live.items()} == places


def test_load_into_refuses_another_type_before_it_changes_anything(tmp_path):
    save(tmp_path, 4)
    live = {name: torch.zeros_like(tensor) for name, tensor in weights().items()}
    live["norm.weight"] = live["norm.weight"].double()
    with pytest.raises(CheckpointError, match=r"norm\.weight is F32 in the checkpoint and F64"):
        read(tmp_path)[0].load_into("weights", live)
    assert all(not tensor.any() for tensor in live.values())


def test_the_newest_or_the_newest_before_a_step(tmp_path):
    for step in (100, 20, 3):
        save(tmp_path, step)
    assert checkpoint.list_steps(tmp_path) == [3, 20, 100]
    assert read(tmp_path)[0].step == 100
    assert read(tmp_path, 99)[0].step == 20
    assert read(tmp_path, 20, fall_back=False)[0].step == 20
    with pytest.raises(CheckpointError, match="no checkpoint at step 2 or before"):
        read(tmp_path, 2)
    with pytest.raises(CheckpointError, match="steps found: 3, 20, 100"):
        read(tmp_path, 50, fall_back=False)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read(tmp_path / "absent")


def test_the_same_step_again_replaces(tmp_path):
    save(tmp_path, 5, state={"first": True})
    save(tmp_path, 5, state={"first": False})
    assert read(tmp_path)[0].state == {"first": False}
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    tensors = {"weights": {"a": torch.arange(3.0), "b": torch.ones(2, 2)}}
    save(folder, 1, tensors=tensors)
    save(folder, 2, tensors=tensors)
    return folder


def falls_back(folder):
    found, said = read(folder)
    assert found.step == 1
    assert len(said) == 1 and "step-2" in said[0] and "damaged" in said[0]


FILES = ["weights.safetensors", "state.json", "manifest.json"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255)
)
def test_any_flipped_byte_is_found(damaged, name, where, flip):
    path = damaged / "step-2" / name
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(where * len(bad))] ^= flip
    path.write_bytes(bad)
    try:
        falls_back(damaged)
    finally:
        path.write_bytes(good)
    assert read(damaged)[0].step == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(damaged, name, where):
    path = damaged / "step-2" / name
    good = path.read_bytes()
    path.write_bytes(good[: int(where * len(good))])
    try:
        falls_back(damaged)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", FILES)
def test_bytes_appended_or_a_file_lost_are_found(damaged, name):
    path = damaged / "step-2" / name
    good = path.read_bytes()
    path.write_bytes(good + b"\n")
    falls_back(damaged)
    path.unlink()
    falls_back(damaged)
    path.write_bytes(good)
    assert read(damaged)[0].step == 2


def test_a_file_too_many_is_found(damaged):
    path = damaged / "step-2" / "moment9.safetensors"
    path.write_bytes((damaged / "step-2" / "weights.safetensors").read_bytes())
    falls_back(damaged)
    path.unlink()


def test_a_renamed_checkpoint_is_found(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2).path.rename(tmp_path / "step-7")
    found, said = read(tmp_path)
    assert found.step == 1
    assert "is of step 2" in said[0]


def test_all_damaged_is_an_error(tmp_path):
    (save(tmp_path, 1).path / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="1 damaged"):
        read(tmp_path)


def test_a_newer_schema_is_refused_and_not_taken_for_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA", 9)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"schema 9.*update Atoll"):
        read(tmp_path)


def test_another_shape_names_tensor_and_both_shapes(tmp_path):
    save(tmp_path, 1)
    wanted = {name: tuple(tensor.shape) for name, tensor in weights().items()}
    assert read(tmp_path, expected=wanted)[0].step == 1
    with pytest.raises(CheckpointError, match=r"embedding.weight has shape \(7, 3\).*\(7, 4\)"):
        read(tmp_path, expected=wanted | {"embedding.weight": (7, 4)})
    with pytest.raises(CheckpointError, match="has no tensor extra"):
        read(tmp_path, expected=wanted | {"extra": (1,)})
    del wanted["scalar"]
    with pytest.raises(CheckpointError, match="scalar is not in the model"):
        read(tmp_path, expected=wanted)


def test_live_tensors_may_change_after_the_snapshot(tmp_path):
    live = groups()
    wanted = {group: {n: t.clone() for n, t in named.items()} for group, named in live.items()}
    calls = []

    def change():
        calls.append(1)
        for named in live.values():
            for tensor in named.values():
                tensor.fill_(-1)

    checkpoint.write(tmp_path, 1, tensors=live, host=same, state={}, on_snapshot=change)
    assert calls == [1]
    assert_same(read(tmp_path)[0], wanted)


def test_one_tensor_on_the_host_at_a_time(tmp_path):
    """`host` stands for a copy from a device: its result must be gone before the next one."""
    import weakref

    alive = []

    def host(tensor):
        assert all(reference() is None for reference in alive)
        copy = tensor.clone()
        alive.append(weakref.ref(copy))
        return copy

    checkpoint.write(tmp_path, 1, tensors=groups(), host=host, state={}, on_snapshot=lambda: None)
    assert len(alive) == sum(len(named) for named in groups().values())
    assert_same(read(tmp_path)[0], groups())


def test_a_failing_device_leaves_nothing_and_still_signals(tmp_path):
    calls = []

    def host(tensor):
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        checkpoint.write(
            tmp_path, 1, tensors=groups(), host=host, state={}, on_snapshot=lambda: calls.append(1)
        )
    assert calls == [1]
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- the real kernel


def run_program(folder, step, body, **options):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(body), str(folder), str(step)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("limit", [1, 3_000, 4_050, 8_200])
def test_a_full_disk_keeps_the_older_checkpoint(tmp_path, limit):
    """The kernel itself refuses to write beyond a limit on file sizes."""
    save(tmp_path, 1)
    body = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            save(3)
        except CheckpointError as error:
            print("refused:", error)
    """
    process = run_program(tmp_path, 2, body)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.startswith("snapshot\nrefused: the checkpoint of step 2")
    assert "is full" in output and "Older checkpoints were kept" in output
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    found, said = read(tmp_path)
    assert (found.step, said) == (1, [])


@pytest.mark.parametrize("position", [0, 1, 5])
def test_killed_while_writing_keeps_the_older_checkpoint(tmp_path, position):
    save(tmp_path, 1)
    body = f"""
        import time
        seen = []
        def host(tensor):
            seen.append(1)
            if len(seen) > {position}:
                print("writing", flush=True)
                time.sleep(600)
            return tensor
        save(6, host)
    """
    process = run_program(tmp_path, 2, body)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert (tmp_path / "step-2.tmp").is_dir()
    found, said = read(tmp_path)
    assert (found.step, said) == (1, [])
    assert checkpoint.remove_leftovers(tmp_path) == ["step-2.tmp"]
    save(tmp_path, 2)
    assert read(tmp_path)[0].step == 2


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="not written"):
        save(tmp_path, 1)


# ---------------------------------------------------------------------------------- in background


def test_the_writer_returns_at_once_and_signals_the_snapshot(tmp_path):
    """The device is held by the test until `save` has returned, so it did not wait."""
    import threading

    gate = threading.Event()
    live = groups()

    def host(tensor):
        assert gate.wait(60)
        return tensor

    state = {"list": [1]}
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, tensors=live, host=host, state=state)
        state["list"].append(2)
        assert writer.finished() == []
        gate.set()
        writer.wait_snapshot()
        for named in live.values():
            for tensor in named.values():
                tensor.zero_()
        writer.save(2, tensors=live, host=host, state=state)
    results = writer.finished()
    assert [result.step for result in results] == [1, 2]
    assert writer.finished() == []
    found, _ = read(tmp_path, 1)
    assert found.state == {"list": [1]}
    assert_same(found, groups())
    writer.close()


def test_the_writer_tells_errors_and_goes_on(tmp_path):
    def lost(tensor):
        raise RuntimeError("device lost")

    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be")
    with checkpoint.Writer(blocked) as writer:
        writer.save(1, tensors=groups(), host=same, state={})
        writer.wait_snapshot()
        blocked.unlink()
        writer.save(2, tensors=groups(), host=lost, state={})
        writer.save(3, tensors=groups(), host=same, state={})
        writer.wait_snapshot()
    first, second, third = writer.finished()
    assert isinstance(first, CheckpointError) and "step 1" in str(first)
    assert isinstance(second, CheckpointError) and "device lost" in str(second)
    assert third.step == 3 and checkpoint.list_steps(blocked) == [3]


# --------------------------------------------------------------------------------------- keeping


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.6)]:
        checkpoint.record_loss(tmp_path, step, loss)
        save(tmp_path, step)
    assert checkpoint.prune(tmp_path, keep_last=2, keep_best=1) == [1, 3]
    assert checkpoint.list_steps(tmp_path) == [2, 4, 5]
    assert checkpoint.prune(tmp_path, keep_last=2, keep_best=1) == []
    assert checkpoint.prune(tmp_path, keep_last=0, keep_best=0) == [2, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.json", "step-5"]


def test_losses_of_steps_that_are_gone_are_forgotten(tmp_path):
    for step in (1, 2, 3):
        checkpoint.record_loss(tmp_path, step, 1.0 / step)
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=1, keep_best=0)
    checkpoint.record_loss(tmp_path, 4, 0.5)
    assert checkpoint.recorded_losses(tmp_path) == {3: 1 / 3, 4: 0.5}


@pytest.mark.parametrize("text", ["", "[]", '{"losses": 3}', '{"losses": {"a": 1}}', "\xff"])
def test_an_unreadable_best_file_only_forgets_the_best(tmp_path, text):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "best.json").write_text(text, encoding="latin-1")
    assert checkpoint.prune(tmp_path, keep_last=1, keep_best=1) == [1]


def test_leftovers_are_removed(tmp_path):
    save(tmp_path, 1)
    Path(tmp_path / "step-2.tmp").mkdir()
    (tmp_path / "step-2.tmp" / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "best.json.tmp").write_bytes(b"half")
    assert checkpoint.remove_leftovers(tmp_path) == ["best.json.tmp", "step-2.tmp"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
