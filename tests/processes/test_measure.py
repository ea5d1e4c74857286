"""`atoll measure` with real processes: a tiny sweep, two ranks, and nothing left behind."""

import datetime
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll import facts
from atoll.cli import main
from atoll.errors import InputError, RunError
from atoll.facts.measured import load_measured, measured_in
from atoll.training.crewing import Starting
from atoll.training.display import SilentDisplay
from atoll.training.measure import MeasureResult, measure
from atoll.training.sweep import FULL, QUICK, Sweep, products

HERE = Path(__file__).parent
HANG = 60.0  # seconds: a guard against hanging, never a measure
TINY = Sweep(
    gemms=[(8, 8, 8), (16, 8, 32), (4096, 4096, 4096)],
    dtypes=("fp32", "bf16"),
    copies=(4096, 1 << 60),
    messages=(1002, 65536),
    repeats=3,
    repeat_seconds=1e-5,
    point_seconds=1e-3,
)


SMALL = Sweep(
    gemms=[(8, 8, 8)],
    dtypes=("fp32",),
    copies=(4096,),
    messages=(1024,),
    repeats=1,
    repeat_seconds=0.0,
    point_seconds=1.0,
)


class Listening(SilentDisplay):
    """Keeps the phases it is shown."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, float | None]] = []
        self.said: list[str] = []

    def phase(self, text: str, fraction: float | None) -> None:
        self.phases.append((text, fraction))

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def display() -> Listening:
    return Listening()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, display: Listening) -> MeasureResult:
    to = tmp_path_factory.mktemp("facts") / "measured" / "tiny.toml"
    return measure(chip="cpu", to=to, sweep=TINY, ranks=3, display=display)


def test_the_file_holds_what_was_found(result: MeasureResult) -> None:
    measured = load_measured(result.file)
    assert measured == result.measured
    assert measured_in(result.file.parent.parent) == {"cpu": measured}
    assert list(result.file.parent.iterdir()) == [result.file]
    assert measured.chip == "cpu" and measured.host.threads == 1
    assert measured.date in (datetime.date.today(), datetime.date.today() - datetime.timedelta(1))
    assert measured.host.collective == "gloo" and measured.host.settings["deterministic"] is True


def test_products_and_memory_are_measured(result: MeasureResult) -> None:
    measured = result.measured
    shapes = {(g.m, g.n, g.k) for g in measured.gemm if g.dtype == "fp32"}
    assert {(8, 8, 8), (16, 8, 32)} <= shapes
    for dtype in ("fp32", "bf16"):
        peak = measured.gemm_peak(dtype)
        assert peak is not None and 0 < peak < math.inf
    assert all(gemm.repeats == 3 for gemm in measured.gemm)
    assert measured.memory is not None and measured.memory.size is not None
    assert [copy.size for copy in measured.memory.copies] == ["4 KiB"]
    assert measured.memory_bytes_per_second is not None


def test_collectives_are_measured_over_each_number_of_ranks(result: MeasureResult) -> None:
    seen = {(one.op, one.ranks) for one in result.measured.collective}
    operations = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    assert seen == {(operation, ranks) for operation in operations for ranks in (2, 3)}
    # 1,002 bytes are 250 numbers; three ranks share 249 of them.
    assert {one.size for one in result.measured.collective if one.ranks == 3} >= {"996 B"}
    for one in result.measured.collective:
        seconds = result.measured.collective_seconds(one.op, one.ranks, 5000)
        assert seconds is not None and 0 < seconds < math.inf


def test_what_takes_too_long_or_does_not_fit_is_left_out_with_the_reason(
    result: MeasureResult,
) -> None:
    left_out = {one.what: one.why for one in result.measured.left_out}
    assert (
        "would take longer" in left_out["gemm fp32, 1 of 3 products, the smallest 4096x4096x4096"]
    )
    assert left_out["memory.copies 1048576 TiB"] == "not enough free memory"
    assert "the device is the host" in left_out["link"]


def test_it_shows_how_far_it_is(result: MeasureResult, display: Listening) -> None:
    texts = [text for text, _ in display.phases]
    assert "products in fp32" in texts and "all_reduce over 2 ranks" in texts
    assert all(fraction is None or 0 <= fraction <= 1 for _, fraction in display.phases)
    assert display.said == []


def test_the_result_as_text_and_as_one_object(result: MeasureResult) -> None:
    found = json.loads(json.dumps(result.json()))
    assert found["file"] == str(result.file) and found["chip"] == "cpu"
    assert found["gemm"]["fp32"] > 0 and found["memory_bytes_per_second"] > 0
    assert {one["ranks"] for one in found["collective"]} == {2, 3}
    page = (HERE.parents[1] / "docs" / "files.md").read_text(encoding="utf-8")
    row = re.search(r"^\| `atoll measure` \| (.*) \|$", page, flags=re.MULTILINE)
    assert row is not None and set(re.findall(r"`(\w+)`", row[1])) == set(found)
    text = result.text()
    assert "fp32" in text and "all_to_all over 3 ranks" in text and str(result.file) in text


def test_the_chips_environment_holds_while_it_is_measured(tmp_path: Path) -> None:
    to = tmp_path / "compat.toml"
    result = measure(chip="cpu-compat", to=to, sweep=SMALL, display=SilentDisplay())
    assert facts.chip("cpu-compat").environment["ATEN_CPU_CAPABILITY"] == "default"
    assert result.measured.host.settings["instruction_set"] == "DEFAULT"


def test_a_chip_of_ones_own_is_measured_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = 'name = "lab/cpu"\nbackend = "cpu"\ndescription = "ours"\n'
    Path("mine.toml").write_text(text + '[environment]\nATEN_CPU_CAPABILITY = "default"\n')
    result = measure(chip="mine.toml", sweep=SMALL, display=SilentDisplay())
    assert result.measured.chip == "lab/cpu"
    assert result.file.parent == Path("measured") and result.file.name.startswith("lab-cpu-20")
    assert result.measured.host.settings["instruction_set"] == "DEFAULT"


def test_collectives_that_fail_leave_the_rest(tmp_path: Path) -> None:
    display = Listening()
    faulty = Starting(entry="measure_faults:dies_in_collectives", python_path=[HERE])
    result = measure(
        chip="cpu", to=tmp_path / "a.toml", sweep=TINY, display=display, starting=faulty
    )
    assert result.measured.gemm and not result.measured.collective
    reasons = [one.why for one in result.measured.left_out if one.what == "collective"]
    assert reasons == ["ZeroDivisionError: the network is gone"]
    assert "could not be measured" in display.said[0]


def test_a_device_that_fails_writes_nothing(tmp_path: Path) -> None:
    faulty = Starting(entry="measure_faults:dies", python_path=[HERE])
    to = tmp_path / "measured" / "a.toml"
    with pytest.raises(RunError, match="the device is gone"):
        measure(chip="cpu", to=to, sweep=TINY, display=SilentDisplay(), starting=faulty)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--chip", "cpu-compatt"], "cpu-compat"),
        (["--ranks", "1"], "--ranks"),
        (["--to", "a.json"], ".toml"),
        (["--to", "file/below/a.toml"], "is no folder"),
        (["--to", "there.toml"], "exists already"),
        (["--threads", "4096"], "--threads"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_measured(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("there.toml").write_text("mine")
    monkeypatch.setattr("atoll.training.measure.LocalCrew", None)
    assert main(["measure", "--quick", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and "Traceback" not in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there.toml"]
    assert Path("there.toml").read_text() == "mine"


def test_the_file_of_today_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("measured").mkdir()
    for day in (0, 1):  # the test may run at midnight
        date = datetime.date.today() + datetime.timedelta(day)
        Path(f"measured/cpu-{date}.toml").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        measure(chip="cpu", sweep=TINY, display=SilentDisplay())


@pytest.mark.parametrize("chip", ["h20", "ascend-910b2", "here"])
def test_a_chip_that_is_not_here_cannot_be_measured(chip: str) -> None:
    from atoll import backends

    backend = backends.of_chip(chip)
    if backend.available() and backend.device_type != "cpu":
        pytest.skip("this machine has one")
    with pytest.raises(InputError, match="this machine has none"):
        measure(chip=chip, sweep=TINY, display=SilentDisplay())


# ------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("phase", ["products in fp32", "all_reduce over 2 ranks"])
def test_an_interrupt_leaves_no_file_and_no_process(phase: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    driver = subprocess.Popen(
        [sys.executable, str(HERE / "measure_driver.py"), phase],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == f"{phase}\n"
        children = processes_naming(str(scratch))
        assert children, "nobody was at work"
        driver.send_signal(signal.SIGINT)
        _, errors = driver.communicate(timeout=HANG)
    finally:
        driver.kill()
    assert driver.returncode == 130, errors
    assert "nothing was written" in errors and "Traceback" not in errors
    deadline = time.monotonic() + HANG
    while processes_naming(str(scratch)):
        assert time.monotonic() < deadline, "a process outlived the command"
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == [scratch] and list(scratch.iterdir()) == []


def processes_naming(folder: str) -> list[int]:
    """Processes with an open file, or an argument, below a folder: the preloader and its forks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(folder in name for name in opened):
            found.append(int(process.name))
    return found


# ------------------------------------------------------------------ sweeps


def test_sweeps_hold_a_transformers_products() -> None:
    found = products(tokens=(16,), widths={64: 176}, squares=(64,), vocab=512)
    assert set(found) == {(16, 64, 64), (16, 176, 64), (16, 64, 176), (16, 512, 64), (64, 64, 64)}
    for sweep in (FULL, QUICK):
        work = [m * n * k for m, n, k in sweep.gemms]
        assert work == sorted(work) and len(set(map(tuple, sweep.gemms))) == len(work)
        assert list(sweep.messages) == sorted(sweep.messages)
