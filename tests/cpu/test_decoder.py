"""The decoder against the plain formulas, and every hand-derived gradient against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import attention, functions, initial, rotary
from atoll.modeling.decoder import Cache, Decoder

SHAPES = {
    "tied, grouped": {},
    "untied, as many key heads": {"tied": False, "kv_heads": 6},
    "one key head": {"kv_heads": 1},
    "query and key norms, wide heads": {"qk_norm": True, "head_dim": 24, "tied": False},
    "a context that is no multiple of a block": {"context": 100},
    "probabilities computed again": {"context": 256, "ffn": 64},
}


def model_of(**changes: object) -> Model:
    base = {"layers": 2, "width": 96, "heads": 6, "kv_heads": 2, "ffn": 256, "context": 128}
    return Model.model_validate({**base, "vocab": 300, "rope_base": 5000.0, **changes})


def filled(model: Model) -> Decoder:
    decoder = Decoder(model)
    initial.fill(decoder, 3)
    return decoder


def tokens_for(model: Model, num_sequences: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (num_sequences, model.context + 1)
    return torch.randint(0, model.resolved_vocab, shape, generator=generator)


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def plain_rotate(x_BTHD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    first, second = x_BTHD.chunk(2, dim=-1)
    cos, sin = cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def plain_attention(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, cos_TD: Tensor, sin_TD: Tensor
) -> Tensor:
    group = q_BTHD.shape[2] // k_BTKD.shape[2]
    q = plain_rotate(q_BTHD, cos_TD, sin_TD).transpose(1, 2)
    k = plain_rotate(k_BTKD, cos_TD, sin_TD).transpose(1, 2).repeat_interleave(group, 1)
    v = v_BTKD.transpose(1, 2).repeat_interleave(group, 1)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    y_BHTD = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
    return y_BHTD.transpose(1, 2).flatten(2)


def plain_logits(decoder: Decoder, weights: dict[str, Tensor], tokens_BT: Tensor) -> Tensor:
    """The whole model as one reads it in a paper, by autograd alone."""
    model, eps = decoder.model, decoder.model.norm_eps
    cos, sin = decoder.cos[: tokens_BT.shape[1]], decoder.sin[: tokens_BT.shape[1]]
    x = weights["embedding.weight"][tokens_BT]
    for layer in range(model.layers):
        block = {
            name.removeprefix(f"blocks.{layer}.").removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        normed = plain_norm(x, block["attention_norm"], eps)
        split = (*tokens_BT.shape, -1, model.resolved_head_dim)
        q, k, v = (
            (normed @ block[f"attention.{n}"].T).view(split) for n in ("query", "key", "value")
        )
        if model.qk_norm:
            q = plain_norm(q, block["attention.query_norm"], eps)
            k = plain_norm(k, block["attention.key_norm"], eps)
        x = x + plain_attention(q, k, v, cos, sin) @ block["attention.output"].T
        normed = plain_norm(x, block["ffn_norm"], eps)
        h = F.silu(normed @ block["ffn.gate"].T) * (normed @ block["ffn.up"].T)
        x = x + h @ block["ffn.down"].T
    head = weights["embedding.weight" if model.tied else "head.weight"]
    return plain_norm(x, weights["norm.weight"], eps) @ head.T


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_parameters_are_exactly_the_models_tensors(shape: dict[str, object]) -> None:
    model = model_of(**shape)
    named = {name: tuple(p.shape) for name, p in Decoder(model).named_parameters()}
    assert list(named.items()) == list(model.tensors().items())
    assert sum(math.prod(s) for s in named.values()) == model.num_parameters()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_loss_logits_and_every_gradient_equal_the_plain_formulas(shape: dict[str, object]) -> None:
    decoder = filled(model_of(**shape)).double()
    tokens = tokens_for(decoder.model)
    # Weights this small leave attention nearly uniform: larger ones make its gradient count.
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "query.weight" in name or "key.weight" in name:
                parameter.mul_(8)
    weights = {n: p.detach().clone().requires_grad_() for n, p in decoder.named_parameters()}
    logits = plain_logits(decoder, weights, tokens[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    expected.backward()
    loss = decoder.loss(tokens)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(decoder(tokens[:, :-1]), logits, rtol=1e-9, atol=1e-11)
    for name, parameter in decoder.named_parameters():
        gradient = weights[name].grad
        assert gradient is not None and parameter.grad is not None
        tolerance = 1e-10 * gradient.abs().max().item()
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=tolerance, msg=name)


def test_loss_is_a_sum_in_fp32_near_log_of_the_vocabulary() -> None:
    decoder = filled(model_of())
    tokens = tokens_for(decoder.model)
    loss = decoder.loss(tokens)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() / tokens[:, 1:].numel() == pytest.approx(math.log(300), abs=0.1)
    parts = sum(decoder.loss(row.unsqueeze(0)).item() for row in tokens)
    assert loss.item() == pytest.approx(parts, rel=1e-6)


def test_without_gradients_the_loss_has_the_same_bits() -> None:
    decoder = filled(model_of())
    tokens = tokens_for(decoder.model)
    with torch.no_grad():
        alone = decoder.loss(tokens)
    assert torch.equal(alone, decoder.loss(tokens).detach())


def test_a_factor_on_the_loss_scales_all_gradients_and_a_second_backward_is_refused() -> None:
    decoder = filled(model_of())
    tokens = tokens_for(decoder.model)
    decoder.loss(tokens).backward()
    once = [p.grad.clone() for p in decoder.parameters() if p.grad is not None]
    decoder.zero_grad()
    loss = decoder.loss(tokens) * 4.0
    loss.backward(retain_graph=True)
    for parameter, gradient in zip(decoder.parameters(), once, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient * 4.0, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError, match="second backward"):
        loss.backward()


def test_a_rerun_has_the_same_bits_and_gradients_are_handed_over_not_copied() -> None:
    decoder = filled(model_of())
    tokens = tokens_for(decoder.model)
    seen: list[list[Tensor]] = []
    for _ in range(2):
        decoder.zero_grad()
        decoder.loss(tokens).backward()
        seen.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
    assert len(seen[0]) == len(list(decoder.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert all(p.grad.is_contiguous() for p in decoder.parameters() if p.grad is not None)


def test_the_head_in_chunks_equals_the_head_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = filled(model_of(tied=False)).double()
    tokens = tokens_for(decoder.model, 3)
    decoder.loss(tokens).backward()
    once = [p.grad.clone() for p in decoder.parameters() if p.grad is not None]
    decoder.zero_grad()
    monkeypatch.setattr(functions, "_MIN_CHUNK", 50)
    monkeypatch.setattr(functions, "_LOGITS_IN_FLIGHT", 1)
    decoder.loss(tokens).backward()
    for parameter, gradient in zip(decoder.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_the_cross_entropy_of_an_impossible_target_is_finite() -> None:
    x = torch.tensor([[1.0]]).requires_grad_()
    weight = torch.tensor([[200.0], [0.0], [-200.0]]).requires_grad_()
    loss = functions.CrossEntropy.apply(x, weight, torch.tensor([2]), True)
    assert loss.item() == pytest.approx(400.0, rel=1e-6)


def test_a_nan_in_the_weights_reaches_the_loss() -> None:
    decoder = filled(model_of())
    with torch.no_grad():
        decoder.get_parameter("blocks.1.ffn.gate.weight")[3, 4] = math.nan
    assert math.isnan(decoder.loss(tokens_for(decoder.model)).item())


def gradcheck(function: object, *inputs: object) -> None:
    assert torch.autograd.gradcheck(function, inputs, atol=1e-7, fast_mode=False)


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def test_gradient_of_rms_norm() -> None:
    gradcheck(functions.RMSNorm.apply, draw(2, 3, 5), draw(5), 1e-3)
    gradcheck(lambda x, w: functions.RMSNorm.apply(x, w, 1e-3)[1], draw(2, 3, 5), draw(5))
    gradcheck(lambda x, w: functions.RMSNorm.apply(x, w, 1e-3)[0], draw(2, 3, 5), draw(5))


def test_gradient_of_projections() -> None:
    gradcheck(functions.Projections.apply, draw(4, 3), draw(5, 3), draw(2, 3), draw(2, 3))


def test_gradient_of_swiglu() -> None:
    gradcheck(functions.SwiGLU.apply, draw(4, 3), draw(5, 3), draw(5, 3), draw(3, 5))


def test_gradient_of_the_tied_embedding() -> None:
    tokens = torch.tensor([0, 4, 4, 2])
    gradcheck(lambda w: functions.TiedEmbedding.apply(w * 2.0, tokens), draw(6, 3))


def test_gradient_of_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by gradcheck, which runs the backward pass many times."""
    monkeypatch.setattr(functions, "_MIN_CHUNK", 3)
    monkeypatch.setattr(functions, "_LOGITS_IN_FLIGHT", 1)
    targets = torch.tensor([1, 0, 4, 4, 2, 2, 3])
    x, weight = draw(7, 3), draw(5, 3)
    expected = F.cross_entropy(x @ weight.T, targets, reduction="sum")
    d_expected = torch.autograd.grad(expected * 3.0, (x, weight))
    loss = functions.CrossEntropy.apply(x, weight, targets, True)
    d_loss = torch.autograd.grad(loss * 3.0, (x, weight))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(d_loss, d_expected)


