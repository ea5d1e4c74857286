"""examples/clusters through the readers of the launchers themselves, where these are installed.

Ray's own reader of cluster files: pip install 'atoll[ray]' jsonschema. SkyPilot's: the environment
of test_emit_parsers.py.
"""

import copy
import importlib.metadata
from typing import Any

import pytest
from tests.pure.cluster_cases import CLUSTERS

from atoll.facts.launchers import launchers

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
