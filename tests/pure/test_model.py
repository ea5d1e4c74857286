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


@given(models())
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
