"""Seconds of a core that a calendar and its draws take; how far off unplanned stocks are.

Claim: 1,000 draws of deliveries and failures take less than 5 s. The fleet is that of scarce-2024,
the recipe dense-400b, from six first days.
"""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

import numpy as np
from common import Report, arguments, run_main, tell

from atoll.fleet import Fleet
from atoll.planning import draws
from atoll.planning.calendar import Calendar, calendar_of
from atoll.planning.planner import Asked, plan
from atoll.recipe import Recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
DAYS = (
    date(2024, 4, 1), date(2024, 5, 1), date(2024, 7, 2), date(2024, 9, 2), date(2024, 10, 2),
    date(2025, 1, 2),
)  # fmt: skip
DRAWS = 1000
CHECKED = 24


def main() -> None:
    """Seconds and errors for every first day."""
    options = arguments(__doc__ or "").parse_args()
    report = Report("Deliveries and failures, drawn", quick=options.quick)
    rows, slowest = [], 0.0
    recipe = Recipe.load(EXAMPLES / "recipes" / "dense-400b.toml")
    fleet = Fleet.load(EXAMPLES / "fleets" / "scarce-2024.toml")
    for day in DAYS[:1] if options.quick else DAYS:
        tell(f"from {day}")
        asked = Asked(day=day)
        begun = time.process_time()
        answer = plan(recipe, fleet, asked)
        planned = time.process_time()
        found = calendar_of(answer, fleet, asked)
        followed = time.process_time()
        drawn = draws.draw(found, number=DRAWS, seed=1)
        ended = time.process_time()
        errors = interpolated(calendar_of(answer, fleet, asked), day)
        slowest = max(slowest, ended - followed)
        rows.append(
            [day, f"{planned - begun:.2f}", f"{followed - planned:.2f}", f"{ended - followed:.2f}",
             drawn.plans, f"{drawn.off:.1%}", f"{np.median(errors):.1%}", f"{errors.max():.1%}"]
        )  # fmt: skip
    report.table(
        f"Seconds of a core; {CHECKED} drawn stocks are planned too, to see how far off the tokens "
        "a second are that the draws take for them.",
        ["first day", "plan", "three courses", f"{DRAWS} draws", "stocks planned", "off, said",
         "off, median", "off, most"],
        rows,
    )  # fmt: skip
    report.check(f"{DRAWS} draws, s:", slowest, 5.0, at_least=False, form=".1f")
    report.show()


def interpolated(found: Calendar, day: date) -> np.ndarray:
    """Relative errors of tokens a second of stocks drawn for a day, against a plan of each."""
    drawn = draws.speeds_on(found, day, number=DRAWS, seed=5)
    errors = []
    for index in np.random.default_rng(5).choice(DRAWS, CHECKED, replace=False):
        answer = found.rates.of(drawn.stocks[index]).answer
        assert answer is not None
        errors.append(abs(drawn.tokens_per_second[index] / answer.tokens_per_second.mid - 1.0))
    return np.array(errors)


if __name__ == "__main__":
    run_main(main)
