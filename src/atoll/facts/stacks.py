"""Training stacks by name, with the habits that matter for time: facts/software.toml."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field

from atoll import strict


class Stack(strict.Noun):
    """A stack and how to recognise it: `pattern` is a regular expression for its name."""

    pattern: str = Field(min_length=1)
    family: str = Field(min_length=1)
    flash_since: float = Field(ge=2017, le=2100)
    fused: bool
    overlap: bool
    overlap_tp: bool
    year: float = Field(ge=2017, lt=2100)
    source: str = Field(min_length=1)


class _Stacks(strict.Noun):
    software: list[Stack]


@cache
def stacks() -> tuple[Stack, ...]:
    """All known stacks in the order in which they are tried."""
    path = Path(str(resources.files("atoll.facts"))) / "software.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return tuple(strict.validate(_Stacks, data, file=path).software)
