"""Part: one island of a plan as a launcher sees it: processes, sequences, model chunks.

It also holds the refusals that all tools share. Shapes of flags are the other modules' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from atoll import facts
from atoll.errors import MISSING, InputError
from atoll.facts.engines import Tool, tools
from atoll.model import Model
from atoll.plan import Layout, Plan, PlanIsland
from atoll.planning.emit.text import number
from atoll.recipe import Recipe

ROUTER = (
    "The recipe does not say how a router scores and balances its experts: that stays as the tool "
    "has it."
)

FULL_SEED = 2**31
"""Tools hand seeds to libraries that take 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An island, and what a launcher needs to know of it.

    `sequences` is its part of a step's sequences; `chunks` are the layers of each model chunk, in
    the order of the layers (pp x vpp of them); `notes` are sentences for the files.
    """

    tool: str
    fact: Tool
    plan: Plan
    index: int
    island: PlanIsland
    recipe: Recipe
    model: Model
    vocab: int | None
    sequences: int
    nodes: int
    per_node: int
    chunks: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def layout(self) -> Layout:
        """The layout of the island."""
        return self.island.layout

    @property
    def even(self) -> bool:
        """Whether all model chunks have as many layers."""
        return len(set(self.chunks)) == 1

    @property
    def microbatches(self) -> int:
        """Micro-batches of a lane in a step."""
        return self.sequences // (self.layout.dp * self.layout.microbatch)

    @property
    def seed(self) -> int:
        """The recipe's seed in 31 bits."""
        return self.recipe.seed % FULL_SEED

    def title(self) -> str:
        """What a file of this island is, in a few words."""
        return f'island "{self.island.name}" of "{self.recipe.name}"'

    def require(
        self, fits: bool, key: str, why: str, *, value: object = MISSING, fix: str | None = None
    ) -> None:
        """InputError that the tool cannot express `key` of this island's layout, unless it fits."""
        refuse_unless(fits, self.index, key, why, value=value, fix=fix)


def refuse_unless(
    fits: bool, index: int, key: str, why: str, *, value: object = MISSING, fix: str | None = None
) -> None:
    """InputError that names `key` of an island and why it cannot be, unless it fits."""
    if not fits:
        place = f"islands[{index}].{key}"
        raise InputError(f"feature {key}: {why}", key=place, value=value, fix=fix)


def part_of(plan: Plan, tool: str, island: PlanIsland) -> Part:
    """The part of one island that launches alone. InputError for what the tool cannot express."""
    fact, recipe = tools()[tool], plan.read_recipe()
    index = plan.islands.index(island)
    check_make(fact, index, island)
    together = [one.name for one in plan_chain(plan, island)]
    why = f"{', '.join(together)} hold one lane together, a part of the layers each"
    fix = "--emit flagscale takes such a plan"
    refuse_unless(len(together) < 2, index, "pipeline", why, fix=fix)
    nodes, per_node, placed = processes(island)
    sequences, shared = _sequences(plan, recipe, index)
    model = recipe.model
    part = Part(
        tool=tool,
        fact=fact,
        plan=plan,
        index=index,
        island=island,
        recipe=recipe,
        model=model,
        vocab=vocab_of(recipe),
        sequences=sequences,
        nodes=nodes,
        per_node=per_node,
        chunks=chunks_of(island, model.layers),
        notes=(*placed, *shared, *_said(plan, recipe, island)),
    )
    _check(part)
    return part


def islands_for(plan: Plan, tool: str, name: str | None) -> list[PlanIsland]:
    """The island of a name, or all whose make the tool runs on. InputError if none is."""
    if name is not None:
        return [island for island in plan.islands if island.name == name]
    fact = tools()[tool]
    able = [i for i in plan.islands if facts.chip(i.chip).backend in fact.backends]
    if not able:
        return plan.islands[:1]  # its refusal says why
    return able


def vocab_of(recipe: Recipe) -> int | None:
    """The vocabulary where the recipe tells it."""
    return recipe.model.vocab or recipe.data.tokenizer.train


