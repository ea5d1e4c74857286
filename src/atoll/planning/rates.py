"""Rates: what a chip of an offer, and the fleet's own chips, do for a recipe.

The planner is asked once for each kind of island at a typical size; the answer is taken to be
linear in the number of chips, and to add up over islands. How far from the truth that is, `joint`
asks the planner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll import facts, units
from atoll.errors import AtollError, InputError
from atoll.fleet import Fleet, Island
from atoll.planning.calendar import stock_of
from atoll.planning.case import Case, Closed, OwnChange
from atoll.planning.offers import Offer, Offers
from atoll.planning.planner import Asked, model_of, plan
from atoll.planning.work import Shape
from atoll.recipe import Recipe
from atoll.site import HERE, Network
from atoll.strict import nearest

TYPICAL = 4096
"""Chips of the island of which the planner is asked, where there are as many."""

NODE = 8
"""Chips a node where the facts do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens a second of one chip, asked for an island of so many; `why` not, if 0."""

    chips: int
    speed: float
    why: str = ""


def case_of(
    recipe: Recipe,
    fleet: Fleet,
    offers: Offers,
    asked: Asked,
    *,
    at: str | None = None,
    closed: Sequence[Closed] = (),
) -> tuple[Case, dict[str, Rate]]:
    """The case of the solver, and the rate of each offer. `at` counts one site's chips alone,
    `closed` is what rules refuse (`asked` asks none here).

    InputError for a site, a place or a power that is not known.
    """
    _require_places(fleet, offers, at)
    asked = replace(asked, day=None, rules=None)
    tokens = float(recipe.total_steps() * recipe.tokens_per_step)
    known: dict[Any, Rate] = {}
    chosen = [one for one in offers.offer if at in (None, one.site)]
    rates = {
        one.name: _rate(recipe, island_of(one), asked, known, key=f"offer[{index}]")
        for index, one in enumerate(offers.offer)
        if one in chosen
    }
    useful = [one for one in chosen if rates[one.name].speed > 0]
    sites = {one.site for one in chosen} | {one.site for one in fleet.island}
    power = {
        one.name: units.parse_watts(one.power)
        for one in fleet.site
        if one.power is not None and one.name in sites
    }
    watts = {one.name: _watts(one, offers, index, one.site in power)
             for index, one in enumerate(offers.offer) if one in useful}  # fmt: skip
    case = Case(
        offers=offers.model_copy(update={"offer": useful}),
        speed={one.name: rates[one.name].speed for one in useful},
        watts=watts, tokens=tokens, countries={one.name: one.country for one in fleet.site},
        power=power, own=_own(recipe, fleet, offers, asked, known, power, at),
        closed=tuple(closed),
    )  # fmt: skip
    return case, rates


def _require_places(fleet: Fleet, offers: Offers, at: str | None) -> None:
    """InputError for a site that the fleet does not have, and a place that is none."""
    sites = [one.name for one in fleet.site]
    for index, offer in enumerate(offers.offer):
        if offer.site not in sites:
            key, fix = f"offer[{index}].site", nearest(offer.site, sites, what="sites")
            raise InputError("the fleet has no such site", key=key, value=offer.site, fix=fix)
    places = [*sites, *dict.fromkeys(one.country for one in fleet.site if one.country)]
    for table in ("budget", "limit"):
        for index, one in enumerate(getattr(offers, table)):
            if one.place and one.place not in places:
                key, fix = f"{table}[{index}].place", nearest(one.place, places, what="places")
                message = "is no site and no country of the fleet"
                raise InputError(message, key=key, value=one.place, fix=fix)
    if at is not None and at not in (*sites, HERE):
        fix = nearest(at, sites, what="sites")
        raise InputError("the fleet has no such site", key="--at", value=at, fix=fix)


def _node(chip: str) -> int:
    return facts.chip(chip).node_chips or NODE


def island_of(offer: Offer, chips: int | None = None, *, site: str = HERE) -> Island:
    """An island of an offer's chips, of a typical size if no number is given."""
    node = _node(offer.chip)
    number = min(offer.stock, TYPICAL) if chips is None else chips
    return Island(
        name="offered", site=site, chip=offer.chip, chips_per_node=min(node, number),
        nodes=max(1, number // node), network=offer.network,
    )  # fmt: skip


def _rate(
    recipe: Recipe, island: Island, asked: Asked, known: dict[Any, Rate], *, key: str
) -> Rate:
    """What a chip of an island does, the island alone; asked once for each kind of island.

    InputError names the key of the table that the island is from.
    """
    network: Network | None = island.network
    kind = (island.chip, island.num_chips, island.chips_per_node, network and str(network))
    if kind not in known:
        alone = island.model_copy(update={"name": "offered", "site": HERE, "share": None})
        try:
            answer = plan(recipe, Fleet(island=[alone]), asked)
        except InputError as fault:
            fault.key = f"{key}.{(fault.key or '').partition('.')[2]}"
            fault.message = fault.message.removeprefix("on island offered: ")
            raise
        except AtollError as fault:
            why = " ".join(str(fault).split("\n  ")[:2])
            known[kind] = Rate(chips=island.num_chips, speed=0.0, why=why)
        else:
            speed = answer.tokens_per_second.mid / island.num_chips
            known[kind] = Rate(chips=island.num_chips, speed=speed)
    return known[kind]


def _watts(offer: Offer, offers: Offers, index: int, needed: bool) -> float:
    """Watts of one chip of an offer. InputError where the site's power counts and none is known."""
    if offer.power is not None:
        return units.parse_watts(offer.power)
    power = facts.chip(offer.chip).power
    if power is None:
        if not needed:
            return 0.0
        message = "the site's power is limited, and nobody published what this chip draws"
        fix = 'write power = "700 W" in this [[offer]]'
        raise InputError(message, key=f"offer[{index}].chip", value=offer.chip, fix=fix)
    return power.value * offers.power_factor


def _own(
    recipe: Recipe,
    fleet: Fleet,
    offers: Offers,
    asked: Asked,
    known: dict[Any, Rate],
    power: Mapping[str, float],
    at: str | None,
) -> tuple[OwnChange, ...]:
    """The fleet's own chips as they come and go (mid), in the order of the file."""
    days = [offers.start, *fleet.change_days(offers.start)]
    there = [stock_of(fleet, day, "mid") for day in days]
    found = []
    for index, island in enumerate(fleet.island):
        chips = [one.get(island.name, 0) for one in there]
        if not any(chips):
            continue
        size = max(chips[0], min(TYPICAL, max(chips)))
        typical = island.model_copy(update={"nodes": max(1, size // island.chips_per_node)})
        speed = 0.0
        if at in (None, island.site):
            speed = _rate(recipe, typical, asked, known, key=f"island[{index}]").speed
        watts = facts.chip(island.chip).power
        if watts is None and island.site in power:
            message = "its site's power is limited, and nobody published what this chip draws"
            fix = "take the site's power out, or give a file of the chip with its power"
            raise InputError(message, key=f"island[{index}].chip", value=island.chip, fix=fix)
        each = 0.0 if watts is None else watts.value * offers.power_factor
        for day, now, before in zip(days, chips, [0, *chips], strict=False):
            if now != before:
                ordinal = 0.0 if day == offers.start else float(day.toordinal())
                number = now - before
                found.append(
                    OwnChange(
                        day=ordinal, site=island.site, island=island.name, chips=number,
                        speed=number * speed, watts=number * each,
                    )
                )  # fmt: skip
    return tuple(found)


def flops_a_token(recipe: Recipe) -> float:
    """FLOP that a token of the recipe costs."""
    shape = Shape.of(model_of(recipe))
    return float(shape.flops_per_token(recipe.model.context))
