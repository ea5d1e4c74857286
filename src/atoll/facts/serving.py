"""Serving as data: published speeds, how far they are from arithmetic, days of requests, times.

Everything is in facts/serving.toml; the arithmetic is `atoll.planning.capacity`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field

from atoll import strict, units


class Speed(strict.Noun):
    """A published speed of a model on a chip; `rate` is tokens a second of all `chips`.

    `of` says what was timed: "both" (tokens written, prompts computed on the same chips, `batch`
    requests at once), "prompt" (tokens read) or "tokens" (tokens written, one every `each`).
    `cached` is the part of the prompt that was not computed, and counts in the rate.
    """

    of: Literal["both", "prompt", "tokens"]
    model: str
    chip: str
    weights: str
    cache: str
    tokens_in: int = Field(gt=0)
    tokens_out: int = Field(gt=0)
    chips: int = Field(gt=0)
    tp: int = Field(gt=0)
    devices: int = Field(gt=0)
    rate: float = Field(gt=0)
    batch: int | None = None
    each: str | None = None
    cached: float = 0.0
    source: str = Field(min_length=1)


class Factor(strict.Noun):
    """A number that is not known exactly, and where it is from."""

    low: float = Field(gt=0)
    mid: float = Field(gt=0)
    high: float = Field(gt=0)
    source: str = Field(min_length=1)


class Times(strict.Noun):
    """A time or a bandwidth as text, low to high, and where it is from."""

    low: str
    mid: str
    high: str
    source: str = Field(min_length=1)

    def seconds(self) -> tuple[float, float, float]:
        """Low, mid, high."""
        low, mid, high = (units.parse_seconds(one) for one in (self.low, self.mid, self.high))
        return low, mid, high

    def bandwidths(self) -> tuple[float, float, float]:
        """Low, mid, high in bytes a second."""
        low, mid, high = (units.parse_bandwidth(one) for one in (self.low, self.mid, self.high))
        return low, mid, high


class Overhead(strict.Noun):
    """Seconds a layer that a step of tokens takes besides, as text."""

    layer: str
    source: str = Field(min_length=1)


class Day(strict.Noun):
    """Requests by hour of the day as somebody counted them, by the clocks of the place."""

    name: str
    requests: list[float] = Field(min_length=24, max_length=24)
    source: str = Field(min_length=1)


class Serving(strict.Noun):
    """The whole file."""

    slowness: Factor
    overhead: Overhead
    start: Times
    load: Times
    day: list[Day] = Field(min_length=1)
    speed: list[Speed] = Field(min_length=1)


@cache
def serving() -> Serving:
    """The facts of serving."""
    path = Path(str(resources.files("atoll.facts"))) / "serving.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return strict.validate(Serving, data, file=path)
