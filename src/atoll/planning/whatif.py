"""What if: dated changes of a fleet in words, and what they do to the day on which a run is done.

    +10000 west from 2024-10-01       so many chips more at an island, or of a chip
    +512 h20 at johor from 2024-10-01 the same as a new island of a site
    -4000 west from 2024-10-01        so many fewer, as far as they are there
    no more h20 from 2025-04-15       deliveries of it from that day on do not come
    without h20 from 2025-04-15       all of it is away from that day on
    late west by 60 d                 every delivery of it after the first day is late
    30 % of west                      a part of all its counts: the rest serves others, say

Without a day a change holds from the first one on. Several with ";" in between are one question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

from atoll import facts, strict, units
from atoll.errors import AtollError, InputError
from atoll.fleet import Fleet, Island
from atoll.planning.calendar import ENDS, Calendar, Rates, calendar_from, calendars_from
from atoll.planning.deadline import Deadline, largest
from atoll.planning.deadline import as_json as sizes
from atoll.planning.delay import delayed
from atoll.planning.planner import Asked
from atoll.recipe import Recipe
from atoll.supply import Change, Delivery, Lease, Range, parse_day
from atoll.units import format_count

MOST = 2**40
"""Chips of a change; more is a slip of the pen."""

EXAMPLES = '"+10000 west from 2024-10-01", "no more h20 from 2025-04-15", "late west by 60 d"'

Words = Sequence[str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """A question and the run on the changed fleet, or `why` there is none.

    `deadline` is the largest model by the day that was asked for, if one was.
    """

    what: str
    calendar: Calendar | None
    deadline: Deadline | None = None
    why: str = ""

    def days(self, base: Calendar) -> dict[str, float | None]:
        """Days by which the run is done later than without the changes; None where one never is.

        By the names of `Calendar.done_by`: "low" is the best course.
        """
        found: dict[str, float | None] = {}
        for name, which in ENDS.items():
            now = None if self.calendar is None else self.calendar.courses[which].done
            before = base.courses[which].done
            found[name] = None if now is None or before is None else (now - before) / 86400.0
        return found


def compare(
    whats: Sequence[str],
    recipe: Recipe,
    fleet: Fleet,
    asked: Asked,
    base: Calendar,
    *,
    by: date | None = None,
    family: Recipe | None = None,
    drawn: Callable[[Calendar], Calendar] = lambda found: found,
    report: Callable[[str], None] | None = None,
) -> tuple[Calendar, tuple[WhatIf, ...]]:
    """The run without changes and on each changed fleet; with `by` also the largest model of a
    family by then.

    The fleets are gone through until they know the same plans: so `base` comes back as it is by
    those that a question found, and fewer chips are never sooner. `drawn` is what is done to each
    calendar at its end. InputError for a question that cannot be understood, before anything is
    planned.
    """
    assert asked.day is not None, "a calendar begins on a day"
    if not whats:
        return drawn(base), ()
    others = [changed(fleet, what, start=asked.day) for what in whats]
    first, *rates = (Rates(recipe, one, asked, known=base.rates) for one in alike([fleet, *others]))
    whys, good = dict[int, str](), list[int]()
    for number, what in enumerate(whats):
        if report is not None:
            report(what)
        try:
            calendar_from(Rates(recipe, rates[number].fleet, asked, known=first), asked.day)
            good.append(number)
        except AtollError as fault:
            whys[number] = _short(fault)
    again, *found = calendars_from([first, *(rates[number] for number in good)], asked.day)
    answers = {
        number: WhatIf(what=whats[number], calendar=None, why=why) for number, why in whys.items()
    }
    for number, calendar in zip(good, found, strict=True):
        what, size = whats[number], None
        try:
            if by is not None:
                size = largest(family or recipe, others[number], asked, by=by, courses=("mid",))
            answers[number] = WhatIf(what=what, calendar=drawn(calendar), deadline=size)
        except AtollError as fault:
            answers[number] = WhatIf(what=what, calendar=None, why=_short(fault))
    return _only(drawn(again), fleet), tuple(answers[number] for number in range(len(whats)))


def _short(fault: AtollError) -> str:
    return " ".join(str(fault).splitlines()[:2])


def _only(found: Calendar, fleet: Fleet) -> Calendar:
    """The calendar of a fleet without the islands that it lacks."""
    names, rates = {one.name for one in fleet.island}, found.rates
    own = [one for one in rates.fleet.island if one.name in names]
    left = rates.fleet.model_copy(update={"island": own})
    return replace(found, rates=Rates(rates.recipe, left, rates.asked, known=rates))


def alike(fleets: Sequence[Fleet]) -> list[Fleet]:
    """The fleets with the islands of all of them, so that they share what is planned.

    An island that a fleet lacks has no chips there. Fleets that know different islands by one name
    stay as they are.
    """
    bare = {"nodes": 0, "lease": None}
    islands: dict[str, Island] = {}
    for fleet in fleets:
        for one in fleet.island:
            empty = one.model_copy(update=bare)
            if islands.setdefault(one.name, empty) != empty:
                return list(fleets)
    found = []
    for fleet in fleets:
        own = {one.name: one for one in fleet.island}
        every = [own.get(name, empty) for name, empty in islands.items()]
        found.append(fleet.model_copy(update={"island": every}))
    return found


def changed(fleet: Fleet, what: str, *, start: date) -> Fleet:
    """The fleet with the changes of a question. InputError for one that cannot be understood."""
    try:
        for part in what.split(";"):
            fleet = _changed(fleet, part.strip(), start)
        return Fleet.from_dict(within_stock(fleet).as_dict())
    except InputError as fault:
        if fault.key is not None:
            fault.message = f"{fault.key} {fault.message}"
        fault.key, fault.value = "--what-if", what
        raise


def _changed(fleet: Fleet, part: str, start: date) -> Fleet:
    for pattern, change in _VERBS:
        found = re.fullmatch(pattern, part, re.ASCII)
        if found is not None:
            return change(fleet, found.groups(), start)
    raise InputError("is no change of a fleet", fix=f"for example {EXAMPLES}")


def _more(fleet: Fleet, words: Words, start: date) -> Fleet:
    number, name, site, day = words
    if site is not None:
        fleet, island = _with_island(fleet, str(name), site)
    else:
        names = _named(fleet, str(name))
        if len(names) > 1:
            fix = "name one of the islands: " + ", ".join(names)
            raise InputError(f"several islands have the chip {name}", fix=fix)
        island = names[0]
    return _with_change(fleet, "delivery", island, _number(number), _day(day, start))


def _fewer(fleet: Fleet, words: Words, start: date) -> Fleet:
    number, name, day = words
    names = _named(fleet, str(name))
    if len(names) > 1:
        fix = "name one of the islands: " + ", ".join(names)
        raise InputError(f"several islands have the chip {name}", fix=fix)
    return _with_change(fleet, "withdrawal", names[0], _number(number), _day(day, start))


def _no_more(fleet: Fleet, words: Words, start: date) -> Fleet:
    names, day = _named(fleet, str(words[0])), _day(words[1], start)
    kept = [one for one in fleet.delivery if one.island not in names or one.date < day]
    coming = {one.island for one in kept}
    never = {one.name for one in fleet.island if one.nodes == 0 and one.name not in coming}
    return _without_islands(fleet.model_copy(update={"delivery": kept}), never)


def _without(fleet: Fleet, words: Words, start: date) -> Fleet:
    names, day = _named(fleet, str(words[0])), _day(words[1], start)
    islands, never = [], set()
    for one in fleet.island:
        lease = one.lease or Lease()
        if one.name not in names:
            islands.append(one)
        elif lease.start is not None and lease.start >= day:
            never.add(one.name)
        else:
            end = day if lease.end is None else min(day, lease.end)
            away = {"lease": lease.model_copy(update={"end": end})}
            islands.append(one.model_copy(update=away))
    return _without_islands(fleet.model_copy(update={"island": islands}), never)


def _late(fleet: Fleet, words: Words, start: date) -> Fleet:
    names = _named(fleet, str(words[0]))
    days = math.ceil(units.parse_seconds(str(words[1])) / 86400.0)  # a change holds from 0:00
    if not 0 < days <= 3650:
        raise InputError("is no delay", fix='more than 0 and at most 3650 days, for example "60 d"')
    return delayed(fleet, names, timedelta(days=days), start)


def _part(fleet: Fleet, words: Words, _: date) -> Fleet:
    """What is taken away is rounded up, so that a part is never more than the whole."""
    names, part = _named(fleet, str(words[1])), _percent(words[0])

    def less(change: Change, rounded: Callable[[Fraction], int]) -> Change:
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
    coming = {one.island for one in changes["delivery"]}
    never = {one.name for one in islands if one.nodes == 0 and one.name not in coming}
    return _without_islands(fleet.model_copy(update={"island": islands, **changes}), never)


def _percent(text: str | None) -> Fraction:
    """A part, exactly: 29 % of 100 are 29, and not the 28 of binary fractions."""
    number = re.fullmatch(r"\d{1,9}(\.\d{0,9})?", str(text), re.ASCII)
    part = Fraction(str(text)) / 100 if number else Fraction(-1)
    if not 0 <= part <= 1:
        raise InputError(
            f"{text} % is no part of something", fix="from 0 to 100, as in 30 % of west"
        )
    return part


def ending(part: str, start: date) -> tuple[str, date] | None:
    """(island or chip, day) of a change after which something can no more be had; None of others.

    InputError for a day that is none.
    """
    found = re.fullmatch(rf"(?:no\s+more|without)\s+(\S+){_FROM}", part.strip(), re.ASCII)
    return None if found is None else (found[1], _day(found[2], start))


def islands_of(fleet: Fleet, name: str) -> list[str]:
    """The islands that a change means by a name, none if there are none."""
    try:
        return _named(fleet, name)
    except InputError:
        return []


_FROM = r"(?:\s+from\s+(\S+))?"
_VERBS: Sequence[tuple[str, Callable[[Fleet, Words, date], Fleet]]] = (
    (rf"\+\s*(\S+)\s+(\S+)(?:\s+at\s+(\S+))?{_FROM}", _more),
    (rf"-\s*(\S+)\s+(\S+){_FROM}", _fewer),
    (rf"no\s+more\s+(\S+){_FROM}", _no_more),
    (rf"without\s+(\S+){_FROM}", _without),
    (r"late\s+(\S+)\s+by\s+(.+)", _late),
    (r"(\S+?)\s*%\s+of\s+(\S+)", _part),
)


def _number(text: str | None) -> int:
    number = units.parse_count(str(text).replace(",", ""))
    if not 0 < number <= MOST:
        fix = "more than 0 and at most 2^40: + adds chips, - takes them"
        raise InputError(f"{text} is no number of chips", fix=fix)
    return number


def _day(text: str | None, start: date) -> date:
    try:
        return start if text is None else parse_day(text)
    except InputError as fault:
        fault.message = f"{text} {fault.message}"
        raise


def _named(fleet: Fleet, name: str) -> list[str]:
    """The islands of a name: the island's own, or that of its chip. InputError for neither."""
    islands = [one.name for one in fleet.island]
    if name in islands:
        return [name]
    try:
        chip = facts.resolve_chip(name).name
    except InputError:
        chip = name
    found = [one.name for one in fleet.island if facts.chip(one.chip).name == chip]
    if not found:
        known = [*islands, *dict.fromkeys(one.chip for one in fleet.island)]
        fix = strict.nearest(name, known, what="islands and chips")
        raise InputError(f"the fleet has no {name}", fix=fix + "; + N CHIP at SITE adds an island")
    return found


