"""Text: what a study found, as sentences and tables for people and an object for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from atoll.facts.rules import NO_ADVICE
from atoll.planning.calendar import DAY, WHICH, Calendar
from atoll.planning.orders import by_budget, largest_model
from atoll.planning.ordertable import as_json as orders_json
from atoll.planning.programme import Programme
from atoll.planning.purchase import Told
from atoll.planning.scenario.study import AVAILABLE, HAND, Effect, Kind, Study, by_hand
from atoll.supply import Which
from atoll.units import format_bytes, format_count, format_seconds

CHANGED = 0.05
"""Days below which a day has not moved: no table shows less."""

GRADES = {"high": "two sources, or a primary one", "medium": "one good press source",
          "low": "derived, judged or weak"}  # fmt: skip


def answers(study: Study) -> list[tuple[str, list[str]]]:
    """The answers as (question, lines), in the order in which people ask."""
    found = [(f"Done by, if begun on {study.scenario.start}", _done(study))]
    shortfalls, what_ifs = study.of_kind("shortfall"), study.of_kind("what_if")
    if study.base.told is not None:
        found.append(("What to buy", _bought(study.base.told)))
    elif study.base.why:
        found.append(("What to buy", [f"nothing is enough: {study.base.why.splitlines()[0]}"]))
    label = study.labels[study.longest]
    if shortfalls:
        found.append((f"What the shortfall cost {label}", _shortfall(study, shortfalls)))
    if what_ifs:
        found.append((f"What would move {label}", _what_ifs(study, what_ifs)))
    return found


def _done(study: Study) -> list[str]:
    """When each model is done, a line each."""
    lines = []
    for label, one in zip(study.labels, study.calendars, strict=True):
        low, mid, high = one.done_by().values()
        if mid is None:
            lines.append(f"{label}: never ({why_not(one)})")
            continue
        late = f"{low} to {high}" if high is not None else f"{low} at best, at worst never"
        assert one.mid.done is not None, "it has a day"
        lines.append(f"{label}: {mid}, after {format_seconds(one.mid.done)} ({late})")
    return lines


def why_not(one: Calendar) -> str:
    """Why a run is never done, in a few words."""
    whys = dict.fromkeys(period.rated.why for period in one.mid.periods if period.rated.why)
    return "; ".join(whys) or "too few chips are left"


def _bought(told: Told) -> list[str]:
    """What the orders come to."""
    answer = told.answer
    chips = [
        f"{most_at_once(told, name):,} {name}"
        for name in dict.fromkeys(one.column.offer.name for one in answer.orders)
    ]
    ends, unit = told.ends, answer.case.offers.added_in
    lines = [", ".join(chips) or "nothing"]
    for name, used, amount, currency in by_budget(answer):
        line = f"{name}: {format_count(used)} of {format_count(amount)} {currency}"
        lines.append(f"{line}; at high prices {format_count(ends.spend[name]['high'])}")
    lines.append(f"in all: {_between(ends.cost)} {unit}")
    if answer.goal == "largest":
        parts = []
        for tokens in (by_itself(told), told.agreed.tokens):
            flops, size, _ = largest_model(tokens, told.flops_a_token)
            about = format_count(float(f"{size:.2g}"))
            parts.append(f"{flops:.2g} FLOP (a dense model of {about} parameters)")
        lines.append(
            f"computing by {_last_day(told)}: {parts[0]} if every island works by itself; as one "
            f"run over the links {parts[1]}"
        )
    else:
        low, mid, high = (_ordinal(ends.done_by[which]) for which in WHICH)
        lines.append(f"done by: {mid} ({low} to {high})")
    if answer.worths:
        kinds = dict.fromkeys(BINDING.get(one.group[0], one.group[0]) for one in answer.worths)
        what = "; ".join(f"{name} ({_groups(told, name)})" for name in kinds)
        money = "" if "money" in kinds else "; not money"
        lines.append(f"what limits it: {what}{money}")
    return lines


BINDING = {
    "budget": "money", "limit": "shares of sellers", "stock": "what is on offer",
    "pace": "what is sold a month", "power": "power",
}  # fmt: skip
"""What rows of the programme are about, in words."""


def by_itself(told: Told) -> float:
    """Tokens that all chips compute by the end that counts, if every island works by itself."""
    made, last = told.agreed.progress, told.answer.last
    ends = [*made.begins[1:], made.end]
    spans = zip(made.begins, ends, made.sums, strict=True)
    total = sum(speed * max(0.0, min(last, b) - a) for a, b, speed in spans)
    return DAY * told.answer.case.offers.availability * total


def _between(ends: Mapping[Which, float]) -> str:
    """Mid with its ends, where there are any."""
    low, mid, high = (format_count(ends[which]) for which in WHICH)
    return mid if low == high else f"{mid} ({low} to {high})"


def _ordinal(day: float | None) -> str:
    return "never" if day is None else str(date.fromordinal(math.floor(day)))


def _groups(told: Told, binding: str) -> str:
    names = [
        g for k, g in (one.group for one in told.answer.worths) if BINDING.get(k, k) == binding
    ]
    return ", ".join(dict.fromkeys(names))


def _last_day(told: Told) -> date:
    return date.fromordinal(int(told.answer.last))


def most_at_once(told: Told, offer: str) -> int:
    """Chips of an offer that are bought, or leased at a time."""
    mine = [one for one in told.answer.orders if one.column.offer.name == offer]
    if mine and mine[0].column.offer.kind == "lease":
        days = [one.column.arrives for one in mine]
        return max(sum(o.chips for o in mine if o.column.is_there(day)) for day in days)
    return sum(one.chips for one in mine)


Spent = tuple[str, float, str, list[tuple[str, float]], list[tuple[str, float]]]


def spent_by_seller(told: Told) -> list[Spent]:
    """(budget, amount, currency, [(seller, spent)], [(limit in words, its share)]) of each budget.

    Sellers of a limit stand first, so that its share can be seen.
    """
    case = told.answer.case
    programme = Programme(case)
    place = {(one.offer.name, one.step): i for i, one in enumerate(programme.columns)}
    found = []
    for budget in case.offers.budget:
        each, spent = programme.spent(budget), dict[str, float]()
        for order in told.answer.orders:
            column = order.column
            size = order.lots * float(each[place[column.offer.name, column.step]])
            spent[column.offer.seller] = spent.get(column.offer.seller, 0.0) + size
        limits = [one for one in case.offers.limit if one.place in ("", budget.place)]
        first = {name for limit in limits for name in limit.sellers}
        parts = sorted(((name, size) for name, size in spent.items() if size > 0),
                       key=lambda part: (part[0] not in first, -part[1]))  # fmt: skip
        shares = []
        for limit in limits:
            if not any(spent.get(name, 0.0) > 0 for name in limit.sellers):
                continue  # it is kept by other money than this
            share = limit.at_least if limit.at_least is not None else limit.at_most
            word = "at least" if limit.at_least is not None else "at most"
            assert share is not None
            said = f"{word} {100 * share:.0f} % for {' and '.join(limit.sellers)}"
            shares.append((said, share))
        found.append((budget.name, budget.number, budget.currency, parts, shares))
    return found


def spent_by_month(told: Told) -> list[tuple[str, dict[str, float]]]:
    """(month, seller -> what is paid in the one currency), from the first payment to the last."""
    offers, paid = told.answer.case.offers, dict[str, dict[str, float]]()
    for order in told.answer.orders:
        column = order.column
        rate = offers.rate(column.currency, offers.added_in)
        for day, amount in column.payments:
            month = date.fromordinal(int(day)).isoformat()[:7]
            sellers = paid.setdefault(month, {})
            size = order.lots * amount * rate
            sellers[column.offer.seller] = sellers.get(column.offer.seller, 0.0) + size
    return [(month, paid[month]) for month in sorted(paid)]


def _shortfall(study: Study, shortfalls: Sequence[Effect]) -> list[str]:
    """Days that the model that takes longest lost, a line a question."""
    lines = []
    for one in shortfalls:
        found = one.range(study.longest)
        lost = "never done" if found is None else f"{spanned(_turned(found))} days"
        lines.append(f"{one.question.name}: {lost}")
    return lines


def _turned(days: tuple[float, float, float]) -> tuple[float, float, float]:
    """Days sooner as days later, and the other way round."""
    low, mid, high = days
    return -high, -mid, -low


def _what_ifs(study: Study, effects: Sequence[Effect]) -> list[str]:
    """What moves the model that takes longest, the most first."""
    model, base = study.longest, study.base.told
    lines = []
    for one in sorted(effects, key=lambda one: -abs(one.days(model) or 0.0)):
        moved = one.range(model)
        if moved is not None:
            text = moved_text(moved)
        else:
            text = "never done" if one.afters[model].mid.done is None else "done at all"
        if base is not None and one.after.told is not None:
            more = by_itself(one.after.told) / by_itself(base) - 1.0
            text += f"; {100 * more:+.0f} % computing by {_last_day(base)}"
        lines.append(f"{one.question.name}: {text}")
    return lines


def moved_text(days: tuple[float, float, float]) -> str:
    """A change of days in words."""
    low, mid, high = days
    if max(abs(low), abs(mid), abs(high)) < CHANGED:
        return "on the same day"
    if abs(mid) < CHANGED:
        return f"on the same day ({signed_days(low)} to {signed_days(high)} d)"
    word = "later" if mid > 0 else "sooner"
    ends = sorted((low, high)) if mid > 0 else sorted((-low, -high))
    return f"{_days(abs(mid))} days {word} ({_days(ends[0])} to {_days(ends[1])})"


def spanned(days: tuple[float, float, float]) -> str:
    """Mid days with their range: "38 (31 to 61)"."""
    low, mid, high = days
    return f"{_days(mid)} ({_days(low)} to {_days(high)})"


def _days(days: float) -> str:
    """Days for people: no digits after the point from 20 on."""
    text = f"{days:.0f}" if abs(days) >= 20 else f"{days:.1f}".removesuffix(".0")
    return "0" if text in ("-0", "-0.0") else text


def signed_days(days: float) -> str:
    """A change of days with its sign."""
    return f"+{_days(days)}" if days > 0 and _days(days) != "0" else _days(days)


DONE_HEAD = (
    "model", "parameters", "active", "tokens", "done by", "earliest", "latest", "8 of 10 drawn",
    "chips", "by hand",
)  # fmt: skip
"""Columns of the table of models; of drawn fleets the days of the first and the ninth tenth."""


def done_rows(study: Study) -> list[list[str]]:
    """A row a model."""
    rows = []
    for label, one in zip(study.labels, study.calendars, strict=True):
        model = one.rates.recipe.model
        sizes = [format_count(n) for n in (model.num_parameters(), model.num_active_parameters())]
        low, mid, high = (str(day or "never") for day in one.done_by().values())
        used = [period.rated.used for period in one.mid.periods if period.rated.used] or [0]
        chips = f"{min(used):,}" if min(used) == max(used) else f"{min(used):,} to {max(used):,}"
        hand = one.day(by_hand(one))
        rows.append(
            [
                label, *sizes, format_count(one.tokens), mid, low, high, _drawn(one), chips,
                str(hand or "-"),
            ]
        )  # fmt: skip
    return rows


def _drawn(one: Calendar) -> str:
    """The days in which 8 of 10 drawn fleets are done."""
    if one.draws is None:
        return "-"
    days = one.draws.quantiles()
    first, last = (str(one.day(days[name]) or "never") for name in ("p10", "p90"))
    return f"{first} to {last}"


def effect_head(study: Study, kind: Kind) -> list[str]:
    """Columns of a table of questions; with orders, what all chips compute by their day."""
    told = study.base.told
    more = [f"computing by {_last_day(told)}"] if told is not None and kind == "what_if" else []
    return ["", *study.labels, *more]


def effect_rows(study: Study, kind: Kind) -> list[list[str]]:
    """A row a question: days by model; of a shortfall what it cost, else what moves."""
    rows = []
    for one in study.of_kind(kind):
        cells = []
        for model in range(len(study.labels)):
            moved = one.range(model)
            if moved is None:
                before, after = one.befores[model].mid.done, one.afters[model].mid.done
                cells.append(_never(before is None, after is None, kind))
            elif kind == "shortfall":
                cells.append(spanned(_turned(moved)))
            else:
                cells.append(_moved_cell(moved))
        base, told = study.base.told, one.after.told
        if base is not None and kind == "what_if":
            less = None if told is None else by_itself(told) / by_itself(base) - 1.0
            cells.append("no orders" if less is None else f"{100 * less:+.1f} %")
        rows.append([one.question.name, *cells])
    return rows


def _never(before: bool, after: bool, kind: str) -> str:
    if before and after:
        return "never, either way"
    if kind == "shortfall":
        return "all: never done" if before else "never as asked"
    return "done, not never" if before else "never done"


def _moved_cell(days: tuple[float, float, float]) -> str:
    low, mid, high = days
    if max(abs(low), abs(mid), abs(high)) < CHANGED:
        return "0"
    return f"{signed_days(mid)} ({signed_days(low)} to {signed_days(high)})"


MEMORY_HEAD = ("model", "island", "chips", "layout", "memory", "left out, and why")


def memory_rows(study: Study) -> list[list[str]]:
    """What fits where on the first day on which something computes, and why the rest does not."""
    rows = []
    for label, one in zip(study.labels, study.calendars, strict=True):
        rated = next((p.rated for p in one.mid.periods if p.rated.answer is not None), None)
        if rated is None or rated.answer is None:
            rows.append([label, "none", "0", "-", "-", why_not(one)])
            continue
        part = {island.island.name for island in rated.answer.islands}
        left = [
            f"{name}: {_why_left(rated.answer, name)}" for name in rated.chips if name not in part
        ]
        for number, island in enumerate(rated.answer.islands):
            chips = island.layout.num_devices // max(1, island.machine.devices_per_chip)
            memory = f"{format_bytes(island.memory_used)} of {format_bytes(island.memory_size)}"
            rows.append(
                [
                    label if number == 0 else "", f"{island.island.name} ({island.machine.chip})",
                    f"{chips:,}", island.layout.describe(), memory,
                    "; ".join(left) if number == 0 else "",
                ]
            )  # fmt: skip
    return rows


def _why_left(answer: Any, name: str) -> str:
    why = next((one.why for one in answer.rejected if one.what == name), "too little to gain")
    return str(why).removeprefix("left out: ")


def notes(study: Study) -> list[str]:
    """What the numbers rest on, and what they leave out."""
    found = [
        "each model is planned alone, as if no other run or service used the chips",
        "latest: the fewest chips at the slow end of a step; earliest: the most at the fast end",
        "speeds rest on published runs; nothing here was measured on these chips",
        (
            "by hand: 6 N D over the peak of the chips that take part, N active parameters, at "
            f"{100 * HAND['dense']:.0f} % of it (sparse: {100 * HAND['sparse']:.0f} %), "
            f"{100 * AVAILABLE:.0f} % of the time"
        ),
    ]
    for label, one in zip(study.labels, study.calendars, strict=True):
        period = next((p for p in one.mid.periods if p.rated.answer is not None), None)
        if period is not None and period.rated.rate() > 0:
            days = 1e12 / period.rated.rate()
            found.append(f"{label}: each further 1 T tokens {format_seconds(days)} at first speed")
        found += [f"{label}: {note}" for note in one.notes if note.startswith("left out: ")]
    if study.base.told is not None:
        found.append("days after a change are those on what would be ordered then")
    return [*found, *study.scenario.told.limits, NO_ADVICE]


def as_json(study: Study) -> dict[str, Any]:
    """The object of `atoll scenario --json`, one scenario of it."""
    told = study.scenario.told
    return {
        "name": told.name,
        "from": told.start.isoformat(),
        "answers": dict(answers(study)),
        "models": [
            _model(label, one) for label, one in zip(study.labels, study.calendars, strict=True)
        ],
        "orders": None if study.base.told is None else orders_json(study.base.told),
        "no_orders": study.base.why or None,
        "shortfall": [_effect(study, one) for one in study.of_kind("shortfall")],
        "what_if": [_effect(study, one) for one in study.of_kind("what_if")],
        "facts": [one.model_dump() for one in told.fact],
        "notes": notes(study),
        "plans": study.plans,
    }


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _model(label: str, one: Calendar) -> dict[str, Any]:
    draws = one.draws
    return {
        "label": label,
        "recipe": one.rates.recipe.name,
        "parameters": one.rates.recipe.model.num_parameters(),
        "active_parameters": one.rates.recipe.model.num_active_parameters(),
        "tokens": one.tokens,
        "done_by": {name: _iso(day) for name, day in one.done_by().items()},
        "days": {which: _in_days(one.courses[which].done) for which in WHICH},
        "draws": None if draws is None else {
            "number": draws.number, "seed": draws.seed, "never": draws.never,
            **{name: _iso(one.day(end)) for name, end in draws.quantiles().items()},
        },
        "by_hand": _iso(one.day(by_hand(one))),
        "why": why_not(one) if one.mid.done is None else None,
    }  # fmt: skip


def _in_days(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / DAY


def _effect(study: Study, one: Effect) -> dict[str, Any]:
    """Days by model that a change moves its end; below 0 is sooner."""
    told = one.after.told
    return {
        "name": one.question.name,
        "words": one.question.words,
        "days": {
            label: {which: one.days(model, which) for which in WHICH}
            for model, label in enumerate(study.labels)
        },
        "done_by": {
            label: _iso(one.afters[model].done_by()["mid"])
            for model, label in enumerate(study.labels)
        },
        "tokens": None if told is None else by_itself(told),
        "cost": None if told is None else told.answer.cost,
        "no_orders": one.after.why or None,
    }
