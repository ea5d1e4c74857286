"""A run that waits for an island to dial in can be ended, and turns strangers away."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.cli import main

FLEET = '[[island]]\nname = "far"\nstart = "dial-in"\n'


def test_ctrl_c_ends_a_run_that_waits_for_an_island(tmp_path: Path, examples: Path) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "atoll", "train", str(examples / "recipes" / "tiny.toml")]
    command += ["--fleet", str(tmp_path / "fleet.toml"), "--run", str(run)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as pilot:
        assert pilot.stderr is not None
        line = ""
        while "atoll island" not in line:
            line = pilot.stderr.readline()
            assert line, "the run ended before it had said how to dial in"
        arguments = line.split()[1:]
        stranger = ["nobody" if argument == "far" else argument for argument in arguments]
        refused = subprocess.run(
            [sys.executable, "-m", "atoll", *stranger], capture_output=True, text=True
        )
        assert refused.returncode != 0 and "has no island 'nobody'" in refused.stderr
        other_chip = ["cpu-compat" if argument == "cpu" else argument for argument in arguments]
        refused = subprocess.run(
            [sys.executable, "-m", "atoll", *other_chip], capture_output=True, text=True
        )
        assert refused.returncode != 0 and "dialled in as 'cpu-compat'" in refused.stderr
        pilot.send_signal(signal.SIGINT)
        assert pilot.wait(60) == 130
    assert not (run / "token").exists()
    assert not list((run / "checkpoints").iterdir())


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:4711", "nowhere", "127.0.0.1:x"])
def test_an_address_that_nobody_can_dial_is_refused_and_nothing_written(
    address: str, tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = str(examples / "recipes" / "tiny.toml")
    assert main(["train", recipe, "--listen", address, "--run", str(run)]) == 2
    assert address in capsys.readouterr().err
    assert not run.exists()