def _with_island(fleet: Fleet, chip: str, site: str) -> tuple[Fleet, str]:
    """The fleet with an island of a chip at a site, that is still to be delivered; its name."""
    sites = [one.name for one in fleet.site]
    if site not in sites:
        fix = strict.nearest(site, sites, what="sites")
        raise InputError(f"the fleet has no site {site}", fix=fix)
    known = facts.resolve_chip(chip)
    names = {one.name for one in fleet.island}
    name = next(
        f"{known.name}-{n}" for n in range(1, len(names) + 2) if f"{known.name}-{n}" not in names
    )
    own = str(Path(chip).resolve()) if facts.is_chip_file(chip) else known.name
    island = Island(name=name, site=site, chip=own, nodes=0, chips_per_node=known.node_chips or 8)
    return fleet.model_copy(update={"island": [*fleet.island, island]}), name


def _with_change(fleet: Fleet, table: str, island: str, number: int, day: date) -> Fleet:
    noun = Delivery if table == "delivery" else Change
    change = noun(date=day, island=island, count=Range(low=number, mid=number, high=number))
    return fleet.model_copy(update={table: [*getattr(fleet, table), change]})


def _without_islands(fleet: Fleet, names: set[str]) -> Fleet:
    """The fleet without some islands. InputError if none is left."""
    tables: dict[str, Any] = {
        "island": [one for one in fleet.island if one.name not in names],
        "delivery": [one for one in fleet.delivery if one.island not in names],
        "withdrawal": [one for one in fleet.withdrawal if one.island not in names],
    }
    if not tables["island"]:
        raise InputError("leaves no chips at all", fix="ask about fewer islands, or a later day")
    return fleet.model_copy(update=tables)


