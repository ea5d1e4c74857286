"""What `atoll train --metrics` serves while it trains, read by Prometheus' own parser."""

import json
import re
import socket
import subprocess
import sys
import urllib.request

import pytest
from prometheus_client import parser

from atoll.cli import main


def scrape(url):
    """(name, labels) -> value of all samples; None if nobody serves."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    families = list(parser.text_string_to_metric_families(text))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_run_is_scraped_while_it_trains(world, tmp_path, wait_until):
    run = tmp_path / "run"
    arguments = [world.recipe, "--fleet", world.fleet("two"), "--run", run, "--cache", world.cache]
    arguments += ["--metrics", "0", "--json", "--set", "schedule.steps=400"]
    process = subprocess.Popen(
        [sys.executable, "-m", "atoll", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, "it ended without saying where the metrics are"
            found = re.search(r"metrics: (http://127\.0\.0\.1:\d+/metrics)", line)
        url = found[1]

        def running():
            values = scrape(url)
            assert values is not None, "the run has ended"
            return values if values.get(("atoll_step", ()), 0) >= 2 else None

        first = wait_until(running)
        step = first["atoll_step", ()]
        later = wait_until(lambda: v if (v := running())["atoll_step", ()] > step else None)
        process.terminate()
        rest = process.communicate()
    finally:
        process.kill()
        process.wait()
    result = json.loads(rest[0].splitlines()[-1])
    lines = [json.loads(raw) for raw in (run / "ledger.jsonl").read_text().splitlines()]
    for values in (first, later):
        line = lines[int(values["atoll_step", ()]) - 1]
        assert values["atoll_loss", ()] == line["loss"]
        assert values["atoll_tokens_total", ()] == line["step"] * line["tokens"]
        assert values["atoll_tokens_per_second", ()] == pytest.approx(
            line["tokens"] / line["seconds"]
        )
        assert values["atoll_islands", (("state", "computing"),)] == 2
        assert values["atoll_islands", (("state", "gone"),)] == 0
        grains = [values["atoll_island_grains", (("chip", "cpu"), ("island", n))] for n in "ab"]
        assert sum(grains) == 6
        assert values["atoll_events_total", (("kind", "started"),)] == 1
    assert later["atoll_total_steps", ()] == 400 > result["step"]
    assert scrape(url) is None, "it no longer listens"


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "1.2.3.4.5:80", "a:b"])
def test_a_bad_address(world, tmp_path, address, capsys):
    run = tmp_path / "run"
    arguments = ["train", str(world.recipe), "--run", str(run), "--metrics", address]
    assert main(arguments) == 2
    assert "--metrics" in capsys.readouterr().err and not run.exists()


def test_a_port_in_use(world, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        arguments = ["train", str(world.recipe), "--run", str(tmp_path / "run")]
        assert main([*arguments, "--metrics", f":{port}"]) == 2
    message = capsys.readouterr().err
    assert "cannot listen" in message and str(port) in message


def test_islands_that_leave_are_gone_and_leave_no_numbers(tmp_path):
    from atoll.run import Events
    from atoll.training.display import IslandView, SilentDisplay, Snapshot
    from atoll.training.prometheus import PrometheusDisplay

    def snapshot(step, **states):
        islands = tuple(
            IslandView(
                name=name, chip="cpu", lanes=1, grains=3, grains_per_second=None, state=state
            )
            for name, state in states.items()
        )
        return Snapshot(
            run=str(tmp_path),
            step=step,
            total_steps=9,
            loss=None,
            val_loss=1.5,
            bits_per_byte=None,
            tokens=10 * step,
            tokens_per_second=None,
            contract="bitwise",
            islands=islands,
        )

    display = PrometheusDisplay(SilentDisplay(), "0")
    url = f"http://127.0.0.1:{display.port}/metrics"
    try:
        assert scrape(url) == {}, "before the first step"
        display.update(snapshot(1, a="computing", b="computing"))
        display.update(snapshot(2, b="healing"))
        Events(tmp_path / "events.jsonl").append("died", island="a")
        values = scrape(url)
    finally:
        display.close()
        display.close()
    states = {labels[0][1]: v for (name, labels), v in values.items() if name == "atoll_islands"}
    assert states == {"computing": 0, "healing": 1, "gone": 1}
    islands = [labels for name, labels in values if name == "atoll_island_grains"]
    assert islands == [(("chip", "cpu"), ("island", "b"))]
    assert values["atoll_events_total", (("kind", "died"),)] == 1
    assert values["atoll_val_loss", ()] == 1.5 and ("atoll_loss", ()) not in values
