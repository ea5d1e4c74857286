"""`atoll chips`: the table, one chip with its sources, a file of one's own, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from atoll import facts
from atoll.cli import main

MINE = """
name = "lab-card"
backend = "here"
description = "the cards of our lab"
node_chips = 4
source = "our rack plan"
[memory]
size = "64 GB"
bandwidth = "1.2 TB/s"
source = "data sheet of 2024-05"
[flops]
bf16 = { low = "180 TFLOP/s", mid = "200 TFLOP/s", high = "220 TFLOP/s" }
source = "data sheet and a bench of ours"
[price]
low = 9000
high = 11000
source = "an offer"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "lab-card.toml"
    path.write_text(MINE)
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["chips", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    output = printed(capsys, *arguments, "--json")
    assert output.count("\n") == 1
    found = json.loads(output)
    assert isinstance(found, dict)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["chips", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= 5
    return captured.err


def test_the_table_fits_a_hundred_columns_and_holds_every_chip(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(capsys).splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line for line in lines[1 : lines.index("")]}
    assert sorted(rows) == facts.chips()
    assert rows["h20"].split()[1:] == [
        *("NVIDIA", "2024", "148", "96", "GB", "4", "TB/s", "450", "GB/s", "8", "400", "W", "high")
    ]
    assert "~314" in rows["mlu590"] and "~80 GB" in rows["mlu590"]
    assert rows["cpu"].split()[1:] == ["-"] * 9


def test_a_chip_is_shown_with_the_source_beside_each_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = printed(capsys, "ascend-910b2")
    lines = output.splitlines()
    assert max(map(len, lines)) <= 100
    row = next(line for line in lines if line.startswith("flops.fp32"))
    assert "88 TFLOP/s" in row and "354e12 in ByteDance-Seed/VeOmni" in row
    row = next(line for line in lines if line.startswith("measured.bf16"))
    assert "304.3 TFLOP/s (304.3 to 328)" in row
    chip = facts.chip("ascend-910b2")
    words = " ".join(output.split())
    for number in chip.numbers():
        assert any(line.startswith(f"{number.key} ") for line in lines), number.key
        assert number.source.split()[0] in words
    assert all(" ".join(note.split()) in words for note in chip.notes)
    assert "mesh" in output and "Ascend 910B," in output


@pytest.mark.parametrize("name", facts.chips())
def test_every_chip_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys, name)
    assert output.startswith(f"{name}: ")
    assert ("no numbers are known" in output) == (facts.chip(name).numbers() == [])
    wide = [line for line in output.splitlines() if len(line) > 100]
    assert all("http" in line for line in wide), "only an address may stand out"


def test_a_name_of_a_published_table_finds_the_chip(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "a100-80gb") == printed(capsys, "a100-sxm-80gb")


def test_a_chip_as_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "ascend-910c")
    assert (found["name"], found["devices"], found["confidence"]) == ("ascend-910c", 2, "medium")
    speed = found["facts"]["flops.bf16"]
    assert (speed["low"], speed["mid"], speed["high"]) == (707.6e12, 752e12, 800e12)
    assert (speed["unit"], speed["basis"]) == ("FLOP/s", "spec")
    assert "CloudMatrix384" in speed["source"]
    assert found["facts"]["network.bandwidth"]["mid"] == 50e9
    assert as_json(capsys, "h800")["facts"]["link.bandwidth"]["mid"] == 200e9
    assert as_json(capsys, "a100-40gb")["facts"]["measured.bf16"]["basis"] == "measured"


def test_all_chips_as_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys)
    assert sorted(chip["name"] for chip in found["chips"]) == facts.chips()
    for chip in found["chips"]:
        for key, number in chip["facts"].items():
            assert number["source"] and number["basis"] in ("spec", "measured"), key
    assert as_json(capsys, "h20") in found["chips"]


def test_the_documented_keys_are_the_printed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| `atoll chips`"))
    found = as_json(capsys, "h20")
    for key in (*found, *found["facts"]["power"]):
        assert f"`{key}`" in row


def test_a_file_of_ones_own(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys, str(mine))
    assert "200 TFLOP/s (180 to 220)" in output
    assert "9,000 to 11,000 USD" in output and "an offer" in output
    found = as_json(capsys, str(mine))
    assert found["facts"]["memory.size"]["mid"] == 64e9
    assert found["facts"]["price"]["mid"] == 10000
    assert found["vendor"] is None


def test_the_documented_file_is_the_one_that_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "chips.md").read_text(encoding="utf-8")
    example = page.split("```toml\n")[1].split("```")[0]
    assert MINE.split()[:12] == example.split()[:12]


def test_an_unknown_chip_ends_in_2_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert '"h800"' in refused(capsys, "h80")
    assert '"ascend-910b2"' in refused(capsys, "ascend 910b22")
    assert "nearest" not in refused(capsys, "zzzzzzzz", "--json")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("node_chips", "node_chip", "nearest: node_chips"),
        ('bandwidth = "1.2 TB/s"', 'bandwith = "1.2 TB/s"', "nearest: memory.bandwidth"),
        ('"64 GB"', '"64"', "needs a unit"),
        ('"64 GB"', "64", "needs a unit"),
        ('source = "data sheet of 2024-05"\n', "", "memory.source: this key is missing"),
        ('source = "our rack plan"\n', "", "source: a number needs a source"),
        ('source = "an offer"\n', "", "price.source: this key is missing"),
        ('mid = "200 TFLOP/s"', 'mid = "230 TFLOP/s"', "low <= mid <= high"),
        ('mid = "200 TFLOP/s"', 'mid = "200 TFLOPS"', "flops.bf16.mid"),
        ('backend = "here"', 'backend = "hier"', 'nearest: "here"'),
        ("low = 9000", "low = 90000", "low <= high"),
    ],
)
def test_a_wrong_file_ends_in_2_and_is_named(
    mine: Path, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in MINE
    mine.write_text(MINE.replace(old, new, 1))
    message = refused(capsys, str(mine))
    assert message.startswith(f"atoll: {mine}: ")
    assert said in message


def test_a_missing_file_ends_in_2(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, str(mine.with_name("lab-cards.toml")))
    assert "there is no such file" in message and f"nearest: {mine}" in message


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys, "--help")
    assert "Example:" in output and "    atoll chips h20" in output and "--json" in output
    assert all(len(line) <= 96 for line in output.splitlines())
