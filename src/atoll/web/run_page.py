"""A run as a page: the file of `atoll watch --page`, which needs nothing else, no script either.

`sections_of` is the same for a place inside another page.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.history import answers
from atoll.history.goodput import CAUSES, Goodput, goodput
from atoll.history.story import History
from atoll.history.telling import MARKS, clock_of, duration, end_of_steps, marks_of, words_of
from atoll.planning.page import HATCHES, POLICY, STYLE, table
from atoll.planning.svg import NARROW, WIDE, Drawing, escape, ink_on, tag, text_width
from atoll.training.curve import Axis, fit_axis, ticks
from atoll.units import format_count

RELOAD_SECONDS = 5
COLOURS: Mapping[str, str] = {
    "useful": "#0072b2",
    "lost_islands": "#d55e00",
    "joins": "#009e73",
    "requantised": "#cc79a7",
    "recomputed": "#a03020",
    "first_steps": "#56b4e9",
    "uneven": "#e69f00",
    "between_steps": "#7d8b99",
    "stopped": "#c3cbd3",
}
"""Of useful time and of each cause that time is lost to."""

_MARK_COLOURS = {
    "lost": "#d55e00",
    "left": "#aa4499",
    "joined": "#009e73",
    "healed": "#117733",
    "resumed": "#0072b2",
    "split": "#7d8b99",
}
_STATE_COLOURS = {
    "computing": "#009e73",
    "healing": "#e69f00",
    "starting": "#e69f00",
    "ended": "#7d8b99",
    "left": "#aa4499",
    "refused": "#aa4499",
}
_MOST_ISLANDS = 200
_MOST_EVENTS = 60
RUN_STYLE = """
.curve { stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; }
.val { fill: #e69f00; stroke: var(--paper); stroke-width: 1.2; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
.state { white-space: nowrap; }
td.n { min-width: 4ch; }
"""
"""What the sections of a run need beside the style sheet of all pages."""


def html_of(history: History, *, reload: bool = False) -> str:
    """The whole page; with `reload` a browser loads it again every few seconds."""
    name = history.folder.name or str(history.folder)
    body = [
        *sections_of(history),
        tag("footer", f"atoll watch, {escape(clock_of(time.time()))}. Losses in nats a token. "
            "Goodput measures the run against itself; lost seconds are estimates from the ledger."),
    ]  # fmt: skip
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", escape(f"{name}: {history.state}")),
        f"<style>{STYLE}{RUN_STYLE}</style>",
    ]
    if reload:
        head.insert(1, tag("meta", http_equiv="refresh", content=str(RELOAD_SECONDS)))
    whole = tag("html", tag("head", *head), tag("body", HATCHES, tag("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def sections_of(history: History) -> list[str]:
    """Name, numbers, curve, lost time, islands and events: markup for a place in a page that has
    `STYLE` and `RUN_STYLE`."""
    found = goodput(history)
    return [
        tag("h1", escape(history.folder.name or str(history.folder))),
        tag("p", escape(_head(history)), class_="dim"),
        _tiles(history, found),
        *_curves(history),
        *_time(found),
        *_islands(history),
        *_events(history),
    ]


def _head(history: History) -> str:
    parts = [history.state]
    if history.sessions:
        parts.append(f"began {clock_of(history.sessions[0].started)}")
        if len(history.sessions) > 1:
            parts.append(f"{len(history.sessions)} sessions")
    parts.append(f"contract: {history.record.contract}")
    if history.num_damaged:
        parts.append(f"{history.num_damaged} damaged lines of the ledger left out")
    return ", ".join(parts)


def _tiles(history: History, found: Goodput) -> str:
    last = history.lines[-1] if history.lines else None
    step = last.step if last else 0
    tiles = [(f"{step:,}", f"of {history.total_steps:,} steps")]
    if last is not None:
        newest = list(history.val_losses.values())[-1:]
        text = f"validation {newest[0]:.4f}" if newest else "no validation yet"
        tiles.append((f"{last.loss:.4f}", f"loss; {text}"))
        speed = last.tokens / max(last.seconds, 1e-9)
        tokens = sum(line.tokens for line in history.lines)
        tiles.append((f"{speed:,.0f}", f"tokens/s; {format_count(tokens)} tokens"))
    here = [one for one in history.islands.values() if one.state in ("computing", "healing")]
    if history.running:
        tiles.append((str(len(here)), f"islands here, of {len(history.islands)} seen"))
    else:
        tiles.append((str(len(history.islands)), "islands took part"))
    tiles.append((f"{found.ratio:.1%}", f"goodput of {duration(found.wall_seconds)}"))
    cells = [
        tag("div", tag("b", escape(a)), tag("span", escape(b)), class_="tile") for a, b in tiles
    ]
    return tag("div", *cells, class_="tiles")


# ---------------------------------------------------------------------- the curve


def _curves(history: History) -> list[str]:
    if not history.lines:
        return [tag("h2", "Loss"), tag("p", "The curve begins with the first step.")]
    (wide, shown), (narrow, also) = (_curve(history, width) for width in (WIDE, NARROW))
    legend = [
        _legend_entry("var(--blue)", "loss"),
        *([_legend_entry("#e69f00", "validation")] if history.val_losses else []),
    ]
    legend += [
        _legend_entry(_MARK_COLOURS[kind], f"{sign} {meaning}")
        for kind, (sign, _, meaning) in MARKS.items()
        if kind in shown | also
    ]
    return [
        tag("h2", "Loss and what happened"),
        tag("figure", wide, narrow, tag("ul", *legend, class_="legend")),
    ]


def _curve(history: History, width: float) -> tuple[str, set[str]]:
    """The loss by step, validation as diamonds, a line from a mark for each event; which kinds of
    marks can be seen."""
    wide = width > NARROW
    size, left, right = (13.0, 56.0, 12.0) if wide else (12.0, 42.0, 6.0)
    top, height = 34.0, 300.0 if wide else 220.0
    drawing = Drawing(width)
    losses = [(float(line.step), line.loss) for line in history.lines]
    last = losses[-1][0]
    checks = [(float(s), loss) for s, loss in history.val_losses.items() if s <= last]
    vertical = fit_axis([value for _, value in (*losses, *checks)])
    horizontal = Axis(low=0.0, high=end_of_steps(int(last), history.total_steps), log=False)

    def x_of(step: float) -> float:
        return left + (width - left - right) * horizontal.at(step)

    def y_of(loss: float) -> float:
        return top + height * (1.0 - vertical.at(loss))

    for value in ticks(vertical, 6 if wide else 4):
        y = y_of(value)
        drawing.line(left, y, width - right, y, class_="thin")
        drawing.text(left - 8, y + 4, f"{value:.3g}", size=size, text_anchor="end", class_="dim")
    whole = [v for v in ticks(horizontal, 8 if wide else 4) if v % 1 == 0]
    for value in whole:
        label = f"{value:,.0f}" if value else "step 0"
        x = min(x_of(value), width - right - text_width(label, size) / 2)
        drawing.text(x, top + height + 20, label, size=size, text_anchor="middle", class_="dim")
    drawing.line(left, top + height, width - right, top + height, class_="rule")
    shown = _draw_marks(drawing, history, x_of, top=top, height=height)
    drawing.path(_binned([(x_of(step), y_of(loss)) for step, loss in losses]), class_="curve")
    for step, loss in _thinned(checks, most=120 if wide else 40):
        x, y, r = x_of(step), y_of(loss), 4.5 if wide else 3.8
        corners = f"{x:.1f},{y - r:.1f} {x + r:.1f},{y:.1f} {x:.1f},{y + r:.1f} {x - r:.1f},{y:.1f}"
        tip = tag("title", escape(f"validation {loss:.4f} after step {step:,.0f}"))
        drawing.pieces.append(tag("polygon", tip, points=corners, class_="val"))
    return drawing.svg("Loss by step, with events", height=top + height + 30), shown


def _draw_marks(
    drawing: Drawing, history: History, x_of: Any, *, top: float, height: float
) -> set[str]:
    """A sign above the curve for each place where something happened, and a line down from it;
    which kinds can be seen."""
    wide = drawing.width > NARROW
    r = 8.0 if wide else 6.5
    places: list[list[tuple[int, str]]] = []  # what would overlap shares a sign
    for mark in marks_of(history):
        if places and x_of(mark[0]) < x_of(places[-1][0][0]) + 2 * r + 1:
            places[-1].append(mark)
        else:
            places.append([mark])
    shown = set()
    rank = list(MARKS)
    for marks in places:
        step, kind = min(marks, key=lambda mark: rank.index(mark[1]))
        counts = Counter(MARKS[each][2] for _, each in marks)
        first, final = min(marks)[0], max(marks)[0]
        where = f"step {first:,}" if first == final else f"steps {first:,} to {final:,}"
        words = ", ".join(f"{number} {word}" for word, number in counts.items())
        x, colour = x_of(step), _MARK_COLOURS[kind]
        drawing.line(
            x, top - 8, x, top + height, stroke=colour, stroke_width=1, stroke_dasharray="3 3",
            stroke_opacity=0.7,
        )  # fmt: skip
        tip = f"{where}: {words}"
        shown.add(kind)
        drawing.pieces.append(
            tag("circle", tag("title", escape(tip)), cx=x, cy=top - 16, r=r, fill=colour)
        )
        drawing.text(
            x, top - 12, MARKS[kind][0], size=12.0 if wide else 10.0, text_anchor="middle",
            class_=None, fill=ink_on(colour), font_weight=700, pointer_events="none",
        )  # fmt: skip
    return shown


def _binned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """One mean point a pixel, in the order of x; a lone point becomes a short line."""
    pixels: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        pixels[int(point[0])].append(point)
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in pixels.values()
    ]
    return means if len(means) > 1 else [means[0], (means[0][0] + 2, means[0][1])]


def _thinned(points: Sequence[tuple[float, float]], *, most: int) -> Sequence[tuple[float, float]]:
    every = max(1, -(-len(points) // most))
    return points[::-1][::every][::-1]


# ---------------------------------------------------------------------- the time


def _time(found: Goodput) -> list[str]:
    parts = {"useful": found.useful_seconds, **found.lost_seconds}
    parts = {name: seconds for name, seconds in parts.items() if seconds > 0}
    if not parts:
        return []
    meanings = {"useful": "steps, at the pace of comparable ones", **CAUSES}
    rows = [
        [
            tag("span", _dot(COLOURS[name]) + escape(name.replace("_", " ")), class_="state"),
            escape(f"{seconds / found.wall_seconds:.1%}"),
            escape(duration(seconds)),
            escape(meanings[name]),
        ]
        for name, seconds in parts.items()
    ]
    return [
        tag("h2", "Where the time went"),
        tag("figure", *(_bar(parts, found.wall_seconds, width) for width in (WIDE, NARROW))),
        table(["where", "part", "time", "what"], rows, numbers=("part", "time"), stacks=False),
    ]


def _bar(parts: Mapping[str, float], wall: float, width: float) -> str:
    drawing, x, height = Drawing(width), 0.0, 40.0
    for name, seconds in parts.items():
        wide = width * seconds / wall
        colour, part = COLOURS[name], f"{seconds / wall:.1%}"
        tip = f"{name.replace('_', ' ')}: {part}, {duration(seconds)}"
        drawing.box(x, 0, max(wide, 0.75), height, fill=colour, tip=tip)
        label = f"{name.replace('_', ' ')} {part}"
        for text in (label, part):
            if text_width(text, 13) + 12 < wide:
                drawing.text(
                    x + wide / 2, height / 2 + 5, text, text_anchor="middle", class_=None,
                    fill=ink_on(colour), pointer_events="none",
                )  # fmt: skip
                break
        x += wide
    return drawing.svg("Wall time by cause", height=height)


# ---------------------------------------------------------------------- islands and events


def _islands(history: History) -> list[str]:
    here = ("computing", "healing", "starting")
    told = sorted(answers.islands(history), key=lambda one: one["state"] not in here)
    if not told:
        return []
    most = max(1, *(one["last_grains"] for one in told))
    rows = []
    for one in told[:_MOST_ISLANDS]:
        state, speed = one["state"], one["grains_per_second"]
        colour = _STATE_COLOURS.get(state, "#d55e00")
        present = state in (*here, "ended")
        grains = one["last_grains"] if present else 0
        bar = tag("span", "", class_="gain", style=f"width:{round(70 * grains / most)}px")
        seen = one["last_seen"]
        events = ", ".join(f"{number} {kind}" for kind, number in one["events"].items())
        place = one["site"] + (" (leased)" if one["leased"] else "")
        rows.append(
            [
                escape(one["island"]),
                escape(", ".join(text for text in (one["chip"], place) if text)),
                tag("span", _dot(colour) + escape(state), class_="state"),
                f"{bar} {grains or ''}" if present else "",
                escape(f"{one['share']:.1%}"),
                "" if speed is None or not present else f"{speed:.1f}",
                "" if seen is None else escape(f"step {one['last_step']:,}, {clock_of(seen)}"),
                escape(events),
            ]
        )
    head = ["island", "chip", "state", "grains now", "of all", "grains/s", "last seen", "events"]
    more = len(told) - _MOST_ISLANDS
    return [
        tag("h2", "Islands"),
        table(head, rows, numbers=("of all", "grains/s")),
        tag("p", f"and {more} more", class_="dim") if more > 0 else "",
    ]


def _events(history: History) -> list[str]:
    told = [event for event in history.events if event["kind"] != "checkpointed"]
    if not told:
        return []
    rows = [
        [
            escape(clock_of(event["time"])),
            f"{event['step']:,}" if isinstance(event.get("step"), int) else "",
            escape(words_of(event)),
        ]
        for event in reversed(told[-_MOST_EVENTS:])
    ]
    more = len(told) - len(rows)
    text = f"The newest first; {more:,} older ones and all checkpoints are in events.jsonl."
    return [
        tag("h2", "Events"),
        table(["time", "step", "what"], rows, numbers=("step",)),
        tag("p", text, class_="dim") if more > 0 else "",
    ]


def _dot(colour: str) -> str:
    return tag("span", "", class_="dot", style=f"background:{colour}")


def _legend_entry(colour: str, text: str) -> str:
    square = tag("rect", width=16, height=12, rx=2, fill=colour)
    return tag("li", tag("svg", square, viewBox="0 0 16 12", aria_hidden="true"), escape(text))
