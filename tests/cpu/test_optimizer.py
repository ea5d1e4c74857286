"""The update is its formula, one correctly rounded fp32 operation after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.backends import of_chip
from atoll.recipe import OptimizerSpec
from atoll.training.accumulator import BLOCK
from atoll.training.optimizer import FLUSH_BELOW, AdamW, flush_
from atoll.training.scalars import update_scalars

BACKEND = of_chip("cpu")
SPEC = OptimizerSpec(lr=3e-3, weight_decay=0.1)
f32 = np.float32


def scalars(step=3, exponents=(20,), *, lr=3e-3, clip=0.7, tokens=1024, optimizer=SPEC):
    return update_scalars(
        step, lr=lr, clip=clip, tokens=tokens, exponents=exponents, optimizer=optimizer
    )


def flushed(x):
    return np.where(np.abs(x) <= f32(FLUSH_BELOW), f32(0), x)


def reference(w, m, v, q, s, *, scale, decays=True):
    """The docstring's formula in numpy, whose fp32 operations are the processor's own."""
    with np.errstate(all="ignore"):
        g = q.astype(f32) * f32(scale)
        m = flushed(m * f32(s.beta1) + g * f32(s.one_minus_beta1))
        v = flushed(v * f32(s.beta2) + (g * g) * f32(s.one_minus_beta2))
        root = np.sqrt(v * f32(s.inverse_correction2)) + f32(s.eps)
        change = (m * f32(s.step_size)) / root
        w = w * f32(s.decay) if decays else w
        return flushed(w - change), m, v


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


def optimizer_of(w, m=None, v=None):
    made = AdamW({"x": w.clone()}, square_root=BACKEND.sqrt)
    if m is not None:
        made.moment1["x"].copy_(m)
        made.moment2["x"].copy_(v)
    return made


def state(size, seed=0, *, spread=8.0):
    """Weights, moments and integers over many orders of magnitude."""
    made = torch.Generator().manual_seed(seed)

    def wide():
        power = (torch.rand(size, generator=made) * 2 - 1) * spread
        return torch.randn(size, generator=made) * 2.0**power

    return wide(), wide(), wide().square(), torch.randint(-(2**30), 2**30, (size,), generator=made)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("spread", [0.0, 8.0, 40.0])
def test_an_update_is_the_formula_bit_for_bit(dtype, spread):
    w, m, v, q = state(2 * BLOCK + 1001, seed=int(spread), spread=spread)
    q = q.to(dtype) if dtype == torch.int32 else q * 2**20 + 12345
    made = optimizer_of(w.view(1, -1), m, v)
    s = scalars(exponents=(20 if dtype == torch.int32 else 44,))
    made.update("x", q, scale=s.scale[0], scalars=s)
    expected = reference(w.numpy(), m.numpy(), v.numpy(), q.numpy(), s, scale=s.scale[0])
    for name, found, right in zip(
        "wmv", (made.weights, made.moment1, made.moment2), expected, strict=True
    ):
        assert np.array_equal(bits(found["x"].view(-1).numpy()), bits(right)), name
    assert not np.array_equal(bits(expected[0]), bits(w.numpy()))


def test_many_steps_from_zero_moments_are_the_formula_bit_for_bit():
    w, _, _, _ = state(5000)
    made = optimizer_of(w.view(50, 100))
    ours = w.numpy(), np.zeros(5000, f32), np.zeros(5000, f32)
    for step in range(1, 31):
        q = torch.randint(-(2**26), 2**26, (5000,), dtype=torch.int32)
        q[: 100 * step] = 0  # more and more elements stop getting a gradient
        s = scalars(step, clip=1.0 / step)
        made.update("x", q, scale=s.scale[0], scalars=s)
        ours = reference(*ours, q.numpy(), s, scale=s.scale[0])
    assert np.array_equal(bits(made.weights["x"].view(-1).numpy()), bits(ours[0]))
    assert np.array_equal(bits(made.moment2["x"].view(-1).numpy()), bits(ours[2]))


@given(st.integers(1, 400), st.integers(0, 10**6))
def test_elements_do_not_see_each_other(size, seed):
    """Any part of a tensor is updated as the same elements are alone."""
    w, m, v, q = state(size, seed)
    cut = seed % size
    whole = optimizer_of(w.view(1, -1), m, v)
    s = scalars()
    whole.update("x", q, scale=s.scale[0], scalars=s)
    for part in (slice(0, cut), slice(cut, size)):
        alone = optimizer_of(w[part].view(1, -1), m[part], v[part])
        alone.update("x", q[part], scale=s.scale[0], scalars=s)
        assert torch.equal(alone.weights["x"].view(-1), whole.weights["x"].view(-1)[part])
        assert torch.equal(alone.moment2["x"].view(-1), whole.moment2["x"].view(-1)[part])


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1])
def test_the_borders_of_blocks_do_not_show(size):
    w, m, v, q = state(size)
    whole, shifted = (
        optimizer_of(w.view(1, -1), m, v),
        optimizer_of(w[7:].view(1, -1), m[7:], v[7:]),
    )
    s = scalars()
    whole.update("x", q, scale=s.scale[0], scalars=s)
    shifted.update("x", q[7:], scale=s.scale[0], scalars=s)
    assert torch.equal(whole.weights["x"].view(-1)[7:], shifted.weights["x"].view(-1))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_show(threads):
    w, m, v, q = state(2 * BLOCK + 5)
    expected = reference(w.numpy(), m.numpy(), v.numpy(), q.numpy(), scalars(), scale=2.0**-30)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        made = optimizer_of(w.view(1, -1), m, v)
        made.update("x", q, scale=2.0**-30, scalars=scalars())
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(bits(made.weights["x"].view(-1).numpy()), bits(expected[0]))


def test_matrices_decay_and_vectors_do_not():
    w = torch.full((6,), 2.0)
    matrix, vector = optimizer_of(w.view(2, 3)), optimizer_of(w)
    s = scalars()
    for made in (matrix, vector):
        made.update("x", torch.zeros(6, dtype=torch.int32), scale=s.scale[0], scalars=s)
    assert torch.equal(vector.weights["x"], w)
    assert torch.equal(matrix.weights["x"], w.view(2, 3) * s.decay)
    assert s.decay < 1


def test_flush_keeps_what_is_large_and_makes_the_rest_plus_zero():
    above = np.nextafter(f32(FLUSH_BELOW), f32(1))
    values = [FLUSH_BELOW, -FLUSH_BELOW, 2.0**-149, -(2.0**-127), -0.0, 0.0, 1.0, -1.0]
    x = flush_(torch.tensor([*values, above, -above], dtype=torch.float32))
    assert bits(x.numpy())[:6].tolist() == [0] * 6
    assert x[6:].tolist() == [1.0, -1.0, above, -above]


def test_no_denormal_number_stays_in_the_state():
    """Gradients that fade away leave zeros, not ever smaller numbers that chips treat unlike."""
    made = optimizer_of(torch.full((1, 64), 1e-3))
    for step in range(1, 400):
        q = torch.arange(64) if step == 1 else torch.zeros(64, dtype=torch.int64)
        s = scalars(step, exponents=(70,))
        made.update("x", q, scale=s.scale[0], scalars=s)
        for tensor in (made.weights["x"], made.moment1["x"], made.moment2["x"]):
            small = tensor.abs() <= FLUSH_BELOW
            assert not tensor[small].any(), step
    assert not made.moment2["x"].any() and not made.moment1["x"].any()


def test_the_update_is_adamw():
    """Against torch's own AdamW in float64: the same algorithm, to fp32's precision."""
    torch.manual_seed(0)
    w = torch.randn(40, 50)
    made = optimizer_of(w)
    theirs = w.double().clone().requires_grad_()
    other = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, 21):
        gradient = torch.randn(40, 50)
        q = (gradient * 2.0**20).round()
        s = scalars(step, exponents=(20,), clip=1.0, tokens=1)
        made.update("x", q.to(torch.int64).view(-1), scale=s.scale[0], scalars=s)
        theirs.grad = q.double() / 2.0**20
        other.step()
    assert torch.allclose(made.weights["x"].double(), theirs.detach(), rtol=2e-5, atol=2e-6)
