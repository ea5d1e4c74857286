"""`atoll doctor` with real island processes: a right chip, an unlike one, and one that is wrong."""

import json
from pathlib import Path

import pytest

from atoll.cli import main
from atoll.errors import InputError
from atoll.training.crewing import Starting
from atoll.training.display import SilentDisplay
from atoll.training.doctor import doctor

HERE = Path(__file__).parent
RECIPE = """
name = "small"
seed = 3
[model]
layers = 3
width = 32
heads = 2
ffn = 48
context = 16
[data]
corpus = "stdlib"
tokenizer = { train = 300 }
[batch]
sequences = 4
grain = 2
[optimizer]
lr = 1e-2
[schedule]
steps = 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return str(path)


def test_an_unlike_kind_computes_right_but_is_another_kind(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", recipe, "--against", "cpu-compat", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ok"] and not found["same_kind"] and found["wrong"] == []
    assert found["link_bytes_per_second"] > 0 and found["free_memory"] > 0
    assert any(stage["gradients"] > 0 for stage in found["stages"])


def test_a_chip_with_a_wrong_layer_is_found_and_the_layer_named(recipe: str) -> None:
    result = doctor(
        recipe=recipe,
        island=None,
        against="cpu",
        fleet=None,
        display=SilentDisplay(),
        starting=Starting(entry="wrong_layer:main", python_path=[HERE]),
    )
    assert not result.ok
    assert result.wrong_stages == ["blocks.1"]
    assert "blocks.1" in result.text() and "WRONG" in result.text()


def test_an_unknown_island_is_refused_with_what_there_is(recipe: str) -> None:
    for arguments in ({"island": "nobody", "against": "cpu"}, {"island": None, "against": "cpux"}):
        with pytest.raises(InputError, match=r"cpu|here"):
            doctor(recipe=recipe, fleet=None, display=SilentDisplay(), **arguments)
