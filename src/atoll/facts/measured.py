"""Measured facts: what one chip was seen to do, and what lies between the measured points.

A file of this form is written by `atoll measure` on the machine itself. Its source is its date and
its host; every number is the median of several repeats and stands between their extremes. It is no
part of the package: the planner finds it in a folder that the user names (`measured_in`). Between
points answers are interpolated; what was not measured at all is None, never guessed.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from atoll import strict, units
from atoll.errors import InputError

FOLDER = "measured"
"""Where a folder of own facts keeps the files of this form."""

NumberFormat = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
Direction = Literal["host-to-device", "device-to-host", "device-to-device"]

_NEAR = 6
"""Weight of a measured product falls with this power of its distance. Above 3, the number of
dimensions, many far ones cannot outweigh a near one; 6 erred least on a product left out of a full
sweep on a CPU (docs/measure.md)."""


def _above_zero(parse: Callable[[str], float]) -> AfterValidator:
    """A check that a text is a quantity of that unit, and not none of it."""

    def check(text: str) -> str:
        if not parse(text) > 0:
            raise InputError("is nothing; leave out what was not measured", value=text)
        return text

    return AfterValidator(check)


Size = Annotated[str, _above_zero(units.parse_bytes), Field(examples=["64 KiB"])]
Speed = Annotated[str, _above_zero(units.parse_flops), Field(examples=["612.3 GFLOP/s"])]
Bandwidth = Annotated[str, _above_zero(units.parse_bandwidth), Field(examples=["12.4 GB/s"])]
Time = Annotated[str, _above_zero(units.parse_seconds), Field(examples=["1.23 ms"])]
Positive = Annotated[int, Field(ge=1)]


_Shape = tuple[int, int, int]


class _Seen(strict.Noun):
    """A median between `low` and `high`, the extremes of `repeats` repeats; text of one unit."""

    VALUE: ClassVar[str]
    """The field of the median."""
    PARSE: ClassVar[Callable[[str], float]]

    @model_validator(mode="after")
    def _is_between_extremes(self) -> Self:
        low, value, high = (self._number(name) for name in ("low", self.VALUE, "high"))
        if not low <= value <= high:
            shown = getattr(self, self.VALUE)
            raise InputError("is not between low and high", key=self.VALUE, value=shown)
        return self

    def _number(self, name: str) -> float:
        return type(self).PARSE(getattr(self, name))


class Gemm(_Seen):
    """The speed of one matrix product, (m, k) times (k, n); `m` are the rows, that is, tokens.

    FLOP are 2 m n k. The second factor lies in memory as (n, k), as a linear layer keeps it.
    """

    VALUE: ClassVar[str] = "flops"
    PARSE: ClassVar[Callable[[str], float]] = staticmethod(units.parse_flops)

    m: Positive
    n: Positive
    k: Positive
    dtype: NumberFormat
    flops: Speed
    low: Speed
    high: Speed
    repeats: Positive

    @property
    def per_second(self) -> float:
        """The median speed in FLOP/s."""
        return units.parse_flops(self.flops)


class Copy(_Seen):
    """How fast the device copies a block of `size` within its memory: bytes read plus written."""

    VALUE: ClassVar[str] = "bandwidth"
    PARSE: ClassVar[Callable[[str], float]] = staticmethod(units.parse_bandwidth)

    size: Size
    bandwidth: Bandwidth
    low: Bandwidth
    high: Bandwidth
    repeats: Positive


class Memory(strict.Noun):
    """The memory of one device; `size` is None where its stack does not say."""

    size: Size | None = None
    copies: list[Copy] = Field(min_length=1)


class Link(_Seen):
    """The time in which `size` goes from one place to the other; host memory is pageable."""

    VALUE: ClassVar[str] = "seconds"
    PARSE: ClassVar[Callable[[str], float]] = staticmethod(units.parse_seconds)

    direction: Direction
    size: Size
    seconds: Time
    low: Time
    high: Time
    repeats: Positive


class Collective(_Seen):
    """The time of one collective over `ranks` devices of one host.

    `size` is the whole tensor: what each rank holds of it before a reduce_scatter and after an
    all_gather, and what each rank sends, to itself too, in an all_to_all.
    """

    VALUE: ClassVar[str] = "seconds"
    PARSE: ClassVar[Callable[[str], float]] = staticmethod(units.parse_seconds)

    op: Operation
    ranks: Annotated[int, Field(ge=2)]
    size: Size
    seconds: Time
    low: Time
    high: Time
    repeats: Positive


class Host(strict.Noun):
    """The machine and the software that were measured; the source of every number beside it.

    `threads` is of one device where devices are CPU lanes. `settings` is what the backend says
    about libraries and flags.
    """

    device: str = Field(min_length=1)
    processor: str = Field(min_length=1)
    cores: Positive
    threads: Positive
    torch: str = Field(min_length=1)
    driver: str | None = None
    collective: str = Field(min_length=1)
    settings: dict[str, str | int | bool] = {}


class LeftOut(strict.Noun):
    """Something that was not measured, and why."""

    what: str = Field(min_length=1)
    why: str = Field(min_length=1)


class Measured(strict.Noun):
    """All that one run of `atoll measure` saw of one chip."""

    chip: str = Field(min_length=1)
    date: datetime.date = Field(examples=["2026-11-25"])
    host: Host
    memory: Memory | None = None
    gemm: list[Gemm] = Field(min_length=1)
    link: list[Link] = []
    collective: list[Collective] = []
    left_out: list[LeftOut] = []

    @model_validator(mode="after")
    def _measures_no_point_twice(self) -> Self:
        copies = self.memory.copies if self.memory is not None else []
        _no_twice("gemm", [(g.m, g.n, g.k, g.dtype) for g in self.gemm])
        _no_twice("memory.copies", [units.parse_bytes(c.size) for c in copies])
        _no_twice("link", [(x.direction, units.parse_bytes(x.size)) for x in self.link])
        _no_twice(
            "collective", [(c.op, c.ranks, units.parse_bytes(c.size)) for c in self.collective]
        )
        return self

    def gemm_flops(self, m: int, n: int, k: int, dtype: str) -> float | None:
        """FLOP/s of the product (m, k) times (k, n) in `dtype`; None if none of it was measured.

        Exact at measured points. Between them an average of the logarithms, weighted by inverse
        distance in (log m, log n, log k) (Shepard 1968), so never above the fastest or below
        the slowest product. Dimensions beyond the measured ones count as the outermost
        measured one: a product larger than all is as fast as the largest.
        """
        seen = {(g.m, g.n, g.k): g.per_second for g in self.gemm if g.dtype == dtype}
        return _interpolated((m, n, k), seen) if seen else None

    def gemm_peak(self, dtype: str) -> float | None:
        """FLOP/s of the fastest product in `dtype`; None if none was measured."""
        return max((g.per_second for g in self.gemm if g.dtype == dtype), default=None)

    def collective_seconds(self, op: str, ranks: int, num_bytes: float) -> float | None:
        """Seconds of `op` on a tensor of `num_bytes` bytes; None if not measured over `ranks`.

        Exact at measured sizes and a power law between neighbours. Beyond the largest size the
        smallest one's time (latency) plus bytes at the rate in which the largest one went;
        below the smallest, its time.
        """
        return _time_of(
            num_bytes,
            ((c.size, c.seconds) for c in self.collective if (c.op, c.ranks) == (op, ranks)),
        )

    def link_seconds(self, direction: Direction, num_bytes: float) -> float | None:
        """Seconds of a copy of `num_bytes` bytes, by the same rules as collectives."""
        return _time_of(
            num_bytes, ((x.size, x.seconds) for x in self.link if x.direction == direction)
        )

    @property
    def memory_bytes_per_second(self) -> float | None:
        """Bytes a second read plus written while copying the largest block: no cache helps it."""
        if self.memory is None:
            return None
        largest = max(self.memory.copies, key=lambda copy: units.parse_bytes(copy.size))
        return units.parse_bandwidth(largest.bandwidth)


def load_measured(path: Path | str) -> Measured:
    """The measured facts of a file. InputError for anything else."""
    data = strict.take_schema(strict.load_toml(path), file=path)
    return strict.validate(Measured, data, file=path)


def measured_in(folder: Path | str) -> dict[str, Measured]:
    """Chip name -> its newest measured facts in `folder`/measured/*.toml; {} if there are none.

    InputError if `folder` is none, and for two files of one chip and day: neither is newer.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fix = "a folder is needed that holds measured/*.toml (`atoll measure` writes one)"
        raise InputError("is no folder", file=folder, fix=fix)
    newest: dict[str, tuple[Path, Measured]] = {}
    for path in sorted((folder / FOLDER).glob("*.toml")):
        found = load_measured(path)
        other = newest.get(found.chip)
        if other is not None and other[1].date == found.date:
            raise InputError(
                f"measures {found.chip} on the same day as {other[0]}; neither is newer",
                file=path,
                key="date",
                value=found.date,
                fix="move one of the two out of the folder",
            )
        if other is None or other[1].date < found.date:
            newest[found.chip] = (path, found)
    return {chip: found for chip, (_, found) in newest.items()}


def to_toml(measured: Measured) -> str:
    """The text of the file; `load_measured` reads it back as it was. A line for each number."""
    content = measured.model_dump(exclude_none=True)
    lines = [
        f"schema = {strict.SCHEMA}",
        f"chip = {_text(content.pop('chip'))}",
        f"date = {content.pop('date').isoformat()}",
    ]
    for table in ("host", "memory"):
        for key, value in content.pop(table, {}).items():
            name = f"{table}.{key}"
            if isinstance(value, dict):
                lines += [f"{name}.{_key(k)} = {_text(v)}" for k, v in value.items()]
            elif isinstance(value, list):
                lines += _entries(name, value)
            else:
                lines.append(f"{name} = {_text(value)}")
    for name, entries in content.items():
        lines += _entries(name, entries)
    return "\n".join(lines) + "\n"


def exact_size(num_bytes: int) -> str:
    """Bytes with the largest binary unit that leaves no fraction: 65536 -> "64 KiB"."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes and num_bytes % (1 << power) == 0:
            return f"{num_bytes >> power} {unit}"
    return f"{num_bytes} B"


def _key(key: str) -> str:
    """A key of a TOML table, in quotes where it needs them."""
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else _text(key)


def _text(value: str | int | bool) -> str:
    """A plain value as TOML; JSON's text, numbers and booleans are TOML's too, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _entries(name: str, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """A list of small tables, one a line, below a blank line; nothing for an empty one."""
    lines = []
    for entry in entries:
        pairs = ", ".join(f"{key} = {_text(value)}" for key, value in entry.items())
        lines.append(f"  {{ {pairs} }},")
    return ["", f"{name} = [", *lines, "]"] if lines else []


def _no_twice(key: str, points: Sequence[object]) -> None:
    """InputError if two entries of a list are of the same point."""
    seen: dict[object, int] = {}
    for index, point in enumerate(points):
        if point in seen:
            message = f"measures the same as entry {seen[point]}; a point has one number"
            raise InputError(message, key=f"{key}[{index}]", fix="remove one of the two")
        seen[point] = index


def _interpolated(point: _Shape, seen: Mapping[_Shape, float]) -> float:
    """The value at a point from those at others, by inverse distance of logarithms."""
    least, most = (tuple(map(pick, zip(*seen, strict=True))) for pick in (min, max))
    m, n, k = (min(max(x, a), b) for x, a, b in zip(point, least, most, strict=True))
    inside = (m, n, k)
    if inside in seen:
        return seen[inside]
    total = sum_of_weights = 0.0
    for other, value in seen.items():
        distance = math.dist([math.log(x) for x in inside], [math.log(x) for x in other])
        if distance == 0:
            return value  # neighbours so large that their logarithms are one number
        weight = distance**-_NEAR
        total += weight * math.log(value)
        sum_of_weights += weight
    middle = math.exp(total / sum_of_weights)
    return min(max(middle, min(seen.values())), max(seen.values()))


def _time_of(num_bytes: float, points: Iterable[tuple[str, str]]) -> float | None:
    """Seconds for `num_bytes` from (size, seconds) pairs; None without any."""
    assert num_bytes > 0
    known = sorted((units.parse_bytes(size), units.parse_seconds(time)) for size, time in points)
    if not known:
        return None
    (first, latency), (last, longest) = known[0], known[-1]
    if num_bytes <= first:
        return latency
    if num_bytes > last:
        # A largest message that took less time than the smallest tells nothing about latency.
        fixed = latency if first < last and latency < longest else 0.0
        return fixed + (longest - fixed) * num_bytes / last
    for (small, below), (large, above) in itertools.pairwise(known):
        if num_bytes == large:
            return above
        if num_bytes < large:
            part = math.log(num_bytes / small) / math.log(large / small)
            return below * math.exp(part * math.log(above / below))
    raise AssertionError("a size between the smallest and the largest has neighbours")
