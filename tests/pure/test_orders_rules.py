"""Orders under rules: what they refuse is not ordered, on their days only; equal to brute force."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

pytest.importorskip("scipy", reason="atoll orders needs SciPy")

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.order_cases import (
    COUNTRIES,
    FLEET,
    OFFERS,
    RECIPE,
    SPEED,
    WATTS,
    budget,
    offer,
    offers_of,
    soonest_as_by_brute_force,
)

from atoll import strict
from atoll.cli import main
from atoll.facts.rules import SEVERITY, Rule, rules
from atoll.fleet import Fleet
from atoll.planning.case import DAY, Case
from atoll.planning.closing import Ruled, ruled_of
from atoll.planning.offers import Offers
from atoll.planning.orders import orders
from atoll.planning.placing import Chosen

ADVICE = "no legal advice"


def fleet_of(**changes: Any) -> Fleet:
    sites = [{"name": name, "country": country} for name, country in COUNTRIES.items()]
    content = {"site": sites, "island": [{"name": "x", "site": "home", "chip": "cpu"}]}
    return Fleet.from_dict({**content, **changes})


def rule_of(**changes: Any) -> Rule:
    content = {
        "name": "ours", "title": "a test", "jurisdiction": "US", "effect": "licence",
        "from": date(2024, 1, 1), "read": date(2026, 8, 1), "source": "a test",
        "confidence": "low",
    }  # fmt: skip
    return strict.validate(Rule, {**content, **changes})


def ruled(offers: Offers, chosen: Chosen, fleet: Fleet | None = None) -> Ruled:
    return ruled_of(fleet or fleet_of(), offers, chosen)


def case_of(offers: Offers, tokens: float, found: Ruled) -> Case:
    return Case(
        offers=offers, speed=SPEED, watts=WATTS, tokens=tokens, countries=COUNTRIES,
        closed=found.closed,
    )  # fmt: skip


@st.composite
def ruled_cases(draw: st.DrawFn) -> tuple[Case, Any]:
    """A case under one rule, and the rule once more as plain comparisons."""
    tables = [
        offer(
            name, chip=chip, site=draw(st.sampled_from(["home", "johor"])), stock=2,
            price=f"{draw(st.integers(5, 40))} CNY",
            lead=f"{draw(st.sampled_from([0, 10, 40]))} d",
        )
        for name, chip in (("a", "h20"), ("b", "h100-sxm-80gb"))
    ]  # fmt: skip
    since = draw(st.dates(date(2024, 12, 1), date(2025, 4, 1)))
    until = draw(st.none() | st.dates(date(2025, 1, 15), date(2025, 5, 1)))
    place = draw(st.sampled_from(["CN", "MY"]))
    result = draw(st.sampled_from(["approval", "licence", "denial"]))
    named = draw(st.sampled_from([["h20"], ["h100-sxm-80gb"], []]))
    outcome = {"to": [place], "chips": named, "result": result, "text": "no", "from": since}
    if until is not None and until > since:
        outcome["until"] = until
    mildest = draw(st.sampled_from(["approval", "licence", "denial"]))
    chosen = Chosen(rules=(rule_of(outcome=[outcome]),), headquarters="CN", mildest=mildest)
    money = [budget(amount=f"{draw(st.integers(20, 200))} CNY")]
    offers = offers_of(offer=tables, budget=money)
    grave = SEVERITY.index(result) >= SEVERITY.index(mildest)

    def refuses(one: Any, day: date) -> bool:
        about = COUNTRIES[one.site] == place and (not named or one.chip in named)
        return grave and about and since <= day < outcome.get("until", date.max)

    tokens = draw(st.floats(0.5, 20.0)) * 30 * DAY
    return case_of(offers, tokens, ruled(offers, chosen)), refuses


@settings(max_examples=25, deadline=None)
@given(drawn=ruled_cases())
def test_soonest_and_then_cheapest_as_by_brute_force_under_a_rule(drawn: Any) -> None:
    case, refuses = drawn
    soonest_as_by_brute_force(case, refuses)


def letters(lead: str) -> Case:
    """H20 for China, of which the shipped rules ask a licence from 9 April to 10 August 2025."""
    tables = [offer("a", chip="h20", lead=lead, stock=99, a_month=1)]
    offers = offers_of(offer=tables, months=12, budget=[budget()])
    chosen = Chosen(rules=rules(), headquarters="CN")
    return case_of(offers, 1e12, ruled(offers, chosen))


@pytest.mark.parametrize(
    ("lead", "months"),
    [
        # Orders on the first of a month; both the order and the arrival must be free.
        ("0 d", [1, 2, 3, 4, 9, 10, 11, 12]),
        ("7 d", [1, 2, 3, 4, 9, 10, 11, 12]),
        ("8 d", [1, 2, 3, 9, 10, 11, 12]),
        ("45 d", [1, 2, 9, 10, 11, 12]),
    ],
)
def test_a_rule_in_the_middle_closes_its_own_days_only(lead: str, months: list[int]) -> None:
    answer = orders(letters(lead), goal="largest", by=date(2026, 1, 1))
    days = int(lead.split()[0])
    useful = [m for m in months if date(2025, m, 1).toordinal() + days < answer.last]
    ordered = [date.fromordinal(int(one.column.ordered)).month for one in answer.orders]
    assert ordered == useful


def test_who_orders_who_owns_and_who_runs_decide() -> None:
    """H200 in Malaysia in 2026: refused to a buyer of China, not to one of Malaysia; leased, the
    host is asked.
    """
    lease = {"kind": "lease", "price": "1 CNY/h"}
    tables = [
        offer("bought", site="johor", chip="h200"),
        offer("other-buyer", site="johor", chip="h200", hq="MY"),
        offer("hosted", site="johor", chip="h200", owner_hq="SG", operator_hq="MY", **lease),
        offer("chinese-host", site="johor", chip="h200", owner_hq="SG", operator_hq="CN", **lease),
        offer("unsaid", site="johor", chip="h200", **lease),
        offer("process", site="home"),
    ]
    offers = offers_of(offer=tables, start=date(2026, 2, 1), months=6)
    found = ruled(offers, Chosen(rules=rules(), headquarters="CN"))
    assert {one.offer for one in found.closed} == {"bought", "chinese-host"}
    whys = {one.offer: one.why for one in found.closed}
    assert whys["bought"].startswith("refused by rule us-2023-10: ")
    assert whys["chinese-host"].startswith("refused by rule for the host: us-2023-10: ")
    assert any("offer unsaid it cannot be told" in one for one in found.notes)
    assert ADVICE in found.lines()[-1] and len(found.lines()) == 3
    off = ruled(offers, Chosen(rules=(), headquarters="CN"))
    assert off.closed == () and "refuse nothing" in off.lines()[0] and ADVICE in off.lines()[1]
    at_home = fleet_of(site=[{"name": "home", "country": "CN"}, {"name": "johor", "country": "MY",
                       "owner_hq": "CN", "operator_hq": "MY"}])  # fmt: skip
    again = ruled(offers, Chosen(rules=rules(), headquarters="CN"), at_home)
    assert "unsaid" in {one.offer for one in again.closed}


def test_what_is_still_to_be_delivered_is_judged_too() -> None:
    count = {"low": 8, "mid": 8, "high": 8}
    days = (date(2025, 3, 1), date(2025, 5, 1))
    fleet = fleet_of(
        island=[{"name": "x", "site": "home", "chip": "h20", "nodes": 1}],
        delivery=[{"date": day, "island": "x", "count": count} for day in days],
    )
    found = ruled(offers_of(), Chosen(rules=rules(), headquarters="CN"), fleet)
    assert [one.date for one in found.fleet.delivery] == [days[0]]
    ((what, why),) = found.refused
    assert what == "8 chips for x on 2025-05-01" and "us-2025-04-letters" in why


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["orders", str(RECIPE), str(FLEET), *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


H20 = """
start = 2025-01-01
months = 12
[[budget]]
name = "money"
amount = "9 B CNY"
[[offer]]
name = "H20"
chip = "h20"
seller = "distributors"
site = "home"
price = "110000 CNY"
stock = 4000
a_month = 400
lot = 8
"""


def test_the_command_says_which_rule_and_from_when(capsys, tmp_path) -> None:
    offers = tmp_path / "offers.toml"
    offers.write_text(H20)
    flags = ("--offers", offers, "--goal", "largest", "--by", "2026-01-01", "--json")
    code, out, err = ran(capsys, *flags, "--rules", "all", "--hq", "CN")
    assert code == 0, err
    found = json.loads(out)
    (refused,) = found["refused"]
    assert (refused["offer"], refused["from"]) == ("H20", "2025-04-09")
    assert refused["until"] == "2025-08-11" and "us-2025-04-letters" in refused["why"]
    assert ADVICE in found["advice"]
    days = [one["ordered"] for one in found["orders"]]
    assert days and not [day for day in days if "2025-04-09" <= day < "2025-08-11"]
    off = ("--rules", "all", "--hq", "CN", "--no-rules", "us-2025-04-letters")
    code, out, _ = ran(capsys, *flags, *off)
    free = json.loads(out)
    assert code == 0 and free["refused"] == [] and ADVICE in free["advice"]
    assert len(free["orders"]) > len(days) and free["tokens"] >= found["tokens"]
    code, shown, _ = ran(capsys, *flags[:-1], "--rules", "all", "--hq", "CN")
    assert code == 0 and ADVICE in shown
    assert "H20 from 2025-04-09 to 2025-08-10: refused by rule us-2025-04-letters" in shown


OWN = """
name = "ours"
title = "what our lawyers say"
jurisdiction = "US"
effect = "licence"
from = 2024-01-01
read = 2026-08-01
source = "a letter"
confidence = "low"
[[outcome]]
to = ["CN", "MY"]
result = "denial"
text = "nothing at all"
"""


def test_where_rules_leave_too_little_they_are_told(capsys, tmp_path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(OWN.replace("from = 2024-01-01", "from = 2025-01-15"))
    code, out, err = ran(
        capsys, "--offers", OFFERS, "--rules", own, "--no-rules", "all", "--hq", "CN",
        "--set", "schedule.tokens=900 T",
    )  # fmt: skip
    assert code == 1 and out == "" and ADVICE in err
    assert "910B from 2025-01-15: refused by rule ours: nothing at all" in err
    assert "3,000 chips for ascend on 2025-03-01: refused by rule ours" in err


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({}, ("--hq", "CN"), "--hq: is an option of --rules"),
        ({}, ("--rules", "all", "--refuse", "often"), "--refuse"),
        ({}, ("--rules", "all", "--no-rules", "us-1999"), "there is no such rule"),
        ({"source": "sauce"}, (), 'own.toml: sauce = "a letter": there is no such key'),
        ({"2024-01-01": "2024-02-31"}, (), "own.toml: is not TOML"),
    ],
)
def test_wrong_rules_are_exit_code_2(capsys, tmp_path, changes, flags, words) -> None:
    own = tmp_path / "own.toml"
    text = OWN
    for old, new in changes.items():
        text = text.replace(old, new)
    own.write_text(text)
    code, out, err = ran(capsys, "--offers", OFFERS, *(flags or ("--rules", own)))
    assert code == 2 and out == "" and words in err and "Traceback" not in err


def test_an_unknown_country_of_a_site_names_the_fleet(capsys, tmp_path) -> None:
    fleet = tmp_path / "fleet.toml"
    text = FLEET.read_text().replace('country = "MY"', 'country = "Mars"')
    fleet.write_text(text)
    offers = tmp_path / "offers.toml"
    offers.write_text(OFFERS.read_text().replace('place = "MY"', 'place = "johor"'))
    code = main(["orders", str(RECIPE), str(fleet), "--offers", str(offers), "--rules", "all"])
    err = capsys.readouterr().err
    assert code == 2 and 'country = "Mars": there is no such country' in err and str(fleet) in err
