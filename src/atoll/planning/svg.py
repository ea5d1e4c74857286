"""Svg: shapes and texts of a drawing that stands inside a page, and how wide a text is.

Colours of data are fixed here; those of text, frames and background are classes, so that the page
decides them for light and dark. Nothing here knows a plan.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

WIDE, NARROW = 1040.0, 350.0
"""Widths that pictures are drawn for: of a screen or paper, of a telephone."""

ELLIPSIS = "\u2026"

_ALONE = ("meta", "rect", "line", "path", "polygon")
"""Elements that may end where they begin; HTML wants an end tag for the others."""

_CONTROLS = dict.fromkeys(
    (*range(9), 11, 12, *range(14, 32), *range(127, 160), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)
)


def escape(text: object) -> str:
    """Any text as it may stand in a page or an attribute; what no page may hold is left out."""
    return html.escape(str(text).translate(_CONTROLS), quote=True)


def tag(name: str, /, *content: str, **attributes: object) -> str:
    """An element; `content` is markup already. `stroke_width` is written as stroke-width."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(content)
    if not inside and name in _ALONE:
        return f"<{name}{written}/>"
    return f"<{name}{written}>{inside}</{name}>"


def _plain(value: object) -> object:
    """A number with at most two digits after the point, anything else as it is."""
    if isinstance(value, float):
        assert math.isfinite(value), "a picture has no place for what is not a number"
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return value


def text_width(text: str, size: float) -> float:
    """Pixels of a text in a wide sans-serif font: rather too many than too few."""
    total = 0.0
    for letter in text:
        if letter in "iljI.,:;'|![]() ":
            total += 0.36
        elif letter in "mwMW@%" or ord(letter) > 0x2E00:
            total += 1.0
        else:
            total += 0.7 if letter.isupper() else 0.62
    return total * size


def fit(text: str, width: float, size: float, *, middle: bool = False) -> str:
    """The text, or its beginning and an ellipsis where it is wider than `width`.

    With `middle` its end stays too: names often differ in their last letters alone.
    """
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        last = kept // 2 if middle else 0
        short = text[: kept - last].rstrip() + ELLIPSIS + text[len(text) - last :]
        if text_width(short, size) <= width:
            return short
    return ELLIPSIS


def wrap(text: str, width: float, size: float, *, most: int) -> list[str]:
    """The text in at most `most` lines, the last one cut where it is too long."""
    lines = [""]
    words = text.split()
    for index, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] = f"{lines[-1]} {' '.join(words[index:])}"
            break
        else:
            lines.append(word)
    return [fit(line, width, size) for line in lines]


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on #rrggbb (WCAG 2 contrast)."""
    parts = (int(colour[i : i + 2], 16) / 255.0 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#101418"


def ticks(most: float, count: int) -> list[float]:
    """Round numbers from 0 to at most `most`, about `count` of them."""
    if most <= 0 or not math.isfinite(most):
        return [0.0]
    rough = most / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= rough * 0.999)
    return [i * step for i in range(int(most / step + 1e-9) + 1)]


@dataclass(slots=True)
class Drawing:
    """A picture of a given width that grows downwards; `y` is where the next row begins."""

    width: float
    y: float = 0.0
    pieces: list[str] = field(default_factory=list)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        tip: str | None = None,
        **attributes: object,
    ) -> None:
        """A rectangle; `tip` is shown by a pointer that rests on it."""
        inside = [tag("title", escape(tip))] if tip else []
        size = {"x": x, "y": y, "width": max(0.0, width), "height": max(0.0, height)}
        self.pieces.append(tag("rect", *inside, **size, **attributes))

    def line(self, x1: float, y1: float, x2: float, y2: float, **attributes: object) -> None:
        """A straight line."""
        self.pieces.append(tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes))

    def path(self, points: Iterable[tuple[float, float]], **attributes: object) -> None:
        """A line through points."""
        places = " L".join(f"{_plain(float(x))} {_plain(float(y))}" for x, y in points)
        self.pieces.append(tag("path", d=f"M{places}", fill="none", **attributes))

    def text(
        self, x: float, y: float, text: str, *, size: float = 13.0, **attributes: object
    ) -> None:
        """A text whose baseline begins (or ends, or has its middle) at x, y."""
        words = {"class_": "t", **attributes}
        self.pieces.append(tag("text", escape(text), x=x, y=y, font_size=size, **words))

    def svg(self, title: str, *, height: float | None = None) -> str:
        """The finished picture, as wide as its place in the page."""
        high = self.y if height is None else height
        return tag(
            "svg",
            tag("title", escape(title)),
            *self.pieces,
            viewBox=f"0 0 {_plain(self.width)} {_plain(float(high))}",
            role="img",
            aria_label=title,
            class_="wide" if self.width > NARROW else "narrow",
        )
