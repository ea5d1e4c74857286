"""Family: a recipe at other sizes, in the proportions of its own model.

Sizes are rungs of a ladder that the recipe alone decides, so that two searches on it can be
compared. What a size keeps of the recipe: the width of a head, the ratio of width to layers and of
the feed-forward to the width, vocabulary, context, number and choice of experts, grain. Tokens
follow from a rule of `atoll.facts.scaling`, the batch from the FLOP of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from atoll import facts
from atoll.facts.scaling import USUAL, Rule, rule_of
from atoll.model import Model
from atoll.planning.planner import model_of
from atoll.planning.what import BATCH_EXPONENT, LARGEST_BATCH
from atoll.recipe import BatchSpec, Recipe, ScheduleSpec

STEP = 1.02
"""Parameters of neighbouring rungs, one by the other: about 4 % of the run's FLOP."""

SMALLEST, LARGEST = 1e6, 2e13
"""Parameters of the ends of the ladder."""

WIDER = 0.15
"""A feed-forward is so much wider or narrower than the recipe's at most."""

NEAR = 0.1
"""A published shape is named beside a size if it has so many of its parameters more or fewer."""


def rule_for(recipe: Recipe) -> Rule:
    """The rule of the recipe, the usual one where it gives steps or tokens."""
    rule = recipe.schedule.rule or rule_of(USUAL)
    assert rule is not None
    return rule


def ladder(recipe: Recipe) -> list[Model]:
    """The models of the recipe's family, each with more parameters than the one before it."""
    own = model_of(recipe)
    size = own.num_parameters()
    below = math.floor(math.log(size / SMALLEST, STEP))
    above = math.floor(math.log(LARGEST / size, STEP))
    found: list[Model] = []
    for rung in range(-below, above + 1):
        model = own if rung == 0 else scaled(own, size * STEP**rung)
        if rung == 0:  # the recipe's own size is a rung, whatever rounding gave its neighbours
            found = [one for one in found if one.num_parameters() < size]
        if not found or model.num_parameters() > found[-1].num_parameters():
            found.append(model)
    return found


def scaled(own: Model, parameters: float) -> Model:
    """A model of about so many parameters, in the proportions of another one."""
    ratio = _ratio(own, parameters)
    heads = _rounded(own.heads * ratio, 8 if own.heads * ratio >= 12 else 2 if ratio < 1 else 1)
    each = own.width / own.heads
    width = round(each * heads) if own.head_dim is None else _rounded(each * heads, 16)
    wide = width / own.width
    changes: dict[str, Any] = {"heads": heads, "width": width, "ffn": _fine(own.ffn * wide)}
    if own.mla is None:
        changes["kv_heads"] = max(
            n for n in range(1, min(heads, own.resolved_kv_heads) + 1) if heads % n == 0
        )
        if own.kv_heads is None or own.kv_heads == own.heads:
            changes["kv_heads"] = heads
    elif own.mla.q_rank is not None:
        changes["mla"] = {**own.mla.model_dump(), "q_rank": _fine(own.mla.q_rank * wide)}
    if own.moe_ffn is not None:
        changes["moe_ffn"] = _fine(own.moe_ffn * wide)
    plain = {**own.model_dump(), **changes}
    fewest = 1 + (own.moe_every if own.experts else 0)

    def of(layers: int) -> Model:
        first = round(own.dense_layers * layers / own.layers)
        if own.dense_layers:
            plain["dense_layers"] = min(max(1, first), layers - own.moe_every)
        return Model.model_validate({**plain, "layers": max(layers, fewest)})

    guess = max(fewest, round(own.layers * ratio))
    outside = 2 * of(guess).num_parameters() - of(2 * guess).num_parameters()
    a_layer = (of(2 * guess).num_parameters() - of(guess).num_parameters()) / guess
    layers = (parameters - outside) / a_layer
    found = of(max(fewest, _rounded(layers, 4 if layers >= 24 else 2 if layers >= 8 else 1)))
    return _widened(found, parameters)


