"""Power around a chip as data: server and cooling by the chip's own watts; facts/power.toml."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from atoll import strict
from atoll.errors import InputError


class Factor(strict.Noun):
    """Times of what is inside: low <= mid <= high."""

    low: float = Field(ge=1, le=10)
    mid: float = Field(ge=1, le=10)
    high: float = Field(ge=1, le=10)
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise InputError("must hold low <= mid <= high", fix="sort the three numbers")
        return self


class Power(strict.Noun):
    """The two factors between a chip and the meter."""

    server: Factor
    cooling: Factor

    def at_the_meter(self) -> tuple[float, float, float]:
        """Low, mid and high watts at the meter for each watt of a chip."""
        return (
            self.server.low * self.cooling.low,
            self.server.mid * self.cooling.mid,
            self.server.high * self.cooling.high,
        )


@cache
def published() -> Power:
    """What was published of servers and halls."""
    path = Path(str(resources.files("atoll.facts"))) / "power.toml"
    return strict.validate(Power, strict.take_schema(strict.load_toml(path), file=path), file=path)