def chunks_of(island: PlanIsland, layers: int) -> tuple[int, ...]:
    """Layers of each model chunk: the plan's stages, else even, the first ones a layer longer."""
    if island.stages:
        return tuple(last - first + 1 for first, last in island.stages)
    number_of = island.layout.pp * island.layout.vpp
    each, more = divmod(layers, number_of)
    return tuple(each + (index < more) for index in range(number_of))


def processes(island: PlanIsland) -> tuple[int, int, list[str]]:
    """Nodes, processes a node, and how that was found."""
    total, chip = island.layout.num_devices, facts.chip(island.chip)
    known = chip.node_chips * chip.devices if chip.node_chips is not None else 8
    per_node = next(n for n in range(min(known, total), 0, -1) if total % n == 0)
    where = (
        f"a node of {chip.name} has {known}, by the facts"
        if chip.node_chips is not None
        else f"how many {chip.name} a node has is not known: {per_node} is a guess"
    )
    note = (
        f"Island {island.name}: {total} processes on {total // per_node} nodes of {per_node} "
        f"({where})."
    )
    notes = [note]
    if total != island.devices:
        notes.append(f"The layout leaves {island.devices - total} of {island.devices} idle.")
    return total // per_node, per_node, notes


def _sequences(plan: Plan, recipe: Recipe, index: int) -> tuple[int, list[str]]:
    """An island's sequences of a step, in whole micro-batches of all lanes, and how they came."""
    island, total = plan.islands[index], recipe.batch.sequences
    unit = island.layout.dp * island.layout.microbatch
    key = f"islands[{index}].share"
    if len(plan.islands) == 1:
        if total % unit:
            below = total - total % unit
            fix = f"batch.sequences that fit: {below or unit} or {below + unit}"
            message = f"is not a multiple of dp x microbatch = {unit}, as every tool wants"
            raise InputError(message, key="recipe.batch.sequences", value=total, fix=fix)
        return total, []
    shares = [one.share for one in plan.islands]
    if any(share is None for share in shares):
        fix = "write a share for every island, for example its number of grains a step"
        raise InputError("follows measured speed, which no tool does", key=key, fix=fix)
    if not island.share:
        fix = "leave this island out"
        raise InputError("this island would compute nothing", key=key, value=0, fix=fix)
    whole = sum(Fraction(share) for share in shares if share is not None)
    exact = total * Fraction(island.share) / whole
    rounded = max(1, round(exact / unit)) * unit
    note = f"Its share of a step's {total} sequences is {float(exact):g}"
    if rounded != exact:
        note += f", rounded to {rounded} = whole micro-batches of {island.layout.dp} lanes"
    return rounded, [note + "."]


def _said(plan: Plan, recipe: Recipe, island: PlanIsland) -> Iterable[str]:
    """What the files must say about what they do not do."""
    if len(plan.islands) > 1:
        others = ", ".join(one.name for one in plan.islands if one is not island)
        yield (
            f"This launches one island alone. The plan's others ({others}) train the same model: "
            f"{_exchanged(plan, recipe)}. This tool exchanges inside one group of processes only; "
            f"`atoll train` exchanges between islands."
        )
    if recipe.seed >= FULL_SEED:
        yield f"The recipe's seed {recipe.seed} does not fit 31 bits: the tool gets the rest."
    if recipe.model.experts is not None:
        yield ROUTER
    if not island.stages and recipe.model.layers % (island.layout.pp * island.layout.vpp):
        yield f"{recipe.model.layers} layers do not split evenly: the first stages have one more."


def _exchanged(plan: Plan, recipe: Recipe) -> str:
    """What the islands of a plan must exchange, and when."""
    if plan.exchange.get("every", recipe.exchange.every) == "rounds":
        return "their weights must be brought together after every round of steps"
    return (
        "before each update their sums of gradients, over all "
        f"{recipe.batch.sequences} sequences, must be added up"
    )


