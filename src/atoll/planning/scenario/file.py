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
from atoll.fleet import Country, Fleet
from atoll.planning.offers import Offers
from atoll.recipe import Recipe
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
    """Chips that arrive on a day; a plain number is known exactly."""

    date: Day = Field(examples=["2024-07-01"])
    count: Range

    @field_validator("count", mode="before")
    @classmethod
    def _exactly(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"low": value, "mid": value, "high": value}
        return value


class Alteration(Noun):
    """One thing that a question changes, of an island, of a chip, or of a limit of the offers.

    `deliveries` stand in place of all deliveries of an island; `more` chips arrive at it on the day
    `since` ("from" in the file); `part` of its chips is there, all its counts by that factor. From
    `no_more_from` on no chip of the kind is delivered or offered; from `gone_from` on those that
    are there leave too. `limit` names a limit of the offers that does not hold.
    """

    island: str | None = None
    chip: str | None = None
    limit: str | None = None
    deliveries: list[Arrival] | None = Field(default=None, max_length=500)
    more: int | None = Field(default=None, ge=1, le=10**8)
    since: Day | None = Field(default=None, alias="from")
    part: float | None = Field(default=None, ge=0, le=1)
    no_more_from: Day | None = None
    gone_from: Day | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        whose = [key for key in ("island", "chip", "limit") if getattr(self, key) is not None]
        if len(whose) != 1:
            fix = 'name one of them: island = "ascend", chip = "h20", or limit = "domestic makers"'
            raise InputError("changes something of one island, chip or limit", fix=fix)
        keys = ("deliveries", "more", "part", "no_more_from", "gone_from")
        given = [key for key in keys if getattr(self, key) is not None]
        if self.limit is not None and (given or self.since is not None):
            fix = f"leave {(given or ['from'])[0]} out"
            raise InputError("a limit that is named here does not hold: nothing else", fix=fix)
        if self.limit is None and len(given) != 1:
            fix = "one of " + ", ".join(keys)
            raise InputError("holds one change; write each one on its own", fix=fix)
        if (self.more is None) != (self.since is None):
            fix = "more = 10000, from = 2024-07-01"
            raise InputError("`more` and `from` go together", fix=fix)
        if self.chip is not None and given[0] in ("deliveries", "more"):
            fix = "name the island to which they come"
            raise InputError("chips arrive at an island", key="chip", value=self.chip, fix=fix)
        return self


class Question(Noun):
    """What a change does to the days; with `given`, both sides are changed by that first."""

    name: Label
    words: Words
    given: list[Alteration] = Field(default=[], max_length=20)
    change: list[Alteration] = Field(min_length=1, max_length=20)


class Ordering(Noun):
    """What to order, for which recipe (a path); goals and days as those of `atoll orders`."""

    offers: str = Field(min_length=1, examples=["offers.toml"])
    recipe: str = Field(min_length=1, examples=["dense-400b.toml"])
    goal: Literal["soonest", "cheapest", "largest"] = "soonest"
    by: Day | None = None
    at: str | None = None

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
    its files, also for a question about an island, a chip or a limit that is not there.
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
    scenario = Scenario(
        file=file, told=told, fleet=fleet, recipes=recipes, offers=offers, order_recipe=recipe
    )
    _require_known(scenario)
    return scenario


def _require_known(scenario: Scenario) -> None:
    """InputError for a question about what neither the fleet nor the offers hold."""
    fleet, offers = scenario.fleet, scenario.offers
    chips = [one.chip for one in fleet.island]
    limits: list[str] = []
    if offers is not None:
        chips += [one.chip for one in offers.offer]
        limits = [one.name for one in offers.limit]
    known = {
        "island": [one.name for one in fleet.island],
        "chip": list(dict.fromkeys(chips)),
        "limit": limits,
    }
    for table in ("shortfall", "what_if"):
        for index, question in enumerate(getattr(scenario.told, table)):
            for list_name in ("given", "change"):
                for place, one in enumerate(getattr(question, list_name)):
                    for kind, names in known.items():
                        value = getattr(one, kind)
                        if value is not None and value not in names:
                            key = f"{table}[{index}].{list_name}[{place}].{kind}"
                            fix = strict.nearest(value, names, what=f"{kind}s of this scenario")
                            message = f"the scenario has no such {kind}"
                            raise InputError(
                                message, file=scenario.file, key=key, value=value, fix=fix
                            )
