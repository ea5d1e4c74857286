"""Islands on a local Ray cluster of several node processes, one of which may be killed.

    pip install 'atoll[ray]'
    pytest tests/optional/test_ray.py

Each node is a Ray node process of its own (a raylet with its workers) on this machine: what Ray
does when one dies is real, the network between machines is not.
"""

import copy
import json
import os
import signal
import threading
from pathlib import Path

import pytest
from tests.processes import training_faults as faults
from tests.processes.conftest import HERE as PROCESSES
from tests.processes.conftest import World, is_running, leaves_nobody, wait_until
from tests.processes.test_come_and_go import (
    LONGER,
    WHAT,
    events_of,
    every_grain_once,
    ledger_of,
    lost,
    same_run,
    while_running,
)

from atoll.crew import wire
from atoll.crew.ray import Need, RayCrew
from atoll.errors import InputError

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'atoll[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.optional
__all__ = ["leaves_nobody"]  # a fixture of tests/processes

SITES = ("north", "south")


class Cluster:
    """A Ray cluster of node processes on this machine; the pilot's own node takes no island."""

    def __init__(self) -> None:
        self.ray = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.nodes = []

    def add(self, **resources):
        """One more node; its raylet's process id."""
        self.nodes.append(self.ray.add_node(**{"num_cpus": 1, **resources}))
        return self._process(self.nodes[-1]).pid

    def kill(self, raylet):
        """SIGKILL for the node whose raylet this is."""
        process = next(p for p in map(self._process, self.nodes) if p.pid == raylet)
        process.kill()
        process.wait()  # a raylet that nobody buries looks alive to its workers
        self.nodes = [node for node in self.nodes if self._process(node) is not process]

    @staticmethod
    def _process(node):
        return node.all_processes["raylet"][0].process


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        yield made
    finally:
        made.ray.shutdown()


@pytest.fixture
def three_nodes(cluster):
    """The cluster with three nodes of one CPU that live, and no others."""
    while len(cluster.nodes) < 3:
        cluster.add()
    while len(cluster.nodes) > 3:
        cluster.ray.remove_node(cluster.nodes.pop())
    return cluster


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def on_ray(world, three_nodes):
    """The same world, with islands on the cluster."""
    other = copy.copy(world)
    other.engine = {"engine": "ray", "address": three_nodes.ray.address}
    return other


@pytest.fixture(scope="module")
def reference(world):
    return world.train("one", world.folder / "reference")


@pytest.fixture(scope="module")
def longer(world):
    return world.train("one", world.folder / "longer", overrides=LONGER)


@pytest.fixture(scope="module")
def forty(world):
    return world.train("one", world.folder / "forty", overrides=["schedule.steps=40"])


@pytest.fixture(scope="module")
def eighty(world):
    """Long enough for a new node, and a new island on it, on a busy machine."""
    return world.train("one", world.folder / "eighty", overrides=["schedule.steps=80"])


def node_of(pid):
    """The raylet of the node that a process was started on, as Ray told its worker."""
    told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(x.partition(b"=")[2]) for x in told if x.startswith(b"RAY_RAYLET_PID="))


def pids_of(run, name="*"):
    """The processes of a run's islands that live now, by name."""
    found = [path.name.split("-") for path in run.glob(f"pid-{name}-*")]
    return {name: int(pid) for _, name, pid in found if is_running(int(pid))}


# Whole runs


def test_islands_on_three_nodes_give_the_bits_of_one_island(on_ray, forty, tmp_path, leaves_nobody):
    run, nodes = tmp_path / "run", []

    def act():
        nodes.extend(node_of(pid) for pid in pids_of(run).values())

    result = while_running(on_ray, run, act, fleet="three")
    same_run(result, forty)
    every_grain_once(run, 6)
    assert len(set(nodes)) == 3, "every island has its own node"
    assert lost(run) == []
    assert sorted(path.name for path in (run / "logs").iterdir()) == ["a.log", "b.log", "c.log"]


