"""Dated changes of a fleet in words: what they make of the fleet, and of the day it is done."""

import json
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.test_calendar import change, files, fleet, island, over_time, recipe  # noqa: F401

from atoll.cli import main
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.planning.calendar import calendar_of, first_plan
from atoll.planning.planner import Asked
from atoll.planning.whatif import changed, compare, shown
from atoll.recipe import Recipe

START = date(2024, 7, 1)


def two(**tables: object) -> Fleet:
    """An island of four nodes of h20 at home, and one of h100 that gets its nodes later."""
    islands = [island("a"), {**island("b", 0, "h100-sxm-80gb"), "site": "home"}]
    plain = {
        "site": [{"name": "home"}],
        "island": islands,
        "delivery": [change("2024-07-11", 0, 32, 64, "b"), change("2024-07-21", 8, 8, 8)],
        "withdrawal": [change("2024-08-01", 16, 24, 40)],
    }
    return fleet(**(plain | tables))


def chips(stock: Fleet, day: str, which="mid") -> dict[str, int]:
    try:
        found = stock.stock(date.fromisoformat(day), which=which).island
    except InputError:
        return {}
    return {one.name: one.num_chips for one in found}


# (question, day, chips on that day)
CASES = [
    ("+16 a from 2024-07-05", "2024-07-04", {"a": 32}),
    ("+16 a from 2024-07-05", "2024-07-05", {"a": 48}),
    ("+1,600 h20", "2024-07-01", {"a": 1632}),
    ("+16 H20 from 2024-07-05", "2024-07-12", {"a": 48, "b": 32}),
    ("-16 a from 2024-07-05", "2024-07-05", {"a": 16}),
    # Already 16 fewer: the file's own 24 find no more than 24.
    ("-16 a from 2024-07-05", "2024-08-02", {"b": 32}),
    ("-9999 a from 2024-07-05", "2024-07-06", {}),
    ("no more h100-sxm-80gb from 2024-07-11", "2024-07-12", {"a": 32}),
    ("no more b from 2024-07-12", "2024-07-12", {"a": 32, "b": 32}),
    ("no more a", "2024-07-22", {"a": 32, "b": 32}),
    ("without a from 2024-07-12", "2024-07-11", {"a": 32, "b": 32}),
    ("without a from 2024-07-12", "2024-07-12", {"b": 32}),
    ("without a from 2024-07-12", "2024-07-22", {"b": 32}),
    ("without b", "2024-07-12", {"a": 32}),
    ("late b by 10 d", "2024-07-20", {"a": 32}),
    ("late b by 10 d", "2024-07-21", {"a": 40, "b": 32}),
    ("+8 rtx-4090 at home from 2024-07-05", "2024-07-05", {"a": 32, "rtx-4090-1": 8}),
    # Late by a part of a day: a change holds from 0:00, so there on the next one.
    ("late b by 36 h", "2024-07-12", {"a": 32}),
    ("late b by 36 h", "2024-07-13", {"a": 32, "b": 32}),
    # 8 that were to be withdrawn before they come, late as they are, never come.
    ("-16 a from 2024-07-05; late a by 30 d", "2024-08-20", {"b": 32}),
    ("late b by 10 d; +16 a from 2024-07-05", "2024-07-12", {"a": 48}),
]


@pytest.mark.parametrize(("what", "day", "there"), CASES)
def test_a_change_by_hand(what, day, there) -> None:
    assert chips(changed(two(), what, start=START), day) == there


def test_a_lease_that_begins_later_never_does() -> None:
    stock = fleet(island=[island("a"), {**island("b"), "lease": {"start": "2024-08-01"}}])
    gone = changed(stock, "without b from 2024-07-15", start=START)
    assert [one.name for one in gone.island] == ["a"]
    later = changed(stock, "without b from 2024-08-15", start=START)
    assert chips(later, "2024-08-14") == {"a": 32, "b": 32}
    assert chips(later, "2024-08-15") == {"a": 32}


