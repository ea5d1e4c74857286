"""What a user wrote wrong ends in one short error that says what to write instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from atoll import strict
from atoll.errors import InputError, Interrupted, RunError, show_value
from atoll.fleet import Fleet
from atoll.recipe import Recipe

RECIPE = """
name = "tiny"
seed = 1
[model]
layers = 2
width = 64
heads = 4
kv_heads = 2
ffn = 192
context = 64
[data]
corpus = "stdlib"
tokenizer = { train = 1024 }
[batch]
sequences = 16
grain = 2
[optimizer]
lr = 3e-3
[schedule]
steps = 30
warmup = 5
kind = "cosine"
"""

FLEET = """
[shares]
mode = "auto"
[[site]]
name = "home"
[[site]]
name = "johor"
[[island]]
name = "a"
site = "home"
chip = "cpu"
[[island]]
name = "b"
[[link]]
between = ["home", "johor"]
bandwidth = "10 Gb/s"
latency = "60 ms"
[[delivery]]
date = 2024-07-01
island = "a"
count = { low = 1, mid = 2, high = 3 }
"""


def refuse(load: Callable[[Path], object], path: Path, text: str) -> InputError:
    """Writes `text`, loads it, and returns the one error, checked for its form."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load(path)
    error = caught.value
    assert error.exit_code == 2
    assert error.__cause__ is None
    assert str(error).startswith(str(path))
    assert len(str(error).splitlines()) <= 6
    return error


def change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


RECIPE_FAULTS = [
    # (what stands there, what is written instead, key, value, part of the fix)
    # unknown keys, at each level
    ("seed = 1", "seed = 1\nsede = 2", "sede", 2, "nearest: seed"),
    ("seed = 1", "seed = 1\nsteps = 9", "steps", 9, "nearest: schedule.steps"),
    ("layers = 2", "layer = 2", "model.layer", 2, "nearest: model.layers"),
    ("layers = 2", "layers = 2\nlr = 1e-3", "model.lr", 1e-3, "nearest: optimizer.lr"),
    ("lr = 3e-3", "lr = 3e-3\nbeta3 = 0.9", "optimizer.beta3", 0.9, "optimizer.beta"),
    ("{ train = 1024 }", "{ trian = 9 }", "data.tokenizer.trian", 9, "nearest: data.tokenizer.tra"),
    (
        'corpus = "stdlib"',
        'corpus = [{ corpus = "a", weight = 1 }, { corpus = "b", weigth = 1 }]',
        "data.corpus[1].weigth",
        1,
        "nearest: data.corpus[1].weight",
    ),
    ("[batch]", "[batsh]", "batsh", ..., "nearest: batch"),
    ("steps = 30", "steps = 30\n[run]\nkeep = 2", "run.keep", 2, "nearest: run.keep_"),
    # missing keys
    ("layers = 2", "", "model.layers", ..., "layers = 4"),
    ("[optimizer]\nlr = 3e-3", "", "optimizer", ..., "[optimizer]"),
    ("seed = 1", "", "seed", ..., "seed = 1"),
    # wrong types: nothing is converted silently
    ("layers = 2", 'layers = "2"', "model.layers", "2", None),
    ("layers = 2", "layers = 2.0", "model.layers", 2.0, None),
    ("layers = 2", "layers = true", "model.layers", True, None),
    ("layers = 2", "layers = [2]", "model.layers", [2], None),
    ("lr = 3e-3", 'lr = "3e-3"', "optimizer.lr", "3e-3", None),
    ("seed = 1", "seed = 1.5", "seed", 1.5, None),
    ('corpus = "stdlib"', "corpus = 3", "data.corpus", 3, None),
    ('name = "tiny"', "name = 7", "name", 7, None),
    ("{ train = 1024 }", "1024", "data.tokenizer", 1024, None),
    # impossible shapes
    ("heads = 4", "heads = 5", "model.heads", 5, "4 or 8"),
    ("kv_heads = 2", "kv_heads = 3", "model.kv_heads", 3, "2 or 4"),
    ("sequences = 16", "sequences = 17", "batch.sequences", 17, "16 or 18"),
    ("sequences = 16", "sequences = 1", "batch.sequences", 1, "2"),
    ("warmup = 5", "warmup = 31", "schedule.warmup", 31, "30"),
    # negative, zero, not finite
    ("layers = 2", "layers = -2", "model.layers", -2, None),
    ("grain = 2", "grain = 0", "batch.grain", 0, None),
    ("lr = 3e-3", "lr = -1.0", "optimizer.lr", -1.0, None),
    ("lr = 3e-3", "lr = inf", "optimizer.lr", ..., None),
    ("seed = 1", "seed = -1", "seed", -1, None),
    ("warmup = 5", "warmup = -1", "schedule.warmup", -1, None),
    ("steps = 30", "steps = -1", "schedule.steps", -1, None),
    # one of several
    ("steps = 30", 'steps = 30\ntokens = "1 M"', "schedule.tokens", "1 M", "one of the two"),
    ("steps = 30", "", "schedule", ..., 'tokens = "1 B"'),
    ("{ train = 1024 }", '{ train = 1024, path = "x" }', "data.tokenizer", ..., "path"),
    ("{ train = 1024 }", "{ }", "data.tokenizer", ..., "train"),
    ('kind = "cosine"', 'kind = "cosin"', "schedule.kind", "cosin", 'nearest: "cosine"'),
    ('kind = "cosine"', 'kind = "cosin"', "schedule.kind", "cosin", '"linear", "constant"'),
    # wrong units
    ("steps = 30", 'tokens = "1 GB"', "schedule.tokens", "1 GB", "known units: K, M, B, T"),
    ("steps = 30", 'tokens = "-1 M"', "schedule.tokens", "-1 M", "1.5 B"),
    ("steps = 30", "tokens = 1000", "schedule.tokens", 1000, None),
    # schema, preset
    ("seed = 1", "seed = 1\nschema = 2", "schema", 2, "upgrade"),
    ("seed = 1", 'seed = 1\nschema = "1"', "schema", "1", "schema = 1"),
    ("layers = 2", 'preset = "lama3-8b"', "model.preset", "lama3-8b", 'nearest: "llama3-8b"'),
    ("layers = 2", "preset = 8", "model.preset", 8, "llama3-8b"),
    ("layers = 2", 'layers = 2\nprest = "x"', "model.prest", "x", "nearest: model.preset"),
    # a table where a value is, a value where a table is
    ("[model]", "[[model]]", "model", ..., None),
]


