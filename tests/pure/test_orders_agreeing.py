"""Orders whose finish is the planner's: solved again until the programme and one run agree, and the
ends of what is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="atoll orders needs SciPy")

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.order_cases import (
    FLEET,
    OFFERS,
    RECIPE,
    SPEED,
    START,
    allowed,
    budget,
    case_of,
    cases,
    months_of,
    offer,
    offers_of,
    placed,
    stands,
)

from atoll.cli import main
from atoll.fleet import Fleet
from atoll.planning.agreeing import agreed, kept
from atoll.planning.calendar import calendar_of
from atoll.planning.case import DAY, Case, OwnChange
from atoll.planning.ends import ends_of
from atoll.planning.joint import Stood
from atoll.planning.orders import orders
from atoll.planning.planner import Asked, plan
from atoll.planning.progress import SUPPORTS, progress
from atoll.planning.shortage import NoOrders
from atoll.recipe import Recipe
from atoll.supply import Which


class Lossy:
    """Islands that lose a part of the sum for every site more than one, and slow down as a whole
    the more they are: a planner of two lines.
    """

    def __init__(self, case: Case, apart: float, crowd: float = 0.0) -> None:
        self.case, self.apart, self.crowd = case, apart, crowd
        self.island: Mapping[str, str] = {one.name: one.name for one in case.offers.offer}
        sites = {one.name: one.site for one in case.offers.offer}
        self.sites: Mapping[str, str] = sites | {one.island: one.site for one in case.own}
        self.changes: Sequence[float] = [one.day for one in case.own]
        self.asked = 0

    def own(self, day: float, which: Which) -> dict[str, int]:
        there: dict[str, int] = {}
        for one in self.case.own:
            if one.day <= day:
                there[one.island] = there.get(one.island, 0) + one.chips
        return there

    def of(self, chips: Mapping[str, int]) -> Stood:
        self.asked += 1
        each = {one.island: one.speed / one.chips for one in self.case.own} | SPEED
        alone = {name: each[name] * n for name, n in chips.items() if n}
        total = sum(alone.values())
        sites = len({self.sites[name] for name in alone})
        whole = total * (1 - self.apart) ** max(0, sites - 1) / (1 + self.crowd * total)
        parts = {name: speed / total for name, speed in alone.items()}
        return Stood(low=0.5 * whole, mid=whole, high=2.0 * whole, parts=parts)


@st.composite
def apart_cases(draw: st.DrawFn) -> tuple[Case, Lossy]:
    case = draw(cases())
    own = [OwnChange(day=0.0, site="home", speed=1.0, watts=50.0, island="own", chips=2)]
    case = replace(case, own=own if case.own else [])
    loss, crowd = draw(st.sampled_from([0.0, 0.3, 0.8])), draw(st.sampled_from([0.0, 0.05]))
    return case, Lossy(case, loss, crowd)


def day_by_day(case: Case, chosen: list, speeds: Lossy) -> list[float]:
    """Tokens by the end of each day of the calendar, simulated with the planner of two lines."""
    months = months_of(case.offers)
    tokens, found = 0.0, []
    for number in range((months[-1] - START).days):
        today = START.toordinal() + number
        chips = dict(speeds.own(float(today), "mid"))
        for one, ordered, n in chosen:
            arrives, ends = stands(one, ordered, months)
            if arrives.toordinal() <= today < ends.toordinal():
                chips[one.name] = chips.get(one.name, 0) + n
        tokens += DAY * case.offers.availability * speeds.of(chips).mid
        found.append(tokens)
    return found


@settings(max_examples=30, deadline=None)
@given(drawn=apart_cases())
def test_the_finish_is_the_planners_and_no_later_than_at_first(drawn: Any) -> None:
    case, speeds = drawn
    try:
        once = agreed(case, speeds, again=0)
    except NoOrders:
        once = None
    try:
        found = agreed(case, speeds, again=3)
    except NoOrders:
        assert once is None
        return
    chosen = placed(found.answer)
    assert allowed(case, chosen)
    days = len({d for o in found.answer.orders for d in (o.column.arrives, o.column.ends)})
    simulated = day_by_day(case, chosen, speeds)
    if days + 1 <= SUPPORTS:  # else what is between supports is straight in parts of the sum
        number = next(i for i, made in enumerate(simulated) if made >= case.tokens * (1 - 1e-9))
        assert found.finish is not None
        assert START.toordinal() + number <= found.finish <= START.toordinal() + number + 1 + 1e-6
    bounds = found.answer.basis.programme.bounds

    def goodness(one: Any) -> tuple[int, float]:
        return next(i for i, day in enumerate(bounds) if day >= one.finish), one.answer.cost

    if once is not None:
        assert goodness(found) <= goodness(once)
    assert found.told in found.solves and len(found.solves) <= 6


@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_where_speeds_add_up_one_solve_is_enough(case: Case) -> None:
    case = replace(case, own=[])
    speeds = Lossy(case, 0.0)
    try:
        alone = orders(case)
    except NoOrders:
        with pytest.raises(NoOrders):
            agreed(case, speeds)
        return
    found = agreed(case, speeds)
    assert found.answer.cost == alone.cost and found.finish == pytest.approx(alone.finish)
    assert found.agrees and len(found.solves) == 1
    assert all(part == pytest.approx(1.0) for part in kept(found).values())
    assert {one.group for one in found.answer.worths} == {one.group for one in alone.worths}


def far_apart() -> tuple[Case, Lossy]:
    """20 chips at two sites in one month: 24 tokens/s added up at 10 CNY each, less as one run."""
    tables = [
        offer("a", stock=9), offer("b", site="johor", stock=9, price="12 CNY"),
        offer("c", stock=9, price="60 CNY", **{"from": date(2025, 2, 1)}),
    ]  # fmt: skip
    offers = offers_of(offer=tables, months=12, budget=[budget(amount="9000 CNY")])
    case = case_of(offers, 60 * DAY * 50.0)
    return case, Lossy(case, 0.6)


def test_islands_that_hold_one_another_up_are_left_out() -> None:
    case, speeds = far_apart()
    alone = agreed(case, speeds, again=0)
    found = agreed(case, speeds)
    assert {one.column.offer.site for one in alone.answer.orders} == {"home", "johor"}
    assert len({one.column.offer.site for one in found.answer.orders}) == 1
    assert found.finish < alone.finish
    assert not alone.agrees and len(alone.solves) == 1 and len(found.solves) >= 2


def test_no_orders_in_time_by_the_planner_is_told() -> None:
    case, _ = far_apart()
    slow = Lossy(case, 0.0, crowd=10.0)
    with pytest.raises(NoOrders, match="as one run over their links they compute") as caught:
        agreed(case, slow)
    assert caught.value.exit_code == 1
    assert "with the speeds that islands keep" in str(caught.value)
    with pytest.raises(NoOrders, match=r"by 2025-07-01, but as one run .* and all by 2025-"):
        agreed(case, Lossy(case, 0.0, crowd=0.012), goal="cheapest", by=date(2025, 7, 1), again=0)


def test_the_cheapest_are_done_by_the_day_by_the_planner() -> None:
    case, _ = far_apart()
    speeds = Lossy(case, 0.3, crowd=0.01)
    by = date(2025, 8, 1)
    found = agreed(case, speeds, goal="cheapest", by=by)
    assert found.finish <= by.toordinal()
    naive = orders(case, goal="cheapest", by=by)
    assert progress(case, naive, speeds).finish(case.tokens) > by.toordinal()
    assert found.answer.cost > naive.cost


def test_few_days_are_asked_and_those_between_go_straight() -> None:
    tables = [offer("a", stock=99, a_month=1)]
    offers = offers_of(offer=tables, months=12, budget=[budget()])
    case = case_of(offers, 1e12)
    speeds = Lossy(case, 0.0, crowd=0.02)
    answer = orders(case, goal="largest", by=date(2026, 1, 1))
    assert len(answer.orders) == 12
    speeds.asked = 0
    made = progress(case, answer, speeds)
    assert speeds.asked == SUPPORTS
    exact = day_by_day(case, placed(answer), speeds)[-1]
    assert made.tokens_by(made.end) == pytest.approx(exact, rel=2e-3)


def test_the_ends_of_prices_stock_and_lead() -> None:
    doubt = {
        "price": {"low": "8 CNY", "mid": "10 CNY", "high": "15 CNY"},
        "stock": {"low": 2, "mid": 4, "high": 9},
        "lead": {"low": "0 d", "mid": "10 d", "high": "40 d"},
    }
    offers = offers_of(offer=[offer("a", **doubt)], budget=[budget(amount="50 CNY")], months=12)
    case = case_of(offers, 49 * DAY * 12.0)
    speeds = Lossy(case, 0.0)
    found = agreed(case, speeds)
    assert [one.chips for one in found.answer.orders] == [4] and found.answer.cost == 40
    ends = ends_of(found, speeds)
    # 4 chips of 3 tokens/s: 49 days after 10; at best twice as fast, at worst half and 2 chips.
    day = {which: end - START.toordinal() for which, end in ends.done_by.items()}
    assert day == {"low": pytest.approx(24.5), "mid": pytest.approx(59), "high": pytest.approx(236)}
    assert ends.cost == {"low": 32, "mid": 40, "high": 60}
    assert ends.spend["money"] == {"low": 32, "mid": 40, "high": 60}
    assert ends.overrun("money", 50) == pytest.approx(10) and ends.overrun("money", 60) == 0
    assert ends.tokens["low"] < ends.tokens["mid"] < ends.tokens["high"]


@settings(max_examples=15, deadline=None)
@given(drawn=apart_cases(), late=st.integers(0, 30), few=st.integers(0, 2))
def test_the_ends_are_ordered(drawn: Any, late: int, few: int) -> None:
    case, _ = drawn
    tables = []
    for one in case.offers.offer:
        days = int(one.lead_days)
        changes = {
            "lead": {"low": "0 d", "mid": one.lead, "high": f"{days + late} d"},
            "stock": {"low": min(few, one.stock), "mid": one.stock, "high": one.stock + 1},
        }
        plain = one.model_dump(exclude_none=True, by_alias=True, exclude_defaults=True)
        tables.append({**plain, **changes})
    content = case.offers.model_dump(exclude_none=True, by_alias=True, exclude_defaults=True)
    offers = offers_of(**{**content, "offer": tables})
    case = replace(case, offers=offers)
    speeds = Lossy(case, 0.3)
    try:
        found = agreed(case, speeds, again=1)
    except NoOrders:
        return
    ends = ends_of(found, speeds)
    low, mid, high = (ends.done_by[which] or 1e9 for which in ("low", "mid", "high"))
    assert low <= mid <= high and mid == found.finish
    assert ends.tokens["low"] <= ends.tokens["mid"] * (1 + 1e-9)
    assert ends.tokens["mid"] <= ends.tokens["high"] * (1 + 1e-9)
    assert ends.cost["mid"] == pytest.approx(found.answer.cost)


def test_the_commands_finish_is_that_of_a_plan_of_the_fleet_with_the_orders(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What is printed is what `atoll plan --from` says of the same chips, but for failures."""
    text = OFFERS.read_text().replace("availability = 0.9", "availability = 1.0")
    offers = tmp_path / "offers.toml"
    offers.write_text(text)
    flags = ("--at", "home", "--again", "0", "--json")
    code = main(["orders", str(RECIPE), str(FLEET), "--offers", str(offers), *flags])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found = json.loads(captured.out)
    assert [one["planned"] for one in found["solves"]] == [found["finish"]]
    assert found["done_by"]["low"] <= found["finish"] == found["done_by"]["mid"]
    assert 0.5 < found["together"] / found["added"] < 1.2
    fleet = Fleet.load(FLEET).as_dict()
    fleet["failures"] = {"mode": "none"}
    for index, one in enumerate(found["orders"]):
        name = next((i["name"] for i in fleet["island"] if i.get("offer") == one["offer"]), None)
        assert name is None and one["kind"] == "buy", "one order an offer, so one island each"
        network = next(o.network for o in offers_of_file(offers) if o.name == one["offer"])
        fleet["island"].append(
            {"name": f"new-{index}", "site": one["site"], "chip": one["chip"], "nodes": 0,
             "chips_per_node": 8, "network": network.model_dump(exclude_none=True)}
        )  # fmt: skip
        count = {"low": one["chips"], "mid": one["chips"], "high": one["chips"]}
        fleet.setdefault("delivery", []).append(
            {"date": date.fromisoformat(one["arrives"]), "island": f"new-{index}", "count": count}
        )
    whole, recipe = Fleet.from_dict(fleet), Recipe.load(RECIPE)
    asked = Asked(day=START)
    course = calendar_of(plan(recipe, whole, asked), whole, asked)
    assert course.done_by()["mid"] == date.fromisoformat(found["finish"])


def offers_of_file(path: Path) -> Any:
    from atoll.planning.offers import Offers

    return Offers.load(path).offer
