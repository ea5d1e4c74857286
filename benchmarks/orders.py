"""Seconds of `atoll orders` on ten chips at five sites over 24 months, the three goals, five draws.

Claim: less than 10 s of processor time each, with a proved gap of a few tenths of a percent at
most: the solve with marginal values under the shipped rules (speeds drawn, no planner), and the
whole question, with the planner's rates and the solves until it agrees. Offers are drawn at random
around real prices.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import date

from common import ROOT, Report, arguments, run_main, tell

from atoll.facts.rules import rules
from atoll.fleet import Fleet
from atoll.planning.case import Case
from atoll.planning.closing import ruled_of
from atoll.planning.offers import Offers
from atoll.planning.orders import orders
from atoll.planning.placing import Chosen
from atoll.planning.planner import Asked
from atoll.planning.programme import Programme
from atoll.planning.purchase import purchase
from atoll.recipe import Recipe

CHIPS = (
    *("ascend-910b2", "ascend-910c", "mlu590", "h20", "a800-sxm-80gb", "a100-sxm-80gb"),
    *("h100-sxm-80gb", "h200", "b200", "mi300x"),
)
COUNTRIES = {"a": "CN", "b": "CN", "c": "CN", "d": "MY", "e": "MY"}
BY = date(2026, 10, 1)


def drawn(seed: int) -> Case:
    """A case of 50 offers, three budgets and a limit."""
    draw, tables, speed, watts = random.Random(seed), [], {}, {}
    for chip in CHIPS:
        fast = draw.uniform(30, 300)
        for site, country in COUNTRIES.items():
            currency, rate = ("CNY", 1.0) if country == "CN" else ("USD", 7.2)
            price = draw.uniform(6e4, 2.5e5) * fast / 120 / rate
            name, lease = f"{chip} at {site}", draw.random() < 0.3
            speed[name], watts[name] = fast, draw.uniform(500, 1200)
            table = {
                "power": f"{watts[name]:.0f} W", "network": {"bandwidth": "400 Gb/s"},
                "name": name, "chip": chip, "seller": chip[:2], "site": site,
                "kind": "lease" if lease else "buy",
                "price": f"{price / 2e4:.2f} {currency}/h" if lease else f"{price:.0f} {currency}",
                "stock": draw.randint(500, 30000), "lot": draw.choice([8, 16, 64]),
                "lead": f"{draw.choice([0, 20, 45, 90])} d",
            }  # fmt: skip
            if draw.random() < 0.5:
                table["a_month"] = draw.randint(300, 3000)
            tables.append(table)
    budgets = [
        {"name": "2025", "amount": "12 B CNY", "place": "CN", "until": date(2025, 12, 31)},
        {"name": "2026", "amount": "15 B CNY", "place": "CN", "from": date(2026, 1, 1)},
        {"name": "abroad", "amount": "2 B USD", "place": "MY"},
    ]
    limit = {"name": "two makers", "sellers": ["as", "ml"], "place": "CN", "at_least": 0.6}
    offers = Offers.from_dict(
        {
            "start": date(2025, 1, 1), "months": 24, "offer": tables, "budget": budgets,
            "limit": [limit], "exchange_rate": [{"from": "USD", "to": "CNY", "rate": 7.2}],
        }
    )  # fmt: skip
    power = {site: draw.uniform(5e6, 5e7) for site in COUNTRIES}
    return Case(
        offers=offers, speed=speed, watts=watts, tokens=1e15, countries=COUNTRIES, power=power
    )


def fleet() -> Fleet:
    """The five sites with their links, and 4,000 chips at the first."""
    names = list(COUNTRIES)
    own = {"name": "own", "site": "a", "chip": "ascend-910b2", "nodes": 500, "chips_per_node": 8}
    return Fleet.from_dict(
        {
            "site": [{"name": n, "country": COUNTRIES[n], "power": "30 MW"} for n in names],
            "link": [
                {"between": ["a", other], "bandwidth": "400 Gb/s", "latency": "20 ms"}
                for other in names[1:]
            ],
            "island": [own],
        }
    )


def main() -> None:
    """A row for each draw and goal, without the planner and with it."""
    options = arguments(__doc__ or "").parse_args()
    report = Report("Orders", quick=options.quick)
    chosen = Chosen(rules=rules(), headquarters="CN")
    rows, whole, slowest, widest, longest = [], [], 0.0, 0.0, 0.0
    recipe, stock = Recipe.load(ROOT / "examples/recipes/dense-400b.toml"), fleet()
    for seed in range(1, 2 if options.quick else 6):
        for goal, by in (("soonest", None), ("cheapest", BY), ("largest", BY)):
            tell(f"draw {seed}, {goal}")
            case = drawn(seed)
            begun = time.process_time()
            closed = ruled_of(stock, case.offers, chosen).closed
            asked = time.process_time() - begun
            case = replace(case, closed=closed)
            programme = Programme(case)
            begun = time.process_time()
            answer = orders(case, goal=goal, by=by)
            took = time.process_time() - begun
            slowest, widest = max(slowest, asked + took), max(widest, answer.gap)
            rows.append(
                [seed, goal, f"{len(programme.columns):,}", f"{len(programme.rows):,}",
                 f"{asked:.2f}", f"{took:.2f}", f"{answer.gap:.4%}", len(answer.orders)]
            )  # fmt: skip
            if seed > 2:
                continue
            begun = time.process_time()
            told = purchase(recipe, stock, case.offers, Asked(rules=chosen), goal=goal, by=by)
            took = time.process_time() - begun
            longest = max(longest, took)
            whole.append(
                [seed, goal, f"{took:.2f}", len(told.agreed.solves),
                 "yes" if told.agreed.agrees else "no", f"{told.answer.gap:.4%}"]
            )  # fmt: skip
    report.table(
        "10 chips, 5 sites, 24 months, the shipped rules; marginal values included; processor's "
        "seconds.",
        ["draw", "goal", "columns", "rows", "rules", "solve", "proved gap", "orders"],
        rows,
    )
    report.table(
        "The whole question: rules, the planner's rates, solves until the planner agrees.",
        ["draw", "goal", "seconds", "solves", "agreed", "proved gap"],
        whole,
    )
    report.check("the slowest solve with rules, s:", slowest, 10.0, at_least=False, form=".2f")
    report.check("the slowest whole question, s:", longest, 10.0, at_least=False, form=".2f")
    report.check("the widest gap:", widest, 0.005, at_least=False, form=".2%")
    report.show()


if __name__ == "__main__":
    run_main(main)
