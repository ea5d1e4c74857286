"""Failures as data: how often chips stop a run, how long they are away; facts/failures.toml.

What a failure costs a run is `atoll.planning.goodput`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field

from atoll import strict, units

DAY = 86400.0


class Counted(strict.Noun):
    """Interruptions that somebody counted on chips of one kind."""

    chip: str = Field(min_length=1)
    interruptions: int = Field(gt=0)
    chips: int = Field(gt=0)
    days: float = Field(gt=0)
    source: str = Field(min_length=1)

    @property
    def per_chip_second(self) -> float:
        """Interruptions of one chip in a second."""
        return self.interruptions / (self.chips * self.days * DAY)


class _Range(strict.Noun):
    low: float = Field(gt=0, le=1)
    high: float = Field(ge=1)
    source: str = Field(min_length=1)


class _Restart(strict.Noun):
    low: str
    mid: str
    high: str
    source: str = Field(min_length=1)


class _Failures(strict.Noun):
    rate: list[Counted] = Field(min_length=1)
    range: _Range
    restart: _Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRate:
    """Failures of one chip in a second, low to high; `known`: counted on this very chip."""

    low: float
    mid: float
    high: float
    known: bool
    source: str


@cache
def _file() -> _Failures:
    path = Path(str(resources.files("atoll.facts"))) / "failures.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return strict.validate(_Failures, data, file=path)


def rate_of(chip: str) -> FailureRate:
    """The rate that was counted on a chip; where nobody did, that of the first chip counted."""
    file = _file()
    own = next((one for one in file.rate if one.chip == chip), None)
    counted = own or file.rate[0]
    mid = counted.per_chip_second
    return FailureRate(
        low=mid * file.range.low, mid=mid, high=mid * file.range.high, known=own is not None,
        source=counted.source,
    )  # fmt: skip


def restart_seconds() -> tuple[float, float, float]:
    """Low, mid and high seconds until what failed computes again."""
    again = _file().restart
    low, mid, high = (units.parse_seconds(text) for text in (again.low, again.mid, again.high))
    return low, mid, high
