"""A run on a fleet that changes: by hand where a hand can, by rule for the rest."""

import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.test_plan_command import RECIPE

from atoll.cli import main
from atoll.errors import InputError
from atoll.facts.failures import rate_of
from atoll.fleet import Fleet
from atoll.planning.calendar import Calendar, calendar_of, first_plan, run_through
from atoll.planning.calendartable import as_json, shown_periods
from atoll.planning.draws import draw
from atoll.planning.gantt import calendar_picture, used_on
from atoll.planning.goodput import goodput_of, share
from atoll.planning.planner import Asked, plan
from atoll.planning.report import report_of
from atoll.planning.svg import NARROW, WIDE
from atoll.recipe import Recipe
from atoll.supply import Failures

DAY = 86400.0
START = date(2024, 7, 1)


def island(name: str = "a", nodes: int = 4, chip: str = "h20") -> dict:
    network = {"bandwidth": "200 Gb/s"}
    return {"name": name, "chip": chip, "nodes": nodes, "chips_per_node": 8, "network": network}


def change(day: str, low: int, mid: int, high: int, name: str = "a") -> dict:
    count = {"low": low, "mid": mid, "high": high}
    return {"date": day, "island": name, "count": count}


NEVER_FAILS = {"mode": "none"}


def fleet(**tables: object) -> Fleet:
    return Fleet.from_dict({"island": [island()], "failures": NEVER_FAILS, **tables})


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Long enough for some weeks on four nodes."""
    import tomllib

    plain = tomllib.loads(RECIPE)
    plain["schedule"]["steps"] = 2_000_000
    return Recipe.from_dict(plain)


def over_time(recipe: Recipe, stock: Fleet, day: date = START) -> Calendar:
    asked = Asked(day=day)
    return calendar_of(plan(recipe, stock, asked), stock, asked)


# ------------------------------------------------------------------ tokens over time


def test_tokens_by_hand() -> None:
    # Ten seconds at 1, ten at 3, then at 2: 100 tokens are there after 10 + 10 + 30 seconds.
    curve, done = run_through(100.0, [0.0, 10.0, 20.0], [1.0, 3.0, 2.0])
    assert curve == [(0.0, 0.0), (10.0, 10.0), (20.0, 40.0), (50.0, 100.0)]
    assert done == 50.0


def test_a_run_that_waits_and_one_that_never_ends() -> None:
    assert run_through(10.0, [0.0, 5.0], [0.0, 2.0]) == ([(0.0, 0.0), (5.0, 0.0), (10.0, 10.0)], 10)
    assert run_through(10.0, [0.0, 5.0], [1.0, 0.0]) == ([(0.0, 0.0), (5.0, 5.0)], None)


def test_nothing_is_planned_after_the_end() -> None:
    def rates():
        yield 1.0
        raise AssertionError("the run is done by then")

    assert run_through(5.0, [0.0, 5.0], rates())[1] == 5.0


PLAIN = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9), st.integers(0, 5)), min_size=1)


@given(PLAIN, st.integers(1, 500))
def test_more_speed_is_never_done_later(periods, total) -> None:
    begins = [float(sum(days for days, _, _ in periods[:n])) for n in range(len(periods))]
    slow = run_through(float(total), begins, [float(rate) for _, rate, _ in periods])[1]
    fast = run_through(float(total), begins, [float(rate + more) for _, rate, more in periods])[1]
    assert (math.inf if fast is None else fast) <= (math.inf if slow is None else slow)


def test_one_period_is_the_plain_plan(recipe) -> None:
    stock = fleet()
    answer = plan(recipe, stock, Asked(day=START))
    found = calendar_of(answer, stock, Asked(day=START))
    days = answer.finish_days()
    assert days is not None
    assert tuple(found.done_by().values()) == days
    (period,) = found.mid.periods
    assert found.mid.done == pytest.approx(answer.finish_seconds.mid)
    assert period.rated.answer is answer and period.rated.used == answer.chips
    assert period.tokens == pytest.approx(recipe.total_steps() * recipe.tokens_per_step)


def test_a_delivery_by_hand(recipe) -> None:
    stock = fleet(delivery=[change("2024-07-11", 0, 32, 32)])
    found = over_time(recipe, stock)
    before = plan(recipe, fleet(), Asked(day=START)).tokens_per_second.mid
    twice = Fleet.from_dict({"island": [island(nodes=8)]})
    after = plan(recipe, twice, Asked(day=START)).tokens_per_second.mid
    assert after > 1.5 * before
    first, second = found.mid.periods
    assert first.tokens == pytest.approx(10 * DAY * before)
    assert (first.rated.chips, second.rated.chips) == ({"a": 32}, {"a": 64})
    left = found.tokens - 10 * DAY * before
    assert found.mid.done == pytest.approx(10 * DAY + left / after)
    # "low" brings nothing, at the slow end of a step: the latest of the three.
    worst = plan(recipe, fleet(), Asked(day=START)).finish_seconds.high
    assert found.courses["low"].done == pytest.approx(worst)
    assert found.mid.tokens_at(5 * DAY) == pytest.approx(5 * DAY * before)
    assert found.mid.tokens_at(1e12) == found.tokens


def test_what_comes_before_the_first_day_or_after_the_end_changes_nothing(recipe) -> None:
    plain = over_time(recipe, fleet())
    assert plain.mid.done is not None
    late = over_time(recipe, fleet(delivery=[change("2090-01-01", 8, 8, 8)]))
    assert late.mid.done == plain.mid.done and len(late.mid.periods) == 1
    early = over_time(recipe, fleet(delivery=[change("2024-06-01", 0, 32, 32)]))
    assert early.mid.done is not None and early.mid.done < plain.mid.done


def test_all_chips_leave_and_come_again(recipe) -> None:
    away = [change("2024-07-03", 32, 32, 32)]
    gone = over_time(recipe, fleet(withdrawal=away))
    assert gone.mid.done is None and set(gone.done_by().values()) == {None}
    assert any("never done" in note for note in gone.notes)
    back = over_time(recipe, fleet(withdrawal=away, delivery=[change("2024-07-08", 32, 32, 32)]))
    plain = over_time(recipe, fleet())
    assert plain.mid.done is not None and back.mid.done is not None
    assert back.mid.done == pytest.approx(plain.mid.done + 5 * DAY)
    idle = back.mid.periods[1]
    assert (idle.tokens, idle.rated.why, idle.rated.used) == (0.0, "no chips", 0)
    assert calendar_picture(gone, WIDE) and calendar_picture(back, NARROW)


def test_equal_stocks_are_planned_once(recipe) -> None:
    there = [change("2024-07-03", 8, 8, 8), change("2024-07-05", 8, 8, 8)]
    stock = fleet(delivery=there, withdrawal=[change("2024-07-04", 8, 8, 8)])
    found = over_time(recipe, stock)
    assert [sum(one.rated.chips.values()) for one in found.mid.periods] == [32, 40, 32, 40]
    assert len(found.rates.known) == 2


DELIVERIES = st.lists(
    st.tuples(st.integers(2, 28), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=3
)


@settings(max_examples=8, deadline=None)
@given(DELIVERIES)
def test_more_deliveries_never_finish_later(deliveries) -> None:
    import tomllib

    plain = tomllib.loads(RECIPE)
    plain["schedule"]["steps"] = 2_000_000
    tables = [change(f"2024-07-{day:02}", 8 * n, 8 * n, 8 * (n + m)) for day, n, m in deliveries]
    found = over_time(Recipe.from_dict(plain), fleet(delivery=tables))
    low, mid, high = (found.courses[which].done for which in ("low", "mid", "high"))
    assert low is not None and mid is not None and high is not None
    assert high <= mid <= low


# ------------------------------------------------------------------ failures


def test_the_published_rate() -> None:
    rate = rate_of("h100-sxm-80gb")
    assert rate.known and rate.mid == pytest.approx(419 / (16384 * 54 * DAY))
    # One in about three hours on all of its chips, as the report says.
    assert 1 / (rate.mid * 16384) / 3600 == pytest.approx(3.09, abs=0.01)
    other = rate_of("h20")
    assert not other.known and other.mid == rate.mid and other.low < other.mid < other.high


def test_goodput_by_hand(recipe) -> None:
    answer = plan(recipe, fleet(), Asked(day=START))
    step = answer.way.seconds
    good = goodput_of(answer, Failures(days=10.0, restart="10 min"))
    assert good.per_second == pytest.approx(answer.chips / (10 * DAY))
    # Alone on its island Atoll too goes back to a checkpoint, on average 50 steps.
    assert good.lost == pytest.approx(600 + 50 * step)
    assert good.factor == good.restarting == pytest.approx(1 / (1 + good.per_second * good.lost))
    assert good.hours == pytest.approx(240 / answer.chips)
    assert share(0.0, 1e9) == 1.0


def test_two_islands_go_on(recipe) -> None:
    two = Fleet.from_dict({"island": [island("a"), island("b")]})
    answer = plan(recipe, two, Asked(day=START))
    assert [one.grains for one in answer.islands] == [16, 16]
    good = goodput_of(answer, Failures(days=10.0, restart="10 min"))
    lost = 0.5 * (1.5 * answer.way.seconds + 600)
    assert good.going_on == pytest.approx(1 / (1 + good.per_second * lost))
    assert good.going_on > good.restarting
    # Another tool carries this plan out, so what it does is counted; Atoll's own stands beside.
    assert answer.executor.startswith("emit:") and good.factor == good.restarting
    ours = goodput_of(replace(answer, executor="atoll"), Failures(days=10.0, restart="10 min"))
    assert ours.factor == good.going_on


def test_failures_make_a_run_longer_by_the_goodput(recipe) -> None:
    plain = over_time(recipe, fleet())
    failing = over_time(recipe, fleet(failures={"days": 20.0}))
    good = failing.mid.periods[0].rated.goodput
    assert good is not None and 0 < good.factor < 1
    assert plain.mid.done is not None
    assert failing.mid.done == pytest.approx(plain.mid.done / good.factor)
    assert any("failures: one in" in note for note in failing.notes)
    assert not any("failures" in note for note in plain.notes)


# ------------------------------------------------------------------ the command, the page


FLEET = """
[[island]]
name = "a"
chip = "h20"
nodes = 4
chips_per_node = 8
[[delivery]]
date = 2024-07-11
island = "a"
count = { low = 0, mid = 32, high = 64 }
"""


def files(folder: Path, fleet_text: str = FLEET) -> list[str]:
    (folder / "recipe.toml").write_text(RECIPE.replace("steps = 300", "steps = 2_000_000"))
    (folder / "fleet.toml").write_text(fleet_text)
    return [str(folder / "recipe.toml"), str(folder / "fleet.toml")]


def test_the_object_of_a_plan_with_a_first_day(capsys, tmp_path) -> None:
    paths = files(tmp_path)
    flags = ["--from", "2024-07-01", "--draws", "200", "--seed", "7", "--json"]
    assert main(["plan", *paths, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    done = found["done_by"]
    assert done["low"] <= done["mid"] <= done["high"]
    # `finish` is what it was: the first day's stock to the end, nothing fails.
    assert found["finish"]["mid"] > "2024-07-11"
    calendar = found["calendar"]
    first, second = calendar["periods"]
    assert (first["from"], first["to"], second["from"]) == (
        "2024-07-01",
        "2024-07-11",
        "2024-07-11",
    )
    assert (first["chips"], second["chips"]) == ({"a": 32}, {"a": 64})
    assert second["to"] == done["mid"]
    assert first["tokens"] + second["tokens"] == pytest.approx(calendar["tokens"])
    by_end = first["tokens_by_end"]
    assert by_end["low"] <= by_end["mid"] <= by_end["high"]
    assert 0 < first["goodput"] < 1 and first["megawatt_hours"] == pytest.approx(
        first["used"] * 400 * 240 / 1e6
    )
    drawn = calendar["draws"]
    assert (drawn["number"], drawn["seed"]) == (200, 7)
    assert drawn["p10"] <= drawn["p50"] <= drawn["p90"]


def test_without_a_first_day_there_is_no_calendar(capsys, tmp_path) -> None:
    assert main(["plan", *files(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calendar"] is None and found["done_by"] is None


def test_people_see_periods_and_draws(capsys, tmp_path) -> None:
    page = tmp_path / "plan.html"
    flags = ["--from", "2024-07-01", "--draws", "50", "--report", str(page)]
    assert main(["plan", *files(tmp_path), *flags]) == 0
    shown = capsys.readouterr().out
    assert "done by" in shown and "of 50 fleets (seed 1) 10 % by 2024-" in shown
    assert "2024-07-11" in shown and "goodput" in shown
    html = page.read_text()
    assert "As the fleet changes" in html and "tokens done, of" in html
    assert main(["plan", *files(tmp_path), "--from", "2024-07-01", "--draws", "0"]) == 0
    assert "fleets (seed" not in capsys.readouterr().out


def test_a_long_calendar_fits_a_screen(recipe) -> None:
    days = [change(f"2024-07-{day:02}", 1, 1, 1) for day in range(2, 26)]
    found = over_time(recipe, fleet(delivery=days))
    head, rows = shown_periods(found, most=12)
    assert len(rows) <= 12 and all(len(row) == len(head) for row in rows)
    whole = shown_periods(found, most=100)[1]
    (gap,) = [row for row in rows if row[0].startswith("...")]
    assert int(gap[0].split()[1]) == len(whole) - len(rows) + 1


def test_the_picture_holds_every_island_and_the_page_is_well_formed(recipe) -> None:
    import xml.etree.ElementTree as ElementTree

    stock = fleet(island=[island("a"), island("b", 1)])
    found = over_time(recipe, stock)
    found = replace(found, draws=draw(found, number=20, seed=1))
    for width in (WIDE, NARROW):
        root = ElementTree.fromstring(calendar_picture(found, width))
        words = " ".join(root.itertext())
        assert "a h20" in words and "b h20" in words and "2024-07-01" in words
    answer = plan(recipe, stock, Asked(day=START))
    page = report_of(answer, found)
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert f"<b>{found.done_by()['mid']}</b><span>done by" in page
    period = found.mid.periods[0]
    assert used_on(period, "a") + used_on(period, "b") == period.rated.used
    assert json.dumps(as_json(found))


BAD = [
    # (what stands in the fleet, what is written instead, flags, parts of the message)
    ("low = 0", "low = -1", [], ["delivery[0].count.low = -1", "no number of chips", "withdrawal"]),
    ("high = 64", "high = 9999999999999", [], ["delivery[0].count.high", "no number of chips"]),
    ("mid = 32", "mid = 99", [], ["delivery[0].count", "low <= mid <= high", "sort"]),
    ("2024-07-11", "1024-07-11", [], ["delivery[0].date", "1024-07-11", "2000-01-01"]),
    ("2024-07-11", "9999-07-11", [], ["delivery[0].date", "9999-07-11", "2100"]),
    ("2024-07-11", '"soon"', [], ["delivery[0].date", "is no date", "2024-07-01"]),
    ("nodes = 4", "nodes = -4", [], ["island[0].nodes = -4"]),
    ("[[delivery]]", "[failures]\ndays = -1\n[[delivery]]", [], ["failures.days = -1"]),
    ("[[delivery]]", '[failures]\nrestart = "soon"\n[[delivery]]', [], ["failures.restart"]),
    ("[[delivery]]", "[failures]\nday = 3\n[[delivery]]", [], ["failures.day", "failures.days"]),
    ("a", "a", ["--from", "0001-01-01"], ["--from", "0001-01-01", "2000-01-01"]),
    ("a", "a", ["--from", "2024-02-30"], ["--from", "2024-02-30", "no date"]),
]


@pytest.mark.parametrize(("old", "new", "flags", "said"), BAD)
def test_bad_input_ends_in_one_message(capsys, tmp_path, old, new, flags, said) -> None:
    paths = files(tmp_path, FLEET.replace(old, new, 1))
    assert main(["plan", *paths, "--from", "2024-07-01", *flags]) == 2
    told = capsys.readouterr().err
    assert told.count("atoll: ") == 1 and "Traceback" not in told
    for part in said:
        assert part in told, told
    if not flags:
        assert "fleet.toml" in told


def test_withdrawals_that_together_take_more_than_is_there(capsys, tmp_path) -> None:
    leaving = "".join(
        f'[[withdrawal]]\ndate = {day}\nisland = "a"\ncount = {{ low = 0, mid = 40, high = 40 }}\n'
        for day in ("2024-07-20", "2024-07-25")
    )
    paths = files(tmp_path, FLEET + leaving)
    assert main(["plan", *paths, "--from", "2024-07-01"]) == 2
    told = capsys.readouterr().err
    for part in ("fleet.toml", "withdrawal[1].count = 40", "24", "at most 24", "2024-07-25"):
        assert part in told, told


def test_more_days_than_any_calendar_has(recipe) -> None:
    found = over_time(recipe, fleet())
    assert found.day(1e18) is None and found.day(math.inf) is None and found.day(0.0) == START
    with pytest.raises(InputError):
        Fleet.from_dict({"island": [island()], "failures": {"days": 0}})


# ------------------------------------------------------------------ leases


def leased(**lease: object) -> Fleet:
    return fleet(island=[island("a"), {**island("b"), "lease": lease}])


def test_a_lease_by_hand(recipe) -> None:
    stock = leased(start="2024-07-03", end="2024-07-06", price=2.0)
    days = [date(2024, 7, day) for day in (2, 3, 5, 6)]
    there = [{one.name for one in stock.stock(day).island} for day in days]
    assert there == [{"a"}, {"a", "b"}, {"a", "b"}, {"a"}]
    assert {one.name for one in stock.stock().island} == {"a", "b"}
    assert stock.change_days(date(2024, 7, 3)) == [date(2024, 7, 6)]
    assert Fleet.from_dict(json.loads(json.dumps(stock.as_dict()))) == stock
    found = over_time(recipe, stock)
    chips = [sum(one.rated.chips.values()) for one in found.mid.periods]
    assert chips == [32, 64, 32]
    dollars = [found.lease_dollars(period) for period in found.mid.periods]
    assert dollars == pytest.approx([0.0, 32 * 2.0 * 72, 0.0])
    plain = over_time(recipe, fleet())
    assert plain.mid.done is not None and found.mid.done is not None
    assert plain.mid.done - 3 * DAY < found.mid.done < plain.mid.done
    drawn = [draw(calendar, number=200, seed=1).quantile(0.5) for calendar in (plain, found)]
    assert drawn[1] < drawn[0]


def test_a_lease_that_has_not_begun_says_when(recipe) -> None:
    stock = fleet(island=[{**island(), "lease": {"start": "2024-08-01"}}])
    with pytest.raises(InputError) as caught:
        stock.stock(START)
    assert "a lease begins on 2024-08-01" in str(caught.value.fix)


LEASES = [
    ("{ start = 2024-07-03, end = 2024-07-03 }", ["island[0].lease.end", "ends before"]),
    ("{ start = 1024-07-03 }", ["island[0].lease.start", "2000-01-01"]),
    ("{ price = -1 }", ["island[0].lease.price = -1", "at least 0"]),
]


@pytest.mark.parametrize(("lease", "said"), LEASES)
def test_a_lease_that_cannot_be(capsys, tmp_path, lease, said) -> None:
    text = FLEET.replace("nodes = 4", f"nodes = 4\nlease = {lease}")
    assert main(["plan", *files(tmp_path, text), "--from", "2024-07-01"]) == 2
    told = capsys.readouterr().err
    assert told.count("atoll: ") == 1
    for part in ("fleet.toml", *said):
        assert part in told, told


# ------------------------------------------------------------------ what may not happen


@pytest.mark.parametrize(
    ("probability", "chips"),
    [(0.4, [32, 32, 64]), (0.5, [32, 48, 64]), (1.0, [40, 48, 64]), (None, [40, 48, 64])],
)
def test_a_delivery_that_may_not_happen(probability, chips) -> None:
    coming = change("2024-07-03", 8, 16, 32) | ({"probability": probability} if probability else {})
    stock = fleet(delivery=[coming])
    day = date(2024, 7, 3)
    found = [stock.stock(day, which=which).island[0].num_chips for which in ("low", "mid", "high")]
    assert found == chips


def test_a_withdrawal_that_may_not_happen(capsys, tmp_path) -> None:
    stock = fleet(withdrawal=[change("2024-07-03", 8, 16, 24) | {"probability": 0.3}])
    day = date(2024, 7, 3)
    found = [stock.stock(day, which=which).island[0].num_chips for which in ("low", "mid", "high")]
    assert found == [8, 32, 32]
    text = FLEET.replace("count =", "probability = 1.5\ncount =")
    assert main(["plan", *files(tmp_path, text), "--from", "2024-07-01"]) == 2
    assert "delivery[0].probability = 1.5: must be at most 1" in capsys.readouterr().err


def test_a_larger_stock_keeps_the_faster_plan_of_a_smaller_one(recipe) -> None:
    stock = fleet(delivery=[change("2024-07-11", 32, 32, 32)])
    found = over_time(recipe, stock)
    rates = found.rates
    small, large = rates.of({"a": 32}), rates.of({"a": 64})
    assert small.rate() < large.rate() and large.used > small.used
    # As if the search had missed what the second half is good for.
    rates.known[(64,)] = replace(large, answer=None, goodput=None, why="nothing found")
    kept = rates.of({"a": 64})
    assert kept.answer is small.answer and kept.rate() == small.rate()
    assert kept.present == 64 and kept.present - kept.used >= 32


SMALL = FLEET.replace("nodes = 4", "nodes = 1").replace("per_node = 8", "per_node = 1")


def test_a_run_begins_on_the_first_day_on_which_its_model_fits(capsys, tmp_path) -> None:
    paths = files(tmp_path, SMALL)
    flags = ["--draws", "50", "--json"]
    assert main(["plan", *paths, "--from", "2024-07-01", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["plan", *paths, "--from", "2024-07-11", *flags]) == 0
    later = json.loads(capsys.readouterr().out)
    idle, busy = found["calendar"]["periods"]
    assert idle["to"] == found["calendar"]["begins"] == busy["from"] == "2024-07-11"
    assert (idle["used"], idle["idle"], idle["tokens"]) == (0, 1, 0.0)
    assert "the model fits on no island" in idle["why"]
    assert found["done_by"]["mid"] == later["done_by"]["mid"]
    assert found["done_by"]["high"] is None  # "low" deliveries bring nothing
    assert any("the run begins on 2024-07-11" in note for note in found["calendar"]["notes"])
    assert found["layout"] == later["layout"]


def test_an_empty_fleet_waits_for_its_first_delivery(recipe) -> None:
    stock = fleet(island=[island(nodes=0)], delivery=[change("2024-07-11", 32, 32, 32)])
    asked = Asked(day=START)
    found = calendar_of(first_plan(recipe, stock, asked), stock, asked)
    plain = over_time(recipe, fleet())
    assert found.mid.done is not None and plain.mid.done is not None
    assert found.mid.done == pytest.approx(plain.mid.done + 10 * DAY)
    assert found.begins() == date(2024, 7, 11) and plain.begins() == START


def test_what_fits_on_no_day_says_by_how_much(capsys, tmp_path) -> None:
    few = SMALL.replace("mid = 32, high = 64", "mid = 0, high = 0")
    assert main(["plan", *files(tmp_path, few), "--from", "2024-07-01"]) == 1
    told = capsys.readouterr().err
    assert "the model fits on no island" in told and "GiB too many on a h20" in told
