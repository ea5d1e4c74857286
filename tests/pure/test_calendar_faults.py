"""What may be wrong with a fleet over time: one message that names file, key, value and a way out,
exit code 2, and nothing written.
"""

from pathlib import Path

import pytest
from tests.pure.test_calendar import FLEET, files

from atoll.cli import main

TEXT = (
    FLEET
    + """
[[withdrawal]]
date = 2024-07-20
island = "a"
count = { low = 0, mid = 8, high = 16 }
"""
)
COUNT = "count = { low = 0, mid = 32, high = 64 }"

FLEETS = [
    # (what stands in the file, what is written instead, parts of the message)
    ("low = 0, mid = 32", "low = -5, mid = 32", ["delivery[0].count.low = -5", "no number of"]),
    ("mid = 32", "mid = 1e30", ["delivery[0].count.mid = 1e+30", "whole number"]),
    ("mid = 32", "mid = 3.5", ["delivery[0].count.mid = 3.5", "whole number"]),
    ("mid = 32", 'mid = "many"', ["delivery[0].count.mid", "whole number"]),
    (COUNT, "count = 32", ["delivery[0].count = 32", "no range", "{ low = 32, mid = 32, high"]),
    (COUNT, "count = { mid = 32 }", ["delivery[0].count.low", "missing"]),
    (COUNT, "counts = 32", ["delivery[0].counts = 32", "nearest: delivery[0].count"]),
    ("mid = 8, high = 16", "mid = 800, high = 900", ["withdrawal[0].count = 800", "at most 64"]),
    ("2024-07-11", '"2024-02-30"', ["delivery[0].date", "is no date"]),
    ("2024-07-11", "2024-07-11T10:00:00", ["delivery[0].date", "such as 2024-07-01"]),
    ("2024-07-11", "20240711", ["delivery[0].date", "such as 2024-07-01"]),
    ("2024-07-11", "3000-01-01", ["delivery[0].date", "2100-12-31"]),
    ('island = "a"', 'island = "b"', ["delivery[0].island", "known islands: a"]),
    ("[[delivery]]", "[[deliveries]]", ["there is no such key", "nearest: delivery"]),
    ("[[delivery]]", "[delivery]", ["must be a list"]),
    (COUNT, "probability = 0\n" + COUNT, ["delivery[0].probability = 0", "greater than 0"]),
    (COUNT, "probability = nan\n" + COUNT, ["delivery[0].probability = nan", "finite"]),
    (COUNT, 'price = "120000 CNY"\n' + COUNT, ["delivery[0].price", "counts in US dollars"]),
    (COUNT, "price = inf\n" + COUNT, ["delivery[0].price = inf", "finite"]),
    ("nodes = 4", "nodes = 99999999999999999999", ["island[0].nodes", "at most"]),
    (
        "nodes = 4",
        "nodes = 4\nlease = { until = 2024-07-01 }",
        ["lease.until", "start, end, price"],
    ),
    ("nodes = 4", 'nodes = 4\nlease = { price = "2.5 USD/h" }', ["lease.price", "a number"]),
    ("[[island]]", '[costs]\ncurrency = "EUR"\n[[island]]', ["costs.currency", "years"]),
    ("[[island]]", '[[site]]\nname = "x"\npower = "lots"\n[[island]]', ["site[0].power", "30 MW"]),
    ("[[island]]", '[failures]\nmode = "some"\n[[island]]', ["failures.mode", '"published"']),
    ("[[island]]", '[failures]\nrestart = "-3 min"\n[[island]]', ["failures.restart", "negative"]),
]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    before = sorted(folder.rglob("*"))
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert sorted(folder.rglob("*")) == before
    return captured.err


@pytest.mark.parametrize(("old", "new", "said"), FLEETS)
def test_a_fleet_that_cannot_be(capsys, tmp_path, old, new, said) -> None:
    paths = files(tmp_path, TEXT.replace(old, new, 1))
    page = tmp_path / "plan.html"
    told = refused(capsys, tmp_path, *paths, "--from", "2024-07-01", "--report", str(page))
    assert told.count("atoll: ") == 1 and "fleet.toml" in told
    for part in said:
        assert part in told, told


FLAGS = [
    (["--from", "2024-7-1"], ["--from", "is no date", "2024-07-01"]),
    (["--from", ""], ["--from", "is no date"]),
    (["--from", "2024-07-01", "--draws", "-1"], ["--draws"]),
    (["--from", "2024-07-01", "--seed", "-1"], ["--seed"]),
    (["--from", "2024-07-01", "--by", "2024-06-01"], ["--by", "a day after 2024-07-01"]),
    (["--from", "2024-07-01", "--by", "2024-08-01", "--executor", "atoll"], ["fp32"]),
    (["--from", "2024-07-01", "--what-if", ""], ["--what-if", "no change of a fleet"]),
    (["--from", "2024-07-01", "--what-if", "+5 a from 9999-99-99"], ["--what-if", "no date"]),
    (["--from", "2024-07-01", "--what-if", "+5 a; without b"], ["--what-if", "has no b"]),
]


@pytest.mark.parametrize(("flags", "said"), FLAGS)
def test_options_that_cannot_be(capsys, tmp_path, flags, said) -> None:
    told = refused(capsys, tmp_path, *files(tmp_path, TEXT), *flags)
    for part in said:
        assert part in told, told


def test_the_first_question_has_no_day_to_be_done_by(capsys, tmp_path) -> None:
    _, fleet = files(tmp_path, TEXT)
    flags = ["--from", "2024-07-01", "--by", "2024-08-01"]
    told = refused(capsys, tmp_path, "--what", fleet, *flags)
    assert "--by" in told and "does not go with --what" in told


OF_A_PLAN = [["--save", "p.json"], ["--report", "p.html"], ["--emit", "slurm", "--to", "x"],
             ["--set", "seed=2"], ["--days", "inf"]]  # fmt: skip


@pytest.mark.parametrize("flags", OF_A_PLAN)
def test_the_first_question_makes_no_plan(capsys, tmp_path, flags) -> None:
    _, fleet = files(tmp_path, TEXT)
    told = refused(capsys, tmp_path, "--what", fleet, *flags)
    assert flags[0] in told


def test_a_file_is_not_written_over_another_of_the_question(capsys, tmp_path) -> None:
    recipe, fleet = files(tmp_path, TEXT)
    page = str(tmp_path / "p")
    for flags, why in (
        (["--save", recipe], "is the recipe"),
        (["--report", fleet], "is the fleet"),
        (["--save", page, "--report", page], "is the file of --save too"),
    ):
        assert why in refused(capsys, tmp_path, recipe, fleet, *flags)


def test_a_name_in_other_letters_is_told_in_words(capsys, tmp_path) -> None:
    paths = files(tmp_path, TEXT.replace('name = "a"', 'name = "\u6607\u817e"', 1))
    told = refused(capsys, tmp_path, *paths)
    assert "\u6607\u817e" in told and "letters from A to Z" in told and "^" not in told


def test_deliveries_that_are_unlikely_are_no_day_to_begin_on(capsys, tmp_path) -> None:
    """To name the day of one would be refused again."""
    plain = "count = { low = 8, mid = 8, high = 8 }"
    text = f"""
[[island]]
name = "a"
chip = "h20"
nodes = 0
chips_per_node = 8
network = {{ bandwidth = "200 Gb/s" }}
[[delivery]]
date = 2024-08-01
island = "a"
probability = 0.3
{plain}
"""
    told = refused(capsys, tmp_path, *files(tmp_path, text), "--from", "2024-07-01")
    assert "as likely as not" in told
