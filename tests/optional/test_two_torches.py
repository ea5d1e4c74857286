"""One run over two versions of torch: an island that dials in from an environment of its own.

    python3 -m venv other && other/bin/pip install torch==2.9.1 numpy pydantic msgpack tokenizers \
        safetensors typer rich
    pytest tests/optional --other-torch-python other/bin/python

The two are usually of different kinds (the contract says so); they must hold the same weights
after every step, which the pilot checks, and the run must pass its audit as far as it can.
"""

import os
import subprocess
from pathlib import Path

import pytest

from atoll.run import Ledger, RunFolder
from atoll.training.display import SilentDisplay
from atoll.training.session import train

pytestmark = pytest.mark.optional

FLEET = """
[[island]]
name = "ours"
[[island]]
name = "theirs"
start = "dial-in"
"""


class Launcher(SilentDisplay):
    """Starts the island that dials in, with the command that the run shows for it."""

    def __init__(self, python: str, source: Path) -> None:
        self.python, self.source = python, source
        self.process: subprocess.Popen[bytes] | None = None

    def say(self, text: str) -> None:
        """Take the command from the message, as a person would."""
        if "start it with" in text:
            arguments = text.splitlines()[-1].split()[1:]
            environment = {**os.environ, "PYTHONPATH": str(self.source)}
            self.process = subprocess.Popen(
                [self.python, "-m", "atoll", *arguments], env=environment
            )


def test_two_versions_of_torch_hold_the_same_weights(
    request: pytest.FixtureRequest, tmp_path: Path, examples: Path, root: Path
) -> None:
    python = request.config.getoption("--other-torch-python")
    if python is None:
        pytest.skip("needs --other-torch-python PATH: a Python with another torch")
    (tmp_path / "fleet.toml").write_text(FLEET)
    display = Launcher(python, root / "src")
    result = train(
        str(examples / "recipes" / "tiny.toml"),
        display=display,
        fleet=tmp_path / "fleet.toml",
        run=tmp_path / "run",
        cache=tmp_path / "cache",
        until=8,
    )
    assert display.process is not None and display.process.wait(30) == 0
    folder = RunFolder.open(result.run)
    versions = {kind["torch"] for kind in folder.record.kinds.values()}
    assert len(versions) == 2, versions
    lines = Ledger(folder.ledger_path).read()
    assert len(lines) == 8 and all(len(line.grains) == 2 for line in lines)