@pytest.mark.parametrize(("old", "new", "key", "value", "fix"), RECIPE_FAULTS)
def test_a_fault_in_a_recipe(tmp_path, old, new, key, value, fix) -> None:
    error = refuse(Recipe.load, tmp_path / "recipe.toml", change(RECIPE, old, new))
    assert error.key == key
    if value is not ...:
        assert error.value == value
        assert f"{key} = {show_value(value)}" in str(error)
    assert fix is None or fix in (error.fix or "")


FLEET_FAULTS = [
    ('name = "b"', 'name = "b"\nthread = 2', "island[1].thread", "nearest: island[1].threads"),
    ("[shares]", "[share]", "share", "nearest: shares"),
    ('mode = "auto"', 'mode = "automatic"', "shares.mode", '"fixed", "seeded"'),
    ('name = "b"', 'name = "a"', "island[1].name", "own name"),
    ('name = "johor"', 'name = "home"', "site[1].name", "own name"),
    ('name = "b"', 'name = "b b"', "island[1].name", None),
    ('name = "b"', "", "island[1].name", None),
    ('chip = "cpu"', 'chip = "cpu-compact"', "island[0].chip", 'nearest: "cpu-compat"'),
    ('site = "home"', 'site = "hom"', "island[0].site", 'nearest: "home"'),
    ('["home", "johor"]', '["home", "jahor"]', "link[0].between", 'nearest: "johor"'),
    ('["home", "johor"]', '["home", "home"]', "link[0].between", "two sites"),
    ('["home", "johor"]', '["home"]', "link[0].between", None),
    ('"10 Gb/s"', '"10 GiB"', "link[0].bandwidth", "known units"),
    ('"10 Gb/s"', "10", "link[0].bandwidth", None),
    ('"60 ms"', '"60 msec"', "link[0].latency", 'nearest: "ms"'),
    ('name = "b"', 'name = "b"\nthreads = 0', "island[1].threads", None),
    ('name = "b"', 'name = "b"\nlanes = -1', "island[1].lanes", None),
    ('name = "b"', 'name = "b"\nshare = -0.5', "island[1].share", None),
    ('island = "a"\n', 'island = "c"\n', "delivery[0].island", "known islands: a, b"),
    ("low = 1", "low = 5", "delivery[0].count", "sort"),
    ("2024-07-01", '"next July"', "delivery[0].date", "2024-07-01"),
    ('mode = "auto"', 'mode = "fixed"', "island[0].share", "share = 1"),
    ("[shares]", "schema = 9\n[shares]", "schema", "upgrade"),
    ('chip = "cpu"', 'chip = ["cpu", "h20"]', "island[0].chip", "make two islands"),
    ('chip = "cpu"', 'chip = "missing.toml"', "island[0].chip", None),
    ('name = "b"', 'name = "b"\nnodes = 0', "island[1].nodes", "[[delivery]]"),
    ('name = "b"', 'name = "b"\nnodes = -1', "island[1].nodes", None),
    ('name = "b"', 'name = "b"\nnetwork = { }', "island[1].network.bandwidth", "200 Gb/s"),
    (
        'name = "b"',
        'name = "b"\nnetwork = { bandwidth = "0 Gb/s" }',
        "island[1].network.bandwidth",
        "200 Gb/s",
    ),
    (
        'name = "b"',
        'name = "b"\nnetwork = { bandwidth = "1 Gb/s", latency = "5 Gb/s" }',
        "island[1].network.latency",
        "known units",
    ),
]


