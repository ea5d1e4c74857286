"""Cases of orders, drawn and by hand, and every order that they allow: a simulation day by day that
shares no code with the programme.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import strategies as st

from atoll.planning.case import DAY, Case, OwnChange
from atoll.planning.offers import Offers
from atoll.planning.orders import orders
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


Refuses = Callable[[object, date], bool]
"""Whether rules keep an offer's chips away on a day."""


def allowed(case: Case, chosen: list, refuses: Refuses = lambda one, day: False) -> bool:
    """Whether orders [(offer, day, chips)] keep everything."""
    offers, months = case.offers, months_of(case.offers)
    for one, day, _ in chosen:
        if any(refuses(one, when) for when in (day, stands(one, day, months)[0])):
            return False
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


def every_order(case: Case, refuses: Refuses = lambda one, day: False) -> list[list]:
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
        if allowed(case, chosen, refuses):
            found.append(chosen)
    return found


def cost_of(case: Case, chosen: list) -> float:
    months = months_of(case.offers)
    return sum(n * sum(m for _, m in payments_of(o, d, months)) for o, d, n in chosen)


def placed(answer) -> list:
    return [
        (o.column.offer, date.fromordinal(int(o.column.ordered)), o.chips) for o in answer.orders
    ]


def soonest_as_by_brute_force(case: Case, refuses: Refuses = lambda one, day: False) -> None:
    """The first step that is enough, and the cheapest orders by then, are those of every try."""
    best = None
    every = every_order(case, refuses)
    for end in months_of(case.offers)[1:]:
        done = [c for c in every if tokens_by(case, c, end) >= case.tokens]
        done = [c for c in done if all(day < end for _, day, _ in c)]
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
    assert allowed(case, placed(answer), refuses)
    assert tokens_by(case, placed(answer), best[0]) >= case.tokens * (1 - 1e-6)


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
