"""Whatever stands in a file, the answer is a noun or one InputError; never another exception."""

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import strict
from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.plan import Plan, plan_trivially
from atoll.recipe import Recipe
from atoll.run import RunRecord

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPE = Recipe.load(EXAMPLES / "recipes" / "tiny.toml")
FLEET = Fleet.load(EXAMPLES / "fleets" / "three-to-one.toml")

WHOLE = {
    Recipe: {
        **RECIPE.as_dict(),
        "data": {"corpus": [{"corpus": "a", "weight": 1.0}], "tokenizer": {"train": 512}},
    },
    Fleet: {
        **FLEET.as_dict(),
        "site": [{"name": "home", "power": "1 MW", "uplink": "1 Gb/s"}],
        "link": [{"between": ["home", "here"], "bandwidth": "1 Gb/s", "latency": "1 ms"}],
        "delivery": [
            {"date": "2024-07-01", "island": "a", "count": {"low": 1, "mid": 1, "high": 1}}
        ],
    },
    Plan: plan_trivially(RECIPE, FLEET).as_dict(),
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["64 GiB", "1 B", "cpu", "here", "auto", "2024-13-01", "2024-07-01"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place inside plain tables."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


@pytest.mark.parametrize("noun", list(WHOLE), ids=lambda noun: noun.__name__)
@settings(max_examples=100)
@given(data=st.data())
def test_any_value_at_any_place(noun, data: st.DataObject) -> None:
    plain = copy.deepcopy(WHOLE[noun])
    place = data.draw(st.sampled_from(list(paths(plain))))
    table = plain
    for key in place[:-1]:
        table = table[key]
    how = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        table[place[-1]] = data.draw(anything)
    elif how == "remove":
        del table[place[-1]]
    elif isinstance(table, dict):
        table[data.draw(st.text(max_size=8))] = data.draw(anything)
    else:
        table.append(data.draw(anything))
    try:
        loaded = noun.from_dict(plain, file="some.toml")
    except InputError as error:
        assert str(error).startswith("some.toml: ")
        assert len(str(error).splitlines()) <= 8
        assert len(str(error)) <= 1500
    else:
        # What loads can be written, read and digested again.
        back = noun.from_dict(json.loads(json.dumps(loaded.as_dict())))
        assert back.as_dict() == loaded.as_dict()


@pytest.mark.parametrize("noun", list(WHOLE), ids=lambda noun: noun.__name__)
@given(data=anything)
def test_any_value_in_place_of_the_whole(noun, data: object) -> None:
    with pytest.raises(InputError):
        strict.validate(noun, data, file="some.toml")


def test_the_whole_files_used_here_load() -> None:
    for noun, plain in WHOLE.items():
        assert noun.from_dict(plain).as_dict()


@given(st.binary(max_size=60))
def test_any_bytes_as_toml(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.toml"
        file.write_bytes(data)
        try:
            assert isinstance(strict.load_toml(file), dict)
        except InputError as error:
            assert error.file == str(file)


def test_a_run_record_is_strict_too() -> None:
    with pytest.raises(InputError) as caught:
        strict.validate(RunRecord, {"recipe": {}, "statsu": {}}, file="run.json")
    assert "nearest: status" in str(caught.value)
