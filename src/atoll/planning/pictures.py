"""Pictures: the bars of a report, memory of a device and seconds of a step, one an island.

Every picture is drawn for a width, so that its letters keep their size on a telephone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atoll.planning.options import USABLE
from atoll.planning.segments import (
    HATCHED,
    Segment,
    hidden_seconds,
    memory_segments,
    time_segments,
)
from atoll.planning.svg import Drawing, fit, ink_on, text_width, ticks
from atoll.units import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from atoll.planning.planner import Answer, IslandAnswer

BAR = 26.0
"""Height of a bar."""

LABEL = 13.0
SMALL = 11.0
GAP = 1.0


def memory_picture(answer: Answer, width: float) -> str:
    """What fills the fullest device of every island, in the frame of its size."""
    drawing = Drawing(width)
    largest = max(one.memory_size for one in answer.islands)
    scale = (width - 2.0) / largest
    for one in answer.islands:
        used = f"{format_bytes(one.memory_used)} of {format_bytes(one.memory_size)}"
        label(drawing, one, used, f"{one.machine.chip}{_part_of_chip(one)}")
        top, frame = drawing.y, one.memory_size * scale
        drawing.box(1, top, frame, BAR, class_="room")
        texts = (format_bytes, lambda size: f"{100.0 * size / largest:.0f} %")
        stack(drawing, memory_segments(one), scale, x=1.0, tell=texts)
        drawing.box(1, top, frame, BAR, class_="frame")
        limit = 1 + one.memory_size * USABLE * scale
        drawing.line(limit, top - 4, limit, top + BAR + 4, class_="limit")
        drawing.y += BAR + 20
    places = [
        1024.0**3 * gib for gib in ticks(largest / parse_bytes("1 GiB"), 8 if width > 500 else 4)
    ]
    axis(drawing, [(1 + size * scale, format_bytes(size)) for size in places])
    return drawing.svg("Memory of the fullest device of every island, by what fills it")


def _part_of_chip(one: IslandAnswer) -> str:
    count = one.machine.devices_per_chip
    return f", one of its {count} devices" if count > 1 else ""


def time_picture(answer: Answer, width: float) -> str:
    """Where every island's seconds of a step go; each bar is the whole step."""
    drawing = Drawing(width)
    step = answer.way.seconds
    scale = width / step
    for one in answer.islands:
        busy = f"{format_seconds(one.seconds)} of {format_seconds(step)}"
        segments = time_segments(answer, one)
        said = f"{one.grains:,} grains" if answer.way.chain is None else ""
        if answer.way.chain is not None:
            work = sum(part.size for part in segments if part.key not in HATCHED)
            busy = f"{format_seconds(work)} of {format_seconds(step)}"
        label(drawing, one, busy, said)
        percent = lambda size: f"{100.0 * size / step:.0f} %"  # noqa: E731
        stack(drawing, segments, scale, x=0.0, tell=(format_seconds, percent))
        drawing.y += BAR
        _hidden(drawing, hidden_seconds(one), scale)
        drawing.y += 18
    places = ticks(step, 8 if width > 500 else 4)
    axis(drawing, [(seconds * scale, format_seconds(seconds)) for seconds in places])
    return drawing.svg("Where the seconds of a step go on every island")


def _hidden(drawing: Drawing, seconds: float, scale: float) -> None:
    """A thin hatched bar under the step: traffic that costs nothing while it stays hidden."""
    long = min(seconds * scale, drawing.width)
    if long < 1.0:
        return
    top, said = drawing.y + 4, f"+ {format_seconds(seconds)} of traffic hidden"
    drawing.box(0, top, long, 7, fill="url(#hatch-hidden)", class_="thin", tip=said)
    room = text_width(said, SMALL)
    if long + 6 + room < drawing.width:
        drawing.text(long + 6, top + 8, said, size=SMALL, class_="t dim")
    drawing.y += 11


def label(drawing: Drawing, one: IslandAnswer, right: str, after: str = "") -> None:
    """The line over a bar: the island's name, what it is, and a number at the end."""
    drawing.y += 14
    room = drawing.width - text_width(right, LABEL) - 14
    name = fit(one.island.name, room, LABEL * 1.08, middle=True)
    drawing.text(0, drawing.y, name, class_="t strong")
    begin = text_width(name, LABEL * 1.08) + 6
    if after and room - begin > 40:
        drawing.text(begin, drawing.y, fit(after, room - begin, LABEL), class_="t dim")
    drawing.text(drawing.width, drawing.y, right, text_anchor="end")
    drawing.y += 7


def stack(
    drawing: Drawing,
    segments: Sequence[Segment],
    scale: float,
    *,
    x: float,
    tell: Sequence[object],
) -> None:
    """Segments one after the other from `x`; each says what it is as far as it has room.

    `tell` are functions from a size to a text, the first one for its number.
    """
    number, percent = tell
    assert callable(number)
    assert callable(percent)
    for segment in segments:
        long = segment.size * scale
        hatched = segment.key in HATCHED
        fill = f"url(#hatch-{segment.key})" if hatched else segment.colour
        tip = f"{segment.name}: {number(segment.size)}"
        gap = GAP if long > 3 * GAP else 0.0
        drawing.box(
            x, drawing.y, long - gap, BAR, fill=fill, tip=tip, class_="thin" if hatched else None
        )
        choices = (f"{segment.name} {number(segment.size)}", number(segment.size))
        for said in (*choices, percent(segment.size)):
            if text_width(said, SMALL) + 8 <= long:
                ink = {"class_": "t onhatch"} if hatched else {"class_": "", "fill": ink_on(fill)}
                drawing.text(
                    x + (long - gap) / 2, drawing.y + BAR / 2 + 4, said, size=SMALL,
                    text_anchor="middle", **ink,
                )  # fmt: skip
                break
        x += long


def axis(drawing: Drawing, marks: Sequence[tuple[float, str]]) -> None:
    """Numbers under the bars; none is drawn where it would not fit."""
    drawing.y += 2
    drawing.line(0, drawing.y, drawing.width, drawing.y, class_="rule")
    free = 0.0
    for x, said in marks:
        wide = text_width(said, SMALL)
        left = min(max(0.0, x - wide / 2), drawing.width - wide)
        drawing.line(x, drawing.y, x, drawing.y + 5, class_="rule")
        if left >= free:
            drawing.text(left, drawing.y + 17, said, size=SMALL, class_="t dim")
            free = left + wide + 8
    drawing.y += 22


def legend_of(answer: Answer) -> tuple[list[Segment], list[Segment]]:
    """What the memory bars and the time bars show, each cause once, in the order of the bars."""
    memory: dict[str, Segment] = {}
    seconds: dict[str, Segment] = {}
    for one in answer.islands:
        memory |= {segment.key: segment for segment in memory_segments(one)}
        seconds |= {segment.key: segment for segment in time_segments(answer, one)}
    from atoll.planning.segments import FAMILIES, MEMORY, NAMES, TIME

    order = [key for family in FAMILIES.values() for key in family]
    order += [key for key in seconds if key not in order]
    kinds = [*MEMORY, *(key for key in memory if key not in MEMORY)]
    shown = [seconds[key] for key in order if key in seconds]
    if any(hidden_seconds(one) > 0 for one in answer.islands):
        shown.append(Segment(key="hidden", name=NAMES["hidden"], size=0.0, colour=TIME["hidden"]))
    return [memory[key] for key in kinds if key in memory], shown
