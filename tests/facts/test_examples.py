"""The example files: those that the contract names exist, load, and hold what they say."""

from pathlib import Path

import pytest

from atoll.fleet import Fleet
from atoll.plan import Plan, plan_trivially
from atoll.recipe import Recipe

RECIPES = ("tiny", "quickstart", "quickstart-zh")
FLEETS = ("one", "two-equal", "three-to-one", "three", "reshare", "two-kinds")


def load_fleet(examples: Path, name: str) -> Fleet:
    return Fleet.load(examples / "fleets" / f"{name}.toml")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("fleet", FLEETS)
def test_every_example_plans(examples: Path, tmp_path: Path, recipe: str, fleet: str) -> None:
    loaded = Recipe.load(examples / "recipes" / f"{recipe}.toml")
    assert loaded.name == recipe
    plan = plan_trivially(loaded, load_fleet(examples, fleet))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_no_example_is_left_out_of_these_tests(examples: Path) -> None:
    for folder, loader in (("recipes", Recipe.load), ("fleets", Fleet.load)):
        for path in (examples / folder).glob("*.toml"):
            loader(path)


@pytest.mark.parametrize("fleet", FLEETS)
def test_all_lanes_have_one_thread_so_that_all_are_one_kind(examples: Path, fleet: str) -> None:
    assert all(island.threads == 1 for island in load_fleet(examples, fleet).island)


def test_the_fleets_are_the_cases_of_the_claim(examples: Path) -> None:
    islands = {name: load_fleet(examples, name).island for name in FLEETS}
    assert [len(islands[name]) for name in FLEETS] == [1, 2, 2, 3, 2, 2]
    assert [island.share for island in islands["three-to-one"]] == [3, 1]
    assert load_fleet(examples, "three-to-one").shares.mode == "fixed"
    assert load_fleet(examples, "reshare").shares.mode == "seeded"
    chips = {name: {island.chip for island in fleet} for name, fleet in islands.items()}
    assert chips.pop("two-kinds") == {"cpu", "cpu-compat"}
    assert all(kinds == {"cpu"} for kinds in chips.values())


def test_tiny_is_tiny(examples: Path) -> None:
    tiny = Recipe.load(examples / "recipes" / "tiny.toml")
    assert tiny.total_steps() == 30
    assert tiny.num_grains == 8
    assert tiny.data.corpus == "stdlib"