def _widened(model: Model, parameters: float) -> Model:
    """The model with its feed-forward a little wider or narrower, to come nearer to a size.

    Layers that divide well are far apart.
    """
    key = "ffn" if model.moe_ffn is None else "moe_ffn"
    hidden = getattr(model, key)
    wider = Model.model_validate({**model.model_dump(), key: 2 * hidden})
    each = (wider.num_parameters() - model.num_parameters()) / hidden
    wanted = hidden + (parameters - model.num_parameters()) / each
    wanted = min(max(wanted, (1.0 - WIDER) * hidden), (1.0 + WIDER) * hidden)
    return Model.model_validate({**model.model_dump(), key: _fine(wanted)})


def _ratio(own: Model, parameters: float) -> float:
    """How much wider and deeper: layers grow with its third power, the embeddings with the first.

    The root of layers r^3 + embeddings r = parameters, by Newton's method from above it.
    """
    embeddings = own.resolved_vocab * own.width * (1 if own.tied else 2)
    layers = own.num_parameters() - embeddings
    ratio = (parameters / layers) ** (1.0 / 3.0)
    for _ in range(40):
        over = layers * ratio**3 + embeddings * ratio - parameters
        ratio -= over / (3.0 * layers * ratio**2 + embeddings)
    return float(ratio)


def sized(recipe: Recipe, model: Model, rule: Rule) -> Recipe:
    """The recipe with another model of its family: tokens by the rule, and the batch with them.

    A batch grows as C^0.3271 (DeepSeek LLM, arXiv:2401.02954, equation 1) from the recipe's own,
    which belongs to its own model with the tokens of the rule. The learning rate stays.
    """
    own = model_of(recipe)
    tokens = rule.tokens(model.num_active_parameters())
    flops = model.flops_per_token() * tokens
    own_flops = own.flops_per_token() * rule.tokens(own.num_active_parameters())
    grain_tokens = recipe.batch.grain * model.context
    most = max(recipe.num_grains, LARGEST_BATCH // grain_tokens)
    grains = min(most, max(1, round(recipe.num_grains * (flops / own_flops) ** BATCH_EXPONENT)))
    if grains != recipe.num_grains:  # a number with many divisors: as many grains in every lane
        grains = _rounded(grains, 2 ** max(0, grains.bit_length() - 5))
    steps = max(1, math.ceil(tokens / (grains * grain_tokens)))
    schedule = {
        **recipe.schedule.model_dump(), "tokens": None, "steps": steps,
        "warmup": min(recipe.schedule.warmup, steps),
    }  # fmt: skip
    batch = {"sequences": grains * recipe.batch.grain, "grain": recipe.batch.grain}
    return recipe.model_copy(
        update={
            "model": model,
            "batch": BatchSpec.model_validate(batch),
            "schedule": ScheduleSpec.model_validate(schedule),
        }
    )


def near(model: Model) -> str | None:
    """The published shape with the nearest number of parameters, None if none is near."""
    size, sparse = model.num_parameters(), model.experts is not None
    found = [
        (abs(math.log(parameters / size)), name)
        for name, parameters, other in _published()
        if other == sparse
    ]
    apart, name = min(found)
    return name if apart <= math.log1p(NEAR) else None


@cache
def _published() -> Sequence[tuple[str, int, bool]]:
    """(name, parameters, whether it has experts) of every published shape."""
    models = {
        name: Model.model_validate(facts.model_preset(name)) for name in facts.model_presets()
    }
    return [(name, one.num_parameters(), one.experts is not None) for name, one in models.items()]


def _rounded(number: float, unit: int) -> int:
    """The nearest multiple of `unit`, one at least."""
    return max(1, round(number / unit)) * unit


def _fine(number: float) -> int:
    """A width of a feed-forward: a round number that devices like, a few per cent off at most."""
    return _rounded(number, 256 if number >= 8192 else 64 if number >= 512 else 8)
