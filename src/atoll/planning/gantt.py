"""Gantt: the islands of a fleet over time, and under them the tokens that are done.

A row is an island, its height the most chips that it ever holds in the mid course.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from atoll.planning.calendar import WHICH, Calendar, Course, Period
from atoll.planning.pictures import LABEL, SMALL, axis
from atoll.planning.svg import Drawing, fit, text_width
from atoll.units import format_count

BUSY, SPARE, ABSENT, CURVE = "#0072b2", "#a6cee3", "var(--hatch)", "#d55e00"
"""Colours: blue computes, light blue is there without work, grey is not there; orange: tokens."""

ROW = 30.0
PLOT = 120.0
LONGER = 1.5
"""Times of the mid course up to which the other two are drawn."""


def calendar_picture(
    calendar: Calendar, width: float, *, only: Container[str] | None = None
) -> str:
    """The mid course as rows of chips, and the tokens of all three courses below.

    `only` names the islands that have a row; None: all.
    """
    drawing = Drawing(width)
    span = _span(calendar)
    scale = (width - 2.0) / span
    periods = calendar.mid.periods
    for island in calendar.rates.fleet.island:
        if only is not None and island.name not in only:
            continue
        most = max((one.rated.chips.get(island.name, 0) for one in periods), default=0)
        drawing.y += 14
        right = f"{most:,} chips" if most else "no chips"
        room = width - text_width(right, LABEL) - 14
        said = fit(f"{island.name} {island.chip}", room, LABEL * 1.08, middle=True)
        drawing.text(0, drawing.y, said, class_="t strong")
        drawing.text(width, drawing.y, right, text_anchor="end")
        drawing.y += 6
        for period in periods:
            _bar(drawing, calendar, period, island.name, most, scale)
        drawing.y += ROW + 8
    _marks(drawing, calendar, scale)
    _tokens(drawing, calendar, scale, span)
    _marks(drawing, calendar, scale)
    return drawing.svg("Chips of every island over time, and the tokens that are done")


def _span(calendar: Calendar) -> float:
    """Seconds that the picture is wide."""
    mid = calendar.mid.done
    if mid is None:
        return max(1.0, *(end for end, _ in calendar.mid.curve))
    slow = calendar.courses["low"].done
    return max(1.0, min(LONGER * mid, max(mid, slow if slow is not None else LONGER * mid)))


def _bar(
    drawing: Drawing, calendar: Calendar, period: Period, name: str, most: int, scale: float
) -> None:
    """A period of an island: what is there, and of that what takes part, from the bottom up."""
    rated = period.rated
    there = rated.chips.get(name, 0)
    busy = min(there, used_on(period, name))
    x, wide = 1 + period.begin * scale, max(1.0, period.seconds * scale - 1.0)
    begin, end = calendar.day(period.begin), calendar.day(period.end)
    tip = f"{name}, {begin} to {end}: {there:,} chips, {busy:,} take part"
    if name in period.unpowered():
        tip += f", {period.unpowered()[name]:,} have no power"
    drawing.box(x, drawing.y, wide, ROW, fill=ABSENT, class_="thin", tip=tip)
    for count, colour in ((there, SPARE), (busy, BUSY)):
        high = ROW * count / most if most else 0.0
        if high > 0:
            drawing.box(x, drawing.y + ROW - high, wide, high, fill=colour, tip=tip)


def used_on(period: Period, name: str) -> int:
    """Chips of an island that take part in a period."""
    answer = period.rated.answer
    islands = answer.islands if answer is not None else ()
    return sum(one.chips for one in islands if one.island.name == name)


def _marks(drawing: Drawing, calendar: Calendar, scale: float) -> None:
    """The days on which something changes, and the last one."""
    ends = [period.begin for period in calendar.mid.periods]
    ends += [calendar.mid.done] if calendar.mid.done is not None else []
    axis(drawing, [(1 + end * scale, str(calendar.day(end) or "")) for end in ends])


def _tokens(drawing: Drawing, calendar: Calendar, scale: float, span: float) -> None:
    """The tokens over time: mid thick, low and high thin; a bar over most of the drawn ends."""
    drawing.y += 14
    said = f"tokens done, of {format_count(calendar.tokens)}"
    drawing.text(0, drawing.y, said, class_="t strong")
    drawing.y += 8
    top, floor = drawing.y, drawing.y + PLOT
    drawing.box(1, top, drawing.width - 2, PLOT, class_="room")
    draws = calendar.draws
    if draws is not None:
        ends = draws.quantiles()
        first, last = (min(span, ends[name]) for name in ("p10", "p90"))
        tip = "8 of 10 drawn fleets are done in this time"
        drawing.box(
            1 + first * scale, top, max(1.0, (last - first) * scale), PLOT, fill=CURVE,
            opacity=0.18, tip=tip,
        )  # fmt: skip
    for which in WHICH:
        points = _within(calendar.courses[which], span)
        shown = [
            (1 + at * scale, floor - PLOT * min(1.0, tokens / calendar.tokens))
            for at, tokens in points
        ]
        thick = 2.6 if which == "mid" else 1.1
        drawing.path(shown, stroke=CURVE, stroke_width=thick, opacity=1.0 if thick > 2 else 0.7)
    for part in (0.25, 0.5, 0.75):
        y = floor - PLOT * part
        drawing.line(1, y, drawing.width - 1, y, class_="faint")
        said = format_count(part * calendar.tokens)
        drawing.text(4, y - 3, said, size=SMALL, class_="t dim")
    drawing.y = floor


def _within(course: Course, span: float) -> Sequence[tuple[float, float]]:
    """The curve up to the picture's end; where nothing changes any more it goes on as it was."""
    points = [point for point in course.curve if point[0] <= span]
    if course.curve[-1][0] > span:
        points.append((span, course.tokens_at(span)))
    return points
