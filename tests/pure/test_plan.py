"""Plans: written, read, and refused where this Atoll cannot carry them out."""

import json
from pathlib import Path

import pytest

from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.plan import Plan, plan_trivially
from atoll.recipe import Recipe


@pytest.fixture
def plan(examples: Path) -> Plan:
    recipe = Recipe.load(examples / "recipes" / "tiny.toml")
    return plan_trivially(recipe, Fleet.load(examples / "fleets" / "three-to-one.toml"))


def write(path: Path, plan: Plan, **changes: object) -> Path:
    path.write_text(json.dumps({**plan.as_dict(), **changes}))
    return path


def test_a_trivial_plan_takes_every_island(plan: Plan, examples: Path) -> None:
    assert [(i.name, i.share, i.num_lanes) for i in plan.islands] == [("a", 3, 1), ("b", 1, 1)]
    assert plan.shares.mode == "fixed"
    assert plan.recipe_digest is None
    assert plan.executor == "atoll"
    assert plan.fleet_digest == Fleet.load(examples / "fleets" / "three-to-one.toml").digest()
    recipe = Recipe.load(examples / "recipes" / "tiny.toml")
    assert plan.read_recipe().digest("d") == recipe.digest("d")
    assert plan.read_recipe().run == recipe.run


def test_lanes_chips_and_dialling_in_are_carried_over(examples: Path) -> None:
    recipe = Recipe.load(examples / "recipes" / "tiny.toml")
    island = {"name": "a", "chip": "h20", "nodes": 2, "chips_per_node": 4, "start": "dial-in"}
    planned = plan_trivially(recipe, Fleet.from_dict({"island": [island]})).islands[0]
    assert (planned.devices, planned.num_lanes, planned.start) == (8, 8, "dial-in")


def test_a_saved_plan_is_canonical_and_comes_back(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    first = path.read_bytes()
    loaded = Plan.load(path)
    assert loaded == plan
    loaded.save(path)
    assert path.read_bytes() == first
    assert json.loads(first)["schema"] == 1


def test_an_older_plan_without_newer_keys_is_read(plan: Plan, tmp_path: Path) -> None:
    plain = {key: plan.as_dict()[key] for key in ("recipe", "islands")}
    (tmp_path / "plan.json").write_text(json.dumps(plain))
    assert Plan.load(tmp_path / "plan.json").read_recipe().name == "tiny"


def test_a_plan_written_by_hand(plan: Plan, tmp_path: Path) -> None:
    islands = [{"name": "x", "chip": "cpu-compat", "layout": {"dp": 3}}]
    loaded = Plan.load(write(tmp_path / "plan.json", plan, islands=islands))
    assert loaded.islands[0].num_lanes == 3
    loaded.require_executor()


FAULTS = [
    ({"schema": 2}, "schema", "upgrade"),
    ({"island": []}, "island", "nearest: islands"),
    ({"islands": []}, "islands", None),
    ({"islands": [{"name": "a", "chip": "cpux"}]}, "islands[0].chip", "cpu"),
    ({"islands": [{"name": "a", "layout": {"dd": 2}}]}, "islands[0].layout.dd", "dp"),
    ({"islands": [{"name": "a", "layout": {"dp": 0}}]}, "islands[0].layout.dp", None),
    ({"islands": [{"name": "a"}, {"name": "a"}]}, "islands[1].name", None),
    ({"islands": [{"name": "a", "share": 0}]}, "islands[0].share", None),
    ({"islands": [{"name": "a", "devices": 0}]}, "islands[0].devices", None),
    ({"recipe": {"name": "x"}}, "recipe.seed", "seed = 1"),
    ({"recipe": 3}, "recipe", None),
]


@pytest.mark.parametrize(("changes", "key", "fix"), FAULTS)
def test_a_fault_in_a_plan(plan: Plan, tmp_path: Path, changes, key, fix) -> None:
    path = write(tmp_path / "plan.json", plan, **changes)
    with pytest.raises(InputError) as caught:
        Plan.load(path)
    assert caught.value.key == key
    assert caught.value.file == str(path)
    assert fix is None or fix in caught.value.fix


@pytest.mark.parametrize("text", ["{", "[]", "3", ""])
def test_what_is_no_json_object_is_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Plan.load(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"executor": "emit:megatron"}, "plan.executor"),
        ({"islands": [{"name": "a", "layout": {"dp": 1, "tp": 2}}]}, "layout.tp"),
        ({"islands": [{"name": "a", "stages": [[0, 1]]}]}, "stages"),
        ({"islands": [{"name": "a", "layout": {"recompute": "full"}}]}, "layout.recompute"),
        ({"islands": [{"name": "a", "layout": {"zero": 3}}]}, "layout.zero"),
    ],
)
def test_a_plan_that_this_atoll_cannot_run_names_the_feature(
    plan: Plan, tmp_path: Path, changes: dict, feature: str
) -> None:
    loaded = Plan.load(write(tmp_path / "plan.json", plan, **changes))
    with pytest.raises(InputError) as caught:
        loaded.require_executor()
    assert feature in caught.value.message
