"""Rules: dated data on who may get which chip where: facts/rules/*.toml.

A file is one rule: when it is in force, whom it reaches, its thresholds and what follows, with its
source. What a chip makes of them is `atoll.planning.thresholds`, what follows for somebody
`atoll.planning.rules`. It is engineering input and no legal advice.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from atoll import strict, units
from atoll.errors import InputError
from atoll.facts import countries
from atoll.facts.chip import FORMATS

NO_ADVICE = "This is engineering input, read from dated sources. It is no legal advice."
"""What stands under everything that is said about rules."""

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "fp4": 4, "int8": 8}
"""Bits of the inputs of an operation, by number format (technical notes of 88 FR 73458).

tf32 is not counted: how many bits it has was not found in the text of a rule.
"""

Mode = Literal["buy", "own-abroad", "lease", "api"]
"""How somebody gets at chips: buys them, has a data centre abroad, leases, or calls an API."""

MODES: tuple[Mode, ...] = get_args(Mode)

Result = Literal[
    "none",
    "flag",
    "guidance",
    "exception",
    "notify",
    "approval",
    "case-by-case",
    "licence",
    "denial",
]
"""What follows, from nothing to a licence whose denial is presumed."""

SEVERITY: tuple[Result, ...] = get_args(Result)
"""From the mildest to the gravest."""

REFUSED: Result = "licence"
"""The mildest result on which nothing is planned, if nobody says another: a licence that is needed,
and of which nothing says that it is given.
"""

Confidence = Literal["high", "medium", "low"]


def _a_date(value: object) -> object:
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    raise InputError("is no date", value=value, fix="write 2024-07-01, without quotes")


def _a_place(value: str) -> str:
    if countries.is_place(value):
        return value
    if value in ("CHN", "China", "PRC"):
        raise InputError("there is no such country", value=value, fix='nearest: "CN" (China)')
    known = ", ".join(countries.groups())
    fix = f'write two letters as in ISO 3166, for example "CN", or a group: {known}'
    raise InputError("there is no such country", value=value, fix=fix)


def _a_country(value: str) -> str:
    if value not in countries.countries():
        return countries.country(value, key="")  # raises, with the nearest
    return value


def _without_key(value: str) -> str:
    try:
        return _a_country(value)
    except InputError as error:
        error.key = None
        raise


Day = Annotated[datetime.date, BeforeValidator(_a_date)]
Place = Annotated[str, AfterValidator(_a_place)]
Country = Annotated[str, AfterValidator(_without_key)]


class Limit(strict.Noun):
    """Bounds of a plain number: at least `from`, more than `above`, less than `below`."""

    at_least: float | None = Field(default=None, alias="from", ge=0)
    above: float | None = Field(default=None, ge=0)
    below: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.at_least is None and self.above is None and self.below is None:
            raise InputError("holds no bound", fix="for example { from = 4800 }")
        lower = self.at_least if self.above is None else self.above
        if lower is not None and self.below is not None and lower >= self.below:
            raise InputError("from must be less than below", fix="swap the two numbers")
        return self

    @property
    def bounds(self) -> tuple[Fraction | None, Fraction | None, Fraction | None]:
        """At least, above and below as exact numbers."""
        return _exact(self.at_least), _exact(self.above), _exact(self.below)


class RateLimit(strict.Noun):
    """Bounds of a bandwidth, as text with a unit; keys as of `Limit`."""

    at_least: str | None = Field(default=None, alias="from")
    above: str | None = None
    below: str | None = None

    @field_validator("at_least", "above", "below")
    @classmethod
    def _is_bandwidth(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_bandwidth(value)
        return value

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.at_least is None and self.above is None and self.below is None:
            raise InputError("holds no bound", fix='for example { from = "600 GB/s" }')
        at_least, above, below = self.bounds
        lower = at_least if above is None else above
        if lower is not None and below is not None and lower >= below:
            raise InputError("from must be less than below", fix="swap the two bandwidths")
        return self

    @property
    def bounds(self) -> tuple[Fraction | None, Fraction | None, Fraction | None]:
        """At least, above and below in bytes a second."""
        texts = (self.at_least, self.above, self.below)
        at_least, above, below = (
            None if one is None else Fraction(units.parse_bandwidth(one)) for one in texts
        )
        return at_least, above, below


def _exact(number: float | None) -> Fraction | None:
    """A number as it is written: 5.92 is 592/100, not the nearest binary one."""
    return None if number is None else Fraction(repr(number))


class Condition(strict.Noun):
    """Bounds that all hold together.

    `tpp` is total processing performance, `density` that by mm2 of die area. `memory` is the
    bandwidth of the memory, `io` that to other chips in both directions, `memory_io` their sum;
    `memory_density` is GB/s by mm2 of a stack of memory.
    """

    tpp: Limit | None = None
    density: Limit | None = None
    memory: RateLimit | None = None
    io: RateLimit | None = None
    memory_io: RateLimit | None = None
    memory_density: Limit | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.limits():
            raise InputError("holds no condition", fix="for example { tpp = { from = 4800 } }")
        return self

    def limits(self) -> dict[str, Limit | RateLimit]:
        """Quantity -> its bounds, those that are there."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: limit for name, limit in found.items() if limit is not None}


