"""`atoll orders`: its files, its flags, its exit codes, what it prints."""

from __future__ import annotations

import json
from datetime import date

import pytest

pytest.importorskip("scipy", reason="atoll orders needs SciPy")

from tests.pure.order_cases import FLEET, OFFERS, RECIPE, START, budget, offer, offers_of

from atoll.cli import main
from atoll.errors import InputError

RANGE = {"low": "1 CNY", "mid": "2 CNY", "high": "3 CNY"}


def share(name: str, *of: str, **bound: float) -> dict:
    return {"name": name, "sellers": [f"seller of {one}" for one in of], **bound}


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
        ({"offer": [offer(price="20 T CNY")]}, "price.*is no price of a chip"),
        ({"offer": [offer(mode="lease")]}, "mode: does not go with kind = buy"),
        ({"offer": [offer(hq="XX")]}, "hq.*there is no such country"),
        ({"offer": [offer(price={"low": "1 CNY", "mid": "2 CNY"})]}, "price.high: this key is mis"),
        ({"offer": [offer(price=RANGE | {"hi": "9 CNY"})]}, "price.hi: there is no such key"),
        ({"offer": [offer(price=RANGE | {"low": "9 CNY"})]}, "price: must hold low <= mid <= high"),
        ({"offer": [offer(price=RANGE | {"high": "9 USD"})]}, "price: holds two currencies"),
        ({"offer": [offer(price=RANGE | {"high": 9})]}, "price = 9: must be text in quotes"),
        ({"offer": [offer(stock={"low": -1, "mid": 4, "high": 5})]}, "stock.low = -1: is no"),
        ({"offer": [offer(lead={"low": "1 d", "mid": "2 d", "high": "9"})]}, "lead.*needs a unit"),
        (
            {"budget": [budget(), budget("typo", amount="5 CYN")]},
            r"budget\[1\].amount.*nothing is priced in CYN.*\n.*nearest: .CNY",
        ),
        ({"limit": [share("x", "a", at_least=0.6), share("y", "a", at_most=0.3)]},
         r"limit\[1\]: no spend can meet x \(at least 60 %\) and y \(at most 30 %\) together"),
        ({"offer": [offer(), offer("b")],
          "limit": [share("x", "a", at_least=0.6), share("z", "a", "b", at_most=0.9),
                    share("y", "b", at_least=0.5)]},
         r"no spend can meet x \(at least 60 %\) and y \(at least 50 %\) together"),
        ({"exchange_rate": [{"from": "USD", "to": "USD", "rate": 1.0}]}, "between two currencies"),
        ({"exchange_rate": [{"from": "USD", "to": "CNY", "rate": 7.0},
                            {"from": "CNY", "to": "USD", "rate": 0.1}]}, "CNY and USD is there tw"),
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


def test_limits_that_can_be_met_together_are_taken() -> None:
    two = [offer(), offer("b")]
    for limits in (
        [share("x", "a", at_least=0.6), share("y", "b", at_most=0.4)],
        [share("x", "a", at_least=0.6), share("y", "a", at_most=0.6)],
        [share("x", "a", at_least=0.6), share("y", "a", at_most=0.3) | {"place": "CN"}],
        [share("x", "a", at_most=0.1)],
    ):
        assert len(offers_of(offer=two, limit=limits).limit) == len(limits)


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["orders", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_example_is_solved_and_keeps_its_budgets(capsys) -> None:
    arguments = (RECIPE, FLEET, "--offers", OFFERS)
    flags = ("--goal", "largest", "--by", "2026-01-01", "--again", "0", "--json")
    code, out, err = ran(capsys, *arguments, *flags)
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
        (
            'lead = "60 d"\nlot = 8\nnetwork = { bandwidth = "200 Gb/s" }',
            "lot = 8",
            'offer[2].network = "mlu590": the network of this island is not known',
        ),
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
