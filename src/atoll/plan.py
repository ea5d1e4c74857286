"""Plan: who computes what, as a file; the only thing passed between verbs.

A plan is written by `plan`, by `train` (a trivial one) or by a person. It holds no decision that
changes bits: those are in the recipe inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from atoll import strict
from atoll.digest import canonical_json
from atoll.errors import InputError
from atoll.fleet import ChipName, Fleet, Shares
from atoll.hours import Hours
from atoll.model import Count
from atoll.recipe import Recipe
from atoll.site import Name
from atoll.strict import SCHEMA, Noun

AXES = ("dp", "tp", "pp", "cp", "ep")
"""Data, tensor, pipeline, context and expert parallelism: the axes of a layout."""


class Layout(Noun):
    """Degrees along named axes inside one island, and how a lane computes a grain on them.

    A lane is tp x pp x cp devices, and dp lanes work side by side; experts are spread over `ep`
    devices out of dp x cp x tp. `vpp` is the number of model chunks of each pipeline device (1 is
    plain 1F1B). `microbatch` counts sequences. `zero` is the stage of state sharding over lanes:
    0 nothing, 1 optimizer state, 2 gradients too, 3 weights too (FSDP); `shard` is the number of
    lanes that share one copy of the state, None for all of them.
    """

    dp: Count = 1
    tp: Count = 1
    pp: Count = 1
    cp: Count = 1
    ep: Count = 1
    vpp: Count = 1
    microbatch: Count = 1
    zero: int = Field(default=0, ge=0, le=3)
    shard: Count | None = None
    sequence_parallel: bool = False
    recompute: Literal["none", "selective", "full"] = "none"

    @property
    def num_devices(self) -> int:
        """The number of devices that the layout occupies."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def lane_devices(self) -> int:
        """The number of devices that compute one grain together."""
        return self.tp * self.pp * self.cp

    @classmethod
    def parse(cls, text: str) -> dict[str, Any]:
        """ "tp=8,pp=4,recompute=full" -> the given keys alone, checked. Raises InputError."""
        found: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not value:
                fix = "for example tp=8,pp=4,recompute=full"
                raise InputError("is not key=value", key="--layout", value=part, fix=fix)
            field = cls.model_fields.get(key)
            if field is None:
                fix = strict.nearest(key, list(cls.model_fields), what="keys")
                raise InputError("there is no such key", key="--layout", value=key, fix=fix)
            found[key] = value if key == "recompute" else _number(value)
        try:
            strict.validate(cls, found)
        except InputError as error:
            error.key = f"--layout {error.key}"
            raise
        return found

    def describe(self) -> str:
        """The layout in a few characters: "dp 4 x tp 8 x pp 2, mb 1, zero 1, full recompute"."""
        degrees = [f"{axis} {getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        words = [" ".join(degrees) or "dp 1", f"mb {self.microbatch}"]
        words += [f"vpp {self.vpp}"] if self.vpp > 1 else []
        words += [f"zero {self.zero}"] if self.zero else []
        words += [] if self.recompute == "none" else [f"{self.recompute} recompute"]
        return ", ".join(words)


def _number(text: str) -> object:
    """A whole number or a truth value as a person writes it, else the text itself."""
    if text in ("true", "yes", "on", "false", "no", "off"):
        return text in ("true", "yes", "on")
    return int(text) if text.isdecimal() else text


class Estimate(Noun):
    """A number that is not known exactly: low <= mid <= high, and what kind of number it is.

    `basis` says where it is from: "spec" is published figures alone, "fitted" passes through
    coefficients fitted on published runs, "measured" rests on a measurement of this very chip.
    """

    low: float
    mid: float
    high: float
    basis: Literal["spec", "fitted", "measured"]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise InputError("must hold low <= mid <= high", fix="sort the three numbers")
        return self


class PlanIsland(Noun):
    """One island's part: its devices, its layout along named axes, its share.

    `share` is relative to the other islands'; None means that it follows measured speed. `stages`
    are the closed ranges of layers [first, last] of the island's pipeline stages, empty where the
    layers are split evenly; islands of the same `pipeline` number hold one lane together, each a
    part of the layers. `hours` are those of the day at which it may be used, with the offset from
    UTC behind them; None is always.
    """

    name: Name
    chip: ChipName = "cpu"
    site: str = "here"
    devices: Count = 1
    threads: Count = 1
    layout: Layout = Layout()
    share: float | None = Field(default=None, ge=0)
    start: Literal["here", "dial-in"] = "here"
    stages: list[list[int]] = []
    pipeline: int | None = Field(default=None, ge=0)
    hours: str | None = None

    @field_validator("hours")
    @classmethod
    def _is_hours(cls, value: str | None) -> str | None:
        return None if value is None else Hours.parse(value).text

    @property
    def num_lanes(self) -> int:
        """The number of lanes: the degree of data parallelism inside the island."""
        return self.layout.dp


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
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"is not JSON: {error}", file=path) from None
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
                    | ({} if island.hours is None else {"hours": island.hours})
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
            for axis in (*AXES[1:], "vpp", "zero"):
                degree = getattr(island.layout, axis)
                if degree > Layout.model_fields[axis].default:
                    message = f"feature layout.{axis}: one device a lane is all that trains so far"
                    key = f"islands[{index}].layout.{axis}"
                    fix = f"write {axis} = {Layout.model_fields[axis].default}"
                    raise InputError(message, key=key, value=degree, fix=fix)
            if island.layout.recompute != "none":
                message = "feature layout.recompute: activations are kept, nothing is recomputed"
                key, value = f"islands[{index}].layout.recompute", island.layout.recompute
                raise InputError(message, key=key, value=value, fix='write recompute = "none"')
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
            layout=Layout(dp=island.num_lanes),
            share=island.share,
            start=island.start,
            hours=None if (hours := fleet.hours_of(island)) is None else hours.text,
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
