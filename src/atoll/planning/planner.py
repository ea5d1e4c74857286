"""Planner: the one function that turns a recipe and a fleet into an answer.

It looks everything up (chips, stacks, measurements, fitted coefficients), asks `search`, and puts
doubt on what it found. An `Answer` is for people and pages; `Answer.plan` is the file that verbs
pass on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, Literal

from atoll import facts
from atoll.errors import InputError
from atoll.facts.engines import tools
from atoll.facts.stacks import stack_for, stack_of
from atoll.fleet import Fleet, Island
from atoll.plan import Estimate, Layout, LeftOut, Plan
from atoll.planning import search as searching
from atoll.planning.answer import Answer, Asked, IslandAnswer, NoPlan
from atoll.planning.correction import correction, features_of, fitted
from atoll.planning.cost import Coefficients, step_cost
from atoll.planning.emit.suits import suits as suits_of
from atoll.planning.machine import Machine, machine_of
from atoll.planning.memory import MemoryCoefficients, memory_use
from atoll.planning.options import USABLE, Coefficient, Option, island_options, spread_of
from atoll.planning.power import unknown as unknown_power
from atoll.planning.power import within_power
from atoll.planning.problem import Place, Problem
from atoll.planning.search import DoesNotFit, Found, Way
from atoll.planning.work import Shape, Software, Work
from atoll.recipe import Recipe, require_supported, unsupported_features
from atoll.units import format_bytes

TRIED = 8
"""Options of an island that an answer keeps, the fastest ones, for stocks that are like it."""

PRESENT = 2025.5
"""The year of the software that a plan expects, as published runs of that time used it."""

__all__ = ["Answer", "Asked", "IslandAnswer", "NoPlan", "peaks_of", "plan", "plan_of", "problem_of"]


def plan(recipe: Recipe, fleet: Fleet, asked: Asked | None = None) -> Answer:
    """The best plan within the power of the sites.

    InputError for what is wrong; `NoPlan` if nothing fits, saying by how much.
    """
    asked = asked or Asked()
    answer = _planned(recipe, fleet, asked)
    answer = within_power(answer, lambda smaller: _planned(recipe, smaller, asked))
    more = (*unknown_power(answer.fleet), *later(fleet, asked.day))
    return replace(answer, notes=(*answer.notes, *more)) if more else answer


def _planned(recipe: Recipe, fleet: Fleet, asked: Asked) -> Answer:
    """The best plan, whatever power it takes. Raises as `plan`."""
    begun = time.perf_counter()
    if asked.executor == "atoll":
        require_supported(recipe)
        require_here(recipe, asked.only)
    problem, skipped = problem_of(recipe, fleet, asked)
    try:
        found = _search(problem)
    except DoesNotFit as misfit:
        raise no_plan(misfit) from None
    if asked.tool is not None and len(found.best.names) == 1 < len(problem.places):
        found = _alone(recipe, asked.tool, problem, found)
    free = not asked.only and asked.tool is None
    if asked.executor == "auto" and free and not unsupported_features(recipe):
        here, _ = problem_of(recipe, fleet, replace(asked, executor="atoll"))
        problem, found = _here_first(here, problem, found)
    return _answer(recipe, problem, found, asked, skipped, begun)


def later(fleet: Fleet, day: date | None) -> Iterator[str]:
    """Notes where the fleet changes after the stock that was planned, or in the course of a day."""
    serving = [one.island for one in fleet.traffic]
    lent = [one.name for one in fleet.island if one.hours is not None or one.name in serving]
    if lent:
        yield f"step, speed and finish are of the hours at which {', '.join(lent)} can train"
    if day is None and fleet.change_days(date.min):
        yield "deliveries, withdrawals, leases are not counted: --from DATE plans through them"
    elif day is not None and fleet.change_days(day):
        yield f"step, speed and finish are of the fleet of {day}, as if nothing came or left later"


def _search(problem: Problem) -> Found:
    """The search; free of the tool's limits where nothing is left within them: the tool's own
    refusal says more than that nothing fits.
    """
    try:
        return searching.search(problem)
    except DoesNotFit:
        if problem.suits is None:
            raise
        return searching.search(replace(problem, suits=None))


def _alone(recipe: Recipe, tool: str, problem: Problem, found: Found) -> Found:
    """Where one island of several is the best: again for it alone, as it takes the whole batch."""
    places = [place for place in problem.places if place.name in found.best.names]
    suits = suits_of(tool, recipe, alone=True)
    try:
        own = searching.search(replace(problem, places=places, suits=suits))
    except DoesNotFit:
        return found
    options = {**found.options, **own.options}
    return replace(own, others={**found.others, **own.others}, options=options)


def _here_first(here: Problem, problem: Problem, found: Found) -> tuple[Problem, Found]:
    """What Atoll's own trainer can do (`here`), where that fits; what another tool could (`found`)
    is told beside.
    """
    try:
        own = searching.search(here)
    except DoesNotFit:
        return problem, found
    if found.best.seconds < 0.99 * own.best.seconds:
        others = {**own.others, "another tool": found.best}
        own = replace(own, others=others)
    return here, own


def problem_of(recipe: Recipe, fleet: Fleet, asked: Asked) -> tuple[Problem, list[LeftOut]]:
    """What the search needs, and the islands that cannot take part, with the reason."""
    stock = fleet.stock(asked.day)
    shape = Shape.of(model_of(recipe))
    places, skipped, faults = [], [], []
    names = [island.name for island in fleet.island]
    refused = asked.placed(stock).refused
    for island in stock.island:
        if island.name in refused:
            skipped.append(LeftOut(what=island.name, why=refused[island.name]))
            continue
        try:
            places.append(_place(recipe, shape, island, asked))
        except InputError as fault:
            fault.key = f"island[{names.index(island.name)}].{fault.key}"
            fault.message = f"on island {island.name}: {fault.message}"
            faults.append(fault)
            skipped.append(LeftOut(what=island.name, why=f"{fault.value}: {fault.message}"))
    if not places:
        raise faults[0]
    places, foreign = _of_its_makes(places, asked.tool)
    skipped += foreign
    given = {island.name: island.share for island in stock.island if island.share is not None}
    fixed = given if stock.shares.mode == "fixed" else {}
    tables = fitted()
    coefficients = Coefficient(
        time=Coefficients(**tables["time"]), memory=MemoryCoefficients(**tables["memory"])
    )
    only = dict(asked.only)
    if asked.executor == "atoll":
        only = {**only, **atoll_layout(recipe)}
    suits = None
    if asked.tool is not None:
        suits = suits_of(asked.tool, recipe, alone=len(places) == 1)
    problem = Problem(
        places=places, fleet=stock, grain=recipe.batch.grain, grains=recipe.num_grains,
        every=asked.every or recipe.exchange.every, round_steps=recipe.exchange.steps,
        coefficients=coefficients, only=only, shares=fixed, suits=suits,
        among={} if only else asked.among,
    )  # fmt: skip
    return problem, skipped


def peaks_of(recipe: Recipe, fleet: Fleet, asked: Asked) -> dict[str, float]:
    """FLOP/s of one chip of every island, 0 where none can take part: a measure of stocks."""
    islands = [
        one.model_copy(update={"nodes": max(1, one.nodes), "lease": None}) for one in fleet.island
    ]
    empty: dict[str, Any] = {"island": islands, "delivery": [], "withdrawal": []}
    problem, _ = problem_of(recipe, fleet.model_copy(update=empty), replace(asked, day=None))
    speeds = {place.name: place.speed / place.island.num_chips for place in problem.places}
    return {one.name: speeds.get(one.name, 0.0) for one in islands}


def _of_its_makes(places: list[Place], tool: str | None) -> tuple[list[Place], list[LeftOut]]:
    """Without the islands of makes that the tool does not run on, unless no other is there."""
    if tool is None:
        return places, []
    makes = tools()[tool].backends
    able = [one for one in places if facts.chip(one.island.chip).backend in makes]
    why = f"left out: {tool} runs on {', '.join(makes)}"
    foreign = [LeftOut(what=one.name, why=why) for one in places if one not in able]
    return (able, foreign) if able else (places, [])


def atoll_layout(recipe: Recipe) -> dict[str, Any]:
    """The layouts that Atoll's own trainer runs today: one device a lane, nothing sharded."""
    return {
        "tp": 1, "pp": 1, "cp": 1, "ep": 1, "vpp": 1, "zero": 0, "recompute": "none",
        "microbatch": recipe.batch.grain, "sequence_parallel": False,
    }  # fmt: skip


