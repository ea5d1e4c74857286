"""Files for launchers of Atoll's own trainer: kept examples, what is in them, what is refused."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.pure.cluster_cases import CLUSTERS, EXAMPLES, LAUNCHERS, words

from atoll.backends import NAMES, named
from atoll.cli import main
from atoll.crew.ray import Need, _require_room, require_package
from atoll.errors import InputError
from atoll.facts.launchers import launchers
from atoll.plan import Plan
from atoll.planning.emit import TOOLS, names
from atoll.training.crewing import members_of

TINY = str(EXAMPLES / "recipes" / "tiny.toml")
FILES = [path for path in sorted(CLUSTERS.rglob("*")) if path.is_file()]


def read(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def shells(folder: Path) -> dict[str, str]:
    """Every piece of shell in a launcher's files, by where it stands."""
    out = {path.name: path.read_text() for path in sorted(folder.glob("*.sh"))}
    for path in sorted(folder.glob("*.yaml")):
        task = read(path)
        for key in ("setup", "run", "head_start_ray_commands", "worker_start_ray_commands"):
            if key in task:
                text = task[key]
                out[f"{path.name} {key}"] = text if isinstance(text, str) else "\n".join(text)
    return out


SHELLS = {
    f"{launcher} {name}": text
    for launcher in LAUNCHERS
    for name, text in shells(CLUSTERS / launcher).items()
}


def emitted(folder: Path, launcher: str, fleet: str, *more: str) -> Path:
    """A folder with the files of a launcher for the smallest recipe on a fleet."""
    (folder / "fleet.toml").write_text(fleet)
    to = folder / launcher
    ask = ["plan", TINY, str(folder / "fleet.toml"), "--emit", launcher, "--to", str(to), *more]
    assert main(ask) == 0
    return to


