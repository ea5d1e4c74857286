"""Agreeing: orders whose finish is the planner's and no sum over islands.

The programme adds up speeds; one run over links reaches less. So the planner is asked what a
solution comes to, each island's speed is multiplied by the part of it that it kept there, and the
programme is solved again, until what it promises and what the planner says agree or the solves are
used up. The best of all solutions by the planner's word is kept; that it is the best of all orders
is not proved: the gap is of the programme with the last parts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date

from atoll.planning.case import Case
from atoll.planning.orders import Ordered, orders, with_worths
from atoll.planning.progress import Progress, Speeds, progress
from atoll.planning.shortage import NoOrders
from atoll.planning.worth import Goal

TOLERANCE = 0.02
"""What is promised and what is planned agree within this part of the time (at least a day), or of
the tokens for the largest model.
"""

AGAIN = 3
"""How often the programme is solved again, if nobody says."""

SHARE = 0.6
"""No solve is begun after this part of the seconds of one solve, of the processor."""

MARGIN = 0.005
"""Speeds are lowered by so much more each time a day was missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solve:
    """A solution: what the programme promised and what the planner says of it (days as ordinals,
    for the largest model tokens), its cost, and the site that it was kept to ("" all).
    """

    promised: float | None
    planned: float | None
    cost: float
    only: str = ""

    def agrees_with(self, answer: Ordered) -> bool:
        """Whether the two are near enough, for the goal of an answer."""
        if self.promised is None or self.planned is None:
            return False
        start = 0.0 if answer.goal == "largest" else answer.basis.programme.bounds[0]
        room = TOLERANCE * (self.promised - start)
        return abs(self.planned - self.promised) <= (max(1.0, room) if start else room)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """The best orders by the planner's word, how far they come, and every solve on the way.

    `answer.case` holds the speeds of its solve, `case` each chip's own. `agrees` is whether any
    solve did: then the programme says no other thing than the planner.
    """

    case: Case
    answer: Ordered
    progress: Progress
    told: Solve
    solves: tuple[Solve, ...]
    agrees: bool

    @property
    def finish(self) -> float | None:
        """When all tokens are done by the planner's speeds; None if not in the calendar."""
        return self.progress.finish(self.case.tokens)

    @property
    def tokens(self) -> float:
        """Tokens by the end of the step that counts, by the planner's speeds."""
        return self.progress.tokens_by(self.answer.last)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """A solution with the planner's word on it. `rank` is smaller for a better one, its first entry
    0 where the goal is met.
    """

    agreed: Agreed
    told: Solve
    rank: tuple[float, ...]


@dataclass(slots=True, kw_only=True)
class _Search:
    """The solves: what is asked, and what was tried so far; `none` says why one found none.

    None is begun after a `SHARE` of so many `seconds` of the processor.
    """

    case: Case
    speeds: Speeds
    goal: Goal
    by: date | None
    seconds: float
    tried: list[_Tried] = field(default_factory=list)
    none: NoOrders | None = None
    begun: float = field(default_factory=time.process_time)

    def run(self, again: int, factors: dict[str, float], *, only: str = "") -> None:
        """Solves and asks until the two agree or the solves are used up. `factors` are the parts
        that islands keep; an island that keeps nothing stays out.
        """
        for number in range(1, again + 2):
            if self.tried and time.process_time() - self.begun > SHARE * self.seconds:
                return
            case = _scaled(self.case, self.speeds, factors)
            try:
                answer = orders(
                    case, goal=self.goal, by=self.by, seconds=self.seconds, priced=False
                )
            except NoOrders as none:
                if not self.tried:
                    raise
                self.none = none
                return
            found = _tried(self.case, answer, self.speeds, only)
            self.tried.append(found)
            missed = self.goal == "cheapest" and bool(found.rank[0])
            if found.agreed.agrees and not missed:
                return
            down = 1.0 - MARGIN * number if missed else 1.0
            for name, part in kept(found.agreed).items():
                before = factors.get(name, part)
                if name not in factors or before:
                    # Half the way only, or two answers would take turns for ever.
                    factors[name] = down * (part + before) / 2


