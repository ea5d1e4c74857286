"""File: the nouns of a scenario folder and their strict loading.

A folder holds `scenario.toml`; the recipes, the fleet and the offers that it names are files
beside it, or anywhere relative to it. Nothing is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from atoll import strict
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.planning.agreeing import AGAIN
from atoll.planning.offers import Offers
from atoll.recipe import Recipe
from atoll.site import Country
from atoll.strict import Noun
from atoll.supply import Day, Range

NAME = "scenario.toml"

Words = Annotated[str, Field(min_length=1, max_length=2000)]
Label = Annotated[str, Field(min_length=1, max_length=60)]

Confidence = Literal["high", "medium", "low"]
"""high: two independent sources or a primary one; medium: one good press source; low: derived,
judged or weak."""


class Fact(Noun):
    """A figure of the story: its range in words, where it is from, and what it became here."""

    what: Words
    value: Words
    source: Words
    confidence: Confidence
    used: str = Field(default="", max_length=500)


class ModelEntry(Noun):
    """A model that the scenario asks about; `recipe` is a path relative to the scenario's file."""

    label: Label
    recipe: str = Field(min_length=1, examples=["dense-30b.toml"])


class Arrival(Noun):
    """Chips that arrive at an island on a day; a plain number is known exactly."""

    island: str
    date: Day = Field(examples=["2024-07-01"])
    count: Range

    @field_validator("count", mode="before")
    @classmethod
    def _exactly(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"low": value, "mid": value, "high": value}
        return value


class Question(Noun):
    """What a change does to the days; with `given`, both sides are changed by that first.

    Changes are the words of `atoll plan --what-if` (`atoll.planning.whatif`); "no more" and
    "without" end offers of that chip too. `deliveries` stand in place of all deliveries of the
    islands that they name, and `without_limits` names limits of the offers that do not hold.
    """

    name: Label
    words: Words
    given: str = Field(default="", max_length=1000)
    change: str = Field(default="", max_length=1000)
    deliveries: list[Arrival] = Field(default=[], max_length=500)
    without_limits: list[str] = Field(default=[], max_length=100)

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if not (self.change or self.deliveries or self.without_limits):
            fix = 'for example change = "+10000 west from 2024-07-01"'
            raise InputError("a question changes something", key="change", fix=fix)
        return self

    def sides(self) -> tuple[Side, Side]:
        """What is given, and that with the change."""
        given = (("given", self.given),) if self.given else ()
        change = (("change", self.change),) if self.change else ()
        after = Side(
            changes=(*given, *change), deliveries=tuple(self.deliveries),
            without_limits=tuple(self.without_limits),
        )  # fmt: skip
        return Side(changes=given), after


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """All changes of a fleet and its offers on one side of a question; none: as it stands.

    `changes` are (key of the question, words).
    """

    changes: tuple[tuple[str, str], ...] = ()
    deliveries: tuple[Arrival, ...] = ()
    without_limits: tuple[str, ...] = ()


class Ordering(Noun):
    """What to order, for which recipe (a path); goals and days as those of `atoll orders`.

    With `again` 0 speeds of islands add up, as those of several runs do; else the planner's word on
    one run over all links is asked up to so many times.
    """

    offers: str = Field(min_length=1, examples=["offers.toml"])
    recipe: str = Field(min_length=1, examples=["dense-400b.toml"])
    goal: Literal["soonest", "cheapest", "largest"] = "soonest"
    by: Day | None = None
    at: str | None = None
    again: int = Field(default=AGAIN, ge=0, le=20)

    @model_validator(mode="after")
    def _has_a_day(self) -> Self:
        if self.goal != "soonest" and self.by is None:
            raise InputError("this goal needs a day", key="by", fix="by = 2026-01-01")
        return self


class ScenarioFile(Noun):
    """scenario.toml; see docs/scenarios.md."""

    FILE_KEYS = ("schema",)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)
    title: Label
    words: Words
    start: Day = Field(alias="from", examples=["2024-04-01"])
    fleet: str = Field(min_length=1, examples=["fleet.toml"])
    headquarters: Country | None = None
    model: list[ModelEntry] = Field(min_length=1, max_length=20)
    shortfall: list[Question] = Field(default=[], max_length=20)
    what_if: list[Question] = Field(default=[], max_length=20)
    orders: Ordering | None = None
    fact: list[Fact] = Field(default=[], max_length=200)
    limits: list[Words] = Field(default=[], max_length=50)

    @model_validator(mode="after")
    def _names(self) -> Self:
        for table in ("shortfall", "what_if"):
            strict.unique(table, (one.name for one in getattr(self, table)))
        labels = [one.label for one in self.model]
        for index, label in enumerate(labels):
            if label in labels[:index]:
                fix = "give each model its own label"
                key = f"model[{index}].label"
                raise InputError("there is another model of this label", key=key, fix=fix)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario with all files read; `recipes` are as many as `told.model`, in that order."""

    file: Path
    told: ScenarioFile
    fleet: Fleet
    recipes: tuple[Recipe, ...]
    offers: Offers | None
    order_recipe: Recipe | None

    @property
    def start(self) -> date:
        """The first day."""
        return self.told.start

    def place(self, name: str) -> Path:
        """A file that the scenario names."""
        return (self.file.parent / name).resolve()


def load(path: Path | str) -> Scenario:
    """The scenario in a folder, or in the file itself. InputError for whatever is wrong in any of
    its files but for questions about what is not there: `change` finds those.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    data: dict[str, Any] = strict.take_schema(strict.load_toml(file), file=file)
    told = strict.validate(ScenarioFile, data, file=file)

    def named(name: str, key: str) -> Path:
        found = (file.parent / name).resolve()
        if not found.is_file():
            fix = f"a path from {file.parent} on"
            raise InputError("there is no such file", file=file, key=key, value=name, fix=fix)
        return found

    fleet = Fleet.load(named(told.fleet, "fleet"))
    recipes = tuple(
        Recipe.load(named(one.recipe, f"model[{index}].recipe"), [])
        for index, one in enumerate(told.model)
    )
    asked = told.orders
    offers = Offers.load(named(asked.offers, "orders.offers")) if asked is not None else None
    recipe = Recipe.load(named(asked.recipe, "orders.recipe"), []) if asked is not None else None
    return Scenario(
        file=file, told=told, fleet=fleet, recipes=recipes, offers=offers, order_recipe=recipe
    )
