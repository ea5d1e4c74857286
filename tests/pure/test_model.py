"""The arithmetic on shapes: tensors, parameters, FLOP."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import strict
from atoll.errors import InputError
from atoll.model import Model


def model(**changes: object) -> Model:
    plain = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 192, "context": 64}
    return strict.validate(Model, {**plain, "vocab": 1024, **changes})


@st.composite
def models(draw: st.DrawFn) -> Model:
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 8))
    own_head_dim = draw(st.booleans())
    return model(
        layers=draw(st.integers(1, 5)),
        heads=heads,
        kv_heads=draw(st.sampled_from([kv_heads, None])),
        head_dim=head_dim if own_head_dim else None,
        width=draw(st.integers(1, 100)) if own_head_dim else heads * head_dim,
        ffn=draw(st.integers(1, 100)),
        vocab=draw(st.integers(1, 500)),
        tied=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


LATENT = {"q_rank": 24, "kv_rank": 16, "rope_dim": 4, "nope_dim": 8, "value_dim": 10}
EXPERTS = {"experts": 8, "top_k": 2, "moe_ffn": 48}


@st.composite
def forms(draw: st.DrawFn) -> Model:
    """Models with experts, latent attention, plain feed-forwards, in any combination."""
    shape = draw(models()).model_dump()
    shape["gated"] = draw(st.booleans())
    if draw(st.booleans()):
        shape |= {"kv_heads": None, "head_dim": None, "qk_norm": False}
        shape["mla"] = {name: 2 * draw(st.integers(1, 20)) for name in LATENT}
        if draw(st.booleans()):
            del shape["mla"]["q_rank"]
    if draw(st.booleans()):
        shape["experts"] = draw(st.integers(1, 9))
        shape["top_k"] = draw(st.integers(1, shape["experts"]))
        shape["moe_ffn"] = draw(st.integers(1, 60))
        shape["shared_experts"] = draw(st.integers(0, 3))
        shape["dense_layers"] = draw(st.integers(0, shape["layers"] - 1))
        shape["moe_every"] = draw(st.integers(1, shape["layers"] - shape["dense_layers"]))
    return strict.validate(Model, shape)


@given(st.one_of(models(), forms()))
def test_the_formulas_count_what_the_tensors_hold(shape: Model) -> None:
    sizes = {name: math.prod(tensor) for name, tensor in shape.tensors().items()}
    assert shape.num_parameters() == sum(sizes.values())
    without = sum(size for name, size in sizes.items() if name != "embedding.weight")
    assert shape.num_parameters_without_embedding() == without


@given(models())
def test_flops_are_six_for_each_multiplied_weight_and_causal_attention(shape: Model) -> None:
    sizes = {name: math.prod(dims) for name, dims in shape.tensors().items()}
    matrices = sum(n for name, n in sizes.items() if "norm" not in name and "embedding" not in name)
    head = sizes["embedding.weight"] if shape.tied else 0
    # Scores and values: 2 matmuls x 2 FLOP x 3 (forward and backward) / 2 (causal).
    attention = 6 * shape.layers * shape.heads * shape.resolved_head_dim * shape.context
    assert shape.flops_per_token() == 6 * (matrices + head) + attention


def routed(name: str) -> bool:
    return ".experts." in name


@given(forms())
def test_active_parameters_are_those_of_top_k_experts(shape: Model) -> None:
    sizes = {name: math.prod(dims) for name, dims in shape.tensors().items()}
    experts = sum(size for name, size in sizes.items() if routed(name))
    assert experts == shape.num_sparse_layers * shape.expert_parameters_per_layer()
    used = experts * (shape.top_k or 0) // (shape.experts or 1)
    assert shape.num_active_parameters() == shape.num_parameters() - experts + used
    assert shape.num_active_parameters() <= shape.num_parameters()
    assert (shape.num_active_parameters() == shape.num_parameters()) == (
        shape.experts is None or shape.top_k == shape.experts
    )


@given(forms())
def test_flops_of_any_form(shape: Model) -> None:
    sizes = {name: math.prod(dims) for name, dims in shape.tensors().items()}
    matrices = sum(n for name, n in sizes.items() if "norm" not in name and "embedding" not in name)
    experts = sum(size for name, size in sizes.items() if routed(name))
    matrices -= experts - experts * (shape.top_k or 0) // (shape.experts or 1)
    head = sizes["embedding.weight"] if shape.tied else 0
    # 2 FLOP a multiplication and addition, 3 for forward and backward, half of it causal.
    attention = 3 * shape.layers * shape.context * (shape.qk_dim + shape.v_dim)
    assert shape.flops_per_token() == 6 * (matrices + head) + attention


@given(forms())
def test_the_parts_of_a_layer_are_its_tensors(shape: Model) -> None:
    def part(layer: int, name: str) -> int:
        start = f"blocks.{layer}.{name}"
        return sum(math.prod(s) for key, s in shape.tensors().items()
                   if key.startswith(start) and "norm" not in key)  # fmt: skip

    sparse = [layer for layer in range(shape.layers) if shape.is_sparse_layer(layer)]
    assert len(sparse) == shape.num_sparse_layers == shape.layers - shape.num_dense_layers
    for layer in range(shape.layers):
        assert part(layer, "attention.") == shape.attention_parameters_per_layer()
        if layer in sparse:
            idle = part(layer, "ffn.experts.") - shape.expert_parameters_per_layer() * (
                shape.top_k or 0
            ) // (shape.experts or 1)
            assert part(layer, "ffn.") - idle == shape.sparse_active_ffn_parameters_per_layer()
        else:
            assert part(layer, "ffn.") == shape.dense_ffn_parameters_per_layer()


@given(forms())
def test_a_form_survives_plain_tables(shape: Model) -> None:
    assert strict.validate(Model, shape.model_dump(exclude_none=True)) == shape
    assert strict.validate(Model, shape.expanded()).expanded() == shape.expanded()
    assert shape.with_vocab(shape.resolved_vocab) == shape


def test_which_layers_are_sparse() -> None:
    every = model(layers=6, **EXPERTS)
    assert every.num_sparse_layers == 6
    second = model(layers=7, dense_layers=2, moe_every=2, **EXPERTS)
    assert [second.is_sparse_layer(layer) for layer in range(7)] == [
        False, False, False, True, False, True, False,
    ]  # fmt: skip
    assert (second.num_sparse_layers, second.num_dense_layers) == (2, 5)
    assert not any(model().is_sparse_layer(layer) for layer in range(2))


def test_the_tensors_of_the_other_forms() -> None:
    shape = model(
        layers=2, kv_heads=None, gated=False, mla=LATENT, dense_layers=1, shared_experts=1,
        **{**EXPERTS, "experts": 2},
    )  # fmt: skip
    assert list(shape.tensors())[1:] == [
        "blocks.0.attention_norm.weight",
        "blocks.0.attention.query_down.weight",
        "blocks.0.attention.query_norm.weight",
        "blocks.0.attention.query_up.weight",
        "blocks.0.attention.latent_down.weight",
        "blocks.0.attention.latent_norm.weight",
        "blocks.0.attention.latent_up.weight",
        "blocks.0.attention.output.weight",
        "blocks.0.ffn_norm.weight",
        "blocks.0.ffn.up.weight",
        "blocks.0.ffn.down.weight",
        "blocks.1.attention_norm.weight",
        "blocks.1.attention.query_down.weight",
        "blocks.1.attention.query_norm.weight",
        "blocks.1.attention.query_up.weight",
        "blocks.1.attention.latent_down.weight",
        "blocks.1.attention.latent_norm.weight",
        "blocks.1.attention.latent_up.weight",
        "blocks.1.attention.output.weight",
        "blocks.1.ffn_norm.weight",
        "blocks.1.ffn.router.weight",
        "blocks.1.ffn.experts.0.up.weight",
        "blocks.1.ffn.experts.0.down.weight",
        "blocks.1.ffn.experts.1.up.weight",
        "blocks.1.ffn.experts.1.down.weight",
        "blocks.1.ffn.shared.0.up.weight",
        "blocks.1.ffn.shared.0.down.weight",
        "norm.weight",
    ]
    tensors = shape.tensors()
    assert tensors["blocks.1.attention.query_up.weight"] == (4 * 12, 24)
    assert tensors["blocks.1.attention.latent_down.weight"] == (16 + 4, 64)
    assert tensors["blocks.1.attention.latent_up.weight"] == (4 * 18, 16)
    assert tensors["blocks.1.attention.output.weight"] == (64, 4 * 10)
    assert tensors["blocks.1.ffn.router.weight"] == (2, 64)


def test_widths_and_the_bytes_of_the_cache() -> None:
    grouped = model()
    assert (grouped.qk_dim, grouped.v_dim, grouped.kv_dim) == (64, 64, 32)
    assert grouped.kv_bytes_per_token(2) == 2 * 2 * 2 * 16 * 2
    latent = model(kv_heads=None, mla=LATENT)
    assert (latent.qk_dim, latent.v_dim, latent.kv_dim) == (48, 40, 44)
    assert latent.kv_bytes_per_token(2) == 2 * (16 + 4) * 2
    assert (latent.resolved_kv_heads, latent.resolved_head_dim) == (4, 12)


def test_what_the_decoder_does_not_compute_is_named() -> None:
    assert model().not_computed() == []
    other = model(kv_heads=None, gated=False, mla=LATENT, **EXPERTS)
    assert [key for key, _, _ in other.not_computed()] == ["experts", "mla", "gated"]
    for key, _, message in other.not_computed():
        assert f"feature model.{key}" in message


def test_tensors_come_in_the_order_of_the_contract() -> None:
    names = list(model(layers=1, tied=False, qk_norm=True).tensors())
    assert names == [
        "embedding.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.attention.query.weight",
        "blocks.0.attention.key.weight",
        "blocks.0.attention.value.weight",
        "blocks.0.attention.output.weight",
        "blocks.0.attention.query_norm.weight",
        "blocks.0.attention.key_norm.weight",
        "blocks.0.ffn_norm.weight",
        "blocks.0.ffn.gate.weight",
        "blocks.0.ffn.up.weight",
        "blocks.0.ffn.down.weight",
        "norm.weight",
        "head.weight",
    ]


def test_shapes_with_grouped_queries_and_an_own_head_width() -> None:
    tensors = model(heads=6, kv_heads=2, head_dim=16, width=100).tensors()
    assert tensors["blocks.0.attention.query.weight"] == (96, 100)
    assert tensors["blocks.0.attention.key.weight"] == (32, 100)
    assert tensors["blocks.0.attention.output.weight"] == (100, 96)
    assert tensors["blocks.1.ffn.down.weight"] == (100, 192)
    assert "head.weight" not in tensors


@pytest.mark.parametrize(
    ("changes", "key", "fix"),
    [
        ({"heads": 5}, "heads", "4 or 8"),
        ({"kv_heads": 3}, "kv_heads", "2 or 4"),
        ({"kv_heads": 8}, "kv_heads", "4"),
        ({"heads": 64}, "heads", "even"),
        ({"head_dim": 15}, "head_dim", "even"),
        ({"layers": 0}, "layers", None),
        ({"width": -64}, "width", None),
        ({"ffn": 1.5}, "ffn", None),
        ({"context": True}, "context", None),
        ({"tied": 1}, "tied", None),
        ({"norm_eps": 0.0}, "norm_eps", None),
        ({"rope_base": float("nan")}, "rope_base", None),
        ({"vocab": 2**60}, "vocab", None),
        ({**EXPERTS, "top_k": 9}, "top_k", "at most 8"),
        ({**EXPERTS, "top_k": None}, "top_k", "top_k = 8"),
        ({**EXPERTS, "moe_ffn": None}, "moe_ffn", "moe_ffn = 1024"),
        ({**EXPERTS, "dense_layers": 2}, "dense_layers", "at most 1"),
        ({**EXPERTS, "moe_every": 3}, "moe_every", "at most 2"),
        ({**EXPERTS, "dense_layers": 1, "moe_every": 2}, "moe_every", "at most 1"),
        ({**EXPERTS, "shared_experts": -1}, "shared_experts", None),
        ({"top_k": 2}, "top_k", "experts = 64"),
        ({"moe_ffn": 48}, "moe_ffn", "experts = 64"),
        ({"shared_experts": 1}, "shared_experts", "experts = 64"),
        ({"dense_layers": 1}, "dense_layers", "experts = 64"),
        ({"moe_every": 2}, "moe_every", "experts = 64"),
        ({"mla": LATENT}, "kv_heads", "leave kv_heads or mla out"),
        ({"mla": LATENT, "kv_heads": None, "head_dim": 8}, "head_dim", "mla"),
        ({"mla": LATENT, "kv_heads": None, "qk_norm": True}, "qk_norm", "mla"),
        ({"mla": {**LATENT, "rope_dim": 3}, "kv_heads": None}, "mla.rope_dim", "even"),
        ({"mla": {"kv_rank": 16}, "kv_heads": None}, "mla.rope_dim", "rope_dim = 64"),
        ({"gated": 1}, "gated", None),
    ],
)
def test_impossible_shapes_are_refused(changes: dict, key: str, fix: str | None) -> None:
    with pytest.raises(InputError) as caught:
        model(**changes)
    assert caught.value.key == key
    assert fix is None or fix in caught.value.fix


def test_a_vocabulary_is_filled_in_once() -> None:
    open_model = model(vocab=None)
    with pytest.raises(ValueError, match="with_vocab"):
        open_model.tensors()
    closed = open_model.with_vocab(500)
    assert closed.tensors()["embedding.weight"] == (500, 64)
    assert closed.with_vocab(500) == closed


def test_a_vocabulary_that_the_tokenizer_does_not_have_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        model(vocab=1024).with_vocab(1000)
    assert caught.value.key == "model.vocab"
    assert "1000" in str(caught.value)
    assert "1024" in str(caught.value)


def test_expanded_holds_derived_values() -> None:
    plain = model(kv_heads=None, vocab=None).expanded()
    assert (plain["kv_heads"], plain["head_dim"]) == (4, 16)
    assert "vocab" not in plain
    # Written out or left out: the same model, so the same digest.
    assert model(kv_heads=None).expanded() == model(kv_heads=4, head_dim=16).expanded()


def test_a_model_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        model().layers = 3  # type: ignore[misc]  # the point of the test


def test_a_wrong_number_of_heads_is_told_at_once_at_any_size() -> None:
    shape = {"layers": 1, "width": 2**40, "heads": 2**39 + 1, "ffn": 2, "context": 2, "vocab": 2}
    with pytest.raises(InputError, match="does not divide") as caught:
        strict.validate(Model, shape)
    assert caught.value.fix == f"heads that fit: {2**39} or {2**40}; or set head_dim"
