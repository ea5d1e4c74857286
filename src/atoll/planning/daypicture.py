"""Day picture: 24 hours of chips, training beside serving, and the requests of each hour below.

A column is an hour by the clocks of the first lender's site; its heights are chips.
"""

from __future__ import annotations

from atoll.hours import format_offset
from atoll.planning.pictures import SMALL, axis
from atoll.planning.sharing import Lender, Sharing
from atoll.planning.svg import Drawing, text_width, ticks
from atoll.units import format_count

OWN, LENT, SERVES, SPARE, CURVE = "#0072b2", "#56b4e9", "#009e73", "#e4e8ec", "#d55e00"
"""Colours: blue trains (light: lent), green serves, grey is kept for a burst; orange: requests."""

LEGEND = (
    (OWN, "trains all day"), (LENT, "lent to training"), (SERVES, "serves the hour's requests"),
    (SPARE, "kept for a burst, or idle"), (CURVE, "requests a second (dashed: the burst)"),
)  # fmt: skip

CHIPS, REQUESTS = 220.0, 90.0
"""Heights of the two plots."""


def day_picture(found: Sharing, width: float) -> str:
    """Chips of every hour, stacked, over the requests."""
    drawing = Drawing(width)
    begin = int(-(found.offset // 3600)) % 24
    own = _own(found)
    most = max(1, max(own) + sum(one.island.num_chips for one in found.lenders))
    _title(drawing, f"chips, of {most:,}", f"hours {format_offset(found.offset)}")
    left, top = 1.0, drawing.y
    column = (width - 2.0) / 24
    drawing.box(left, top, width - 2, CHIPS, class_="room")
    for place in range(24):
        hour = (begin + place) % 24
        _column(drawing, found, hour, left + place * column, column, top, most, own[hour])
    for number in ticks(float(most), 4)[1:]:
        y = top + CHIPS * (1 - number / most)
        drawing.line(1, y, width - 1, y, class_="faint")
        drawing.text(4, y - 3, f"{number:,.0f}", size=SMALL, class_="t onhatch")
    drawing.y = top + CHIPS
    marks = [(left + place * column, f"{place}:00") for place in range(0, 25, 3)]
    axis(drawing, marks)
    for one in found.lenders:
        if one.server is not None:
            _requests(drawing, one, begin, left, column)
            axis(drawing, marks)
    return drawing.svg("Chips that train and chips that serve at every hour, and the requests")


def _own(found: Sharing) -> list[int]:
    """Chips at every hour that train and are not lent."""
    lent = {one.island.name for one in found.lenders}
    chips = []
    for state in found.schedule.states:
        rated = found.rated[state]
        chips.append(sum(count for name, count in rated.chips.items() if name not in lent))
    return chips


def _title(drawing: Drawing, left: str, right: str) -> None:
    drawing.y += 14
    drawing.text(0, drawing.y, left, class_="t strong")
    if text_width(left, 13.0) + text_width(right, 13.0) + 16 < drawing.width:
        drawing.text(drawing.width, drawing.y, right, text_anchor="end", class_="t dim")
    drawing.y += 8


def _column(
    drawing: Drawing,
    found: Sharing,
    hour: int,
    x: float,
    wide: float,
    top: float,
    most: int,
    own: int,
) -> None:
    """An hour from the bottom up: own chips, then every lender's lent, serving and kept ones."""
    floor = top + CHIPS

    def rise(chips: float, colour: str, tip: str) -> None:
        nonlocal floor
        high = CHIPS * chips / most
        if high > 0:
            drawing.box(x, floor - high, wide - 0.8, high, fill=colour, tip=tip)
            floor -= high

    rise(own, OWN, f"{own:,} chips train all day")
    for index, one in enumerate(found.lenders):
        nodes, each = found.lent(index, hour), one.island.chips_per_node
        begins = floor
        name = one.island.name
        rise(nodes * each, LENT, f"{name}: {nodes * each:,} chips lent to training")
        _moves(drawing, found, index, hour, x, wide, floor, begins)
        left = one.island.nodes - nodes
        busy = 0.0
        if one.server is not None:
            rate = one.server.load[hour]
            busy = min(left, one.server.nodes_for(rate, one.server.capacities[1]))
            rise(
                busy * each, SERVES, f"{name}: {busy * each:,.0f} chips serve {rate:,.0f} a second"
            )
        rise((left - busy) * each, SPARE, f"{name}: {(left - busy) * each:,.0f} chips kept or idle")


def _moves(
    drawing: Drawing,
    found: Sharing,
    index: int,
    hour: int,
    x: float,
    wide: float,
    top: float,
    bottom: float,
) -> None:
    """The part of an hour in which lent chips are on their way, hatched."""
    pool, states = found.lenders[index].pool, found.schedule.states
    now, before, after = (states[(hour + n) % 24][index] for n in (0, -1, 1))
    parts = []
    if now > before:
        parts.append((0.0, pool.lend, "on their way to training"))
    elif 0 < now < before:
        parts.append((0.0, pool.again, "begin anew, fewer"))
    if after < now:
        parts.append((3600.0 - pool.give_back, 3600.0, "on their way back"))
    for begin, end, words in parts:
        first, last = (min(1.0, max(0.0, t / 3600.0)) for t in (begin, end))
        if bottom - top > 0.5 and last > first:
            drawing.box(
                x + first * wide, top, max(1.5, (last - first) * wide - 0.8), bottom - top,
                fill="url(#hatch-waiting)", tip=f"{found.lenders[index].island.name}: {words}",
            )  # fmt: skip


def _requests(drawing: Drawing, one: Lender, begin: int, left: float, column: float) -> None:
    """Requests a second as steps, and the burst that chips are kept for."""
    server = one.server
    assert server is not None
    most = max(server.load) * server.traffic.burst
    _title(
        drawing, f"{one.island.name}: requests a second to {server.model}",
        f"{format_count(3600.0 * sum(server.load))} a day",
    )  # fmt: skip
    top, floor = drawing.y, drawing.y + REQUESTS
    drawing.box(1, top, drawing.width - 2, REQUESTS, class_="room")
    for times, extra in ((server.traffic.burst, {"stroke_dasharray": "4 3"}), (1.0, {})):
        points = []
        for place in range(24):
            high = floor - REQUESTS * times * server.load[(begin + place) % 24] / most
            points += [(left + place * column, high), (left + (place + 1) * column, high)]
        drawing.path(points, stroke=CURVE, stroke_width=2.2 if times == 1.0 else 1.2, **extra)
    for number in ticks(most, 3)[1:]:
        y = floor - REQUESTS * number / most
        drawing.line(1, y, drawing.width - 1, y, class_="faint")
        drawing.text(4, y - 3, format_count(number), size=SMALL, class_="t dim")
    drawing.y = floor
