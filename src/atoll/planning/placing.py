"""What rules leave of a fleet: of the islands of one day, of the chips that are still to come, and
of a placement over time. What rules say is `atoll.planning.rules`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from atoll import facts
from atoll.errors import AtollError, InputError
from atoll.facts import Chip
from atoll.facts.rules import NO_ADVICE, REFUSED, Result, Rule, change_days
from atoll.fleet import Fleet, Island
from atoll.planning.rules import Verdict, binding_notes, placement
from atoll.site import Site
from atoll.supply import Change, Range


class NoPlacement(AtollError):
    """The rules refuse every island of a fleet; the message says which rule for which island."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A set of rules, for a party whose parent has its `headquarters` there.

    `mildest` is the mildest result that refuses.
    """

    rules: tuple[Rule, ...]
    headquarters: str | None = None
    mildest: Result = REFUSED

    def verdict(self, chip: Chip, site: Site, day: datetime.date) -> Verdict:
        """What they say of a chip at a site on a day. InputError for a country there is not."""
        return placement(chip, site, day, self.rules, headquarters=self.headquarters)

    def why_not(self, verdict: Verdict) -> str | None:
        """The rule that refuses, in words; None if none does."""
        if not verdict.refuses(self.mildest):
            return None
        return f"refused by rule {verdict.refusal(self.mildest)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Island -> why the rules refuse it; `notes` tell what is unknown, and that it is no advice."""

    refused: Mapping[str, str]
    notes: tuple[str, ...]


def placed(fleet: Fleet, chosen: Chosen, day: datetime.date) -> Placed:
    """What the rules say of every island of a stock; an island of which it cannot be told stays.

    InputError for a site whose country there is not; `NoPlacement` if no island is left.
    """
    refused, notes = {}, list[str]()
    for island in fleet.island:
        verdict = _verdict(fleet, island, chosen, day)
        if verdict is None:
            continue
        why = chosen.why_not(verdict)
        if why is not None:
            refused[island.name] = why
            continue
        notes += [f"rules: {told}" for told in short_of(verdict, f"island {island.name}", chosen)]
    if len(refused) == len(fleet.island):
        said = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
        raise NoPlacement(f"the rules refuse every island on {day}\n{said}\n  {NO_ADVICE}")
    return Placed(refused=refused, notes=(*notes, f"rules of {day}: {NO_ADVICE}"))


def left_of(fleet: Fleet, found: Placed) -> Fleet:
    """The stock without the islands that the rules refuse."""
    kept = [island for island in fleet.island if island.name not in found.refused]
    return fleet.model_copy(update={"island": kept})


def short_of(verdict: Verdict, what: str, chosen: Chosen) -> list[str]:
    """What somebody who keeps the chips should know: what is unknown, results short of refusal."""
    told = []
    if verdict.refuses(chosen.mildest) is None:
        missing = "; ".join(verdict.missing) or verdict.reason
        told.append(f"of {what} it cannot be told: {_in_a_file(missing)}")
    return told + [f"{what}: {one}" for one in binding_notes(verdict)]


def _in_a_file(text: str) -> str:
    """What is missing, by the key of a site instead of the flag of a command."""
    for flag, key in (("--owner", "site.owner_hq"), ("--operator", "site.operator_hq")):
        text = text.replace(f"({flag})", f"({key})")
    return text


def is_bought(chip: Chip) -> bool:
    """Whether it is a chip that somebody sells: no kind of process, nor whatever torch finds."""
    return chip.vendor is not None or chip.flops is not None


