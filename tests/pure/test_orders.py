"""`atoll orders`: equal to brute force, within every limit, and clear about what is not enough."""

from __future__ import annotations

import itertools
import json
from datetime import date, timedelta
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="atoll orders needs SciPy")

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.cli import main
from atoll.errors import InputError
from atoll.planning.offers import Offers
from atoll.planning.orders import orders
from atoll.planning.programme import DAY, Case, OwnChange, Programme
from atoll.planning.shortage import NoOrders

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples/recipes/dense-400b.toml"
FLEET = ROOT / "examples/fleets/ordering-2025.toml"
OFFERS = ROOT / "examples/offers/two-budgets-2025.toml"
START = date(2025, 1, 1)
COUNTRIES = {"home": "CN", "johor": "MY"}
SPEED, WATTS = {"a": 3.0, "b": 5.0, "c": 7.0}, {"a": 100.0, "b": 150.0, "c": 400.0}


def offer(name: str = "a", **changes: object) -> dict:
    table = {"name": name, "chip": "cpu", "seller": f"seller of {name}", "site": "home"}
    return {**table, "price": "10 CNY", "stock": 4, **changes}


def budget(name: str = "money", **changes: object) -> dict:
    return {"name": name, "amount": "1000 CNY", **changes}


def offers_of(**changes: object) -> Offers:
    content = {"start": START, "months": 3, "offer": [offer()], "budget": [budget()]}
    return Offers.from_dict({**content, **changes})


def case_of(offers: Offers, tokens: float, **more: object) -> Case:
    return Case(offers=offers, speed=SPEED, watts=WATTS, tokens=tokens, countries=COUNTRIES, **more)


# Brute force: a simulation day by day that shares no code with the programme.


