"""Scenarios: loading, flags, changes in words, and whatever else stands in a file."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure.scenario_cases import FLEET, ORDERS, SCENARIO, SMALL, START, files
from tests.pure.test_strict_anything import anything, paths

from atoll import strict
from atoll.cli import main
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.planning import whatif
from atoll.planning.calendar import WHICH, stock_of
from atoll.planning.scenario.change import changed
from atoll.planning.scenario.file import ScenarioFile, Side, load
from atoll.planning.scenario.study import study
from atoll.planning.whatif import alike


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return files(tmp_path_factory.mktemp("small"))


# ------------------------------------------------------------------ files


def test_a_folder_or_its_file_loads(folder) -> None:
    loaded = load(folder)
    assert load(folder / "scenario.toml").told == loaded.told
    assert loaded.start == START and len(loaded.recipes) == 1 and loaded.offers is None
    count = loaded.told.shortfall[0].deliveries[0].count
    assert (count.low, count.mid, count.high) == (24, 24, 24)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "A', 'tilte = "A', 'nearest: title'),
        ("from = 2024-07-01\n", "", "from: this key is missing"),
        ("from = 2024-07-01\n", "from = 3024-07-01\n", "no day of our time"),
        ("from = 2024-07-01\n", "from = 7\n", "date"),
        ('fleet = "fleet.toml"', 'fleet = "fleets.toml"', "there is no such file"),
        ('recipe = "recipe.toml"', 'recipe = "."', "model[0].recipe"),
        ('label = "dense"\n', 'label = "dense"\nrecipes = 3\n', "model[0].recipes"),
        ('headquarters = "CN"', 'headquarters = "XX"', "headquarters"),
        ('confidence = "low"', 'confidence = "lo"', 'nearest: "low"'),
        ('name = "no east"', 'name = "more"', "another what_if of this name"),
        ('change = "+16 west from 2024-07-03"\n', "", "a question changes something"),
        ("date = 2024-07-01, count = 24", "date = 1024-07-01, count = 24", "no day of our time"),
        ("count = 24", "count = -24", "count from 0 up"),
        ("count = 24", "count = true", "shortfall[0].deliveries[0].count"),
        ('name = "small"', 'name = "a b"', "name"),
        ('name = "small"', 'schema = 9\nname = "small"', "newer Atoll"),
        ("[[model]]", "[[models]]", "nearest: model"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_message(tmp_path, old, new, said) -> None:
    assert old in SCENARIO
    with pytest.raises(InputError, match=re.escape(said)):
        load(files(tmp_path, SCENARIO.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("+16 west from 2024-07-03", "+16 wets from 2024-07-03", "what_if[0].change"),
        ("+16 west from 2024-07-03", "+16 west from 2024-07-33", "no date"),
        ("+16 west from 2024-07-03", "+16 west from 2924-07-03", "no day of our time"),
        ("+16 west from 2024-07-03", "more of it", "no change of a fleet"),
        ("50 % of west", "150 % of west", "no part of something"),
        ("50 % of west", "no more b200", "the fleet has no b200"),
        ('given = "without east"', 'given = "without best"', "shortfall[1].given"),
        ('{ island = "west", date = 2024-07-01, count = 24 }',
         '{ island = "wets", date = 2024-07-01, count = 24 }', "nearest: \"west\""),
        ('change = "50 % of west"', 'without_limits = ["makers"]', "is no limit"),
    ],
)  # fmt: skip
def test_a_question_about_what_is_not_there_is_one_message(
    capsys, tmp_path, old, new, said
) -> None:
    assert old in SCENARIO
    path = files(tmp_path, SCENARIO.replace(old, new, 1))
    report = tmp_path / "report.html"
    assert main(["scenario", str(path), "--html", str(report), "--quiet"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and "scenario.toml" in shown.err
    assert not shown.out and not report.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["nowhere"], "there is no such file"),
        (["FOLDER", "--html", "nowhere/report.html"], "the folder nowhere does not exist"),
        (["FOLDER", "--html", "FOLDER"], "is a folder"),
        (["FOLDER", "--hq", "CN"], "is an option of --rules"),
    ],
)
def test_wrong_flags_end_before_anything_is_planned(capsys, folder, flags, said) -> None:
    assert main(["scenario", *(flag.replace("FOLDER", str(folder)) for flag in flags)]) == 2
    assert said in capsys.readouterr().err


def test_a_goal_needs_its_day(tmp_path) -> None:
    wrong = SCENARIO.replace("[[model]]", ORDERS.replace("by = 2025-01-01\n", "") + "[[model]]", 1)
    with pytest.raises(InputError, match=r"orders\.by"):
        load(files(tmp_path, wrong))


def test_a_day_outside_the_offers_names_the_scenario(tmp_path) -> None:
    wrong = SCENARIO.replace("[[model]]", ORDERS.replace("2025-01-01", "2031-01-01") + "[[model]]")
    with pytest.raises(InputError, match=r"scenario\.toml: orders\.by"):
        study(load(files(tmp_path, wrong)), draws=0)


# ------------------------------------------------------------------ changes

DAYS = st.dates(date(2024, 6, 20), date(2024, 8, 1))
LESS = st.one_of(
    st.builds("no more west from {}".format, DAYS),
    st.builds("without west from {}".format, DAYS),
    st.builds("without h20 from {}".format, DAYS),
    st.builds("-{} west from {}".format, st.integers(1, 60), DAYS),
    st.builds("{} % of west".format, st.integers(0, 100)),
)
COUNTS = st.lists(st.integers(0, 40), min_size=3, max_size=3).map(sorted)


@st.composite
def fleets(draw) -> Fleet:
    """Deliveries and withdrawals as they come; never more taken than there is by mid."""
    found = Fleet.from_dict(tomllib.loads(FLEET))
    changes = {}
    for table in ("delivery", "withdrawal"):
        changes[table] = [
            {
                "date": draw(DAYS), "island": draw(st.sampled_from(["west", "east"])),
                "count": dict(zip(("low", "mid", "high"), draw(COUNTS), strict=True)),
            }
            for _ in range(draw(st.integers(0, 3)))
        ]  # fmt: skip
    islands = [one.model_copy(update={"chips_per_node": 1}) for one in found.island]
    parsed = Fleet.from_dict({"island": [{"name": "west"}, {"name": "east"}], **changes})
    update = {
        "island": [one.model_copy(update={"nodes": 9}) for one in islands],
        "delivery": parsed.delivery, "withdrawal": parsed.withdrawal,
    }  # fmt: skip
    return whatif.within_stock(found.model_copy(update=update))


def stocks(fleet: Fleet, days: list[date]) -> list[dict[str, int]]:
    return [stock_of(fleet, day, which) for day in days for which in WHICH]


@given(fleets(), LESS)
def test_what_is_taken_away_leaves_no_island_more_on_any_day(fleet, less) -> None:
    after = whatif.changed(fleet, less, start=START)
    days = sorted({START, *fleet.change_days(START), *after.change_days(START)})
    for before, now in zip(stocks(fleet, days), stocks(after, days), strict=True):
        assert all(now.get(name, 0) <= before.get(name, 0) for name in ("west", "east"))


@given(fleets(), st.integers(1, 60), DAYS)
def test_more_chips_are_more_on_every_day(fleet, number, day) -> None:
    after = whatif.changed(fleet, f"+{number} west from {day}", start=START)
    days = sorted({START, *fleet.change_days(START), *after.change_days(START)})
    for before, now in zip(stocks(fleet, days), stocks(after, days), strict=True):
        assert all(now.get(name, 0) >= before.get(name, 0) for name in ("west", "east"))


def test_a_part_by_hand() -> None:
    after = whatif.changed(Fleet.from_dict(tomllib.loads(FLEET)), "30 % of west", start=START)
    assert [one.count.mid for one in after.delivery] == [4, 4]
    assert [one.count.high for one in after.withdrawal] == [5]
    assert after.withdrawal[0].count.mid == 3


def test_fleets_get_the_islands_of_all(folder) -> None:
    scenario = load(folder)
    sides = [side for one in scenario.told.what_if for side in one.sides()]
    made = alike([changed(scenario, side)[0] for side in sides])
    assert {tuple(one.name for one in fleet.island) for fleet in made} == {("west", "east")}
    unlike = scenario.fleet.model_copy(
        update={"island": [one.model_copy(update={"chip": "h100-sxm-80gb"}) for one in
                           scenario.fleet.island]}
    )  # fmt: skip
    assert alike([scenario.fleet, unlike]) == [scenario.fleet, unlike]


PARTS = st.lists(
    st.sampled_from(["+10", "-3", "no more", "without", "late", "by", "from", "at", "of", "%", "30",
                     "west", "h20", "b200", "2024-07-05", "9", "60 d", ";", "home", "x", ""]),
    max_size=7,
).map(" ".join) | st.text(max_size=20)  # fmt: skip


@given(PARTS)
def test_any_words_are_a_change_or_one_error(words) -> None:
    try:
        after = changed(SMALL, Side(changes=(("change", words),)))[0]
    except InputError as fault:
        assert fault.key == "change"
    else:
        assert after.island


@given(st.data())
def test_any_table_is_a_scenario_or_one_error(data) -> None:
    """One place of the file holds anything."""
    whole = tomllib.loads(SCENARIO.replace("[[model]]", ORDERS + "[[model]]", 1))
    path = data.draw(st.sampled_from(sorted(paths(whole), key=repr)))
    here = whole
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = data.draw(anything)
    try:
        strict.validate(ScenarioFile, whole, file="scenario.toml")
    except InputError as fault:
        assert fault.file == "scenario.toml"
