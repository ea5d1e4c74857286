"""Draw the shared day of a plan as a picture that stands alone.

    python scripts/draw_day.py RECIPE FLEET docs/images/day.svg

The picture is that of `atoll plan --report`; here it carries the page's style with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from atoll.fleet import Fleet
from atoll.planning.answer import Asked
from atoll.planning.daypicture import LEGEND, day_picture
from atoll.planning.page import HATCHES, STYLE
from atoll.planning.sharing import share
from atoll.planning.svg import WIDE, escape, tag, text_width
from atoll.recipe import Recipe

LINE = 20.0
ALONE = "svg { display: inline; font-family: sans-serif; }"
"""What the page around a picture would say of its letters."""


def main(recipe: str, fleet: str, path: str) -> None:
    """Plan the day and write its picture with the legend below."""
    found = share(Recipe.load(recipe), Fleet.load(fleet), Asked())
    picture = day_picture(found, WIDE)
    _, _, height = picture.partition('viewBox="0 0 1040 ')
    bottom = float(height.partition('"')[0])
    names, x = [], 0.0
    for colour, name in LEGEND:
        names.append(tag("rect", x=x, y=bottom + 8, width=14, height=12, fill=colour))
        names.append(tag("text", escape(name), x=x + 20, y=bottom + 18, font_size=12, class_="t"))
        x += text_width(name, 12) + 44
    whole = tag(
        "svg",
        tag("style", STYLE.partition("@media (max-width")[0] + ALONE),
        tag("rect", x=-12, y=-4, width=WIDE + 24, height=bottom + LINE + 20, class_="paper"),
        HATCHES, picture.replace("<svg ", f'<svg width="{WIDE:g}" height="{bottom:g}" ', 1), *names,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"-12 -4 {WIDE + 24:g} {bottom + LINE + 20:g}",
    )  # fmt: skip
    Path(path).write_text(whole + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
