"""Scenarios: loading, changes, the laws of more and less, orders, the report, the command."""

import json
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure.test_plan_command import RECIPE
from tests.pure.test_strict_anything import anything, paths

from atoll import strict
from atoll.cli import main
from atoll.errors import InputError
from atoll.facts.rules import rule_set
from atoll.fleet import Fleet
from atoll.planning import whatif
from atoll.planning.calendar import DAY, WHICH, stock_of
from atoll.planning.orders import by_budget
from atoll.planning.placing import Chosen
from atoll.planning.planner import Asked
from atoll.planning.scenario import text
from atoll.planning.scenario.change import alike, changed
from atoll.planning.scenario.file import Scenario, ScenarioFile, Side, load
from atoll.planning.scenario.page import report_of
from atoll.planning.scenario.study import Study, by_hand, study

START = date(2024, 7, 1)

FLEET = """
[[site]]
name = "home"
country = "CN"
[[island]]
name = "west"
site = "home"
chip = "ascend-910b2"
nodes = 0
chips_per_node = 8
[[island]]
name = "east"
site = "home"
chip = "h20"
nodes = 2
chips_per_node = 8
[[delivery]]
date = 2024-07-01
island = "west"
count = { low = 8, mid = 16, high = 24 }
[[delivery]]
date = 2024-07-11
island = "west"
count = { low = 0, mid = 16, high = 32 }
[[withdrawal]]
date = 2024-07-16
island = "west"
count = { low = 0, mid = 8, high = 16 }
"""

OFFERS = """
start = 2024-07-01
months = 12
currency = "CNY"
[[exchange_rate]]
from = "USD"
to = "CNY"
rate = 7.0
[[budget]]
name = "home"
amount = "10 M CNY"
place = "CN"
[[budget]]
name = "rent"
amount = "1 M USD"
place = "CN"
[[limit]]
name = "makers"
sellers = ["one"]
at_least = 0.5
[[offer]]
name = "nine"
chip = "ascend-910b2"
seller = "one"
site = "home"
price = "100000 CNY"
stock = 64
a_month = 16
lead = "30 d"
lot = 8
[[offer]]
name = "twenty"
chip = "h20"
seller = "two"
site = "home"
price = "90000 CNY"
stock = 64
a_month = 8
lot = 8
[[offer]]
name = "hundred"
chip = "h100-sxm-80gb"
seller = "three"
site = "home"
kind = "lease"
price = "2 USD/h"
stock = 16
term = "60 d"
lot = 8
"""

SCENARIO = """
name = "small"
title = "A small one"
words = "Few chips, some late."
from = 2024-07-01
fleet = "fleet.toml"
headquarters = "CN"
[[model]]
label = "dense"
recipe = "recipe.toml"
[[shortfall]]
name = "all chips"
words = "As asked for."
deliveries = [
  { island = "west", date = 2024-07-01, count = 24 },
  { island = "west", date = 2024-07-11, count = { low = 32, mid = 32, high = 32 } },
]
[[shortfall]]
name = "west alone"
words = "Without the others."
given = "without east"
deliveries = [{ island = "west", date = 2024-07-01, count = 64 }]
[[what_if]]
name = "more"
words = "More of west."
change = "+16 west from 2024-07-03"
[[what_if]]
name = "no more west"
words = "What is there stays."
change = "no more 910B from 2024-07-05"
[[what_if]]
name = "no east"
words = "None at all."
change = "without h20 from 2024-07-08"
[[what_if]]
name = "a half of west"
words = "The rest serves."
change = "50 % of west"
[[what_if]]
name = "nothing left"
words = "All is away before the end."
change = "without h20 from 2024-07-08; without west from 2024-07-08"
[[fact]]
what = "chips asked for"
value = "56"
source = "nobody"
confidence = "low"
used = "as asked"
"""

ORDERS = """
[orders]
offers = "offers.toml"
recipe = "recipe.toml"
goal = "largest"
by = 2025-01-01
"""


SMALL = Scenario(
    file=Path("scenario.toml"), told=strict.validate(ScenarioFile, tomllib.loads(SCENARIO)),
    fleet=Fleet.from_dict(tomllib.loads(FLEET)), recipes=(), offers=None, order_recipe=None,
)  # fmt: skip


