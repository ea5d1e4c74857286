"""Traffic: whom an island serves, how many requests come at which hour, within which target.

Nouns of a fleet file; how many chips that takes is `atoll.planning.capacity`, what is left for
training `atoll.planning.sharing`.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from atoll import facts, strict, units
from atoll.errors import InputError
from atoll.facts.serving import serving
from atoll.strict import Noun

HOURS = 24


class Span(Noun):
    """A time that is not known exactly, as text: low <= mid <= high."""

    low: str
    mid: str
    high: str

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, mid, high = self.seconds
        if not low <= mid <= high:
            raise InputError("must hold low <= mid <= high", fix="sort the three times")
        return self

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Low, mid and high."""
        low, mid, high = (units.parse_seconds(text) for text in (self.low, self.mid, self.high))
        return low, mid, high


def _as_span(value: object) -> object:
    """A time that is known exactly, as text, is a span of one length."""
    return {"low": value, "mid": value, "high": value} if isinstance(value, str) else value


def _as_day(value: object) -> object:
    """A name, or numbers; InputError for anything else."""
    numbers = isinstance(value, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in value
    )
    if not numbers and not isinstance(value, str):
        fix = "the name of a published day, a CSV file, or 24 numbers"
        raise InputError("is no day of requests", value=value, fix=fix)
    return value


Times = Annotated[Span, BeforeValidator(_as_span)]


