"""Explain: why this plan and not another, in words; which tool carries it; the plan as a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atoll import facts
from atoll.plan import Layout, LeftOut, Plan, PlanIsland
from atoll.planning.cost import Cost
from atoll.planning.options import Option, fastest
from atoll.planning.problem import Problem
from atoll.planning.search import Found, Way
from atoll.recipe import Recipe, unsupported_features
from atoll.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from atoll.planning.planner import Answer, IslandAnswer

WIDE = 1.6
"""High by low above which a plan says that its range is wide."""

PARTS = {
    "matmul": "matrix products", "attention": "attention", "elementwise": "elementwise",
    "recompute": "recompute", "head": "output head", "bubble": "pipeline bubble",
    "tensor": "tensor-parallel traffic", "context": "context-parallel traffic",
    "experts": "expert traffic", "stages": "stage traffic", "state": "gradients and state",
    "update": "update", "overhead": "overhead",
}  # fmt: skip
"""The parts of a step's cost as a person reads them."""


def executor_of(
    recipe: Recipe, islands: Sequence[IslandAnswer], way: Way, asked: str | None
) -> tuple[str, str]:
    """Who can carry the plan out: "atoll", or "emit:<tool>" with what Atoll lacks for it; `asked`
    is the tool where a person named one.
    """
    lacks = [key for key, _, _ in unsupported_features(recipe)]
    if way.every != "step" and "exchange.every" not in lacks:
        lacks.append("exchange.every")
    for one in islands:
        for key in _beyond(one.layout):
            if key not in lacks:
                lacks.append(key)
    if way.chain is not None:
        lacks.append("stages across islands")
    if not lacks:
        return "atoll", "train PLAN runs it here"
    backends = {str(facts.chip(one.island.chip).backend) for one in islands}
    tool = asked or tool_for(backends, len(islands))
    return f"emit:{tool}", "Atoll's own trainer does not do yet: " + ", ".join(lacks)


def _beyond(layout: Layout) -> Iterator[str]:
    """Keys of a layout that Atoll's own trainer does not do."""
    for key in ("tp", "pp", "cp", "ep", "vpp"):
        if getattr(layout, key) > 1:
            yield f"layout.{key}"
    if layout.zero:
        yield "layout.zero"
    if layout.recompute != "none":
        yield "layout.recompute"


def tool_for(backends: set[str], num_islands: int) -> str:
    """The tool that launches such a plan: one for all makes together, or each make's own."""
    from atoll.planning.emit import TOOLS

    if num_islands > 1 and len(backends) > 1:
        return "flagscale"
    for name, tool in TOOLS.items():
        if backends <= set(tool.backends):
            return name
    return "flagscale"


def contract_of(islands: Sequence[IslandAnswer], way: Way) -> str:
    """What a run of this plan can promise; see docs/how-it-stays-exact.md."""
    if way.every == "rounds":
        return "rounds"
    if len({one.machine.chip for one in islands}) > 1:
        return "replicas identical, replayable"
    return "bitwise"


def notes(islands: Sequence[IslandAnswer], way: Way, low: float, high: float) -> Iterator[str]:
    """What a reader should know before believing the numbers."""
    for one in islands:
        chip = facts.chip(one.island.chip)
        if chip.confidence == "low":
            yield (
                f"{one.island.name}: little is published about {chip.name}, so the range of this "
                "plan is wide; measure it with atoll measure"
            )
        for note in one.machine.notes:
            yield f"{one.island.name}: {note}"
        idle = one.island.nodes * one.machine.node_devices - one.layout.num_devices
        if idle > 0 and way.chain is None:
            yield f"{one.island.name}: {idle} devices stay idle (the layout takes whole lanes)"
    if high / low > WIDE:
        yield f"the step may take {low:.2f} to {high:.2f} of what is printed"
    yield "no failure, checkpoint or restart is counted in the finish"


def rejected(problem: Problem, found: Found) -> list[LeftOut]:
    """Ways and layouts that lost, each with the reason, the closest first."""
    best = found.best
    lost = [
        LeftOut(what=name, why=_why_slower(way, best, problem))
        for name, way in sorted(found.others.items(), key=lambda entry: entry[1].seconds)
    ]
    for name, options in found.options.items():
        grains = best.split.grains.get(name)
        if best.chain is None and grains:
            lost += _layouts_that_lost(name, options, best.split.options[name], grains)
    for name in found.options:
        if best.chain is None and name not in best.split.grains:
            lost.append(LeftOut(what=name, why=_why_out(problem, found, name)))
    for name, tight in found.misfits.items():
        if best.chain is None or name not in best.names:
            over = format_bytes(tight.need - tight.have)
            lost.append(LeftOut(what=name, why=f"the model does not fit: {over} too many a device"))
    return lost


