"""Power: how many chips a site's power is enough for, with the servers and the cooling around them.

A plan is free to leave chips out, so power binds only what takes part. Where that is too much, the
site's power is given out again, node by node: first to what took part, by speed for a watt, and
once to each island before the others; the best plan of these is kept. The rest stands idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from atoll import facts
from atoll.errors import InputError
from atoll.facts.power import published
from atoll.fleet import Fleet, Island
from atoll.plan import LeftOut
from atoll.planning.answer import Answer, NoPlan
from atoll.site import Site
from atoll.units import parse_watts


def factor_of(site: Site | None) -> tuple[float, float, float]:
    """Low, mid and high watts at the meter for each watt of a chip: the site's, or as published."""
    if site is None or site.power_factor is None:
        return published().at_the_meter()
    return (site.power_factor,) * 3


def watts_at(fleet: Fleet, island: Island) -> tuple[float, float, float] | None:
    """Low, mid and high watts of one chip at the meter of its site; None if nobody published it."""
    power = facts.chip(island.chip).power
    if power is None:
        return None
    site = next((one for one in fleet.site if one.name == island.site), None)
    low, mid, high = factor_of(site)
    return low * power.range[0], mid * power.value, high * power.range[2]


def within_power(answer: Answer, again: Callable[[Fleet], Answer]) -> Answer:
    """The answer itself if its chips have the power, else the best one of fewer chips.

    `again` plans another stock. `NoPlan` if the model fits on nothing that has power.
    """
    stock = answer.fleet
    if not _short(stock, {one.island.name: one.chips for one in answer.islands}):
        return answer
    found: list[Answer] = []
    for fewer in _smaller(answer):
        try:
            found.append(again(fewer))
        except (NoPlan, InputError):
            continue
    short = sorted(_short(stock, {one.name: one.num_chips for one in stock.island}))
    if not found:
        limits = ", ".join(
            f"{site.name}: {site.power}" for site in stock.site if site.name in short
        )
        raise NoPlan(
            f"the model fits on no island within the power of the sites ({limits})\n"
            "  more power for the site, or chips with more memory for a watt"
        )
    best = min(found, key=lambda one: one.way.seconds)
    unpowered = {
        island.name: island.num_chips - _nodes(best.fleet, island.name) * island.chips_per_node
        for island in stock.island
    }
    unpowered = {name: number for name, number in unpowered.items() if number}
    return replace(
        best, fleet=stock, unpowered=unpowered,
        rejected=(*told(stock, unpowered), *best.rejected),
        notes=(f"power: {meter_text(stock)}", *best.notes),
    )  # fmt: skip


def told(stock: Fleet, unpowered: Mapping[str, int]) -> Sequence[LeftOut]:
    """A line for every island of which chips stand idle for want of power."""
    lines = []
    for island in stock.island:
        if not unpowered.get(island.name):
            continue
        site = next(one for one in stock.site if one.name == island.site)
        watts = watts_at(stock, island)
        assert watts is not None
        why = f"power: {site.name} has {site.power}, and one takes {watts[1]:,.0f} W at the meter"
        lines.append(LeftOut(what=f"{unpowered[island.name]:,} chips of {island.name}", why=why))
    return lines


def meter_text(fleet: Fleet) -> str:
    """What is drawn at the meter for each watt of a chip, and where that is from."""
    usual, (low, mid, high) = published(), published().at_the_meter()
    own = [site for site in fleet.site if site.power_factor is not None]
    text = f"at the meter {mid:.2f} W for each W of a chip ({low:.2f} to {high:.2f}: server "
    text += f"{usual.server.mid:g}, cooling {usual.cooling.mid:g}, as published)"
    if own:
        text += "; at " + ", ".join(f"{one.name} {factor_of(one)[1]:g}" for one in own)
    return text


def unknown(stock: Fleet) -> list[str]:
    """Notes on chips whose power nobody published, at sites whose power is limited."""
    limited = {site.name for site in stock.site if site.power is not None}
    return [
        f"power: nobody published what {island.chip} draws, so {island.site} is not limited by it"
        for island in stock.island
        if island.site in limited and facts.chip(island.chip).power is None
    ]


def _short(stock: Fleet, chips: Mapping[str, int]) -> dict[str, float]:
    """Site -> its watts, where chips by island take more than that."""
    short = {}
    for site in stock.site:
        if site.power is None:
            continue
        need = 0.0
        for island in stock.island:
            watts = watts_at(stock, island) if island.site == site.name else None
            need += 0.0 if watts is None else chips.get(island.name, 0) * watts[1]
        limit = parse_watts(site.power)
        if need > limit * (1.0 + 1e-9):
            short[site.name] = limit
    return short


def _smaller(answer: Answer) -> list[Fleet]:
    """Stocks that the sites' power is enough for, without those of no chips."""
    stock, working = answer.fleet, {one.island.name for one in answer.islands}
    short = _short(stock, {one.name: one.num_chips for one in stock.island})
    precision = answer.recipe.precision.compute

    def rank(island: Island) -> tuple[bool, float]:
        watts, flops = watts_at(stock, island), facts.chip(island.chip).flops
        speed = 0.0 if flops is None else flops.per_second(precision) or 0.0
        return island.name not in working, -speed / watts[1] if watts else 0.0

    usual = sorted(stock.island, key=rank)
    orders = [usual]
    for first in usual:
        if first.site in short:
            orders.append([first, *(one for one in usual if one is not first)])
    found: list[Fleet] = []
    for order in orders:
        fleet = _filled(stock, short, order)
        if fleet.island and fleet.island not in [one.island for one in found]:
            found.append(fleet)
    return found


def _filled(stock: Fleet, short: Mapping[str, float], order: Sequence[Island]) -> Fleet:
    """The stock with as many nodes as have power, given out in an order of islands."""
    left, nodes = dict(short), {}
    for island in order:
        nodes[island.name] = island.nodes
        watts = watts_at(stock, island)
        if island.site in left and watts is not None and watts[1] > 0:
            each = watts[1] * island.chips_per_node
            nodes[island.name] = min(island.nodes, int(left[island.site] / each + 1e-9))
            left[island.site] -= nodes[island.name] * each
    kept = [
        one.model_copy(update={"nodes": nodes[one.name]}) for one in stock.island if nodes[one.name]
    ]
    return stock.model_copy(update={"island": kept})


def _nodes(fleet: Fleet, name: str) -> int:
    return next((one.nodes for one in fleet.island if one.name == name), 0)