def check_make(fact: Tool, index: int, island: PlanIsland) -> None:
    """InputError if the tool does not run on the island's make of chips; names what does."""
    backend = facts.chip(island.chip).backend
    others = [name for name, tool in tools().items() if backend in tool.backends]
    fix = f"tools for it: {', '.join(others)}" if others else "atoll train runs on every make"
    why = f"{fact.version} runs on {', '.join(fact.backends)}, and this chip is {backend}"
    refuse_unless(backend in fact.backends, index, "chip", why, value=island.chip, fix=fix)


def check_format(fact: Tool, recipe: Recipe) -> None:
    """InputError if the tool does not compute in the recipe's number format."""
    compute = recipe.precision.compute
    if compute not in fact.formats:
        message = f"feature precision: {fact.version} computes in {', '.join(fact.formats)}"
        raise InputError(message, key="recipe.precision.compute", value=compute)


def _check(part: Part) -> None:
    """The refusals that all tools share."""
    island, layout, model = part.island, part.layout, part.model
    check_format(part.fact, part.recipe)
    devices = f"{island.devices} devices"
    part.require(
        layout.num_devices <= island.devices, "layout", f"needs more than the {devices}",
        value=layout.describe(),
    )  # fmt: skip
    check_shapes(part.require, layout, model)
    why = f"stages hold {list(part.chunks)}, not {layout.pp * layout.vpp} chunks of all layers"
    fits = len(part.chunks) == layout.pp * layout.vpp and sum(part.chunks) == model.layers
    part.require(fits, "stages", why, value=island.stages)
    part.require(min(part.chunks) > 0, "layout.pp", "a stage would have no layer", value=layout.pp)


def check_shapes(require: Callable[..., None], layout: Layout, model: Model) -> None:
    """InputError, raised by `require`, for degrees that do not divide what they split."""
    splits = [("heads", model.heads, layout.tp), ("ffn", model.ffn, layout.tp)]
    if model.mla is None:
        splits.append(("kv_heads", model.resolved_kv_heads, layout.tp))
    for name, size, degree in splits:
        why = f"does not divide model.{name} = {size}"
        require(size % degree == 0, "layout.tp", why, value=degree)
    pieces = 2 * layout.cp if layout.cp > 1 else 1
    why = f"twice cp does not divide model.context = {model.context}"
    require(model.context % pieces == 0, "layout.cp", why, value=layout.cp)
    if model.vocab is not None:
        why = f"does not divide model.vocab = {model.vocab}"
        require(model.vocab % layout.tp == 0, "layout.tp", why, value=layout.tp)
    if layout.ep > 1:
        why = "a model without experts cannot spread them"
        require(model.experts is not None, "layout.ep", why, value=layout.ep)
        assert model.experts is not None
        lanes = layout.dp * layout.cp * layout.tp
        why = f"does not divide model.experts = {model.experts} and dp x cp x tp = {lanes}"
        fits = model.experts % layout.ep == 0 and lanes % layout.ep == 0
        require(fits, "layout.ep", why, value=layout.ep)
    if layout.shard is not None:
        why = f"does not divide dp = {layout.dp}"
        require(layout.dp % layout.shard == 0, "layout.shard", why, value=layout.shard)


def plan_chain(plan: Plan, island: PlanIsland) -> Sequence[PlanIsland]:
    """The islands that hold one lane together with `island`, itself too, in order of layers."""
    if island.pipeline is None:
        return [island]
    chain = [one for one in plan.islands if one.pipeline == island.pipeline]
    return sorted(chain, key=lambda one: one.stages[0][0] if one.stages else 0)


def checked_words(fact: Tool, words: Iterable[tuple[str, object]]) -> list[tuple[str, str]]:
    """Flags with their values as text, each known to the tool; `True` is a flag without value.

    A flag of value None or False is left out. An unknown flag is a bug of ours.
    """
    out: list[tuple[str, str]] = []
    for flag, value in words:
        if value is None or value is False:
            continue
        assert fact.knows(flag), f"{fact.version} has no {flag}"
        if value is True:
            out.append((flag, ""))
        else:
            out.append((flag, number(value) if isinstance(value, int | float) else str(value)))
    return out