class Traffic(Noun):
    """Requests that an island serves; tokens and targets are means of a request.

    `day` says when they come, by the clocks of the island's site: the name of a published day
    (`facts/serving.toml`), a CSV file with the columns hour and requests, or 24 numbers from 0:00
    on. With `requests` a day, or `users` and `requests_per_user` a day, only its shape counts;
    without, the numbers are the requests of each hour. `model` is a preset; None means the
    recipe's. `cached` is the part of a prompt that need not be computed. Chips are kept for `burst`
    times the requests of an hour. `lend` is how long chips are of no use to anybody when they go
    over to training, `give_back` when they return; None means what can be reckoned. `load` is the
    bandwidth of a node's storage.
    """

    island: str
    day: Annotated[str | list[float], BeforeValidator(_as_day)] = Field(examples=["burstgpt"])
    model: str | None = None
    requests: str | None = None
    users: str | None = None
    requests_per_user: float | None = Field(default=None, gt=0, le=1e6)
    tokens_in: int = Field(gt=0, le=2**30, examples=[1000])
    tokens_out: int = Field(gt=0, le=2**30, examples=[300])
    cached: float = Field(default=0.0, ge=0, le=0.99)
    time_to_first_token: str = Field(examples=["2 s"])
    time_per_token: str = Field(examples=["50 ms"])
    burst: float = Field(default=1.5, ge=1, le=100)
    weights: Literal["bf16", "fp16", "fp8", "int8"] = "bf16"
    cache: Literal["bf16", "fp16", "fp8", "int8"] = "bf16"
    lend: Times | None = None
    give_back: Times | None = None
    load: str | None = None

    @field_validator("day")
    @classmethod
    def _is_a_day(cls, value: str | list[float]) -> str | list[float]:
        if isinstance(value, str):
            names = [one.name for one in serving().day]
            if value not in names:
                fix = strict.nearest(value, names, what="days") + "; or a CSV file, or 24 numbers"
                raise InputError("there is no such day", value=value, fix=fix)
            return value
        if len(value) != HOURS:
            message = f"has {len(value)} numbers"
            fix = "24 numbers: requests from 0:00 to 1:00, and so on"
            raise InputError(message, value=value if len(value) < 4 else "...", fix=fix)
        if min(value) < 0 or max(value) > 1e15 or not sum(value):
            fix = "numbers from 0 up, not all of them 0"
            raise InputError("is no day of requests", value=min(value), fix=fix)
        return value

    @field_validator("requests", "users")
    @classmethod
    def _is_count(cls, value: str | None) -> str | None:
        if value is not None and units.parse_count(value) == 0:
            raise InputError("must be more than 0", value=value, fix='for example "2 M"')
        return value

    @field_validator("time_to_first_token", "time_per_token")
    @classmethod
    def _is_time(cls, value: str) -> str:
        if units.parse_seconds(value) == 0:
            raise InputError("must be more than 0", value=value, fix='for example "50 ms"')
        return value

    @field_validator("load")
    @classmethod
    def _is_bandwidth(cls, value: str | None) -> str | None:
        if value is not None and units.parse_bandwidth(value) == 0:
            raise InputError("must be more than 0", value=value, fix='for example "4 GB/s"')
        return value

    @field_validator("model")
    @classmethod
    def _is_preset(cls, value: str | None) -> str | None:
        if value is not None and value not in facts.model_presets():
            fix = strict.nearest(value, facts.model_presets(), what="presets")
            raise InputError("there is no such preset", value=value, fix=fix)
        return value

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if (self.users is None) != (self.requests_per_user is None):
            key = "users" if self.users is None else "requests_per_user"
            fix = 'users = "2 M" and requests_per_user = 10, a day'
            raise InputError("is missing beside its other half", key=key, fix=fix)
        if self.users is not None and self.requests is not None:
            fix = "write requests, or users and requests_per_user"
            raise InputError("two numbers of requests", key="requests", fix=fix)
        if isinstance(self.day, str) and self.users is None and self.requests is None:
            message = "a published day is a shape alone: how many requests come in all is missing"
            raise InputError(message, key="requests", fix='for example requests = "20 M"')
        return self

    def hourly(self) -> list[float]:
        """Requests of each hour from 0:00 on, by the clocks of the site."""
        shape = self.day
        if isinstance(shape, str):
            shape = next(one.requests for one in serving().day if one.name == self.day)
        total = sum(shape)
        if self.requests is not None:
            total = float(units.parse_count(self.requests))
        elif self.users is not None and self.requests_per_user is not None:
            total = units.parse_count(self.users) * self.requests_per_user
        return [total * one / sum(shape) for one in shape]

    def hourly_utc(self, offset: float) -> list[float]:
        """Requests of each hour of UTC; `offset` is how far the site is ahead, in seconds.

        An hour that lies in two of the site's takes its part of each.
        """
        local = self.hourly()
        whole, part = divmod(offset / 3600.0, 1.0)
        return [
            (1.0 - part) * local[int(hour + whole) % HOURS]
            + part * local[int(hour + whole + 1) % HOURS]
            for hour in range(HOURS)
        ]


def with_day_file(table: Any, folder: Path) -> Any:
    """A table of traffic with the numbers of its CSV file. InputError names that file."""
    day = table.get("day") if isinstance(table, dict) else None
    if not isinstance(day, str) or not day.endswith(".csv") or "\0" in day:
        return table
    return {**table, "day": _read_day(folder / day)}


def _read_day(path: Path) -> list[float]:
    fix = "two columns, hour and requests, and a line for each hour from 0 to 23"
    rows = list(csv.DictReader(io.StringIO(strict.read_text(path))))
    found: dict[int, float] = {}
    for number, row in enumerate(rows, start=2):
        try:
            hour, requests = int(row["hour"]), float(row["requests"])
        except (KeyError, TypeError, ValueError):
            message = f"line {number} is no hour with its requests"
            raise InputError(message, file=path, fix=fix) from None
        if not 0 <= hour < HOURS or hour in found or not 0 <= requests < 1e15:
            message = f"line {number}: each hour from 0 to 23 once, its requests from 0 up"
            raise InputError(message, file=path, fix=fix)
        found[hour] = requests
    if len(found) != HOURS:
        missing = [str(hour) for hour in range(HOURS) if hour not in found]
        message = f"has no line for hour {', '.join(missing[:4])}"
        raise InputError(message, file=path, fix=fix)
    return [found[hour] for hour in range(HOURS)]
