"""Every block of the README: its commands run, in order, and its tree shows what is there."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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
    assert all(line.startswith(("atoll ", "curl ")) for line in commands)
    fingerprints, texts = [], []
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    port = free_port()
    with ExitStack() as servers:
        for line in (text.replace("8001", str(port)) for text in commands):
            if line.endswith("&"):
                command = shlex.split(line.removesuffix("&"))
                servers.enter_context(running(command, cwd=tmp_path, env=environment))
                continue
            done = subprocess.run(
                line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            if "--json" in line:
                fingerprints.append(json.loads(done.stdout.splitlines()[-1])["fingerprint"])
            if line.startswith("curl"):
                texts.append(json.loads(done.stdout)["choices"][0]["text"])
    assert len(fingerprints) == 3
    assert len(set(fingerprints)) == 1
    assert texts and all(texts)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[None]:
    """A server beside the other commands: ready when it says where it is, stopped at the end."""
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    try:
        assert server.stderr is not None
        assert any("Ctrl-C stops it" in line for line in server.stderr), "it ended"
        yield
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


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
