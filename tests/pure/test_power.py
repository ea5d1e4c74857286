"""Power of a site bounds what takes part; what a run costs in energy, leases and chips."""

import json
import tomllib
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.test_calendar import NEVER_FAILS, change, files, island
from tests.pure.test_plan_command import RECIPE

from atoll import facts
from atoll.cli import main
from atoll.errors import InputError
from atoll.facts.power import published
from atoll.fleet import Fleet
from atoll.planning.calendar import Calendar, calendar_of, first_plan
from atoll.planning.costs import cost_of, cost_text, price_of
from atoll.planning.planner import Answer, Asked, NoPlan, plan
from atoll.planning.power import meter_text, watts_at
from atoll.recipe import Recipe
from atoll.supply import Dollars

START = date(2024, 7, 1)
PLAIN = tomllib.loads(RECIPE)
PLAIN["schedule"]["steps"] = 2_000_000
LONG = Recipe.from_dict(PLAIN)


def at_home(*islands: dict, **site: object) -> Fleet:
    homes = [{**one, "site": "home"} for one in islands]
    home = {"name": "home", **site}
    return Fleet.from_dict({"site": [home], "island": homes, "failures": NEVER_FAILS})


def drawn(answer: Answer) -> float:
    """Watts of what takes part."""
    total = 0.0
    for one in answer.islands:
        watts = watts_at(answer.fleet, one.island)
        assert watts is not None
        total += one.chips * watts[1]
    return total


def test_watts_by_hand() -> None:
    low, mid, high = published().at_the_meter()
    assert low < mid < high and mid == pytest.approx(1.5 * 1.3)
    stock = at_home(island(), power="1 MW")
    assert watts_at(stock, stock.island[0]) == pytest.approx((400 * low, 400 * mid, 400 * high))
    own = at_home(island(), power_factor=1.25)
    assert watts_at(own, own.island[0]) == (500.0, 500.0, 500.0)
    assert "at home 1.25" in meter_text(own)


def test_half_the_power_is_half_the_chips() -> None:
    # 16 of the 32 chips at 400 W, half as much again around each.
    stock = at_home(island(), power="9.6 kW", power_factor=1.5)
    found, half = plan(LONG, stock), plan(LONG, at_home(island(nodes=2)))
    assert found.unpowered == {"a": 16} and found.fleet == stock
    assert found.way.seconds == pytest.approx(half.way.seconds)
    assert found.rejected[0].what == "16 chips of a"
    assert found.rejected[0].why.startswith("power: home has 9.6 kW, and one takes 600 W")
    whole = plan(LONG, at_home(island(), power="19.2 kW", power_factor=1.5))
    assert whole.unpowered == {} and whole.chips == 32


def test_power_goes_where_it_computes_most() -> None:
    """At 12.8 kW either four nodes of the one kind, or two of the other and half a node."""
    both = (island("a"), island("b", 4, "h100-sxm-80gb"))
    found = plan(LONG, at_home(*both, power="12.8 kW", power_factor=1.0))
    assert drawn(found) <= 12_800 and [one.island.name for one in found.islands] == ["b"]
    assert found.unpowered == {"a": 32, "b": 16}
    assert found.way.seconds < plan(LONG, at_home(island("a"))).way.seconds


def test_chips_that_a_plan_leaves_out_need_no_power() -> None:
    """Two islands at a thin link: the plan takes one of them, and the power of one is enough."""
    two = {
        "site": [{"name": "home", "power": "13 kW", "power_factor": 1.0}, {"name": "far"}],
        "island": [{**island("a"), "site": "home"}, {**island("b", 1), "site": "far"}],
        "link": [{"between": ["home", "far"], "bandwidth": "1 Mb/s", "latency": "90 ms"}],
    }
    found = plan(LONG, Fleet.from_dict(two))
    assert [one.island.name for one in found.islands] == ["a"] and found.unpowered == {}
    two["site"] = [{"name": "home", "power": "3.5 kW", "power_factor": 1.0}, {"name": "far"}]
    found = plan(LONG, Fleet.from_dict(two))
    assert found.unpowered == {"a": 24} and drawn(found) <= 3_500


