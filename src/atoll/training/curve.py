"""A learning curve drawn with characters: braille dots for the training loss, marks for validation.

It is a picture for a terminal, not the record: the ledger and the TensorBoard files hold every
value, while a long series is thinned here to a bounded number of points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

_MOST_POINTS = 4096
# From this ratio of largest to smallest value on, equal steps of the logarithm show more.
_LOG_FROM = 3.0
# Bit of each dot of a braille character, by row and column of its 4 x 2 grid (Unicode 2800-28FF).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """The characters of a drawing: how a cell's dots, its marks and the axes look."""

    cell: Callable[[int], str]
    mark: str
    vertical: str
    tick: str
    corner: str
    horizontal: str


def _ascii_cell(dots: int) -> str:
    if not dots:
        return " "
    upper, lower = dots & 0x1B, dots & 0xE4
    return ":" if upper and lower else "'" if upper else "."


UNICODE = Glyphs(
    cell=lambda dots: chr(0x2800 + dots) if dots else " ",
    mark="\u25c6",
    vertical="\u2502",
    tick="\u2524",
    corner="\u2514",
    horizontal="\u2500",
)
ASCII = Glyphs(cell=_ascii_cell, mark="o", vertical="|", tick="+", corner="+", horizontal="-")


class Points:
    """A series of (step, value) that never grows beyond a bound: neighbours are averaged."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []
        self._merged = 1
        self._open: list[tuple[float, float]] = []

    def add(self, step: int, value: float) -> None:
        """Append a point; values that are not finite are left out."""
        if not math.isfinite(value):
            return
        self._open.append((float(step), value))
        if len(self._open) < self._merged:
            return
        self._points.append(_mean(self._open))
        self._open.clear()
        if len(self._points) >= _MOST_POINTS:
            self._points = [_mean(self._points[i : i + 2]) for i in range(0, _MOST_POINTS, 2)]
            self._merged *= 2

    def series(self) -> list[tuple[float, float]]:
        """All points, ascending if they were added so."""
        return self._points + ([_mean(self._open)] if self._open else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range of values and how it is spread: `at` gives 0 at the low end and 1 at the high."""

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Where `value` lies on the axis, not limited to 0 ... 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def fit_axis(values: Sequence[float]) -> Axis:
    """An axis that holds all `values` with a little air, logarithmic where that shows more."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM:
        return Axis(low=low / 1.03, high=high * 1.03, log=True)
    size = max(abs(low), abs(high), 1e-3)
    air = max(0.05 * (high - low), 1e-4 * size)
    return Axis(low=low - air, high=high + air, log=False)


def ticks(axis: Axis, most: int) -> list[float]:
    """At most about `most` round numbers inside the axis, ascending."""
    if axis.log:
        for mantissas in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            exponents = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)))
            found = [m * 10.0**e for e in exponents for m in mantissas]
            found = [value for value in found if axis.low <= value <= axis.high]
            if len(found) <= most:
                break
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / most)]
    rough = (axis.high - axis.low) / max(1, most)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10, 20) if unit * m >= rough)
    first = math.ceil(axis.low / step)
    return [i * step for i in range(first, math.floor(axis.high / step) + 1)]


def draw(
    train: Series,
    validation: Series,
    *,
    width: int,
    height: int,
    last_step: int,
    glyphs: Glyphs = UNICODE,
) -> list[Text]:
    """The curve as exactly `height` lines of `width` characters, axes with numbers included.

    `last_step` is where the run will end; the horizontal axis ends there or at a half, a quarter
    ... of it while the run is young. Without a point the lines only say so.
    """
    values = [value for _, value in (*train, *validation)]
    if not values or width < 24 or height < 4:
        lines = [Text("") for _ in range(height)]
        if not values and height:
            lines[height // 2] = Text("the curve begins with the first step".center(width), "dim")
        return lines
    vertical = fit_axis(values)
    rows = height - 2
    marks = ticks(vertical, max(2, rows // 2))
    named = zip(marks, _numbers(marks, log=vertical.log), strict=True)
    labels = {round((1 - vertical.at(value)) * (rows - 1)): text for value, text in named}
    margin = max((len(label) for label in labels.values()), default=0) + 1
    columns = width - margin - 1
    end = _end_of_steps(train, validation, last_step)
    horizontal = Axis(low=0.0, high=end, log=False)
    dots = _dots(train, horizontal, vertical, columns=columns, rows=rows)
    points = _marks(validation, horizontal, vertical, columns=columns, rows=rows)
    lines = []
    for row in range(rows):
        line = Text(f"{labels.get(row, ''):>{margin - 1}} ", "dim")
        line.append(glyphs.tick if row in labels else glyphs.vertical, "dim")
        for column in range(columns):
            if (row, column) in points:
                line.append(glyphs.mark, "bold yellow")
            else:
                line.append(glyphs.cell(dots[row][column]), "cyan")
        lines.append(line)
    return lines + _step_axis(end, margin=margin, columns=columns, glyphs=glyphs)


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    count = len(points)
    return sum(p[0] for p in points) / count, sum(p[1] for p in points) / count


def _numbers(values: Sequence[float], *, log: bool) -> list[str]:
    """Tick values as text, with as many digits as tell neighbours apart."""
    if log or len(values) < 2:
        return [f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" for value in values]
    step = values[1] - values[0]
    decimals = next((d for d in range(9) if abs(round(step, d) - step) < 1e-3 * step), 9)
    return [f"{value:,.{decimals}f}" for value in values]


def _end_of_steps(train: Series, validation: Series, last_step: int) -> float:
    """The end of the horizontal axis: the run's end, halved while the curve fills under half."""
    newest = max(step for step, _ in (*train, *validation))
    end = float(max(last_step, newest, 1.0))
    while end / 2 >= max(newest, 10.0):
        end /= 2
    return end


