"""How the page looks and what it does in the browser: theme, style sheet, script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from atoll.planning.page import STYLE
from atoll.web.run_page import RUN_STYLE
from atoll.web.words import words

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="11" '
    'fill="none" stroke="{colour}" stroke-width="5" stroke-dasharray="17 3 9 3 21 3 10 3"/></svg>'
)
"""An atoll: a ring of islands."""

_INSIDE = """
& { background: transparent; max-width: 1088px; margin: 0 auto; padding: 20px 24px 48px; }
:is(li, dt, dd) { margin: 0; } h1 { font-size: 22px; font-weight: 650; }
h2 { font-size: 17px; font-weight: 650; } b { font-weight: 650; }
@media (max-width: 640px) { & { padding: 16px 14px 40px; } }
"""
"""What a run's style sheet, made for a page of its own, needs inside of another one."""

_HERE = Path(__file__).parent
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "PingFang SC",
         "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")  # fmt: skip
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def icon(colour: str = "#0284c7") -> str:
    """The mark, as SVG."""
    return _ICON.format(colour=colour)


def theme() -> Any:
    """Gradio's theme in our colours and in fonts that a system has: nothing is loaded."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue=gr.themes.colors.sky,
        secondary_hue=gr.themes.colors.sky,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in _SANS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    )


def head() -> str:
    """Style and script, as they stand in the page itself."""
    run = STYLE.replace(":root", "&").replace("body {", "& {") + RUN_STYLE + _INSIDE
    style = (_HERE / "page.css").read_text(encoding="utf-8") + f".run {{ {run} }}"
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    told = json.dumps(words(), ensure_ascii=True).replace("<", "\\u003c")
    picture = quote(icon())
    link = f'<link rel="icon" href="data:image/svg+xml,{picture}">'
    return f"{link}<style>{style}</style><script>const WORDS = {told};\n{script}</script>"
