"""Clusters without one: the flags of `train`, and the Slurm script with a stand-in for `srun`.

Ray itself: tests/optional/test_ray.py.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes.test_come_and_go import ledger_of, lost

from atoll.cli import main
from atoll.run import RunFolder

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parents[2] / "examples" / "clusters" / "slurm.sh"
SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
wait
"""


@pytest.fixture
def slurm(world, tmp_path):
    """Starts the script as a job of two tasks."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "srun").write_text(SRUN)
    (commands / "atoll").write_text(f'#!/bin/bash\nexec {sys.executable} -m atoll "$@"\n')
    (commands / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)

    def start(**settings):
        environment = {
            **os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_NTASKS": "2",
            "RUN": str(tmp_path / "run"), "CACHE": str(world.cache), "ADDRESS": "127.0.0.1",
            **settings,
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(SCRIPT)], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def test_a_job_trains_and_ends(world, slurm, reference, tmp_path):
    job = slurm(RECIPE=str(world.recipe))
    output = job.communicate(timeout=100)[0]
    assert job.returncode == 0, output
    folder = RunFolder.open(tmp_path / "run")
    assert folder.record.status.state == "finished"
    assert folder.record.status.fingerprint == reference.fingerprint
    islands = {name for line in ledger_of(tmp_path / "run") for name in line.grains}
    assert islands == {"node-0", "node-1"} and lost(tmp_path / "run") == []


def test_two_jobs_of_two_kinds_and_a_job_that_is_ended_goes_on(world, slurm, tmp_path, wait_until):
    run, others = tmp_path / "run", tmp_path / "others.toml"
    others.write_text(
        "".join(
            f'[[island]]\nname = "far-{index}"\nchip = "cpu-compat"\nstart = "dial-in"\n'
            for index in range(2)
        )
    )
    longer = tmp_path / "longer.toml"
    text = world.recipe.read_text().replace("steps = 8", "steps = 400")
    longer.write_text(text.replace('"texts"', f'"{world.folder / "texts"}"'))
    settings = {"RECIPE": str(longer), "OTHERS": str(others)}
    first, far = slurm(**settings), slurm(ISLAND="far", CHIP="cpu-compat")
    wait_until(lambda: (run / "ledger.jsonl").exists() and len(ledger_of(run)) >= 3)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=100)[0]
    assert first.returncode == 130, output
    assert far.communicate(timeout=100) and far.returncode == 0
    stopped = RunFolder.open(run).record
    assert stopped.status.state != "finished" and len(stopped.kinds) == 2
    step = stopped.status.step
    again, far = slurm(**settings), slurm(ISLAND="far", CHIP="cpu-compat")
    wait_until(lambda: len(ledger_of(run)) >= step + 3)
    again.send_signal(signal.SIGTERM)
    assert again.wait(100) == 130 and far.wait(100) == 0
    assert RunFolder.open(run).record.status.step > step


def test_the_engine_and_its_address_go_together(world, tmp_path, capsys):
    words = ["train", str(world.recipe), "--run", str(tmp_path / "run")]
    assert main([*words, "--address", "127.0.0.1:6379"]) == 2
    assert "only a Ray cluster has an address" in capsys.readouterr().err
    assert main([*words, "--engine", "mpi"]) == 2
    assert not (tmp_path / "run").exists()
