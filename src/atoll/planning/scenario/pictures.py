"""Pictures: what a study found as bars and dots, each drawn for a width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from atoll.planning.calendar import DAY, Calendar
from atoll.planning.pictures import LABEL, SMALL, axis
from atoll.planning.purchase import Told
from atoll.planning.scenario.study import Effect, Study
from atoll.planning.scenario.text import moved_text, signed_days, spent_by_month, spent_by_seller
from atoll.planning.svg import Drawing, fit, ink_on, text_width, ticks
from atoll.units import format_count

MID, BAND, RANGE, ASKED = "#0072b2", "#56b4e9", "#a6cee3", "#009e73"
"""Colours: mid, eight of ten drawn fleets, low to high; as asked."""

LATE, SOON = "#d55e00", "#009e73"
"""Colours of what makes a run later, and sooner."""

SELLERS = ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#8d97a1")
"""Colours of sellers or offers in the order of the file; the last one for all further ones."""

BAR = 18.0
MOST_SPAN = 2.2
"""Times the latest mid day up to which a picture goes; what is later ends in an arrow."""


@dataclass(frozen=True, slots=True)
class _Days:
    """A scale of days: from `start` on, `span` days are `width` wide from `left`."""

    start: date
    span: float
    left: float
    width: float

    def x(self, days: float) -> float:
        """Where a day lies; what is too late, at the end."""
        return self.left + self.width * min(1.0, max(0.0, days / self.span))

    def marks(self, count: int) -> list[tuple[float, str]]:
        """Firsts of months, or single days where all is done within one."""
        found = []
        if self.span < 45:
            for day in ticks(self.span, count):
                found.append((self.x(day), str(self.start + timedelta(days=day))))
            return found
        month = (self.start.year, self.start.month)
        step = max(1, math.ceil(self.span / 30.4 / count))
        while True:
            day = (date(month[0], month[1], 1) - self.start).days
            if day > self.span:
                return found
            if day >= 0 and (month[1] - 1) % step == 0:
                found.append((self.x(day), f"{month[0]}-{month[1]:02d}"))
            month = (month[0] + month[1] // 12, month[1] % 12 + 1)


def _marked(drawing: Drawing, days: _Days) -> None:
    """The axis below, and thin lines at its marks through what stands above."""
    marks = days.marks(10 if drawing.width > 500 else 4)
    lines = Drawing(drawing.width)
    for x, _ in marks:
        lines.line(x, 0, x, drawing.y, class_="faint")
    drawing.pieces[:0] = lines.pieces
    axis(drawing, marks)


def _in_days(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds / DAY


def _span_of(ends: Sequence[tuple[float, float]]) -> float:
    """Days that hold all mid ends (the first of each pair), and the late ones within reason."""
    mids = [mid for mid, _ in ends if math.isfinite(mid)]
    lates = [late for _, late in ends if math.isfinite(late)]
    longest = max(mids, default=1.0)
    return max(1.0, min(max([longest, *lates]), MOST_SPAN * longest)) * 1.03


def finish_picture(study: Study, width: float) -> str:
    """A row a model: when it is done, with both ranges."""
    drawing = Drawing(width)
    ends = [
        (_in_days(one.courses["mid"].done), _in_days(one.courses["low"].done))
        for one in study.calendars
    ]
    days = _Days(study.scenario.start, _span_of(ends), 1.0, width - 2.0)
    for label, one in zip(study.labels, study.calendars, strict=True):
        low, mid, high = (str(day or "never") for day in one.done_by().values())
        drawing.y += 15
        right = f"{mid}" if width < 500 else f"{mid}  ({low} to {high})"
        room = width - text_width(right, LABEL) - 14
        drawing.text(0, drawing.y, fit(label, room, LABEL * 1.08), class_="t strong over")
        drawing.text(width, drawing.y, right, text_anchor="end", class_="t over")
        drawing.y += 7
        _finish_row(drawing, one, days)
        drawing.y += BAR + 8
    _marked(drawing, days)
    return drawing.svg("When each model is done: earliest, mid and latest day")


def _finish_row(drawing: Drawing, one: Calendar, days: _Days) -> None:
    soon, mid, late = (_in_days(one.courses[w].done) for w in ("high", "mid", "low"))
    if not math.isfinite(soon):
        drawing.text(4, drawing.y + BAR - 4, "never done", size=SMALL, class_="t dim")
        return
    a, b = days.x(soon), days.x(late)
    drawing.box(1, drawing.y + BAR / 2 - 1, a - 1, 2, class_="track")
    drawing.box(a, drawing.y + 3, max(2.0, b - a), BAR - 6, fill=RANGE, rx=3.0,
                tip="earliest to latest: deliveries and speed at best and at worst")  # fmt: skip
    if one.draws is not None:
        p10, p90 = (one.draws.quantiles()[name] / DAY for name in ("p10", "p90"))
        x, end = days.x(p10), days.x(p90)
        drawing.box(x, drawing.y + 3, max(2.0, end - x), BAR - 6, fill=BAND, rx=3.0,
                    tip="8 of 10 drawn fleets are done in this time")  # fmt: skip
    if math.isfinite(mid):
        _dot(drawing, days.x(mid), drawing.y + BAR / 2, MID, f"mid: {one.day(one.mid.done)}")
    if late > days.span:
        _beyond(drawing, one.day(one.courses["low"].done))


def _dot(drawing: Drawing, x: float, y: float, colour: str, tip: str) -> None:
    """A round mark of a day."""
    drawing.box(x - 6, y - 6, 12.0, 12.0, rx=6.0, fill=colour, class_="badge-dot", tip=tip)


def _beyond(drawing: Drawing, day: date | None) -> None:
    """What ends after the picture says when."""
    said = f"to {day} \u2192" if day is not None else "or never \u2192"
    drawing.text(drawing.width - 4, drawing.y + BAR / 2 + 4, said, size=SMALL, text_anchor="end")


def shortfall_picture(study: Study, effects: Sequence[Effect], width: float) -> str:
    """A row a question and model: done as asked, done as it came, and the days between."""
    drawing = Drawing(width)
    ends = [
        (_in_days(side.mid.done), 0.0) for one in effects for side in (*one.befores, *one.afters)
    ]
    days = _Days(study.scenario.start, _span_of(ends), 1.0, width - 2.0)
    for one in effects:
        drawing.y += 18
        drawing.text(0, drawing.y, fit(one.question.name, width, 14.0), size=14.0,
                     class_="t strong over")  # fmt: skip
        drawing.y += 4
        for model, label in enumerate(study.labels):
            _shortfall_row(drawing, one, model, label, days)
        drawing.y += 6
    _marked(drawing, days)
    return drawing.svg("Days that the shortfall cost, by model")


def _shortfall_row(drawing: Drawing, one: Effect, model: int, label: str, days: _Days) -> None:
    asked, came = (_in_days(side[model].mid.done) for side in (one.afters, one.befores))
    lost = came - asked if math.isfinite(came) and math.isfinite(asked) else math.inf
    drawing.y += 14
    said = f"{signed_days(lost)} days" if math.isfinite(lost) else "never done"
    if abs(lost) < 0.05:
        said = "no day lost"
    drawing.text(0, drawing.y, fit(label, drawing.width / 2, LABEL), class_="t over")
    drawing.text(drawing.width, drawing.y, said, text_anchor="end",
                 class_="t strong over" if lost >= 1 else "t dim over")  # fmt: skip
    y = drawing.y + 5 + BAR / 2
    a, b = days.x(asked), days.x(came)
    drawing.box(1, y - 1, max(a, b) - 1, 2, class_="track")
    drawing.box(min(a, b), y - 3, abs(b - a), 6, fill=LATE, opacity=0.55)
    begin = days.start
    for x, when, colour, name in ((b, came, LATE, "as it came"), (a, asked, ASKED, "as asked")):
        day = begin + timedelta(days=when) if math.isfinite(when) else "never"
        _dot(drawing, x, y, colour, f"{name}: {day}")
    drawing.y += 5 + BAR


def what_if_picture(study: Study, effects: Sequence[Effect], model: int, width: float) -> str:
    """A row a question: days later to the right, sooner to the left, with the range as a line."""
    drawing = Drawing(width)
    found = [(one, one.range(model)) for one in effects]
    moved = sorted(found, key=lambda entry: -abs(entry[1][1]) if entry[1] else -math.inf)
    sizes = [days for _, range_ in moved if range_ is not None for days in range_]
    mids = [abs(range_[1]) for _, range_ in moved if range_ is not None]
    reach = MOST_SPAN * max([*mids, 0.5])
    low, high = max(-reach, min([0.0, *sizes])), min(reach, max([0.0, *sizes]))
    span = max(1.0, high - low) * 1.04
    low -= 0.02 * span

    def x(days: float) -> float:
        return 1 + (width - 2) * min(1.0, max(0.0, (days - low) / span))

    for one, range_ in moved:
        drawing.y += 15
        said = "never done" if range_ is None else moved_text(range_)
        if width < 500 and range_ is not None:
            said = f"{signed_days(range_[1])} d"
        room = width - text_width(said, LABEL) - 14
        drawing.text(
            0, drawing.y, fit(one.question.name, room, LABEL * 1.08), class_="t strong over"
        )
        drawing.text(width, drawing.y, said, text_anchor="end", class_="t over")
        drawing.y += 6
        if range_ is not None:
            tip = f"{one.question.words} {moved_text(range_)}"
            _what_if_bar(drawing, x, range_, (-reach, reach), tip)
        drawing.y += BAR + 8
    zero = Drawing(width)
    zero.line(x(0), 0, x(0), drawing.y, class_="rule")
    drawing.pieces[:0] = zero.pieces
    _day_axis(drawing, x, low, low + span)
    return drawing.svg(f"Days by which each question moves {study.labels[model]}")


def _what_if_bar(
    drawing: Drawing,
    x: Callable[[float], float],
    days: tuple[float, float, float],
    reach: tuple[float, float],
    tip: str,
) -> None:
    """A bar to mid, a line over the range; without an end where it goes on beyond the reach."""
    least, mid, most = days
    colour = LATE if mid > 0 else SOON
    a, b = sorted((x(0.0), x(mid)))
    drawing.box(a, drawing.y + 2, max(1.5, b - a), BAR - 4, fill=colour, tip=tip)
    y = drawing.y + BAR / 2
    drawing.line(x(least), y, x(most), y, class_="wire")
    for end in (least, most):
        if reach[0] <= end <= reach[1]:
            drawing.line(x(end), y - 4, x(end), y + 4, class_="wire")


def _day_axis(drawing: Drawing, x: Callable[[float], float], low: float, high: float) -> None:
    count = 8 if drawing.width > 500 else 4
    step = ticks(high - low, count)
    size = step[1] if len(step) > 1 else 1.0
    first = math.ceil(low / size)
    marks = [first * size + i * size for i in range(int((high - first * size) / size + 1e-9) + 1)]
    axis(drawing, [(x(day), f"{day:+.3g} d" if day else "0") for day in marks])


def budget_picture(told: Told, width: float) -> str:
    """A frame a budget, filled by what each seller gets; a line where a limit's share lies."""
    drawing = Drawing(width)
    colours = colours_of(told)
    for name, amount, currency, parts, shares in spent_by_seller(told):
        spent = sum(size for _, size in parts)
        right = f"{format_count(spent)} of {format_count(amount)} {currency}"
        drawing.y += 15
        room = width - text_width(right, LABEL) - 14
        drawing.text(0, drawing.y, fit(name, room, LABEL * 1.08), class_="t strong over")
        drawing.text(width, drawing.y, right, text_anchor="end", class_="t over")
        drawing.y += 7
        scale, x, high = (width - 2.0) / max(amount, spent, 1.0), 1.0, BAR + 8
        drawing.box(1, drawing.y, width - 2, high, class_="room")
        for seller, size in parts:
            wide = size * scale
            drawing.box(x, drawing.y, max(0.0, wide - 1), high, fill=colours[seller],
                        tip=f"{seller}: {format_count(size)} {currency}")  # fmt: skip
            said = f"{seller} {format_count(size)}"
            if text_width(said, SMALL) + 8 < wide:
                drawing.text(x + wide / 2, drawing.y + high / 2 + 4, said, size=SMALL, class_="",
                             fill=ink_on(colours[seller]), text_anchor="middle")  # fmt: skip
            x += wide
        drawing.box(1, drawing.y, width - 2, high, class_="frame")
        drawing.y += high
        for label, share in shares:
            place = 1 + share * spent * scale
            drawing.line(place, drawing.y - high - 4, place, drawing.y + 5, class_="limit")
            drawing.y += 16
            wide = text_width(label, SMALL)
            left = min(max(0.0, place - wide / 2), width - wide)
            drawing.text(left, drawing.y, label, size=SMALL, class_="t dim")
        drawing.y += 12
    return drawing.svg("What each budget pays to whom")


