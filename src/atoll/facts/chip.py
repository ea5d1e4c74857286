"""Chip: what is known of an accelerator that one can buy, every number with its source.

A quantity is text with a unit ("353.8 TFLOP/s"), or a table { low, mid, high } of such texts where
sources disagree or doubt is large. All speeds are dense, all bandwidths one direction. What nobody
published is absent. This module reads no files and knows no chip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from atoll import strict, units
from atoll.errors import InputError

FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8")
"""Number formats that a table of speeds may hold."""

Topology = Literal["switch", "mesh", "torus", "pairs", "bus"]


class Quantity(strict.Noun):
    """A number that may be in doubt: low <= mid <= high, as text with a unit, or one text."""

    UNIT: ClassVar[str]

    low: str
    mid: str
    high: str

    @classmethod
    def parse(cls, text: Any) -> float:
        """A text in base units. InputError for another unit, and for what is no text."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"low": value, "mid": value, "high": value}
        if not isinstance(value, Mapping | cls):
            cls.parse(value)  # raises, and says what to write
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        single = self.low == self.mid == self.high
        for name in ("low", "mid", "high"):
            try:
                self.parse(getattr(self, name))
            except InputError as error:
                error.key = None if single else name
                raise
        low, mid, high = self.range
        if not low <= mid <= high:
            raise InputError("must hold low <= mid <= high", fix="sort the three quantities")
        if low == 0:
            fix = "leave it out if it is not known"
            key = None if single else "low"
            raise InputError("must be more than 0", key=key, value=self.low, fix=fix)
        return self

    @property
    def range(self) -> tuple[float, float, float]:
        """Low, mid and high in base units."""
        return self.parse(self.low), self.parse(self.mid), self.parse(self.high)

    @property
    def value(self) -> float:
        """Mid in base units."""
        return self.parse(self.mid)


class Size(Quantity):
    """A number of bytes."""

    UNIT = "B"

    @classmethod
    def parse(cls, text: Any) -> float:
        """A text in base units."""
        return units.parse_bytes(text)


class Bandwidth(Quantity):
    """Bytes a second."""

    UNIT = "B/s"

    @classmethod
    def parse(cls, text: Any) -> float:
        """A text in base units."""
        return units.parse_bandwidth(text)


class Speed(Quantity):
    """Floating-point (or integer) operations a second."""

    UNIT = "FLOP/s"

    @classmethod
    def parse(cls, text: Any) -> float:
        """A text in base units."""
        return units.parse_flops(text)


class Watts(Quantity):
    """Electric power."""

    UNIT = "W"

    @classmethod
    def parse(cls, text: Any) -> float:
        """A text in base units."""
        return units.parse_watts(text)


class Area(strict.Noun):
    """Square millimetres of logic dies: a number, or { low, mid, high }."""

    UNIT: ClassVar[str] = "mm2"

    low: float = Field(gt=0)
    mid: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"low": value, "mid": value, "high": value}
        if not isinstance(value, Mapping | cls):
            fix = "write square millimetres as a number, for example die_area = 814"
            raise InputError("is no area", value=value, fix=fix)
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise InputError("must hold low <= mid <= high", fix="sort the three numbers")
        return self

    @property
    def range(self) -> tuple[float, float, float]:
        """Low, mid and high."""
        return self.low, self.mid, self.high


class Memory(strict.Noun):
    """The memory of one chip and how fast the chip reads it."""

    size: Size = Field(examples=["64 GB"])
    bandwidth: Bandwidth | None = None
    source: str = Field(min_length=1, examples=["data sheet of 2024-05"])

    @property
    def num_bytes(self) -> int:
        """The size in bytes, mid where sources disagree."""
        return int(self.size.value)

    @property
    def bytes_per_second(self) -> float | None:
        """The bandwidth in bytes a second (mid), None where unknown."""
        return None if self.bandwidth is None else self.bandwidth.value


class Flops(strict.Noun):
    """Dense matrix speed of one chip per number format; None is unknown."""

    fp32: Speed | None = None
    tf32: Speed | None = None
    fp16: Speed | None = None
    bf16: Speed | None = None
    fp8: Speed | None = None
    fp4: Speed | None = None
    int8: Speed | None = None
    source: str = Field(min_length=1, examples=["data sheet of 2024-05"])

    def range(self, number_format: str) -> tuple[float, float, float] | None:
        """Low, mid and high FLOP/s for "bf16" and so on; None where unknown."""
        speed = getattr(self, number_format) if number_format in FORMATS else None
        return speed.range if isinstance(speed, Speed) else None

    def per_second(self, number_format: str) -> float | None:
        """Dense FLOP/s (mid) for "bf16" and so on; None where unknown."""
        found = self.range(number_format)
        return None if found is None else found[1]


class Measured(Flops):
    """The best speed of large matrix products that somebody measured on one chip."""