def _dots(
    train: Series, horizontal: Axis, vertical: Axis, *, columns: int, rows: int
) -> list[list[int]]:
    """The braille bits of each cell: one mean value a dot column, joined to its neighbour."""
    cells = [[0] * columns for _ in range(rows)]
    wide, tall = 2 * columns, 4 * rows
    binned: dict[int, list[tuple[float, float]]] = {}
    for step, value in train:
        x = min(wide - 1, max(0, round(horizontal.at(step) * (wide - 1))))
        binned.setdefault(x, []).append((step, value))
    path = [
        (x, round((1 - vertical.at(_mean(points)[1])) * (tall - 1)))
        for x, points in sorted(binned.items())
    ]

    def put(x: int, y: int) -> None:
        y = min(tall - 1, max(0, y))
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    for x, y in path[:1]:
        put(x, y)
    for (x0, y0), (x1, y1) in pairwise(path):
        num = max(x1 - x0, abs(y1 - y0))
        for i in range(num + 1):
            put(x0 + round(i * (x1 - x0) / num), y0 + round(i * (y1 - y0) / num))
    return cells


def _marks(
    validation: Series, horizontal: Axis, vertical: Axis, *, columns: int, rows: int
) -> set[tuple[int, int]]:
    return {
        (
            min(rows - 1, max(0, int((1 - vertical.at(value)) * rows))),
            min(columns - 1, max(0, int(horizontal.at(step) * columns))),
        )
        for step, value in validation
    }


def _step_axis(end: float, *, margin: int, columns: int, glyphs: Glyphs) -> list[Text]:
    """The axis below the curve and its step numbers."""
    rule = Text(" " * margin + glyphs.corner + glyphs.horizontal * columns, "dim")
    line = [" "] * (margin + 1 + columns)
    whole = [value for value in ticks(Axis(low=0.0, high=end, log=False), 5) if value % 1 == 0]
    # Each number is centred under its place, but the first and the last stay inside the line.
    for value in whole:
        text = f"{value:,.0f}" if value else "step 0"
        start = margin + 1 + round((columns - 1) * value / end) - len(text) // 2
        start = min(max(start, margin), len(line) - len(text))
        line[start : start + len(text)] = text
    return [rule, Text("".join(line), "dim")]