@pytest.mark.parametrize("keep", [True, False])
def test_gradient_of_blocked_attention(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 2)
    cos, sin = (torch.from_numpy(t).double() for t in rotary.table(6, 4, 10.0))
    q, k, v = draw(2, 6, 4, 4), draw(2, 6, 2, 4), draw(2, 6, 2, 4)
    apply = attention.BlockedAttention.apply
    gradcheck(lambda q, k, v: apply(q, k, v, cos, sin, keep), q, k, v)
    torch.testing.assert_close(apply(q, k, v, cos, sin, keep), plain_attention(q, k, v, cos, sin))


def test_gradient_of_the_rotation() -> None:
    cos, sin = (torch.from_numpy(t).double() for t in rotary.table(3, 4, 10.0))
    gradcheck(lambda x: attention.rotate(x, cos, sin), draw(2, 3, 2, 4))


def test_rotary_tables_are_right_and_pinned() -> None:
    cos, sin = rotary.table(8192, 64, 100000.0)
    frequencies = rotary.inverse_frequencies(64, 100000.0)
    reference = 100000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(frequencies, reference, rtol=1e-7)
    angles = np.multiply.outer(np.arange(8192, dtype=np.float32), frequencies).astype(np.float64)
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=6e-8)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=6e-8)
    bits = [int(x) for x in cos[[1, 777, 8191], [0, 9, 31]].view(np.uint32)]
    assert bits == [1057640768, 1058673495, 1065237774]


