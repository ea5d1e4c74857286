"""Change: a fleet and its offers as one side of a question would have them.

The words of changes are those of `atoll.planning.whatif`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, timedelta

from atoll import facts, strict
from atoll.errors import InputError
from atoll.fleet import Fleet, Island
from atoll.planning import whatif
from atoll.planning.offers import Offers
from atoll.planning.orders import Ordered
from atoll.planning.rates import NODE
from atoll.planning.scenario.file import Arrival, Scenario, Side
from atoll.supply import Change, Delivery, Range


def changed(scenario: Scenario, side: Side) -> tuple[Fleet, Offers | None]:
    """The fleet and the offers of a scenario after some changes.

    InputError, its key that of a question, for what is neither in the fleet nor on offer.
    """
    fleet, offers = scenario.fleet, scenario.offers
    for key, words in side.changes:
        for part in map(str.strip, words.split(";")):
            try:
                fleet, offers = _changed(fleet, offers, part, scenario.start)
            except InputError as fault:
                fault.key, fault.value = key, part
                raise
    if side.deliveries:
        fleet = _replaced(fleet, side.deliveries)
    for name in side.without_limits:
        known = [] if offers is None else [one.name for one in offers.limit]
        if offers is None or name not in known:
            fix = strict.nearest(name, known, what="limits of the offers")
            raise InputError("is no limit", key="without_limits", value=name, fix=fix)
        kept = [one for one in offers.limit if one.name != name]
        offers = offers.model_copy(update={"limit": kept})
    return fleet, offers


def _changed(
    fleet: Fleet, offers: Offers | None, part: str, start: date
) -> tuple[Fleet, Offers | None]:
    """One change; what can no more be had is not on offer any more either."""
    end = whatif.ending(part, start)
    fewer = offers if offers is None or end is None else _ended(offers, *end)
    if fewer is not offers and end is not None and not whatif.islands_of(fleet, end[0]):
        return fleet, fewer
    return whatif.changed(fleet, part, start=start), fewer


def _ended(offers: Offers, name: str, day: date) -> Offers:
    """The offers without orders of a chip from a day on; the same ones if none is of the chip."""
    try:
        chip = facts.resolve_chip(name).name
    except InputError:
        return offers
    if all(facts.chip(one.chip).name != chip for one in offers.offer):
        return offers
    last, kept = day - timedelta(days=1), []
    for offer in offers.offer:
        if facts.chip(offer.chip).name != chip:
            kept.append(offer)
        elif offer.since is None or offer.since <= last:
            until = last if offer.until is None else min(last, offer.until)
            kept.append(offer.model_copy(update={"until": until}))
    if not kept:
        raise InputError("leaves nothing on offer", fix="ask about fewer chips, or a later day")
    return offers.model_copy(update={"offer": kept})


def _replaced(fleet: Fleet, arrivals: Sequence[Arrival]) -> Fleet:
    """The fleet with these deliveries in place of all of the islands that they name."""
    known = [one.name for one in fleet.island]
    for index, one in enumerate(arrivals):
        if one.island not in known:
            key, fix = (
                f"deliveries[{index}].island",
                strict.nearest(one.island, known, what="islands"),
            )
            raise InputError("the fleet has no such island", key=key, value=one.island, fix=fix)
    names = {one.island for one in arrivals}
    kept = [one for one in fleet.delivery if one.island not in names]
    new = [Delivery(date=one.date, island=one.island, count=one.count) for one in arrivals]
    return whatif.within_stock(fleet.model_copy(update={"delivery": [*kept, *new]}))


def with_orders(fleet: Fleet, offers: Offers, answer: Ordered | None) -> Fleet:
    """The fleet with an island for each offer, and what was ordered of it: chips are delivered on
    the day on which they arrive, those of a lease leave on the day on which it ends. Of less stock
    than was bought ("low") the last orders lack chips.

    The islands depend on fleet and offers alone, so that fleets of several orders share plans.
    """
    islands, deliveries, withdrawals = list(fleet.island), list(fleet.delivery), []
    names = {}
    for offer in offers.offer:
        names[offer.name] = name = _free(offer.name, {one.name for one in islands})
        islands.append(
            Island(
                name=name, site=offer.site, chip=offer.chip, nodes=0, network=offer.network,
                chips_per_node=facts.chip(offer.chip).node_chips or NODE,
            )
        )  # fmt: skip
    least = {one.name: one.at("low").stock for one in offers.offer}
    for order in answer.orders if answer is not None else ():
        column, offer = order.column, order.column.offer
        name, low = names[offer.name], order.chips
        if offer.kind == "buy":
            low = min(low, least[offer.name])
            least[offer.name] -= low
        arrives = date.fromordinal(math.ceil(column.arrives))
        count = Range(low=low, mid=order.chips, high=order.chips)
        deliveries.append(Delivery(date=arrives, island=name, count=count))
        if math.isfinite(column.ends):
            ends = max(arrives, date.fromordinal(math.floor(column.ends)))
            withdrawals.append(Change(date=ends, island=name, count=count))
    changes = {"delivery": deliveries, "withdrawal": [*fleet.withdrawal, *withdrawals]}
    return fleet.model_copy(update={"island": islands, **changes})


def _free(offer: str, taken: set[str]) -> str:
    """A name for the island of an offer that no other island has."""
    letters = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in offer)
    name = letters.strip("._-").lower()[:50] or "ordered"
    while name in taken:
        name += "-2"
    return name
