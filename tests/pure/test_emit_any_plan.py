"""What is planned for a tool, the tool can express: no plan with --emit ends in a refusal of it."""

from pathlib import Path

import pytest

from atoll.errors import InputError
from atoll.facts.engines import tools
from atoll.fleet import Fleet
from atoll.planning.emit import emit
from atoll.planning.explain import plan_of
from atoll.planning.planner import Asked, plan
from atoll.recipe import Recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = [
    (recipe, fleet, tool)
    for recipe in ("dense-400b", "moe-700b", "tiny")
    for fleet in ("hundred-thousand", "scarce-2024")
    for tool in tools()
    # All of that fleet's chips are of a make that these do not run on.
    if fleet != "scarce-2024" or tool not in ("mindspeed", "torchtitan-npu")
]


@pytest.mark.parametrize(("recipe", "fleet", "tool"), CASES)
def test_what_is_planned_for_a_tool_can_be_written(recipe, fleet, tool, tmp_path):
    answer = plan(
        Recipe.load(EXAMPLES / f"recipes/{recipe}.toml", []),
        Fleet.load(EXAMPLES / f"fleets/{fleet}.toml"),
        Asked(tool=tool),
    )
    assert emit(plan_of(answer), tool, tmp_path / "launch")


def test_a_layout_that_a_tool_cannot_express_gets_the_tools_own_reason(tmp_path):
    answer = plan(
        Recipe.load(EXAMPLES / "recipes/dense-400b.toml", []),
        Fleet.load(EXAMPLES / "fleets/scarce-2024.toml"),
        Asked(tool="torchtitan", only={"tp": 8, "zero": 1}),
    )
    with pytest.raises(InputError, match=r"FSDP2 shards weights, gradients and optimizer state"):
        emit(plan_of(answer), "torchtitan", tmp_path / "launch")
