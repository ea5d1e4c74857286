"""Search: recipe x fleet -> the best way to carry the run, what was tried, what would help.

Each island first finds its own options (`options`); then shares of the global batch, the set of
islands that take part, and the cadence of the exchange are chosen together. A model that no island
can hold is cut into pipeline stages across islands (`chain`). Nothing here reads a clock or draws a
random number: the same inputs give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.plan import Layout
from atoll.planning.chain import Chain, best_chain
from atoll.planning.exchange import NONE, Exchange, exchange_bytes, exchange_seconds
from atoll.planning.layouts import require, shape_problem
from atoll.planning.makespan import Split, fixed_split, split
from atoll.planning.options import Option, Tightest, fastest, island_options, room
from atoll.planning.problem import Place, Problem

EXACT = 4
"""Up to so many islands every set of them is tried; beyond, they are added group by group."""

STEPS = 8
"""Into so many groups the islands of a site are divided at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to carry a step: who computes how much, what the exchange adds."""

    split: Split
    exchange: Exchange
    every: str
    seen: float
    seconds: float
    chain: Chain | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The islands that take part."""
        if self.chain is not None:
            return tuple(part.name for part in self.chain.parts)
        return tuple(self.split.grains)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search leaves: the best way, the others by name, options and misfits by island."""

    best: Way
    others: Mapping[str, Way]
    options: Mapping[str, Sequence[Option]]
    misfits: Mapping[str, Tightest]


def search(problem: Problem) -> Found:
    """The best way. Raises `DoesNotFit` if no way fits the fleet's memory."""
    options, tightest = all_options(problem)
    others: dict[str, Way] = {}
    ways: list[Way] = []
    if options and (not problem.shares or any(problem.shares.get(name) for name in options)):
        way = best_way(problem, options, problem.every)
        if way.split.options:
            ways.append(way)
            others = {} if problem.among else _other_ways(problem, options)
    # Islands that hold a part of the grains are no misfits where the others hold the rest.
    misfits = {name: tight for name, tight in tightest.items() if not ways or name not in options}
    if misfits and len(problem.places) > 1 and not problem.only:
        cut = best_chain(problem)
        if cut is not None:
            chained = Way(
                split=Split(grains={}, options={}, seconds=cut.seconds),
                exchange=NONE, every="step", seen=0.0, seconds=cut.seconds, chain=cut,
            )  # fmt: skip
            ways.append(chained)
    if not ways:
        raise DoesNotFit(problem, misfits)
    best = min(ways, key=lambda way: way.seconds)
    if best.seconds == float("inf"):  # only where a person fixed the shares
        fix = 'add a [[link]], or mode = "auto" in [shares]'
        raise InputError(f"shares are fixed, and {best.exchange.bound}", key="link", fix=fix)
    for way in ways:
        if way is not best:
            name = "one pipeline across islands" if way.chain else "whole models on islands"
            others[name] = way
    others = {name: way for name, way in others.items() if not same_way(way, best)}
    return Found(best=best, others=others, options=options, misfits=misfits)


def _other_ways(problem: Problem, options: Mapping[str, Sequence[Option]]) -> dict[str, Way]:
    """What a reader would compare the best way with, by name; only ways that fit."""
    if len(options) < 2:
        return {}
    other = "rounds" if problem.every == "step" else "step"
    free = replace(problem, shares={})
    alone = min(
        (way_of(free, options, (name,), problem.every) for name in options),
        key=lambda way: way.seconds,
    )
    found = {
        f"exchange every {other}": best_way(problem, options, other),
        f"{'-'.join(alone.names)} alone": alone,
        "all islands": way_of(problem, options, tuple(options), problem.every),
    }
    return {name: way for name, way in found.items() if way.split.options}


def same_way(a: Way, b: Way) -> bool:
    """Whether two ways use the same islands in the same manner."""
    if len(a.names) == len(b.names) == 1 and a.chain is b.chain:
        return a.names == b.names
    return set(a.names) == set(b.names) and a.every == b.every and a.chain is b.chain


