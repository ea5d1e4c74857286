"""Engines: other people's launchers and trainers, as data: facts/tools/*.toml.

What a tool is called with, which makes of chips it runs on, and where that was read. It knows the
names of flags, not what they do; `atoll.planning.emit` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field

from atoll import strict


class Tool(strict.Noun):
    """A tool at a named version.

    `flags` is its list of flags, or of keys of its files, as read at `source`; `inherited` are
    more that it takes over from a tool inside it. `backends` are the makes it runs on, `formats`
    the number formats it computes in. `options` are words that it wants in a situation, under our
    names of the situations. `names` are what it calls our chips, `labelled` names that a user gives
    machines so that it finds them. `rank` orders the tools where several would do.
    """

    rank: int = Field(ge=1)
    family: Literal["megatron", "torchtitan", "flagscale", "skypilot"]
    version: str = Field(min_length=1)
    source: str = Field(min_length=1)
    why: str = Field(min_length=1)
    files: list[str] = Field(min_length=1)
    backends: list[str] = Field(min_length=1)
    formats: list[Literal["fp32", "bf16", "fp16", "fp8"]] = Field(min_length=1)
    entry: str = ""
    repository: str = ""
    commit: str = ""
    requires: list[str] = []
    inherited: list[str] = []
    flags: list[str] = Field(min_length=1)
    environment: dict[str, str] = {}
    sharded_environment: dict[str, str] = {}
    options: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    labelled: dict[str, str] = {}

    def knows(self, flag: str) -> bool:
        """Whether the tool has a flag, or a key of its files, of this name."""
        return flag in self.flags or flag in self.inherited

    def words(self, situation: str) -> list[str]:
        """The words that the tool wants in a situation; empty where it wants none."""
        return list(self.options.get(situation, []))


@cache
def tools() -> Mapping[str, Tool]:
    """All tools by name, in the order of their rank."""
    folder = Path(str(resources.files("atoll.facts"))) / "tools"
    found = {}
    for path in sorted(folder.glob("*.toml")):
        data = strict.take_schema(strict.load_toml(path), file=path)
        found[path.stem] = strict.validate(Tool, data, file=path)
    return dict(sorted(found.items(), key=lambda entry: entry[1].rank))
