"""What a chip makes of the thresholds of rules: performance, density, classes, and room below.

TPP = 2 x MacTOPS x bits = dense operations a second x bits / 10^12, the largest over the number
formats; density = TPP / mm2 of logic dies (technical notes of 88 FR 73458). All in exact fractions,
so that a chip at a threshold is told from one a hair below. What is not known stays unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from atoll.facts import Chip
from atoll.facts.rules import BITS, Class, Condition, Limit, RateLimit

TERA = 10**12

End = Literal["low", "mid", "high"]
"""Which end of what sources disagree on."""

Varied = Literal["tpp", "memory", "io"]
"""What a designer may change: FLOP/s, memory's bandwidth, bandwidth to other chips."""

VARIED: tuple[Varied, ...] = ("tpp", "memory", "io")

MISSING = {
    "tpp": "the FLOP/s are not known",
    "density": "die area is not known",
    "memory": "the memory's bandwidth is not known",
    "io": "the bandwidth to other chips is not known",
    "memory_density": "the area of the memory is not known",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The quantities of a chip that rules compare; None is unknown.

    `speeds` are FLOP/s by number format, of formats whose bits are counted. `io` is both
    directions together. `area` is mm2.
    """

    speeds: Mapping[str, Fraction]
    bits: Mapping[str, int]
    area: Fraction | None
    memory: Fraction | None
    io: Fraction | None

    @property
    def tpp(self) -> Fraction | None:
        """Total processing performance; None without any speed."""
        every = [speed * self.bits[name] / TERA for name, speed in self.speeds.items()]
        return max(every, default=None)

    @property
    def tpp_format(self) -> str | None:
        """The number format that decides the TPP."""
        names = sorted(self.speeds, key=lambda name: self.speeds[name] * self.bits[name])
        return names[-1] if names else None

    @property
    def density(self) -> Fraction | None:
        """Performance density: TPP by mm2."""
        tpp = self.tpp
        return None if tpp is None or self.area is None else tpp / self.area

    def value(self, quantity: str) -> Fraction | None:
        """The quantity of a condition."""
        if quantity == "memory_io":
            both = (self.memory, self.io)
            return None if both[0] is None or both[1] is None else both[0] + both[1]
        if quantity == "memory_density":
            return None
        found: Fraction | None = getattr(self, quantity)
        return found

    def missing(self, quantity: str) -> list[str]:
        """Why a quantity is not known; empty where it is."""
        if self.value(quantity) is not None:
            return []
        needed = {"density": ["tpp", "density"], "memory_io": ["memory", "io"]}
        said = []
        for one in needed.get(quantity, [quantity]):
            known = self.area if one == "density" else self.value(one)
            if known is None:
                said.append(MISSING[one])
        return said


def measures_of(chip: Chip, *, bits: Mapping[str, int] = BITS, end: End = "mid") -> Measures:
    """The measures of a chip; "low" and "high" where sources disagree (density with the other end
    of the area)."""
    index = ("low", "mid", "high").index(end)
    speeds = {}
    for name in bits:
        found = None if chip.flops is None else chip.flops.range(name)
        if found is not None:
            speeds[name] = Fraction(found[index])
    area = None if chip.die_area is None else Fraction(repr(chip.die_area.range[2 - index]))
    memory = None if chip.memory is None else chip.memory.bandwidth
    link = chip.io if chip.io is not None else chip.link
    return Measures(
        speeds=speeds,
        bits=bits,
        area=area,
        memory=None if memory is None else Fraction(memory.range[index]),
        io=None if link is None else 2 * Fraction(link.bandwidth.range[index]),
    )


def holds(limit: Limit | RateLimit, value: Fraction | None) -> bool | None:
    """Whether a value is inside the bounds; None if it is not known."""
    if value is None:
        return None
    at_least, above, below = limit.bounds
    return (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def every(answers: Iterator[bool | None] | list[bool | None]) -> bool | None:
    """All of them, where None is unknown."""
    found = list(answers)
    if False in found:
        return False
    return None if None in found else True


def some(answers: Iterator[bool | None] | list[bool | None]) -> bool | None:
    """Any of them, where None is unknown."""
    found = list(answers)
    if True in found:
        return True
    return None if None in found else False


def meets(condition: Condition, measures: Measures) -> bool | None:
    """Whether all bounds of a condition hold."""
    return every([holds(limit, measures.value(q)) for q, limit in condition.limits().items()])


def in_class(one: Class, measures: Measures, *, datacentre: bool) -> bool | None:
    """Whether a chip is in a class; None if that cannot be told."""
    if one.datacentre is not None and one.datacentre != datacentre:
        return False
    return some([meets(condition, measures) for condition in one.when])


def unknowns(one: Class, measures: Measures) -> list[str]:
    """What would have to be known in order to tell whether a chip is in a class."""
    said = [
        why
        for condition in one.when
        if meets(condition, measures) is None
        for quantity in condition.limits()
        for why in measures.missing(quantity)
    ]
    return list(dict.fromkeys(said))


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How far one quantity may go, the others as they are, until a chip meets a class.

    `bound` is where it is met (or, for a class of chips under limits, no longer met), `itself`
    whether at the bound already; None if no value does that. `never` says why nothing helps.
    `unknown` is what is not known: more may be allowed than the bound says.
    """

    varied: Varied
    bound: Fraction | None
    itself: bool = True
    never: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def largest(self) -> int | None:
        """The largest whole number of B/s under the bound (of TPP: None, see `largest_flops`)."""
        if self.bound is None or self.varied == "tpp":
            return None
        return _largest(self.bound, self.itself)

    def largest_flops(self, bits: int) -> int | None:
        """The largest whole FLOP/s in a format of so many bits under the bound of TPP."""
        if self.bound is None or self.varied != "tpp":
            return None
        return _largest(self.bound * TERA / bits, self.itself)


def _largest(bound: Fraction, itself: bool) -> int:
    return math.ceil(bound) - 1 if itself else math.floor(bound)


def is_under(one: Class) -> bool:
    """Whether a class is of chips under limits: it has upper bounds only."""
    return all(
        limit.bounds[0] is None and limit.bounds[1] is None
        for condition in one.when
        for limit in condition.limits().values()
    )


def room(one: Class, measures: Measures, varied: Varied) -> Room | None:
    """How far a quantity may go under the thresholds of a class; None if they do not ask for it.

    Below the bound, every smaller value stays under too.
    """
    if not any(_asks(condition, varied) for condition in one.when):
        return None
    if is_under(one):
        return _room_under(one, measures, varied)
    entries = [_entry(condition, measures, varied) for condition in one.when]
    unknown = dict.fromkeys(
        why
        for entry, condition in zip(entries, one.when, strict=True)
        if entry is not None and entry[2]
        for quantity in condition.limits()
        for why in measures.missing(quantity)
    )
    found = [entry for entry in entries if entry is not None]
    if not found:
        return Room(varied=varied, bound=None)
    # At one bound, the entry that the bound itself belongs to comes first.
    bound, itself, unsure = min(found, key=lambda entry: (entry[0], not entry[1]))
    if bound == 0:
        why = "the rest of the chip meets it already" if not unsure else "it cannot be told"
        return Room(varied=varied, bound=None, never=why, unknown=tuple(unknown))
    return Room(varied=varied, bound=bound, itself=itself, unknown=tuple(unknown) if unsure else ())


def _asks(condition: Condition, varied: Varied) -> bool:
    return any(varied in _parts(quantity) for quantity in condition.limits())


def _parts(quantity: str) -> tuple[str, ...]:
    return {"density": ("tpp",), "memory_io": ("memory", "io")}.get(quantity, (quantity,))


def _entry(
    condition: Condition, measures: Measures, varied: Varied
) -> tuple[Fraction, bool, bool] | None:
    """(the smallest value that meets a condition, whether itself does, whether that is unsure).

    None if no value meets it by growing into it.
    """
    entry, itself, unsure = Fraction(0), True, False
    uppers = []
    for quantity, limit in condition.limits().items():
        at_least, above, below = limit.bounds
        if varied not in _parts(quantity):
            answer = holds(limit, measures.value(quantity))
            if answer is False:
                return None
            unsure = unsure or answer is None
            continue
        moved = _moved(quantity, measures, varied)
        if moved is None:
            unsure = True
            continue
        scale, shift = moved
        if at_least is not None and (at_least * scale - shift) > entry:
            entry, itself = at_least * scale - shift, True
        if above is not None and (above * scale - shift) >= entry:
            entry, itself = above * scale - shift, False
        if below is not None:
            uppers.append(below * scale - shift)
    if any(entry >= upper for upper in uppers):
        return None
    return entry, itself, unsure


def _moved(quantity: str, measures: Measures, varied: Varied) -> tuple[Fraction, Fraction] | None:
    """(scale, shift) that turn a bound of a quantity into one of the varied; None if unknown."""
    if quantity == "density":
        return None if measures.area is None else (measures.area, Fraction(0))
    if quantity == "memory_io":
        other = measures.io if varied == "memory" else measures.memory
        return None if other is None else (Fraction(1), other)
    return Fraction(1), Fraction(0)


def _room_under(one: Class, measures: Measures, varied: Varied) -> Room:
    """The room of a class of chips under limits: up to where it is no longer met."""
    best: Fraction | None = None
    unknown: list[str] = []
    why = None
    for condition in one.when:
        uppers, possible = [], True
        for quantity, limit in condition.limits().items():
            moved = _moved(quantity, measures, varied) if varied in _parts(quantity) else None
            below = limit.bounds[2]
            if moved is not None and below is not None:
                uppers.append(below * moved[0] - moved[1])
            elif holds(limit, measures.value(quantity)) is False:
                possible, why = False, "another limit is exceeded already"
            elif measures.value(quantity) is None:
                unknown += measures.missing(quantity)
        if possible and uppers and min(uppers) > 0:
            best = min(uppers) if best is None else max(best, min(uppers))
    never = why if best is None else None
    return Room(varied=varied, bound=best, never=never, unknown=tuple(dict.fromkeys(unknown)))