def month_picture(told: Told, width: float) -> str:
    """A column a month: what is paid in it, by seller, in the one currency."""
    drawing = Drawing(width)
    months = spent_by_month(told)
    colours = colours_of(told)
    most = max((sum(parts.values()) for _, parts in months), default=0.0) or 1.0
    high, top = 150.0, 18.0
    marks = ticks(most, 4)
    left = max(text_width(format_count(one), SMALL) for one in marks) + 8
    step = (width - left) / max(1, len(months))
    for one in marks:
        y = top + high - high * one / most
        drawing.line(left, y, width, y, class_="faint")
        drawing.text(left - 6, y + 4, format_count(one), size=SMALL, text_anchor="end",
                     class_="t dim")  # fmt: skip
    drawing.text(0, 11, f"{told.answer.case.offers.added_in} a month", size=SMALL, class_="t dim")
    every = max(1, math.ceil(text_width("2025-01", SMALL) * 1.15 / step))
    for number, (month, parts) in enumerate(months):
        y, x = top + high, left + number * step
        for seller, size in parts.items():
            tall = high * size / most
            y -= tall
            drawing.box(x + 0.15 * step, y, 0.7 * step, max(0.0, tall - 0.5), fill=colours[seller],
                        tip=f"{month}, {seller}: {format_count(size)}")  # fmt: skip
        if number % every == 0:
            drawing.text(x + step / 2, top + high + 15, month, size=SMALL, text_anchor="middle",
                         class_="t dim")  # fmt: skip
    drawing.line(left, top + high, width, top + high, class_="rule")
    return drawing.svg("What is paid in each month, by seller", height=top + high + 22)


def colours_of(told: Told) -> dict[str, str]:
    """Seller -> colour, in the order of the offers."""
    sellers = dict.fromkeys(one.seller for one in told.answer.case.offers.offer)
    return {name: SELLERS[min(i, len(SELLERS) - 1)] for i, name in enumerate(sellers)}
