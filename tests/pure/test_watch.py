"""atoll watch: the page on a terminal, as JSON and for a browser, from files alone."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console
from tests.pure import run_cases

from atoll.cli import main, watch_terminal
from atoll.history import reading, telling
from atoll.web import run_page


@pytest.fixture(scope="module")
def eventful(tmp_path_factory):
    return run_cases.eventful(tmp_path_factory.mktemp("told") / "run")


def painted(history, *, width=100, height=50, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height)
    console.print(watch_terminal.page(history, console, now=history.sessions[-1].ended + 30))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_the_page_shows_it_all(eventful, capsys):
    assert main(["watch", str(eventful.path), "--once"]) == 0
    text = capsys.readouterr().out
    assert "crashed" in text and "step 430 of 1,000" in text
    text = painted(reading.read(eventful.path))
    for words in ("goodput", "lost islands", "recomputed", "stopped", "c was silent", "cpu-compat"):
        assert words in text, words
    rows = [line for line in text.splitlines() if re.match(r". [abc]  ", line)]
    assert [row.split()[1] for row in rows] == ["a", "b", "c"]
    assert "left" in rows[2] and "step 400" in rows[2] and "step 430, 30 s ago" in rows[0]


def test_marks_stand_where_things_happened(eventful):
    marks = telling.marks_of(reading.read(eventful.path))
    for mark in [(61, "lost"), (82, "joined"), (85, "healed"), (85, "split"), (201, "resumed")]:
        assert mark in marks
    assert [step for step, kind in marks if kind == "left"] == [401]
    text = painted(reading.read(eventful.path))
    legend = next(line for line in text.splitlines() if "died or put out" in line)
    for sign, _, meaning in telling.MARKS.values():
        if meaning in legend:
            assert text.count(sign) > legend.count(sign), meaning


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_page_fits(eventful, width, encoding):
    text = painted(reading.read(eventful.path), width=width, encoding=encoding)
    assert max(map(len, text.splitlines())) <= width
    assert encoding != "ascii" or text.isascii()


def test_many_islands(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(**{f"island-{n:03}": "k1" for n in range(300)})
    some = {f"island-{n:03}": [[n, n]] for n in range(12)}
    run.steps(30, grains=some)
    run.end("finished")
    text = painted(reading.read(run.path))
    assert "284 more" in text and len(text.splitlines()) < 60
    page = run_page.html_of(reading.read(run.path))
    assert page.count("island-") > 150 and "and 100 more" in page


def test_a_run_without_a_step(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    history = reading.read(run.path)
    assert "the curve begins with the first step" in painted(history)
    assert "begins with the first step" in run_page.html_of(history)
    run.steps(1)
    history = reading.read(run.path)
    assert "step 1 of" in painted(history) and "<svg" in run_page.html_of(history)


def test_a_torn_last_line_does_not_harm(tmp_path, capsys):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    run.steps(4)
    for path in (run.ledger.path, run.events.path):
        with path.open("ab") as file:
            file.write(b'{"step":5,"gra')
    assert main(["watch", str(run.path), "--once"]) == 0
    assert main(["watch", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 4


def test_json(eventful, capsys):
    assert main(["watch", str(eventful.path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["step"] == 430 and answer["state"] == "crashed"
    assert answer["val_loss"] == pytest.approx(2.335, abs=0.01)
    assert {"step": 61, "what": "lost"} in answer["marks"]
    assert answer["goodput"]["lost_seconds"]["stopped"] == pytest.approx(150.0)
    states = {one["island"]: one["state"] for one in answer["islands"]}
    assert states == {"a": "ended", "b": "ended", "c": "left"}


def test_the_page_for_a_browser(eventful, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["watch", str(eventful.path), "--page", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"<script|https?://|url\(|refresh", text)
    root = ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))  # well-formed
    pictures = [svg for svg in root.iter("svg") if svg.get("role") == "img"]
    assert len(pictures) == 4, "the curve and the bar, for wide and for narrow"
    tips = [title.text for title in root.iter("title")]
    assert any("step 61: 1 died" in (tip or "") for tip in tips)
    assert any("stopped: 22" in (tip or "") for tip in tips)
    words = " ".join(root.itertext())
    for word in ("Where the time went", "lost islands", "johor (leased)", "no heartbeat"):
        assert word in words
    assert 'http-equiv="refresh" content="5"' in run_page.html_of(
        reading.read(eventful.path), reload=True
    )


def test_names_in_files_are_no_markup(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    run.steps(3)
    run.event("died", island="<b>&[red]", reason="<script>x</script> [bold]", step=3)
    history = reading.read(run.path)
    page = run_page.html_of(history)
    assert "<script" not in page and "&lt;b&gt;&amp;[red]" in page
    assert "<b>&[red]" in painted(history) and "[bold]" in painted(history)


@pytest.mark.parametrize(
    "arguments", [["--refresh"], ["--page", "no/such/folder/page.html"], ["--page", "."]]
)
def test_wrong_input(eventful, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", str(eventful.path), *arguments]) == 2
    assert capsys.readouterr().err.startswith("atoll: ")


def test_it_follows_a_run_and_ctrl_c_leaves_with_0(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    run.steps(3)
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "atoll", "watch", str(run.path)]
    with run.folder.lock():
        process = subprocess.Popen(
            [*command, "--page", str(page), "--refresh"], stdout=subprocess.PIPE, text=True
        )
        guard = threading.Timer(60.0, process.kill)
        guard.start()
        try:
            until(lambda: page.exists() and ">3<" in page.read_text(encoding="utf-8"), process)
            run.steps(4)
            until(lambda: ">7<" in page.read_text(encoding="utf-8"), process)
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0
        finally:
            guard.cancel()
            process.kill()
            process.wait()


def until(condition, process):
    while not condition():
        assert process.poll() is None, "it ended"
        time.sleep(0.05)