def require_here(recipe: Recipe, only: Mapping[str, Any]) -> None:
    """InputError for a fixed key of the layouts that Atoll's own trainer does not do."""
    for key, value in atoll_layout(recipe).items():
        if only.get(key, value) != value:
            message = f"feature layout.{key}: Atoll's own trainer does not do it yet"
            fix = f"write {key}={value}, or leave --executor out: another tool may do it"
            raise InputError(message, key=f"--layout {key}", value=only[key], fix=fix)


def model_of(recipe: Recipe) -> Any:
    """The recipe's model with its vocabulary. InputError if only a text could tell it."""
    model = recipe.model
    if model.vocab is not None:
        return model
    if recipe.data.tokenizer.train is not None:
        return model.with_vocab(recipe.data.tokenizer.train)
    fix = "write model.vocab: a plan reads no text and no tokenizer"
    raise InputError("the vocabulary is not known", key="model.vocab", fix=fix)


def _place(recipe: Recipe, shape: Shape, island: Island, asked: Asked) -> Place:
    """An island with its machine, its stack, and what published runs say about the two."""
    chip = facts.chip(island.chip)
    network = island.network
    machine = machine_of(
        chip,
        node_chips=island.chips_per_node,
        nodes=island.nodes,
        network=network.bytes_per_second if network is not None else None,
        network_latency=network.latency_seconds if network is not None else None,
        measured=asked.measured.get(chip.name),
    )
    stack = stack_of("atoll") if asked.executor == "atoll" else stack_for(chip)
    software = Software(
        family=stack.family, flash=stack.flash_since <= PRESENT, fused=stack.fused,
        overlap=stack.overlap, overlap_tp=stack.overlap_tp, fused_loss=stack.fused_loss,
        gradients=stack.gradients, accumulate=stack.accumulate, year=max(PRESENT, stack.year),
        on_host=stack.on_host if chip.backend != "cpu" else 0.0,
    )  # fmt: skip
    work = Work(
        shape=shape, sequence=recipe.model.context, precision=recipe.precision.compute,
        software=software,
    )  # fmt: skip
    factor = asked.factors.get(chip.name, 1.0)
    return Place(island=island, machine=machine, work=work, correct=_corrector(machine, factor))


