"""Report: an answer of the planner as one page to look at: pictures first, tables below.

It is for people; scripts read the plan file or `atoll plan --json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from atoll import __version__
from atoll.planning.explain import finish_text, headline, shown_islands
from atoll.planning.options import USABLE
from atoll.planning.page import page, table
from atoll.planning.pictures import legend_of, memory_picture, time_picture
from atoll.planning.segments import HATCHED, Segment
from atoll.planning.sitemap import bounding_ends, bounding_link, bounding_uplinks, map_picture
from atoll.planning.svg import NARROW, WIDE, escape, tag
from atoll.planning.timeline import (
    BACKWARD,
    FORWARD,
    LINK,
    pipeline_of,
    timeline_caption,
    timeline_picture,
)
from atoll.units import format_count, format_seconds

if TYPE_CHECKING:
    from atoll.plan import Estimate
    from atoll.planning.calendar import Calendar
    from atoll.planning.deadline import Deadline
    from atoll.planning.planner import Answer
    from atoll.planning.sharing import Sharing
    from atoll.planning.whatif import WhatIf


TILED = ("step", "speed", "finish")
"""Lines of the headline that stand in large letters above the others."""


def report_of(
    answer: Answer,
    calendar: Calendar | None = None,
    *,
    deadline: Deadline | None = None,
    what_if: Sequence[WhatIf] = (),
    sharing: Sharing | None = None,
) -> str:
    """The page as HTML: no script, nothing loaded from anywhere."""
    name = answer.recipe.name
    return page(
        f"Plan of {name}",
        tag("h1", f"Plan of {escape(name)}"),
        tag("p", _summary(answer), class_="dim"),
        tag("div", *_tiles(answer, calendar), class_="tiles"),
        tag(
            "dl",
            *(
                tag("dt", escape(name)) + tag("dd", escape(text))
                for name, text in headline(answer)
                if name not in TILED
            ),
        ),
        _deadline(deadline),
        _sharing(sharing),
        _calendar(calendar),
        _what_if(what_if, calendar, deadline),
        _time(answer),
        _memory(answer),
        _timeline(answer),
        _map(answer),
        _layouts(answer),
        _estimates(answer),
        _helps(answer),
        _rejected(answer),
        _notes(answer),
        _footer(answer),
    )


def pictures_of(answer: Answer) -> list[str]:
    """Its pictures of a step's time, of memory, and of the sites: markup for a place in a page."""
    return [_time(answer), _memory(answer), _map(answer)]