def _why_slower(way: Way, best: Way, problem: Problem) -> str:
    """What makes another way slower than the best one."""
    if way.seconds == float("inf"):
        return way.exchange.bound
    slower = f"{format_seconds(way.seconds)} a step, {_percent(way.seconds / best.seconds)}"
    if way.chain is not None:
        return f"{slower}: {way.chain.bound} sets the pace"
    if way.seen > 0.2 * way.seconds:
        return f"{slower}: {format_seconds(way.seen)} of exchange over {way.exchange.bound}"
    if way.seconds < best.seconds and way.every == best.every:
        return f"{slower}, by layouts or kernels that Atoll's own trainer does not have (--emit)"
    if way.seconds < best.seconds:
        steps = problem.round_steps
        return (
            f"{slower}, but it is another recipe (exchange every {steps} steps, contract: rounds)"
        )
    missing = [name for name in best.names if name not in way.names]
    return f"{slower}: without {', '.join(missing)}" if missing else slower


def _percent(ratio: float) -> str:
    """1.25 -> "25 % more"; 0.8 -> "20 % less"; 5.0 -> "5 times as long"."""
    change = 100.0 * (ratio - 1.0)
    if ratio >= 3.0:
        return f"{ratio:.0f} times as long"
    return f"{abs(change):.0f} % {'more' if change >= 0 else 'less'}"


def _why_out(problem: Problem, found: Found, name: str) -> str:
    """Why an island that could compute is left out of the best way."""
    from atoll.planning.search import way_of

    best = found.best
    names = (*best.names, name)
    if problem.shares:
        return "its share is 0"
    way = way_of(problem, found.options, names, problem.every)
    if way.seconds == float("inf"):
        return f"left out: {way.exchange.bound}"
    if name not in way.split.grains:
        return "left out: not one grain is done before the others are"
    worse = format_seconds(max(0.0, way.seconds - best.seconds))
    if way.seen > best.seen:
        more = format_seconds(way.seen - best.seen)
        return f"left out: {more} more exchange over {way.exchange.bound}, {worse} a step in all"
    return f"left out: a step would take {worse} more"


def _layouts_that_lost(
    name: str, options: Sequence[Option], chosen: Option, grains: int
) -> list[LeftOut]:
    """The best layouts of other degrees on an island, and what they lose their time in."""

    def degrees(option: Option) -> tuple[int, ...]:
        return (option.layout.tp, option.layout.pp, option.layout.cp, option.layout.ep)

    seen = {degrees(chosen)}
    lost: list[LeftOut] = []
    for option in sorted(options, key=lambda option: option.seconds(grains)):
        if degrees(option) in seen or len(lost) == 2:
            continue
        seen.add(degrees(option))
        ratio = option.seconds(grains) / fastest(options, grains).seconds(grains)
        why = f"{_percent(ratio)}: {_largest_loss(option, chosen)}"
        lost.append(LeftOut(what=f"{name}: {option.layout.describe()}", why=why))
    return lost


def _largest_loss(option: Option, chosen: Option) -> str:
    """The part of the cost, for each device and grain, in which an option loses most."""

    def each(cost: Cost, layout: Layout) -> Mapping[str, float]:
        return {
            part: seconds / (cost.microbatches * layout.microbatch) * layout.lane_devices
            for part, seconds in cost.parts().items()
        }

    mine, best = each(option.cost, option.layout), each(chosen.cost, chosen.layout)
    part = max(mine, key=lambda key: mine[key] - best[key])
    if mine[part] <= best[part]:
        return "fewer lanes at work"
    return f"more {PARTS[part]}"


def plan_of(answer: Answer) -> Plan:
    """The answer as a plan file; `train` or another tool carries it out."""
    way = answer.way
    islands = []
    first = 0
    for index, one in enumerate(answer.islands):
        stages = []
        for layers in one.stages:
            stages.append([first, first + layers - 1])
            first += layers
        islands.append(
            PlanIsland(
                name=one.island.name, chip=one.island.chip, site=one.island.site,
                devices=one.island.num_chips * one.machine.devices_per_chip,
                threads=one.island.threads, layout=one.layout,
                share=float(one.grains) if index == 0 or way.chain is None else 0.0,
                start=one.island.start, stages=stages, hours=_hours(answer, one),
                pipeline=0 if way.chain is not None else None,
            )
        )  # fmt: skip
    return Plan(
        recipe=answer.recipe.as_dict(),
        fleet_digest=answer.fleet.digest(),
        executor=answer.executor,
        contract=answer.contract,
        islands=islands,
        shares=answer.fleet.shares,
        exchange={"every": way.every, "seconds": _finite(way.exchange.seconds),
                  "bound": way.exchange.bound},
        estimates=estimates(answer),
        left_out=list(answer.rejected),
    )  # fmt: skip


