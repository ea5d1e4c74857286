"""Order table: what `orders` found, as lines and a table for people and an object for scripts."""

from __future__ import annotations

from datetime import date
from typing import Any

from atoll.facts.rules import NO_ADVICE
from atoll.planning.agreeing import TOLERANCE, Solve
from atoll.planning.closing import Ruled
from atoll.planning.ends import WHICH
from atoll.planning.orders import Order, Ordered, by_budget, largest_model
from atoll.planning.purchase import Told
from atoll.planning.shortage import name_of
from atoll.planning.worth import Worth
from atoll.units import format_count

MOST_ROWS = 20
"""Rows of the table; where there are more orders, an offer is one row."""

MOST_LINES = 8


def headline(told: Told) -> list[tuple[str, str]]:
    """What a reader wants first, a line each: (name, text)."""
    answer, offers, ends = told.answer, told.answer.case.offers, told.ends
    final = date.fromordinal(int(answer.last))
    lines = []
    if answer.goal == "largest":
        flops, size, tokens = largest_model(told.agreed.tokens, told.flops_a_token)
        dense = f"{format_count(size)} parameters on {format_count(tokens)} tokens"
        lines.append(("largest", f"a dense model of {dense} by {final} ({flops:.3g} FLOP)"))
    else:
        low, mid, high = (_iso(ends.done_by[which]) or "never" for which in WHICH)
        doubt = f" ({low} to {high}: deliveries, lead times, speed at their best and worst)"
        done = f"{format_count(answer.case.tokens)} tokens{doubt if low != high else ''}"
        lines.append(("finish", f"{mid}: {done}"))
    doubt = ""
    if ends.cost["low"] != ends.cost["high"]:
        least, most = (format_count(ends.cost[which]) for which in ("low", "high"))
        doubt = f" ({least} to {most} by the ends of the prices)"
    lines.append(("cost", f"{format_count(answer.cost)} {offers.added_in} in all{doubt}"))
    for name, spent, amount, currency in by_budget(answer):
        of = f"{format_count(spent)} of {format_count(amount)} {currency}"
        part = f" ({100 * spent / amount:.1f} %)" if amount else ""
        over = ends.overrun(name, amount)
        more = f"; at the high prices {format_count(over)} {currency} too little" if over else ""
        lines.append(("budget", f"{name}: {of}{part}{more}"))
    proved = f"at most {100 * answer.gap:.2g} % from the best, proved by the solver"
    lines.append(("gap", proved + (f"; {answer.proof}" if answer.proof else "")))
    lines.append(("one run", _agreement(told)))
    return lines


def _agreement(told: Told) -> str:
    """What the programme promised and what the planner says, and how they came together."""
    found = told.agreed

    def text(one: Solve) -> str:
        both = (one.promised, one.planned)
        if told.answer.goal == "largest":
            promised, planned = (format_count(value or 0.0) for value in both)
        else:
            promised, planned = (_iso(value) or "never" for value in both)
        return f"planned {planned}, promised {promised}"

    number, count = found.solves.index(found.told) + 1, len(found.solves)
    which = f"{text(found.told)} (solve {number} of {count})"
    kept = f"they agree within {100 * TOLERANCE:.0f} %"
    if not found.agrees:
        kept = f"no solve agreed within {100 * TOLERANCE:.0f} %"
    elif not found.told.agrees_with(told.answer):
        last = next(one for one in reversed(found.solves) if one.agrees_with(told.answer))
        kept = f"where the two agree it is worse: {text(last)}"
    only = f"; all at {found.told.only}" if found.told.only else ""
    return f"{which}{only}; {kept}"


def order_rows(answer: Ordered) -> tuple[list[str], list[list[str]]]:
    """The table of orders: names of columns, and a row each."""
    head = ["ordered", "offer", "chip", "from", "site", "chips", "price", "cost", "there"]
    if len(answer.orders) <= MOST_ROWS:
        return head, [_row([one]) for one in answer.orders]
    by_offer: dict[str, list[Order]] = {}
    for one in answer.orders:
        by_offer.setdefault(one.column.offer.name, []).append(one)
    groups = sorted(by_offer.values(), key=lambda group: group[0].column.ordered)
    rows = [_row(group) for group in groups[:MOST_ROWS]]
    if len(groups) > MOST_ROWS:
        rest = f"and {len(groups) - MOST_ROWS} offers more: --json has them all"
        rows.append([rest, *[""] * (len(head) - 1)])
    return head, rows