def _corrector(
    machine: Machine, factor: float
) -> Callable[[Work, Machine, Sequence[tuple[Layout, int]]], Sequence[float]] | None:
    """What published runs say; a chip that was measured, or never published, speaks for itself."""
    if machine.measured is not None:
        return (lambda _, __, tried: [factor] * len(tried)) if factor != 1.0 else None

    def correct(work: Work, on: Machine, tried: Sequence[tuple[Layout, int]]) -> Sequence[float]:
        features = [features_of(work, layout, on, m) for layout, m in tried]
        return [factor * math.exp(value) for value in correction().log_factor(features)]

    return correct


def no_plan(misfit: DoesNotFit) -> NoPlan:
    """The error for a model that fits nowhere: how much too large on which chip, and the fix."""
    if not misfit.misfits:
        return NoPlan("no layout divides this model on any island of the fleet")
    lines = []
    places = {place.name: place for place in misfit.problem.places}
    for name, tight in misfit.misfits.items():
        place = places[name]
        lines.append(
            f"{name}: {format_bytes(tight.need - tight.have)} too many on a {place.machine.chip} "
            f"({format_bytes(tight.need)} of {format_bytes(tight.have)} usable) with its most "
            f"sparing layout, {tight.layout.describe()}"
        )
    name, tight = min(misfit.misfits.items(), key=lambda entry: entry[1].need / entry[1].have)
    nodes = _enough_nodes(misfit.problem, places[name])
    fix = "what would make it fit: chips with more memory, or a shorter context or smaller model"
    if nodes is not None:
        fix += f"; or more nodes: it fits from {nodes} nodes on {name} on"
        fix += f" (now {places[name].island.nodes})"
    return NoPlan("the model fits on no island\n  " + "\n  ".join([*lines, fix]))