def agreed(
    case: Case,
    speeds: Speeds,
    *,
    goal: Goal = "soonest",
    by: date | None = None,
    seconds: float = 5.0,
    again: int = AGAIN,
) -> Agreed:
    """The best orders by the planner's word. InputError as `orders`; `NoOrders` where the first
    solve finds none, or none that is found is done in time by the planner's speeds.

    Where the first solution spreads over sites and does not agree, one that keeps to its fastest
    site is tried too.
    """
    search = _Search(case=case, speeds=speeds, goal=goal, by=by, seconds=seconds)
    search.run(again, {})
    first = search.tried[0].agreed
    sites = _sites(first, speeds)
    if again and len(sites) > 1 and not first.agrees:
        elsewhere = {name: 0.0 for name, site in speeds.sites.items() if site != sites[0]}
        search.run(1, elsewhere, only=sites[0])
    best = min(search.tried, key=lambda one: one.rank)
    if best.rank[0]:
        raise _too_slow(best, search.none)
    answer = with_worths(best.agreed.answer, _scaled(case, speeds, kept(best.agreed)))
    return replace(
        best.agreed, answer=answer, told=best.told,
        solves=tuple(one.told for one in search.tried),
        agrees=any(one.agreed.agrees for one in search.tried),
    )  # fmt: skip


def _tried(case: Case, answer: Ordered, speeds: Speeds, only: str) -> _Tried:
    """A solution with the planner's word on it, and how good it is."""
    made, bounds = progress(case, answer, speeds), answer.basis.programme.bounds
    finish, by_end = made.finish(case.tokens), made.tokens_by(answer.last)
    promised, planned = answer.finish, finish
    if answer.goal == "largest":
        promised, planned = answer.tokens, by_end
    told = Solve(promised=promised, planned=planned, cost=answer.cost, only=only)
    agrees = told.agrees_with(answer)
    rank: tuple[float, ...] = (0.0, -by_end)
    if answer.goal == "soonest":
        step = next((i for i, day in enumerate(bounds) if finish and day >= finish), 0)
        rank = (float(finish is None), float(step), answer.cost, -by_end)
    elif answer.goal == "cheapest":
        late = finish is None or finish > answer.last
        rank = (float(late), (finish or bounds[-1]) if late else answer.cost)
    found = Agreed(
        case=case, answer=answer, progress=made, told=told, solves=(told,), agrees=agrees
    )
    return _Tried(agreed=found, told=told, rank=(*rank, float(not agrees)))


def kept(found: Agreed) -> dict[str, float]:
    """Island -> the part of its own speed that it kept in the run, over the days until the end."""
    end = found.answer.last if found.answer.goal == "largest" else found.finish
    end = found.progress.end if end is None else end
    alone: dict[str, float] = {}
    together: dict[str, float] = {}
    asked = [one for one in found.progress.asked if one.day < end]
    for one, until in zip(asked, [*(later.day for later in asked[1:]), end], strict=True):
        for name, speed in one.alone.items():
            weight = until - one.day
            alone[name] = alone.get(name, 0.0) + weight * speed
            share = one.stood.mid * one.stood.parts.get(name, 0.0)
            together[name] = together.get(name, 0.0) + weight * share
    return {name: together[name] / total for name, total in alone.items() if total}


def _scaled(case: Case, speeds: Speeds, factors: Mapping[str, float]) -> Case:
    """The case with each island's speed multiplied by its part."""
    part = {name: factors.get(island, 1.0) for name, island in speeds.island.items()}
    return replace(
        case,
        speed={name: speed * part.get(name, 1.0) for name, speed in case.speed.items()},
        own=tuple(replace(one, speed=one.speed * factors.get(one.island, 1.0)) for one in case.own),
    )


def _sites(found: Agreed, speeds: Speeds) -> list[str]:
    """The sites at which chips stand at the end, those with the most speed first."""
    there: dict[str, float] = {}
    for name, speed in found.progress.asked[-1].alone.items():
        site = speeds.sites[name]
        there[site] = there.get(site, 0.0) + speed
    return sorted(there, key=lambda site: -there[site])


def _too_slow(best: _Tried, none: NoOrders | None) -> NoOrders:
    """The error where nothing that was found is done in time by the planner's speeds."""
    found, bounds = best.agreed, best.agreed.answer.basis.programme.bounds
    last = found.answer.last if found.answer.goal == "cheapest" else bounds[-1]
    day, finish = date.fromordinal(int(last)), found.finish
    part = 100 * found.progress.tokens_by(last) / found.case.tokens
    head = f"added up, orders are done by {day}, but as one run over their links they compute "
    head += f"{part:.1f} % of the tokens by then"
    if finish is not None:
        head += f", and all by {date.fromordinal(int(finish))}"
    fix = (
        '--at SITE keeps to one site; exchange.every = "rounds" in the recipe needs the links less'
    )
    lines = [head, fix]
    if none is not None:
        lines += ["with the speeds that islands keep as one run:", f"  {none}"]
    groups, needs = (none.groups, none.needs) if none is not None else ((), ())
    return NoOrders("\n  ".join(lines), groups=groups, needs=needs)