def _row(group: list[Order]) -> list[str]:
    """Orders of one offer as a row; of a lease, the most chips at a time."""
    offer, currency = group[0].column.offer, group[0].column.currency
    first, last = group[0].column, group[-1].column
    ordered = _day(first.ordered)
    if len(group) > 1:
        ordered += f" to {_day(last.ordered)} ({len(group)} x)"
    if offer.kind == "lease":
        days = [one.column.arrives for one in group]
        chips = max(sum(o.chips for o in group if o.column.is_there(d)) for d in days)
        there = f"{_day(first.arrives)} to {_day(max(one.column.ends for one in group))}"
    else:
        chips = sum(one.chips for one in group)
        there = f"from {_day(first.arrives)}"
        if len(group) > 1:
            there += f" to {_day(last.arrives)}"
    cost = format_count(sum(one.cost for one in group))
    return [
        ordered, offer.name, offer.chip, offer.seller, offer.site, f"{chips:,}", offer.price,
        f"{cost} {currency}", there,
    ]  # fmt: skip


def _day(ordinal: float) -> str:
    return date.fromordinal(int(ordinal)).isoformat()


def _iso(ordinal: float | None) -> str | None:
    return None if ordinal is None else _day(ordinal)


def sections(told: Told) -> list[tuple[str, list[str]]]:
    """Titled lists of lines behind the table."""
    answer = told.answer
    binding = [_worth_text(answer, one) for one in _by_weight(answer)]
    if len(binding) > MOST_LINES:
        rest = f"and {len(binding) - MOST_LINES} more that bind: --json has them all"
        binding = [*binding[:MOST_LINES], rest]
    chips = [_worth_text(answer, one) for one in answer.chips[:MOST_LINES] if one.value > 0]
    left = [f"{name}: {rate.why}" for name, rate in told.rates.items() if rate.why]
    return [
        ("what binds, and what one more unit of it is worth (lots relaxed)", binding),
        (
            "one chip more that cost nothing, there from the first day on which one may arrive",
            chips,
        ),
        ("left out", left[:MOST_LINES]),
        ("refused by rules", told.ruled.lines() if told.ruled is not None else []),
        ("notes", notes(told)),
    ]


def notes(told: Told) -> list[str]:
    """What the numbers rest on."""
    answer = told.answer
    lines = []
    added, together = told.standing
    if added > 0:
        part = 100 * together / added
        lines.append(
            f"one by one the chips that stand at the end make {format_count(added)} tokens/s; as "
            f"one run over its links the planner gives {format_count(together)} ({part:.0f} %)"
        )
    if not told.agreed.told.agrees_with(answer):
        lines.append("the gap is of the programme, whose speeds are not the planner's here")
    late = [one for one in answer.orders if one.column.arrives >= answer.last]
    if late:
        names = ", ".join(dict.fromkeys(one.column.offer.name for one in late))
        chips = f"{sum(one.chips for one in late):,} chips ({names})"
        lines.append(f"{chips} arrive only after the end: they are there to meet a limit's share")
    if answer.unusable:
        names = ", ".join(answer.unusable)
        lines.append(
            f"never to be had: {names} (out of the calendar, refused, or no budget covers the days)"
        )
    programme = answer.basis.programme
    idle = [one.name for one in answer.case.offers.budget if not programme.spent(one).any()]
    if idle:
        lines.append(f"budgets that can pay nothing here (their days, place): {', '.join(idle)}")
    if not answer.orders:
        lines.append("nothing is to be ordered")
    if told.ruled is not None:
        lines += told.ruled.notes
    if answer.case.offers.availability == 1.0:
        lines.append("no failure, checkpoint or restart is counted: write availability = 0.9, say")
    return lines


def _by_weight(answer: Ordered) -> list[Worth]:
    """The worths, those first that bring the most if raised by a hundredth of what is there."""
    sizes: dict[Any, float] = {
        ("budget", one.name): one.number for one in answer.case.offers.budget
    }
    sizes |= {("power", site): watts for site, watts in answer.case.power.items()}
    sizes |= {("stock", one.name): float(one.stock) for one in answer.case.offers.offer}
    sizes |= {("pace", one.name): float(one.a_month or 1) for one in answer.case.offers.offer}
    return sorted(answer.worths, key=lambda one: -one.value * sizes.get(one.group, 1.0))


SCALES = {"W": (1e6, "MW"), "of the whole spend": (0.01, "percentage point")}


