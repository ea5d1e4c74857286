"""Countries, the groups of them that rules name, and where makers of chips are headquartered.

Read from facts/countries.toml. Which rule reaches whom is decided in `atoll.planning.rules`.
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from atoll import strict
from atoll.errors import InputError
from atoll.facts.chip import Chip


@cache
def _file() -> Mapping[str, Any]:
    path = Path(str(resources.files("atoll.facts"))) / "countries.toml"
    return strict.take_schema(strict.load_toml(path), file=path)


def countries() -> Mapping[str, str]:
    """Code of ISO 3166-1 (two letters) -> name."""
    found: Mapping[str, str] = _file()["names"]
    return found


def groups() -> Mapping[str, list[str]]:
    """Name of a group ("D:5") -> codes of all countries that are or were in it."""
    return {name: held for name, held in _file()["groups"].items() if isinstance(held, list)}


def country(text: str, *, key: str, file: Path | str | None = None) -> str:
    """The code of a country by its code or its name, whatever the case. InputError if unknown."""
    wanted = text.strip()
    if wanted.upper() in countries():
        return wanted.upper()
    by_name = {name.casefold(): code for code, name in countries().items()}
    if wanted.casefold() in by_name:
        return by_name[wanted.casefold()]
    raise InputError("there is no such country", file=file, key=key, value=text, fix=_near(wanted))


def _near(wanted: str) -> str:
    names = {name.casefold(): code for code, name in countries().items()}
    close = difflib.get_close_matches(wanted.casefold(), names, n=3, cutoff=0.7)
    listed = 'write its two letters as in ISO 3166, for example "MY" for Malaysia'
    if not close:
        return listed
    near = ", ".join(f'"{names[one]}" ({countries()[names[one]]})' for one in close)
    return f"nearest: {near}\n{listed}"


def expanded(places: Iterable[str], day: datetime.date) -> frozenset[str]:
    """The codes of countries and groups together on a day; assumes that all are known."""
    known, away = groups(), _away(day)
    return frozenset(
        code for place in places for code in known.get(place, [place]) if (place, code) not in away
    )


def _away(day: datetime.date) -> frozenset[tuple[str, str]]:
    """(group, country) of those that are in a group, but not on a day."""
    return frozenset(
        (one["group"], one["country"])
        for one in _file()["member"]
        if not one["from"] <= day < one.get("until", datetime.date.max)
    )


def change_days() -> frozenset[datetime.date]:
    """The days on which a country came into a group or left it."""
    return frozenset(
        one[key] for one in _file()["member"] for key in ("from", "until") if key in one
    )


def is_place(text: str) -> bool:
    """Whether it is a code of a country or the name of a group."""
    return text in countries() or text in groups()


def maker_country(chip: Chip) -> str | None:
    """Where the maker of a chip is headquartered; None where that is not known."""
    found = _file()["makers"].get(chip.vendor) if chip.vendor else None
    return found if found in countries() else None