def files(folder: Path, scenario: str = SCENARIO, **others: str) -> Path:
    """A folder of a scenario; `others` are texts by the stem of their file."""
    texts = {"fleet": FLEET, "offers": OFFERS, "scenario": scenario, **others}
    texts.setdefault("recipe", RECIPE.replace("steps = 300", "steps = 1_500_000"))
    for name, words in texts.items():
        (folder / f"{name}.toml").write_text(words, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return files(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small(folder) -> Study:
    return study(load(folder), draws=50)


@pytest.fixture(scope="module")
def bought(tmp_path_factory) -> Study:
    """With orders, and fewer questions: each is a solve."""
    keep = SCENARIO[: SCENARIO.index("[[what_if]]")].replace("[[shortfall]]", "[[what_if]]")
    limit = '[[what_if]]\nname = "free"\nwords = "No limit."\nwithout_limits = ["makers"]\n'
    none = '[[what_if]]\nname = "none"\nwords = "None."\nchange = "no more h20 from 2024-08-15"\n'
    whole = ORDERS + keep[: keep.index("[[what_if]]")] + limit + none
    top, _, tables = whole.partition("[orders]")
    name = tables.index('name = "small"')
    whole = top + tables[name : tables.index("[[model]]")] + "[orders]" + tables[:name]
    whole += tables[tables.index("[[model]]") :]
    return study(load(files(tmp_path_factory.mktemp("bought"), whole)), draws=0)


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


# ------------------------------------------------------------------ answers


def test_more_is_never_later_and_less_never_sooner(small) -> None:
    signs = {"more": -1, "no more west": 1, "no east": 1, "a half of west": 1}
    moved = {one.question.name: one for one in small.of_kind("what_if")}
    for name, sign in signs.items():
        days = [moved[name].days(0, which) for which in WHICH]
        assert all(one is None or sign * one >= 0 for one in days), name
        assert moved[name].days(0) != 0, name
    least, mid, most = moved["more"].range(0)
    assert least <= mid <= most < 0
    assert moved["nothing left"].days(0) is None
    assert moved["nothing left"].afters[0].mid.done is None


def test_a_shortfall_costs_days(small) -> None:
    for one in small.of_kind("shortfall"):
        assert one.days(0) < 0, one.question.name
    alone = small.of_kind("shortfall")[1]
    assert "east" not in alone.befores[0].mid.periods[0].rated.chips
    (row, other) = text.effect_rows(small, "shortfall")
    assert row[1].startswith(text.spanned(tuple(-x for x in small.effects[0].range(0)[::-1])))
    assert other[0] == "west alone"


def test_the_planner_is_near_a_reckoning_by_hand(small) -> None:
    """Of a model of 135 M parameters 6 N D misses attention and head, so that the hand is soon."""
    (calendar,) = small.calendars
    hand = by_hand(calendar)
    assert 0.2 < hand / calendar.mid.done < 1.5
    first = calendar.mid.periods[0]
    peak = sum(
        chips * {"ascend-910b2": 353.8e12, "h20": 148e12}[chip]
        for chip, chips in first.working().items()
    )
    recipe = calendar.rates.recipe
    rate = 0.38 * 0.9 * peak / (6 * recipe.model.num_parameters())
    if hand <= first.end:
        assert hand == pytest.approx(calendar.tokens / rate, rel=1e-6)
    else:
        assert hand > first.end >= 0.99 * first.tokens / rate * 0.2


def test_the_same_seed_the_same_answers(small, folder) -> None:
    again = study(load(folder), draws=50)
    assert text.as_json(again) == text.as_json(small)
    other = study(load(folder), draws=50, seed=2)
    assert other.calendars[0].draws != small.calendars[0].draws
    assert other.calendars[0].done_by() == small.calendars[0].done_by()


def test_rules_keep_chips_out(tmp_path) -> None:
    words = SCENARIO[: SCENARIO.index("[[shortfall]]")]
    stock = FLEET.replace('country = "CN"', 'country = "CN"\nmode = "buy"')
    scenario = load(files(tmp_path, words, fleet=stock.replace('"h20"', '"h100-sxm-80gb"')))
    chosen = Chosen(rules=rule_set([]), headquarters="CN")
    ruled = study(scenario, Asked(rules=chosen), draws=0)
    free = study(scenario, draws=0)
    notes = " ".join(text.notes(ruled))
    assert "dense: left out: east" in notes and "refused by rule" in notes
    assert ruled.calendars[0].mid.done > free.calendars[0].mid.done


# ------------------------------------------------------------------ orders


def test_orders_become_chips_on_their_days(bought) -> None:
    told = bought.base.told
    assert told is not None and told.answer.orders
    fleet = bought.calendars[0].rates.fleet
    names = [one.name for one in fleet.island]
    assert names == ["west", "east", "nine", "twenty", "hundred"]
    for offer in ("nine", "twenty", "hundred"):
        mine = [one for one in told.answer.orders if one.column.offer.name == offer]
        came = [one for one in fleet.delivery if one.island == offer]
        assert sum(one.count.mid for one in came) == sum(one.chips for one in mine)
        left = [one for one in fleet.withdrawal if one.island == offer]
        assert bool(left) == (offer == "hundred" and bool(mine))
    day = date(2024, 10, 1)
    there = sum(
        one.chips for one in told.answer.orders
        if one.column.offer.name == "nine" and one.column.arrives <= day.toordinal()
    )  # fmt: skip
    assert stock_of(fleet, day, "mid").get("nine", 0) == there > 0


def test_money_by_seller_and_month_adds_up(bought) -> None:
    told = bought.base.told
    spent = {name: size for name, size, _, _ in by_budget(told.answer)}
    for name, _, _, parts, shares in text.spent_by_seller(told):
        assert sum(size for _, size in parts) == pytest.approx(spent[name])
        assert shares == ([("at least 50 % for one", 0.5)] if name == "home" else [])
        assert parts[0][0] == ("one" if name == "home" else "three")
    months = text.spent_by_month(told)
    assert sum(size for _, each in months for size in each.values()) == pytest.approx(
        told.answer.cost
    )
    assert [month for month, _ in months] == sorted(month for month, _ in months)


def test_fewer_limits_compute_no_less_and_fewer_offers_no_more(bought) -> None:
    base = bought.base.told.answer.tokens
    free, none = bought.of_kind("what_if")
    assert free.after.told.answer.tokens >= base * (1 - 1e-3)
    assert none.after.told.answer.tokens <= base * (1 + 1e-3)
    last = max(one.column.ordered for one in none.after.told.answer.orders
               if one.column.offer.name == "twenty")  # fmt: skip
    assert last < date(2024, 8, 15).toordinal()
    assert text.effect_head(bought, "what_if")[-1] == "computing by 2025-01-01"


def test_orders_that_are_not_enough_say_so(tmp_path) -> None:
    poor = OFFERS.replace("10 M CNY", "1 M CNY").replace("1 M USD", "1 K USD")
    soon = ORDERS.replace("largest", "cheapest").replace("2025-01-01", "2024-08-01")
    words = SCENARIO[: SCENARIO.index("[[shortfall]]")]
    words = words.replace("[[model]]", soon + "[[model]]")
    long = RECIPE.replace("steps = 300", "steps = 150_000_000")
    found = study(load(files(tmp_path, words, offers=poor, recipe=long)), draws=0)
    assert found.base.told is None and found.base.why
    page = report_of([found])
    assert "What to buy" in page and "nothing is enough" in page
    assert text.as_json(found)["no_orders"] == found.base.why


# ------------------------------------------------------------------ the page, the command

SECTIONS = [
    "In short", "When each model is done", "Chips over time, and dense", "What the shortfall cost",
    "What would change it", "What fits where", "Figures, sources, confidence",
    "What these numbers do not say",
]  # fmt: skip


def parsed(page: str) -> ElementTree.Element:
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_page_holds_every_part_and_loads_nothing(small, bought) -> None:
    page = report_of([small, bought])
    root = parsed(page)
    titles = ["".join(one.itertext()) for one in root.iter("h2")]
    assert titles[: len(SECTIONS)] == SECTIONS
    assert "What to buy" in titles[len(SECTIONS) :]
    assert [one.text for one in root.iter("h1")] == ["A small one", "A small one"]
    words = " ".join(root.itertext())
    for said in ("It is no legal advice", "west alone", "nobody", "at least 50 % for one"):
        assert said in words
    for one in root.iter():
        assert one.tag.rpartition("}")[2] not in ("script", "link", "img", "iframe", "object")
        assert not {"src", "href", "srcset"} & set(one.attrib)
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    for width in ("wide", "narrow"):
        assert sum(one.get("class") == width for one in root.iter("svg")) >= 8


def test_a_page_escapes_what_a_file_says(tmp_path) -> None:
    nasty = '<b onclick="x">&'
    told = SCENARIO[: SCENARIO.index("[[shortfall]]")]
    told = told.replace("A small one", nasty.replace('"', '\\"'))
    page = report_of([study(load(files(tmp_path, told)), draws=0)])
    root = parsed(page)
    assert [one.text for one in root.iter("h1")] == [nasty]
    assert "onclick=" not in page.replace("onclick=&quot;", "")


def test_a_model_that_fits_nowhere_says_why(tmp_path) -> None:
    """400 B parameters on six nodes: the reason stands where a day would."""
    large = Path("examples/recipes/dense-400b.toml").read_text(encoding="utf-8")
    words = SCENARIO[: SCENARIO.index("[[shortfall]]")]
    found = study(load(files(tmp_path, words, recipe=large)), draws=20)
    (row,) = text.done_rows(found)
    assert row[4] == "never"
    ((_, lines), *_) = text.answers(found)
    assert "too many on a" in lines[0] and "never" in lines[0]
    root = parsed(report_of([found]))
    assert "too many on a" in " ".join(root.itertext())


def test_the_command_prints_and_writes(capsys, folder, tmp_path, small) -> None:
    report = tmp_path / "report.html"
    flags = ["--draws", "50", "--html", str(report), "--json"]
    assert main(["scenario", str(folder), *flags]) == 0
    shown = capsys.readouterr()
    (found,) = json.loads(shown.out)["scenarios"]
    assert found == json.loads(json.dumps(text.as_json(small)))
    done = found["models"][0]["done_by"]
    assert done["low"] <= done["mid"] <= done["high"]
    assert found["models"][0]["days"]["mid"] == pytest.approx(small.calendars[0].mid.done / DAY)
    assert found["what_if"][0]["days"]["dense"]["mid"] < 0
    assert "small: dense: 1" in shown.err or "small: dense: " in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    parsed(report.read_text(encoding="utf-8"))


def test_people_see_the_answers(capsys, folder) -> None:
    assert main(["scenario", str(folder), "--draws", "0", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert not shown.err
    for said in ("Done by, if begun on 2024-07-01", "What the shortfall cost dense", "west alone",
                 "days later (+) or sooner (-)", "what fits where", "no legal advice"):  # fmt: skip
        assert said in shown.out


# ------------------------------------------------------------------ what ships


def shipped(name: str) -> Scenario:
    return load(Path("examples/scenarios") / name)


@pytest.mark.parametrize("name", ["scarce-2024", "two-budgets-2025"])
def test_what_ships_answers_the_questions_that_were_asked(name) -> None:
    found = shipped(name)
    assert found.told.name == name
    sizes = [one.model.num_parameters() for one in found.recipes]
    assert sizes == pytest.approx([32.8e9, 104e9, 406e9, 671e9], rel=0.01)
    assert found.recipes[3].model.num_active_parameters() == pytest.approx(37.5e9, rel=0.01)
    questions = [*found.told.shortfall, *found.told.what_if]
    for question in questions:
        for side in question.sides():
            changed(found, side)
    words = " ".join(one.change for one in questions)
    assert "+10000" in words and re.search(r"(no more|without) h20 from", words)
    assert len(found.told.fact) >= 10 and {one.confidence for one in found.told.fact} == {
        "high", "medium", "low",
    }  # fmt: skip


def test_the_scarce_fleet_is_near_a_reckoning_by_hand() -> None:
    """Days of all four models on what arrived: 6 N D over chips x FLOP/s x MFU, within a third."""
    found = shipped("scarce-2024")
    told = found.told.model_copy(update={"shortfall": [], "what_if": []})
    bare = Scenario(
        file=found.file, told=told, fleet=found.fleet, recipes=found.recipes, offers=None,
        order_recipe=None,
    )  # fmt: skip
    answers = study(bare, draws=0)
    for label, one in zip(answers.labels, answers.calendars, strict=True):
        assert 0.7 < by_hand(one) / one.mid.done < 1.4, label
        for period in one.mid.periods:
            for island in period.rated.answer.islands:
                assert island.memory_used < island.memory_size
    assert answers.labels[answers.longest] == "400B dense"


def test_the_page_of_the_docs_is_true(tmp_path) -> None:
    """The file that docs/scenarios.md shows runs as it stands."""
    page = Path("docs/scenarios.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL)[1]
    examples = Path("examples").resolve().as_posix()
    (tmp_path / "scenario.toml").write_text(block.replace("../../", f"{examples}/"))
    found = study(load(tmp_path), draws=0)
    assert found.of_kind("what_if")[0].days(0) < 0
