"""Draw what the questions of a scenario change as a picture that stands alone.

    python scripts/draw_scenario.py SCENARIO docs/images/scenario.svg

The picture is that of `atoll scenario --html`, of the model that takes longest; here it carries the
page's style with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from atoll.planning.page import STYLE
from atoll.planning.scenario.file import load
from atoll.planning.scenario.pictures import what_if_picture
from atoll.planning.scenario.study import study
from atoll.planning.svg import WIDE, tag

ALONE = "svg { display: inline; font-family: sans-serif; }"
"""What the page around a picture would say of its letters."""


def main(scenario: str, path: str) -> None:
    """Answer the scenario and write the picture of its questions."""
    found = study(load(scenario), draws=0)
    picture = what_if_picture(found, found.of_kind("what_if"), found.longest, WIDE)
    _, _, height = picture.partition('viewBox="0 0 1040 ')
    bottom = float(height.partition('"')[0])
    whole = tag(
        "svg",
        tag("style", STYLE.partition("@media (max-width")[0] + ALONE),
        tag("rect", x=-12, y=-4, width=WIDE + 24, height=bottom + 16, class_="paper"),
        picture.replace("<svg ", f'<svg width="{WIDE:g}" height="{bottom:g}" ', 1),
        xmlns="http://www.w3.org/2000/svg", viewBox=f"-12 -4 {WIDE + 24:g} {bottom + 16:g}",
    )  # fmt: skip
    Path(path).write_text(whole + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