class Link(strict.Noun):
    """The fast fabric that joins chips without a network.

    `bandwidth` is of one chip, all its links together, one direction; `chips` share the fabric. On
    a "mesh" every pair has its own wire, so k chips of it reach (k - 1) / (chips - 1) of the
    bandwidth; "bus" is the host's PCIe and nothing else. A topology that is not known is absent.
    """

    bandwidth: Bandwidth = Field(examples=["450 GB/s"])
    topology: Topology | None = None
    chips: int | None = Field(default=None, ge=1)
    source: str = Field(min_length=1, examples=["data sheet of 2024-05"])

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth in bytes a second (mid)."""
        return self.bandwidth.value


class Network(strict.Noun):
    """What one chip usually has towards other nodes, one direction."""

    bandwidth: Bandwidth = Field(examples=["400 Gb/s"])
    source: str = Field(min_length=1, examples=["our rack plan of 2025-01"])

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth in bytes a second (mid)."""
        return self.bandwidth.value


class Io(Network):
    """What leaves the chip through all its ports together, one direction.

    Absent where `link` is all of it.
    """


class Money(strict.Noun):
    """US dollars between `low` and `high`: to buy one chip, or to rent it for an hour."""

    low: float = Field(ge=0)
    high: float = Field(ge=0)
    source: str = Field(min_length=1, examples=["offer of 2025-01"])

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise InputError("must hold low <= high", fix="swap the two numbers")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One number of a chip under its key in the file, in base units, with source and basis.

    `basis` is "measured" for what somebody measured, "spec" for what somebody published.
    """

    key: str
    low: float
    mid: float
    high: float
    unit: str
    basis: Literal["spec", "measured"]
    source: str


class Chip(strict.Noun):
    """A kind of accelerator that one can buy, or a kind of CPU process.

    `aliases` are its names in published tables. `source` tells where the numbers come from that
    stand outside the tables. `devices` is how many torch devices one chip shows. `environment` is
    what a process needs before it imports the vendor's libraries in order to be this chip.
    `datacentre` is False for cards neither designed nor marketed for data centres.
    """

    FILE_KEYS = ("schema",)

    name: str = Field(min_length=1, examples=["my-chip"])
    backend: Literal["cpu", "nvidia", "ascend", "cambricon", "here"] = Field(examples=["here"])
    description: str = Field(min_length=1, examples=["the chip of our lab"])
    vendor: str | None = Field(default=None, min_length=1)
    year: int | None = Field(default=None, ge=1990, lt=2100)
    aliases: list[str] = []
    source: str | None = Field(default=None, min_length=1)
    confidence: Literal["high", "medium", "low"] | None = None
    devices: int = Field(default=1, ge=1, le=64)
    node_chips: int | None = Field(default=None, ge=1, le=1024)
    process: str | None = Field(default=None, min_length=1)
    die_area: Area | None = None
    datacentre: bool = True
    power: Watts | None = None
    collectives: str | None = Field(default=None, min_length=1)
    plugin: str | None = Field(default=None, min_length=1)
    environment: dict[str, str] = {}
    memory: Memory | None = None
    flops: Flops | None = None
    measured: Measured | None = None
    link: Link | None = None
    network: Network | None = None
    io: Io | None = None
    price: Money | None = None
    rent: Money | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _numbers_have_a_source(self) -> Self:
        loose = [number.key for number in self._loose_numbers()]
        if loose and self.source is None:
            fix = f'write source = "..." beside {", ".join(loose)}'
            raise InputError("a number needs a source", key="source", fix=fix)
        return self

    def numbers(self) -> list[Number]:
        """Every number of the chip, in the order of the file's tables."""
        return [*self._loose_numbers(), *self._numbers_of_tables()]

    def _loose_numbers(self) -> Iterator[Number]:
        """The numbers outside the tables."""
        plain = [("year", self.year, ""), ("node_chips", self.node_chips, "chips")]
        plain += [("devices", self.devices if self.devices > 1 else None, "devices")]
        for key, number, unit in plain:
            if number is not None:
                yield self._number(key, (number,) * 3, unit, self.source)
        for key, found in (("die_area", self.die_area), ("power", self.power)):
            if found is not None:
                yield self._number(key, found.range, found.UNIT, self.source)

    def _numbers_of_tables(self) -> Iterator[Number]:
        for table in ("memory", "flops", "measured", "link", "network", "io"):
            noun: Any = getattr(self, table)
            for key in type(noun).model_fields if noun is not None else ():
                value = getattr(noun, key)
                if isinstance(value, Quantity):
                    yield self._number(f"{table}.{key}", value.range, value.UNIT, noun.source)
                elif isinstance(value, int):
                    yield self._number(f"{table}.{key}", (value,) * 3, "chips", noun.source)
        for key, money, unit in (("price", self.price, "USD"), ("rent", self.rent, "USD/h")):
            if money is not None:
                between = (money.low, (money.low + money.high) / 2, money.high)
                yield self._number(key, between, unit, money.source)

    @staticmethod
    def _number(
        key: str, between: tuple[float, float, float], unit: str, source: str | None
    ) -> Number:
        low, mid, high = between
        basis: Literal["spec", "measured"] = "measured" if key.startswith("measured.") else "spec"
        return Number(
            key=key, low=low, mid=mid, high=high, unit=unit, basis=basis, source=source or ""
        )