def _verdict(fleet: Fleet, island: Island, chosen: Chosen, day: datetime.date) -> Verdict | None:
    """What the rules say of an island's chips; None for what nobody buys."""
    chip, names = facts.chip(island.chip), [one.name for one in fleet.site]
    if not is_bought(chip):
        return None
    known = island.site in names
    site = fleet.site[names.index(island.site)] if known else Site(name=island.site)
    try:
        return chosen.verdict(chip, site, day)
    except InputError as fault:
        if fault.key == "site.country":
            fault.key = f"site[{names.index(site.name)}].country"
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Days in which a placement is judged alike: from `since` to the day before `until`."""

    since: datetime.date
    until: datetime.date
    verdict: Verdict


def spans(
    chip: Chip, site: Site, chosen: Chosen, first: datetime.date, until: datetime.date
) -> list[Span]:
    """What the rules say of a chip at a site from day to day, until the day before `until`."""
    changes = (day for day in change_days(chosen.rules) if first < day < until)
    found: list[Span] = []
    for since, end in pairwise((first, *changes, until)):
        verdict = chosen.verdict(chip, site, since)
        last = found[-1] if found else None
        if last is not None and _alike(last.verdict, verdict):
            found[-1] = Span(since=last.since, until=end, verdict=last.verdict)
        else:
            found.append(Span(since=since, until=end, verdict=verdict))
    return found


def _alike(a: Verdict, b: Verdict) -> bool:
    """Whether two verdicts say the same but for the day."""
    same = (a.result, a.reason, a.missing) == (b.result, b.reason, b.missing)
    if a.host is None or b.host is None:
        return same and a.host is b.host
    return same and _alike(a.host, b.host)


@dataclass(slots=True)
class _Gone:
    """Chips that the rules kept away from an island, by the ends of what is not known."""

    low: int = 0
    mid: int = 0
    high: int = 0
    whys: list[str] = field(default_factory=list)

    def add(self, count: Range) -> None:
        """More of them."""
        self.low, self.mid, self.high = (
            self.low + count.low, self.mid + count.mid, self.high + count.high
        )  # fmt: skip

    def take(self, count: Range) -> Range:
        """What is left of a withdrawal that takes chips first that never came."""
        left = sorted(
            max(0, there - gone)
            for there, gone in (
                (count.low, self.low), (count.mid, self.mid), (count.high, self.high)
            )
        )  # fmt: skip
        self.low, self.mid, self.high = (
            max(0, self.low - count.low),
            max(0, self.mid - count.mid),
            max(0, self.high - count.high),
        )
        return Range(low=left[0], mid=left[1], high=left[2])


def allowed(
    fleet: Fleet, chosen: Chosen, start: datetime.date
) -> tuple[Fleet, tuple[tuple[str, str], ...]]:
    """The fleet without what the rules refuse, and what that is with its rule: (what, why).

    What stands on the first day is judged by it and then left alone; a later delivery is judged on
    its own day. A withdrawal takes first what never came. InputError as `placed`.
    """
    gone = {island.name: _Gone() for island in fleet.island}
    told, islands = list[tuple[str, str]](), []
    for island in fleet.island:
        verdict = _verdict(fleet, island, chosen, start)
        why = None if verdict is None else chosen.why_not(verdict)
        here = any(one.island == island.name and one.date <= start for one in fleet.delivery)
        if why is not None and (island.nodes or here):
            told.append((f"{island.name} on {start}", why))
            number = island.num_chips
            gone[island.name].add(Range(low=number, mid=number, high=number))
            gone[island.name].whys.append(why)
        islands.append(island.model_copy(update={"nodes": 0}) if why is not None else island)
    kept, left = list[Change](), list[Change]()
    changes = [(one, True) for one in fleet.delivery] + [(one, False) for one in fleet.withdrawal]
    for change, comes in sorted(changes, key=lambda one: (one[0].date, not one[1])):
        if not comes:
            count = gone[change.island].take(change.count)
            if count.high:
                left.append(change.model_copy(update={"count": count}))
            continue
        why = _refusal(fleet, change, chosen, start, gone[change.island])
        if why is None:
            kept.append(change)
            continue
        gone[change.island].add(change.count)
        if change.date > start:
            chips = f"{change.count.mid:,} chips for {change.island} on {change.date}"
            told.append((chips, why))
    update = {"island": islands, "delivery": kept, "withdrawal": left}
    return fleet.model_copy(update=update), tuple(told)


def _refusal(
    fleet: Fleet, change: Change, chosen: Chosen, start: datetime.date, gone: _Gone
) -> str | None:
    """The rule that refuses a delivery, in words: of what is there on the first day, its."""
    if change.date <= start:
        return gone.whys[0] if gone.whys else None
    island = next(one for one in fleet.island if one.name == change.island)
    verdict = _verdict(fleet, island, chosen, change.date)
    return None if verdict is None else chosen.why_not(verdict)