BAD = [
    ("more chips please", "is no change of a fleet"),
    ("+many a", "is not a count"),
    ("+0 a", "0 is no number of chips"),
    ("+-8 a", "a count is not negative"),
    ("+9e12 a", "is no number of chips"),
    ("+8 c", "the fleet has no c"),
    ("+8 rtx-4090", "the fleet has no rtx-4090"),
    ("+8 rtx-4090 at johor", "the fleet has no site johor"),
    ("+8 nochip at home", "there is no such chip"),
    ("+8 a from soon", "soon is no date"),
    ("+8 a from 1024-07-01", "is no day of our time"),
    ("late a by soon", "is not a time"),
    ("late a by 9999 d", "is no delay"),
    ("late a by 3600 d; late a by 3600 d; " * 4 + "late a by 3600 d", "is no day of our time"),
    ("without a; without b; without c", "the fleet has no c"),
    ("", "is no change of a fleet"),
]


@pytest.mark.parametrize(("what", "said"), BAD)
def test_what_cannot_be_understood(what, said) -> None:
    with pytest.raises(InputError) as caught:
        changed(two(), what, start=START)
    assert caught.value.key == "--what-if" and said in str(caught.value), str(caught.value)


def test_nothing_is_left() -> None:
    with pytest.raises(InputError) as caught:
        changed(fleet(island=[island(nodes=0)], delivery=[change("2024-07-11", 8, 8, 8)]),
                "no more a", start=START)  # fmt: skip
    assert "leaves no chips" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["+8 a", "-8 a", "-800 a", "no more a", "no more b", "without b", "late b by"]),
    st.integers(1, 60),
)
def test_a_changed_fleet_is_a_fleet(what, days) -> None:
    """It can be saved, read back, and followed to the end on every course."""
    day = date.fromordinal(START.toordinal() + days)
    question = f"{what} {days} d" if what.endswith("by") else f"{what} from {day}"
    other = changed(two(), question, start=START)
    assert Fleet.from_dict(json.loads(json.dumps(other.as_dict()))) == other
    for which in ("low", "mid", "high"):
        for one in other.change_days(START):
            assert all(number > 0 for number in chips(other, one.isoformat(), which).values())


def test_more_chips_come_sooner_and_fewer_later(recipe) -> None:  # noqa: F811
    stock = fleet(delivery=[change("2024-07-11", 0, 16, 16)])
    base = over_time(recipe, stock)
    whats = ["+32 a from 2024-07-05", "late a by 7 d", "no more a", "-32 a; no more a"]
    base, found = compare(whats, recipe, stock, Asked(day=START), base)
    more, late, none, gone = (one.days(base)["mid"] for one in found)
    assert more is not None and late is not None and none is not None
    assert more < 0 < late < none and gone is None
    # As a fleet file with the same delivery in it would say.
    written = fleet(delivery=[change("2024-07-11", 0, 16, 16), change("2024-07-05", 32, 32, 32)])
    assert found[0].calendar is not None
    assert found[0].calendar.mid.done == pytest.approx(over_time(recipe, written).mid.done)
    # With no delivery left, low and mid are one fleet.
    assert found[2].days(base)["high"] == pytest.approx(0.0)
    head, rows = shown(found, base, None)
    assert [row[0] for row in rows] == ["as it is", *whats] and rows[4][1]
    assert all(len(row) == len(head) for row in rows)


