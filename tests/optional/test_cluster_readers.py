"""Cluster files with the launchers themselves, where these are installed.

Ray's own reader of cluster files: pip install 'atoll[ray]' jsonschema. SkyPilot's: the environment
of test_emit_parsers.py.
"""

import copy
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.processes.conftest import World
from tests.pure.cluster_cases import CLUSTERS

from atoll.cli import main
from atoll.facts.launchers import launchers
from atoll.run import RunFolder

pytestmark = pytest.mark.optional


def read(name: str) -> Any:
    import yaml

    return yaml.safe_load((CLUSTERS / name).read_text(encoding="utf-8"))


def test_ray_reads_its_cluster_file() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="needs Ray")
    given = read("ray/ray-cluster.yaml")
    known = util.prepare_config(copy.deepcopy(given))
    util.validate_config(known)  # by the schema of its files, after its defaults as in `ray up`
    (node_type,) = known["available_node_types"]
    assert known["available_node_types"][node_type]["max_workers"] == 3
    assert known["worker_start_ray_commands"] == given["worker_start_ray_commands"]


def test_the_version_of_ray_is_the_facts() -> None:
    ray = pytest.importorskip("ray", reason="needs Ray")
    assert launchers()["ray"].version == f"Ray {ray.__version__}"


def test_ray_calls_devices_as_the_facts_do() -> None:
    accelerators = pytest.importorskip("ray._private.accelerators", reason="needs Ray")
    fact = launchers()["ray"]
    known = accelerators.get_all_accelerator_resource_names()
    assert {fact.devices[stack] for stack in fact.counted} <= known
    assert not {name for stack, name in fact.devices.items() if stack not in fact.counted} & known


@pytest.mark.parametrize(
    ("name", "nodes", "accelerators"),
    [
        ("pilot", 1, None),
        ("island-fast", 2, {"H100": 4}),
        ("island-slow", 1, {"H20": 8}),
    ],
)
def test_skypilot_reads_its_tasks(
    name: str, nodes: int, accelerators: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sky = pytest.importorskip("sky", reason="needs SkyPilot")
    assert importlib.metadata.version("skypilot") == launchers()["skypilot"].version.split()[1]
    monkeypatch.chdir(CLUSTERS / "skypilot")  # a task's workdir is this folder
    task = sky.Task.from_yaml(f"{name}.yaml")
    (resources,) = task.resources
    assert task.num_nodes == nodes and resources.accelerators == accelerators
    assert task.envs["RUN"] == "/shared/run" and "atoll " in task.run


@pytest.mark.parametrize("launcher", ["ray", "kuberay"])
def test_the_pilots_script_waits_for_the_nodes_and_trains(launcher: str, tmp_path: Path) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray")
    world, launch, run = World(tmp_path / "world"), tmp_path / "launch", tmp_path / "run"
    words = ["plan", str(world.recipe), str(world.fleet("three")), "--emit", launcher]
    assert main([*words, "--to", str(launch)]) == 0
    (launch / "texts").symlink_to(world.folder / "texts")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "atoll").write_text(f'#!/bin/bash\nexec {sys.executable} -m atoll "$@"\n')
    (commands / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        environment = {
            **os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "RUN": str(run),
            "PLAN": str(launch / "plan.json"), "CACHE": str(world.cache),
            "RAY_ADDRESS": cluster.address,
        }  # fmt: skip
        pilot = subprocess.Popen(
            ["bash", str(launch / "pilot.sh")], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            pilot.wait(8)
        assert not run.exists(), "a node is missing"
        cluster.add_node(num_cpus=1)
        output = pilot.communicate(timeout=200)[0]
        assert pilot.returncode == 0, output
    finally:
        cluster.shutdown()
    assert RunFolder.open(run).record.status.state == "finished"
