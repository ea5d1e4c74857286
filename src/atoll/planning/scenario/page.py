"""Page: the answers of one scenario or several as one page to look at.

One file that needs nothing else. What a page looks like is `atoll.planning.page`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from atoll import __version__
from atoll.facts.rules import NO_ADVICE
from atoll.planning.gantt import ABSENT, BUSY, CURVE, SPARE, calendar_picture
from atoll.planning.ordertable import order_rows, sections
from atoll.planning.page import page, table
from atoll.planning.purchase import Told
from atoll.planning.report import pictured, section
from atoll.planning.scenario import text
from atoll.planning.scenario.pictures import (
    ASKED,
    BAND,
    LATE,
    MID,
    RANGE,
    SOON,
    budget_picture,
    colours_of,
    finish_picture,
    month_picture,
    shortfall_picture,
    what_if_picture,
)
from atoll.planning.scenario.study import Kind, Study
from atoll.planning.svg import escape, tag
from atoll.units import format_count

DAYS = re.compile(r"\b\d{4}-\d\d-\d\d\b")


def report_of(studies: Sequence[Study]) -> str:
    """The page as HTML: no script, nothing loaded from anywhere."""
    titles = ", ".join(one.scenario.told.title for one in studies)
    return page(titles, *(_article(one) for one in studies), _footer(studies))


def _article(study: Study) -> str:
    told = study.scenario.told
    return tag(
        "article",
        tag("h1", escape(told.title)),
        tag("p", escape(" ".join(told.words.split())), class_="lead"),
        _tiles(study),
        _answers(study),
        _finish(study),
        _gantt(study),
        _orders(study),
        _shortfall(study),
        _what_ifs(study),
        _memory(study),
        _facts(study),
        _limits(study),
    )


def _tiles(study: Study) -> str:
    """When each model is done, in large letters; what is spent."""
    shown = []
    for label, one in zip(study.labels, study.calendars, strict=True):
        low, mid, high = (str(day or "never") for day in one.done_by().values())
        shown.append((mid, label, f"{low} to {high}"))
    if study.base.told is not None:
        answer = study.base.told.answer
        cost = f"{format_count(answer.cost)} {answer.case.offers.added_in}"
        shown.append((cost, "to be spent", "of all budgets"))
    return tag(
        "div",
        *(
            tag("div", tag("b", _cell(number)), *(tag("span", _cell(it)) for it in what),
                class_="tile")
            for number, *what in shown
        ),
        class_="tiles",
    )  # fmt: skip


def _cell(text: str) -> str:
    """A text as markup; its days are not parted at their hyphens."""
    return escape(DAYS.sub(lambda found: found[0].replace("-", "\u2011"), text))


def _answers(study: Study) -> str:
    items = [
        tag("li", tag("b", escape(name)), tag("ul", *(tag("li", _strong(one)) for one in lines)))
        for name, lines in text.answers(study)
    ]
    return section("In short", tag("ul", *items, class_="answers"))


def _strong(line: str) -> str:
    """A line with what stands before its colon in bold letters."""
    name, colon, rest = line.partition(": ")
    return tag("b", escape(name + ":")) + _cell(f" {rest}") if colon else _cell(line)


def _finish(study: Study) -> str:
    legend = [(MID, "mid"), (RANGE, "earliest to latest")]
    caption = (
        "Every model is planned alone, on all chips that are there. Earliest: the most deliveries "
        "at the fast end of a step; latest: the fewest at the slow end."
    )
    if any(one.draws is not None for one in study.calendars):
        legend.insert(1, (BAND, "8 of 10 drawn fleets"))
        number = next(one.draws.number for one in study.calendars if one.draws is not None)
        caption += (
            f" {number:,} fleets were drawn from what is not known; one of ten is slower than the "
            "slow end, so that a few end after the latest course."
        )
    picture = pictured(lambda width: finish_picture(study, width), legend, tag("p", caption))
    rows = [[*map(_cell, row)] for row in text.done_rows(study)]
    head = list(text.DONE_HEAD)
    return section("When each model is done", picture, table(head, rows, numbers=tuple(head[1:])))


def _gantt(study: Study) -> str:
    """The islands over time, of the model that takes longest."""
    one, label = study.calendars[study.longest], study.labels[study.longest]
    legend = [(BUSY, "chips that take part"), (SPARE, "present, not taking part"),
              (ABSENT, "not there"), (CURVE, "tokens done")]  # fmt: skip
    caption = (
        "A row is an island, its height the most chips that it holds; the curve is the tokens. "
        "Thin curves: the latest and the earliest course."
    )
    there = {name for period in one.mid.periods for name, n in period.rated.chips.items() if n}
    picture = pictured(
        lambda width: calendar_picture(one, width, only=there), legend, tag("p", caption)
    )
    notes = [tag("li", escape(note)) for note in one.notes]
    return section(
        f"Chips over time, and {escape(label)}", picture,
        tag("ul", *notes, class_="notes") if notes else "",
    )  # fmt: skip


def _orders(study: Study) -> str:
    told = study.base.told
    if told is None:
        if not study.base.why:
            return ""
        return section("What to buy", tag("p", escape(study.base.why)))
    head, rows = order_rows(told.answer)
    cells = [[*map(_cell, row)] for row in rows]
    legend = [(colour, escape(name)) for name, colour in _used_colours(told).items()]
    more = [
        tag("h3", escape(title))
        + tag("ul", *(tag("li", escape(one)) for one in lines), class_="notes")
        for title, lines in sections(told)
        if lines
    ]
    return section(
        "What to buy",
        pictured(
            lambda width: budget_picture(told, width), [], tag("p", "The frame is the budget.")
        ),
        pictured(lambda width: month_picture(told, width), legend),
        table(head, cells, numbers=("chips", "price", "cost")),
        *more,
    )


def _item(line: str) -> str:
    return tag("li", escape(line))


def _used_colours(told: Told) -> dict[str, str]:
    used = {one.column.offer.seller for one in told.answer.orders}
    return {name: colour for name, colour in colours_of(told).items() if name in used}


def _shortfall(study: Study) -> str:
    effects = study.of_kind("shortfall")
    if not effects:
        return ""
    legend = [(ASKED, "done as asked"), (LATE, "done as it came")]
    words = [_said(one.question.name, one.question.words) for one in effects]
    picture = pictured(lambda width: shortfall_picture(study, effects, width), legend)
    return section(
        "What the shortfall cost", tag("ul", *words, class_="notes"), picture,
        _table(study, "shortfall", "Days lost: mid, and the range over the three courses."),
    )  # fmt: skip


def _what_ifs(study: Study) -> str:
    effects = study.of_kind("what_if")
    if not effects:
        return ""
    label = study.labels[study.longest]
    words = [_said(one.question.name, one.question.words) for one in effects]
    legend = [(LATE, f"{label} later"), (SOON, f"{label} sooner")]
    caption = "The thin line is the range over the three courses."
    if study.base.told is not None:
        caption += (
            " For every question the orders were found anew; they aim at their own goal, so that "
            "the days of one model may move either way."
        )
    picture = pictured(
        lambda width: what_if_picture(study, effects, study.longest, width), legend,
        tag("p", caption),
    )  # fmt: skip
    return section(
        "What would change it", tag("ul", *words, class_="notes"), picture,
        _table(study, "what_if", "Days later (+) or sooner (-): mid, and the range."),
    )  # fmt: skip


def _said(name: str, words: str) -> str:
    return tag("li", tag("b", escape(f"{name}: ")), escape(words))


def _table(study: Study, kind: Kind, caption: str) -> str:
    head = text.effect_head(study, kind)
    rows = [[*map(_cell, row)] for row in text.effect_rows(study, kind)]
    names = [escape(name) for name in head]
    return table(names, rows, numbers=tuple(names[1:])) + tag("p", caption, class_="dim")


def _memory(study: Study) -> str:
    rows = [[*map(_cell, row)] for row in text.memory_rows(study)]
    words = "The plan of the first day on which the model computes; memory of the fullest device."
    shown = table(list(text.MEMORY_HEAD), rows, numbers=("chips",))
    return section("What fits where", tag("p", words, class_="dim"), shown)


def _facts(study: Study) -> str:
    facts = study.scenario.told.fact
    if not facts:
        return ""
    head = ["figure", "value", "source", "confidence", "used here"]
    rows = [
        [*map(escape, (one.what, one.value, one.source)), _grade(one.confidence), escape(one.used)]
        for one in facts
    ]
    grades = "; ".join(f"{name}: {words}" for name, words in text.GRADES.items())
    return section(
        "Figures, sources, confidence", table(head, rows), tag("p", grades, class_="dim")
    )


def _grade(confidence: str) -> str:
    return tag("span", escape(confidence), class_=f"grade {confidence}")


def _limits(study: Study) -> str:
    items = [tag("li", escape(note)) for note in text.notes(study)]
    return section("What these numbers do not say", tag("ul", *items, class_="notes"))


def _footer(studies: Sequence[Study]) -> str:
    names = ", ".join(one.scenario.told.name for one in studies)
    plans = sum(one.plans for one in studies)
    words = f"Scenarios: {names}. {plans:,} plans. Atoll {__version__}. {NO_ADVICE}"
    return tag("footer", tag("p", escape(words)))
