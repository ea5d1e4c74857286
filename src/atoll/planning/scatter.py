"""Scatter: measured against predicted step times as one SVG, without any drawing library.

It draws what `validate` found and computes nothing. Colours are told apart by most people who see
few of them (Okabe and Ito 2008), and stand on their own white ground.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from atoll.planning.validate import Errors, Scored, Validation

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c6d31", "#6a3d9a")
OTHERS = "#9a9a9a"
INK, SOFT, LINE = "#1f2933", "#5b6772", "#c9d1d8"

WIDTH, HEIGHT = 960.0, 656.0
LEFT, TOP, SIDE = 84.0, 72.0, 500.0
PANEL = LEFT + SIDE + 44.0
BINS = 24
REACH = 0.6
"""The histogram shows errors from -60 % to +60 %; what lies beyond counts in its last bars."""


def scatter_of(found: Validation) -> str:
    """The text of an SVG file."""
    families = _families(found.scored)
    colour = {name: COLOURS[i] for i, name in enumerate(list(families)[: len(COLOURS)])}
    low, high = _span(found.scored)
    parts = [*_head(found), *_ground(low, high), *_points(found.scored, colour, low, high)]
    parts += [*_legend(families, colour), *_histogram(found.scored), "</svg>"]
    return "\n".join(parts) + "\n"


def family_of(chip: str) -> str:
    """ "h100-sxm-80gb" -> "H100": what stands before the first dash of a chip's name."""
    first = chip.split("-")[0]
    return first.capitalize() if first.isalpha() and len(first) > 3 else first.upper()


def _families(scored: Sequence[Scored]) -> dict[str, list[float]]:
    """Errors by family of chips, the largest first."""
    found: dict[str, list[float]] = {}
    for one in scored:
        found.setdefault(family_of(one.chip), []).append(one.error)
    return dict(sorted(found.items(), key=lambda entry: (-len(entry[1]), entry[0])))


def _span(scored: Sequence[Scored]) -> tuple[float, float]:
    """Decimal logarithms that both axes span."""
    values = [math.log10(x) for one in scored for x in (one.seconds, one.predicted)]
    low, high = min(values) - 0.12, max(values) + 0.12
    middle = (low + high) / 2.0
    return min(low, middle - 0.5), max(high, middle + 0.5)


def _text(
    x: float, y: float, text: str, *, size: float = 12.0, fill: str = SOFT, anchor: str = "start",
    weight: str = "400", turn: bool = False,
) -> str:  # fmt: skip
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}" '
        f'text-anchor="{anchor}" font-weight="{weight}"{turned}>{escape(text)}</text>'
    )


def _head(found: Validation) -> Iterator[str]:
    errors = found.errors
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        f'width="{WIDTH:g}" height="{HEIGHT:g}" role="img" '
        "font-family=\"system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif\">"
    )
    yield f"<title>Measured and predicted step times of {errors.rows} runs</title>"
    yield (
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1:g}" height="{HEIGHT - 1:g}" rx="10" '
        f'fill="#ffffff" stroke="{LINE}"/>'
    )
    held = sum(one.held_out for one in found.scored)
    how = f"each of them predicted without its {found.leave}" if held == errors.rows else ""
    if not how:
        how = (
            f"{held} of them predicted without their {found.leave}"
            if held
            else "none of them fitted"
        )
    yield _text(LEFT, 34, "Step time, measured and predicted", size=19, fill=INK, weight="600")
    yield _text(LEFT, 55, f"{errors.rows} training runs, {how}", size=13)
    caption = (
        f"Median error {errors.median:.1%}, mean {errors.mean:.1%}, nine of ten within "
        f"{errors.p90:.0%}; bias {errors.bias:+.1%}. Bands: 10 % and 25 %."
    )
    yield _text(LEFT, HEIGHT - 14, caption, size=12.5, fill=INK)