def test_lanes_on_one_node(on_ray, three_nodes, reference, tmp_path):
    three_nodes.add(num_cpus=3)
    same_run(on_ray.train("three-lanes", tmp_path / "run"), reference)


@pytest.mark.parametrize("how", faults.SIGNALS)
@pytest.mark.parametrize("point", faults.POINTS)
def test_an_island_that_ends_costs_no_step(on_ray, reference, tmp_path, leaves_nobody, point, how):
    result = on_ray.train("three", tmp_path / "run", entry=f"{how}_{point}")
    same_run(result, reference)
    every_grain_once(result.run, 6)
    what, who = lost(result.run)[0]
    assert who == ("a" if point == "saving" else "b")
    # What raises says so and ends: either may be seen first.
    assert what == WHAT[how] or (how == "raised" and what == "died")


@pytest.mark.parametrize(("entry", "what"), [("dies_in_b", "died"), ("hangs_in_b", "hung")])
def test_an_island_that_ends_while_it_computes(
    on_ray, reference, tmp_path, leaves_nobody, entry, what
):
    # Fixed shares: by speed, b might have nothing to compute just then.
    result = on_ray.train("three-to-one", tmp_path / "run", entry=entry)
    same_run(result, reference)
    every_grain_once(result.run, 6)
    assert lost(result.run)[0] == (what, "b")


def test_an_island_that_died_comes_back_heals_and_gets_grains(
    on_ray, longer, tmp_path, leaves_nobody
):
    run = tmp_path / "run"
    result = on_ray.train("three", run, entry="slow_dies_once_in_b", overrides=LONGER)
    same_run(result, longer)
    every_grain_once(run, 6)
    story = events_of(run, "died", "restarted", "joined", "healed")
    assert story == [(kind, "b") for kind in ("died", "restarted", "joined", "healed")]
    assert "b" in ledger_of(run)[-1].grains, "it computes again"


def test_a_node_that_is_killed_costs_no_step(on_ray, three_nodes, forty, tmp_path, leaves_nobody):
    """Nothing can take its island's place: the run goes on with the other two."""
    run = tmp_path / "run"

    def act():
        pid = pids_of(run)["b"]
        three_nodes.kill(node_of(pid))
        wait_until(lambda: not is_running(pid))

    result = while_running(on_ray, run, act, fleet="three")
    same_run(result, forty)
    every_grain_once(run, 6)
    assert lost(run) == [("died", "b")]
    assert "b" not in ledger_of(run)[-1].grains
    assert events_of(run, "joined") == []


def test_the_island_of_a_killed_node_goes_on_on_a_new_one(
    on_ray, three_nodes, eighty, tmp_path, leaves_nobody
):
    run, nodes = tmp_path / "run", []

    def act():
        old = node_of(pids_of(run)["b"])
        three_nodes.kill(old)
        new = three_nodes.add()
        wait_until(lambda: ("healed", "b") in events_of(run, "healed"))
        nodes.extend([old, new, node_of(pids_of(run)["b"])])

    result = while_running(on_ray, run, act, fleet="three", steps=80)
    same_run(result, eighty)
    every_grain_once(run, 6)
    story = events_of(run, "died", "restarted", "joined", "healed")
    assert story == [(kind, "b") for kind in ("died", "restarted", "joined", "healed")]
    assert nodes[2] == nodes[1] != nodes[0]
    assert "b" in ledger_of(run)[-1].grains, "it computes again"


def test_an_island_that_dials_in_belongs_to_the_same_run(on_ray, eighty, tmp_path):
    from tests.processes.test_come_and_go import dial_in

    run = tmp_path / "run"

    def act():
        island = dial_in(run, "guest")
        wait_until(lambda: any("guest" in line.grains for line in ledger_of(run)))
        island.send_signal(signal.SIGTERM)
        assert island.wait(30) == 0, island.stdout.read()

    same_run(while_running(on_ray, run, act, fleet="two", steps=80), eighty)
    assert events_of(run, "joined", "left") == [("joined", "guest"), ("left", "guest")]


