"""What `train` was pointed at: a recipe, a plan or a run folder, and the fleet to use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import backends, facts
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.plan import Plan, plan_trivially
from atoll.recipe import Recipe, require_supported
from atoll.run import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What `train` was pointed at: a plan, where relative paths of its recipe start, a run to
    resume.
    """

    plan: Plan
    recipe: Recipe
    fleet: Fleet
    base: Path
    folder: RunFolder | None


def resolve(target: str, *, fleet: Path | None, overrides: Sequence[str]) -> Target:
    """Tell a recipe, a plan and a run folder apart, and load them."""
    path = Path(target)
    folder: RunFolder | None = None
    plan: Plan | None = None
    if path.is_dir():
        if overrides:
            raise InputError(
                "--set would make another recipe of a run that has begun",
                file=path,
                fix="train its recipe file with --set into a new folder",
            )
        folder = RunFolder.open(path)
        recipe, base = folder.recipe(), Path(folder.record.base)
    elif path.suffix == ".json":
        if overrides:
            raise InputError("--set does not change a plan", file=path, fix="make a new plan")
        plan = Plan.load(path)
        plan.require_executor()
        recipe, base = plan.read_recipe(), path.parent
    else:
        recipe, base = Recipe.load(path, overrides), path.parent
    require_supported(recipe, file=path, prefix="" if plan is None else "recipe.")
    if fleet is not None:
        crew = Fleet.load(fleet)
        crew.require_present(file=fleet)
        crew.require_no_traffic(file=fleet)
    elif plan is not None:
        crew = plan.as_fleet()
    elif folder is not None and folder.fleet() is not None:
        crew = folder.fleet() or this_machine(recipe)
    else:
        crew = this_machine(recipe)
    if plan is None or fleet is not None:
        plan = plan_trivially(recipe, crew)
    return Target(plan=plan, recipe=recipe, fleet=crew, base=base.resolve(), folder=folder)


SMALL_GRAIN = 4e9
"""FLOP of a grain a layer below which lanes are better processes than threads of one."""


def this_machine(recipe: Recipe | None = None) -> Fleet:
    """A fleet of this machine's own accelerators, or of its CPU cores with one thread a lane.

    The cores form one island whose lanes are threads that share the weights, unless the recipe's
    grains are so small that the threads would wait for one another's Python code: then each core
    is an island. The bits are the same.
    """
    backend = backends.here()
    if backend.device_type != "cpu":
        chip = backend.name if backend.name in facts.chips() else "here"
        lanes = backend.num_devices()
        return Fleet.from_dict({"island": [{"name": "here", "chip": chip, "lanes": lanes}]})
    cores = num_cores()
    if recipe is None or cores == 1 or _work_a_layer(recipe) >= SMALL_GRAIN:
        return Fleet.from_dict({"island": [{"name": "here", "lanes": cores}]})
    return Fleet.from_dict({"island": [{"name": f"core-{i}"} for i in range(cores)]})


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _work_a_layer(recipe: Recipe) -> float:
    """FLOP of a grain's forward and backward pass in one layer; without the head."""
    model = recipe.model.model_copy(update={"vocab": 1})
    tokens = recipe.batch.grain * model.context
    return tokens * model.flops_per_token() / model.layers
