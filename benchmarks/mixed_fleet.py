"""A mixed fleet against the sum of its parts.

Claim: two islands of unlike kinds (chips cpu and cpu-compat, one lane of one thread each)
together reach at least 0.93 of the tokens a second that each reaches alone, added up, at 32 and
64 grains a step. A fleet whose two islands compute equal shares is shown beside it.

Alone means: one island, the other core idle. Two busy cores also share caches, memory and clock,
and no way of splitting the work could give that back; so each island is also measured alone while
the other core copies memory for nobody. The claim is against the plain figure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from common import (
    QUICKSTART,
    TINY,
    Report,
    arguments,
    data_of,
    fleet_file,
    recipe_of,
    run_main,
    scratch,
    shape_of,
    spread,
)
from contenders import Contender, Pace, PacedDisplay, Stopped, take_turns

from atoll.recipe import Recipe

FAST: dict[str, Any] = {"name": "fast", "chip": "cpu", "threads": 1, "share": 1}
COMPAT: dict[str, Any] = {"name": "compat", "chip": "cpu-compat", "threads": 1, "share": 1}
FLEETS: dict[str, tuple[str, str, tuple[dict[str, Any], ...]]] = {
    "fast": ("cpu alone", "auto", (FAST,)),
    "compat": ("cpu-compat alone", "auto", (COMPAT,)),
    "fast-beside": ("cpu alone, the other core copying", "auto", (FAST,)),
    "compat-beside": ("cpu-compat alone, the other core copying", "auto", (COMPAT,)),
    "mixed": ("both, shares follow speed", "auto", (FAST, COMPAT)),
    "equal": ("both, equal shares", "fixed", (FAST, COMPAT)),
}
SETTLING_STEPS = 9
"""The pilot's split follows the last 8 steps."""


def recipe_for(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """The quickstart's model with a number of grains a step; endless, nothing but steps."""
    path = TINY if options.quick else QUICKSTART
    grain = recipe_of(path).batch.grain
    return path, [
        f"batch.sequences={options.grains * grain}",
        "schedule.steps=100000",
        "run.checkpoint_every=100000",
        "run.validate_every=100000",
    ]


def main() -> None:
    """Parent: all fleets in turn, for each number of grains; child: train one fleet."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--grains", type=int, help="grains a step (32 and then 64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a round")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        try:
            be_fleet(options)
        except Stopped:
            sys.exit(0)
    if options.quick:
        options.grains, options.rounds, options.steps = 4, 1, 1
    report = Report("A mixed fleet against the sum of its parts", quick=options.quick)
    for grains in [options.grains] if options.grains else [32, 64]:
        options.grains = grains
        compare(options, report)
    report.show()


def compare(options: argparse.Namespace, report: Report) -> None:
    """All fleets at one number of grains."""
    path, overrides = recipe_for(options)
    recipe: Recipe = recipe_of(path, *overrides)
    data = data_of(recipe, options.cache)
    given = ["--grains", str(options.grains), "--cache", str(options.cache)]
    given += ["--quick"] if options.quick else []
    contenders = {
        key: Contender(text, ["--contender", key, *given], tokens_per_step=recipe.tokens_per_step)
        for key, (text, _, _) in FLEETS.items()
    }
    take_turns(list(contenders.values()), num_rounds=options.rounds, num_steps=options.steps)
    alone = [contenders[key].rates for key in ("fast", "compat")]
    beside = [contenders[key].rates for key in ("fast-beside", "compat-beside")]
    rows = []
    for key, contender in contenders.items():
        grains = contender.facts.get("grains", {})
        rows.append(
            [
                contender.name,
                " + ".join(str(n) for n in grains.values()),
                f"{contender.rate:,.0f}",
                spread(contender.rates),
                *(
                    [_ratio(contender.rates, alone), _ratio(contender.rates, beside)]
                    if key in ("mixed", "equal")
                    else ["", ""]
                ),
            ]
        )
    head = ["fleet", "grains", "tokens/s (median)", "rounds"]
    head += ["of the sum alone", "of the sum beside a copy"]
    report.table(f"{shape_of(recipe, data)}.", head, rows)
    report.check(
        f"{options.grains} grains a step, of the sum alone:",
        float(_ratio(contenders["mixed"].rates, alone)),
        0.93,
        at_least=True,
        form=".3f",
    )


def _ratio(rates: list[float], parts: list[list[float]]) -> str:
    """Median over the rounds of rate / sum of the parts in the same round."""
    ratios = sorted(rate / sum(values) for rate, *values in zip(rates, *parts, strict=True))
    return f"{ratios[len(ratios) // 2]:.3f}"


# ---------------------------------------------------------------------- a fleet


class Beside(PacedDisplay):
    """Has the other core copy memory while this fleet's rounds are measured, and only then."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self._working = multiprocessing.get_context("spawn").Event()
        self._process = multiprocessing.get_context("spawn").Process(
            target=copy_memory, args=(self._working,), daemon=True
        )
        self._process.start()

    def update(self, snapshot: Any) -> None:
        """Between rounds `update` waits inside, so the copying stops around it."""
        if self.pace.round_ends:
            self._working.clear()
        super().update(snapshot)
        self._working.set()


def copy_memory(working: Any) -> None:
    """Copy an array larger than a core's own caches while `working` is set."""
    import numpy as np

    source = np.zeros(8 << 20, dtype=np.float32)
    target = np.empty_like(source)
    parent = os.getppid()
    while os.getppid() == parent:
        if working.wait(1.0):
            np.copyto(target, source)


def be_fleet(options: argparse.Namespace) -> None:
    """Train one fleet through the real session until stopped."""
    from atoll.training import session

    _, mode, islands = FLEETS[options.contender]
    path, overrides = recipe_for(options)
    pace = Pace(settling=1 if options.quick else SETTLING_STEPS)
    display = Beside(pace) if options.contender.endswith("-beside") else PacedDisplay(pace)
    if mode == "auto":
        islands = tuple({k: v for k, v in island.items() if k != "share"} for island in islands)
    with scratch() as folder:
        session.train(
            str(path),
            display=display,
            fleet=fleet_file(folder, "fleet", *islands, mode=mode),
            run=folder / "run",
            overrides=overrides,
            cache=options.cache,
        )


if __name__ == "__main__":
    run_main(main)
