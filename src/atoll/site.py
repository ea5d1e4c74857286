"""Site: places, whose they are, what power and electricity they have, and the links between them.

Nouns of a fleet file; what stands at a site is `atoll.fleet`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from atoll import strict, units
from atoll.errors import InputError
from atoll.facts import countries
from atoll.hours import parse_offset
from atoll.strict import Noun
from atoll.supply import Dollars

HERE = "here"
"""The site of islands that name none: the machine that runs the command."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]


def _known_country(value: str) -> str:
    """The code of a country; InputError if there is none."""
    try:
        return countries.country(value, key="")
    except InputError as error:
        error.key = None
        raise


Country = Annotated[str, AfterValidator(_known_country)]


class Site(Noun):
    """One place: where it is, whose it is, its power and uplink (as text with a unit).

    `mode` is how its chips are had; `owner_hq` and `operator_hq` are the countries (two letters)
    of the headquarters of the owner's ultimate parent and of the operator. Rules ask for them.
    `power` is at the meter: of each watt of a chip `power_factor` are drawn there, None as
    published (facts/power.toml). `electricity` is US dollars a kWh at the meter.
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
    power_factor: float | None = Field(default=None, ge=1, le=10)
    electricity: Dollars | None = None
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


def paths(
    sites: Sequence[Site], links: Sequence[Link], a: str, b: str
) -> list[tuple[float, float]]:
    """(bytes a second, seconds of latency) of all ways worth taking from one site to another.

    The widest first, and each narrower one is quicker; empty inside a site. A way is as wide as its
    narrowest part and may lead through other sites; none carries more than the uplink of a site
    that it touches. InputError if no links join the two.
    """
    names = [HERE, *(site.name for site in sites if site.name != HERE)]
    for name in (a, b):
        require_known(name, names, key="link.between", what="sites")
    if a == b:
        return []
    uplinks = {one.name: units.parse_bandwidth(one.uplink) for one in sites if one.uplink}
    edges = []
    for link in links:
        ends = [uplinks[end] for end in link.between if end in uplinks]
        edges.append((min([link.bytes_per_second, *ends]), link))
    found: list[tuple[float, float]] = []
    for width in sorted({capacity for capacity, _ in edges}, reverse=True):
        wide = [link for capacity, link in edges if capacity >= width > 0]
        latency = _least_latency(wide, *sorted((a, b)))  # the same both ways
        if latency is not None and (not found or latency < found[-1][1] * (1.0 - 1e-9)):
            found.append((width, latency))
    if not found:
        fix = f'add a [[link]] with between = ["{a}", "{b}"], or links that lead there'
        raise InputError(f"no link leads from {a} to {b}", key="link", fix=fix)
    return found


def _least_latency(links: list[Link], a: str, b: str) -> float | None:
    """Seconds over the quickest chain of links from a to b, None if there is none (Dijkstra)."""
    queue, seen = [(0.0, a)], set()
    while queue:
        latency, here = heapq.heappop(queue)
        if here == b:
            return latency
        if here in seen:
            continue
        seen.add(here)
        for link in links:
            if here in link.between:
                there = link.between[here == link.between[0]]
                heapq.heappush(queue, (latency + link.latency_seconds, there))
    return None


def require_known(name: str, names: list[str], *, key: str, what: str) -> None:
    """InputError with the nearest name if `name` is not among `names`."""
    if name not in names:
        fix = strict.nearest(name, names, what=what)
        raise InputError(f"is none of the {what} of this file", key=key, value=name, fix=fix)
