"""Training stacks by name, with the habits that matter for time: facts/software.toml."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field

from atoll import strict
from atoll.facts.chip import Chip


class Stack(strict.Noun):
    """A stack and how to recognise it: `pattern` is a regular expression for its name."""

    pattern: str = Field(min_length=1)
    family: str = Field(min_length=1)
    flash_since: float = Field(ge=2017, le=2100)
    fused: bool
    overlap: bool
    overlap_tp: bool
    fused_loss: bool = False
    gradients: float = Field(default=4.0, ge=2, le=8)
    accumulate: float = Field(default=0.0, ge=0, le=100)
    on_host: float = Field(default=0.0, ge=0, le=1e-6)
    year: float = Field(ge=2017, lt=2100)
    source: str = Field(min_length=1)


class _Stacks(strict.Noun):
    plan: dict[str, str]
    software: list[Stack] = Field(min_length=1)


@cache
def _file() -> _Stacks:
    path = Path(str(resources.files("atoll.facts"))) / "software.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return strict.validate(_Stacks, data, file=path)


def stack_of(name: str) -> Stack:
    """The stack that a name means; the last of the file, a present-day one, if none fits."""
    known = _file().software
    return next((s for s in known if re.search(s.pattern, name, re.IGNORECASE)), known[-1])


def stack_for(chip: Chip) -> Stack:
    """The stack that a plan expects on a chip."""
    named = _file().plan
    name = named.get(chip.plugin or "") or named.get(chip.backend) or named["other"]
    return stack_of(name)