@pytest.mark.parametrize("shape", [{}, {"qk_norm": True}, {"kv_heads": 6}])
def test_a_cache_gives_the_logits_of_the_whole_sequence(shape: dict[str, object]) -> None:
    decoder = filled(model_of(**shape)).double()
    tokens = tokens_for(decoder.model)[:, :40]
    with torch.no_grad():
        whole = decoder(tokens)
        cache = Cache(decoder, num_sequences=2, num_positions=40)
        parts = [decoder(part, cache) for part in tokens.split([7, 1, 20, 1, 11], dim=1)]
    assert cache.length == 40
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-11)


def test_a_torch_that_knows_no_grouped_heads_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = filled(model_of(context=100)).double()
    tokens = tokens_for(decoder.model)[:, :100]
    with torch.no_grad():
        expected = decoder(tokens)
        monkeypatch.setattr(attention, "_KNOWS_GROUPS", False)
        torch.testing.assert_close(decoder(tokens), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("form", "feature"),
    [
        ({"gated": False}, "feature model.gated"),
        ({"experts": 4, "top_k": 2, "moe_ffn": 8}, "feature model.experts"),
        (
            {
                "kv_heads": None,
                "head_dim": None,
                "mla": {"kv_rank": 8, "rope_dim": 4, "nope_dim": 4, "value_dim": 8},
            },
            "feature model.mla",
        ),
    ],
)
def test_a_form_that_is_not_computed_is_refused(form: dict[str, object], feature: str) -> None:
    with pytest.raises(InputError, match=feature):
        Decoder(model_of(**form))
