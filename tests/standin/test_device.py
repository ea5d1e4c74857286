"""The stand-in device itself (`device.py`), each check of `checks.py` as a test of its own.

All run in one process of their own: torch takes one stand-in a process, and keeps it.
"""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKS = [
    node.name
    for node in ast.parse((HERE / "checks.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@functools.cache
def results() -> dict[str, str | None]:
    source = HERE.parents[1] / "src"
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{source}"}
    done = subprocess.run(
        [sys.executable, "-m", "checks"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_standin(check: str) -> None:
    failure = results()[check]
    assert failure is None, failure