def months_of(offers: Offers) -> list[date]:
    starts = [START.month - 1 + n for n in range(offers.months + 1)]
    return [date(START.year + n // 12, n % 12 + 1, 1) for n in starts]


def length(text: str | None) -> int | None:
    return None if text is None else int(text.split()[0])


def payments_of(one, day: date, months: list[date]) -> list[tuple[date, float]]:
    """(day, money) of each payment for a chip ordered on a day."""
    if one.kind == "buy":
        return [(day, float(one.price.split()[0]))]
    arrives, ends = stands(one, day, months)
    hourly = float(one.price.split()[0])
    paid: dict[date, float] = {}
    now = arrives
    while now < ends:
        key = max([arrives, *(m for m in months if m <= now)])
        paid[key] = paid.get(key, 0.0) + 24 * hourly
        now += timedelta(days=1)
    return list(paid.items())


def stands(one, day: date, months: list[date]) -> tuple[date, date]:
    """The first day that a chip ordered on a day is there, and the first that it is not."""
    arrives = day + timedelta(days=length(one.lead) or 0)
    if one.kind == "buy":
        return arrives, date(2099, 1, 1)
    step = max(index for index, month in enumerate(months[:-1]) if month <= day)
    term = length(one.term) or (months[step + 1] - months[step]).days
    return arrives, arrives + timedelta(days=term)


def covers(one, bought, day: date) -> bool:
    at = one.place in ("", bought.site, COUNTRIES[bought.site])
    since, until = one.since or date(2000, 1, 1), one.until or date(2099, 1, 1)
    return at and since <= day <= until and one.amount.split()[-1] == "CNY"


def allowed(case: Case, chosen: list) -> bool:
    """Whether orders [(offer, day, chips)] keep everything."""
    offers, months = case.offers, months_of(case.offers)
    pays = [
        (one, when, chips * money)
        for one, day, chips in chosen
        for when, money in payments_of(one, day, months)
    ]
    for one, when, _ in pays:
        if not any(covers(b, one, when) for b in offers.budget):
            return False
    for b in offers.budget:
        if sum(money for one, when, money in pays if covers(b, one, when)) > b.number + 1e-6:
            return False
    for limit in offers.limit:
        here = [(o, m) for o, _, m in pays if limit.place in ("", o.site, COUNTRIES[o.site])]
        total = sum(m for _, m in here)
        named = sum(m for o, m in here if o.seller in limit.sellers)
        if limit.at_least is not None and named < limit.at_least * total - 1e-6:
            return False
        if limit.at_most is not None and named > limit.at_most * total + 1e-6:
            return False
    return holds_stock(case, chosen, months) and holds_power(case, chosen, months)


def holds_stock(case: Case, chosen: list, months: list[date]) -> bool:
    for one in case.offers.offer:
        mine = [(day, chips) for o, day, chips in chosen if o is one]
        if one.kind == "buy" and sum(chips for _, chips in mine) > one.stock:
            return False
        if one.a_month is not None and any(chips > one.a_month for _, chips in mine):
            return False
        if one.kind == "lease":
            spans = [(*stands(one, day, months), chips) for day, chips in mine]
            for now, _, _ in spans:
                if sum(chips for a, b, chips in spans if a <= now < b) > one.stock:
                    return False
    return True


def holds_power(case: Case, chosen: list, months: list[date]) -> bool:
    spans = [(one, *stands(one, day, months), chips) for one, day, chips in chosen]
    for site, power in case.power.items():
        now = START
        while now < months[-1]:
            watts = [
                case.watts[o.name] * n for o, a, b, n in spans if o.site == site and a <= now < b
            ]
            own = sum(o.watts for o in case.own if o.site == site and o.day <= now.toordinal())
            if sum(watts) + own > power + 1e-6:
                return False
            now += timedelta(days=1)
    return True


def tokens_by(case: Case, chosen: list, day: date) -> float:
    months = months_of(case.offers)
    total = 0.0
    for one, ordered, chips in chosen:
        arrives, ends = stands(one, ordered, months)
        total += max(0, (min(day, ends) - arrives).days) * chips * case.speed[one.name]
    for own in case.own:
        begun = max(own.day, START.toordinal())
        total += max(0.0, day.toordinal() - begun) * own.speed
    return total * DAY * case.offers.availability


def every_order(case: Case) -> list[list]:
    """All orders that keep everything."""
    months = months_of(case.offers)
    slots = [
        (one, month)
        for one in case.offers.offer
        for month in months[:-1]
        if (one.since is None or one.since <= month) and (one.until is None or month <= one.until)
    ]
    counts = [range(0, min(one.stock, one.a_month or 99) + 1, one.lot) for one, _ in slots]
    found = []
    for numbers in itertools.product(*counts):
        chosen = [(o, m, n) for (o, m), n in zip(slots, numbers, strict=True) if n]
        if allowed(case, chosen):
            found.append(chosen)
    return found


def cost_of(case: Case, chosen: list) -> float:
    months = months_of(case.offers)
    return sum(n * sum(m for _, m in payments_of(o, d, months)) for o, d, n in chosen)


def placed(answer) -> list:
    return [
        (o.column.offer, date.fromordinal(int(o.column.ordered)), o.chips) for o in answer.orders
    ]


@st.composite
def cases(draw) -> Case:
    tables = []
    for name in draw(st.sampled_from(["a", "ab", "ab", "bc"])):
        lease = draw(st.booleans())
        table = offer(
            name,
            site=draw(st.sampled_from(["home", "johor"])),
            kind="lease" if lease else "buy",
            price=f"0.0{draw(st.integers(1, 9))} CNY/h" if lease
            else f"{draw(st.integers(5, 60))} CNY",
            stock=draw(st.integers(2, 3)), lead=f"{draw(st.sampled_from([0, 10, 40]))} d",
            lot=draw(st.integers(1, 2)),
        )  # fmt: skip
        if draw(st.booleans()):
            table["a_month"] = 2
        if lease and draw(st.booleans()):
            table["term"] = "45 d"
        tables.append(table)
    budgets = [budget(amount=f"{draw(st.integers(20, 300))} CNY")]
    if draw(st.booleans()):
        budgets.append(budget("at home", amount=f"{draw(st.integers(10, 99))} CNY", place="CN"))
    limits = []
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["at_least", "at_most"]))
        share = draw(st.sampled_from([0.25, 0.5, 0.6]))
        limits.append({"name": "share", "sellers": [tables[0]["seller"]], kind: share})
    offers = offers_of(offer=tables, budget=budgets, limit=limits, availability=0.9)
    power = {"home": float(draw(st.sampled_from([150, 450, 2000])))} if draw(st.booleans()) else {}
    own = []
    if draw(st.booleans()):
        own.append(OwnChange(day=0.0, site="home", speed=0.5, watts=50.0))
        if draw(st.booleans()):  # withdrawn again
            day = float(date(2025, 2, 10).toordinal())
            own.append(OwnChange(day=day, site="home", speed=-0.5, watts=-50.0))
    tokens = draw(st.floats(0.05, 40.0)) * 30 * DAY
    return case_of(offers, tokens, power=power, own=own)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_soonest_and_then_cheapest_as_by_brute_force(case: Case) -> None:
    months, every = months_of(case.offers), every_order(case)
    best = None
    for end in months[1:]:
        done = [
            c
            for c in every
            if tokens_by(case, c, end) >= case.tokens and all(d < end for _, d, _ in c)
        ]
        if done:
            best = (end, min(cost_of(case, c) for c in done))
            break
    if best is None:
        with pytest.raises(NoOrders):
            orders(case)
        return
    answer = orders(case)
    assert date.fromordinal(int(answer.last)) == best[0]
    assert answer.cost == pytest.approx(best[1], rel=6e-4, abs=1e-6)
    assert allowed(case, placed(answer))
    assert tokens_by(case, placed(answer), best[0]) >= case.tokens * (1 - 1e-6)


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=40, deadline=None)
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


