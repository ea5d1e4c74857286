"""Islands of this machine as real processes: started, heard, stopped, and never left behind."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atoll.crew import wire
from atoll.crew.local import LocalCrew
from atoll.crew.wire import Arrival, Event, Exit, Listener

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
HANG = 60.0  # seconds: a guard against hanging, never a measure
COMPATIBLE = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"}


class Crew(LocalCrew):
    """A crew whose exits can be waited for."""

    def __init__(self, folder, *, preload=(), entry="crew_island:main", python_path=()):
        self.ends = queue.Queue()
        super().__init__(
            entry=entry,
            logs=folder / "logs",
            preload=preload,
            python_path=[HERE, *python_path],
            on_exit=lambda name, status: self.ends.put((name, status)),
        )

    def wait_for(self, num_islands):
        return dict(self.ends.get(timeout=HANG) for _ in range(num_islands))


@pytest.fixture
def crew(tmp_path):
    with Crew(tmp_path) as running:
        yield running


def wait_until(condition):
    deadline = time.monotonic() + HANG
    while not (value := condition()):
        assert time.monotonic() < deadline, "hangs"
        time.sleep(0.02)
    return value


def said(path):
    """What an island wrote to `path`, waiting for it."""
    wait_until(path.exists)
    return json.loads(path.read_text())


def is_running(pid):
    """False for a process that is gone, or dead and only not yet buried by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until_gone(pids):
    wait_until(lambda: not any(is_running(pid) for pid in pids))


# Starting


def test_islands_of_two_environments_are_two_kinds_of_process(tmp_path):
    with Crew(tmp_path, preload=["torch"]) as crew:
        for name, environment in [("a", {}), ("b", COMPATIBLE), ("c", {})]:
            path = tmp_path / f"{name}.json"
            crew.start(name, ["facts", str(path), "ATEN_CPU_CAPABILITY"], environment)
        assert crew.wait_for(3) == {"a": 0, "b": 0, "c": 0}, crew.log_tail("a")
        assert crew.exited() == {"a": 0, "b": 0, "c": 0}
        assert crew.exited() == {}
    found = {name: said(tmp_path / f"{name}.json") for name in "abc"}
    here = torch.backends.cpu.get_cpu_capability()
    assert [found[name]["capability"] for name in "abc"] == [here, "DEFAULT", here]
    assert here != "DEFAULT", "this machine has only one CPU kind"
    assert found["b"]["variable"] == "default" and found["a"]["variable"] is None
    assert found["a"]["parent"] == found["c"]["parent"] != found["b"]["parent"]
    assert "ATEN_CPU_CAPABILITY" not in os.environ
    assert found["a"]["gradient"] == found["c"]["gradient"] != found["b"]["gradient"]
    for name in "abc":
        facts = found[name]
        assert facts["session"] == facts["group"] == facts["pid"] != os.getsid(0)
        assert facts["interrupt_ignored"] and facts["terminate_default"]
        assert facts["torch_was_there"] and facts["stdin"] == "" and facts["threads"] == 2
        assert facts["argv"] == ["facts", str(tmp_path / f"{name}.json"), "ATEN_CPU_CAPABILITY"]


def test_an_island_holds_no_pipe_of_preloader_or_pilot(tmp_path, crew):
    crew.start("a", ["facts", str(tmp_path / "a.json"), "X"], {})
    assert crew.wait_for(1) == {"a": 0}, crew.log_tail("a")
    files = said(tmp_path / "a.json")["files"]
    assert not [name for name in files if name.startswith(("pipe:", "socket:"))], files
    assert files.count(str(crew.log_path("a"))) == 2


