"""Shortage: why no orders are enough, and by how much.

Groups of rows are taken away one after the other while nothing is enough still; those that are
left are an irreducible set: any one of them less, and the rest could be met. For each the least
amount is told that would be enough, if it alone can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from atoll.errors import AtollError
from atoll.planning.programme import Group, Programme, Row, loosened, without
from atoll.units import format_count, format_rate

ORDER = ("stock", "pace", "power", "limit", "budget")
"""What is taken away first; of several reasons the last kind is the one that is told."""


class NoOrders(AtollError):
    """No orders meet the goal; the message says which rows forbid it, and by how much.

    `groups` are the irreducible set, `needs` what each would need alone (None: not enough alone).
    """

    def __init__(
        self,
        message: str,
        *,
        groups: Sequence[Group] = (),
        needs: Sequence[float | None] = (),
    ) -> None:
        super().__init__(message)
        self.groups = tuple(groups)
        self.needs = tuple(needs)

    def beside(self, name: str, lines: Sequence[str]) -> NoOrders:
        """The same with a list of lines under a name."""
        text = "\n  ".join([str(self), f"{name}:", *(f"  {one}" for one in lines)])
        return NoOrders(text, groups=self.groups, needs=self.needs)


def explain(
    programme: Programme, rows: Sequence[Row], last: int, *, tokens: float | None = None
) -> NoOrders:
    """The error for tokens that no orders compute by the end of a step."""
    day = date.fromordinal(int(programme.bounds[last + 1]))
    wanted = programme.case.tokens if tokens is None else tokens
    need = [*rows, programme.tokens_row(last, wanted)]
    head = f"no orders compute the {format_count(wanted)} tokens by {day}"
    if _feasible(programme, need, last):
        message = f"{head} in whole lots, although fractions of lots would\n  offer smaller lots"
        return NoOrders(message)
    groups = irreducible(programme, need, last)
    needs = [enough(programme, need, last, group) for group in groups]
    lines = [f"{head}; at fault together, and what each alone would need:"]
    if not groups:
        lines = [f"{head}: no chips that are offered compute that much by then, at any price"]
    for group, by in zip(groups, needs, strict=True):
        lines.append(f"{name_of(group)}: {_more(programme, group, by)}")
    if not any(by is not None for by in needs):
        lines += _together(programme, need, last)
    lines += _instead(programme, rows, last, wanted)
    return NoOrders("\n  ".join(lines), groups=groups, needs=needs)


def irreducible(programme: Programme, rows: Sequence[Row], last: int) -> list[Group]:
    """Groups that forbid a solution together, and no fewer of them do (deletion filter)."""
    groups = dict.fromkeys(row.group for row in rows if row.group[0] != "tokens")
    left, kept = list(rows), []
    for group in sorted(groups, key=lambda one: ORDER.index(one[0])):
        fewer = without(left, group)
        if _feasible(programme, fewer, last):
            kept.append(group)
        else:
            left = fewer
    return kept


def enough(programme: Programme, rows: Sequence[Row], last: int, group: Group) -> float | None:
    """The fewest units by which a group must be loosened, all others as they are; None if no
    number is enough.
    """
    if group[0] != "limit":
        least = 0.0 * programme.cost
        found = programme.solve(least, rows, last=last, whole=False, slack=[(group, 1.0)])
        return None if found is None else float(found.lots[-1])
    if not _feasible(programme, loosened(rows, group, 1.0), last):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if _feasible(programme, loosened(rows, group, middle), last):
            high = middle
        else:
            low = middle
    return high


def _feasible(programme: Programme, rows: Sequence[Row], last: int) -> bool:
    return programme.solve(0.0 * programme.cost, rows, last=last, whole=False) is not None


def _together(programme: Programme, rows: Sequence[Row], last: int) -> list[str]:
    """A way to loosen several groups that is enough: the least sum of relative amounts."""
    sizes: dict[Group, float] = {}
    for row in rows:
        if row.group[0] not in ("tokens", "limit"):
            sizes[row.group] = max(sizes.get(row.group, 1.0), abs(row.high) / row.give)
    slack = [(group, 1.0 / size) for group, size in sizes.items()]
    found = programme.solve(0.0 * programme.cost, rows, last=last, whole=False, slack=slack)
    if found is None:
        return []
    amounts = found.lots[len(programme.columns) :]
    told = [
        f"{name_of(group)}: {_more(programme, group, float(by))}"
        for (group, price), by in zip(slack, amounts, strict=True)
        if by * price > 1e-6
    ]
    return ["none alone is enough; together they would be with", *(f"  {one}" for one in told)]


def _instead(programme: Programme, rows: Sequence[Row], last: int, wanted: float) -> list[str]:
    """What can be had as things are: fewer tokens, or a later day."""
    most, told = programme.most_tokens(rows, last), []
    if most > 0 and wanted:
        part = f"{100 * most / wanted:.1f} %"
        told.append(f"as things are: at most {format_count(most)} tokens by then, {part}")
    for later in range(last + 1, len(programme.bounds) - 1):
        if programme.most_tokens(rows, later) >= wanted:
            told.append(f"or all of them by {date.fromordinal(int(programme.bounds[later + 1]))}")
            break
    return told


def name_of(group: Group) -> str:
    """A group as people call it."""
    kind, name = group
    words = {
        "budget": "budget",
        "limit": "limit",
        "power": "power of",
        "stock": "stock of",
        "chip": "a",
    }
    return name if kind == "chip" else f"{words.get(kind, 'monthly pace of')} {name}"


def _more(programme: Programme, group: Group, by: float | None) -> str:
    """How much more of a group, in its unit."""
    if by is None:
        return "not enough alone, however much"
    kind, name = group
    case = programme.case
    if kind == "budget":
        budget = next(one for one in case.offers.budget if one.name == name)
        return f"{format_count(by)} {budget.currency} more{_part(by, budget.number)}"
    if kind == "power":
        return f"{format_rate(by, 'W')} more{_part(by, case.power[name])}"
    if kind == "limit":
        limit = next(one for one in case.offers.limit if one.name == name)
        if limit.at_least is not None:
            return f"at least {100 * max(0.0, limit.at_least - by):.1f} % instead"
        return f"at most {100 * min(1.0, (limit.at_most or 0.0) + by):.1f} % instead"
    each = " a month" if kind == "pace" else ""
    return f"{by:,.0f} chips{each} more"


def _part(by: float, of: float) -> str:
    return f" ({100 * by / of:.3g} % of it)" if of else ""
