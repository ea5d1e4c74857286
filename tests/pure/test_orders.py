"""Orders: equal to brute force, within every limit, and clear about what is not enough."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

pytest.importorskip("scipy", reason="atoll orders needs SciPy")

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.order_cases import (
    SPEED,
    START,
    WATTS,
    allowed,
    budget,
    case_of,
    cases,
    every_order,
    months_of,
    offer,
    offers_of,
    placed,
    soonest_as_by_brute_force,
    tokens_by,
)

from atoll.planning.case import DAY, Case, OwnChange
from atoll.planning.orders import orders
from atoll.planning.programme import Programme
from atoll.planning.shortage import NoOrders


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_soonest_and_then_cheapest_as_by_brute_force(case: Case) -> None:
    soonest_as_by_brute_force(case)


@settings(max_examples=25, deadline=None)
@given(case=cases(), step=st.integers(1, 3))
def test_most_by_a_day_as_by_brute_force(case: Case, step: int) -> None:
    end, every = months_of(case.offers)[step], every_order(case)
    every = [c for c in every if all(d < end for _, d, _ in c)]
    if not every:
        return
    most = max(tokens_by(case, c, end) for c in every)
    answer = orders(case, goal="largest", by=end)
    assert answer.tokens == pytest.approx(most, rel=6e-4)
    assert allowed(case, placed(answer))
    assert tokens_by(case, placed(answer), end) == pytest.approx(answer.tokens)


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_what_is_said_to_be_missing_is_enough(case: Case) -> None:
    programme = Programme(case)
    last = len(programme.bounds) - 2
    most = programme.most_tokens(programme.rows, last)
    if not 0 < most < 1e300:
        return
    short = case_of(case.offers, 1.5 * most, power=case.power, own=case.own)
    with pytest.raises(NoOrders) as caught:
        orders(short)
    assert f"{100 / 1.5:.1f} %" in str(caught.value)
    need = [*programme.rows, programme.tokens_row(last, short.tokens)]
    for group, by in zip(caught.value.groups, caught.value.needs, strict=True):
        if by is None:
            continue
        for factor, enough in ((1.001, True), (0.98, False)):
            rows = [row.loosened(factor * by) if row.group == group else row for row in need]
            found = programme.solve(programme.cost, rows, last=last, whole=False)
            assert (found is not None) == enough


def test_a_group_less_and_the_irreducible_set_can_be_met() -> None:
    two = [offer(stock=4), offer("b", stock=4, price="50 CNY")]
    case = case_of(offers_of(offer=two, budget=[budget(amount="30 CNY")]), 1e9)
    with pytest.raises(NoOrders) as caught:
        orders(case)
    groups = set(caught.value.groups)
    programme = Programme(case)
    rows = [row for row in programme.rows if row.group in groups]
    need = programme.tokens_row(2)
    assert groups and programme.solve(programme.cost, [*rows, need], last=2, whole=False) is None
    for group in groups:
        fewer = [row for row in rows if row.group != group]
        assert programme.solve(programme.cost, [*fewer, need], last=2, whole=False) is not None


def test_the_slack_of_a_budget_is_told() -> None:
    # 90 days x 3 tokens/s x 4 chips are needed: 40 CNY, and 25 are there.
    case = case_of(offers_of(budget=[budget(amount="25 CNY")]), 90 * DAY * 3 * 4)
    with pytest.raises(NoOrders, match=r"budget money: 15 CNY more \(60 % of it\)") as caught:
        orders(case)
    assert caught.value.exit_code == 1 and caught.value.groups == (("budget", "money"),)
    assert "62.5 %" in str(caught.value)


def test_a_wider_limit_is_told() -> None:
    two = [offer(stock=8), offer("b", stock=8)]
    limit = [{"name": "half", "sellers": ["seller of a"], "at_least": 0.5}]
    offers = offers_of(offer=two, budget=[budget(amount="80 CNY")], limit=limit)
    # All money for b gives 40 tokens/s, half of it for a 32; 36 are a quarter.
    with pytest.raises(NoOrders, match=r"limit half: at least 25.0 % instead"):
        orders(case_of(offers, 90 * DAY * 36))


def test_what_one_more_unit_is_worth_is_what_it_brings() -> None:
    two = [offer(stock=10), offer("b", stock=100)]

    def most(amount: int, stock: int) -> float:
        tables = [two[0], {**two[1], "stock": stock, "price": "20 CNY"}]
        case = case_of(offers_of(offer=tables, budget=[budget(amount=f"{amount} CNY")]), 1e9)
        return orders(case, goal="largest", by=date(2025, 4, 1)).tokens

    tables = [two[0], {**two[1], "price": "20 CNY"}]
    case = case_of(offers_of(offer=tables, budget=[budget(amount="500 CNY")]), 1e9)
    answer = orders(case, goal="largest", by=date(2025, 4, 1))
    worth = {one.group: one.value for one in answer.worths}
    assert set(worth) == {("budget", "money"), ("stock", "a")}
    assert worth["budget", "money"] == pytest.approx((most(520, 100) - most(500, 100)) / 20)
    # One more chip of a takes 10 CNY from b.
    assert worth["stock", "a"] == pytest.approx(90 * DAY * (3.0 - 5.0 / 2))


def test_one_more_watt_at_each_site_is_worth_what_it_brings() -> None:
    two = [offer(stock=500), offer("b", site="johor", stock=500)]

    def most(home: float, johor: float) -> float:
        case = case_of(offers_of(offer=two), 1e12, power={"home": home, "johor": johor})
        return orders(case, goal="largest", by=date(2025, 4, 1)).tokens

    case = case_of(offers_of(offer=two), 1e12, power={"home": 1000.0, "johor": 900.0})
    answer = orders(case, goal="largest", by=date(2025, 4, 1))
    worth = {one.group: one.value for one in answer.worths}
    assert set(worth) == {("power", "home"), ("power", "johor")}
    # A chip of a draws 100 W, one of b 150 W.
    assert worth["power", "home"] == pytest.approx((most(1100, 900) - most(1000, 900)) / 100)
    assert worth["power", "johor"] == pytest.approx((most(1000, 1050) - most(1000, 900)) / 150)


@settings(max_examples=15, deadline=None)
@given(case=cases(), goal=st.sampled_from(["largest", "cheapest"]))
def test_one_more_chip_for_nothing_is_worth_what_it_brings(case: Case, goal: str) -> None:
    """Against the same fractions of lots beside a fleet that holds the chips."""
    last, by = 2, date(2025, 4, 1)
    try:
        answer = orders(case, goal=goal, by=by)
    except NoOrders:
        return
    for one in answer.chips:
        _, since = one.group[1].rsplit(" from ", 1)
        offers = case.offers.offer
        named = [
            o for o in offers if one.group[1] == f"{o.chip} at {o.site} from {since}"
        ]  # fmt: skip
        day = float(date.fromisoformat(since).toordinal())
        # Chips are all of one kind here: whose speed it is, is that of the first by name.
        first = min(named, key=lambda o: (START.toordinal() + o.lead_days, o.name))
        if START.toordinal() + first.lead_days != day:
            continue
        n = first.lot
        there = OwnChange(day=day, site=first.site, speed=n * SPEED[first.name],
                          watts=n * WATTS[first.name])  # fmt: skip
        more = replace(case, own=[*case.own, there])
        values = []
        for which in (case, more):
            programme = Programme(which)
            rows = list(programme.rows)
            if goal == "cheapest":
                rows.append(programme.tokens_row(last))
                found = programme.solve(programme.cost, rows, last=last, whole=False)
                values.append(-found.value if found is not None else None)
            else:
                values.append(programme.most_tokens(rows, last))
        if values[1] is not None and values[1] > -1e300:
            gain = (values[1] - values[0]) / n
            assert one.value == pytest.approx(gain, rel=1e-5, abs=1e-6 * abs(values[0]) + 1e-9)


def test_cheapest_saves_money_where_there_is_time() -> None:
    two = [offer("a", price="10 CNY", lead="40 d", stock=9), offer("b", price="90 CNY", stock=9)]
    case = case_of(offers_of(offer=two), 20 * DAY * 3.0)
    fast, cheap = orders(case), orders(case, goal="cheapest", by=date(2025, 4, 1))
    assert fast.finish_day() < date(2025, 2, 1) and fast.cost == 90
    assert cheap.cost == 10 and date(2025, 2, 1) < cheap.finish_day() < date(2025, 4, 1)
    assert "100" not in fast.proof and fast.gap <= 1e-4


def test_a_fleet_that_is_enough_orders_nothing() -> None:
    own = [OwnChange(day=0.0, site="home", speed=1.0, watts=1.0)]
    answer = orders(case_of(offers_of(), 10 * DAY, own=own))
    assert answer.orders == () and answer.cost == 0
    assert answer.finish_day() in (date(2025, 1, 10), date(2025, 1, 11))


def test_power_that_comes_free_later_is_not_used_sooner() -> None:
    changes = [(0.0, 1.0), (float(date(2025, 2, 1).toordinal()), -1.0)]
    own = [OwnChange(day=day, site="home", speed=0.0, watts=sign * 90.0) for day, sign in changes]
    case = case_of(offers_of(), 1e9, power={"home": 100.0}, own=own)
    answer = orders(case, goal="largest", by=date(2025, 4, 1))
    assert [(one.chips, one.column.step) for one in answer.orders] == [(1, 1)]


def test_a_share_is_met_by_the_finish_and_not_later() -> None:
    two = [offer("a", **{"from": date(2025, 2, 15)}), offer("b", stock=9)]
    limit = [{"name": "half", "sellers": ["seller of a"], "at_least": 0.5}]
    answer = orders(case_of(offers_of(offer=two, limit=limit), 20 * DAY * 5.0))
    assert answer.last == date(2025, 3, 1).toordinal()
    assert {one.column.offer.name for one in answer.orders} == {"a", "b"}


def test_a_budget_may_pay_in_another_currency() -> None:
    content = {
        "offer": [offer(price="10 USD", stock=9)],
        "budget": [budget(amount="150 CNY", converts=True)],
        "exchange_rate": [{"from": "USD", "to": "CNY", "rate": 7.0}],
    }
    answer = orders(case_of(offers_of(**content), 1e9), goal="largest", by=date(2025, 4, 1))
    assert [one.chips for one in answer.orders] == [2]
    assert answer.spend == (("money", 140.0),) and answer.cost == 140.0


def test_what_comes_too_late_is_not_to_be_had_at_any_price() -> None:
    with pytest.raises(NoOrders, match="at any price") as caught:
        orders(case_of(offers_of(offer=[offer(lead="200 d")]), 1e9))
    assert caught.value.groups == ()


def test_an_offer_that_no_budget_covers_is_named() -> None:
    two = [offer(), offer("b", site="johor"), offer("c", **{"from": date(2027, 1, 1)})]
    case = case_of(offers_of(offer=two, budget=[budget(place="CN")]), DAY)
    assert orders(case).unusable == ("b", "c")
