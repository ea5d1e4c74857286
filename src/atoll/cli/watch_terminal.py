"""The page of `atoll watch` on a terminal: curve with its events, islands, goodput, last events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atoll.history import answers
from atoll.history.goodput import Goodput, goodput
from atoll.history.story import History
from atoll.history.telling import MARKS, duration, end_of_steps, marks_of, words_of
from atoll.training.curve import ASCII, UNICODE, Points, draw
from atoll.units import format_count, format_seconds

_WIDEST = 120
_MOST_ISLANDS = 16
_MOST_EVENTS = 6
_STYLES = {
    "computing": "green",
    "healing": "yellow",
    "starting": "yellow",
    "ended": "dim",
    "refused": "magenta",
    "left": "magenta",
}
_COLOURS = {
    "useful": "green",
    "lost_islands": "red",
    "joins": "yellow",
    "requantised": "magenta",
    "recomputed": "bright_red",
    "first_steps": "cyan",
    "uneven": "bright_cyan",
    "between_steps": "blue",
    "stopped": "bright_black",
}


def page(history: History, console: Console, *, now: float | None = None) -> RenderableType:
    """The page, fitted to the console."""
    width = min(_WIDEST, console.width)
    inside = width - 4
    ascii_only = console.options.ascii_only
    islands = answers.islands(history)
    found = goodput(history)
    cut: OverflowMethod = "crop" if ascii_only else "ellipsis"
    events = _events(history, cut)
    used = 14 + min(len(islands), _MOST_ISLANDS + 1) + len(events) + len(_parts(found))
    height = max(6, min(16, console.height - used))
    parts: list[RenderableType] = [_numbers(history, found), Text()]
    parts += _curve(history, width=inside, height=height, ascii_only=ascii_only)
    if islands:
        parts += [Text(), _table(islands, inside, time.time() if now is None else now, cut)]
    parts += [Text(), *_goodput(found, inside, ascii_only=ascii_only)]
    if events:
        parts += [Text(), *events]
    title = Text.assemble((" atoll ", "bold cyan"), (f"{history.folder} ", "bold"))
    return Panel(
        Group(*parts),
        title=title,
        title_align="left",
        subtitle=Text(f" {history.record.contract} ", "dim"),
        subtitle_align="right",
        box=box.ASCII if ascii_only else box.ROUNDED,
        border_style="blue",
        width=width,
    )


def _numbers(history: History, found: Goodput) -> Text:
    line = Text()
    style = {"running": "bold green", "finished": "bold green", "failed": "bold red"}
    line.append(history.state, style.get(history.state, "bold yellow"))
    last = history.lines[-1] if history.lines else None
    step = last.step if last else 0
    line.append(f"  step {step:,} of {history.total_steps:,}   ")
    if last is not None:
        line.append("loss ", "dim").append(f"{last.loss:.4f}", "bold cyan").append("   ")
        if history.val_losses:
            newest = list(history.val_losses.values())[-1]
            line.append("validation ", "dim").append(f"{newest:.4f}", "yellow").append("   ")
        line.append(f"{last.tokens / max(last.seconds, 1e-9):,.0f}", "bold")
        line.append(" tokens/s   ", "dim")
        tokens = sum(one.tokens for one in history.lines)
        line.append(format_count(tokens)).append(" tokens   ", "dim")
    return line.append("goodput ", "dim").append(f"{found.ratio:.0%}", "bold")


def _curve(history: History, *, width: int, height: int, ascii_only: bool) -> list[Text]:
    train, validation = Points(), Points()
    for line in history.lines:
        train.add(line.step, line.loss)
    last = history.lines[-1].step if history.lines else 0
    for step, loss in history.val_losses.items():
        if step <= last:
            validation.add(step, loss)
    lines = draw(
        train.series(),
        validation.series(),
        width=width,
        height=height,
        last_step=history.total_steps,
        glyphs=ASCII if ascii_only else UNICODE,
    )
    marks = [(step, kind) for step, kind in marks_of(history) if step <= last]
    if not marks or width < 24:
        return lines
    shown = _put_marks(lines, marks, end=end_of_steps(last, history.total_steps))
    legend = Text()
    for kind, (sign, style, meaning) in MARKS.items():
        if kind in shown:
            legend.append(sign, style).append(f" {meaning}   ", "dim")
    return [*lines, legend]


def _put_marks(lines: list[Text], marks: Sequence[tuple[int, str]], *, end: float) -> set[str]:
    """Put the marks onto the drawn curve, or onto its axis where the curve has no dot; which kinds
    can be seen now."""
    rule = lines[-2].plain
    first = len(rule) - len(rule.lstrip()) + 1
    columns = len(rule) - first
    chosen: dict[int, str] = {}
    rank = list(MARKS)
    for step, kind in marks:
        column = min(columns - 1, max(0, int(step / end * columns)))
        if column not in chosen or rank.index(kind) < rank.index(chosen[column]):
            chosen[column] = kind
    for column, kind in chosen.items():
        place = first + column
        rows = [row for row, line in enumerate(lines[:-2]) if line.plain[place : place + 1].strip()]
        row = rows[len(rows) // 2] if rows else len(lines) - 2
        sign, style, _ = MARKS[kind]
        line = lines[row]
        lines[row] = line[:place] + Text(sign, style) + line[place + 1 :]
    return set(chosen.values())


def _table(
    islands: Sequence[Mapping[str, Any]], width: int, now: float, cut: OverflowMethod
) -> Table:
    """One row an island, those that are here first; the rest of many in a last row."""
    ordered = sorted(islands, key=lambda one: one["state"] not in ("computing", "healing"))
    shown, hidden = ordered[:_MOST_ISLANDS], ordered[_MOST_ISLANDS:]
    most = max(1, *(one["last_grains"] for one in islands))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    table.add_column("island", no_wrap=True, overflow=cut, max_width=24)
    if width >= 70:
        table.add_column("chip", no_wrap=True, overflow=cut, max_width=20)
        table.add_column("now", no_wrap=True, overflow=cut)
    for name in ("grains", "of all", "grains/s"):
        table.add_column(name, justify="right", no_wrap=True, overflow=cut)
    table.add_column("state", no_wrap=True, overflow=cut)
    table.add_column("last seen", no_wrap=True, overflow=cut)
    for one in shown:
        speed, seen = one["grains_per_second"], one["last_seen"]
        bar = ProgressBar(total=most, completed=one["last_grains"], width=12, complete_style="cyan")
        here = one["state"] in ("computing", "healing", "ended")
        row: list[RenderableType] = [Text(one["island"], "bold")]
        if width >= 70:
            row += [Text(one["chip"]), bar if here else Text()]
        row += [
            str(one["last_grains"]) if here else "",
            f"{one['share']:.0%}",
            "" if speed is None or not here else f"{speed:.1f}",
            Text(one["state"], _STYLES.get(one["state"], "red")),
            "" if seen is None else f"step {one['last_step']:,}, {_ago(now - seen)}",
        ]
        table.add_row(*row)
    if hidden:
        table.add_row(Text(f"{len(hidden)} more", "dim"))
    return table


def _ago(seconds: float) -> str:
    """How long ago, in whole seconds."""
    return "now" if seconds < 2 else f"{format_seconds(round(seconds))} ago"


def _parts(found: Goodput) -> dict[str, float]:
    parts = {"useful": found.useful_seconds, **found.lost_seconds}
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def _goodput(found: Goodput, width: int, *, ascii_only: bool) -> list[Text]:
    """A bar of the wall time, and a line for each cause."""
    parts = _parts(found)
    if not parts:
        return []
    bar, used, total = Text(), 0, 0.0
    for name, seconds in parts.items():
        total += seconds
        end = round(width * total / found.wall_seconds)
        sign = ("#" if name == "useful" else name[0]) if ascii_only else "\u2588"
        bar.append(sign * max(0, end - used), _COLOURS[name])
        used = max(used, end)
    lines = [Text(f"where {duration(found.wall_seconds)} went", "dim"), bar]
    for name, seconds in parts.items():
        words = name.replace("_", " ")
        line = Text().append(f"{seconds / found.wall_seconds:7.1%} ", _COLOURS[name])
        lines.append(line.append(f" {words}", "").append(f"  {duration(seconds)}", "dim"))
    return lines


def _events(history: History, cut: OverflowMethod) -> list[Text]:
    told = [event for event in history.events if event["kind"] != "checkpointed"]
    lines = []
    for event in told[-_MOST_EVENTS:]:
        clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        step = f"step {event['step']:,} " if "step" in event else ""
        line = Text(no_wrap=True, overflow=cut).append(f"{clock} ", "dim")
        lines.append(line.append(f"{step}{words_of(event)}", ""))
    return lines
