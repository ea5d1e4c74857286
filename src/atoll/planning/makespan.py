"""Makespan: shares of a step's grains so that the last island is done as early as possible."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll.planning.options import Option, capacity, contenders, fastest, room

ASK_AGAIN = 4
"""After so many halvings of the bracket, the options that cannot be the best in it are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Grains and option of each island that computes, and when the last one is done.

    `seconds` inf: the islands together do not hold all grains.
    """

    grains: Mapping[str, int]
    options: Mapping[str, Option]
    seconds: float


def split(options: Mapping[str, Sequence[Option]], grains: int) -> Split:
    """The split of `grains` grains that ends first. Every island needs at least one option.

    The time of an island is a staircase in its grains, so the best end is one of its steps: a
    bisection over time finds the earliest one until which all islands together manage all grains.
    """
    rooms = {name: int(min(grains, room(o))) for name, o in options.items()}
    if sum(rooms.values()) < grains:
        return Split(grains=rooms, options={}, seconds=math.inf)
    low = 0.0
    ends = {name: fastest(options[name], n).seconds(n) for name, n in rooms.items()}
    alone = [end for name, end in ends.items() if rooms[name] >= grains]
    high = min(alone) if alone else max(ends.values())
    # Islands that share their options are asked once.
    counts = Counter(id(own) for own in options.values())
    alike = {id(own): own for own in options.values()}
    asked, halvings = list(alike.values()), 0
    while high - low > 1e-10 * high:
        middle = (low + high) / 2.0
        done = sum(n * capacity(o, middle) for n, o in zip(counts.values(), asked, strict=True))
        if done >= grains:
            high = middle
        else:
            low = middle
        halvings += 1
        if halvings % ASK_AGAIN == 0:
            asked = [o if len(o) == 1 else contenders(o, low, high) for o in asked]
    shares = {name: min(grains, capacity(o, high)) for name, o in options.items()}
    if sum(shares.values()) < grains:  # a tail so long that a turn is lost in its rounding
        quick = min(ends, key=lambda name: (rooms[name] < grains, ends[name]))
        shares = {quick: grains} if alone else rooms
    _trim(shares, options, grains)
    chosen = {name: fastest(options[name], n) for name, n in shares.items() if n}
    return Split(
        grains={name: n for name, n in shares.items() if n},
        options=chosen,
        seconds=max(chosen[name].seconds(shares[name]) for name in chosen),
    )


def fixed_split(
    options: Mapping[str, Sequence[Option]], grains: int, shares: Mapping[str, float]
) -> Split:
    """The split in proportion to given shares, whole grains by the largest remainder."""
    total = sum(shares.get(name, 0.0) for name in options)
    exact = {name: grains * shares.get(name, 0.0) / total for name in options}
    counts = {name: int(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in rest[: grains - sum(counts.values())]:
        counts[name] += 1
    chosen = {name: fastest(options[name], n) for name, n in counts.items() if n}
    rooms = {name: int(min(n, room(options[name]))) for name, n in counts.items()}
    if rooms != counts:
        return Split(grains=rooms, options={}, seconds=math.inf)
    return Split(
        grains={name: n for name, n in counts.items() if n},
        options=chosen,
        seconds=max(chosen[name].seconds(counts[name]) for name in chosen),
    )


def _trim(shares: dict[str, int], options: Mapping[str, Sequence[Option]], grains: int) -> None:
    """Takes away what is more than `grains`, always from the island that would end last."""
    surplus = sum(shares.values()) - grains
    best = {name: fastest(options[name], n) for name, n in shares.items() if n}
    ends = {name: option.seconds(shares[name]) for name, option in best.items()}
    while surplus > 0:
        late = max(ends, key=lambda name: ends[name])
        # Back to the start of the island's last turn: less would not end any sooner.
        taken = min(surplus, (shares[late] - 1) % best[late].layout.dp + 1)
        shares[late] -= taken
        surplus -= taken
        if shares[late]:
            best[late] = fastest(options[late], shares[late])
            ends[late] = best[late].seconds(shares[late])
        else:
            del ends[late]
