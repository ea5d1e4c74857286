"""The example files of docs/clusters.md are readable by what they are for, where that is here."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.backends import NAMES, named
from atoll.crew.ray import Need, _require_room, require_package
from atoll.errors import InputError

FOLDER = Path(__file__).parents[2] / "examples" / "clusters"
YAML = sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def scripts() -> dict[str, str]:
    """Every piece of shell in the examples, by what it is."""
    sky, launcher = read(FOLDER / "skypilot.yaml"), read(FOLDER / "ray-cluster.yaml")
    starts = [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    return {
        "slurm": (FOLDER / "slurm.sh").read_text(encoding="utf-8"),
        "sky setup": sky["setup"],
        "sky run": sky["run"],
        "launcher": "\n".join(starts),
        "kuberay": read(FOLDER / "kuberay.yaml")["spec"]["entrypoint"],
    }


def test_all_four_are_there() -> None:
    assert [path.name for path in YAML] == ["kuberay.yaml", "ray-cluster.yaml", "skypilot.yaml"]
    assert all(isinstance(read(path), dict) for path in YAML)


@pytest.mark.parametrize("name", list(scripts()))
def test_shell_is_shell(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=scripts()[name], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_options_of_atoll_exist() -> None:
    import typer

    from atoll.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    seen = set()
    for text in scripts().values():
        for verb, rest in re.findall(r"atoll (train|island)((?:[^\n]|\\\n)*)", text):
            known = {option for one in commands[verb].params for option in one.opts}
            used = set(re.findall(r"(?<= )--[a-z-]+", rest.replace("\\\n", " ")))
            assert used <= known, used - known
            seen |= {verb} if used else set()
    assert seen == {"train", "island"}


def test_the_volumes_of_kuberay_are_mounted() -> None:
    spec = read(FOLDER / "kuberay.yaml")["spec"]["rayClusterSpec"]
    pinned = (FOLDER.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={spec['rayVersion']}\n" in pinned
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        (mount,) = container["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": "/shared"}
        assert container["image"].endswith(spec["rayVersion"])


# What the Ray crew asks for; the rest of it is tests/optional/test_ray.py


def test_each_stack_has_a_name_in_ray() -> None:
    told = {name: named(name).ray_resource for name in NAMES}
    expected = {"cpu": "", "null": "", "nvidia": "GPU", "ascend": "NPU", "cambricon": "MLU"}
    assert told == expected


NODES = [{"CPU": 8.0, "GPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0}, {"CPU": 2.0, "MLU": 2.0}]


def refusal(*asked: tuple[str, dict[str, float]]) -> InputError | None:
    """What is said of processes ISLAND.0, ... of islands that ask for amounts; None if they fit."""
    names = [f"{island}.{index}" for index, (island, _) in enumerate(asked)]
    needs = {n: Need(island=i, cpus=1) for n, (i, _) in zip(names, asked, strict=True)}
    amounts = {n: a for n, (_, a) in zip(names, asked, strict=True)}
    try:
        _require_room(amounts, needs, NODES)
    except InputError as error:
        return error
    return None


def test_room_is_counted_by_node_and_in_all() -> None:
    one = {"CPU": 1.0, "GPU": 1.0}
    assert refusal(("a", one), ("a", one), ("b", one), ("c", {"CPU": 1.0, "MLU": 1.0})) is None
    missing = refusal(("a", {"CPU": 1.0, "NPU": 1.0}))
    assert missing is not None and "island 'a'" in missing.message and missing.fix is not None
    assert missing.fix == "the cluster's nodes: 1 with 2 CPU, 2 MLU; 1 with 8 CPU, 4 GPU"
    wide = refusal(*[("a", one)] * 5)
    assert wide is not None and wide.value == "5 CPU, 5 GPU"
    many = refusal(*[(f"x{index}", one) for index in range(5)])
    assert many is not None and "together" in many.message


def test_without_the_package_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.crew import ray

    finder = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _name: None))
    monkeypatch.setattr(ray, "importlib", finder)
    with pytest.raises(InputError) as caught:
        require_package()
    assert caught.value.fix is not None and "pip install 'atoll[ray]'" in caught.value.fix