def _summary(answer: Answer) -> str:
    """One sentence: what, where."""
    sites = {one.island.site for one in answer.islands}
    of = sum(island.num_chips for island in answer.fleet.island)
    islands = _count(len(answer.islands), "island")
    return escape(
        f"{answer.chips:,} of {of:,} chips: {islands} at {_count(len(sites), 'site')}, planned by "
        f"Atoll {__version__}. Every number is an estimate; its range is beside it."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tiles(answer: Answer, calendar: Calendar | None) -> list[str]:
    """The numbers that a reader looks for."""
    step, rate = answer.step_seconds, answer.tokens_per_second
    finish, days = answer.finish_seconds, answer.finish_days()
    spans = [format_seconds(seconds) for seconds in (finish.low, finish.mid, finish.high)]
    ends = f"done after {spans[1]} ({spans[0]} to {spans[2]})"
    if days is not None:
        ends = f"done, {spans[1]} from {answer.day or 'today'} ({days[0]} to {days[2]})"
    last = str(days[1]) if days is not None else spans[1]
    if calendar is not None:
        first, last, late = (str(day or "never") for day in calendar.done_by().values())
        ends = f"done by, as the fleet changes and chips fail ({first} to {late})"
    step_range = f"{format_seconds(step.low)} to {format_seconds(step.high)}, {step.basis}"
    rate_range = f"{format_count(rate.low)} to {format_count(rate.high)}"
    shown = [
        (format_seconds(step.mid), f"a step ({step_range})"),
        (format_count(rate.mid), f"tokens a second ({rate_range})"),
        (last, ends),
        (f"{100.0 * answer.mfu:.1f} %", "of the chips' peak (MFU)"),
        (f"{answer.chips:,}", f"chips on {_count(len(answer.islands), 'island')}"),
    ]
    return [
        tag("div", tag("b", escape(number)), tag("span", escape(what)), class_="tile")
        for number, what in shown
    ]


def pictured(
    draw: Callable[[float], str], legend: Sequence[tuple[str, str]], *captions: str
) -> str:
    """A picture for both widths, its legend (fill, name), captions as markup."""
    entries = [tag("li", _swatch(fill), escape(name)) for fill, name in legend]
    return tag(
        "figure",
        draw(WIDE),
        draw(NARROW),
        tag("ul", *entries, class_="legend") if entries else "",
        tag("figcaption", *captions) if captions else "",
    )


def _swatch(fill: str) -> str:
    """A patch of colour; "limit" is a dashed line."""
    if fill == "limit":
        patch = tag("line", x1=8, y1=0, x2=8, y2=12, class_="limit")
    else:
        patch = tag("rect", width=16, height=12, rx=2, fill=fill, class_="thin")
    return tag("svg", patch, viewBox="0 0 16 12", aria_hidden="true")


def _legend(segments: Sequence[Segment]) -> list[tuple[str, str]]:
    return [
        (f"url(#hatch-{one.key})" if one.key in HATCHED else one.colour, one.name)
        for one in segments
    ]


def _memory(answer: Answer) -> str:
    segments, _ = legend_of(answer)
    legend = [*_legend(segments), ("limit", f"a plan fills {100.0 * USABLE:.0f} % at most")]
    caption = "The frame is the memory of one device. What is empty left of the line is free."
    if answer.way.chain is not None:
        caption += " In a chain the fullest stage of each island is shown."
    draw = _drawn(answer, memory_picture)
    return section("Memory of a device", pictured(draw, legend, tag("p", caption)))


def _drawn(answer: Answer, picture: Callable[[Answer, float], str]) -> Callable[[float], str]:
    return lambda width: picture(answer, width)


def _time(answer: Answer) -> str:
    _, segments = legend_of(answer)
    caption = (
        "Each bar is one step. Blue and green compute, orange and pink move data, grey is lost. "
        "Hidden traffic runs beside computing and takes no time of its own."
    )
    if answer.way.chain is not None:
        caption = (
            "Each bar is one step, seen by the slowest stage of an island; all stages move at the "
            "pace of the slowest one. The pipeline fills and drains once a step (bubble)."
        )
    figure = pictured(_drawn(answer, time_picture), _legend(segments), tag("p", caption))
    return section("Where a step's time goes", figure)


def _timeline(answer: Answer) -> str:
    line = pipeline_of(answer)
    if line is None:
        devices = max(one.layout.lane_devices for one in answer.islands)
        words = (
            "No island cuts its layers into pipeline stages: every lane holds all layers on "
            f"{_count(devices, 'device')}{' at most' if len(answer.islands) > 1 else ''}, so there "
            "is no bubble and nothing to draw."
        )
        return section("Pipeline", tag("p", words))
    legend = [(FORWARD, "forward"), (BACKWARD, "backward"), ("url(#hatch-idle)", "waiting")]
    if any(row.link for row in line.rows):
        legend.append((LINK, "on the link"))
    captions = [
        tag("p", escape(timeline_caption(line, width)), class_=kind)
        for width, kind in ((WIDE, "wide"), (NARROW, "narrow"))
    ]
    return section(
        "Pipeline", pictured(lambda width: timeline_picture(line, width), legend, *captions)
    )


def _map(answer: Answer) -> str:
    out = len(answer.fleet.island) > len(answer.islands)
    caption = "Islands with a dashed frame are left out, with the reason. " if out else ""
    if answer.way.chain is not None:
        caption += f"What sets the pace: {answer.way.chain.bound.rstrip(',')}."
    elif len(answer.way.names) > 1:
        seconds = answer.way.exchange.seconds
        caption += f"An exchange takes {format_seconds(seconds)} over {answer.way.exchange.bound}"
        caption += " (orange)." if bounding_link(answer) or not bounding_ends(answer) else "."
        uplinks = bounding_uplinks(answer)
        if uplinks:
            caption += f" What is narrow is the uplink of {', '.join(uplinks)} (orange)."
    captions = [tag("p", escape(caption))] if caption else []
    figure = pictured(_drawn(answer, map_picture), [], *captions)
    return section("Sites, islands, links", figure)


def _calendar(calendar: Calendar | None) -> str:
    """The islands over time with the tokens, and the periods as a table."""
    if calendar is None:
        return ""
    from atoll.planning.calendartable import done_text, drawn_text, shown_periods
    from atoll.planning.costs import cost_of, cost_text
    from atoll.planning.gantt import ABSENT, BUSY, CURVE, SPARE, calendar_picture

    legend = [(BUSY, "chips that take part"), (SPARE, "present, not taking part"),
              (ABSENT, "not there"), (CURVE, "tokens done")]  # fmt: skip
    words = f"Done by {done_text(calendar)}. Cost: {cost_text(cost_of(calendar))}."
    caption = (
        "A row is an island, its height the most chips that it holds. Thin lines: the fewest chips "
        "at the slow end of a step, and the most at the fast end."
    )
    if calendar.draws is not None:
        words += f" Drawn: {drawn_text(calendar)}."
        caption += " In the time of the orange field 8 of 10 drawn fleets are done."
    figure = pictured(lambda width: calendar_picture(calendar, width), legend, tag("p", caption))
    head, rows = shown_periods(calendar, most=100)
    cells = [[escape(cell) for cell in row] for row in rows]
    notes = [tag("li", escape(note)) for note in calendar.notes]
    return section(
        "As the fleet changes", tag("p", escape(words)), figure,
        table(head, cells, numbers=tuple(head[2:])),
        tag("ul", *notes, class_="notes") if notes else "",
    )  # fmt: skip


def _sharing(found: Sharing | None) -> str:
    """The day of a fleet that lends chips by the hour: picture, lines, table."""
    if found is None:
        return ""
    from atoll.planning.daypicture import LEGEND, day_picture
    from atoll.planning.sharetable import notes, shown_hours, summary

    legend = [*LEGEND, ("url(#hatch-waiting)", "on their way")]
    figure = pictured(lambda width: day_picture(found, width), legend)
    lines = [tag("dt", escape(name)) + tag("dd", escape(text)) for name, text in summary(found)]
    head, rows = shown_hours(found)
    cells = [[escape(cell) for cell in row] for row in rows]
    told = [tag("li", escape(note)) for note in notes(found)]
    return section(
        "By the hour: people and training", tag("dl", *lines), figure,
        table([escape(name) for name in head], cells, numbers=tuple(head[1:])),
        tag("ul", *told, class_="notes"),
    )  # fmt: skip


def _deadline(deadline: Deadline | None) -> str:
    """The largest model by a day, on all courses."""
    if deadline is None:
        return ""
    from atoll.planning.deadline import notes, summary

    lines = [tag("dt", escape(name)) + tag("dd", escape(text)) for name, text in summary(deadline)]
    told = [tag("li", escape(note)) for note in notes(deadline)]
    title = f"The largest model by {deadline.by}"
    return section(title, tag("dl", *lines), tag("ul", *told, class_="notes"))


def _what_if(found: Sequence[WhatIf], calendar: Calendar | None, deadline: Deadline | None) -> str:
    """Other fleets, and the days that they cost or save."""
    if not found or calendar is None:
        return ""
    from atoll.planning.whatif import shown

    head, rows = shown(found, calendar, deadline)
    cells = [[escape(cell) for cell in row] for row in rows]
    return section("What if", table(head, cells, numbers=tuple(head[1:])))


def section(title: str, *content: str) -> str:
    """A part of a page below its heading; both are markup already."""
    return tag("section", tag("h2", title), *content)


def _layouts(answer: Answer) -> str:
    head, rows = shown_islands(answer)
    cells = [[escape(cell) for cell in row] for row in rows]
    words = tuple(name for name in head if name not in ("island", "chip", "layout", "site"))
    return section("Layout of every island", table(head, cells, numbers=words))


def _estimates(answer: Answer) -> str:
    """Low, mid and high of what is not known exactly, and what it rests on."""

    def row(name: str, one: Estimate, text: Callable[[float], str]) -> list[str]:
        return [name, *(escape(text(size)) for size in (one.low, one.mid, one.high))]

    rows = [
        row("seconds a step", answer.step_seconds, format_seconds),
        row("tokens a second", answer.tokens_per_second, format_count),
        row("whole run", answer.finish_seconds, format_seconds),
    ]
    days = answer.finish_days()
    if days is not None:
        rows.append(["last step on", *map(str, days)])
    basis = {
        "fitted": "formulas whose coefficients were fitted on published runs",
        "measured": "a measurement of these very chips",
        "spec": "published figures alone",
    }[answer.step_seconds.basis]
    head = ["what", "low", "mid", "high"]
    words = f"Basis: {answer.step_seconds.basis}, that is, {basis}."
    return section(
        "Estimates", table(head, rows, numbers=("low", "mid", "high"), stacks=False),
        tag("p", words, class_="dim"),
    )  # fmt: skip


def _helps(answer: Answer) -> str:
    """What would make the run faster, the most first."""
    if not answer.helps:
        return ""
    most = max(gain for _, gain in answer.helps)
    rows = []
    for what, gain in answer.helps:
        bar = tag("span", " ", class_="gain", style=f"width: {200.0 * gain / most:.0f}px")
        rows.append([escape(what), f"+{gain:,.0f}", bar])
    head = ["what", "tokens/s", ""]
    return section("What would help", table(head, rows, numbers=("tokens/s",)))


def _rejected(answer: Answer) -> str:
    if not answer.rejected:
        return ""
    rows = [[escape(one.what), escape(one.why)] for one in answer.rejected]
    return section("Runners-up, and why they lost", table(["what", "why not"], rows))


def _notes(answer: Answer) -> str:
    notes = [tag("li", escape(note)) for note in answer.notes]
    return section("Notes", tag("ul", *notes, class_="notes")) if notes else ""


def _footer(answer: Answer) -> str:
    """What the page was made of."""
    parts = [
        f"Recipe {answer.recipe.name}",
        f"fleet {answer.fleet.digest()}",
        f"first day {answer.day}" if answer.day is not None else "first day: today",
        f"finish {finish_text(answer)}",
        f"contract {answer.contract}",
        f"executor {answer.executor}",
        f"Atoll {__version__}",
    ]
    return tag("footer", tag("p", escape("; ".join(parts))))
