"""Words of the page in the languages that it speaks; they live in TOML files beside this."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
"""What a browser that wants none of these gets is the first."""

_PLACES = re.compile(r'(>|data-name="|aria-label=")([^<>"]+)(?=[<"])')
"""Where markup holds words: between tags, and in the two attributes that are read or shown."""


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


@cache
def words() -> Mapping[str, Mapping[str, str]]:
    """Key -> language -> text."""
    return _load("words.toml")


def say(key: str, language: str, **fields: object) -> str:
    """A text in a language (the first one if it is not spoken here), its {fields} filled in."""
    texts = words()[key]
    return texts.get(language, texts[LANGUAGES[0]]).format(**fields)


@cache
def _run_words() -> tuple[Mapping[str, str], list[tuple[re.Pattern[str], str]]]:
    found = _load("run_words.toml")
    return found["texts"], [(re.compile(k), v) for k, v in found["patterns"].items()]


def translate(markup: str, language: str) -> str:
    """The markup of a run's page, which is English, in another language: whole texts that are
    known, and lists of them. Names, and what a run wrote about its events, stay as they are."""
    if language == LANGUAGES[0]:
        return markup
    return _PLACES.sub(lambda place: place[1] + _translated(place[2]), markup)


def _translated(text: str) -> str:
    texts, patterns = _run_words()
    bare = text.strip()
    if bare in texts:
        return text.replace(bare, texts[bare])
    for pattern, replacement in patterns:
        if found := pattern.fullmatch(bare):
            for number, group in enumerate(found.groups(), start=1):
                replacement = replacement.replace(f"\\{number}", _translated(group))  # noqa: PLW2901
            return text.replace(bare, replacement)
    for mark in ("; ", ", ", ": "):
        parts = text.split(mark)
        if len(parts) > 1:
            return mark.join(map(_translated, parts))
    return text
