"""Launchers that start islands of Atoll's own trainer, as data: facts/launchers.toml.

Unlike the tools of `engines`, these train nothing: they find machines and start commands on them.
What is written for them is `atoll.planning.emit.own`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field

from atoll import strict


class Launcher(strict.Noun):
    """A launcher: what it calls a device of each stack, and which of them it counts by itself."""

    version: str = Field(min_length=1)
    why: str = Field(min_length=1)
    files: list[str] = Field(min_length=1)
    source: str = Field(min_length=1)
    counted: list[str] = []
    devices: dict[str, str] = {}


class _Launchers(strict.Noun):
    launcher: dict[str, Launcher]


@cache
def launchers() -> Mapping[str, Launcher]:
    """All launchers by name."""
    path = Path(str(resources.files("atoll.facts"))) / "launchers.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return strict.validate(_Launchers, data, file=path).launcher
