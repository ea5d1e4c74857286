"""Timeline: a pipeline's step as rows of small boxes, cut to what an eye can follow.

A long step is drawn from both ends: the middle, in which nothing new happens, is left out, and the
picture shows where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.planning.schedule import Box, schedule
from atoll.planning.segments import time_scale
from atoll.planning.svg import NARROW, Drawing, fit, ink_on, tag, text_width
from atoll.units import format_seconds

if TYPE_CHECKING:
    from atoll.planning.planner import Answer, IslandAnswer

FORWARD, BACKWARD, LINK = "#56b4e9", "#e69f00", "#009e73"
"""Colours: blue goes forward, orange comes back, green is a link between islands."""

PIECES = 260
"""Forward times that fit beside one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A stage: whose it is, its number, (forward, backward) times of a micro-batch."""

    island: str
    number: int
    times: tuple[float, float]
    link: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A lane's pipeline as it is: all rows, micro-batches, chunks a device, seconds of bubble."""

    rows: tuple[Row, ...]
    microbatches: int
    chunks: int
    bubble: float
    seconds: float
    who: str

    @property
    def stages(self) -> int:
        """How many stages compute."""
        return sum(not row.link for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What of a pipeline is drawn: rows, micro-batches, chunks; `apart` tells a cut in time."""

    rows: tuple[Row, ...]
    microbatches: int
    chunks: int
    apart: int


def pipeline_of(answer: Answer) -> Pipeline | None:
    """The pipeline to draw: the chain, else that of the largest island that has one."""
    if answer.way.chain is not None:
        return _chained(answer)
    piped = [one for one in answer.islands if one.layout.pp > 1]
    if not piped:
        return None
    one = max(piped, key=lambda one: one.layout.num_devices)
    back = _backward(one)
    rows = tuple(
        Row(island=one.island.name, number=n + 1, times=(1.0, back)) for n in range(one.layout.pp)
    )
    cost = one.cost
    bubble = time_scale(one) * cost.bubble if cost is not None else 0.0
    return Pipeline(
        rows=rows, microbatches=cost.microbatches if cost is not None else 1,
        chunks=one.layout.vpp, bubble=bubble, seconds=one.seconds, who=one.island.name,
    )  # fmt: skip


def _backward(one: IslandAnswer) -> float:
    """Times that the backward pass takes longer than the forward one: 2, and 3 with recompute."""
    return 3.0 if one.layout.recompute == "full" else 2.0


def _chained(answer: Answer) -> Pipeline:
    """The rows of a chain; a link that is slower than every stage gets a row of its own."""
    chain = answer.way.chain
    assert chain is not None
    rows: list[Row] = []
    busiest = max(part.stage_seconds for part in chain.parts)
    number = 0
    for index, (part, one) in enumerate(zip(chain.parts, answer.islands, strict=True)):
        back = _backward(one)
        for layers in part.layers:
            number += 1
            seconds = part.stage_seconds * layers / max(part.layers)
            times = (seconds / (1.0 + back), seconds * back / (1.0 + back))
            rows.append(Row(island=part.name, number=number, times=times))
        following = answer.islands[index + 1 : index + 2]
        names = [(f"{a.island.name} - {b.island.name}", f"{a.island.site} - {b.island.site}")
                 for a, b in zip([one], following, strict=False)]  # fmt: skip
        if chain.slowest > busiest and any(chain.bound.endswith(pair) for pair in names):
            half = chain.slowest / 2.0
            rows.append(Row(island=chain.bound, number=0, times=(half, half), link=True))
    return Pipeline(
        rows=tuple(rows), microbatches=chain.microbatches, chunks=1,
        bubble=(number - 1) * chain.slowest, seconds=chain.seconds,
        who="the chain " + " - ".join(part.name for part in chain.parts),
    )  # fmt: skip


def cut_of(line: Pipeline, *, most: int) -> Cut:
    """At most `most` rows of a pipeline, and as many micro-batches as are readable.

    Rows are thinned out evenly, each island keeps one. Fewer stages get fewer micro-batches, so
    that the bubble keeps its part of the picture; where that is still too many, the middle is cut
    out.
    """
    if line.chunks > 1:
        return _interleaved_cut(line, most)
    rows = _thinned(line.rows, most)
    scaled = line.microbatches
    if len(rows) < len(line.rows):
        scaled = max(1, round(line.microbatches * (len(rows) - 1) / (len(line.rows) - 1)))
    shown = min(scaled, len(rows) + 6)
    return Cut(rows=rows, microbatches=shown, chunks=1, apart=scaled - shown)


def _interleaved_cut(line: Pipeline, most: int) -> Cut:
    """As many stages as leave the boxes visible; micro-batches come in groups of the stages.

    Two groups show how the step goes on; where only three stages or fewer had room for that, one.
    """
    count = len(line.rows)
    # A micro-batch is a forward and a backward pass, 3 forward times, in each chunk.
    room = int(PIECES * most / 24 / (3 * line.chunks))
    stages = min(count, most, room // 2 if room >= 8 else max(2, room))
    scaled = line.microbatches * (stages - 1) / (count - 1)
    groups = max(1, round(scaled / stages))
    shown = min(groups, max(1, room // stages))
    apart = (groups - shown) * stages
    if apart and stages == count:
        apart = line.microbatches - shown * stages
    return Cut(
        rows=_thinned(line.rows, stages),
        microbatches=shown * stages,
        chunks=line.chunks,
        apart=apart,
    )


def _thinned(rows: Sequence[Row], most: int) -> tuple[Row, ...]:
    """At most about `most` rows: every link, of every island its first and others evenly."""
    if len(rows) <= most:
        return tuple(rows)
    kept: list[Row] = []
    for name in dict.fromkeys(row.island for row in rows):
        mine = [row for row in rows if row.island == name]
        share = max(1, most * len(mine) // len(rows))
        places = sorted({i * (len(mine) - 1) // max(1, share - 1) for i in range(share)})
        kept += [mine[i] for i in places]
    return tuple(row for row in rows if row in kept)


def timeline_picture(line: Pipeline, width: float) -> str:
    """Rows of boxes, forward and backward, with the bubble as the empty ground."""
    cut = cut_of(line, most=12 if width <= NARROW else 24)
    boxes = schedule([row.times for row in cut.rows], cut.microbatches, chunks=cut.chunks)
    end = max(box.end for box in boxes)
    drawing = Drawing(width)
    left = 30.0
    scale = (width - left - 1) / end
    high = 24.0 if len(cut.rows) <= 6 else 18.0 if len(cut.rows) <= 16 else 14.0
    tops = _tops(drawing, cut.rows, high)
    for row, top in zip(cut.rows, tops, strict=True):
        said = "" if row.link else str(row.number)
        drawing.text(left - 6, top + high - 5, said, size=11.0, text_anchor="end", class_="t dim")
        drawing.box(left, top, end * scale, high - 2, fill="url(#hatch-idle)")
    _boxes(drawing, cut, boxes, tops, left, scale, high)
    if cut.apart:
        _break(drawing, left + end * scale / 2, tops[0], tops[-1] + high, cut.apart)
    drawing.y = tops[-1] + high + 4
    drawing.text(left, drawing.y + 12, "time", size=11.0, class_="t dim")
    arrow = drawing.y + 8
    begin = left + text_width("time", 11.0) + 8
    drawing.path([(begin, arrow), (width - 2, arrow)], class_="rule")
    if cut.apart:
        said = f"{cut.apart:,} more micro-batches"
        wide, middle = text_width(said, 11.0) + 10, left + end * scale / 2
        drawing.box(middle - wide / 2, drawing.y, wide, 16, class_="paper")
        drawing.text(middle, drawing.y + 12, said, size=11.0, text_anchor="middle")
    drawing.path(
        [(width - 8, arrow - 4), (width - 2, arrow), (width - 8, arrow + 4)], class_="rule"
    )
    drawing.y += 18
    return drawing.svg(f"Pipeline of {line.who}: micro-batches over stages and time")


def _tops(drawing: Drawing, rows: Sequence[Row], high: float) -> list[float]:
    """Where each row begins; a new island gets a line with its name."""
    tops, last = [], None
    for row in rows:
        if row.island != last:
            name = fit(row.island, drawing.width - 30, 13.0, middle=True)
            drawing.text(30, drawing.y + 13, name, size=12.0, class_="t strong")
            drawing.y += 19
            last = row.island
        tops.append(drawing.y)
        drawing.y += high
    return tops


def _boxes(
    drawing: Drawing,
    cut: Cut,
    boxes: Sequence[Box],
    tops: Sequence[float],
    left: float,
    scale: float,
    high: float,
) -> None:
    """The work itself; numbers of micro-batches where they have room."""
    middle = max(box.end for box in boxes) / 2.0
    for box in boxes:
        row = cut.rows[box.stage]
        colour = LINK if row.link else BACKWARD if box.backward else FORWARD
        long = (box.end - box.begin) * scale
        x, y = left + box.begin * scale, tops[box.stage]
        gap = 1.0 if long > 5 else 0.4
        # Chunks of a device take turns: every second one is paler.
        pale = 0.6 if box.chunk % 2 else None
        drawing.box(x, y, long - gap, high - 2, fill=colour, fill_opacity=pale)
        number = str(box.microbatch + 1 + (cut.apart if box.begin > middle else 0))
        if cut.chunks == 1 and text_width(number, 9.5) + 3 <= long:
            drawing.text(
                x + (long - gap) / 2, y + high / 2 + 2.5, number, size=9.5,
                text_anchor="middle", class_="", fill=ink_on(colour),
            )  # fmt: skip


def _break(drawing: Drawing, x: float, top: float, bottom: float, apart: int) -> None:
    """A torn strip over all rows: here the middle of the step is left out."""
    half, tooth = 7.0, 6.0
    steps = int((bottom - top + 8) / tooth) + 1
    left = [(x - half + (i % 2) * 4, top - 4 + i * tooth) for i in range(steps)]
    right = [(x + half + (i % 2) * 4, top - 4 + i * tooth) for i in range(steps)]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in [*left, *reversed(right)])
    tip = tag("title", f"{apart} more micro-batches")
    drawing.pieces.append(tag("polygon", tip, points=points, class_="paper"))
    drawing.path(left, class_="rule")
    drawing.path(right, class_="rule")


def timeline_caption(line: Pipeline, width: float) -> str:
    """What the picture shows and what it leaves out, in words."""
    cut = cut_of(line, most=12 if width <= NARROW else 24)
    shown = sum(not row.link for row in cut.rows)
    stages = f"{line.stages} stages" + (f" (drawn: {shown})" if shown < line.stages else "")
    drawn = f" (drawn: {cut.microbatches})" if cut.microbatches < line.microbatches else ""
    words = f"One lane of {line.who}: {stages}, {line.microbatches:,} micro-batches a step{drawn}."
    if line.chunks > 1:
        words += (
            f" Each device holds {line.chunks} chunks of layers and takes turns between them "
            "(interleaved; every second chunk is paler)."
        )
    part = 100.0 * line.bubble / line.seconds if line.seconds else 0.0
    words += f" Pipeline bubble: {format_seconds(line.bubble)}, {part:.1f} % of its step."
    if cut.apart:
        words += " The torn strip stands for the middle of the step, in which nothing changes."
    words += " A backward pass is drawn two times as long as a forward one"
    return words + ", three times with full recompute."
