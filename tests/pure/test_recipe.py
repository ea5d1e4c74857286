"""Recipes: derived numbers, presets, overrides, and what a digest depends on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll.recipe
from atoll.errors import InputError
from atoll.recipe import Recipe, differences, require_supported, unsupported_features

PLAIN = {
    "name": "tiny",
    "seed": 1,
    "model": {"layers": 2, "width": 64, "heads": 4, "ffn": 192, "context": 64},
    "data": {"corpus": "stdlib", "tokenizer": {"train": 1024}},
    "batch": {"sequences": 16, "grain": 2},
    "optimizer": {"lr": 1e-3},
    "schedule": {"steps": 30},
}


def recipe(**tables: object) -> Recipe:
    """The plain recipe with some keys of some tables changed; None removes a key."""
    plain = dict(PLAIN)
    for name, changes in tables.items():
        if isinstance(changes, dict):
            merged = {**plain.get(name, {}), **changes}
            plain[name] = {key: value for key, value in merged.items() if value is not None}
        else:
            plain[name] = changes
    return Recipe.from_dict(plain)


def test_derived_numbers() -> None:
    plain = recipe()
    assert plain.num_grains == 8
    assert plain.tokens_per_step == 16 * 64
    assert plain.total_steps() == 30


@pytest.mark.parametrize(("tokens", "steps"), [("1024", 1), ("1025", 2), ("1 M", 977), ("1", 1)])
def test_tokens_are_rounded_up_to_whole_steps(tokens: str, steps: int) -> None:
    assert recipe(schedule={"steps": None, "tokens": tokens}).total_steps() == steps


def test_a_recipe_survives_plain_tables() -> None:
    mixture = [{"corpus": "a", "weight": 1.0}, {"corpus": "b", "weight": 3.0}]
    full = recipe(data={"corpus": mixture, "tokenizer": {"from": "smollm2"}}, run={"keep_last": 7})
    back = Recipe.from_dict(full.as_dict())
    assert back.as_dict() == full.as_dict()
    assert back.data.tokenizer.from_ == "smollm2"
    assert back.run.keep_last == 7
    assert not differences(full, back)


CHANGES = [
    {"name": "other"},
    {"seed": 2},
    {"model": {"layers": 3}},
    {"model": {"kv_heads": 2}},
    {"model": {"tied": False}},
    {"model": {"qk_norm": True}},
    {"model": {"vocab": 1024}},
    {"data": {"corpus": "shakespeare"}},
    {"data": {"tokenizer": {"train": 512}}},
    {"data": {"validation": 0.1}},
    {"batch": {"sequences": 32}},
    {"batch": {"grain": 4}},
    {"optimizer": {"lr": 2e-3}},
    {"optimizer": {"beta2": 0.99}},
    {"optimizer": {"clip": 0.0}},
    {"schedule": {"steps": 31}},
    {"schedule": {"warmup": 1}},
    {"schedule": {"kind": "linear"}},
    {"schedule": {"floor": 0.0}},
    {"exact": {"accumulator": "int64"}},
    {"model": {"gated": False}},
    {"precision": {"compute": "bf16"}},
    {"precision": {"compute": "fp16"}},
    {"precision": {"compute": "fp8"}},
    {"exchange": {"every": "rounds"}},
]

SPARSE = {"experts": 8, "top_k": 2, "moe_ffn": 64}
LATENT = {"kv_rank": 16, "rope_dim": 4, "nope_dim": 8, "value_dim": 8}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_bits_changes_the_digest(change: dict) -> None:
    assert recipe(**change).digest("d") != recipe().digest("d")
    assert len(differences(recipe(), recipe(**change))) == 1


def test_digests_of_all_changes_differ() -> None:
    digests = {recipe(**change).digest("d") for change in CHANGES}
    assert len(digests) == len(CHANGES)


def test_the_shards_change_the_digest() -> None:
    assert recipe().digest("d") != recipe().digest("e")


@pytest.mark.parametrize(
    "change",
    [
        {"run": {"checkpoint_every": 7, "keep_best": 0, "validate_every": 3}},
        {"model": {"kv_heads": 4}},
        {"model": {"head_dim": 16, "tied": True}},
        {"schedule": {"steps": None, "tokens": str(30 * 1024)}},
        {"optimizer": {"weight_decay": 0.1}},
        {"precision": {"compute": "fp32"}},
        {"exchange": {"every": "step", "steps": 100}},
        {"model": {"gated": True, "shared_experts": 0, "dense_layers": 0, "moe_every": 1}},
    ],
)
def test_whatever_decides_no_bit_leaves_the_digest(change: dict) -> None:
    assert recipe(**change).digest("d") == recipe().digest("d")
    assert differences(recipe(), recipe(**change)) == []


def test_the_digest_of_a_known_recipe_stays_what_it_was() -> None:
    # Runs in the field are named by it. If this fails, put the new key into LATER_DEFAULTS.
    assert (
        recipe().digest("0" * 64)
        == "ca494d78df4f9274e88e06864586515b1fb7aaf4b224fe6c29817cc0e66d8577"
    )


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("tiny", "06eb7c57537773ccedce2acc50ddce4d25b7783a6a6412d173b2dfa9ddc6b1c1"),
        ("quickstart", "058a9e0f8e1af3e109574c3b01d7987c228e50cd411080f39fa6f737d55a1d79"),
        ("quickstart-zh", "742c5fecdc79c3cc83a99c059b93e12e2093dde774e378217519e73519831ad0"),
    ],
)
def test_the_digests_of_the_examples_stay_what_they_were(
    examples: Path, name: str, digest: str
) -> None:
    assert Recipe.load(examples / "recipes" / f"{name}.toml").digest("0" * 64) == digest


@pytest.mark.parametrize(
    "change",
    [
        SPARSE,
        {**SPARSE, "top_k": 3},
        {**SPARSE, "shared_experts": 1},
        {**SPARSE, "dense_layers": 1},
        {**SPARSE, "moe_every": 2},
        {"mla": LATENT},
        {"mla": {**LATENT, "q_rank": 8}},
    ],
)
def test_the_forms_of_a_model_change_the_digest_and_survive(change: dict) -> None:
    others = [recipe(), recipe(model=SPARSE), recipe(model={"mla": LATENT})]
    changed = recipe(model=change)
    same = change in (SPARSE, {"mla": LATENT})
    assert sum(one.digest("d") == changed.digest("d") for one in others) == same
    assert Recipe.from_dict(changed.as_dict()).digest("d") == changed.digest("d")
    assert Recipe.from_dict(changed.as_dict()).model == changed.model.model_copy(
        update={
            "kv_heads": None if changed.model.mla else changed.model.resolved_kv_heads,
            "head_dim": None if changed.model.mla else changed.model.resolved_head_dim,
        }
    )


def test_rounds_have_a_number_of_steps() -> None:
    rounds = recipe(exchange={"every": "rounds", "steps": 500})
    assert Recipe.from_dict(rounds.as_dict()).exchange.steps == 500
    assert rounds.digest("d") != recipe(exchange={"every": "rounds"}).digest("d")
    with pytest.raises(InputError) as caught:
        recipe(exchange={"steps": 500})
    assert caught.value.key == "exchange.steps"
    assert 'every = "rounds"' in str(caught.value.fix)


@pytest.mark.parametrize(
    ("change", "key", "feature"),
    [
        ({"model": SPARSE}, "model.experts", "feature model.experts"),
        ({"model": {"mla": LATENT}}, "model.mla", "feature model.mla"),
        ({"model": {"gated": False}}, "model.gated", "feature model.gated = false"),
        ({"precision": {"compute": "bf16"}}, "precision.compute", "precision.compute = bf16"),
        ({"exchange": {"every": "rounds"}}, "exchange.every", "exchange.every = rounds"),
    ],
)
def test_what_cannot_be_trained_yet_is_refused_by_name(
    change: dict, key: str, feature: str
) -> None:
    changed = recipe(**change)
    assert [name for name, _, _ in unsupported_features(changed)] == [key]
    with pytest.raises(InputError) as caught:
        require_supported(changed, file="plan.json", prefix="recipe.")
    assert caught.value.key == f"recipe.{key}"
    assert feature in caught.value.message
    require_supported(recipe())


def test_all_that_cannot_be_trained_is_named_at_once() -> None:
    changed = recipe(model={**SPARSE, "gated": False}, precision={"compute": "fp8"})
    with pytest.raises(InputError) as caught:
        require_supported(changed)
    assert caught.value.key == "model.experts"
    assert "also not supported: model.gated, precision.compute" in str(caught.value.fix)


def test_a_table_of_a_preset_is_changed_key_by_key() -> None:
    base = {**PLAIN, "model": {"preset": "deepseek-v3", "mla": {"kv_rank": 256}}}
    mla = Recipe.from_dict(base).model.mla
    assert mla is not None
    assert (mla.kv_rank, mla.q_rank, mla.rope_dim) == (256, 1536, 64)


def test_a_key_added_later_is_left_out_while_it_has_its_default(monkeypatch) -> None:
    old = recipe().expanded()
    del old["data"]["validation"]
    later = {**atoll.recipe.LATER_DEFAULTS, "data.validation": 0.01}
    monkeypatch.setattr(atoll.recipe, "LATER_DEFAULTS", later)
    assert recipe().expanded() == old
    assert recipe(data={"validation": 0.02}).expanded()["data"]["validation"] == 0.02


def test_differences_say_both_values() -> None:
    lines = differences(recipe(), recipe(model={"layers": 6}, batch={"grain": 4}))
    assert lines == ["model.layers: 2 here, 6 there", "batch.grain: 2 here, 4 there"]


def test_differences_of_unlike_tables() -> None:
    lines = differences(recipe(), recipe(data={"tokenizer": {"path": "x.json"}}))
    assert "data.tokenizer.train: 1024 here, absent there" in lines
    assert "data.tokenizer.path: absent here, x.json there" in lines


def test_a_preset_gives_the_model_and_own_keys_win() -> None:
    base = {**PLAIN, "model": {"preset": "smollm2-135m", "context": 256}}
    loaded = Recipe.from_dict(base)
    assert (loaded.model.layers, loaded.model.kv_heads, loaded.model.context) == (30, 3, 256)
    assert "preset" not in loaded.expanded()["model"]
    # A preset is a way of writing: the same numbers are the same recipe.
    assert Recipe.from_dict(loaded.as_dict()).digest("d") == loaded.digest("d")


def test_loading_changes_nothing_in_the_tables_given() -> None:
    plain = {**PLAIN, "schema": 1, "model": {"preset": "smollm2-135m"}}
    Recipe.from_dict(plain)
    assert plain["schema"] == 1
    assert plain["model"] == {"preset": "smollm2-135m"}


def test_overrides(tmp_path: Path, examples: Path) -> None:
    path = examples / "recipes" / "tiny.toml"
    changed = Recipe.load(
        path,
        [
            "model.layers=3",
            "optimizer.lr = 1e-2",
            "data.corpus=text/*.md",
            'data.tokenizer={ from = "smollm2" }',
            "model.tied=false",
            "exact.accumulator=int64",
            'name="x"',
            "run.keep_last=9",
        ],
    )
    assert changed.model.layers == 3
    assert changed.optimizer.lr == 1e-2
    assert changed.data.corpus == "text/*.md"
    assert changed.data.tokenizer.from_ == "smollm2"
    assert changed.model.tied is False
    assert changed.exact.accumulator == "int64"
    assert changed.name == "x"
    assert changed.run.keep_last == 9


def test_a_later_override_wins(examples: Path) -> None:
    path = examples / "recipes" / "tiny.toml"
    assert Recipe.load(path, ["seed=2", "seed=3"]).seed == 3


def test_an_override_that_changes_bits_changes_the_digest(examples: Path) -> None:
    path = examples / "recipes" / "tiny.toml"
    plain = Recipe.load(path)
    assert Recipe.load(path, ["seed=2"]).digest("d") != plain.digest("d")
    assert Recipe.load(path, ["run.keep_last=9"]).digest("d") == plain.digest("d")


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_override_escapes_the_one_error(key: str, value: str) -> None:
    path = Path(__file__).parents[2] / "examples" / "recipes" / "tiny.toml"
    try:
        loaded = Recipe.load(path, [f"{key}={value}"])
    except InputError as error:
        assert len(str(error).splitlines()) <= 8
    else:
        assert isinstance(loaded, Recipe)