def _hours(answer: Answer, one: IslandAnswer) -> str | None:
    """The hours of an island with their offset from UTC, as they are read anywhere."""
    hours = answer.fleet.hours_of(one.island)
    return None if hours is None else hours.text


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def estimates(answer: Answer) -> dict[str, Any]:
    """The numbers of an answer under the keys that scripts use (docs/files.md)."""
    return {
        "step_seconds": answer.step_seconds.model_dump(),
        "tokens_per_second": answer.tokens_per_second.model_dump(),
        "mfu": answer.mfu,
        "memory": {
            one.island.name: {"used": one.memory_used, "size": one.memory_size}
            for one in answer.islands
        },
        "finish_seconds": answer.finish_seconds.model_dump(),
    }


def as_json(answer: Answer) -> dict[str, Any]:
    """The object of `atoll plan --json`."""
    days = answer.finish_days()
    names = ("low", "mid", "high")
    plan = plan_of(answer)
    return {
        **estimates(answer),
        "tokens_per_second": answer.tokens_per_second.mid,
        "layout": {one.name: one.layout.model_dump() for one in plan.islands},
        "shares": {one.island.name: one.grains for one in answer.islands},
        "seconds": {one.island.name: one.seconds for one in answer.islands},
        "parts": {
            one.island.name: one.cost.parts() for one in answer.islands if one.cost is not None
        },
        "exchange": plan.exchange | {"seen": answer.way.seen},
        "finish": None if days is None else {
            name: day.isoformat() for name, day in zip(names, days, strict=True)
        },
        "steps": answer.steps,
        "executor": answer.executor,
        "executor_why": answer.executor_why,
        "contract": answer.contract,
        "rejected": [one.model_dump() for one in answer.rejected],
        "unpowered": dict(answer.unpowered),
        "helps": [{"what": what, "tokens_per_second": gain} for what, gain in answer.helps],
        "notes": list(answer.notes),
        "search_seconds": answer.search_seconds,
    }  # fmt: skip


def headline(answer: Answer) -> list[tuple[str, str]]:
    """What a reader wants first, a line each: (name, text)."""
    step, rate = answer.step_seconds, answer.tokens_per_second
    parameters = answer.islands[0].work.shape.parameters
    recipe = answer.recipe
    size = f"{format_count(parameters)} parameters, {format_count(recipe.tokens_per_step)} tokens"
    step_range = f"{format_seconds(step.low)} to {format_seconds(step.high)}, {step.basis}"
    rate_range = f"{format_count(rate.low)} to {format_count(rate.high)}"
    used = f"{100 * answer.mfu:.1f} % of the peak (MFU), {answer.chips:,} chips"
    return [
        ("model", f"{recipe.name}: {size} a step, {answer.steps:,} steps"),
        ("step", f"{format_seconds(step.mid)} ({step_range})"),
        ("speed", f"{format_count(rate.mid)} tokens/s ({rate_range}), {used}"),
        ("finish", finish_text(answer)),
        ("exchange", _exchange_text(answer)),
        ("contract", answer.contract),
        ("executor", f"{answer.executor} ({answer.executor_why})"),
    ]


def finish_text(answer: Answer) -> str:
    """When the last step is done, with the range."""
    spans = [answer.finish_seconds.low, answer.finish_seconds.mid, answer.finish_seconds.high]
    low, mid, high = (format_seconds(seconds) for seconds in spans)
    days = answer.finish_days()
    when = f" = {days[1]} ({days[0]} to {days[2]})" if days is not None else ""
    begin = f" from {answer.day}" if answer.day is not None else " from today"
    return f"{mid}{begin}{when}" if days is not None else f"{mid} ({low} to {high})"


def _exchange_text(answer: Answer) -> str:
    way = answer.way
    if way.chain is not None:
        return f"none: one pipeline across islands; {way.chain.bound} sets the pace"
    if len(way.names) == 1:
        return "none: one island"
    seen = f"{format_seconds(way.seen)} of it seen in each step" if way.seen else "hidden"
    seconds = format_seconds(way.exchange.seconds)
    return f"every {way.every}: {seconds} over {way.exchange.bound}, {seen}"


def shown_islands(answer: Answer) -> tuple[list[str], list[list[str]]]:
    """The table of islands: names of columns, and a row each."""
    head = ["island", "chip", "chips", "layout", "grains", "step", "memory", "of"]
    rows = []
    for one in answer.islands:
        layout = one.layout.describe()
        if one.stages:
            layout += f"; layers a stage {max(one.stages)}"
        rows.append(
            [
                one.island.name, one.machine.chip,
                f"{one.chips:,}", layout,
                f"{one.grains:,}", format_seconds(one.seconds), format_bytes(one.memory_used),
                format_bytes(one.memory_size),
            ]
        )  # fmt: skip
    return head, rows