class DoesNotFit(Exception):
    """No layout fits on any island; `misfits` says how near each came."""

    def __init__(self, problem: Problem, misfits: Mapping[str, Tightest]) -> None:
        """Keeps what was tried."""
        super().__init__("the model fits nowhere")
        self.problem, self.misfits = problem, misfits


def all_options(
    problem: Problem,
) -> tuple[dict[str, Sequence[Option]], dict[str, Tightest]]:
    """Options of each island that has any, and what came nearest where none holds all grains.

    Islands of equal machines and sizes are searched once.
    """
    options: dict[str, Sequence[Option]] = {}
    misfits: dict[str, Tightest] = {}
    seen: dict[tuple[object, ...], tuple[Sequence[Option], Tightest | None]] = {}
    total = sum(place.speed for place in problem.places)
    for place in problem.places:
        share = max(1, round(problem.grains * place.speed / total))
        on = place.machine
        among = problem.among.get(place.name)
        key = (on.chip, on.network, on.network_latency, on.node_devices, place.devices, id(among))
        if problem.only:
            _require(problem, place)
        if key not in seen:
            seen[key] = island_options(
                place.work, place.machine, place.devices,
                grain=problem.grain, grains=problem.grains, share=share,
                coefficients=problem.coefficients, correct=place.correct, only=problem.only,
                suits=problem.suits, among=among,
            )  # fmt: skip
        found, tightest = seen[key]
        if found:
            options[place.name] = found
        if tightest is not None:
            misfits[place.name] = tightest
    return options, misfits


