"""Facts: chips, known model shapes and corpora, read from data files with their sources.

A number without a source does not load, and a number that nobody knows is absent, never guessed.
This package holds no arithmetic beyond units.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from atoll import strict, units
from atoll.errors import InputError


class Memory(strict.Noun):
    """The memory of one chip; `size` and `bandwidth` as text with a unit."""

    size: str
    bandwidth: str | None = None
    source: str = Field(min_length=1)

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        units.parse_bytes(value)
        return value

    @field_validator("bandwidth")
    @classmethod
    def _is_bandwidth(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_bandwidth(value)
        return value

    @property
    def num_bytes(self) -> int:
        """The size in bytes."""
        return units.parse_bytes(self.size)

    @property
    def bytes_per_second(self) -> float | None:
        """The bandwidth in bytes a second, None where unknown."""
        return None if self.bandwidth is None else units.parse_bandwidth(self.bandwidth)


class Flops(strict.Noun):
    """Dense matrix speed per number format, as text with a unit; None is unknown."""

    fp32: str | None = None
    tf32: str | None = None
    fp16: str | None = None
    bf16: str | None = None
    fp8: str | None = None
    int8: str | None = None
    source: str = Field(min_length=1)

    @field_validator("fp32", "tf32", "fp16", "bf16", "fp8", "int8")
    @classmethod
    def _is_speed(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_flops(value)
        return value

    def per_second(self, number_format: str) -> float | None:
        """Dense FLOP/s for "bf16" and so on; None where unknown."""
        value = getattr(self, number_format) if number_format in Flops.model_fields else None
        return None if value is None else units.parse_flops(value)


class Chip(strict.Noun):
    """A kind of accelerator that one can buy, or a kind of CPU process.

    `environment` is what a process needs before it imports the vendor's libraries in order to be
    this chip.
    """

    name: str = Field(min_length=1)
    backend: Literal["cpu", "nvidia", "ascend", "cambricon", "here"]
    description: str = Field(min_length=1)
    environment: dict[str, str] = {}
    memory: Memory | None = None
    flops: Flops | None = None
    notes: list[str] = []


class ModelFacts(strict.Noun):
    """A published model shape and where it was published."""

    description: str = Field(min_length=1)
    source: str = Field(min_length=1)
    model: dict[str, bool | int | float]


def chips() -> list[str]:
    """The names of all chips, sorted."""
    return _names("chips")


@cache
def chip(name: str) -> Chip:
    """The facts of a chip. InputError with the nearest name if there is none."""
    if name not in chips():
        fix = strict.nearest(name, chips(), what="chips")
        raise InputError("there is no such chip", key="chip", value=name, fix=fix)
    path = _folder() / "chips" / f"{name}.toml"
    return strict.validate(Chip, strict.take_schema(strict.load_toml(path), file=path), file=path)


def model_presets() -> list[str]:
    """The names of all model presets, sorted."""
    return _names("models")


def model_preset(name: str) -> dict[str, Any]:
    """The keys of a `[model]` table. InputError with the nearest name if there is none."""
    if name not in model_presets():
        fix = strict.nearest(name, model_presets(), what="presets")
        raise InputError("there is no such preset", key="preset", value=name, fix=fix)
    path = _folder() / "models" / f"{name}.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return dict(strict.validate(ModelFacts, data, file=path).model)


@cache
def corpora() -> dict[str, Any]:
    """The tables of facts/corpora.toml: name -> facts; `atoll.data.corpora` knows their meaning."""
    path = _folder() / "corpora.toml"
    return strict.take_schema(strict.load_toml(path), file=path)


def _names(kind: str) -> list[str]:
    """The names of the data files of a kind, sorted."""
    return sorted(path.stem for path in (_folder() / kind).glob("*.toml"))


def _folder() -> Path:
    """Where the data files lie; the package is always installed as plain files."""
    return Path(str(resources.files(__package__)))