def _ground(low: float, high: float) -> Iterator[str]:
    """The plot's frame, bands, decades and names of the axes."""

    def at(x: float) -> float:
        return (x - low) / (high - low) * SIDE

    square = f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"'
    yield f'<clipPath id="plot">{square}/></clipPath>'
    yield f'{square} fill="#fbfcfd"/>'
    yield '<g clip-path="url(#plot)">'
    for part, fill in ((0.25, "#eaf1f8"), (0.10, "#d3e3f2")):
        above, below = at(low + math.log10(1.0 + part)), at(low + math.log10(1.0 - part))
        x0, x1, y0, y1 = LEFT - SIDE, LEFT + 2 * SIDE, TOP + 2 * SIDE, TOP - SIDE
        corners = ((x0, y0 - above), (x1, y1 - above), (x1, y1 - below), (x0, y0 - below))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        yield f'<polygon points="{points}" fill="{fill}"/>'
    for decade in range(math.floor(low), math.ceil(high) + 1):
        x, y = LEFT + at(decade), TOP + SIDE - at(decade)
        lines = f"M{x:.1f} {TOP}V{TOP + SIDE}M{LEFT} {y:.1f}H{LEFT + SIDE}"
        yield f'<path d="{lines}" stroke="{LINE}" stroke-opacity="0.6"/>'
    yield (
        f'<path d="M{LEFT} {TOP + SIDE}L{LEFT + SIDE} {TOP}" stroke="{SOFT}" stroke-width="1.2" '
        'stroke-dasharray="5 4"/>'
    )
    yield "</g>"
    yield f'{square} fill="none" stroke="{LINE}"/>'
    for decade in range(math.ceil(low), math.floor(high) + 1):
        name = f"{10.0**decade:,.6g}"
        yield _text(LEFT + at(decade), TOP + SIDE + 18, name, anchor="middle")
        yield _text(LEFT - 9, TOP + SIDE - at(decade) + 4, name, anchor="end")
    yield _text(
        LEFT + SIDE / 2, TOP + SIDE + 38, "measured, seconds a step", anchor="middle", fill=INK
    )
    yield _text(
        28, TOP + SIDE / 2, "predicted, seconds a step", anchor="middle", fill=INK, turn=True
    )


def _points(
    scored: Sequence[Scored], colour: dict[str, str], low: float, high: float
) -> Iterator[str]:
    """One dot a run; rare families are drawn last, on top."""
    order = {name: index for index, name in enumerate(colour)}

    def place(x: float) -> float:
        return (math.log10(x) - low) / (high - low) * SIDE

    yield '<g fill-opacity="0.62" stroke="#ffffff" stroke-width="0.5" clip-path="url(#plot)">'
    for one in sorted(scored, key=lambda one: order.get(family_of(one.chip), -1)):
        x, y = LEFT + place(one.seconds), TOP + SIDE - place(one.predicted)
        fill = colour.get(family_of(one.chip), OTHERS)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{fill}"/>'
    yield "</g>"


def _legend(families: dict[str, list[float]], colour: dict[str, str]) -> Iterator[str]:
    """Families with their number of runs and median error."""
    shown = [(name, families[name], colour[name]) for name in colour]
    rest = [error for name, errors in families.items() if name not in colour for error in errors]
    if rest:
        shown.append(("others", rest, OTHERS))
    y, columns = TOP + 12.0, (PANEL + 164, PANEL + 268)
    yield _text(PANEL, y, "chips", fill=INK, weight="600")
    yield _text(columns[0], y, "runs", anchor="end", fill=INK, weight="600")
    yield _text(columns[1], y, "median error", anchor="end", fill=INK, weight="600")
    yield f'<path d="M{PANEL} {y + 8}H{columns[1]}" stroke="{LINE}"/>'
    for name, errors, fill in shown:
        y += 24.0
        yield f'<circle cx="{PANEL + 6}" cy="{y - 1}" r="5" fill="{fill}"/>'
        yield _text(PANEL + 20, y + 3, name, fill=INK)
        yield _text(columns[0], y + 3, str(len(errors)), anchor="end")
        yield _text(columns[1], y + 3, f"{Errors.of(errors).median:.1%}", anchor="end")


def _histogram(scored: Sequence[Scored]) -> Iterator[str]:
    """How many runs were predicted how far off."""
    counts = [0] * BINS
    for one in scored:
        place = (one.error + REACH) / (2.0 * REACH) * BINS
        counts[min(BINS - 1, max(0, math.floor(place)))] += 1
    wide, tall, floor = 268.0, 150.0, TOP + SIDE
    bar = wide / BINS
    yield _text(PANEL, floor - tall - 18, "predicted / measured - 1", fill=INK, weight="600")
    for index, count in enumerate(counts):
        middle = abs((index + 0.5) / BINS * 2.0 - 1.0) * REACH
        fill = "#4f8fc4" if middle < 0.10 else "#a9c8e4" if middle < 0.25 else "#d5dbe0"
        height = tall * count / max(counts)
        yield (
            f'<rect x="{PANEL + index * bar + 0.7:.1f}" y="{floor - height:.1f}" '
            f'width="{bar - 1.4:.1f}" height="{height:.1f}" rx="1.5" fill="{fill}"/>'
        )
    yield f'<path d="M{PANEL} {floor}H{PANEL + wide}" stroke="{SOFT}"/>'
    for error in (-0.5, -0.25, 0.0, 0.25, 0.5):
        x = PANEL + (error + REACH) / (2.0 * REACH) * wide
        yield f'<path d="M{x:.1f} {floor}v4" stroke="{SOFT}"/>'
        yield _text(x, floor + 18, f"{error:+.0%}" if error else "0", anchor="middle")
