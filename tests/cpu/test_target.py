"""The fleet that a run takes when it is given none."""

from pathlib import Path

import pytest

from atoll.cli import main
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.hours import Hours
from atoll.plan import plan_trivially
from atoll.recipe import Recipe
from atoll.training.crewing import members_of
from atoll.training.target import resolve, this_machine


def fleet_for(examples: Path, *overrides: str) -> list[tuple[str, int]]:
    recipe = Recipe.load(examples / "recipes" / "quickstart.toml", overrides)
    return [(island.name, island.num_lanes) for island in this_machine(recipe).island]


def test_small_grains_get_a_process_a_core_and_large_ones_threads(examples: Path) -> None:
    cores = this_machine().island[0].num_lanes
    small = fleet_for(examples)
    assert fleet_for(examples, "model.vocab=2100") == small  # a padded vocabulary
    large = fleet_for(
        examples, "model.width=768", "model.heads=12", "model.ffn=2048", "model.context=1024"
    )
    assert large == [("here", cores)]
    assert small == ([("here", 1)] if cores == 1 else [(f"core-{i}", 1) for i in range(cores)])


@pytest.mark.parametrize(
    ("override", "feature"),
    [
        ("model.gated=false", "feature model.gated = false"),
        ("precision.compute=bf16", "feature precision.compute = bf16"),
        ("exchange.every=rounds", "feature exchange.every = rounds"),
    ],
)
def test_what_cannot_be_computed_is_refused_before_anything_is_written(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, feature: str
) -> None:
    recipe, run = examples / "recipes" / "tiny.toml", tmp_path / "run"
    assert main(["train", str(recipe), "--set", override, "--run", str(run)]) == 2
    assert feature in capsys.readouterr().err
    plan = tmp_path / "plan.json"
    plan_trivially(Recipe.load(recipe, [override]), this_machine()).save(plan)
    assert main(["train", str(plan), "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert feature in error
    assert "recipe." in error
    assert list(tmp_path.iterdir()) == [plan]


@pytest.mark.parametrize("recipe", ["dense-400b", "moe-700b"])
def test_the_large_examples_are_for_planning(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    path, run = examples / "recipes" / f"{recipe}.toml", tmp_path / "run"
    assert main(["train", str(path), "--run", str(run)]) == 2
    assert "feature " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fleet_whose_chips_are_still_to_come_is_refused(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = examples / "recipes" / "tiny.toml", tmp_path / "run"
    fleet = examples / "fleets" / "scarce-2024.toml"
    assert main(["train", str(recipe), "--fleet", str(fleet), "--run", str(run)]) == 2
    assert "first delivery is on 2024-04-01" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_lent_islands_keep_their_hours_and_servers_are_refused(
    examples: Path, tmp_path: Path
) -> None:
    recipe, fleet = examples / "recipes" / "tiny.toml", examples / "fleets" / "night-shift.toml"
    plan_trivially(Recipe.load(recipe), Fleet.load(fleet)).save(tmp_path / "plan.json")
    for target, file in ((recipe, fleet), (tmp_path / "plan.json", None)):
        found = resolve(str(target), fleet=file, overrides=[])
        hours = [one.hours for one in members_of(found.plan.islands)]
        assert hours == [None, Hours.parse("22:00-07:00 +08:00")]
        again = Fleet.from_dict(found.fleet.as_dict())  # as run.json keeps it
        assert again.hours_of(again.island[1]) == hours[1]
    with pytest.raises(InputError, match=r"traffic\[0\].island.*serves people"):
        resolve(str(recipe), fleet=examples / "fleets" / "day-and-night.toml", overrides=[])