@settings(max_examples=6, deadline=None)
@given(st.integers(3, 45), st.integers(0, 30))
def test_more_power_is_never_slower(kilowatts, more) -> None:
    """But by what a plan of one node more is sometimes slower: the same turns, a longer sum."""
    both = (island("a", 2), island("b", 2, "h800"))
    seconds = []
    for number in (kilowatts, kilowatts + more):
        stock = at_home(*both, power=f"{number} kW")
        try:
            found = plan(LONG, stock)
        except NoPlan:
            seconds.append(float("inf"))
            continue
        assert drawn(found) <= 1000 * number * (1 + 1e-9)
        used = sum(one.chips for one in found.islands)
        assert used + sum(found.unpowered.values()) <= 32
        seconds.append(found.way.seconds)
    assert seconds[1] <= seconds[0] * 1.02


def test_too_little_power_for_any_plan() -> None:
    with pytest.raises(NoPlan) as caught:
        plan(LONG, at_home(island(), power="5 kW", power_factor=2.0))
    assert "within the power of the sites (home: 5 kW)" in str(caught.value)


def test_power_that_nobody_published_is_no_limit() -> None:
    assert facts.chip("ascend-910c").power is None
    found = plan(LONG, at_home(island(chip="ascend-910c"), power="1 kW"))
    assert found.unpowered == {}
    assert any("nobody published what ascend-910c draws" in note for note in found.notes)


# ------------------------------------------------------------------ over time


def over(stock: Fleet) -> Calendar:
    asked = Asked(day=START)
    return calendar_of(first_plan(LONG, stock, asked), stock, asked)


def test_a_delivery_that_has_no_power_changes_nothing() -> None:
    stock = at_home(island(), power="12.8 kW", power_factor=1.0)
    more = stock.model_copy(
        update={"delivery": Fleet.from_dict(
            {**stock.as_dict(), "delivery": [change("2024-07-11", 16, 16, 16)]}
        ).delivery}
    )  # fmt: skip
    plain, limited = over(stock), over(more)
    assert limited.mid.done == pytest.approx(plain.mid.done)
    first, second = limited.mid.periods
    assert (first.unpowered(), second.unpowered()) == ({}, {"a": 16})
    assert any("from 2024-07-11 on stand idle: 16 chips of a (power" in n for n in limited.notes)


def test_costs_by_hand() -> None:
    leased = {**island("b"), "lease": {"price": 2.0}}
    own = {**island("a"), "price": {"low": 10000, "high": 12000}}
    stock = at_home(own, leased, power_factor=1.5, electricity=0.1)
    stock = stock.model_copy(update={"costs": type(stock).model_fields["costs"].default})
    found = over(stock)
    (period,) = found.mid.periods
    hours = period.seconds / 3600
    used = {one.island.name: one.chips for one in period.rated.answer.islands}
    cost = cost_of(found)
    kilowatts = sum(used.values()) * 0.4 * 1.5
    assert cost.energy == pytest.approx((kilowatts * hours * 0.1,) * 2)
    assert cost.megawatt_hours == pytest.approx((kilowatts * hours / 1e3,) * 2)
    assert cost.leases == pytest.approx(32 * 2.0 * hours)
    years = hours / (24 * 365.25 * 4)
    assert cost.share == pytest.approx((used["a"] * 1e4 * years, used["a"] * 1.2e4 * years))
    assert cost.bought == (320_000, 384_000) and cost.unknown == ()
    assert cost.total[0] == pytest.approx(cost.energy[0] + cost.leases + cost.share[0])
    assert "energy" in cost_text(cost) and "leases" in cost_text(cost)
    twice = replace(found, rates=type(found.rates)(LONG, Fleet.from_dict(
        {**stock.as_dict(), "costs": {"years": 2}}), found.rates.asked))  # fmt: skip
    assert cost_of(twice).share == pytest.approx((2 * cost.share[0], 2 * cost.share[1]))


def test_what_nobody_priced_is_named() -> None:
    stock = at_home({**island("b"), "lease": {"start": "2024-01-01"}})
    cost = cost_of(over(stock))
    assert cost.energy is None and cost.leases == 0.0 and cost.share == (0.0, 0.0)
    assert any("electricity at home" in one for one in cost.unknown)
    assert any("the lease of b" in one for one in cost.unknown)
    assert cost_text(cost).startswith("not known: ")