def island(name: str, chip: str = "cpu", **keys: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(["[[island]]", f'name = "{name}"', f'chip = "{chip}"', *lines]) + "\n"


FIXED = '[shares]\nmode = "fixed"\n'
NETWORK = 'network = { bandwidth = "100 Gb/s" }\n'
MAKES = (
    f'{FIXED}[[site]]\nname = "north"\n'
    + island("new", "ascend-910b2", site="north", chips_per_node=4, share=1)
    + island("odd", "mlu370-x8", site="north", chips_per_node=2, share=1)
    + island("old", "v100-sxm2-32gb", nodes=2, chips_per_node=2, share=2)
    + NETWORK
    + '[[link]]\nbetween = ["north", "here"]\nbandwidth = "100 Gb/s"\nlatency = "1 ms"\n'
)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_examples_are_what_the_command_writes(launcher: str, tmp_path: Path) -> None:
    assert main(words(launcher, tmp_path / launcher)) == 0
    written = {p.name: p.read_bytes() for p in (tmp_path / launcher).iterdir()}
    kept = {p.name: p.read_bytes() for p in (CLUSTERS / launcher).iterdir()}
    assert written == kept, "scripts/update_golden.py writes them"


def test_every_launcher_has_an_example_and_no_other_file_is_there() -> None:
    assert {path.parent.name for path in FILES} == set(LAUNCHERS) == set(launchers())
    assert all(path.parent.parent == CLUSTERS for path in FILES)


def test_a_launcher_that_is_a_tool_too_is_the_tool_unless_told() -> None:
    assert set(names()) == set(TOOLS) | set(launchers())
    assert set(TOOLS) & set(launchers()) == {"skypilot"}


@pytest.mark.parametrize("name", list(SHELLS))
def test_shell_is_shell(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=SHELLS[name], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_options_of_atoll_exist() -> None:
    import typer

    from atoll.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    seen = []
    for text in SHELLS.values():
        for verb, rest in re.findall(r"atoll (train|island)((?:\\\n|[^\n])*)", text):
            known = {option for one in commands[verb].params for option in one.opts}
            used = set(re.findall(r"(?<= )--[a-z-]+", rest.replace("\\\n", " ")))
            assert used and used <= known, used - known
            seen.append(verb)
    assert seen.count("train") == 4 and seen.count("island") == 4


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_fleet_of_cpus_of_which_no_time_is_known(
    launcher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = (EXAMPLES / "fleets" / "three.toml").read_text()
    to = emitted(tmp_path, launcher, three, "--executor", "atoll", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["executor"] == "atoll" and told["step_seconds"] is None
    assert set(told["files"]) == {str(path) for path in to.iterdir()}
    assert all(str(to) in command for command in told["commands"] if "pilot.sh'" not in command)
    plan = Plan.load(to / "plan.json")
    plan.require_executor()
    assert [one.name for one in plan.islands] == ["a", "b", "c"]


# Nodes, processes and their names


def run_names(script: str, tasks: int) -> list[tuple[str, str]]:
    """Name and lanes of each process of an island by its script's own function."""
    (assigned,) = re.findall(r"^ +local (name=.*)$", script, re.MULTILINE)
    call = f'f() {{ local {assigned}; echo "$name $lanes"; }}; '
    call += f"for ((i = 0; i < {tasks}; i++)); do f $i; done"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True)
    return [(line.split()[0], line.split()[1]) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("keys", "tasks"),
    [
        ({"chip": "v100-sxm2-32gb"}, 1),
        ({"chip": "v100-sxm2-32gb", "chips_per_node": 4}, 4),
        ({"chip": "v100-sxm2-32gb", "nodes": 3}, 3),
        ({"chip": "v100-sxm2-32gb", "nodes": 2, "chips_per_node": 4}, 8),
        ({"chip": "v100-sxm2-32gb", "nodes": 2, "chips_per_node": 4, "lanes": 7}, 7),
        ({"chip": "v100-sxm2-32gb", "nodes": 2, "chips_per_node": 3, "lanes": 5}, 5),
        ({"chip": "v100-sxm2-32gb", "nodes": 3, "chips_per_node": 2, "lanes": 5}, 5),
        ({}, 1),
        ({"lanes": 3}, 1),
        ({"nodes": 3}, 3),
        ({"nodes": 3, "chips_per_node": 4, "threads": 2}, 3),
        ({"nodes": 2, "lanes": 5}, 2),
    ],
)
def test_processes_are_the_members_that_the_pilot_waits_for(
    keys: dict[str, Any], tasks: int, tmp_path: Path
) -> None:
    chip = keys.get("chip", "cpu")
    text = island("a", **{"chip": chip, **keys})
    text += "" if chip == "cpu" else NETWORK
    to = emitted(tmp_path, "slurm", text)
    script = (to / "island-a.sh").read_text()
    members = members_of(Plan.load(to / "plan.json").islands)
    assert all(member.dials_in for member in members)
    expected = [(member.name, str(member.lanes)) for member in members]
    assert run_names(script, tasks) == expected
    asked = dict(re.findall(r"^#SBATCH --(\S+)=(\S+)$", script, re.MULTILINE))
    assert int(asked["ntasks"]) == tasks
    assert int(asked["nodes"]) * int(asked["ntasks-per-node"]) >= tasks


def test_each_make_asks_slurm_for_its_devices(tmp_path: Path) -> None:
    to = emitted(tmp_path, "slurm", MAKES)
    found = {
        path.name: re.findall(r"^#SBATCH --(gpus-per-node=.*|gres=.*)$", path.read_text(), re.M)
        for path in to.glob("island-*.sh")
    }
    assert found == {
        "island-new.sh": ["gres=npu:4"],
        "island-odd.sh": ["gres=mlu:2"],
        "island-old.sh": ["gpus-per-node=2"],
    }
    assert "env HCCL_DETERMINISTIC=true" in (to / "island-new.sh").read_text()


def test_nodes_of_a_ray_cluster_say_what_ray_does_not_count(tmp_path: Path) -> None:
    config = read(emitted(tmp_path, "ray", MAKES) / "ray-cluster.yaml")
    addresses = config["provider"]["worker_ips"]
    assert len(addresses) == config["max_workers"] == config["min_workers"] == 4
    start = config["worker_start_ray_commands"][-1]
    start = start.replace("ulimit -n 65536;", "").replace("/shared/atoll/.venv/bin/ray", "echo")
    offers = []
    for address in addresses:
        shell = f"hostname() {{ echo '{address} 172.17.0.1 '; }}; {start}"
        told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        offers.append(json.loads(told.stdout.partition("--resources=")[2]))
    assert offers == [{"site:north": 1}, {"MLU": 2, "site:north": 1}, {}, {}]


def test_groups_of_kuberay_ask_for_what_their_island_needs(tmp_path: Path) -> None:
    to = emitted(tmp_path, "kuberay", MAKES + island("b_A", threads=2, share=1))
    spec = read(to / "kuberay.yaml")["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert [groups[name]["replicas"] for name in ("new", "odd", "old")] == [1, 1, 2]
    limits = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, group in groups.items()
    }
    assert limits["new"]["huawei.com/Ascend910"] == "4" and limits["new"]["cpu"] == "4"
    assert limits["odd"]["cambricon.com/mlu"] == "2"
    assert limits["old"]["nvidia.com/gpu"] == "2"
    told = groups["odd"]["rayStartParams"]["resources"]
    assert json.loads(json.loads(told)) == {"MLU": 2, "site:north": 1}
    assert groups["old"]["rayStartParams"] == {}


def test_kuberay_has_what_its_definition_wants() -> None:
    job = read(CLUSTERS / "kuberay" / "kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    spec = job["spec"]["rayClusterSpec"]
    pinned = (EXAMPLES.parent / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={spec['rayVersion']}\n" in pinned
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {v["name"] for v in pod["volumes"]} == {v["name"] for v in container["volumeMounts"]}
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert container["image"].endswith(spec["rayVersion"])
        assert set(group["rayStartParams"]) <= {"num-cpus", "resources"}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] > 0
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", group["groupName"])


def test_skypilot_runs_each_process_once(tmp_path: Path) -> None:
    fleet = island("a", "h100-sxm-80gb", nodes=2, chips_per_node=2)
    fleet += NETWORK
    to = emitted(tmp_path, "skypilot", fleet, "--executor", "atoll")
    task = read(to / "island-a.yaml")
    assert task["num_nodes"] == 2 and task["resources"] == {"accelerators": "H100:2"}
    loop = task["run"][task["run"].index("FIRST=") :]
    names = []
    for rank in range(2):
        shell = f"SKYPILOT_NODE_RANK={rank}; process() {{ echo $1 $2; }}; {loop}"
        told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        names += sorted(told.stdout.splitlines())
    assert names == ["0 0", "1 1", "2 0", "3 1"]


# Islands of others, and what is refused


def test_an_island_that_dials_in_is_somebody_elses(tmp_path: Path) -> None:
    fleet = island("a") + island("far", start="dial-in")
    to = emitted(tmp_path, "ray", fleet)
    assert read(to / "ray-cluster.yaml")["max_workers"] == 1
    starts = {one.name: one.start for one in Plan.load(to / "plan.json").islands}
    assert starts == {"a": "here", "far": "dial-in"}
    to = emitted(tmp_path, "slurm", fleet, "--island", "far")
    assert [path.name for path in to.iterdir()] == ["island-far.sh"]


REFUSED = [
    ("bf16", ["dense-400b", "two-sites", "slurm"], "feature precision.compute"),
    ("tensor parallelism", ["tiny", "two-sites", "ray", "--layout", "tp=2"], "feature layout.tp"),
    ("the same without times", ["tiny", "three", "ray", "--layout", "tp=2"], "feature layout.tp"),
    ("rounds", ["tiny", "three", "slurm", "--exchange", "rounds"], "feature exchange.every"),
    ("one file for all", ["tiny", "three", "kuberay", "--island", "a"], "holds all islands"),
    ("a report of nothing", ["tiny", "three", "slurm", "--report", "r.html"], "nothing to report"),
    ("no such launcher", ["tiny", "three", "slrum"], 'nearest: "slurm"'),
]


@pytest.mark.parametrize(("asked", "named_"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_is_refused_before_anything_is_written(
    asked: list[str], named_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    recipe, fleet, launcher, *more = asked
    files = [EXAMPLES / "recipes" / f"{recipe}.toml", EXAMPLES / "fleets" / f"{fleet}.toml"]
    assert main(["plan", *map(str, files), "--emit", launcher, "--to", "new", *more]) == 2
    assert named_ in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


WRONG = [
    ("a chip without a name", "slurm", island("a", "mi300x"), "feature chip"),
    ("nobody left", "slurm", island("a", start="dial-in"), "nothing is left to start"),
    ("a name twice", "slurm", island("a", nodes=2) + island("a-1"), "another island of this name"),
    ("not in SkyPilot", "skypilot", island("a", "ascend-910b2"), "has no name for this chip"),
    (
        "chips that Ray calls the same", "ray",
        f"{FIXED}{island('a', 'h20', share=1)}{island('b', 'a100-sxm-40gb', share=1)}",
        "feature site",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("launcher", "fleet", "named_"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_fleets_that_a_launcher_cannot_start(
    launcher: str, fleet: str, named_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fleet.toml").write_text(fleet)
    ask = ["plan", TINY, str(tmp_path / "fleet.toml"), "--emit", launcher, "--executor", "atoll"]
    assert main([*ask, "--to", str(tmp_path / "new")]) == 2
    assert named_ in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_files_are_overwritten_by_the_same_launcher_only(tmp_path: Path) -> None:
    to = emitted(tmp_path, "slurm", island("a"))
    emitted(tmp_path, "slurm", island("a") + island("b"))
    assert (to / "island-b.sh").exists()
    other = ["plan", TINY, str(tmp_path / "fleet.toml"), "--emit", "ray", "--to", str(to)]
    assert main(other) == 2
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "plan.json").write_text("{}")
    assert main([*other[:-1], str(mine)]) == 2
    assert (mine / "plan.json").read_text() == "{}"


# What the Ray crew asks for; the rest of it is tests/optional/test_ray.py


def test_each_stack_has_a_name_in_ray() -> None:
    told = {name: named(name).ray_resource for name in NAMES}
    expected = {"cpu": "", "null": "", "nvidia": "GPU", "ascend": "NPU", "cambricon": "MLU"}
    assert told == expected
    ray = launchers()["ray"].devices
    assert {name: ray.get(name, "") for name in NAMES} == told, "the facts say the same"


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
