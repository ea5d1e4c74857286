"""Plan: who computes what, as a file; the only thing passed between verbs.

A plan is written by `plan`, by `train` (a trivial one) or by a person. It holds no decision that
changes bits: those are in the recipe inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from atoll import strict
from atoll.digest import canonical_json
from atoll.errors import InputError
from atoll.fleet import ChipName, Fleet, Name, Shares
from atoll.model import Count
from atoll.recipe import Recipe
from atoll.strict import SCHEMA, Noun


class PlanIsland(Noun):
    """One island's part: its devices, its layout along named axes, its share.

    `share` is relative to the other islands'; None means that it follows measured speed.
    """

    name: Name
    chip: ChipName = "cpu"
    site: str = "here"
    devices: Count = 1
    threads: Count = 1
    layout: dict[str, int] = {"dp": 1}
    share: float | None = Field(default=None, ge=0)
    start: Literal["here", "dial-in"] = "here"
    stages: list[Any] = []

    @field_validator("layout")
    @classmethod
    def _axes(cls, value: dict[str, int]) -> dict[str, int]:
        for axis, degree in value.items():
            if axis not in ("dp", "tp", "pp", "cp", "ep"):
                fix = "known axes: dp, tp, pp, cp, ep"
                raise InputError("there is no such axis", key=axis, value=degree, fix=fix)
            if degree < 1:
                raise InputError("must be at least 1", key=axis, value=degree)
        return value

    @property
    def num_lanes(self) -> int:
        """The number of lanes: the degree of data parallelism inside the island."""
        return self.layout.get("dp", 1)


class LeftOut(Noun):
    """Something that was not used or not chosen, and why."""

    what: str
    why: str


class Plan(Noun):
    """The complete answer to recipe x fleet.

    `recipe` is the whole recipe as plain tables; `recipe_digest` is None while the token shards
    have not been seen; `contract` None means that the islands' kinds decide it when they start.
    """

    schema_: int = Field(default=SCHEMA, alias="schema")
    recipe: dict[str, Any]
    recipe_digest: str | None = None
    fleet_digest: str | None = None
    executor: str = "atoll"
    contract: str | None = None
    islands: list[PlanIsland] = Field(min_length=1)
    shares: Shares = Shares()
    exchange: dict[str, Any] = {}
    estimates: dict[str, Any] = {}
    left_out: list[LeftOut] = []

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """The plan in a JSON file. InputError for whatever is wrong, the recipe inside too."""
        try:
            data = json.loads(strict.read_text(path))
        except json.JSONDecodeError as error:
            message = f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
            raise InputError(message, file=path) from None
        if not isinstance(data, dict):
            raise InputError("is no plan: it must hold one JSON object", file=path)
        return cls.from_dict(data, file=path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, file: Path | str | None = None) -> Plan:
        """The plan in plain tables. InputError as `load`."""
        plan = strict.validate(cls, strict.take_schema(data, file=file or "plan"), file=file)
        names = [island.name for island in plan.islands]
        for index, name in enumerate(names):
            if name in names[:index]:
                key, message = f"islands[{index}].name", "there is another island of this name"
                raise InputError(message, file=file, key=key, value=name)
        if all(island.share == 0 for island in plan.islands):
            message, key = "every island has share 0: nobody would compute", "islands[0].share"
            raise InputError(message, file=file, key=key, value=0)
        try:
            plan.read_recipe()
        except InputError as error:
            error.file = None if file is None else str(file)
            error.key = f"recipe.{error.key}" if error.key else "recipe"
            raise
        return plan

    def as_fleet(self) -> Fleet:
        """The islands of the plan as a fleet, for the record of a run."""
        sites = dict.fromkeys(island.site for island in self.islands)
        return Fleet.from_dict(
            {
                "shares": self.shares.model_dump(),
                "site": [{"name": site} for site in sites],
                "island": [
                    {
                        "name": island.name,
                        "site": island.site,
                        "chip": island.chip,
                        "chips_per_node": island.devices,
                        "threads": island.threads,
                        "lanes": island.num_lanes,
                        "start": island.start,
                    }
                    | ({} if island.share is None else {"share": island.share})
                    for island in self.islands
                ],
            }
        )

    def save(self, path: Path | str) -> None:
        """Writes the plan as canonical JSON with a final newline."""
        Path(path).write_bytes(canonical_json(self.as_dict()) + b"\n")

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain tables that `from_dict` reads back."""
        return self.model_dump(by_alias=True)

    def read_recipe(self) -> Recipe:
        """The recipe inside the plan. InputError if a person broke it."""
        return Recipe.from_dict(self.recipe)

    def require_executor(self) -> None:
        """InputError unless this Atoll itself can carry the plan out, naming what it lacks."""
        if self.executor != "atoll":
            fix = 'plans with executor = "atoll" run here; give this one to the tool that it names'
            message = "feature plan.executor: this plan is for another tool"
            raise InputError(message, key="executor", value=self.executor, fix=fix)
        for index, island in enumerate(self.islands):
            for axis, degree in island.layout.items():
                if axis != "dp" and degree > 1:
                    message = f"feature layout.{axis}: one device a lane is all that trains so far"
                    key = f"islands[{index}].layout.{axis}"
                    raise InputError(message, key=key, value=degree, fix=f"write {axis} = 1")
            if island.stages:
                message = "feature stages: one device a lane is all that trains so far"
                key = f"islands[{index}].stages"
                raise InputError(message, key=key, value=island.stages, fix="write stages = []")


def plan_trivially(recipe: Recipe, fleet: Fleet) -> Plan:
    """The plan without a search: every island of the fleet, one device a lane, shares as given."""
    islands = [
        PlanIsland(
            name=island.name,
            chip=island.chip,
            site=island.site,
            devices=island.num_chips,
            threads=island.threads,
            layout={"dp": island.num_lanes},
            share=island.share,
            start=island.start,
        )
        for island in fleet.island
    ]
    return Plan(
        recipe=recipe.as_dict(),
        fleet_digest=fleet.digest(),
        islands=islands,
        shares=fleet.shares,
        exchange=recipe.exchange.model_dump(),
    )