def test_too_small_a_cluster_is_refused_with_what_it_has(on_ray, tmp_path):
    (on_ray.folder / "large.toml").write_text('[[island]]\nname = "a"\nlanes = 5\n')
    with pytest.raises(InputError) as caught:
        on_ray.train("large", tmp_path / "run")
    assert caught.value.value == "5 CPU" and "3 with 1 CPU" in caught.value.fix
    (on_ray.folder / "four.toml").write_text(
        "".join(f'[[island]]\nname = "{name}"\n' for name in "abcd")
    )
    with pytest.raises(InputError, match="together need more"):
        on_ray.train("four", tmp_path / "run")


# The crew alone


class Crew(RayCrew):
    """A crew of islands that do what crew_island.py says, whose ends can be looked up."""

    def __init__(self, cluster, folder, **needs):
        self.ends, self.folder = {}, folder
        self.token_file = folder / "token"
        self.token = wire.write_token_file(self.token_file)
        super().__init__(
            address=cluster.ray.address, needs=needs, entry="crew_island:on_a_node",
            logs=folder / "logs", preload=(), python_path=[PROCESSES],
            on_exit=lambda name, status: self.ends.update({name: status}),
        )  # fmt: skip

    def go(self, name, *words, environment=None):
        self.ends.pop(name, None)  # of an earlier life
        argv = ["--token-file", str(self.token_file), "--device-index", "7", "--do", *words]
        self.start(name, argv, environment or {})

    def told(self, name):
        """What the island `name` wrote about itself."""
        path = self.folder / f"{name}.json"
        return json.loads(wait_until(lambda: path.exists() and path.read_text()))

    def end(self, name):
        return wait_until(lambda: name in self.ends and (self.ends[name],))[0]


def alone(**fields):
    return Need(**{"island": "x", "cpus": 1, **fields})


def test_output_status_and_environment(three_nodes, tmp_path):
    needs = {name: alone(island=name) for name in "abc"}
    with Crew(three_nodes, tmp_path, **needs) as crew:
        crew.go("a", "speak", "one", "two", environment={"MKL_CBWR": "COMPATIBLE"})
        crew.go("b", "crash")
        crew.go("c", "fault")
        assert [crew.end(name) for name in "abc"] == [0, 1, -signal.SIGSEGV]
        assert crew.log_tail("a") == "one\ntwo" and "divides by zero" in crew.log_tail("b")
        crew.go("a", "facts", str(tmp_path / "a.json"), "MKL_CBWR", environment={"MKL_CBWR": "X"})
        told = crew.told("a")
        assert told["variable"] == "X" and told["token"] == crew.token
        assert told["token_file"] == str(crew.token_file) and told["device_index"] == "7"
        assert crew.token not in told["command"]
        assert crew.end("a") == 0 and crew.running() == []


def test_the_token_reaches_a_node_that_does_not_see_the_pilots_file(three_nodes, tmp_path):
    with Crew(three_nodes, tmp_path, a=alone()) as crew:
        token_file, gone = crew.token_file, threading.Event()
        read = wire.read_token_file

        def read_and_hide(path):
            text = read(path)
            token_file.unlink()
            gone.set()
            return text

        wire.read_token_file = read_and_hide
        try:
            crew.go("a", "facts", str(tmp_path / "a.json"), "X")
        finally:
            wire.read_token_file = read
        told = crew.told("a")
        assert gone.is_set() and told["token"] == crew.token
        assert told["token_file"] != str(token_file) and told["mode"] == "600"
        assert crew.end("a") == 0
        assert not Path(told["token_file"]).exists()


