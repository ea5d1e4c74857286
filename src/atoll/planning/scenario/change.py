"""Change: a fleet and its offers as a question of a scenario would have them.

A change never breaks a fleet: what would be taken away that never came is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date, timedelta

from atoll import facts
from atoll.errors import InputError
from atoll.fleet import Fleet, Island
from atoll.planning.offers import Offers
from atoll.planning.orders import Ordered
from atoll.planning.rates import NODE
from atoll.planning.scenario.file import Alteration
from atoll.supply import Change, Lease, Range

NEVER = date(2000, 1, 1)
"""The end of a lease that is over before any scenario begins."""


def changed(fleet: Fleet, alterations: Sequence[Alteration]) -> Fleet:
    """The fleet with the same islands in the same order, and other chips in them over time.

    More chips of an island on every day than before where all that is asked for is more, and no
    more on any day where things are taken away.
    """
    for one in alterations:
        islands = [island for island in fleet.island if concerns(one, island)]
        if not islands:
            continue
        names = {island.name for island in islands}
        if one.deliveries is not None:
            kept = [change for change in fleet.delivery if change.island not in names]
            new = [
                Change(date=arrival.date, island=islands[0].name, count=arrival.count)
                for arrival in one.deliveries
            ]
            fleet = fleet.model_copy(update={"delivery": [*kept, *new]})
        elif one.more is not None:
            assert one.since is not None
            exactly = Range(low=one.more, mid=one.more, high=one.more)
            more = Change(date=one.since, island=islands[0].name, count=exactly)
            fleet = fleet.model_copy(update={"delivery": [*fleet.delivery, more]})
        elif one.part is not None:
            fleet = _part_of(fleet, names, one.part)
        elif one.no_more_from is not None:
            fleet = _no_more(fleet, names, one.no_more_from)
        elif one.gone_from is not None:
            fleet = _gone(_no_more(fleet, names, one.gone_from), names, one.gone_from)
    return _without_debts(fleet)


def concerns(one: Alteration, island: Island) -> bool:
    """Whether a change is about an island."""
    if one.island is not None:
        return island.name == one.island
    return one.chip is not None and facts.chip(one.chip).name == facts.chip(island.chip).name


def _part_of(fleet: Fleet, names: set[str], part: float) -> Fleet:
    """The counts of these islands by a factor; what is taken away is rounded up."""

    def less(change: Change, rounded: Callable[[float], int]) -> Change:
        if change.island not in names:
            return change
        count = change.count
        low, mid, high = (rounded(part * n) for n in (count.low, count.mid, count.high))
        return change.model_copy(update={"count": Range(low=low, mid=mid, high=high)})

    islands = [
        one.model_copy(update={"nodes": int(part * one.nodes)}) if one.name in names else one
        for one in fleet.island
    ]
    changes = {
        "delivery": [less(one, math.floor) for one in fleet.delivery],
        "withdrawal": [less(one, math.ceil) for one in fleet.withdrawal],
    }
    return fleet.model_copy(update={"island": islands, **changes})


def _no_more(fleet: Fleet, names: set[str], day: date) -> Fleet:
    """Without the deliveries of these islands from a day on."""
    kept = [one for one in fleet.delivery if one.island not in names or one.date < day]
    return fleet.model_copy(update={"delivery": kept})


def _gone(fleet: Fleet, names: set[str], day: date) -> Fleet:
    """These islands are there until the day before, as if on a lease that ends."""

    def ended(island: Island) -> Island:
        if island.name not in names:
            return island
        lease = island.lease or Lease()
        if lease.start is not None and lease.start >= day:
            lease = Lease(end=NEVER, price=lease.price)
        elif lease.end is None or lease.end > day:
            lease = lease.model_copy(update={"end": day})
        return island.model_copy(update={"lease": lease})

    return fleet.model_copy(update={"island": [*map(ended, fleet.island)]})


def _without_debts(fleet: Fleet) -> Fleet:
    """The fleet with withdrawals of no more than there is on their days, by mid deliveries."""
    have = {one.name: one.num_chips for one in fleet.island}
    changes = [(one.date, 0, index, one) for index, one in enumerate(fleet.delivery)]
    changes += [(one.date, 1, index, one) for index, one in enumerate(fleet.withdrawal)]
    kept = list(fleet.withdrawal)
    for _, taken, index, one in sorted(changes, key=lambda entry: entry[:3]):
        if not taken:
            have[one.island] += one.chips("mid")
            continue
        count, most = one.count, have[one.island]
        if one.chips("mid") > most:
            least = Range(low=min(count.low, most), mid=most, high=max(count.high, most))
            kept[index] = one.model_copy(update={"count": least})
        have[one.island] -= kept[index].chips("mid")
    return fleet.model_copy(update={"withdrawal": kept})


def changed_offers(offers: Offers, alterations: Sequence[Alteration]) -> Offers:
    """The offers without those of chips that can no more be had from a day on, and without limits
    that do not hold. InputError if nothing is left to be had.
    """
    for one in alterations:
        if one.limit is not None:
            limits = [limit for limit in offers.limit if limit.name != one.limit]
            offers = offers.model_copy(update={"limit": limits})
        day = one.no_more_from or one.gone_from
        if one.chip is None or day is None:
            continue
        last, kept = day - timedelta(days=1), []
        for offer in offers.offer:
            if facts.chip(offer.chip).name != facts.chip(one.chip).name:
                kept.append(offer)
            elif offer.since is None or offer.since <= last:
                until = last if offer.until is None else min(last, offer.until)
                kept.append(offer.model_copy(update={"until": until}))
        if not kept:
            raise InputError(f"without {one.chip} nothing is offered any more")
        offers = offers.model_copy(update={"offer": kept})
    return offers


def with_orders(fleet: Fleet, offers: Offers, answer: Ordered | None) -> Fleet:
    """The fleet with an island for each offer, and what was ordered of it: chips are delivered on
    the day on which they arrive, those of a lease leave on the day on which it ends.

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
    for order in answer.orders if answer is not None else ():
        column, name = order.column, names[order.column.offer.name]
        count = Range(low=order.chips, mid=order.chips, high=order.chips)
        arrives = date.fromordinal(math.ceil(column.arrives))
        deliveries.append(Change(date=arrives, island=name, count=count))
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
