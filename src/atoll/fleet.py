"""Fleet: sites, islands, the links between sites, deliveries and withdrawals over time.

The fleet decides how long a run takes, never its bits. It holds no measurement: shares that follow
speed are the pilot's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from atoll import facts, strict, units
from atoll.digest import digest_of
from atoll.errors import InputError
from atoll.model import Count
from atoll.strict import Noun

HERE = "here"
"""The site of islands that name none: the machine that runs the command."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]


def _known_chip(value: str) -> str:
    """The name itself; InputError with the nearest one if the facts hold no such chip."""
    try:
        facts.chip(value)
    except InputError as error:
        error.key = None
        raise
    return value


ChipName = Annotated[str, AfterValidator(_known_chip)]


class Site(Noun):
    """One place: where it is, whose it is, its power and uplink (as text with a unit)."""

    name: Name
    country: str = ""
    owner: str = ""
    operator: str = ""
    power: str | None = None
    uplink: str | None = None

    @field_validator("power")
    @classmethod
    def _is_power(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_watts(value)
        return value

    @field_validator("uplink")
    @classmethod
    def _is_bandwidth(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_bandwidth(value)
        return value


class Link(Noun):
    """The network between two sites; `bandwidth` and `latency` as text with a unit."""

    between: list[str] = Field(min_length=2, max_length=2, examples=[["home", "johor"]])
    bandwidth: str = Field(examples=["10 Gb/s"])
    latency: str = Field(examples=["60 ms"])

    @field_validator("bandwidth")
    @classmethod
    def _is_bandwidth(cls, value: str) -> str:
        units.parse_bandwidth(value)
        return value

    @field_validator("latency")
    @classmethod
    def _is_time(cls, value: str) -> str:
        units.parse_seconds(value)
        return value

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth in bytes a second."""
        return units.parse_bandwidth(self.bandwidth)

    @property
    def latency_seconds(self) -> float:
        """The latency in seconds."""
        return units.parse_seconds(self.latency)


class Island(Noun):
    """Nodes of one chip under one fast fabric.

    A lane computes one grain at a time; `lanes` None means one for each chip. `threads` is of one
    lane and matters for CPUs only. `share` fixes the share, or is where it starts when shares
    follow speed. An island whose `start` is "dial-in" is started by somebody else.
    """

    name: Name
    site: str = HERE
    chip: ChipName = "cpu"
    nodes: Count = 1
    chips_per_node: Count = 1
    threads: int = Field(default=1, ge=1, le=4096)
    lanes: Count | None = None
    share: float | None = Field(default=None, ge=0)
    start: Literal["here", "dial-in"] = "here"

    @property
    def num_chips(self) -> int:
        """The number of chips of the island."""
        return self.nodes * self.chips_per_node

    @property
    def num_lanes(self) -> int:
        """The number of lanes of the island."""
        return self.num_chips if self.lanes is None else self.lanes


class Shares(Noun):
    """How grains are split: "auto" follows speed, "fixed" stays, "seeded" changes every step."""

    mode: Literal["auto", "fixed", "seeded"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)


class Range(Noun):
    """A number that is not known exactly: low <= mid <= high."""

    low: int = Field(ge=0)
    mid: int = Field(ge=0)
    high: int = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise InputError("must hold low <= mid <= high", fix="sort the three numbers")
        return self


Day = Annotated[date, PlainSerializer(lambda day: day.isoformat(), return_type=str)]


class Change(Noun):
    """Chips that arrive at an island, or are taken away from it, on a day."""

    date: Day = Field(examples=["2024-07-01"])
    island: str
    count: Range

    @field_validator("date", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        # JSON has no dates, so a fleet inside run.json holds them as text.
        if isinstance(value, str):
            try:
                return date.fromisoformat(value)
            except ValueError:
                raise InputError("is no date", value=value, fix="write 2024-07-01") from None
        return value


class Fleet(Noun):
    """All sites, islands, links, deliveries and withdrawals; the only mixed thing.

    The names of the lists are singular because the file writes them as [[island]].
    """

    FILE_KEYS = ("schema",)

    shares: Shares = Shares()
    site: list[Site] = []
    island: list[Island] = Field(min_length=1)
    link: list[Link] = []
    delivery: list[Change] = []
    withdrawal: list[Change] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _unique("site", (site.name for site in self.site))
        _unique("island", (island.name for island in self.island))
        sites = [HERE, *(site.name for site in self.site if site.name != HERE)]
        for index, island in enumerate(self.island):
            _known(island.site, sites, key=f"island[{index}].site", what="sites")
        for index, link in enumerate(self.link):
            for end in link.between:
                _known(end, sites, key=f"link[{index}].between", what="sites")
            if link.between[0] == link.between[1]:
                message, key = "joins a site to itself", f"link[{index}].between"
                raise InputError(message, key=key, value=link.between, fix="name two sites")
        names = [island.name for island in self.island]
        for table, changes in (("delivery", self.delivery), ("withdrawal", self.withdrawal)):
            for index, change in enumerate(changes):
                _known(change.island, names, key=f"{table}[{index}].island", what="islands")
        _possible_shares(self.shares, self.island)
        return self

    @classmethod
    def load(cls, path: Path | str) -> Fleet:
        """The fleet in a TOML file. InputError for whatever is wrong."""
        return cls.from_dict(strict.load_toml(path), file=path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, file: Path | str | None = None) -> Fleet:
        """The fleet in plain tables, as in run.json. InputError as `load`."""
        return strict.validate(cls, strict.take_schema(data, file=file or "fleet"), file=file)

    def as_dict(self) -> dict[str, Any]:
        """All keys as plain tables that `from_dict` reads back."""
        return self.model_dump(exclude_none=True)

    def digest(self) -> str:
        """The digest of everything in the fleet."""
        return digest_of(self.as_dict())


def _unique(what: str, names: Iterable[str]) -> None:
    """InputError for a name that is there twice."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            key, fix = f"{what}[{index}].name", f"give each {what} its own name"
            raise InputError(f"there is another {what} of this name", key=key, value=name, fix=fix)
        seen.add(name)


def _known(name: str, names: list[str], *, key: str, what: str) -> None:
    """InputError with the nearest name if `name` is not among `names`."""
    if name not in names:
        fix = strict.nearest(name, names, what=what)
        raise InputError(f"is none of the {what} of this file", key=key, value=name, fix=fix)


def _possible_shares(shares: Shares, islands: list[Island]) -> None:
    """InputError for shares by which nobody would compute anything."""
    given = [island.share for island in islands]
    if all(share == 0 for share in given):
        message, key = "every island has share 0: nobody would compute", "island[0].share"
        raise InputError(message, key=key, value=given[0], fix="give one a share above 0")
    if shares.mode == "fixed" and None in given:
        key = f"island[{given.index(None)}].share"
        fix = 'write share = 1, or mode = "auto" in [shares]'
        raise InputError("fixed shares need a share for every island", key=key, fix=fix)