class Class(strict.Noun):
    """A name for chips that meet any one of some conditions.

    `datacentre` restricts it to chips that are, or are not, designed or marketed for data centres.
    """

    name: str = Field(min_length=1, examples=["3A090.a"])
    datacentre: bool | None = None
    when: list[Condition] = Field(min_length=1, examples=[[{"tpp": {"from": 4800}}]])


class _Dated(strict.Noun):
    """In force from a day on, until the day before another; None is open."""

    since: Day | None = Field(default=None, alias="from", examples=["2023-11-17"])
    until: Day | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            fix = "until is the first day on which it no longer holds"
            raise InputError("ends before it begins", key="until", value=self.until, fix=fix)
        return self

    def in_force(self, day: datetime.date) -> bool:
        """Whether it holds on a day."""
        after = self.since is None or self.since <= day
        return after and (self.until is None or day < self.until)


class Outcome(_Dated):
    """What follows for chips of some classes (or named chips), for whom, and since when.

    It reaches a destination in `to` or a parent's headquarters in `hq`, or only where both hold;
    `outside` keeps destinations out. Without any of them it reaches all.
    """

    class_: list[str] = Field(default=[], alias="class")
    chips: list[str] = []
    to: list[Place] = []
    hq: list[Place] = []
    limb: Literal["either", "both"] = "either"
    outside: list[Place] = []
    result: Result = Field(examples=["denial"])
    text: str = Field(min_length=1, examples=["a licence is needed, and denial is presumed"])


class Remark(_Dated):
    """A sentence that stands beside what follows, for some destinations and headquarters."""

    hq: list[Place] = []
    outside: list[Place] = []
    text: str = Field(min_length=1)


class Cap(strict.Noun):
    """A budget of total processing performance."""

    name: str = Field(min_length=1)
    tpp: float = Field(gt=0)


