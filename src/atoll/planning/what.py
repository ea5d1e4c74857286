"""What: the first question of a team with a fleet and no plan - which model could we train by when?

Every known model at 20 tokens a parameter, and the compute-optimal size itself: the largest dense
model that sees 20 tokens a parameter within the days given (Hoffmann et al. 2022, arXiv:2203.15556,
table 3). The batch follows DeepSeek LLM's law (arXiv:2401.02954, equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atoll import facts
from atoll.errors import AtollError
from atoll.fleet import Fleet
from atoll.model import Model
from atoll.planning.explain import PARTS
from atoll.planning.planner import Answer, Asked, NoPlan, plan
from atoll.recipe import Recipe
from atoll.units import format_count

TOKENS_A_PARAMETER = 20
DAY = 86400.0
GRAIN_TOKENS = 16384
BATCH_EXPONENT = 0.3271
LARGEST_BATCH = 2**26
"""Tokens of a step: no published run of a dense model went above 64 M."""

DEEPEST = 192
"""Layers of the largest model that the search for the compute-optimal size considers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model on the fleet: days (low, mid, high) or why not."""

    name: str
    parameters: int
    active: int
    tokens: float
    days: tuple[float, float, float] | None
    chips: int
    binds: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatAnswer:
    """All lines, the quickest first, and the compute-optimal size; `days` is what was asked."""

    lines: tuple[Line, ...]
    optimal: Line | None
    days: float

    def rows(self) -> list[list[str]]:
        """The table as text."""
        return [_row(line) for line in ([self.optimal] if self.optimal else []) + list(self.lines)]

    def summary(self) -> str:
        """One sentence that answers the question."""
        done = [line for line in self.lines if line.days and line.days[1] <= self.days]
        largest = max(done, key=lambda line: line.parameters, default=None)
        begin = f"In {self.days:g} days"
        if self.optimal is None:
            return f"{begin} no dense model sees {TOKENS_A_PARAMETER} tokens a parameter here."
        size = format_count(self.optimal.parameters)
        text = f"{begin}: a dense model of {size} parameters is compute-optimal here"
        if largest is not None:
            text += f"; the largest known model that is done by then is {largest.name}"
        return text + ". Failures, checkpoints and restarts are not counted."


def what(
    fleet: Fleet, *, days: float, asked: Asked, report: Callable[[str], None] | None = None
) -> WhatAnswer:
    """Plans every known model, then bisects for the compute-optimal one. Raises InputError."""
    lines = []
    for name in facts.model_presets():
        if report is not None:
            report(name)
        model = Model.model_validate(facts.model_preset(name))
        lines.append(_line(name, model, fleet, asked))
    lines.sort(key=lambda line: line.days[1] if line.days else math.inf)
    return WhatAnswer(lines=tuple(lines), optimal=_optimal(fleet, days, asked), days=days)


def recipe_for(name: str, model: Model) -> Recipe:
    """A recipe that trains a model on 20 tokens a parameter with a batch of the usual size."""
    context = min(model.context, 8192)
    model = Model.model_validate({**model.model_dump(), "context": context})
    tokens = TOKENS_A_PARAMETER * model.num_parameters()
    grain = max(1, GRAIN_TOKENS // context)
    batch = batch_tokens(model.flops_per_token() * tokens)
    grains = max(1, round(batch / (context * grain)))
    return Recipe.from_dict(
        {
            "name": name,
            "seed": 1,
            "model": model.model_dump(exclude_none=True),
            "data": {"corpus": "any", "tokenizer": {"path": "tokenizer.json"}},
            "batch": {"sequences": grains * grain, "grain": grain},
            "optimizer": {"lr": 1e-4},
            "schedule": {"steps": max(1, round(tokens / (grains * grain * context)))},
            "precision": {"compute": "bf16"},
        }
    )


def batch_tokens(flops: float) -> float:
    """Tokens of a step for a training of so many FLOP: 0.292 C^0.3271 (arXiv:2401.02954)."""
    return float(min(0.292 * flops**BATCH_EXPONENT, LARGEST_BATCH))


def dense_model(layers: int) -> Model:
    """A dense model of the usual proportions: width 128 a layer, heads of 128, 8 of key/value."""
    width = 128 * layers
    heads = max(8, width // 128 // 8 * 8)
    return Model(
        layers=layers, width=heads * 128, heads=heads, kv_heads=8, ffn=heads * 448, context=8192,
        tied=False, vocab=128256,
    )  # fmt: skip


def _line(name: str, model: Model, fleet: Fleet, asked: Asked) -> Line:
    recipe = recipe_for(name, model)
    parameters, active = model.num_parameters(), model.num_active_parameters()
    tokens = float(TOKENS_A_PARAMETER * parameters)
    try:
        answer = plan(recipe, fleet, asked)
    except NoPlan as fault:
        why = str(fault).splitlines()[1].strip() if "\n" in str(fault) else str(fault)
        return Line(
            name=name, parameters=parameters, active=active, tokens=tokens, days=None, chips=0,
            binds=f"memory: {why}",
        )  # fmt: skip
    seconds = answer.finish_seconds
    return Line(
        name=name, parameters=parameters, active=active, tokens=tokens,
        days=(seconds.low / DAY, seconds.mid / DAY, seconds.high / DAY), chips=answer.chips,
        binds=binds(answer),
    )  # fmt: skip


def binds(answer: Answer) -> str:
    """What would have to change first for the step to become faster."""
    way = answer.way
    if way.chain is not None:
        return way.chain.bound
    if way.seen > 0.15 * way.seconds:
        return way.exchange.bound
    late = max(answer.islands, key=lambda one: one.seconds)
    assert late.cost is not None
    parts = late.cost.parts()
    useful = parts["matmul"] + parts["attention"] + parts["head"] + parts["elementwise"]
    worst = max((p for p in parts if p not in USEFUL), key=lambda part: parts[part])
    if parts[worst] > 0.25 * useful:
        return PARTS[worst]
    return "compute"


USEFUL = ("matmul", "attention", "head", "elementwise")


def _optimal(fleet: Fleet, days: float, asked: Asked) -> Line | None:
    """The deepest model of the dense family that is done in time, by bisection."""
    low, high, best = 2, DEEPEST, None
    while low <= high:
        middle = (low + high) // 2
        try:
            line = _line("compute-optimal, dense", dense_model(middle), fleet, asked)
        except AtollError:
            return None
        if line.days is not None and line.days[1] <= days:
            best, low = line, middle + 1
        else:
            high = middle - 1
    return best


def _row(line: Line) -> list[str]:
    numbers = [format_count(line.parameters), format_count(line.active), format_count(line.tokens)]
    if line.days is None:
        return [line.name, *numbers, "-", "-", "-", "-", line.binds]
    low, mid, high = (f"{days:,.1f}" if days >= 1 else f"{days:.2g}" for days in line.days)
    return [line.name, *numbers, mid, low, high, f"{line.chips:,}", line.binds]


def as_json(found: WhatAnswer) -> dict[str, Any]:
    """The object of `atoll plan --what --json`."""
    return {
        "days": found.days,
        "models": [_plain(line) for line in found.lines],
        "optimal": None if found.optimal is None else _plain(found.optimal),
    }


def _plain(line: Line) -> dict[str, Any]:
    days = line.days
    return {
        "name": line.name,
        "parameters": line.parameters,
        "active_parameters": line.active,
        "tokens": line.tokens,
        "days": None if days is None else dict(zip(("low", "mid", "high"), days, strict=True)),
        "chips": line.chips,
        "binds": line.binds,
    }
