"""Seconds of a core that a calendar and its draws take; how far off unplanned stocks are.

`python benchmarks/draws.py`; prints a line a first day. The fleet is that of scarce-2024, the
recipe dense-400b. docs/calendar.md says what was found.
"""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

import numpy as np

from atoll.fleet import Fleet
from atoll.planning import draws
from atoll.planning.calendar import Calendar, calendar_of
from atoll.planning.planner import Asked, plan
from atoll.recipe import Recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
DAYS = (date(2024, 4, 1), date(2024, 5, 1), date(2024, 7, 2), date(2024, 9, 2), date(2024, 10, 2))
DRAWS = 1000
CHECKED = 24


def main() -> None:
    """Prints seconds and errors for every first day."""
    recipe = Recipe.load(EXAMPLES / "recipes" / "dense-400b.toml")
    fleet = Fleet.load(EXAMPLES / "fleets" / "scarce-2024.toml")
    for day in DAYS:
        asked = Asked(day=day)
        begun = time.process_time()
        answer = plan(recipe, fleet, asked)
        planned = time.process_time()
        found = calendar_of(answer, fleet, asked)
        followed = time.process_time()
        drawn = draws.draw(found, number=DRAWS, seed=1)
        ended = time.process_time()
        errors = interpolated(calendar_of(answer, fleet, asked), day)
        print(
            f"{day}: plan {planned - begun:.2f} s, three courses {followed - planned:.2f} s, "
            f"{DRAWS} draws {ended - followed:.2f} s ({drawn.plans} stocks planned); between "
            f"points off by {np.median(errors):.1%} (median), {errors.max():.1%} (most)"
        )


def interpolated(found: Calendar, day: date) -> np.ndarray:
    """Relative errors of tokens a second of stocks drawn for a day, against a plan of each."""
    fleet, random = found.rates.fleet, np.random.default_rng(5)
    chips = np.tile([float(island.num_chips) for island in fleet.island], (DRAWS, 1))
    for when, sign, change, place in draws._changes(fleet):
        if when <= day:
            count = draws.triangle(random.random(DRAWS), change.count)
            chips[:, place] = np.maximum(0.0, chips[:, place] + sign * count)
    drawn = draws._Drawn(counts=chips, speed=np.zeros(DRAWS), failures=np.ones(DRAWS))
    peaks = np.array(draws._peaks(found.rates))
    guessed = draws._rates(found.rates, chips, peaks, drawn, np.arange(DRAWS)).raw
    errors = []
    for index in random.choice(DRAWS, CHECKED, replace=False):
        names = (island.name for island in fleet.island)
        rated = found.rates.of(dict(zip(names, map(int, chips[index]), strict=True)))
        assert rated.answer is not None
        errors.append(abs(guessed[index] / rated.answer.tokens_per_second.mid - 1.0))
    return np.array(errors)


if __name__ == "__main__":
    main()
