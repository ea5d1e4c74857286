"""Measured facts: the file, its strictness, and what is said between the measured points."""

import datetime
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import strict, units
from atoll.errors import InputError
from atoll.facts.measured import Measured, exact_size, load_measured, measured_in, to_toml

FILE = """
schema = 1
chip = "cpu"
date = 2026-11-25
host.device = "a \\"b\\""
host.processor = "b"
host.cores = 2
host.threads = 1
host.torch = "2"
host.collective = "gloo"
host.settings.deterministic = true
memory.size = "16 GiB"
memory.copies = [
  { size = "64 KiB", bandwidth = "70 GB/s", low = "60 GB/s", high = "71 GB/s", repeats = 7 },
  { size = "1 GiB", bandwidth = "14 GB/s", low = "13 GB/s", high = "14 GB/s", repeats = 3 },
]
gemm = [
  { m = 64, n = 64, k = 64, dtype = "fp32", flops = "100 GFLOP/s", low = "90 GFLOP/s", \
high = "110 GFLOP/s", repeats = 7 },
  { m = 512, n = 512, k = 512, dtype = "fp32", flops = "200 GFLOP/s", low = "190 GFLOP/s", \
high = "201 GFLOP/s", repeats = 7 },
  { m = 64, n = 64, k = 64, dtype = "bf16", flops = "1.5 TFLOP/s", low = "1.5 TFLOP/s", \
high = "1.5 TFLOP/s", repeats = 1 },
]
[[link]]
direction = "host-to-device"
size = "1 MiB"
seconds = "1 ms"
low = "1 ms"
high = "1 ms"
repeats = 3
[[collective]]
op = "all_reduce"
ranks = 2
size = "4 KiB"
seconds = "100 us"
low = "90 us"
high = "400 us"
repeats = 7
[[collective]]
op = "all_reduce"
ranks = 2
size = "1 MiB"
seconds = "1.1 ms"
low = "1 ms"
high = "2 ms"
repeats = 7
[[left_out]]
what = "gemm fp16"
why = "no such unit"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "measured" / "cpu.toml"
    file.parent.mkdir()
    file.write_text(FILE)
    return file


@pytest.fixture
def measured(path: Path) -> Measured:
    return load_measured(path)


def made(**lists: list[dict[str, object]]) -> Measured:
    """Facts with these entries; the extremes of each are its median."""
    host = {"device": "a", "processor": "b", "cores": 2, "threads": 1, "torch": "2"}
    content = {"chip": "x", "date": datetime.date(2026, 1, 1), "host": {**host, "collective": "c"}}
    lists.setdefault("gemm", [gemm(8, 8, 8, 1e9)])
    return strict.validate(Measured, {**content, **lists})


def gemm(m: int, n: int, k: int, speed: float, dtype: str = "fp32") -> dict[str, object]:
    text = f"{speed:.6e} FLOP/s"
    point = {"m": m, "n": n, "k": k, "dtype": dtype}
    return {**point, "flops": text, "low": text, "high": text, "repeats": 1}


def message(size: int, seconds: float, op: str = "all_reduce", ranks: int = 2) -> dict[str, object]:
    text = f"{seconds:.9f} s"
    times = {"seconds": text, "low": text, "high": text, "repeats": 1}
    return {"op": op, "ranks": ranks, "size": f"{size} B", **times}


# ------------------------------------------------------------------ the file


def test_a_file_is_read(measured: Measured) -> None:
    assert measured.chip == "cpu" and measured.date == datetime.date(2026, 11, 25)
    assert measured.host.settings == {"deterministic": True}
    assert measured.memory is not None and measured.memory.size == "16 GiB"
    assert len(measured.gemm) == 3 and len(measured.collective) == 2
    assert measured.left_out[0].why == "no such unit"


def test_what_is_written_is_read_back_as_it_was(measured: Measured, tmp_path: Path) -> None:
    text = to_toml(measured)
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")
    assert load_measured(tmp_path / "again.toml") == measured
    assert text.startswith("schema = 1\n")


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers(0, 9) | st.booleans()))
def test_any_text_in_a_file_survives(text: str, settings: dict[str, object]) -> None:
    import tomllib

    facts = made()
    host = facts.host.model_copy(update={"device": "d" + text, "settings": settings})
    try:
        text.encode()
        "".join([*settings, *map(str, settings.values())]).encode()
    except UnicodeEncodeError:
        return  # half a character is in no file
    written = to_toml(facts.model_copy(update={"host": host}))
    read = tomllib.loads(written)["host"]
    assert read["device"] == "d" + text and read.get("settings", {}) == settings


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", "newer Atoll"),
        ('chip = "cpu"', 'chip = "cpu"\nchips = 3', "chip"),
        ("date = 2026-11-25", 'date = "2026-11-25"', "date"),
        ("date = 2026-11-25", "", "date"),
        ("m = 512", "m = 512.0", "whole number"),
        ("m = 512", "m = 0", "at least 1"),
        ('"fp32"', '"fp33"', 'nearest: "fp32"'),
        ('flops = "200 GFLOP/s"', "flops = 2e11", "text in quotes"),
        ('flops = "200 GFLOP/s"', 'flops = "200 GB/s"', "FLOP/s"),
        ('flops = "200 GFLOP/s"', 'flops = "0 FLOP/s"', "is nothing"),
        ('flops = "200 GFLOP/s"', 'flops = "300 GFLOP/s"', "between low and high"),
        ('low = "90 us"', 'low = "200 us"', "between low and high"),
        ("m = 512, n = 512, k = 512", "m = 64, n = 64, k = 64", "the same as entry 0"),
        ('size = "1 MiB"\nseconds = "1.1 ms"', 'size = "4096 B"\nseconds = "1.1 ms"', "entry 0"),
        ("ranks = 2", "ranks = 1", "at least 2"),
        ('op = "all_reduce"', 'op = "allreduce"', 'nearest: "all_reduce"'),
        ("host.threads = 1", "host.thread = 1", "host.threads"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(path: Path, old: str, new: str, said: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=str(path)) as caught:
        load_measured(path)
    assert said in str(caught.value)


def test_the_newest_file_of_a_chip_counts(path: Path) -> None:
    folder = path.parent
    older = path.read_text().replace("2026-11-25", "2025-01-01").replace("16 GiB", "8 GiB")
    (folder / "a-older.toml").write_text(older)
    (folder / "z-older.toml").write_text(older.replace("2025-01-01", "2025-01-02"))
    (folder / "other.toml").write_text(path.read_text().replace('"cpu"', '"mine"', 1))
    found = measured_in(folder.parent)
    assert sorted(found) == ["cpu", "mine"]
    assert found["cpu"].date == datetime.date(2026, 11, 25)
    assert found["cpu"].memory is not None and found["cpu"].memory.size == "16 GiB"


def test_two_files_of_one_day_are_refused(path: Path) -> None:
    (path.parent / "second.toml").write_text(path.read_text())
    with pytest.raises(InputError, match="same day") as caught:
        measured_in(path.parent.parent)
    assert "cpu.toml" in str(caught.value) and "second.toml" in str(caught.value)


def test_a_folder_without_measurements_has_none(tmp_path: Path) -> None:
    assert measured_in(tmp_path) == {}
    with pytest.raises(InputError, match="is no folder"):
        measured_in(tmp_path / "none")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(1, "1 B"), (1000, "1000 B"), (4096, "4 KiB"), (3 << 19, "1536 KiB"), (1 << 40, "1 TiB")],
)
def test_sizes_are_written_exactly(num_bytes: int, text: str) -> None:
    assert exact_size(num_bytes) == text and units.parse_bytes(text) == num_bytes


# ------------------------------------------------------------------ products


def test_products_as_measured(measured: Measured) -> None:
    assert measured.gemm_flops(512, 512, 512, "fp32") == 200e9
    assert measured.gemm_flops(64, 64, 64, "bf16") == 1.5e12
    assert measured.gemm_peak("fp32") == 200e9
    assert measured.gemm_peak("fp16") is None and measured.gemm_flops(8, 8, 8, "fp16") is None


def test_beyond_all_measured_products_the_outermost_counts(measured: Measured) -> None:
    assert measured.gemm_flops(4096, 4096, 4096, "fp32") == 200e9
    assert measured.gemm_flops(1, 1, 1, "fp32") == 100e9
    half = measured.gemm_flops(4096, 64, 512, "fp32")
    assert half == measured.gemm_flops(512, 64, 512, "fp32")


def test_huge_neighbours_are_told_apart_or_equal() -> None:
    facts = made(gemm=[gemm(10**17, 9, 9, 1e9), gemm(10**17 + 2, 9, 9, 2e9)])
    assert facts.gemm_flops(10**17 + 1, 9, 9, "fp32") in (1e9, 2e9)


sizes = st.integers(1, 1 << 20)
shapes = st.tuples(sizes, sizes, sizes)
speeds = st.floats(1e6, 1e16)


@given(st.dictionaries(shapes, speeds, min_size=1, max_size=12), shapes, st.randoms())
def test_products_between_are_exact_at_points_and_within_bounds(seen, query, random) -> None:
    entries = [gemm(*shape, speed) for shape, speed in seen.items()]
    facts = made(gemm=entries)
    for entry in facts.gemm:
        assert facts.gemm_flops(entry.m, entry.n, entry.k, "fp32") == entry.per_second
    between = facts.gemm_flops(*query, "fp32")
    assert between is not None
    assert min(g.per_second for g in facts.gemm) <= between <= facts.gemm_peak("fp32")
    random.shuffle(entries)
    again = made(gemm=entries).gemm_flops(*query, "fp32")
    assert again is not None and math.isclose(again, between, rel_tol=1e-9)


@given(speeds, speeds, st.integers(2, 20))
def test_products_between_two_go_from_one_to_the_other(small, large, doublings) -> None:
    low, high = sorted((small, large))
    top = 1 << doublings
    facts = made(gemm=[gemm(1, 1, 1, low), gemm(top, top, top, high)])
    walk = [facts.gemm_flops(1 << i, 1 << i, 1 << i, "fp32") for i in range(doublings + 1)]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(walk))


def test_a_near_product_outweighs_many_far_ones() -> None:
    far = [gemm(1, 1, k, 1e9) for k in range(1, 200)]
    facts = made(gemm=[*far, gemm(4096, 4096, 4096, 1e12)])
    near = facts.gemm_flops(4096, 4096, 2048, "fp32")
    assert near is not None and near > 0.9e12


# ------------------------------------------------------------------ times


def test_times_as_measured(measured: Measured) -> None:
    assert measured.collective_seconds("all_reduce", 2, 4096) == 100e-6
    assert measured.collective_seconds("all_reduce", 2, 1 << 20) == 1.1e-3
    assert measured.collective_seconds("all_reduce", 4, 4096) is None
    assert measured.collective_seconds("all_gather", 2, 4096) is None
    assert measured.link_seconds("host-to-device", 1 << 20) == 1e-3
    assert measured.link_seconds("device-to-host", 1 << 20) is None
    assert measured.memory_bytes_per_second == 14e9
    assert made().memory_bytes_per_second is None


def test_beyond_the_largest_message_latency_and_bandwidth_count(measured: Measured) -> None:
    # 100 us of latency and 1 ms a MiB.
    found = measured.collective_seconds("all_reduce", 2, 4 << 20)
    assert found is not None and math.isclose(found, 100e-6 + 4e-3)
    assert measured.collective_seconds("all_reduce", 2, 1) == 100e-6
    single = measured.link_seconds("host-to-device", 3 << 20)
    assert single is not None and math.isclose(single, 3e-3)


times = st.floats(1e-6, 1e3)
messages = st.dictionaries(st.integers(4, 1 << 34), times, min_size=1, max_size=8)


@given(messages, st.floats(1, 1e13))
def test_times_are_exact_at_points_and_between_neighbours(seen, num_bytes) -> None:
    facts = made(collective=[message(size, seconds) for size, seconds in seen.items()])
    known = {}
    for one in facts.collective:
        known[units.parse_bytes(one.size)] = units.parse_seconds(one.seconds)
    for size, seconds in known.items():
        assert facts.collective_seconds("all_reduce", 2, size) == seconds
    found = facts.collective_seconds("all_reduce", 2, num_bytes)
    assert found is not None and found > 0 and math.isfinite(found)
    if min(known) < num_bytes < max(known):
        below = known[max(size for size in known if size <= num_bytes)]
        above = known[min(size for size in known if size >= num_bytes)]
        slack = 1 + 1e-9
        assert min(below, above) / slack <= found <= max(below, above) * slack


@given(messages, st.lists(st.floats(1, 1e13), min_size=2, max_size=6))
def test_larger_messages_take_longer_where_the_measured_ones_do(seen, asked) -> None:
    ordered = zip(sorted(seen), sorted(seen.values()), strict=True)
    facts = made(collective=[message(size, seconds) for size, seconds in ordered])
    found = [facts.collective_seconds("all_reduce", 2, num_bytes) for num_bytes in sorted(asked)]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(found))
