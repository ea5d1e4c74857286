"""The calendar for people and scripts: a line a period, when the run is done, the JSON keys."""

from __future__ import annotations

from datetime import date
from typing import Any

from atoll.planning.calendar import WHICH, Calendar, Period
from atoll.planning.costs import as_json as cost_json
from atoll.planning.costs import cost_of
from atoll.units import format_count

HEAD = ("until", "computing", "chips", "idle", "tokens/s", "goodput", "done", "low", "high")
"""Columns of the table of periods; the last three are tokens by the period's end."""


def shown_periods(calendar: Calendar, *, most: int) -> tuple[list[str], list[list[str]]]:
    """The table of periods as text; of more than `most` the middle is left out."""
    rows = [_row(calendar, period) for period in calendar.mid.periods]
    if len(rows) > most:
        half = most // 2
        left = len(rows) - 2 * half + 1
        gap = [f"... {left} more", *[""] * (len(HEAD) - 1)]
        rows = [*rows[:half], gap, *rows[len(rows) - half + 1 :]]
    return list(HEAD), rows


def _row(calendar: Calendar, period: Period) -> list[str]:
    rated = period.rated
    low, mid, high = (calendar.courses[which].tokens_at(period.end) for which in WHICH)
    done = [format_count(tokens) for tokens in (mid, low, high)]
    end = str(calendar.day(period.end) or "never")
    if rated.answer is None or rated.goodput is None:
        return [end, rated.why.partition(": ")[0], "0", f"{rated.present:,}", "0", "-", *done]
    names = ", ".join(one.island.name for one in rated.answer.islands)
    idle = f"{rated.present - rated.used:,}"
    speed = format_count(rated.answer.tokens_per_second.mid * rated.share)
    good = f"{100 * rated.goodput.factor:.1f} %"
    return [end, names, f"{rated.used:,}", idle, speed, good, *done]


def done_text(calendar: Calendar) -> str:
    """When the run is done, as one line."""
    low, mid, high = (str(day or "never") for day in calendar.done_by().values())
    energy = [period.megawatt_hours for period in calendar.mid.periods]
    text = f"{mid} ({low} to {high}: deliveries and speed at their best and at their worst)"
    if energy and all(one is not None for one in energy):
        total = sum(one for one in energy if one is not None)
        text += f"; {total:,.0f} MWh of chips"
    rents = [period.dollars for period in calendar.mid.periods]
    if rents and all(one is not None for one in rents):
        least, most = (sum(one[end] for one in rents if one is not None) for end in (0, 1))
        ends = dict.fromkeys((format_count(least), format_count(most)))
        text += f", {' to '.join(ends)} dollars at published rents"
    return text


def drawn_text(calendar: Calendar) -> str:
    """What the draws say, as one line."""
    draws = calendar.draws
    assert draws is not None
    days = {name: calendar.day(end) for name, end in draws.quantiles().items()}
    parts = [
        f"{name.removeprefix('p')} % by {day}" if day is not None else f"{name[1:]} % never"
        for name, day in days.items()
    ]
    text = f"of {draws.number:,} fleets (seed {draws.seed}) {', '.join(parts)}"
    return text + (f"; {100 * draws.never:.0f} % are never done" if draws.never else "")


def as_json(calendar: Calendar) -> dict[str, Any]:
    """The keys `done_by` and `calendar` of `atoll plan --json`."""
    days = {name: _iso(day) for name, day in calendar.done_by().items()}
    draws = calendar.draws
    return {
        "done_by": days,
        "calendar": {
            "start": calendar.start.isoformat(),
            "begins": _iso(calendar.begins()),
            "tokens": calendar.tokens,
            "periods": [_plain(calendar, period) for period in calendar.mid.periods],
            "draws": None if draws is None else {
                "number": draws.number, "seed": draws.seed, "never": draws.never,
                "plans": draws.plans, "off": draws.off,
                **{name: _iso(calendar.day(end)) for name, end in draws.quantiles().items()},
            },
            "cost": cost_json(cost_of(calendar)),
            "notes": list(calendar.notes),
        },
    }  # fmt: skip


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _plain(calendar: Calendar, period: Period) -> dict[str, Any]:
    rated, good, money = period.rated, period.rated.goodput, period.dollars
    answer = rated.answer
    return {
        "from": _iso(calendar.day(period.begin)),
        "to": _iso(calendar.day(period.end)),
        "chips": dict(rated.chips),
        "used": rated.used,
        "idle": rated.present - rated.used,
        "unpowered": period.unpowered(),
        "shares": {} if answer is None else {one.island.name: one.grains for one in answer.islands},
        "tokens_per_second": 0.0 if answer is None else answer.tokens_per_second.mid * rated.share,
        "goodput": None if good is None else good.factor,
        "goodput_going_on": None if good is None else good.going_on,
        "goodput_restarting": None if good is None else good.restarting,
        "tokens": period.tokens,
        "tokens_by_end": {
            which: calendar.courses[which].tokens_at(period.end) for which in WHICH
        },
        "megawatt_hours": period.megawatt_hours,
        "rent_dollars": None if money is None else {"low": money[0], "high": money[1]},
        "lease_dollars": calendar.lease_dollars(period),
        "why": rated.why,
    }  # fmt: skip
