"""The fleet that a run takes when it is given none."""

from pathlib import Path

from atoll.recipe import Recipe
from atoll.training.target import this_machine


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
