"""The example files: those that the contract names exist, load, and hold what they say."""

from datetime import date
from pathlib import Path

import pytest

from atoll.fleet import Fleet
from atoll.plan import Plan, plan_trivially
from atoll.recipe import Recipe, unsupported_features

RECIPES = ("tiny", "quickstart", "quickstart-zh")
FLEETS = ("one", "two-equal", "three-to-one", "three", "reshare", "two-kinds", "night-shift")
PLANNED_RECIPES = ("dense-400b", "moe-700b")
SCENARIO_RECIPES = ("dense-30b", "dense-100b", "moe-671b")
PLANNED_FLEETS = ("day-and-night", "hundred-thousand", "ordering-2025", "scarce-2024", "two-sites")
"""Too large for this machine: they are examples for `plan`."""


def load_fleet(examples: Path, name: str) -> Fleet:
    return Fleet.load(examples / "fleets" / f"{name}.toml")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("fleet", FLEETS)
def test_every_example_plans(examples: Path, tmp_path: Path, recipe: str, fleet: str) -> None:
    loaded = Recipe.load(examples / "recipes" / f"{recipe}.toml")
    assert loaded.name == recipe
    assert unsupported_features(loaded) == []
    plan = plan_trivially(loaded, load_fleet(examples, fleet))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_no_example_is_left_out_of_these_tests(examples: Path) -> None:
    recipes = {path.stem for path in (examples / "recipes").glob("*.toml")}
    assert recipes == {*RECIPES, *PLANNED_RECIPES, *SCENARIO_RECIPES}
    fleets = {path.stem for path in (examples / "fleets").glob("*.toml")}
    assert fleets == {*FLEETS, *PLANNED_FLEETS}


@pytest.mark.parametrize("fleet", FLEETS)
def test_all_lanes_have_one_thread_so_that_all_are_one_kind(examples: Path, fleet: str) -> None:
    assert all(island.threads == 1 for island in load_fleet(examples, fleet).island)


def test_the_fleets_are_the_cases_of_the_claim(examples: Path) -> None:
    islands = {name: load_fleet(examples, name).island for name in FLEETS}
    assert [len(islands[name]) for name in FLEETS] == [1, 2, 2, 3, 2, 2, 2]
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


def test_the_large_recipes_are_what_they_say(examples: Path) -> None:
    dense, sparse = (Recipe.load(examples / "recipes" / f"{name}.toml") for name in PLANNED_RECIPES)
    assert (dense.name, sparse.name) == PLANNED_RECIPES
    assert dense.model.num_parameters() == pytest.approx(405.85e9, rel=1e-4)
    assert sparse.model.num_parameters() == pytest.approx(718e9, rel=0.01)
    for recipe in (dense, sparse):
        # What the design asks of accelerators, and the ratio of tokens to parameters.
        assert recipe.batch.grain * recipe.model.context == 16_384
        tokens = recipe.total_steps() * recipe.tokens_per_step
        assert 19 < tokens / recipe.model.num_parameters() < 22
    assert [key for key, _, _ in unsupported_features(dense)] == ["precision.compute"]
    assert [key for key, _, _ in unsupported_features(sparse)] == [
        "model.experts",
        "model.mla",
        "precision.compute",
    ]


@pytest.mark.parametrize(("name", "ratio"), [("dense-30b", 20), ("dense-100b", 20)])
def test_the_recipes_of_scenarios_are_on_20_tokens_a_parameter(
    examples: Path, name: str, ratio: int
) -> None:
    recipe = Recipe.load(examples / "recipes" / f"{name}.toml")
    assert recipe.name == name
    tokens = recipe.total_steps() * recipe.tokens_per_step
    assert tokens / recipe.model.num_parameters() == pytest.approx(ratio, rel=0.01)
    batch = 0.292 * (recipe.model.flops_per_token() * tokens) ** 0.3271  # arXiv:2401.02954
    assert recipe.tokens_per_step == pytest.approx(batch, rel=0.1)


def test_the_sparse_recipe_sees_what_deepseek_v3_saw(examples: Path) -> None:
    recipe = Recipe.load(examples / "recipes" / "moe-671b.toml")
    tokens = recipe.total_steps() * recipe.tokens_per_step
    assert tokens == pytest.approx(14.8e12, rel=1e-4)
    # 2.788 M hours of H800 at 33 % of 989 TFLOP/s (arXiv:2412.19437)
    flops = 6 * recipe.model.num_active_parameters() * tokens
    assert flops == pytest.approx(2.788e6 * 3600 * 327e12, rel=0.05)


def test_a_hundred_thousand_are_a_hundred_thousand(examples: Path) -> None:
    fleet = load_fleet(examples, "hundred-thousand")
    assert sum(island.num_chips for island in fleet.island) == 100_000
    assert len({island.chip for island in fleet.island}) == 5
    assert {site.name for site in fleet.site} == {island.site for island in fleet.island}
    assert len(fleet.site) == 4
    assert max(island.num_chips for island in fleet.island) <= 30_000
    assert all(island.network is not None for island in fleet.island)
    for a in fleet.site:
        for b in fleet.site:
            assert (fleet.path(a.name, b.name) is None) == (a is b)


def test_the_scarce_fleet_holds_what_was_reported(examples: Path) -> None:
    fleet = load_fleet(examples, "scarce-2024")

    def ascend(day: date, which: str) -> int:
        islands = {one.name: one for one in fleet.stock(day, which=which).island}  # type: ignore[arg-type]  # a literal
        return islands["ascend"].num_chips if "ascend" in islands else 0

    assert ascend(date(2024, 3, 31), "high") == 0
    july = [ascend(date(2024, 7, 31), which) for which in ("low", "mid", "high")]
    assert july == [20_000, 30_000, 30_000]
    ordered = [change.count for change in fleet.delivery if change.island == "ascend"]
    # Delivered by December: at worst, as the months before, the whole order.
    assert sum(count.low for count in ordered) == 30_000
    assert sum(count.mid for count in ordered) == 51_000
    assert sum(count.high for count in ordered) == 100_000
