"""Delay: a fleet whose deliveries come late, so that it never holds more than in time.

A withdrawal of the file counts on what was to be there by then. Of chips that are late by then it
takes those that never came in time: they do not come any more. Without that, chips that are late
would outlive their own withdrawal, and a later delivery could end a run sooner.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, timedelta

from atoll.fleet import Fleet
from atoll.supply import Change, Range, Which, sane_day

ENDS: tuple[Which, ...] = ("low", "mid", "high")


@dataclass(slots=True)
class _Stock:
    """An island on a day: chips that are there, and deliveries that were to be there too."""

    chips: dict[Which, int]
    late: list[int]

    def take(self, change: Change, fleet: Fleet, counts: dict[int, dict[Which, int]]) -> None:
        """A withdrawal; what it lacks is taken from `counts` of the deliveries that are late."""
        wanted: dict[Which, int] = {
            "low": change.chips("high"), "mid": change.chips("mid"), "high": change.chips("low")
        }  # fmt: skip
        most: dict[Which, int] = dict(self.chips)
        most["high"] = min(most["mid"], most["high"])  # as `whatif.within_stock` has it
        for end in ENDS:
            lacks = max(0, wanted[end] - most[end])
            self.chips[end] -= wanted[end] - lacks
            for index in self.late:
                if not fleet.delivery[index].chips(end):
                    continue  # it may not happen at all, and does not here
                cut = min(lacks, counts[index][end])
                counts[index][end] -= cut
                lacks -= cut


def delayed(fleet: Fleet, names: Collection[str], by: timedelta, start: date) -> Fleet:
    """The fleet with the deliveries after `start` of some islands late by so many whole days.

    InputError for a day beyond the calendar.
    """
    moved = {
        index: sane_day(one.date + by)
        for index, one in enumerate(fleet.delivery)
        if one.island in names and one.date > start
    }
    counts: dict[int, dict[Which, int]] = {
        index: {"low": one.count.low, "mid": one.count.mid, "high": one.count.high}
        for index, one in enumerate(fleet.delivery)
    }
    for name in names:
        _follow(fleet, name, moved, counts)
    deliveries = [
        one.model_copy(update={"date": moved.get(index, one.date), "count": _range(counts[index])})
        for index, one in enumerate(fleet.delivery)
    ]
    return fleet.model_copy(update={"delivery": deliveries})


def _range(count: dict[Which, int]) -> Range:
    """The three numbers in order: what is left by chance of none is never the larger."""
    mid = min(count["mid"], count["high"])
    return Range(low=min(count["low"], mid), mid=mid, high=count["high"])


def _follow(
    fleet: Fleet, name: str, moved: dict[int, date], counts: dict[int, dict[Which, int]]
) -> None:
    """Goes through an island's changes by their days; `counts` of late deliveries become less."""
    here = next(one.num_chips for one in fleet.island if one.name == name)
    stock = _Stock(dict.fromkeys(ENDS, here), [])
    events: list[tuple[date, int, int]] = []  # on one day: due, then come, then taken
    for index, one in enumerate(fleet.delivery):
        if one.island == name:
            events.append((moved.get(index, one.date), 1, index))
            events += [(one.date, 0, index)] if index in moved else []
    events += [
        (one.date, 2, index) for index, one in enumerate(fleet.withdrawal) if one.island == name
    ]
    for _, what, index in sorted(events):
        if what == 0:
            stock.late.append(index)
        elif what == 1:
            stock.late = [one for one in stock.late if one != index]
            one = fleet.delivery[index]
            left = one.model_copy(update={"count": _range(counts[index])})
            for end in ENDS:
                stock.chips[end] += left.chips(end)
        else:
            stock.take(fleet.withdrawal[index], fleet, counts)