@pytest.mark.parametrize(("old", "new", "key", "fix"), FLEET_FAULTS)
def test_a_fault_in_a_fleet(tmp_path, old, new, key, fix) -> None:
    error = refuse(Fleet.load, tmp_path / "fleet.toml", change(FLEET, old, new))
    assert error.key == key
    assert fix is None or fix in (error.fix or "")


@pytest.mark.parametrize("mode", ["auto", "fixed", "seeded"])
def test_a_share_of_zero_for_every_island(tmp_path: Path, mode: str) -> None:
    text = f'[shares]\nmode = "{mode}"\n' + "".join(
        f'[[island]]\nname = "{name}"\nshare = 0\n' for name in "ab"
    )
    error = refuse(Fleet.load, tmp_path / "fleet.toml", text)
    assert "nobody would compute" in error.message


def test_a_fleet_without_islands(tmp_path: Path) -> None:
    assert refuse(Fleet.load, tmp_path / "f.toml", "").key == "island"
    assert refuse(Fleet.load, tmp_path / "f.toml", "island = []").key == "island"


OVERRIDES = [
    ("model.layer=3", "model.layer", "nearest: model.layers"),
    ("layers=3", "layers", "nearest: model.layers"),
    ("modle.layers=3", "modle", "nearest: model"),
    ("model.heads=5", "model.heads", "4 or 8"),
    ("optimizer.lr=fast", "optimizer.lr", None),
    ("data.tokenizer.trian=3", "data.tokenizer.trian", "nearest: data.tokenizer.train"),
    ("seed.value=3", "seed.value", None),
    ("batch.grain=", "batch.grain", None),
]


@pytest.mark.parametrize(("text", "key", "fix"), OVERRIDES)
def test_a_fault_in_an_override_names_the_flag(tmp_path, text, key, fix) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    with pytest.raises(InputError) as caught:
        Recipe.load(path, [text])
    assert caught.value.file.startswith("--set")
    assert caught.value.key == key
    assert fix is None or fix in caught.value.fix


@pytest.mark.parametrize("text", ["model.layers", "=3", "model..layers=3", ""])
def test_an_override_that_is_no_key_and_value(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    with pytest.raises(InputError, match="--set") as caught:
        Recipe.load(path, [text])
    assert "model.layers=4" in caught.value.fix


def test_a_fault_in_the_file_is_not_blamed_on_an_override(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(change(RECIPE, "layers = 2", "layer = 2"))
    with pytest.raises(InputError) as caught:
        Recipe.load(path, ["seed=3"])
    assert caught.value.file == str(path)


def test_several_faults_make_one_error_that_names_all(tmp_path: Path) -> None:
    text = change(change(RECIPE, "ffn = 192", "ffn = -1"), "grain = 2", "grian = 2")
    error = refuse(Recipe.load, tmp_path / "recipe.toml", text)
    assert error.key == "batch.grian"
    assert "also wrong: model.ffn" in error.fix
    # The missing batch.grain is the same slip, and is not told twice.
    assert str(error).count("batch.grain") == 1


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    with pytest.raises(InputError, match="no such file") as caught:
        Recipe.load(tmp_path / "recpe.toml")
    assert str(tmp_path / "recipe.toml") in caught.value.fix
    with pytest.raises(InputError) as caught:
        Recipe.load(tmp_path / "nowhere" / "recipe.toml")
    assert "folder" in caught.value.fix


@pytest.mark.parametrize("data", [b"\x7fELF\x02\x01\x01\x80\xff", b"name = \0", b"\xff\xfen\0a\0"])
def test_a_binary_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(data)
    with pytest.raises(InputError, match="text file"):
        Recipe.load(path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        Recipe.load(tmp_path)


def test_a_fault_of_syntax_names_the_line(tmp_path: Path) -> None:
    error = refuse(Recipe.load, tmp_path / "recipe.toml", change(RECIPE, '"tiny"', "tiny"))
    assert "line 2" in error.message


def test_a_file_with_windows_line_ends_and_a_mark_loads(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert Recipe.load(path).name == "tiny"


def test_the_texts_used_here_are_right_before_they_are_made_wrong(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "fleet.toml").write_text(FLEET)
    assert Recipe.load(tmp_path / "recipe.toml").name == "tiny"
    assert len(Fleet.load(tmp_path / "fleet.toml").island) == 2


def test_a_long_value_is_cut() -> None:
    assert len(str(InputError("is wrong", key="k", value="x" * 1000))) < 200


def test_nearest_without_anything_known() -> None:
    assert strict.nearest("a", [], what="chips") == "known chips: none"


def test_exit_codes() -> None:
    assert (RunError.exit_code, InputError.exit_code, Interrupted.exit_code) == (1, 2, 130)


def test_odd_characters_in_keys_and_values_do_not_break_the_message(tmp_path: Path) -> None:
    text = change(RECIPE, "seed = 1", 'seed = 1\n"a\\nb.c" = "x\\u001b[31m\\r"')
    error = refuse(Recipe.load, tmp_path / "recipe.toml", text)
    assert error.key == '"a\\nb.c"'
    assert '"a\\nb.c" = "x\\x1b[31m\\r"' in str(error)