def test_a_delivery_has_its_own_price() -> None:
    published_price = facts.chip("h20").price
    assert published_price is not None
    cheap = {**change("2024-07-11", 0, 32, 32), "price": 5000}
    stock = Fleet.from_dict({"island": [island()], "delivery": [cheap]})
    one = stock.island[0]
    assert price_of(stock, one, START) == (published_price.low, published_price.high)
    mean = [(32 * end + 32 * 5000) / 64 for end in (published_price.low, published_price.high)]
    assert price_of(stock, one, date(2024, 7, 11)) == pytest.approx(tuple(mean))
    rare = Fleet.from_dict({"island": [island(chip="gb300")]})
    assert facts.chip("gb300").price is None and price_of(rare, rare.island[0], START) is None


def test_the_object_has_power_and_cost(capsys, tmp_path) -> None:
    paths = files(tmp_path)
    fleet = tmp_path / "fleet.toml"
    text = fleet.read_text().replace('name = "a"', 'name = "a"\nsite = "home"')
    site = '[[site]]\nname = "home"\npower = "30 kW"\npower_factor = 1.5\nelectricity = 0.1\n'
    fleet.write_text(site + text)
    page = tmp_path / "plan.html"
    flags = ["--from", "2024-07-01", "--draws", "20", "--report", str(page), "--json"]
    assert main(["plan", *paths, *flags]) == 0
    found = json.loads(capsys.readouterr().out)["calendar"]
    first, second = found["periods"]
    assert (first["unpowered"], second["unpowered"]) == ({}, {"a": 16})
    assert second["used"] <= 48 and second["idle"] >= 16
    cost = found["cost"]
    assert cost["dollars"]["low"] == pytest.approx(
        cost["energy_dollars"]["low"] + cost["share_dollars"]["low"]
    )
    assert cost["megawatt_hours"]["low"] == pytest.approx(
        1.5 * sum(one["megawatt_hours"] for one in found["periods"])
    )
    assert "Cost: $" in page.read_text() and "16 chips of a" in page.read_text()
    # Without a first day the power binds too.
    fleet.write_text(site.replace("30 kW", "10 kW") + text)
    assert main(["plan", *paths, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unpowered"] == {"a": 16}


BAD = [
    ("power_factor = 0.5", "site[0].power_factor = 0.5"),
    ("power_factor = 99", "site[0].power_factor = 99"),
    ('electricity = "0.6 CNY/kWh"', "a fleet counts in US dollars"),
    ("electricity = -1", "site[0].electricity"),
    ("electricity = { low = 2, high = 1 }", "must hold low <= high"),
    ("electricity = { low = 1, mid = 1, high = 1 }", "mid"),
    ("electricity = true", "is no number of dollars"),
    ('power = "12"', "site[0].power"),
    ('power = "-12 MW"', "site[0].power"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_a_site_that_cannot_be(line, said) -> None:
    text = f'[[site]]\nname = "home"\n{line}\n[[island]]\nname = "a"\n'
    with pytest.raises(InputError) as caught:
        Fleet.from_dict(tomllib.loads(text))
    assert said in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"island": [{**island(), "price": "120000 CNY"}]}, "a fleet counts in US dollars"),
        ({"island": [{**island(), "price": -1}]}, "island[0].price"),
        ({"delivery": [{**change("2024-07-11", 1, 1, 1), "price": [1]}]}, "delivery[0].price"),
        ({"withdrawal": [{**change("2024-07-11", 1, 1, 1), "price": 1}]}, "withdrawal[0].price"),
        ({"costs": {"years": 0}}, "costs.years = 0"),
        ({"costs": {"year": 3}}, "costs.years"),
        ({"costs": {"years": "4"}}, "costs.years"),
    ],
)
def test_a_price_that_cannot_be(tables, said) -> None:
    with pytest.raises(InputError) as caught:
        Fleet.from_dict({"island": [island()], **tables})
    assert said in str(caught.value), str(caught.value)
    assert Dollars.model_validate(3) == Dollars(low=3, high=3)