# The files and the command.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": date(1025, 1, 1)}, "start.*no day of our time"),
        ({"start": date(2025, 1, 31)}, "start.*no such day every time"),
        ({"months": -3}, "months = -3: must be at least 1"),
        ({"months": 5, "step_months": 2}, "no multiple of step_months"),
        ({"offer": [offer(stock=-8)]}, "stock = -8: must be at least 1"),
        ({"offer": [offer(stock=10**12)]}, "stock = 1000000000000: must be at most"),
        ({"offer": [offer(stock=2.5)]}, "stock = 2.5: must be a whole number"),
        ({"offer": [offer(lot=5)]}, "lot = 5: is more than the stock"),
        ({"offer": [offer(lead="-5 d")]}, "lead.*not negative"),
        ({"offer": [offer(lead="40000 d")]}, "lead.*longer than ten years"),
        ({"offer": [offer(lead="45")]}, "lead.*needs a unit"),
        ({"offer": [offer(price="-5 CNY")]}, "price.*not negative"),
        ({"offer": [offer(price="0 CNY")]}, "price.*more than 0"),
        ({"offer": [offer(price="10 CYN")]}, 'price = "10 CYN": no budget pays in CYN\n.*"CNY"'),
        ({"offer": [offer(price="10")]}, "price.*is no amount of money"),
        ({"offer": [offer(price="2 CNY/h")]}, 'price.*\n.*kind = "lease"'),
        ({"offer": [offer(price="2 CNY", kind="lease")]}, "price.*is no rent"),
        ({"offer": [offer(term="30 d")]}, "what is bought has no term"),
        ({"offer": [offer(**{"from": START, "until": date(2024, 2, 1)})]}, "ends before"),
        ({"offer": [offer(until=date(9999, 1, 1))]}, "until.*no day of our time"),
        ({"offer": [offer(until="soon")]}, "until"),
        ({"offer": [offer(chip="h21")]}, "there is no such chip"),
        ({"offer": [offer(stok=3)]}, "there is no such key\n.*nearest: offer\\[0\\].stock"),
        ({"offer": [offer(), offer()]}, "another offer of this name"),
        ({"offer": []}, "offer"),
        ({"budget": [budget(amount="-1 CNY")]}, "amount.*not negative"),
        ({"budget": [budget(amount="a lot")]}, "amount.*no amount of money"),
        ({"limit": [{"name": "x", "sellers": ["nobody"], "at_least": 0.5}]}, "offers nothing here"),
        ({"limit": [{"name": "x", "sellers": ["seller of a"], "at_least": 60.0}]}, "at most 1"),
        ({"limit": [{"name": "x", "sellers": ["seller of a"]}]}, "one of at_least and at_most"),
        ({"exchange_rate": [{"from": "USD", "to": "CNY", "rate": -7.0}]}, "greater than 0"),
        ({"currency": "EUR"}, "no budget is in it"),
        (
            {
                "offer": [offer(price="3 USD")],
                "budget": [budget(), budget("dollars", amount="9 USD")],
            },
            "no exchange rate from USD to CNY",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        offers_of(**changes)
    assert caught.value.exit_code == 2


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["orders", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_example_is_solved_and_keeps_its_budgets(capsys) -> None:
    arguments = (RECIPE, FLEET, "--offers", OFFERS)
    code, out, err = ran(capsys, *arguments, "--goal", "largest", "--by", "2026-01-01", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert out.count("\n") == 1 and found["orders"] and 0 <= found["gap"] <= 2e-4
    for one in found["spend"]:
        assert 0 <= one["spent"] <= one["amount"] * (1 + 1e-9)
    home = [one for one in found["orders"] if one["site"] == "home"]
    domestic = [one["cost"] for one in home if one["seller"] in ("Huawei", "Cambricon")]
    assert sum(domestic) >= 0.6 * sum(one["cost"] for one in home) * (1 - 1e-9)
    assert found["largest"]["parameters"] > 1e11 and found["together"] < found["added"]
    code, shown, _ = ran(capsys, *arguments)
    assert code == 0 and "finish" in shown and "proved" in shown
    assert len(shown.splitlines()) <= 50 and max(map(len, shown.splitlines())) <= 180


def test_what_is_too_much_is_exit_code_1(capsys) -> None:
    code, out, err = ran(
        capsys, RECIPE, FLEET, "--offers", OFFERS, "--set", "schedule.tokens=900 T", "--json"
    )
    assert code == 1 and out == "" and "power of home" in err and "as things are" in err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('site = "home"', 'site = "hame"', "the fleet has no such site"),
        ('place = "CN"', 'place = "XX"', "is no site and no country of the fleet"),
        ('power = "1400 W"', 'source = "x"', "nobody published what this chip draws"),
        ("stock = 75000", "stok = 75000", "nearest: offer[0].stock"),
        ("start = 2025-01-01", "start = 2025-13-01", "is not TOML"),
    ],
)
def test_a_wrong_file_is_exit_code_2_and_named(capsys, tmp_path, old, new, words) -> None:
    text = OFFERS.read_text(encoding="utf-8")
    if old.startswith("power"):
        text = text.replace('source = "SCMP; FT 2025-02"\n', "")
    wrong = tmp_path / "offers.toml"
    wrong.write_text(text.replace(old, new, 1), encoding="utf-8")
    code, out, err = ran(capsys, RECIPE, FLEET, "--offers", wrong, "--json")
    assert code == 2 and out == "" and words in err and str(wrong) in err, err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--goal", "best"), "allowed: soonest"),
        (("--goal", "cheapest"), "needs a day"),
        (("--by", "2019-01-01"), "outside the months"),
        (("--by", "soon"), "is no date"),
        (("--at", "mars"), "the fleet has no such site"),
        (("--seconds", "-1"), "seconds"),
    ],
)
def test_wrong_flags_are_exit_code_2(capsys, more, words) -> None:
    code, out, err = ran(capsys, RECIPE, FLEET, "--offers", OFFERS, *more)
    assert code == 2 and out == "" and words in err
