"""Scenarios: the laws of more and less, orders, the report, the command, what ships."""

import json
import re
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

import pytest
from tests.pure.scenario_cases import FLEET, OFFERS, ORDERS, SCENARIO, files
from tests.pure.test_plan_command import RECIPE

from atoll.cli import main
from atoll.facts.rules import rule_set
from atoll.planning.calendar import DAY, WHICH, stock_of
from atoll.planning.orders import by_budget
from atoll.planning.placing import Chosen
from atoll.planning.planner import Asked
from atoll.planning.scenario import text
from atoll.planning.scenario.change import changed
from atoll.planning.scenario.file import Scenario, load
from atoll.planning.scenario.page import report_of
from atoll.planning.scenario.study import Study, by_hand, study


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
