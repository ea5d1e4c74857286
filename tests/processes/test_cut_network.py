"""An island whose network goes dead: a namespace of its own, a pair of virtual interfaces, one of
which is taken down. No connection is ever closed, nothing answers any more.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.processes.what_a_run_says import events_of, every_grain_once, ledger_of, same_run

pytestmark = pytest.mark.processes

HOST, GUEST = "10.213.77.1", "10.213.77.2"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespace():
    """A network namespace that reaches this one by one cable; the test's own, taken away after."""
    name, ours, theirs = (f"{kind}{os.getpid() % 100000}" for kind in ("atoll", "ato", "atg"))
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces want root and the command ip")
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("address", "add", f"{HOST}/30", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", name, "address", "add", f"{GUEST}/30", "dev", theirs)
        ip("-n", name, "link", "set", theirs, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name, theirs
    finally:
        subprocess.run(["ip", "link", "del", ours], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def dial_in(run, namespace, name):
    address = json.loads((run / "pilot.json").read_text())["address"]
    words = ["island", "--pilot", address, "--token-file", str(run / "token"), "--name", name]
    words += ["--chip", "cpu", "--lanes", "1", "--threads", "1"]
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-m", "atoll", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_an_island_that_is_cut_off_costs_its_grains_only(world, tmp_path, wait_until, namespace):
    inside, cable = namespace
    steps = ["schedule.steps=30"]
    quiet = world.train("one", tmp_path / "quiet", overrides=steps)
    run = tmp_path / "run"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            world.train, "dial-in", run, entry="slow", overrides=steps, listen=f"{HOST}:0"
        )
        wait_until((run / "pilot.json").exists)
        island = dial_in(run, inside, "b")  # the run waits for it
        try:
            wait_until(lambda: (run / "ledger.jsonl").exists() and len(ledger_of(run)) >= 3)
            ip("-n", inside, "link", "set", cable, "down")
            result = running.result(120)
        finally:
            island.kill()
            island.wait()
    same_run(result, quiet)
    every_grain_once(run, 6)
    assert events_of(run, "hung", "died", "restarted") == [("hung", "b")]
    lines = ledger_of(run)
    assert "b" in lines[1].grains and "b" not in lines[-1].grains
