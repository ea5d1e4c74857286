"""The load test of benchmarks/serving_load.py, for seconds and with a tiny model."""

import subprocess
import sys
from pathlib import Path

from tests.tiny_model import write_tiny

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"


def test_clients_that_come_and_go_leave_nothing_behind(tmp_path):
    model = write_tiny(tmp_path / "tiny", context=4096, stops=False)
    options = ["--seconds", "3", "--clients", "20", "--longest", "60", "--patience", "0.2"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--model", str(model), *options],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost, held or leaked." in done.stdout
    assert "answered streamed" in done.stdout and "left midway" in done.stdout
