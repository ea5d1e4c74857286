"""Every preset: the published numbers of parameters, and sources."""

import math

import pytest

from atoll import facts, strict
from atoll.errors import InputError
from atoll.model import Model

EXACT = {
    # Totals of the published weights (safetensors metadata of the model cards).
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    # The main model's 671,026,419,200 without 58 x 256 biases of routers, which have no gradient.
    "deepseek-v3": 671_026_419_200 - 58 * 256,
}
ROUNDED = {
    # What the papers say; the card of Qwen3-1.7B stores its tied head twice.
    "qwen3-1.7b": 1.7e9,
    "gpt3-175b": 175e9,
    "pangu-ultra-135b": 135e9,
    "pangu-ultra-moe-718b": 718e9,
    "doubao-class": 200e9,
}
ACTIVE = {
    "qwen3-30b-a3b": 3.3e9,
    "qwen3-235b-a22b": 22e9,
    "mixtral-8x7b": 12.9e9,
    "mixtral-8x22b": 39e9,
    "deepseek-v3": 37e9,
    "doubao-class": 20e9,
}


def preset(name: str) -> Model:
    return strict.validate(Model, facts.model_preset(name))


def test_every_preset_has_a_published_number() -> None:
    assert set(EXACT) | set(ROUNDED) == set(facts.model_presets())
    sparse = {name for name in facts.model_presets() if preset(name).experts}
    assert sparse == {*ACTIVE, "pangu-ultra-moe-718b"}


@pytest.mark.parametrize("name", facts.model_presets())
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    model = preset(name)
    assert sum(math.prod(shape) for shape in model.tensors().values()) == model.num_parameters()
    if name in EXACT:
        assert model.num_parameters() == EXACT[name]
    else:
        assert model.num_parameters() == pytest.approx(ROUNDED[name], rel=0.015)


@pytest.mark.parametrize("name", sorted(ACTIVE))
def test_a_sparse_preset_has_the_published_number_of_active_parameters(name: str) -> None:
    assert preset(name).num_active_parameters() == pytest.approx(ACTIVE[name], rel=0.02)


def test_one_paper_counts_active_parameters_without_the_embedding() -> None:
    model = preset("pangu-ultra-moe-718b")
    embedding = model.resolved_vocab * model.width
    assert model.num_active_parameters() - embedding == pytest.approx(39e9, rel=0.01)


def test_the_shape_of_a_published_sparse_model() -> None:
    model = preset("deepseek-v3")
    assert (model.num_dense_layers, model.num_sparse_layers) == (3, 58)
    # arXiv:2405.04434, table 1: (d_c + d_h / 2) l elements a token with d_c = 4 d_h.
    assert model.kv_bytes_per_token(1) == 61 * (512 + 64)
    # 14.8 T tokens: about 3.3e24 FLOP by 6 N D, and the rest is the attention.
    assert 6 * 37e9 < model.flops_per_token() < 6 * 43e9


def test_the_assumed_shape_says_so() -> None:
    path = facts._folder() / "models" / "doubao-class.toml"
    text = path.read_text(encoding="utf-8")
    assert text.startswith('description = "ASSUMPTION')
    assert 'source = "ASSUMED' in text


def test_a_preset_handed_out_may_be_changed_without_harm() -> None:
    facts.model_preset("deepseek-v3")["layers"] = 1
    facts.model_preset("deepseek-v3")["mla"]["kv_rank"] = 1
    assert facts.model_preset("deepseek-v3")["layers"] == 61
    assert facts.model_preset("deepseek-v3")["mla"]["kv_rank"] == 512


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        facts.model_preset("smollm-135m")
    assert caught.value.fix is not None
    assert 'nearest: "smollm2-135m"' in caught.value.fix
