"""Lending: how many chips of each pool train at which hour, so that a day makes the most tokens.

A pool is an island that serves people by day. Its state is the number of nodes that are lent; a
day is a circle of hours, the same every day. Moving costs time in which chips are of use to nobody:
after they are lent, and before they are due back; the part of a pool that stays begins anew too,
because its layout changes. `best` is exact for the states that it may choose from: a dynamic
programme round the circle. Nothing here knows a recipe or a fleet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

HOUR = 3600.0

State = tuple[int, ...]
"""Nodes lent of each pool."""

Rate = Callable[[State], float]
"""Tokens a second of a state."""

MOST_STATES = 25
"""States of all pools together that a day is made of: each is planned once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Nodes that are free at each hour, and what moving them takes in seconds.

    `lend` from the moment at which people need them no more until they train, `give_back` before
    the moment at which people need them, `again` until what stays trains anew.
    """

    free: tuple[int, ...]
    lend: float
    give_back: float
    again: float

    def __post_init__(self) -> None:
        assert all(nodes >= 0 for nodes in self.free)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The state of every hour, the tokens of a day, and those that moving costs of them."""

    states: tuple[State, ...]
    tokens: float
    lost: float

    @property
    def moves(self) -> int:
        """How often a day the nodes of a pool change."""
        days = zip(self.states, (*self.states[1:], self.states[0]), strict=True)
        return sum(a != b for now, then in days for a, b in zip(now, then, strict=True))


def levels_of(pool: Pool, most: int) -> list[int]:
    """At most `most` numbers of nodes to lend: none, all that are ever free, and some between.

    They are numbers that are free at some hour, spread over the range.
    """
    seen = sorted({0, *pool.free})
    if len(seen) <= most:
        return seen
    wanted = [seen[-1] * part / (most - 1) for part in range(most)]
    return sorted({max(nodes for nodes in seen if nodes <= want + 1e-9) for want in wanted})


def states_of(pools: Sequence[Pool]) -> list[State]:
    """All states that a day may be made of, at most about `MOST_STATES`."""
    if not pools:
        return [()]
    most = max(2, math.floor(MOST_STATES ** (1.0 / len(pools)) + 1e-9))
    return list(itertools.product(*(levels_of(pool, most) for pool in pools)))


def lost_tokens(pools: Sequence[Pool], rate: Rate, before: State, after: State) -> float:
    """Tokens that a change of state between two hours costs."""
    rising, falling = {}, {}
    for index, pool in enumerate(pools):
        if after[index] > before[index]:
            rising[index] = pool.lend
        elif after[index] < before[index]:
            falling[index] = pool.give_back
            if after[index]:
                rising[index] = pool.again
    return _away(rate, after, rising) + _away(rate, before, falling)


def _away(rate: Rate, state: State, seconds: dict[int, float]) -> float:
    """Tokens that are not made while pools compute nothing for some seconds, all from one moment
    on.
    """
    lost = begun = 0.0
    for end in sorted(set(seconds.values())):
        still = tuple(0 if seconds.get(i, 0.0) >= end else n for i, n in enumerate(state))
        lost += (end - begun) * max(0.0, rate(state) - rate(still))
        begun = end
    return lost


def tokens_of(pools: Sequence[Pool], rate: Rate, states: Sequence[State]) -> Schedule:
    """What a day of these states makes."""
    around = zip(states, (*states[1:], states[0]), strict=True)
    lost = sum(lost_tokens(pools, rate, now, then) for now, then in around)
    return Schedule(
        states=tuple(states), tokens=sum(HOUR * rate(one) for one in states) - lost, lost=lost
    )


def best(pools: Sequence[Pool], rate: Rate, states: Sequence[State]) -> Schedule:
    """The day of most tokens whose every state is one of `states` and leaves people their chips.

    The state that lends nothing must be among them.
    """
    known = cache(rate)
    hours = len(pools[0].free) if pools else 24
    may = [
        [s for s in states if all(n <= p.free[hour] for n, p in zip(s, pools, strict=True))]
        for hour in range(hours)
    ]
    cost = {(a, b): lost_tokens(pools, known, a, b) for a in states for b in states}
    chosen: tuple[float, list[State]] | None = None
    for first in may[0]:
        worth = {first: HOUR * known(first)}
        back: list[dict[State, State]] = []
        for hour in range(1, hours):
            ahead, came = {}, {}
            for state in may[hour]:
                last = max(worth, key=lambda one: worth[one] - cost[one, state])
                ahead[state] = worth[last] - cost[last, state] + HOUR * known(state)
                came[state] = last
            worth = ahead
            back.append(came)
        last = max(worth, key=lambda one: worth[one] - cost[one, first])
        total = worth[last] - cost[last, first]
        if chosen is None or total > chosen[0]:
            day = [last]
            for came in reversed(back):
                day.append(came[day[-1]])
            chosen = (total, day[::-1])
    assert chosen is not None
    return tokens_of(pools, known, chosen[1])


def in_blocks(pools: Sequence[Pool], rate: Rate, states: Sequence[State]) -> Schedule:
    """The best day in which every pool lends one number of nodes or none: what a plan file holds,
    as an island is there with all of its chips or not at all.
    """
    levels = [sorted({state[i] for state in states} - {0}) or [0] for i in range(len(pools))]
    days = []
    for full in itertools.product(*levels):
        some = [s for s in states if all(n in (0, m) for n, m in zip(s, full, strict=True))]
        days.append(best(pools, rate, some))
    return max(days, key=lambda day: day.tokens)
