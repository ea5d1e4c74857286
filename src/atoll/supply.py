"""Supply: chips over time - days, counts that are not known exactly, changes, leases, failures.

Nouns of a fleet file; what a fleet holds on a day is `atoll.fleet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from atoll import units
from atoll.errors import InputError
from atoll.strict import Noun

Which = Literal["low", "mid", "high"]
"""Which end of what is not known exactly."""


class Range(Noun):
    """A number that is not known exactly: low <= mid <= high."""

    low: int = Field(ge=0)
    mid: int = Field(ge=0)
    high: int = Field(ge=0)

    @model_validator(mode="before")
    @classmethod
    def _is_range(cls, value: object) -> object:
        if not isinstance(value, Mapping | cls):
            number = value if isinstance(value, int) and not isinstance(value, bool) else 32
            fix = f"if it is sure: {{ low = {number}, mid = {number}, high = {number} }}"
            raise InputError("is no range of chips", value=value, fix=fix)
        return value

    @field_validator("low", "mid", "high", mode="before")
    @classmethod
    def _is_count(cls, value: object) -> object:
        if isinstance(value, int) and not 0 <= value <= 2**40:
            message = "is no number of chips"
            fix = "a [[delivery]] adds chips and a [[withdrawal]] takes them: both count from 0 up"
            raise InputError(message, value=value, fix=fix)
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise InputError("must hold low <= mid <= high", fix="sort the three numbers")
        return self


def sane_day(day: date) -> date:
    """The day itself; InputError for one that no run of ours has seen or will see."""
    if not 2000 <= day.year <= 2100:
        fix = "a day from 2000-01-01 to 2100-12-31, for example 2024-07-01"
        raise InputError("is no day of our time", value=day.isoformat(), fix=fix)
    return day


def _from_text(value: object) -> object:
    """A day in text as a day: JSON has no dates, so a fleet inside run.json holds them as text."""
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise InputError("is no date", value=value, fix="write 2024-07-01") from None
    return value


def parse_day(text: str, *, key: str | None = None) -> date:
    """ "2024-07-01" as a day of our time. InputError with the key otherwise."""
    try:
        day = _from_text(text)
        assert isinstance(day, date)
        return sane_day(day)
    except InputError as fault:
        fault.key = key
        raise


Day = Annotated[
    date,
    BeforeValidator(_from_text),
    AfterValidator(sane_day),
    PlainSerializer(lambda day: day.isoformat(), return_type=str),
]


class Change(Noun):
    """Chips that arrive at an island, or are taken away from it, on a day.

    With a `probability` it may not happen at all: "low" of it is none then, "mid" its mid where it
    is as likely as not.
    """

    date: Day = Field(examples=["2024-07-01"])
    island: str
    count: Range
    probability: float | None = Field(default=None, gt=0, le=1)

    def chips(self, which: Which) -> int:
        """The number of chips at one end of what is not known."""
        likely = 1.0 if self.probability is None else self.probability
        happens = {"low": likely == 1.0, "mid": likely >= 0.5, "high": True}[which]
        return int(getattr(self.count, which)) if happens else 0


class Dollars(Noun):
    """US dollars between `low` and `high`; a plain number is both."""

    low: float = Field(ge=0, le=1e9)
    high: float = Field(ge=0, le=1e9)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"low": value, "high": value}
        if not isinstance(value, Mapping | cls):
            fix = "a fleet counts in US dollars: write a number, or { low = 1, high = 2 }"
            raise InputError("is no number of dollars", value=value, fix=fix)
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise InputError("must hold low <= high", fix="swap the two numbers")
        return self


class Delivery(Change):
    """Chips that arrive, at a `price` of one where it is another than the island's."""

    price: Dollars | None = None


class Costs(Noun):
    """How what is bought is counted: its price goes evenly over `years` of use."""

    years: float = Field(default=4.0, gt=0, le=100)


class Lease(Noun):
    """When an island may be used: from `start` to the day before `end`; None is open.

    `price` is US dollars for a chip and hour, paid for every chip that is there, used or not.
    """

    start: Day | None = None
    end: Day | None = None
    price: float | None = Field(default=None, ge=0, le=1e6)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start is not None and self.end is not None and self.end <= self.start:
            fix = f"a day after {self.start}: the first one without the island"
            raise InputError("ends before it begins", key="end", value=str(self.end), fix=fix)
        return self

    def holds(self, day: date) -> bool:
        """Whether the island may be used on a day."""
        begun = self.start is None or day >= self.start
        return begun and (self.end is None or day < self.end)


class Failures(Noun):
    """How often chips fail and how long an island is away then; None: what was published.

    `days` is the mean time between two failures of one chip, whatever makes a run stop for it.
    """

    mode: Literal["published", "none"] = "published"
    days: float | None = Field(default=None, gt=0, le=1e6)
    restart: str | None = None

    @field_validator("restart")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_seconds(value)
        return value
