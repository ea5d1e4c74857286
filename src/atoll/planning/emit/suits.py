"""Which layouts a tool can express, asked before the search instead of after it.

The emitters refuse what their tool cannot do, one plan at a time and with a reason. A search wants
the same of thousands of layouts, cheaply; what is told here only narrows it, and the emitters have
the last word.
"""

from __future__ import annotations

from collections.abc import Callable

from atoll.facts.engines import tools
from atoll.model import Model
from atoll.plan import Layout
from atoll.recipe import Recipe

Suits = Callable[[Layout], bool]


def suits(tool: str, recipe: Recipe, *, alone: bool) -> Suits:
    """A predicate over layouts; `alone` if the fleet has one island, which takes the whole batch.

    With several islands the shares are not known before the search, so that stages are not
    interleaved: their micro-batches must come in whole turns.
    """
    fact, model = tools()[tool], recipe.model
    sharded = bool(fact.words("sharded"))

    def fits(layout: Layout) -> bool:
        unit = layout.dp * layout.microbatch
        if alone and recipe.batch.sequences % unit:
            return False
        microbatches = recipe.batch.sequences // unit
        if layout.vpp > 1 and (not alone or microbatches % layout.pp):
            return False
        split = model.mla is not None or model.resolved_kv_heads % layout.tp == 0
        if fact.family == "torchtitan":
            return split and _torchtitan(model, recipe, layout)
        return split and _megatron(recipe, layout, sharded=sharded)

    return fits


def _megatron(recipe: Recipe, layout: Layout, *, sharded: bool) -> bool:
    if layout.zero > 1 and (layout.pp > 1 or not sharded):
        return False
    return recipe.precision.compute != "fp16" or layout.ep == 1


def _torchtitan(model: Model, recipe: Recipe, layout: Layout) -> bool:
    lanes = layout.dp > 1
    if lanes and layout.zero == 1:
        return False
    if lanes and layout.zero == 0 and layout.lane_devices > 1:
        return False
    split = layout.tp * layout.pp > 1
    if recipe.precision.compute != "fp32" and split and layout.cp == 1 and not lanes:
        return False
    pieces = layout.tp * (2 * layout.cp if layout.cp > 1 else 1)
    plain = model.resolved_head_dim * model.heads == model.width
    other = model.tied or model.qk_norm or not plain or model.experts is not None
    staged = model.mla is not None or not other
    return model.context % pieces == 0 and (layout.pp == 1 or staged)
