"""The second tab: the run that the served model comes from, and its plan, as its folder tells."""

from __future__ import annotations

import hmac
import threading
from pathlib import Path

from atoll.errors import AtollError, InputError
from atoll.history.reading import Reader
from atoll.plan import Estimate, Plan
from atoll.planning.page import HATCHES, table
from atoll.planning.svg import escape, tag
from atoll.run import RunFolder
from atoll.units import format_count, format_seconds
from atoll.web.run_page import sections_of
from atoll.web.words import translate

_MOST_LEFT_OUT = 20


class RunTab:
    """A run's folder as markup; read again when it is asked for and something is new."""

    def __init__(self, run: Path, *, api_key: str | None) -> None:
        """InputError if there is no run."""
        self._reader = Reader(run)
        self._key = api_key
        self._lock = threading.Lock()  # pages of several visitors ask at a time
        self._markup = ""
        self._version = 0
        self._plan: tuple[bytes, list[str]] = (b"", [])

    def look(self, key: str, language: str, seen: int) -> tuple[str, int] | None:
        """(markup, its version); None where ``seen`` is the newest, or the key is wrong."""
        if self._key is not None and not hmac.compare_digest(key.encode(), self._key.encode()):
            return None
        with self._lock:
            if self._reader.refresh() or not self._markup:
                self._markup, self._version = self._draw(), self._version + 1
            if seen == self._version:
                return None
            return translate(self._markup, language), self._version

    def _draw(self) -> str:
        parts = [*sections_of(self._reader.history()), *self._plan_sections()]
        return tag("div", HATCHES, *parts, class_="run")

    def _plan_sections(self) -> list[str]:
        """Of plan.json, drawn anew only when the file is another."""
        folder = self._reader.folder
        path = folder.path / "plan.json"
        try:
            raw = path.read_bytes()
            if raw != self._plan[0]:
                self._plan = (raw, plan_sections(Plan.load(path), folder))
        except (OSError, InputError):  # there is none, or a newer Atoll wrote it
            return []
        return self._plan[1]


def plan_sections(plan: Plan, folder: RunFolder) -> list[str]:
    """Who computes what, what was expected of it, and what was left out; pictures where the plan
    was made with estimates."""
    facts = {
        "contract": plan.contract or "decided when the islands start",
        "executor": plan.executor,
        "shares": plan.shares.mode,
        **_estimates(plan),
    }
    pairs = [tag("dt", escape(key)) + tag("dd", escape(text)) for key, text in facts.items()]
    head = ["island", "chip", "site", "devices", "layout", "share"]
    rows = [
        [
            escape(one.name), escape(one.chip), escape(one.site), f"{one.devices:,}",
            escape(one.layout.describe()),
            "follows speed" if one.share is None else f"{one.share:g}",
        ]
        for one in plan.islands
    ]  # fmt: skip
    sections = [
        tag("h2", "Plan"),
        tag("dl", *pairs),
        table(head, rows, numbers=("devices", "share")),
        *_pictures(plan, folder),
    ]
    if plan.left_out:
        told = [
            tag("li", escape(f"{one.what}: {one.why}")) for one in plan.left_out[:_MOST_LEFT_OUT]
        ]
        sections += [tag("h2", "Left out"), tag("ul", *told, class_="notes")]
    return sections


def _estimates(plan: Plan) -> dict[str, str]:
    """The plan's expectations as text, those that it has."""
    named = {
        "step_seconds": ("step", format_seconds),
        "tokens_per_second": ("tokens/s", format_count),
        "finish_seconds": ("all steps", format_seconds),
    }
    told = {}
    for key, (name, write) in named.items():
        try:
            one = Estimate.model_validate(plan.estimates[key])
        except (KeyError, ValueError):
            continue
        told[name] = f"{write(one.mid)} ({write(one.low)} to {write(one.high)}, {one.basis})"
    return told


def _pictures(plan: Plan, folder: RunFolder) -> list[str]:
    """What the planner sees in the same recipe and fleet, if it made this plan."""
    from atoll.planning.planner import plan as ask
    from atoll.planning.report import pictures_of

    try:
        fleet = folder.fleet()
        return pictures_of(ask(folder.recipe(), fleet)) if plan.estimates and fleet else []
    except AtollError:  # facts may have changed since
        return []
