"""Every block of the README: its commands run, in order, and its tree shows what is there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def lines_of(kind: str) -> list[str]:
    """The non-empty lines of all blocks of a kind."""
    return [line for block, text in BLOCKS if block == kind for line in text.splitlines() if line]


def test_there_are_only_kinds_of_blocks_that_this_file_runs() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "text"}


@pytest.mark.parametrize("line", [line for line in lines_of("sh") if line.startswith("make")])
def test_the_make_commands_exist(line: str) -> None:
    # Only what they would do: .ci/run runs both, and this test is inside one of them.
    done = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_two_commands_are_the_two_of_make() -> None:
    assert lines_of("sh")[:2] == ["make demo", "make test"]


@pytest.mark.timeout(300)
def test_the_atoll_commands_run_in_order_and_give_one_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = [line for line in lines_of("sh") if not line.startswith("make")]
    assert all(line.startswith("atoll ") for line in commands)
    fingerprints = []
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in commands:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if "--json" in line:
            fingerprints.append(json.loads(done.stdout.splitlines()[-1])["fingerprint"])
    assert len(fingerprints) == 3
    assert len(set(fingerprints)) == 1


def test_the_tree_shows_what_is_there() -> None:
    tree = next(text for kind, text in BLOCKS if kind == "text" and "src/atoll/" in text)
    inside = tree.split("src/atoll/", 1)[1].split("examples/", 1)[0]
    shown = {
        name.strip("/")
        for line in inside.splitlines()
        for name in re.split(r"\s{2,}", line.strip(), maxsplit=1)[0].split()
    }
    package = ROOT / "src" / "atoll"
    there = {path.stem for path in package.glob("*.py")} | {
        path.name for path in package.iterdir() if (path / "__init__.py").exists()
    }
    assert shown == there - {"__init__", "__main__"}
