"""Sharing: serving and training on one fleet, by hour of the day.

Chips that people do not need at an hour are lent to the run: `serving` says how many those are,
the planner how fast each training fleet computes, `lending` who moves when. The recipe decides the
bits, so lending decides nothing but the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from atoll.errors import InputError
from atoll.fleet import Fleet, Island
from atoll.hours import format_offset, format_time
from atoll.planning.calendar import Rated, Rates
from atoll.planning.goodput import goodput_of
from atoll.planning.lending import Pool, Schedule, State, best, in_blocks, states_of, tokens_of
from atoll.planning.machine import Machine
from atoll.planning.planner import Answer, Asked, NoPlan, later, model_of, plan
from atoll.planning.serving import Moving, Server, machine_for, moving_of, preset, server_of
from atoll.planning.work import Shape
from atoll.recipe import Recipe

DAY = 86400.0
LEAST_GAIN = 1.001
"""Times as many tokens a second without which more chips are not worth lending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lender:
    """An island that trains at some hours only; `server` where it serves people at the others."""

    island: Island
    moving: Moving
    free: tuple[int, ...]
    server: Server | None

    @property
    def pool(self) -> Pool:
        """Its nodes and what moving them usually takes."""
        return self._pool(1)

    @property
    def slow(self) -> Pool:
        """The same if moving takes the longest."""
        return self._pool(2)

    def _pool(self, end: int) -> Pool:
        moving = self.moving
        return Pool(
            free=self.free, lend=moving.lend[end], give_back=moving.give_back[end],
            again=moving.join[end],
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """A day: who is lent when, and what that is worth. Hours are of UTC; tokens are of a day.

    `answer` is the plan of the hours at which a plan file has its lent islands: each with one
    number of chips or none (`blocks`). `fixed` lends at all hours what is free at all of them.
    `slow` is `schedule` where every move takes the longest.
    """

    answer: Answer
    lenders: tuple[Lender, ...]
    rated: Mapping[State, Rated]
    schedule: Schedule
    blocks: Schedule
    fixed: Schedule
    slow: Schedule
    total: float

    def speed(self, hour: int) -> float:
        """Tokens a second of an hour, failures counted."""
        return self.rated[self.schedule.states[hour]].rate()

    def chips(self, hour: int) -> int:
        """Chips that train at an hour."""
        return self.rated[self.schedule.states[hour]].used

    @property
    def without(self) -> float:
        """Tokens of a day if nothing were lent."""
        return DAY * self.rated[(0,) * len(self.lenders)].rate()

    @property
    def ideal(self) -> float:
        """Tokens of a day if moving cost nothing."""
        return self.schedule.tokens + self.schedule.lost

    def days(self, tokens: float) -> float | None:
        """Days of the run at so many tokens a day; None: never."""
        return self.total / tokens if tokens > 0 else None

    def lent(self, index: int, hour: int) -> int:
        """Nodes of a lender that train at an hour."""
        return self.schedule.states[hour][index]

    @property
    def offset(self) -> float:
        """Seconds ahead of UTC of the clocks by which a person reads the day."""
        sites = [one.island.site for one in self.lenders]
        return self.answer.fleet.offset_of(sites[0]) or 0.0 if sites else 0.0


def share(recipe: Recipe, fleet: Fleet, asked: Asked, *, rates: Rates | None = None) -> Sharing:
    """The best day of a fleet that lends chips by the hour; `rates` remembers what was planned.

    InputError for what is wrong; NoPlan if nothing fits at any hour, or if people are not served.
    """
    stock = fleet.stock(asked.day)
    plain = as_if_always(stock)
    rates = rates or Rates(recipe, plain, asked)
    lenders = _lenders(recipe, stock, asked, rates)
    pools, slow = [one.pool for one in lenders], [one.slow for one in lenders]
    states = states_of(pools)
    own = {one.name: one.num_chips for one in plain.island}

    def chips(state: State) -> dict[str, int]:
        lent = {one.island.name: nodes * one.island.chips_per_node
                for one, nodes in zip(lenders, state, strict=True)}  # fmt: skip
        return own | lent

    for state in states:  # all are planned before any is judged: a larger one may keep a smaller's
        rates.of(chips(state))
    rated = _worth_it({state: rates.of(chips(state)) for state in states})
    states = list(rated)

    def rate(state: State) -> float:
        return rated[state].rate()

    # Decided as if every move were slow, reckoned as moves usually are: chips stay in doubt.
    schedule = tokens_of(pools, rate, best(slow, rate, states).states)
    blocks = tokens_of(pools, rate, in_blocks(slow, rate, states).states)
    always = tuple(min(pool.free) for pool in pools)
    least = max(
        (s for s in states if all(n <= m for n, m in zip(s, always, strict=True))), key=rate
    )
    answer = _block_plan(recipe, fleet, stock, asked, lenders, blocks)
    return Sharing(
        answer=answer, lenders=tuple(lenders), rated=rated, schedule=schedule, blocks=blocks,
        fixed=tokens_of(pools, rate, [least] * 24),
        slow=tokens_of(slow, rate, schedule.states),
        total=float(recipe.total_steps()) * recipe.tokens_per_step,
    )  # fmt: skip


def _worth_it(rated: dict[State, Rated]) -> dict[State, Rated]:
    """Without the states that lend more than another one and gain next to nothing by it; but those
    in which some pools of a state are away stay, because moving passes through them.
    """

    def beaten(state: State) -> bool:
        return any(
            other != state
            and all(a <= b for a, b in zip(other, state, strict=True))
            and LEAST_GAIN * one.rate() >= rated[state].rate()
            for other, one in rated.items()
        )

    good = {state for state in rated if not any(state) or not beaten(state)}
    through = {
        tuple(n * keep for n, keep in zip(state, mask, strict=True))
        for state in good
        for mask in itertools.product((0, 1), repeat=len(state))
    }
    return {state: one for state, one in rated.items() if state in good | through}


def as_if_always(stock: Fleet) -> Fleet:
    """The fleet as if all of its islands trained at all hours."""
    islands = [one.model_copy(update={"hours": None}) for one in stock.island]
    return stock.model_copy(update={"island": islands, "traffic": []})


def _lenders(recipe: Recipe, stock: Fleet, asked: Asked, rates: Rates) -> list[Lender]:
    """Islands that serve, in the order of the file, then those with hours of their own."""
    names = [one.name for one in stock.island]
    own = model_of(recipe)
    servers = []
    for one in stock.traffic:
        if one.island not in names:
            continue  # nothing is delivered yet
        model, name = (own, recipe.name) if one.model is None else (preset(one.model), one.model)
        try:
            servers.append(server_of(one, stock, model, name, asked))
        except InputError as fault:
            fault.key = f"island[{names.index(one.island)}].{fault.key}"
            raise
    hours = [one for one in stock.island if one.hours is not None]
    everything = rates.of({one.name: one.num_chips for one in stock.island})
    step = everything.answer.step_seconds.mid if everything.answer is not None else 0.0
    parameters = float(Shape.of(own).parameters)
    found = []
    for server in servers:
        moving = moving_of(server.island, stock, parameters=parameters, step=step, server=server,
                           machine=server.machine)  # fmt: skip
        found.append(Lender(island=server.island, free=server.free, moving=moving, server=server))
    for island in hours:
        told = stock.hours_of(island)
        assert told is not None
        free = tuple(island.nodes if told.whole(hour) else 0 for hour in range(24))
        moving = moving_of(island, stock, parameters=parameters, step=step, server=None,
                           machine=_machine_of(island, everything))  # fmt: skip
        found.append(Lender(island=island, free=free, moving=moving, server=None))
    return found


def _machine_of(island: Island, everything: Rated) -> Machine:
    """The machine of an island as the plan of all islands has it, or by the facts."""
    planned = everything.answer.islands if everything.answer is not None else ()
    found = next((one.machine for one in planned if one.island.name == island.name), None)
    try:
        return found or machine_for(island, Asked())
    except InputError as fault:
        fault.key, fault.message = None, f"on island {island.name}: {fault.message}"
        raise


def _block_plan(
    recipe: Recipe,
    fleet: Fleet,
    stock: Fleet,
    asked: Asked,
    lenders: list[Lender],
    blocks: Schedule,
) -> Answer:
    """The plan of the hours at which all lent islands of `blocks` train."""
    lent = {one.island.name: (one, max(state[i] for state in blocks.states), i)
            for i, one in enumerate(lenders)}  # fmt: skip
    islands = []
    for island in stock.island:
        lender, nodes, index = lent.get(island.name, (None, island.nodes, 0))
        if lender is None:
            islands.append(island)
        elif nodes:
            when = hours_text(lender, [bool(state[index]) for state in blocks.states], stock)
            islands.append(island.model_copy(update={"nodes": nodes, "hours": when}))
    if not islands:
        why = "no chip trains at any hour: people need them all, or moving costs more than it gains"
        raise NoPlan(f"{why}\n  what would help: islands of its own, more chips, a smaller burst")
    found = plan(recipe, stock.model_copy(update={"island": islands, "traffic": []}), asked)
    notes = [*found.notes, *later(fleet, asked.day)]
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def hours_text(lender: Lender, lent: list[bool], stock: Fleet) -> str:
    """The hours at which a lender's island trains, by its site's clocks: from when people's last
    answers are out until their server has to be started.
    """
    if lender.server is None:
        assert lender.island.hours is not None
        told = stock.hours_of(lender.island)
        assert told is not None
        return told.text
    offset = lender.server.offset
    if all(lent):
        return f"00:00-24:00 {format_offset(offset)}"
    begin, end = lender.moving.drain[1], lender.moving.open[1]
    windows = []
    for first, last in _runs(lent):
        # Whole minutes, rather late and early than in somebody's way.
        opens = 60.0 * -(-(3600.0 * first + begin) // 60.0)
        closes = 60.0 * ((3600.0 * last - end) // 60.0)
        if closes > opens:
            windows.append((opens, closes))
    windows = windows or [(0.0, 60.0)]
    text = ", ".join(f"{format_time(a + offset)}-{format_time(b + offset)}" for a, b in windows)
    return f"{text} {format_offset(offset)}"


def _runs(lent: list[bool]) -> Iterator[tuple[int, int]]:
    """(first hour, hour after the last) of every run of hours round the clock."""
    for hour in range(24):
        if lent[hour] and not lent[hour - 1]:
            length = next(n for n in range(1, 25) if not lent[(hour + n) % 24])
            yield hour, hour + length


def plan_by_hours(recipe: Recipe, fleet: Fleet, asked: Asked) -> Answer:
    """The plan of a fleet; where it lends by the hour, that of the hours at which it does."""
    if not fleet.shares_hours:
        return plan(recipe, fleet, asked)
    return share(recipe, fleet, asked).answer


def over_a_day(recipe: Recipe, stock: Fleet, asked: Asked, rates: Rates) -> Rated:
    """A stock that lends by the hour, rated by what it makes of a whole day. `rates` are those of
    its islands as if they trained at all hours. NoPlan and InputError as `share`.
    """
    found = share(recipe, stock, asked, rates=rates)
    goodput = goodput_of(found.answer, stock.failures)
    full = found.answer.tokens_per_second.mid * goodput.factor
    parts = {
        one.island.name: sum(state[index] for state in found.schedule.states)
        / (24.0 * max(1, *(state[index] for state in found.blocks.states)))
        for index, one in enumerate(found.lenders)
    }
    return Rated(
        chips={one.name: one.num_chips for one in stock.island}, answer=found.answer,
        goodput=goodput, parts=parts, share=found.schedule.tokens / (DAY * full),
    )  # fmt: skip
