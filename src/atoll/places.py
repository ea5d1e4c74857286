"""Places: sites, the links between them, the network of an island; names and where they are.

Nouns of a fleet file; `atoll.fleet` holds them together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from atoll import facts, units
from atoll.errors import InputError
from atoll.facts import countries
from atoll.hours import parse_offset
from atoll.strict import Noun

HERE = "here"
"""The site of islands that name none: the machine that runs the command."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]


def _known_chip(value: str) -> str:
    """The name itself; InputError with the nearest one if the facts hold no such chip."""
    try:
        facts.chip(value)
    except InputError as error:
        if not facts.is_chip_file(value):
            error.key = None
            raise
        message = f"is a file of a chip that does not load: {str(error).splitlines()[0]}"
        raise InputError(message, value=value, fix=error.fix) from None
    return value


def _known_country(value: str) -> str:
    """The code of a country; InputError if there is none."""
    try:
        return countries.country(value, key="")
    except InputError as error:
        error.key = None
        raise


Country = Annotated[str, AfterValidator(_known_country)]
ChipName = Annotated[str, AfterValidator(_known_chip)]


class Site(Noun):
    """One place: where it is, whose it is, its power and uplink (as text with a unit).

    `mode` is how its chips are had; `owner_hq` and `operator_hq` are the countries (two letters)
    of the headquarters of the owner's ultimate parent and of the operator. Rules ask for them.
    `utc` is how far its clocks are ahead of UTC: "+08:00".
    """

    name: Name
    country: str = ""
    owner: str = ""
    operator: str = ""
    mode: Literal["buy", "own-abroad", "lease", "api"] | None = None
    owner_hq: Country | None = None
    operator_hq: Country | None = None
    power: str | None = None
    uplink: str | None = None
    utc: str | None = None

    @field_validator("power")
    @classmethod
    def _is_power(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_watts(value)
        return value

    @field_validator("utc")
    @classmethod
    def _is_offset(cls, value: str | None) -> str | None:
        if value is not None:
            parse_offset(value)
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


class Network(Noun):
    """The network between the nodes of an island.

    `bandwidth` is of one chip in one direction; both as text with a unit. Without `latency` a
    planner takes its own.
    """

    bandwidth: str = Field(examples=["200 Gb/s"])
    latency: str | None = None

    @field_validator("bandwidth")
    @classmethod
    def _is_bandwidth(cls, value: str) -> str:
        if units.parse_bandwidth(value) == 0:
            raise InputError("must be more than 0", value=value, fix='for example "200 Gb/s"')
        return value

    @field_validator("latency")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_seconds(value)
        return value

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth of one chip in bytes a second."""
        return units.parse_bandwidth(self.bandwidth)

    @property
    def latency_seconds(self) -> float | None:
        """The latency in seconds, None where the file does not say."""
        return None if self.latency is None else units.parse_seconds(self.latency)