def test_the_object_of_questions(capsys, tmp_path) -> None:
    page = tmp_path / "plan.html"
    flags = ["--from", "2024-07-01", "--draws", "40", "--report", str(page), "--json"]
    asked = ["--what-if", "+16 a from 2024-07-05", "--what-if", "-32 a from 2024-07-05"]
    assert main(["plan", *files(tmp_path), *flags, *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    more, gone = found["what_if"]
    assert more["what"] == "+16 a from 2024-07-05" and more["deadline"] is None
    assert more["done_by"]["mid"] < found["done_by"]["mid"] and more["days"]["mid"] < 0
    assert more["p50"] < found["calendar"]["draws"]["p50"]
    assert gone["done_by"]["mid"] > found["done_by"]["mid"]
    assert "What if" in page.read_text() and "+16 a from 2024-07-05" in page.read_text()
    assert main(["plan", *files(tmp_path), *flags, "--what-if", "+16 c"]) == 2
    assert "known islands and chips: a, h20" in capsys.readouterr().err


LESS = (
    *("late a by 10 d", "late a by 36 h", "-7 a from 2024-07-10", "no more a from 2024-07-20"),
    *("without a from 2024-07-20", "29 % of a", "late a by 20 d; 70 % of a"),
)


@st.composite
def changing(draw: st.DrawFn) -> Fleet:
    """An island of nodes of one chip, with deliveries and withdrawals, some of them uncertain."""

    def some(most: int) -> list[dict[str, object]]:
        days = draw(st.lists(st.integers(1, 30), max_size=most))
        counts = [sorted(draw(st.tuples(*[st.integers(0, 40)] * 3))) for _ in days]
        likely = [
            draw(st.sampled_from([{}, {"probability": 0.3}, {"probability": 0.7}])) for _ in days
        ]
        return [
            {**change(f"2024-07-{day:02}", *count), **part}
            for day, count, part in zip(days, counts, likely, strict=True)
        ]

    number = draw(st.integers(1, 40))
    return fleet(
        island=[{**island("a", number), "chips_per_node": 1}],
        delivery=some(4), withdrawal=some(3),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(changing(), st.sampled_from(LESS))
def test_less_is_less_on_every_day_and_course(stock, what) -> None:
    days = [START, date(2024, 8, 30)]
    try:
        days += stock.change_days(START)
        other = changed(stock, what, start=START)
    except InputError as fault:
        assert "leaves no chips" in str(fault) or "more chips than" in str(fault)
        return
    for day in (*days, *other.change_days(START)):
        for which in ("low", "mid", "high"):
            there = chips(other, day.isoformat(), which).get("a", 0)
            assert there <= chips(stock, day.isoformat(), which).get("a", 0)


def test_a_part_is_exact() -> None:
    """29 % of 100 nodes are 29 nodes; 0.29 * 100 is 28.999999999999996."""
    stock = fleet(island=[{**island("a", 100), "chips_per_node": 1}])
    for part in range(1, 101):
        assert chips(changed(stock, f"{part} % of a", start=START), "2024-07-01") == {"a": part}


def test_fewer_chips_are_never_sooner_whichever_fleet_a_plan_was_found_for() -> None:
    """The planner finds a faster plan for some smaller stocks: all fleets then have it."""
    run = Recipe.load("examples/recipes/dense-30b.toml")
    sites = [{"name": "home"}, {"name": "johor"}]
    islands = [
        {**island("a", 89, "ascend-910b2"), "site": "home", "chips_per_node": 8},
        {**island("b", 34), "site": "johor", "chips_per_node": 8},
    ]
    link = {"between": ["home", "johor"], "bandwidth": "400 Gb/s", "latency": "60 ms"}
    for one in islands:
        one["network"] = {"bandwidth": "200 Gb/s"}
    coming = [change("2024-07-29", 512, 512, 512)]
    stock = Fleet.from_dict({"site": sites, "island": islands, "link": [link], "delivery": coming})
    asked = Asked(day=START)
    alone = calendar_of(first_plan(run, stock, asked), stock, asked)
    base, found = compare(["-40 a", "late a by 3 d"], run, stock, asked, alone)
    ends = [one.days(base) for one in found]
    assert all(late is not None and late >= 0 for each in ends for late in each.values())
    assert min(one.days(alone)["low"] or 0.0 for one in found) < -0.1  # by its own plans alone


def test_a_chip_of_ones_own_has_power_and_rent_over_time(recipe, tmp_path) -> None:  # noqa: F811
    """It is known by its file; by its name alone nobody knows it."""
    own = tmp_path / "mine.toml"
    own.write_text(
        """
name = "mine"
backend = "nvidia"
vendor = "us"
description = "ours"
power = "500 W"
source = "us"
[memory]
size = "96 GB"
bandwidth = "4 TB/s"
source = "us"
[flops]
bf16 = "100 TFLOP/s"
fp32 = "50 TFLOP/s"
source = "us"
[rent]
low = 1
high = 2
source = "us"
"""
    )
    plain = {**island("a", 4, str(own)), "site": "home"}
    stock = fleet(site=[{"name": "home"}], island=[plain])
    found = over_time(recipe, stock)
    (period,) = found.mid.periods
    assert period.megawatt_hours == pytest.approx(period.rated.used * 500 * period.seconds / 3.6e9)
    low, high = period.dollars or (0.0, 0.0)
    assert low == pytest.approx(period.rated.used * period.seconds / 3600.0) and high == 2 * low
    more = changed(stock, f"+8 {own} at home", start=START)
    assert more.island[1].chip == str(own)