def test_kill_and_stop_leave_nobody(three_nodes, tmp_path):
    with Crew(three_nodes, tmp_path, a=alone(island="a"), b=alone(island="b")) as crew:
        crew.go("a", "wait", str(tmp_path / "a.json"))
        crew.go("b", "wait", str(tmp_path / "b.json"))
        a, b = crew.told("a"), crew.told("b")
        crew.kill("a")
        assert crew.end("a") == -signal.SIGKILL and crew.running() == ["b"]
        wait_until(lambda: not any(is_running(a[key]) for key in ("pid", "child", "preloader")))
        assert is_running(b["pid"])
    wait_until(lambda: not any(is_running(b[key]) for key in ("pid", "child", "preloader")))
    assert crew.ends["b"] == -signal.SIGKILL


def test_a_killed_island_process_is_told_by_its_signal(three_nodes, tmp_path):
    with Crew(three_nodes, tmp_path, a=alone()) as crew:
        crew.go("a", "wait", str(tmp_path / "a.json"))
        os.kill(crew.told("a")["pid"], signal.SIGTERM)
        assert crew.end("a") == -signal.SIGTERM


def test_processes_of_an_island_share_a_node_and_see_a_device_each(three_nodes, tmp_path):
    raylet = three_nodes.add(num_cpus=2, num_gpus=2)
    needs = {f"x.{index}": alone(accelerator="GPU") for index in range(2)}
    with Crew(three_nodes, tmp_path, **needs) as crew:
        for name in needs:
            crew.go(name, "facts", str(tmp_path / f"{name}.json"), "CUDA_VISIBLE_DEVICES", "stay")
        told = [crew.told(name) for name in needs]
        assert [node_of(one["pid"]) for one in told] == [raylet, raylet]
        assert sorted(one["variable"] for one in told) == ["0", "1"]
        assert {one["device_index"] for one in told} == {"0"}


def test_a_resource_that_ray_does_not_know_keeps_the_planned_device(three_nodes, tmp_path):
    raylet = three_nodes.add(num_cpus=1, resources={"MLU": 8})
    with Crew(three_nodes, tmp_path, a=alone(accelerator="MLU")) as crew:
        crew.go("a", "facts", str(tmp_path / "a.json"), "X", "stay")
        told = crew.told("a")
        assert node_of(told["pid"]) == raylet and told["device_index"] == "7"


def test_islands_go_to_their_site(three_nodes, tmp_path):
    raylets = {site: three_nodes.add(num_cpus=1, resources={f"site:{site}": 1}) for site in SITES}
    needs = {site: alone(island=site, site=site) for site in reversed(SITES)}
    with Crew(three_nodes, tmp_path, **needs) as crew:
        for site in needs:
            crew.go(site, "facts", str(tmp_path / f"{site}.json"), "X", "stay")
        assert {site: node_of(crew.told(site)["pid"]) for site in needs} == raylets
    with (
        pytest.raises(InputError, match="'x'") as caught,
        Crew(three_nodes, tmp_path, a=alone(site="west")),
    ):
        pass
    assert "site:west" in caught.value.value and "site:north" in caught.value.fix


def test_a_missing_resource_names_what_the_cluster_has(three_nodes, tmp_path):
    with (
        pytest.raises(InputError) as caught,
        Crew(three_nodes, tmp_path, a=alone(accelerator="NPU")),
    ):
        pass
    assert caught.value.value == "1 CPU, 1 NPU" and "3 with 1 CPU" in caught.value.fix


def test_no_cluster_is_an_input_error(tmp_path):
    with pytest.raises(InputError) as caught:
        RayCrew(address="127.0.0.1:9", needs={}, entry="a:b", logs=tmp_path)
    assert "ray start --head" in caught.value.fix and "refused" in caught.value.message
    with pytest.raises(InputError, match="client"):
        RayCrew(address="ray://127.0.0.1:9", needs={}, entry="a:b", logs=tmp_path)
