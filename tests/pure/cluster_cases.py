"""Plans for launchers of Atoll's own trainer, and how examples/clusters is written from one."""

import contextlib
import io
import shutil
from pathlib import Path

from atoll.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
CLUSTERS = EXAMPLES / "clusters"
LAUNCHERS = ("kuberay", "ray", "skypilot", "slurm")


def words(launcher: str, folder: Path) -> list[str]:
    """The command that writes an example, but for its program."""
    files = [EXAMPLES / "recipes" / "quickstart.toml", EXAMPLES / "fleets" / "two-sites.toml"]
    return [
        "plan", *map(str, files), "--executor", "atoll", "--emit", launcher, "--to", str(folder),
    ]  # fmt: skip


def update() -> None:
    """Writes examples/clusters anew."""
    shutil.rmtree(CLUSTERS, ignore_errors=True)
    for launcher in LAUNCHERS:
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(words(launcher, CLUSTERS / launcher)) == 0
