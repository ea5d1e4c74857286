"""TensorBoard's own reader sees what was recorded, at once, and after a resume."""

import math
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atoll.training.metrics import Metrics


def no_report(text):
    raise AssertionError(text)


def seen(folder):
    accumulator = EventAccumulator(str(folder), purge_orphaned_data=True)
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_all_scalars_are_read_back_before_the_file_is_closed(tmp_path):
    with Metrics(tmp_path / "metrics", first_step=1, report=no_report) as metrics:
        metrics.record(
            1,
            loss=2.5,
            val_loss=3.5,
            bits_per_byte=1.25,
            grad_norm=0.5,
            lr=0.125,
            tokens_per_second=1000.0,
            shares={"a": 3, "b": 1},
            speeds={"a": 1.5, "b": 0.5},
        )
        metrics.record(2, loss=2.25)
        found = seen(tmp_path / "metrics")
    assert found == {
        "loss": [(1, 2.5), (2, 2.25)],
        "val_loss": [(1, 3.5)],
        "bits_per_byte": [(1, 1.25)],
        "grad_norm": [(1, 0.5)],
        "lr": [(1, 0.125)],
        "tokens_per_second": [(1, 1000.0)],
        "share/a": [(1, 3.0)],
        "share/b": [(1, 1.0)],
        "speed/a": [(1, 1.5)],
        "speed/b": [(1, 0.5)],
    }


def test_a_resumed_run_replaces_the_points_of_the_attempt_before(tmp_path):
    with Metrics(tmp_path, first_step=1, report=no_report) as metrics:
        for step in (1, 2, 3, 4):
            metrics.record(step, loss=float(step))
    with Metrics(tmp_path, first_step=3, report=no_report) as metrics:
        for step in (3, 4, 5):
            metrics.record(step, loss=10.0 + step)
    assert seen(tmp_path)["loss"] == [(1, 1), (2, 2), (3, 13), (4, 14), (5, 15)]


def test_what_is_not_finite_is_left_out(tmp_path):
    with Metrics(tmp_path, report=no_report) as metrics:
        metrics.record(1, loss=math.nan, grad_norm=math.inf, lr=0.5)
    assert seen(tmp_path) == {"lr": [(1, 0.5)]}


def test_a_full_disk_is_said_once_and_stops_nothing(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from atoll.training.metrics import Metrics
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
with Metrics(Path(sys.argv[1]), first_step=1, report=print) as metrics:
    for step in range(50):
        metrics.record(step, loss=1.0)
print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("metrics for TensorBoard are no longer written")
    assert second == "went on"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "metrics").write_text("a file")
    said = []
    with Metrics(tmp_path / "metrics", first_step=1, report=said.append) as metrics:
        metrics.record(1, loss=1.0)
    assert len(said) == 1


def test_no_torch_is_imported():
    program = (
        "import sys; from pathlib import Path; from atoll.training.metrics import Metrics; "
        "Metrics(Path(sys.argv[1])).close(); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "/dev/null/none"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "False\n", done.stderr