def _worth_text(answer: Ordered, worth: Worth) -> str:
    """One line: what a unit of something saves or brings."""
    by, unit = SCALES.get(worth.unit, (1.0, worth.unit))
    if worth.group[0] == "budget":
        by, unit = 1e6, f"M {worth.unit}"
    name = name_of(worth.group)
    if answer.goal == "cheapest":
        return (
            f"{name}: {format_count(by * worth.value)} {answer.case.offers.added_in} less a {unit}"
        )
    more = f"{format_count(by * worth.value)} tokens more a {unit}"
    if answer.goal == "largest" or worth.days is None:
        return f"{name}: {more}"
    return f"{name}: {more}, which is {by * worth.days:.3g} days sooner"


def as_json(told: Told) -> dict[str, Any]:
    """The object of `atoll orders --json`."""
    answer = told.answer
    flops, size, tokens = largest_model(told.agreed.tokens, told.flops_a_token)
    largest = {"flops": flops, "parameters": size, "tokens": tokens}
    found, ends, by_goal = told.agreed, told.ends, answer.goal == "largest"
    return {
        "goal": answer.goal,
        "by": _day(answer.last),
        "finish": None if by_goal else _iso(found.finish),
        "done_by": {which: None if by_goal else _iso(ends.done_by[which]) for which in WHICH},
        "tokens": found.tokens,
        "tokens_by_end": dict(ends.tokens),
        "largest": largest if answer.goal == "largest" else None,
        "cost": answer.cost,
        "cost_by_end": dict(ends.cost),
        "currency": answer.case.offers.added_in,
        "orders": [_plain(one) for one in answer.orders],
        "spend": [
            {
                "budget": name,
                "spent": spent,
                "amount": amount,
                "currency": currency,
                "low": ends.spend[name]["low"],
                "high": ends.spend[name]["high"],
                "overrun": ends.overrun(name, amount),
            }
            for name, spent, amount, currency in by_budget(answer)
        ],
        "gap": answer.gap,
        "proof": answer.proof,
        "worth": [_worth(one, " ".join(one.group)) for one in _by_weight(answer)],
        "chips": [_worth(one, one.group[1]) for one in answer.chips],
        "rates": {
            name: {"tokens_per_second": rate.speed, "asked_for_chips": rate.chips, "why": rate.why}
            for name, rate in told.rates.items()
        },
        **_ruled(told.ruled),
        **_solves(told),
        "notes": notes(told),
        "solve_seconds": answer.seconds,
    }


def _worth(one: Worth, what: str) -> dict[str, Any]:
    return {"what": what, "unit": one.unit, "value": one.value, "days": one.days}


def _solves(told: Told) -> dict[str, Any]:
    """What the planner says beside the programme, for scripts."""
    added, together = told.standing

    def plain(value: float | None) -> float | str | None:
        return value if told.answer.goal == "largest" else _iso(value)

    return {
        "together": together,
        "added": added,
        "agrees": told.agreed.agrees,
        "tolerance": TOLERANCE,
        "solves": [
            {
                "promised": plain(one.promised),
                "planned": plain(one.planned),
                "cost": one.cost,
                "only": one.only or None,
            }
            for one in told.agreed.solves
        ],
    }


def _ruled(ruled: Ruled | None) -> dict[str, Any]:
    """What rules refuse, for scripts; `advice` is null where none was asked."""
    if ruled is None:
        return {"refused": [], "left_out": [], "advice": None}
    return {
        "refused": [
            {
                "offer": one.offer,
                "from": one.since.isoformat(),
                "until": one.until.isoformat() if one.until < ruled.end else None,
                "why": one.why,
            }
            for one in ruled.closed
        ],
        "left_out": [{"what": what, "why": why} for what, why in ruled.refused],
        "advice": NO_ADVICE,
    }


def _plain(order: Order) -> dict[str, Any]:
    """An order for scripts; days as text."""
    column = order.column
    return {
        "ordered": _day(column.ordered),
        "offer": column.offer.name,
        "kind": column.offer.kind,
        "chip": column.offer.chip,
        "seller": column.offer.seller,
        "site": column.offer.site,
        "lots": order.lots,
        "chips": order.chips,
        "price": column.offer.price,
        "cost": order.cost,
        "currency": column.currency,
        "arrives": _day(column.arrives),
        "ends": _day(column.ends) if column.offer.kind == "lease" else None,
    }