def _enough_nodes(problem: Problem, place: Place) -> int | None:
    """The fewest nodes of an island on which the model fits; None up to 4096 times as many.

    The number of layouts does not depend on the number of nodes, so that trying is cheap.
    """

    def fits(nodes: int) -> bool:
        options, tightest = island_options(
            place.work, place.machine, nodes * place.machine.node_devices,
            grain=problem.grain, grains=problem.grains, share=problem.grains,
            coefficients=problem.coefficients, only=problem.only, suits=problem.suits,
        )  # fmt: skip
        return bool(options) and tightest is None

    low, high = place.island.nodes, 2 * place.island.nodes
    while not fits(high):
        low, high = high, 2 * high
        if high > 4096 * place.island.nodes:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _answer(
    recipe: Recipe,
    problem: Problem,
    found: Found,
    asked: Asked,
    skipped: list[LeftOut],
    begun: float,
) -> Answer:
    """The search's result with doubt, reasons and a finish."""
    from atoll.planning import explain

    way = found.best
    islands = island_answers(problem, way)
    low, high = _doubt(islands)
    measured = all(one.machine.measured is not None for one in islands)
    basis: Literal["measured", "fitted"] = "measured" if measured else "fitted"
    step = Estimate(low=way.seconds * low, mid=way.seconds, high=way.seconds * high, basis=basis)
    tokens = recipe.tokens_per_step
    steps = recipe.total_steps()
    flops = islands[0].work.shape.flops_per_token(recipe.model.context) * tokens
    peak = sum(one.machine.speed(one.work.precision) * one.layout.num_devices for one in islands)
    executor, why = explain.executor_of(recipe, islands, way, asked.tool)
    helps = searching.what_helps(problem, found)
    sequences = problem.grain * recipe.model.context
    return Answer(
        recipe=recipe, fleet=problem.fleet, day=asked.day, islands=islands, way=way,
        every=way.every, step_seconds=step,
        tokens_per_second=Estimate(
            low=tokens / step.high, mid=tokens / step.mid, high=tokens / step.low, basis=basis
        ),
        mfu=flops / (way.seconds * peak), steps=steps,
        finish_seconds=Estimate(
            low=step.low * steps, mid=step.mid * steps, high=step.high * steps, basis=basis
        ),
        rejected=() if problem.among else (*explain.rejected(problem, found), *skipped),
        helps=tuple((what, gain * sequences) for what, gain in helps),
        notes=(
            *([f"only layouts that {asked.tool} can express were tried"] if asked.tool else []),
            *asked.placed(problem.fleet).notes,
            *explain.notes(islands, way, low, high),
        ),
        executor=executor, executor_why=why, contract=explain.contract_of(islands, way),
        search_seconds=time.perf_counter() - begun,
        tried={name: options[:TRIED] for name, options in found.options.items()},
    )  # fmt: skip


def island_answers(problem: Problem, way: Way) -> tuple[IslandAnswer, ...]:
    """The islands that take part, in the fleet's order (of the chain: in its order)."""
    places = {place.name: place for place in problem.places}
    if way.chain is not None:
        return tuple(
            IslandAnswer(
                island=places[part.name].island, machine=places[part.name].machine,
                work=places[part.name].work, grains=problem.grains,
                layout=part.layout.model_copy(update={"pp": len(part.layers)}),
                seconds=way.seconds, memory={"all": part.memory},
                memory_size=places[part.name].machine.memory, cost=None, factor=1.0,
                stages=part.layers,
            )
            for part in way.chain.parts
        )  # fmt: skip
    return tuple(
        _island_answer(places[name], way.split.options[name], way.split.grains[name], problem)
        for name in places
        if name in way.split.grains
    )


def _island_answer(place: Place, option: Option, grains: int, problem: Problem) -> IslandAnswer:
    """An island's part, its costs and bytes those of its own share."""
    per_grain = problem.grain // option.layout.microbatch
    turns = -(-grains // option.layout.dp) * per_grain
    c = problem.coefficients
    cost = step_cost(place.work, option.layout, place.machine, turns, c.time)
    use = memory_use(place.work, option.layout, turns, c.memory)
    return IslandAnswer(
        island=place.island, machine=place.machine, work=place.work, layout=option.layout,
        grains=grains, seconds=option.seconds(grains), memory=use.parts(),
        memory_size=place.machine.memory, cost=cost, factor=option.factor,
    )  # fmt: skip


def _doubt(islands: Sequence[IslandAnswer]) -> tuple[float, float]:
    """Factors on the step: the widest of the islands', since the slowest one decides."""
    spread = fitted()["spread"]
    known = set(correction().table.labels["chip"])
    pairs = []
    for one in islands:
        grade = spread["known" if one.machine.chip in known else "unknown"]
        if one.machine.measured is not None:
            grade = spread["known"]
        pairs.append(spread_of(one.machine, grade["low"], grade["high"]))
    return min(low for low, _ in pairs), max(high for _, high in pairs)


def plan_of(answer: Answer) -> Plan:
    """The answer as the file that verbs pass on."""
    from atoll.planning import explain

    return explain.plan_of(answer)


def usable_bytes(machine: Machine) -> float:
    """Bytes of a device that a plan fills at most."""
    return machine.memory * USABLE
