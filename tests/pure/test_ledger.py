"""The ledger: what was appended is there, a torn line never counts, damage is named."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import LedgerError
from atoll.run import Ledger, LedgerLine


def line(step: int, **changes: object) -> LedgerLine:
    plain = {
        "step": step,
        "grains": {"a": [[0, 5]], "b": [[6, 6], [7, 7]]},
        "kinds": {"a": "k1", "b": "k2"},
        "loss": 5.25 + 1 / step,
        "grad_norm": 0.1,
        "lr": 1e-3,
        "clip": 1.0,
        "exponents_digest": "e",
        "sum_digest": "s",
        "fingerprint": f"{step:016x}",
        "probe": {"a": [3, "p"]},
        "seconds": 0.5,
        "tokens": 1024,
    }
    return LedgerLine.model_validate({**plain, **changes})


def write(path: Path, steps: range) -> list[LedgerLine]:
    ledger = Ledger(path)
    lines = [line(step) for step in steps]
    for each in lines:
        ledger.append(each)
    ledger.close()
    return lines


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert Ledger(path).read() == []
    lines = write(path, range(1, 4))
    assert Ledger(path).read() == lines
    write(path, range(4, 6))
    assert [each.step for each in Ledger(path).read()] == [1, 2, 3, 4, 5]


def test_a_line_is_plain_json_with_the_keys_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(1, 2))
    plain = json.loads(path.read_bytes())
    assert {
        "step", "grains", "kinds", "loss", "grad_norm", "lr", "clip", "exponents_digest",
        "sum_digest", "fingerprint", "probe", "seconds", "tokens", "requantised", "reassigned",
    } <= set(plain)  # fmt: skip
    assert plain["loss"] == line(1).loss


def test_a_line_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(line(1))
    # Another reader, no close: nothing waits in a buffer.
    assert Ledger(path).read() == [line(1)]
    ledger.close()


@given(st.integers(1, 4), st.integers(0, 2000))
def test_wherever_a_crash_cuts_the_file_whole_lines_stay(num_lines: int, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        lines = write(path, range(1, num_lines + 1))
        data = path.read_bytes()
        cut = min(cut, len(data))
        path.write_bytes(data[:cut])
        ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
        # A line that only lacks its newline is whole.
        whole = sum(end - 1 <= cut for end in ends)
        assert Ledger(path).read() == lines[:whole]
        write(path, range(whole + 1, whole + 3))
        assert Ledger(path).read() == [*lines[:whole], line(whole + 1), line(whole + 2)]


@given(st.data())
def test_a_changed_byte_in_the_middle_is_found_and_its_line_is_named(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        write(path, range(1, 5))
        good = path.read_bytes()
        ends = [i + 1 for i, byte in enumerate(good) if byte == ord("\n")]
        place = data.draw(st.integers(0, ends[2] - 2))
        bad = bytearray(good)
        bad[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(bad))
        number = sum(end <= place for end in ends) + 1
        with pytest.raises(LedgerError, match=f"line {number} "):
            Ledger(path).read()


@given(st.binary(max_size=40))
def test_rubbish_after_the_last_line_is_dropped(rubbish: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        lines = write(path, range(1, 3))
        path.write_bytes(path.read_bytes() + rubbish.replace(b"\n", b"\0"))
        assert Ledger(path).read() == lines
        write(path, range(3, 4))
        assert [each.step for each in Ledger(path).read()] == [1, 2, 3]


def test_a_line_without_a_check_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(line(1).model_dump()) + "\n")
    assert Ledger(path).read() == [line(1)]


def test_a_lost_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(1, 5))
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + rows[2] + rows[3])
    with pytest.raises(LedgerError, match="line 2 is step 3 after step 1"):
        Ledger(path).read()


def test_a_step_is_neither_repeated_nor_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(1, 3))
    ledger = Ledger(path)
    for step in (1, 2, 4):
        with pytest.raises(LedgerError, match=f"step {step} cannot follow step 2"):
            ledger.append(line(step))
    ledger.append(line(3))
    ledger.close()


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_lines_taken_back_are_kept_aside(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = write(path, range(1, 6))
    ledger = Ledger(path)
    assert ledger.truncate_after(kept) == lines[kept:]
    assert ledger.read() == lines[:kept]
    aside = tmp_path / "ledger-dropped.jsonl"
    assert aside.exists() == (kept < 5)
    if kept < 5:
        assert len(aside.read_bytes().splitlines()) == 5 - kept
    ledger.append(line(kept + 1))
    ledger.close()
    assert [each.step for each in Ledger(path).read()] == list(range(1, kept + 2))


def test_taking_back_removes_a_torn_line_too(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = write(path, range(1, 3))
    with path.open("ab") as file:
        file.write(b'{"step":3,"gra')
    assert Ledger(path).truncate_after(2) == []
    assert path.read_bytes().endswith(b"}\n")
    assert Ledger(path).read() == lines


def test_a_number_that_is_none_is_never_committed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        line(1, loss=float("nan"))


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = write(path, range(1, 3))
    size = path.stat().st_size
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom atoll.run import Ledger, LedgerLine\n"
        "path = Path(sys.argv[1])\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 50}, {size + 50}))\n"
        "Ledger(path).append(LedgerLine.model_validate_json(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(path), line(3).model_dump_json()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "LedgerError" in result.stderr
    assert "cannot be written" in result.stderr
    assert Ledger(path).read() == lines
    assert path.stat().st_size == size
    write(path, range(3, 4))


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    # The real answer of the system to a full disk, without filling one.
    ledger._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(LedgerError, match="the disk is full") as caught:
        ledger.append(line(1))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    ledger.close()
