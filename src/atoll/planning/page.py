"""Page: how a report looks, on a screen, on a telephone, on paper, by day and by night.

One file that needs nothing else: no script, no font, no picture from anywhere.
"""

from __future__ import annotations

from atoll.planning.svg import escape, tag

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #16202a; --dim: #5b6773; --rule: #aeb7c0; --soft: #f3f6f9;
  --edge: #d5dce3; --blue: #0072b2; --bound: #b84a00; --hatch: #e4e8ec; --stripe: #8d97a1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12181e; --ink: #e8edf2; --dim: #9ba8b4; --rule: #5a6672; --soft: #1b232b;
    --edge: #35414c; --blue: #56b4e9; --bound: #ff9a4d; --hatch: #2a333c; --stripe: #77828d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Helvetica, Arial,
    sans-serif;
}
main { max-width: 1088px; margin: 0 auto; padding: 24px 24px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; }
p { margin: 4px 0 12px; max-width: 110ch; overflow-wrap: anywhere; }
p.dim, figcaption { color: var(--dim); font-size: 13.5px; }
figure { margin: 8px 0 0; }
figcaption p { margin: 8px 0 0; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg.defs { position: absolute; width: 0; height: 0; }
svg.narrow, p.narrow { display: none; }
.t { fill: var(--ink); } .dim { fill: var(--dim); } .strong { font-weight: 650; }
.onhatch { fill: var(--ink); paint-order: stroke; stroke: var(--hatch); stroke-width: 4px; }
.over { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.rule { stroke: var(--rule); stroke-width: 1; }
.room { fill: var(--soft); } .frame { fill: none; stroke: var(--ink); stroke-width: 1.4; }
.limit { stroke: var(--bound); stroke-width: 2; stroke-dasharray: 4 3; }
.thin { stroke: var(--rule); stroke-width: 0.5; }
.paper { fill: var(--paper); }
.ground { fill: var(--hatch); } .stripe { stroke: var(--stripe); stroke-width: 1.2; }
.faint { stroke: var(--edge); stroke-width: 1.2; } .bed { fill: var(--soft); }
.light { stroke: var(--rule); stroke-width: 1.2; }
.site { fill: var(--soft); stroke: var(--edge); }
.island { fill: var(--paper); stroke: var(--blue); stroke-width: 1.4; }
.island.out { stroke: var(--rule); stroke-dasharray: 4 3; stroke-width: 1; }
.track { fill: var(--hatch); } .part { fill: var(--blue); }
.wire { stroke: var(--stripe); stroke-width: 2; }
.bounding { stroke: var(--bound); stroke-width: 3; }
.boundtext { fill: var(--bound); font-weight: 650; }
.badge { fill: var(--paper); stroke: var(--stripe); stroke-width: 1.5; }
.badge.bounding { stroke: var(--bound); stroke-width: 2.5; }
.badge-dot { stroke: var(--paper); stroke-width: 2; }
h3 { font-size: 15px; margin: 22px 0 0; color: var(--dim); font-weight: 600; }
p.lead { font-size: 17px; max-width: 80ch; }
ul.answers { list-style: none; padding: 0; max-width: 110ch; }
ul.answers > li { padding: 2px 0 2px 14px; border-left: 3px solid var(--blue); margin: 0 0 14px; }
ul.answers ul { padding-left: 18px; margin: 2px 0 0; }
article + article { margin-top: 72px; border-top: 3px solid var(--edge); padding-top: 32px; }
article section { overflow-x: auto; }
article th, article td { overflow-wrap: break-word; }
.grade { display: inline-block; white-space: nowrap; padding: 0 8px; border-radius: 9px;
  font-size: 12.5px; border: 1px solid var(--rule); }
.grade.high { border-color: var(--blue); color: var(--blue); }
.grade.low { border-color: var(--bound); color: var(--bound); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 10px;
  margin: 18px 0 14px; padding: 0; }
.tile { background: var(--soft); border: 1px solid var(--edge); border-radius: 8px;
  padding: 10px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--dim); font-size: 13px; display: block; line-height: 1.4; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; margin: 8px 0 0;
  padding: 0; font-size: 13.5px; }
.legend li { display: flex; align-items: center; gap: 6px; }
.legend svg { flex: none; width: 16px; height: 12px; }
table { border-collapse: collapse; width: 100%; margin: 8px 0 0; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--dim); font-weight: 500; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--edge); vertical-align: top;
  overflow-wrap: anywhere; }
