"""Facts: chips, known model shapes and corpora, read from data files with their sources.

A number without a source does not load, and a number that nobody knows is absent, never guessed.
This package holds no arithmetic beyond units. What a chip holds: `chip.py`.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from atoll import strict
from atoll.errors import InputError
from atoll.facts.chip import (
    FORMATS,
    Area,
    Bandwidth,
    Chip,
    Flops,
    Link,
    Measured,
    Memory,
    Money,
    Network,
    Number,
    Quantity,
    Size,
    Speed,
    Watts,
)

__all__ = [
    "FORMATS",
    "Area",
    "Bandwidth",
    "Chip",
    "Flops",
    "Link",
    "Measured",
    "Memory",
    "ModelFacts",
    "Money",
    "Network",
    "Number",
    "Quantity",
    "Size",
    "Speed",
    "Watts",
    "chip",
    "chips",
    "corpora",
    "is_chip_file",
    "load_chip",
    "model_preset",
    "model_presets",
    "resolve_chip",
]


class ModelFacts(strict.Noun):
    """A published model shape and where it was published."""

    description: str = Field(min_length=1)
    source: str = Field(min_length=1)
    model: dict[str, bool | int | float | dict[str, int]]


def chips() -> list[str]:
    """The names of all chips, sorted. Reads no file."""
    return _names("chips")


def chip(name: str) -> Chip:
    """The facts of a chip by its name, or of a file of one's own by its path.

    A name that holds a "/" or ends in ".toml" is a path, read anew each time. InputError with the
    nearest names if there is none, and for whatever is wrong in a file.
    """
    return load_chip(name) if is_chip_file(name) else _listed_chip(name)


def resolve_chip(name: str) -> Chip:
    """The facts of a chip by its name or one of its aliases, whatever the case; or by a path.

    InputError as `chip`.
    """
    if is_chip_file(name) or name in chips():
        return chip(name)
    return _listed_chip(_names_by_alias().get(_folded(name), name))


def is_chip_file(name: str) -> bool:
    """Whether `chip` takes the name for the path of a file."""
    return name.endswith(".toml") or "/" in name or "\\" in name


def load_chip(path: Path | str) -> Chip:
    """The chip in a TOML file of one's own. InputError for whatever is wrong, with the file."""
    return strict.validate(Chip, strict.take_schema(strict.load_toml(path), file=path), file=path)


@cache
def _listed_chip(name: str) -> Chip:
    if name not in chips():
        raise InputError("there is no such chip", key="chip", value=name, fix=_near_chips(name))
    return load_chip(_folder() / "chips" / f"{name}.toml")


def _near_chips(name: str) -> str:
    """The fix for an unknown chip: what it is known as, else up to three near names."""
    known = _names_by_alias()
    near = [known[_folded(name)]] if _folded(name) in known else []
    if not near:
        close = difflib.get_close_matches(_folded(name), known, n=6, cutoff=0.5)
        near = list(dict.fromkeys(known[one] for one in close))[:3]
    listed = f"all {len(chips())} known chips: atoll chips; one of your own: the path of its file"
    return "\n".join(
        [*(["nearest: " + ", ".join(f'"{one}"' for one in near)] if near else []), listed]
    )


@cache
def _names_by_alias() -> dict[str, str]:
    """Folded name or alias -> name; reads every file, so only where a plain name was not enough."""
    found: dict[str, str] = {}
    for name in chips():
        aliases = strict.load_toml(_folder() / "chips" / f"{name}.toml").get("aliases", [])
        for alias in (name, *aliases):
            taken = found.setdefault(_folded(alias), name)
            assert taken == name, f"{alias} is an alias of {taken} and of {name}"
    return found


def _folded(name: str) -> str:
    """A name without regard to case, and to how its words are joined."""
    return "-".join(name.casefold().replace("_", " ").replace("-", " ").split())


def model_presets() -> list[str]:
    """The names of all model presets, sorted."""
    return _names("models")


def model_preset(name: str) -> dict[str, Any]:
    """The keys of a `[model]` table. InputError with the nearest name if there is none."""
    if name not in model_presets():
        fix = strict.nearest(name, model_presets(), what="presets")
        raise InputError("there is no such preset", key="preset", value=name, fix=fix)
    path = _folder() / "models" / f"{name}.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return dict(strict.validate(ModelFacts, data, file=path).model)


@cache
def corpora() -> dict[str, Any]:
    """The tables of facts/corpora.toml: name -> facts; `atoll.data.corpora` knows their meaning."""
    path = _folder() / "corpora.toml"
    return strict.take_schema(strict.load_toml(path), file=path)


def _names(kind: str) -> list[str]:
    """The names of the data files of a kind, sorted."""
    return sorted(path.stem for path in (_folder() / kind).glob("*.toml"))


def _folder() -> Path:
    """Where the data files lie; the package is always installed as plain files."""
    return Path(str(resources.files(__package__)))
