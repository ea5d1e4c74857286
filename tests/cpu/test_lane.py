"""A lane computes one grain: its loads, its losses, what is not finite, and its probe."""

import ctypes
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder
from atoll.training.accumulator import Accumulator, IntegerSums
from atoll.training.digests import add_digests, sum_digest
from atoll.training.exponents import load_of
from atoll.training.lane import Lane, probe_tokens
from atoll.training.replica import Replica

MODEL = Model(layers=2, width=16, heads=2, kv_heads=1, ffn=24, context=12).with_vocab(50)
HOST = torch.device("cpu")
NAMES = list(MODEL.tensors())
EXPONENTS = [18] * len(NAMES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are computed faster so, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights_of(model=MODEL, seed=5):
    decoder = Decoder(model)
    initial.fill(decoder, seed)
    return {name: p.detach().clone() for name, p in decoder.named_parameters()}


def lane_of(weights, model=MODEL):
    return Lane(model, weights=weights, device=HOST)


def accumulator_of(model=MODEL):
    made = Accumulator(IntegerSums(model.tensors(), [64] * len(model.tensors()), HOST))
    made.start(EXPONENTS[: len(model.tensors())])
    return made


def grain(seed, *, sequences=2, model=MODEL):
    drawn = np.random.default_rng(seed)
    return drawn.integers(0, model.resolved_vocab, (sequences, model.context + 1))


def plain_gradients(weights, grains):
    """What ordinary autograd adds up in fp32 over all grains."""
    decoder = Decoder(MODEL)
    decoder.load_state_dict(weights)
    losses = []
    for tokens in grains:
        loss = decoder.loss(torch.from_numpy(tokens))
        loss.backward()
        losses.append(float(loss.detach()))
    return {name: p.grad for name, p in decoder.named_parameters()}, losses


def test_the_integers_of_many_grains_are_the_gradient():
    weights, grains = weights_of(), [grain(seed) for seed in range(8)]
    expected, losses = plain_gradients(weights, grains)
    lane, sums = lane_of(weights), accumulator_of()
    results = [lane.compute(i, tokens, sums, digest=False) for i, tokens in enumerate(grains)]
    assert [r.loss for r in results] == losses
    assert [r.grain for r in results] == list(range(8))
    for index, name in enumerate(NAMES):
        found = sums.sums.views[index].double() * 2.0**-18
        right = expected[name].double().view(-1)
        # Each grain is rounded to 2**-19; plain fp32 sums differ by their own rounding.
        bound = 8 * 2.0**-19 + 8 * 2.0**-23 * float(right.abs().max())
        assert float((found - right).abs().max()) <= bound, name
        assert float(right.abs().max()) > 1e-3, f"{name} has too small a gradient to prove anything"


def test_a_grain_of_a_lane_is_the_rounded_gradient_exactly():
    weights = weights_of()
    expected, _ = plain_gradients(weights, [grain(3)])
    sums = accumulator_of()
    result = lane_of(weights).compute(0, grain(3), sums, digest=True)
    for index, name in enumerate(NAMES):
        scaled = [Fraction(x) * 2**18 for x in expected[name].view(-1).tolist()]
        assert sums.sums.views[index].tolist() == [round(x) for x in scaled], name
        assert result.loads[index] == math.ceil(max(abs(x) for x in scaled)), name
    digests = [sum_digest(view, tensor=i) for i, view in enumerate(sums.sums.views)]
    assert result.digest == add_digests(digests)
    assert result.not_finite is None


def test_nothing_of_a_lane_remembers_an_earlier_grain():
    weights = weights_of()
    fresh, used = lane_of(weights), lane_of(weights)
    for seed in range(3):
        used.compute(0, grain(seed), accumulator_of(), digest=False)
    used.loss_only(grain(9))
    one, two = accumulator_of(), accumulator_of()
    fresh.compute(0, grain(7), one, digest=False)
    used.compute(0, grain(7), two, digest=False)
    assert torch.equal(one.sums.flats[64], two.sums.flats[64])
    assert all(p.grad is None for p in used.decoder.parameters())


def test_lanes_share_the_island_weights_and_follow_their_update():
    weights = weights_of()
    lanes = [lane_of(weights), lane_of(weights)]
    before = lanes[0].loss_only(grain(1))
    with torch.no_grad():
        weights["embedding.weight"].mul_(1.5)
    after = [lane.loss_only(grain(1)) for lane in lanes]
    assert after[0] == after[1] != before
    for lane in lanes:
        for name, parameter in lane.decoder.named_parameters():
            assert parameter.data_ptr() == weights[name].data_ptr()


class WithIdleTensor(Decoder):
    """A decoder with one parameter that no grain uses, as an expert that got no token."""

    def __init__(self, model):
        super().__init__(model)
        self.idle = nn.Parameter(torch.ones(4, 3))


class IdleModel(Model):
    def tensors(self):
        return {"idle": (4, 3), **super().tensors()}


def test_a_tensor_without_gradient_has_load_and_integers_zero(monkeypatch):
    model = IdleModel(**MODEL.model_dump())
    monkeypatch.setattr("atoll.training.lane.Decoder", WithIdleTensor)
    lane = lane_of({"idle": torch.ones(4, 3), **weights_of()}, model)
    sums = Accumulator(IntegerSums(model.tensors(), [32] * len(lane.names), HOST))
    sums.start([18] * len(lane.names))
    result = lane.compute(0, grain(2), sums, digest=True)
    index = lane.names.index("idle")
    assert lane.names == list(model.tensors())
    assert result.loads[index] == 0 and not sums.sums.views[index].any()
    assert result.not_finite is None
    assert all(load > 0 for i, load in enumerate(result.loads) if i != index)
    views = enumerate(sums.sums.views)
    assert result.digest == add_digests(sum_digest(view, tensor=i) for i, view in views)
    assert len(lane.probe(grain(2))) == 64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.ffn.up.weight", "norm.weight"])
def test_a_weight_that_is_not_finite_is_named(bad, name):
    weights = weights_of()
    weights[name].view(-1)[3] = bad
    result = lane_of(weights).compute(4, grain(0), accumulator_of(), digest=False)
    assert result.not_finite is not None and result.not_finite.startswith("the loss, ")
    assert set(result.loads) == {0}


def test_a_gradient_that_is_not_finite_is_named_alone():
    """One tensor's gradient goes bad in a grain whose loss is fine."""
    lane = lane_of(weights_of())
    parameter = dict(lane.decoder.named_parameters())["blocks.0.attention.key.weight"]
    parameter.register_hook(lambda g: g.index_fill(0, torch.tensor([1]), float("nan")))
    result = lane.compute(4, grain(0), accumulator_of(), digest=False)
    assert result.not_finite == "blocks.0.attention.key.weight"
    assert math.isfinite(result.loss)


def test_loads_are_of_the_exponent_of_their_tensor():
    lane = lane_of(weights_of())
    low, high = accumulator_of(), accumulator_of()
    high.start([k + i for i, k in enumerate(EXPONENTS)])
    first = lane.compute(0, grain(1), low, digest=False).loads
    second = lane.compute(0, grain(1), high, digest=False).loads
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a == -(-b // 2**i), i
    assert load_of(1.0, 18) == 2**18


def test_the_probe_is_equal_twice_and_sees_one_bit():
    weights = weights_of()
    tokens = probe_tokens(sequences=2, context=12, vocab=50)
    lane = lane_of(weights)
    first = lane.probe(tokens)
    assert first == lane.probe(tokens) == lane_of(weights).probe(tokens)
    weights["norm.weight"][5] += 2.0**-23
    assert lane.probe(tokens) != first
    assert lane.probe(grain(1)) != lane.probe(grain(2))


def test_probe_tokens_are_a_fixed_pattern_within_the_vocabulary():
    tokens = probe_tokens(sequences=3, context=64, vocab=300)
    assert tokens.shape == (3, 65) and tokens.dtype == np.int64
    assert tokens.min() >= 0 and tokens.max() < 300 and len(np.unique(tokens)) > 100
    assert len({token % 2 for token in tokens.ravel().tolist()}) == 2
    expected = [((count * 2654435761 % 2**32) >> 8) % 300 for count in range(4)]
    assert tokens[0, :4].tolist() == expected


def _openmp():
    """The OpenMP library that torch has loaded; asking torch itself would set the thread right."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    names = {line.split()[-1] for line in lines if "/torch/" in line}
    paths = {one for one in names if Path(one).name.startswith(("libgomp", "libiomp", "libomp"))}
    return ctypes.CDLL(sorted(paths)[0]) if paths else None


@pytest.mark.skipif(_openmp() is None, reason="torch has loaded no OpenMP library")
def test_threads_of_a_lane_are_set_before_their_first_product():
    asked = []

    def first_words(_):
        asked.append(_openmp().omp_get_max_threads())

    for threads in (1, 3):
        replica = Replica(chip="cpu", lanes=2, threads=threads, device_index=0)
        list(replica._pool.map(first_words, range(2)))
    torch.set_num_threads(1)
    assert asked == [1, 1, 3, 3]


def test_loss_only_is_the_loss_of_a_grain():
    weights = weights_of()
    _, losses = plain_gradients(weights, [grain(6)])
    assert lane_of(weights).loss_only(grain(6)) == losses[0]


def test_a_gradient_outside_a_grain_is_a_bug_that_is_noticed():
    lane = lane_of(weights_of())
    with pytest.raises(AssertionError, match="outside a grain"):
        lane.decoder.loss(torch.from_numpy(grain(0))).backward()