th.n, td.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
th:last-child, td:last-child { padding-right: 0; }
th:first-child, td:first-child { min-width: 88px; }
.gain { display: inline-block; height: 10px; background: var(--blue); border-radius: 2px; }
ul.notes { margin: 6px 0 0; padding-left: 20px; }
ul.notes li { overflow-wrap: anywhere; }
footer { margin-top: 40px; border-top: 1px solid var(--edge); padding-top: 10px;
  color: var(--dim); font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 16px 16px 40px; }
  h1 { font-size: 22px; }
  svg.wide, p.wide { display: none; }
  svg.narrow, p.narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile b { font-size: 18px; }
  .tile:last-child:nth-child(odd) { grid-column: span 2; }
  dl { display: block; } dd { margin: 0 0 6px; }
  .stacks thead { display: none; }
  .stacks tr { display: block; border-bottom: 1px solid var(--edge); padding: 6px 0; }
  .stacks td, .stacks td.n { display: flex; gap: 12px; border: 0; padding: 1px 0;
    text-align: left; white-space: normal; }
  .stacks td::before { content: attr(data-name); color: var(--dim); flex: 0 0 70px; }
  article .stacks td::before { flex-basis: 112px; }
  .stacks td:first-child { font-weight: 600; }
  .stacks td:first-child::before, .stacks td[data-name=""]::before { content: none; }
  table { font-size: 13px; } th, td { padding-right: 8px; }
}
@media print {
  :root { color-scheme: light; --paper: #ffffff; --ink: #000000; --dim: #444444;
    --rule: #999999; --soft: #f6f6f6; --edge: #cccccc; --blue: #0072b2; --bound: #b84a00;
    --hatch: #e4e8ec; --stripe: #8d97a1; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 12px; }
  main { padding: 0; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: 6px; }
  .tile b { font-size: 16px; } .tile span { font-size: 10.5px; }
  table, .legend, figcaption { font-size: 11px; }
  h2 { break-after: avoid; } figure, tr, .tile { break-inside: avoid; }
}
"""
"""The only style sheet."""


def _hatch(
    name: str, ground: str, *, fill: str | None, line: str, stroke: str | None, turn: int = 45
) -> str:
    """A pattern of slanted lines on a ground; colours are classes unless given."""
    return tag(
        "pattern",
        tag("rect", width=6, height=6, class_=ground or None, fill=fill),
        tag("line", x1=0, y1=0, x2=0, y2=6, class_=line or None, stroke=stroke, stroke_width=2.4
            if stroke else None),
        id=f"hatch-{name}", width=6, height=6, patternUnits="userSpaceOnUse",
        patternTransform=f"rotate({turn})",
    )  # fmt: skip


HATCHES = tag(
    "svg",
    tag(
        "defs",
        _hatch("waiting", "ground", fill=None, line="stripe", stroke=None),
        _hatch("bubble", "bed", fill=None, line="light", stroke=None, turn=-45),
        _hatch("idle", "bed", fill=None, line="faint", stroke=None),
        _hatch("hidden", "", fill="#f6d2bb", line="", stroke="#d55e00"),
    ),
    class_="defs",
    aria_hidden="true",
)
"""The patterns that all pictures share."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser is told to load nothing, whatever a name in a file tries."""


def page(title: str, *body: str) -> str:
    """The whole file; `title` is plain text, `body` markup. Well-formed as XML too."""
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", escape(title)),
        f"<style>{STYLE}</style>",
    )
    whole = tag(
        "html",
        tag("head", *head),
        tag("body", HATCHES, tag("main", *body)),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{whole}\n"


def table(
    head: list[str],
    rows: list[list[str]],
    *,
    numbers: tuple[str, ...] = (),
    stacks: bool = True,
) -> str:
    """A table; cells are markup already.

    If it `stacks`, a telephone shows its cells one below the other, each with its column's name.
    """
    kinds = ["n" if name in numbers else None for name in head]
    heading = [tag("th", name, class_=kind) for name, kind in zip(head, kinds, strict=True)]
    body = [
        tag("tr", *(
            tag("td", cell, class_=kind, data_name=name)
            for name, kind, cell in zip(head, kinds, row, strict=True)
        ))
        for row in rows
    ]  # fmt: skip
    return tag(
        "table",
        tag("thead", tag("tr", *heading)),
        tag("tbody", *body),
        class_="stacks" if stacks else None,
    )
