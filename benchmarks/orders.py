"""Seconds of `atoll orders` on ten chips at five sites over 24 months, the three goals, five draws.

Claim: less than 10 s each, marginal values included, with a proved gap of a few tenths of a percent
at most. Offers are drawn at random around real prices; speeds are drawn too, so that the planner's
time is not in it.
"""

from __future__ import annotations

import random
import time
from datetime import date

from common import Report, arguments, run_main, tell

from atoll.planning.case import Case
from atoll.planning.offers import Offers
from atoll.planning.orders import orders
from atoll.planning.programme import Programme

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
            table = {
                "name": name, "chip": chip, "seller": chip[:2], "site": site,
                "kind": "lease" if lease else "buy",
                "price": f"{price / 2e4:.2f} {currency}/h" if lease else f"{price:.0f} {currency}",
                "stock": draw.randint(500, 30000), "lot": draw.choice([8, 16, 64]),
                "lead": f"{draw.choice([0, 20, 45, 90])} d",
            }  # fmt: skip
            if draw.random() < 0.5:
                table["a_month"] = draw.randint(300, 3000)
            tables.append(table)
            speed[name], watts[name] = fast, draw.uniform(500, 1200)
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


def main() -> None:
    """A row for each draw and goal."""
    options = arguments(__doc__ or "").parse_args()
    report = Report("Orders", quick=options.quick)
    rows, slowest, widest = [], 0.0, 0.0
    for seed in range(1, 2 if options.quick else 6):
        for goal, by in (("soonest", None), ("cheapest", BY), ("largest", BY)):
            tell(f"draw {seed}, {goal}")
            case = drawn(seed)
            programme = Programme(case)
            begun = time.perf_counter()
            answer = orders(case, goal=goal, by=by)
            took = time.perf_counter() - begun
            slowest, widest = max(slowest, took), max(widest, answer.gap)
            rows.append(
                [seed, goal, f"{len(programme.columns):,}", f"{len(programme.rows):,}",
                 f"{took:.2f}", f"{answer.gap:.4%}", len(answer.orders)]
            )  # fmt: skip
    report.table(
        "10 chips, 5 sites, 24 months; marginal values included.",
        ["draw", "goal", "columns", "rows", "seconds", "proved gap", "orders"],
        rows,
    )
    report.check("the slowest, s:", slowest, 10.0, at_least=False, form=".2f")
    report.check("the widest gap:", widest, 0.005, at_least=False, form=".2%")
    report.show()


if __name__ == "__main__":
    run_main(main)