def _require(problem: Problem, place: Place) -> None:
    """InputError if what a person fixed cannot be on an island."""
    only = dict(problem.only)
    plain = Layout(**{**only, "dp": only.get("dp", 1)})
    if plain.lane_devices > place.devices and shape_problem(place.work, plain) is None:
        axes = [axis for axis in ("tp", "pp", "cp") if getattr(plain, axis) > 1]
        written = ",".join(f"{axis}={getattr(plain, axis)}" for axis in axes)
        message = f"on island {place.name}: {' x '.join(axes)} needs {plain.lane_devices} devices"
        message += f", the island has {place.devices}"
        raise InputError(message, key="--layout", value=written, fix="smaller degrees")
    if "dp" not in only:
        lanes = max(1, min(place.devices // plain.lane_devices, problem.grains))
        plain = plain.model_copy(update={"dp": lanes})
    require(place.work, plain, place.devices, island=place.name)
    if "microbatch" in only and problem.grain % plain.microbatch:
        fix = "micro-batches that divide the grain; or another batch.grain in the recipe"
        message = f"does not divide the grain of {problem.grain} sequences"
        raise InputError(message, key="--layout microbatch", value=plain.microbatch, fix=fix)


def way_of(
    problem: Problem, options: Mapping[str, Sequence[Option]], names: tuple[str, ...], every: str
) -> Way:
    """The best split between exactly these islands (a share may still come out as nothing)."""
    exchange = exchange_of(problem, names, every)
    # Islands that share their options go on sharing them: the split asks those once.
    alike = {id(options[name]): options[name] for name in names}
    tailed = {
        key: [with_tail(problem, option, exchange, every) for option in own]
        for key, own in alike.items()
    }
    chosen = {name: tailed[id(options[name])] for name in names}
    if problem.shares:
        parts = fixed_split(chosen, problem.grains, problem.shares)
    else:
        parts = split(chosen, problem.grains)
    return _way(problem, parts, every)


def exchange_of(problem: Problem, names: Collection[str], every: str) -> Exchange:
    """One exchange between these islands."""
    members = [place.member() for place in problem.places if place.name in names]
    num_bytes = exchange_bytes(problem.places[0].work.shape, every=every)
    efficiency = problem.coefficients.time.network
    return exchange_seconds(members, problem.fleet, num_bytes, efficiency=efficiency)


def with_tail(problem: Problem, option: Option, exchange: Exchange, every: str) -> Option:
    """An option with the seconds that an exchange takes after the island's last grain."""
    return replace(option, tail=tail_of(problem, option, exchange, every))


def tail_of(problem: Problem, option: Option, exchange: Exchange, every: str) -> float:
    """Seconds of an exchange after an island's last grain; 0 for one that never ends.

    It begins while the last grain's backward pass runs; a part is never hidden.
    """
    c, seconds = problem.coefficients.time, exchange.seconds
    if seconds == math.inf:
        return 0.0
    if every == "rounds":
        return seconds / problem.round_steps
    return max(seconds - c.state_behind * option.each, c.state_exposed * seconds)


def manages(
    problem: Problem,
    options: Mapping[str, Sequence[Option]],
    names: Sequence[str],
    every: str,
    seconds: float,
) -> bool:
    """Whether these islands compute all grains in `seconds`: sooner said than the best split."""
    exchange = exchange_of(problem, names, every)
    left = problem.grains
    for name in names:
        left -= max(
            option.within(seconds - tail_of(problem, option, exchange, every))
            for option in options[name]
        )
        if left <= 0:
            return True
    return False


def _way(problem: Problem, parts: Split, every: str) -> Way:
    """A split with the exchange of the islands that came out with a share."""
    if not parts.options:
        held = ", ".join(f"{name} {n}" for name, n in parts.grains.items())
        bound = f"of {problem.grains} grains memory holds only: {held}"
        nothing = Exchange(seconds=math.inf, bound=bound)
        return Way(split=parts, exchange=nothing, every=every, seen=math.inf, seconds=math.inf)
    exchange = exchange_of(problem, parts.grains, every)
    plain = {name: replace(option, tail=0.0) for name, option in parts.options.items()}
    tailed = {name: with_tail(problem, one, exchange, every) for name, one in plain.items()}

    def last(of: Mapping[str, Option]) -> float:
        return max(of[name].seconds(n) for name, n in parts.grains.items())

    computing = last(plain)
    whole = math.inf if exchange.seconds == math.inf else last(tailed)
    return Way(
        split=replace(parts, options=plain, seconds=computing), exchange=exchange, every=every,
        seen=whole - computing, seconds=whole,
    )  # fmt: skip


def best_way(problem: Problem, options: Mapping[str, Sequence[Option]], every: str) -> Way:
    """The best set of islands: every set of a few, else the fastest first and then group by group.

    Islands join in the order of their own speed, those of the site that is in already first; a
    group that does not help is left out.
    """
    names = list(options)
    if problem.shares:
        return way_of(problem, options, tuple(names), every)
    if len(names) <= EXACT:
        sets = [s for n in range(1, len(names) + 1) for s in combinations(names, n)]
        return min(
            (way_of(problem, options, chosen, every) for chosen in sets),
            key=lambda way: (way.seconds, len(way.names)),
        )
    held = {name: int(min(problem.grains, room(o))) for name, o in options.items()}
    pace = {name: fastest(options[name], n).seconds(n) / n for name, n in held.items()}
    order = sorted(names, key=lambda name: pace[name])
    sites = {place.name: place.island.site for place in problem.places}
    best: Way | None = None
    # The fastest island need not be at the best site: begin at each site once.
    for site in dict.fromkeys(sites[name] for name in order):
        here = [name for name in order if sites[name] == site]
        then = [[n for n in order if sites[n] == other] for other in dict.fromkeys(sites.values())]
        later = [chunk for group in then if group != here for chunk in chunks(group)]
        way = _grown(problem, options, chunks(here), later, every)
        if best is None or way.seconds < best.seconds:
            best = way
    assert best is not None
    return best


def _grown(
    problem: Problem,
    options: Mapping[str, Sequence[Option]],
    first: Sequence[Sequence[str]],
    then: Sequence[Sequence[str]],
    every: str,
) -> Way:
    """The way of the first islands, with each further group that makes it faster."""
    chosen = list(first[0])
    way = way_of(problem, options, tuple(chosen), every)
    for group in (*first[1:], *then):
        more = (*chosen, *group)
        if way.seconds < math.inf and not manages(problem, options, more, every, way.seconds):
            continue  # not even done in the time of fewer islands: most groups end here
        tried = way_of(problem, options, more, every)
        if tried.seconds < way.seconds or not way.split.options:  # nothing: memory is short
            way, chosen = tried, [*more]
    return way


def chunks(names: Sequence[str]) -> list[Sequence[str]]:
    """The islands of a site, the fastest first, in at most `STEPS` groups: the number of ways that
    are tried must not grow with the number of islands. The first island stands alone.
    """
    size = -(-(len(names) - 1) // (STEPS - 1)) or 1
    return [names[:1], *(names[i : i + size] for i in range(1, len(names), size))]


def what_helps(problem: Problem, found: Found) -> list[tuple[str, float]]:
    """Grains a second that more of something would add, the most first.

    More nodes of an island: as many as one more lane takes, divided by them, so that the answer is
    for one node. Whole lanes and whole grains make the true gain a staircase; this is its slope.
    """
    if found.best.chain is not None or problem.shares or problem.among:
        return []
    now = problem.grains / slope_seconds(problem, found.best)
    gains = []
    for place in problem.places:
        for option in found.options.get(place.name, ())[:1]:
            chosen = found.best.split.options.get(place.name, option)
            gains.append(
                (f"one more node of {place.name}", _node_gain(problem, found, place, chosen))
            )
    for name, fleet in wider(problem.fleet):
        way = best_way(replace(problem, fleet=fleet), found.options, problem.every)
        if way.seconds < found.best.seconds * (1.0 - 1e-9):
            better = problem.grains / way.seconds - problem.grains / found.best.seconds
            gains.append((f"twice the bandwidth of {name}", better))
    kept = [(what, gain) for what, gain in gains if gain > 1e-7 * now]
    return sorted(kept, key=lambda entry: -entry[1])


def slope_seconds(problem: Problem, way: Way, extra: Option | None = None) -> float:
    """Seconds of a step if lanes and grains could be cut as fine as one likes.

    Islands with fixed seconds f, each e and d lanes are done together at t with
    sum of d (t - f) / e = grains; `extra` is one more lane.
    """
    options = [*way.split.options.values(), *([extra] if extra is not None else [])]
    lanes = [option.layout.dp for option in way.split.options.values()] + ([1] if extra else [])
    rates = [lane / option.each for lane, option in zip(lanes, options, strict=True)]
    begun = sum(rate * option.fixed for rate, option in zip(rates, options, strict=True))
    return (problem.grains + begun) / sum(rates) + way.seen


def _node_gain(problem: Problem, found: Found, place: Place, option: Option) -> float:
    """Grains a second for one more node of an island that takes part; 0 for one that does not."""
    if place.name not in found.best.split.options:
        return 0.0
    nodes = option.layout.lane_devices / place.machine.node_devices
    before = problem.grains / slope_seconds(problem, found.best)
    after = problem.grains / slope_seconds(problem, found.best, option)
    return (after - before) / nodes


def wider(fleet: Fleet) -> list[tuple[str, Fleet]]:
    """The fleet with each link twice as wide, uplinks at its ends too, by the link's name."""
    found = []
    for index, link in enumerate(fleet.link):
        links = list(fleet.link)
        links[index] = link.model_copy(update={"bandwidth": f"{2 * link.bytes_per_second:.0f} B/s"})
        sites = [
            site.model_copy(update={"uplink": None}) if site.name in link.between else site
            for site in fleet.site
        ]
        name = " - ".join(link.between)
        found.append((name, fleet.model_copy(update={"link": links, "site": sites})))
    return found