def within_stock(fleet: Fleet) -> Fleet:
    """The fleet with every withdrawal at most what its island has then (by mid).

    What a question takes away cannot be taken once more by the file.
    """
    left = {one.name: one.num_chips for one in fleet.island}
    order: list[tuple[date, int, int, Change]]
    order = [(one.date, 0, index, one) for index, one in enumerate(fleet.delivery)]
    order += [(one.date, 1, index, one) for index, one in enumerate(fleet.withdrawal)]
    taken: dict[int, Change] = {}
    for _, sign, index, change in sorted(order, key=lambda entry: entry[:3]):
        mid, most = change.chips("mid"), left[change.island]
        if sign:
            count = change.count
            if mid > most:
                mid = most
                fewer = Range(low=min(count.low, most), mid=most, high=max(most, count.high))
                count = fewer
            taken[index] = change.model_copy(update={"count": count})
        left[change.island] += -mid if sign else mid
    return fleet.model_copy(
        update={"withdrawal": [taken[index] for index in range(len(fleet.withdrawal))]}
    )


HEAD = ("what if", "done by", "best", "worst", "days later")
"""Columns of the table of questions."""


def shown(
    found: Sequence[WhatIf], base: Calendar, deadline: Deadline | None
) -> tuple[list[str], list[list[str]]]:
    """The table of questions as text, the run without changes first."""
    drawn = base.draws is not None
    sized = deadline is not None
    head = [*HEAD, *(["drawn 50 %"] if drawn else []), *(["largest"] if sized else [])]
    rows = []
    for one in [WhatIf(what="as it is", calendar=base, deadline=deadline), *found]:
        if one.calendar is None:
            rows.append([one.what, one.why, *[""] * (len(head) - 2)])
            continue
        days = {name: str(day or "never") for name, day in one.calendar.done_by().items()}
        later = one.days(base)["mid"]
        row = [one.what, days["mid"], days["low"], days["high"]]
        row.append("-" if later is None else f"{later:+.1f}" if one.what != "as it is" else "")
        if drawn:
            row.append(str(_median(one) or "never"))
        if sized:
            size = None if one.deadline is None else one.deadline.mid.model.num_parameters()
            row.append("" if size is None else format_count(size))
        rows.append(row)
    return head, rows


def _median(one: WhatIf) -> date | None:
    if one.calendar is None or one.calendar.draws is None:
        return None
    return one.calendar.day(one.calendar.draws.quantile(0.5))


def as_json(found: Sequence[WhatIf], base: Calendar) -> list[dict[str, Any]]:
    """The key `what_if` of `atoll plan --json`."""
    return [_plain(one, base) for one in found]


def _plain(one: WhatIf, base: Calendar) -> dict[str, Any]:
    ends: Mapping[str, date | None] = dict.fromkeys(("low", "mid", "high"))
    if one.calendar is not None:
        ends = one.calendar.done_by()
    median = _median(one)
    return {
        "what": one.what,
        "done_by": {name: None if day is None else day.isoformat() for name, day in ends.items()},
        "days": one.days(base),
        "p50": None if median is None else median.isoformat(),
        **sizes(one.deadline),
        "why": one.why,
    }
