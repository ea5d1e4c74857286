"""Clusters without one: the flags of `train`, and the scripts that `plan --emit slurm` writes, with
stand-ins for `sbatch` and `srun`, and what its tasks for SkyPilot run.

Ray itself: tests/optional/test_ray.py.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes.test_come_and_go import ledger_of, lost

from atoll.cli import main
from atoll.run import RunFolder

pytestmark = pytest.mark.processes

SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$((i % SLURM_NTASKS_PER_NODE)) "$@" &
done
wait
"""
SBATCH = """#!/bin/bash
echo "$PLAN" "$RUN" "$@" >> "$SUBMITTED"
"""


class Slurm:
    """The files of one launch, and their jobs started as Slurm would start them."""

    def __init__(self, world, folder):
        self.world, self.folder, self.launch = world, folder, folder / "launch"
        self.run, self.jobs = folder / "run", []
        commands = folder / "bin"
        commands.mkdir()
        (commands / "srun").write_text(SRUN)
        (commands / "sbatch").write_text(SBATCH)
        (commands / "atoll").write_text(f'#!/bin/bash\nexec {sys.executable} -m atoll "$@"\n')
        for command in commands.iterdir():
            command.chmod(0o755)
        self.environment = {
            **os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "ADDRESS": "127.0.0.1",
            "RUN": str(self.run), "CACHE": str(world.cache), "WAIT": "60",
            "SUBMITTED": str(folder / "submitted"),
        }  # fmt: skip

    def emit(self, fleet, *changes, launcher="slurm"):
        """Writes the files for a fleet; the recipe's texts lie beside its plan."""
        path = self.folder / "fleet.toml"
        path.write_text(fleet)
        words = ["plan", str(self.world.recipe), str(path), *changes]
        assert main([*words, "--emit", launcher, "--to", str(self.launch)]) == 0
        (self.launch / "texts").symlink_to(self.world.folder / "texts")

    def start(self, name):
        """A job with as many tasks as its script asks for."""
        script = self.launch / name
        asked = dict(re.findall(r"^#SBATCH --(\S+)=(\S+)$", script.read_text(), re.MULTILINE))
        environment = {
            **self.environment, "SLURM_NTASKS": asked["ntasks"], "PLAN": f"{self.launch}/plan.json",
            "SLURM_NTASKS_PER_NODE": asked.get("ntasks-per-node", "1"),
        }  # fmt: skip
        return self.shell(str(script), environment=environment)

    def shell(self, *words, environment):
        """A shell in the folder of the files, as SkyPilot starts what a task runs."""
        job = subprocess.Popen(
            ["bash", *words], env=environment, stdout=subprocess.PIPE, cwd=self.launch,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.jobs.append(job)
        return job


@pytest.fixture
def slurm(world, tmp_path):
    made = Slurm(world, tmp_path)
    yield made
    for job in made.jobs:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def test_the_jobs_of_a_plan_train_and_end(slurm, reference, tmp_path):
    islands = '[[island]]\nname = "a"\nnodes = 2\nshare = 2\n'
    islands += '[[island]]\nname = "b"\nlanes = 2\nshare = 1\n'
    slurm.emit('[shares]\nmode = "fixed"\n' + islands)  # else who is slow gets no grain
    command = ["bash", str(slurm.launch / "submit.sh"), "-A", "us"]
    subprocess.run(command, env=slurm.environment, check=True)
    submitted = [line.split() for line in (tmp_path / "submitted").read_text().splitlines()]
    plan, run = str(slurm.launch / "plan.json"), str(slurm.run)
    assert all(line[:4] == [plan, run, "-A", "us"] for line in submitted)
    names = [Path(line[4]).name for line in submitted]
    assert names == ["pilot.sh", "island-a.sh", "island-b.sh"]
    pilot, *islands = [slurm.start(name) for name in names]
    output = pilot.communicate(timeout=100)[0]
    assert pilot.returncode == 0, output
    for island in islands:
        assert island.wait(60) == 0, island.stdout.read()
    folder = RunFolder.open(slurm.run)
    assert folder.record.status.state == "finished"
    assert folder.record.status.fingerprint == reference.fingerprint
    members = {name for line in ledger_of(slurm.run) for name in line.grains}
    assert members == {"a-0", "a-1", "b"} and lost(slurm.run) == []


def test_a_pilot_that_is_ended_goes_on_with_islands_of_two_kinds(slurm, wait_until):
    fleet = '[[island]]\nname = "near"\n[[island]]\nname = "far"\nchip = "cpu-compat"\n'
    slurm.emit(fleet, "--set", "schedule.steps=150")
    first = slurm.start("pilot.sh")
    islands = [slurm.start(f"island-{name}.sh") for name in ("near", "far")]
    ledger = slurm.run / "ledger.jsonl"
    wait_until(lambda: ledger.exists() and len(ledger_of(slurm.run)) >= 3)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=100)[0]
    assert first.returncode == 130, output
    stopped = RunFolder.open(slurm.run).record
    assert stopped.status.state != "finished" and len(stopped.kinds) == 2
    assert [island.poll() for island in islands] == [None, None], "they wait for the next pilot"
    again = slurm.start("pilot.sh")
    output = again.communicate(timeout=100)[0]
    assert again.returncode == 0, output
    assert [island.wait(60) for island in islands] == [0, 0]
    status = RunFolder.open(slurm.run).record.status
    assert status.state == "finished" and status.step == 150 > stopped.status.step > 0


def test_an_island_ends_where_no_pilot_comes(slurm):
    slurm.emit('[[island]]\nname = "a"\n')
    slurm.environment["WAIT"] = "1"
    assert slurm.start("island-a.sh").wait(30) == 0
    assert not slurm.run.exists()


def test_what_tasks_of_skypilot_run_trains_and_ends(slurm, reference):
    import yaml

    fleet = '[[island]]\nname = "a"\nnodes = 2\n[[island]]\nname = "b"\n'
    slurm.emit(fleet, "--executor", "atoll", launcher="skypilot")
    jobs = []
    for name in ("pilot", "island-a", "island-b"):
        task = yaml.safe_load((slurm.launch / f"{name}.yaml").read_text())
        for rank in range(task["num_nodes"]):
            told = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "127.0.0.1"}
            environment = {**task["envs"], **slurm.environment, **told}
            jobs.append(slurm.shell("-c", task["run"], environment=environment))
    assert [job.wait(100) for job in jobs] == [0] * 4, jobs[0].stdout.read()
    status = RunFolder.open(slurm.run).record.status
    assert (status.state, status.fingerprint) == ("finished", reference.fingerprint)
    assert {n for line in ledger_of(slurm.run) for n in line.grains} == {"a-0", "a-1", "b"}


def test_the_engine_and_its_address_go_together(world, tmp_path, capsys):
    words = ["train", str(world.recipe), "--run", str(tmp_path / "run")]
    assert main([*words, "--address", "127.0.0.1:6379"]) == 2
    assert "only a Ray cluster has an address" in capsys.readouterr().err
    assert main([*words, "--engine", "mpi"]) == 2
    assert not (tmp_path / "run").exists()