class Rule(_Dated):
    """One rule. `read` is the day up to which its sources were read.

    `effect`: a "licence" rule says what somebody needs; a "relief" softens the rule that it
    `relieves`; the others only tell. `makers` and `makers_outside` are headquarters of makers
    whose chips it is about. `bits` replaces the bits of number formats.
    """

    FILE_KEYS = ("schema",)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=60, examples=["our-policy"])
    title: str = Field(min_length=1, examples=["what our lawyers say"])
    jurisdiction: Country = Field(examples=["US"])
    effect: Literal["licence", "relief", "flag", "guidance", "notice", "statement"] = Field(
        examples=["licence"]
    )
    goods: Literal["chip", "memory"] = "chip"
    published: Day | None = None
    read: Day = Field(examples=["2026-08-01"])
    source: str = Field(min_length=1, examples=["88 FR 73458"])
    confidence: Confidence = Field(examples=["high"])
    makers: list[Country] = []
    makers_outside: list[Country] = []
    modes: list[Mode] = ["buy", "own-abroad"]
    shipped_from: list[Place] = []
    unless_class_of: str | None = None
    relieves: str | None = None
    bits: dict[str, Annotated[int, Field(ge=1, le=128)]] = BITS
    class_: list[Class] = Field(default=[], alias="class")
    outcome: list[Outcome] = []
    remark: list[Remark] = []
    cap: list[Cap] = []
    notes: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.since is None:
            fix = "write from = and the day on which it came into force"
            raise InputError("this key is missing", key="from", fix=fix)
        names = [one.name for one in self.class_]
        for index, outcome in enumerate(self.outcome):
            for name in outcome.class_:
                if name not in names:
                    fix = strict.nearest(name, names, what="classes of this rule")
                    key = f"outcome[{index}].class"
                    raise InputError("there is no such class", key=key, value=name, fix=fix)
        for name in self.bits:
            if name not in FORMATS:
                fix = "known formats: " + ", ".join(FORMATS)
                raise InputError("there is no such format", key="bits", value=name, fix=fix)
        if (self.effect == "relief") != (self.relieves is not None):
            fix = 'effect = "relief" and relieves = "the name of a rule" go together'
            raise InputError("what it relieves is not said", key="relieves", fix=fix)
        return self

    @property
    def start(self) -> datetime.date:
        """The first day on which it is in force."""
        assert self.since is not None
        return self.since


def load_rule(path: Path | str) -> Rule:
    """The rule in a TOML file. InputError for whatever is wrong, with the file."""
    return strict.validate(Rule, strict.take_schema(strict.load_toml(path), file=path), file=path)


@cache
def rules() -> tuple[Rule, ...]:
    """All rules of the package, by the day from which they are in force."""
    folder = Path(str(resources.files("atoll.facts"))) / "rules"
    found = [load_rule(path) for path in sorted(folder.glob("*.toml"))]
    return tuple(sorted(found, key=lambda rule: (rule.start, rule.name)))


def change_days(chosen: Sequence[Rule]) -> list[datetime.date]:
    """The days on which what these rules say may change, sorted: they, an outcome, a remark or a
    country's place in a group begins or ends.
    """
    days = set(countries.change_days())
    for rule in chosen:
        for one in (rule, *rule.outcome, *rule.remark):
            days |= {day for day in (one.since, one.until) if day is not None}
    return sorted(days)


def rule_set(files: Sequence[Path | str] = (), *, off: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The package's rules with those of one's own files, less those switched off by name.

    A file's rule replaces that of its name, or is added; "all" switches the package's off.
    InputError for an unknown name.
    """
    by_name = {} if "all" in off else {rule.name: rule for rule in rules()}
    own: dict[str, Path | str] = {}
    for path in files:
        rule = load_rule(path)
        if rule.name in own:
            message = f"{own[rule.name]} holds a rule of this name too"
            fix = "give each its own name"
            raise InputError(message, file=path, key="name", value=rule.name, fix=fix)
        own[rule.name] = path
        by_name[rule.name] = rule
    known = sorted({*by_name, *(rule.name for rule in rules())})
    for name, path in own.items():
        for key in ("relieves", "unless_class_of"):
            other = getattr(by_name[name], key)
            if other is not None and other not in known:
                fix = strict.nearest(other, known, what="rules")
                raise InputError("there is no such rule", file=path, key=key, value=other, fix=fix)
    for name in off:
        if name not in (*known, "all"):
            fix = strict.nearest(name, known, what='rules ("all" for all of them)')
            raise InputError("there is no such rule", key="--no-rules", value=name, fix=fix)
    kept = [rule for name, rule in by_name.items() if name not in off]
    return tuple(sorted(kept, key=lambda rule: (rule.start, rule.name)))