def test_a_forked_island_computes_the_bits_of_a_process_started_alone(tmp_path):
    with Crew(tmp_path, preload=["torch"]) as crew:
        crew.start("a", ["print_gradient"], {})
        assert crew.wait_for(1) == {"a": 0}, crew.log_tail("a")
        forked = crew.log_tail("a")
    alone = subprocess.run(
        [sys.executable, "-c", "import crew_island; crew_island.print_gradient()"],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert forked == alone.stdout.strip() != ""


def test_forked_islands_add_integers_through_gloo(tmp_path):
    with Crew(tmp_path, preload=["torch", "torch.distributed"]) as crew:
        for rank in range(3):
            environment = COMPATIBLE if rank == 2 else {}
            arguments = ["add_up", str(tmp_path / "store"), str(rank), "3"]
            crew.start(f"i{rank}", arguments, environment)
        assert set(crew.wait_for(3).values()) == {0}, crew.log_tail("i0")
        assert {crew.log_tail(f"i{rank}").splitlines()[-1] for rank in range(3)} == {"[111]"}


def test_islands_dial_in_by_the_same_path_as_from_any_launcher(tmp_path, crew):
    token_file = tmp_path / "token"
    with Listener(token=wire.write_token_file(token_file)) as listener:
        for name in "ab":
            crew.start(name, ["dial_in", listener.address, str(token_file), name], {})
        results = {}
        while len(results) < 2:
            name, what = listener.events.get(timeout=HANG)
            if isinstance(what, Arrival):
                assert what.hello["pid"] == wait_until(lambda name=name: crew.pids().get(name))
                what.connection.send("assign", value=ord(name))
                what.connection.send("stop")
            elif not isinstance(what, wire.ConnectionClosed):
                results[name] = what["value"]
        assert results == {"a": 2 * ord("a"), "b": 2 * ord("b")}
    assert crew.wait_for(2) == {"a": 0, "b": 0}


def test_exits_can_be_put_among_the_events_of_the_wire(tmp_path):
    with (
        Listener(token="t") as listener,
        LocalCrew(
            entry="crew_island:main",
            logs=tmp_path,
            preload=[],
            python_path=[HERE],
            on_exit=lambda name, status: listener.events.put(Event(name, Exit(status=status))),
        ) as crew,
    ):
        crew.start("a", ["leave", "7"], {})
        assert listener.events.get(timeout=HANG) == Event("a", Exit(status=7))


def test_many_islands_start_at_once(tmp_path, crew):
    for number in range(30):
        crew.start(f"island {number}", ["speak", "x" * 2000, str(number)], {})
    assert crew.wait_for(30) == {f"island {number}": 0 for number in range(30)}
    for number in range(30):
        assert crew.log_tail(f"island {number}", num_lines=1) == str(number)


# Failing


def test_a_crash_shows_its_traceback_and_status(crew):
    crew.start("a", ["crash"], {})
    assert crew.wait_for(1) == {"a": 1}
    tail = crew.log_tail("a")
    assert "about to divide" in tail and "Traceback (most recent call last)" in tail
    assert tail.endswith("ZeroDivisionError: the island of this test divides by zero")
    assert "preload.py" not in tail and "crew_island.py" in tail


def test_a_segmentation_fault_shows_where_and_its_signal(crew):
    crew.start("a", ["fault"], {})
    assert crew.wait_for(1) == {"a": -signal.SIGSEGV}
    assert "Segmentation fault" in crew.log_tail("a") and "in fault" in crew.log_tail("a")


@pytest.mark.parametrize(("leaving", "status"), [("0", 0), ("9", 9), ("no such recipe", 1)])
def test_an_island_that_exits_has_the_status_of_a_command(crew, leaving, status):
    crew.start("a", ["leave", leaving], {})
    assert crew.wait_for(1) == {"a": status}
    assert ("no such recipe" in crew.log_tail("a")) == (leaving == "no such recipe")


def test_an_entry_that_is_not_there_is_told_by_the_island(tmp_path):
    with Crew(tmp_path, entry="no_such_module:main") as crew:
        crew.start("a", [], {})
        assert crew.wait_for(1) == {"a": 1}
        assert "No module named 'no_such_module'" in crew.log_tail("a")


def test_a_failed_import_of_the_preloader_is_told_by_every_island(tmp_path):
    with Crew(tmp_path, preload=["no_such_library"]) as crew:
        crew.start("a", ["speak", "1"], {})
        crew.start("b", ["speak", "1"], {})
        assert crew.wait_for(2) == {"a": 1, "b": 1}
        assert "No module named 'no_such_library'" in crew.log_tail("a")
        assert crew.log_tail("a") == crew.log_tail("b")


def test_the_tail_of_a_log_begins_with_the_last_start(tmp_path, crew):
    crew.start("a/b", ["speak", "one", "two", "三", "four"], {})
    crew.wait_for(1)
    assert crew.log_tail("a/b", num_lines=2) == "三\nfour"
    crew.start("a/b", ["speak", "five"], {})
    crew.wait_for(1)
    assert crew.log_tail("a/b") == "five"
    assert crew.log_path("a/b").read_text().splitlines()[0] == "one"
    assert crew.log_path("a/b").parent == tmp_path / "logs"


# Stopping


def test_stop_asks_first_and_kills_who_refuses(tmp_path, crew):
    crew.start("polite", ["obey", str(tmp_path / "polite.json")], {})
    crew.start("stubborn", ["refuse", str(tmp_path / "stubborn.json")], {})
    pids = [said(tmp_path / f"{name}.json")["pid"] for name in ("polite", "stubborn")]
    crew.stop(grace=1.0)
    assert crew.exited() == {"polite": 5, "stubborn": -signal.SIGKILL}
    assert not any(is_running(pid) for pid in pids) and crew.pids() == {}
    crew.stop()


def test_wait_says_whether_all_have_ended(tmp_path, crew):
    crew.start("a", ["obey", str(tmp_path / "a.json")], {})
    crew.start("b", ["speak", "1"], {})
    said(tmp_path / "a.json")
    assert not crew.wait(0.1)
    crew.kill("a")
    assert crew.wait(HANG) and crew.exited() == {"a": -signal.SIGKILL, "b": 0}


def test_stop_right_after_start_leaves_nobody(tmp_path, crew):
    crew.start("a", ["wait", str(tmp_path / "a.json")], {})
    crew.stop(grace=HANG)
    assert crew.exited() == {"a": -signal.SIGTERM}


def test_kill_ends_an_island_and_its_children_and_no_other(tmp_path, crew):
    for name in "ab":
        crew.start(name, ["wait", str(tmp_path / f"{name}.json")], {})
    first, second = (said(tmp_path / f"{name}.json") for name in "ab")
    assert crew.pids() == {"a": first["pid"], "b": second["pid"]}
    crew.kill("a")
    assert crew.wait_for(1) == {"a": -signal.SIGKILL}
    wait_until_gone([first["pid"], first["child"]])
    assert is_running(second["pid"]) and is_running(second["child"])
    crew.kill("a")  # ended already: nothing happens
    crew.start("a", ["speak", "again"], {})
    assert crew.wait_for(1) == {"a": 0}


def test_an_interrupt_from_the_terminal_does_not_reach_the_islands(tmp_path, crew):
    crew.start("a", ["wait", str(tmp_path / "a.json")], {})
    found = said(tmp_path / "a.json")
    os.kill(found["pid"], signal.SIGINT)
    os.kill(found["preloader"], signal.SIGINT)
    crew.start("b", ["speak", "1"], {})
    assert crew.wait_for(1) == {"b": 0}
    assert is_running(found["pid"]) and is_running(found["preloader"])


# Nobody is left behind


@contextlib.contextmanager
def driver(folder, *, preload="", num_islands=4):
    """A pilot of its own process group, killed in the end at the latest."""
    environment = {**os.environ, "PYTHONPATH": str(Path(wire.__file__).parents[2])}
    with (folder / "driver.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "crew_driver.py"), str(folder), preload, str(num_islands)],
            stdout=output,
            stderr=output,
            env=environment,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def all_pids(folder, num_islands=4):
    found = [said(folder / f"i{number}.json") for number in range(num_islands)]
    return {pid for facts in found for pid in facts.values()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_pilot(tmp_path, number):
    with driver(tmp_path) as pilot:
        pids = all_pids(tmp_path)
        assert len(pids) == 10 and all(is_running(pid) for pid in pids)
        pilot.send_signal(number)
        pilot.wait(HANG)
        wait_until_gone(pids)


def test_the_children_of_an_island_that_crashed_do_not_outlive_it(tmp_path, crew):
    crew.start("a", ["abandon", str(tmp_path / "a.json")], {})
    assert crew.wait_for(1) == {"a": 1}
    wait_until_gone([said(tmp_path / "a.json")["child"]])


def test_no_process_outlives_its_preloader(tmp_path, crew):
    for name in "ab":
        crew.start(name, ["wait", str(tmp_path / f"{name}.json")], {})
    first, second = (said(tmp_path / f"{name}.json") for name in "ab")
    os.kill(first["preloader"], signal.SIGKILL)
    assert crew.wait_for(2) == {"a": -signal.SIGKILL, "b": -signal.SIGKILL}
    wait_until_gone([*first.values(), *second.values()])
    crew.start("a", ["speak", "after"], {})  # by a new preloader
    assert crew.wait_for(1) == {"a": 0} and crew.log_tail("a") == "after"


def test_islands_outlive_neither_pilot_nor_preloader_killed_together(tmp_path):
    with driver(tmp_path) as pilot:
        islands = [said(tmp_path / f"i{number}.json") for number in range(4)]
        for pid in {facts["preloader"] for facts in islands}:
            os.kill(pid, signal.SIGKILL)
        pilot.kill()
        wait_until_gone([facts["pid"] for facts in islands])
        for facts in islands:  # what an island started itself is the one thing that nobody ends
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts["child"], signal.SIGKILL)


def test_a_pilot_killed_while_its_preloader_imports_leaves_nobody(tmp_path):
    slow = "import os, pathlib, time\nhere = pathlib.Path(__file__).parent\n"
    slow += "(here / f'importing-{os.getpid()}').touch()\n"
    slow += "while not (here / 'go').exists(): time.sleep(0.02)\n"
    (tmp_path / "slow_import.py").write_text(slow)
    with driver(tmp_path, preload="slow_import", num_islands=1) as pilot:
        wait_until((tmp_path / "driving").exists)
        preloader = int(wait_until(lambda: list(tmp_path.glob("importing-*")))[0].name[10:])
        pilot.kill()
        pilot.wait(HANG)
        (tmp_path / "go").touch()
        wait_until_gone([preloader])
    assert not (tmp_path / "i0.json").exists() or not is_running(said(tmp_path / "i0.json")["pid"])
