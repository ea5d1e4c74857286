"""The law, without processes: whoever computes what in whatever order, the bits are the same.

The parts are the real ones (lanes, accumulators, exponents, scalars, the update); only sockets and
processes are left out. tests/processes/test_training.py has those.
"""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from atoll.backends import of_chip
from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder
from atoll.recipe import OptimizerSpec
from atoll.training import exponents as exp
from atoll.training import scalars
from atoll.training.accumulator import Accumulator, IntegerSums, square_sum
from atoll.training.digests import add_digests, sum_digest
from atoll.training.lane import Lane
from atoll.training.optimizer import AdamW
from atoll.training.step import add_up

MODEL = Model(layers=1, width=16, heads=2, ffn=24, context=10).with_vocab(40)
SHAPES = MODEL.tensors()
GRAINS, STEPS = 6, 3
HOST = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are computed faster so, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class World:
    """Weights, moments and exponents of a run; all its islands compute on the same weights."""

    weights: dict
    optimizer: AdamW
    exponents: exp.Exponents

    @classmethod
    def new(cls):
        decoder = Decoder(MODEL)
        initial.fill(decoder, 3)
        weights = {name: p.detach().clone() for name, p in decoder.named_parameters()}
        widths = exp.choose_widths(
            list(SHAPES), head="embedding.weight", num_grains=GRAINS, accumulator="auto"
        )
        optimizer = AdamW(weights, square_root=of_chip("cpu").sqrt)
        return cls(weights, optimizer, exp.Exponents.fresh(widths))

    def state(self):
        tensors = [*self.weights.values(), *self.optimizer.moment1.values()]
        tensors += self.optimizer.moment2.values()
        return torch.cat([t.reshape(-1) for t in tensors]), self.exponents.state()


def grain(step, index, boost):
    tokens = np.random.default_rng([step, index]).integers(0, 40, (2, MODEL.context + 1))
    return tokens if not boost else np.zeros_like(tokens)


def attempt(world, step, owners, order, boost):
    """One attempt by islands of one lane: `owners[g]` is who computes grain g."""
    islands = {}
    results = {}
    for name in sorted(set(owners)):
        sums = Accumulator(IntegerSums(SHAPES, world.exponents.widths, HOST))
        sums.start(world.exponents.current)
        lane = Lane(MODEL, weights=world.weights, device=HOST)
        scale = [100.0 if boost else 1.0]
        for parameter in lane.decoder.parameters():
            parameter.register_hook(lambda g, scale=scale: g * scale[0])
        mine = [g for g in order if owners[g] == name]
        done = [lane.compute(g, grain(step, g, boost), sums, digest=False) for g in mine]
        digests = [sum_digest(view, tensor=i) for i, view in enumerate(sums.sums.views)]
        results[name] = {
            "loads": exp.pack_loads([sum(x) for x in zip(*(r.loads for r in done), strict=True)]),
            "losses": [[r.grain, r.loss] for r in done],
            "tokens": len(done) * 2 * MODEL.context,
            "sum_digest": add_digests(digests),
            "probe": None,
        }
        islands[name] = sums.sums
    return results, islands


def exchange(islands):
    into = next(iter(islands.values())).like()
    for width, flat in into.flats.items():
        for sums in islands.values():
            flat.add_(sums.flats[width])
    return into


def run(split, *, boosted=None):
    """The state after a few steps; `split(step)` gives (owner of each grain, order of work)."""
    world, log = World.new(), []
    for step in range(1, STEPS + 1):
        for number in range(4):
            owners, order = split(step)
            results, islands = attempt(world, step, owners, order, step == boosted)
            totals = add_up(results)
            log.append((step, number, totals.loads, totals.loss))
            measured = world.exponents.measured or number > 0
            if measured and not world.exponents.overflown(totals.loads):
                break
            world.exponents.current = world.exponents.retry(totals.loads)
        sums = exchange(islands)
        digests = [sum_digest(view, tensor=i) for i, view in enumerate(sums.views)]
        assert add_digests(digests) == totals.sum_digest
        squares = [square_sum(view) for view in sums.views]
        norm = scalars.gradient_norm(
            [(s.total, s.shift, k) for s, k in zip(squares, world.exponents.current, strict=True)],
            tokens=totals.tokens,
        )
        values = scalars.update_scalars(
            step,
            lr=1e-2,
            clip=scalars.clip_factor(norm, 1.0),
            tokens=totals.tokens,
            exponents=world.exponents.current,
            optimizer=OptimizerSpec(lr=1e-2),
        )
        for i, name in enumerate(SHAPES):
            world.optimizer.update(name, sums.views[i], scale=values.scale[i], scalars=values)
        world.exponents.commit(totals.loads)
        log.append((step, totals.sum_digest, norm, list(values.scale), world.exponents.digest()))
    return world, log


def alone(_step):
    return ["a"] * GRAINS, range(GRAINS)


def same(found, expected):
    assert found[1] == expected[1]
    (state, exponents), (right, right_exponents) = found[0].state(), expected[0].state()
    assert torch.equal(state, right) and exponents == right_exponents


@cache
def reference(boosted=None):
    return run(alone, boosted=boosted)


@settings(max_examples=5, phases=[Phase.generate])
@given(st.integers(0, 10**9), st.integers(1, 4))
def test_any_split_in_any_order_gives_the_same_state(seed, num_islands):
    drawn = random.Random(seed)

    def split(_step):
        owners = [drawn.choice("abcd"[:num_islands]) for _ in range(GRAINS)]
        return owners, drawn.sample(range(GRAINS), GRAINS)

    same(run(split), reference())


@settings(max_examples=2, phases=[Phase.generate])
@given(st.integers(0, 10**9))
def test_an_overflow_is_met_alike_by_any_split(seed):
    drawn = random.Random(seed)

    def split(_step):
        return [drawn.choice("abc") for _ in range(GRAINS)], range(GRAINS)

    same(run(split, boosted=2), reference(2))


def test_the_boosted_run_really_overflowed_and_the_other_did_not():
    attempts = [entry[:2] for entry in reference(2)[1] if len(entry) == 4]
    assert attempts == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    attempts = [entry[:2] for entry in reference()[1] if len(entry) == 4]
    assert attempts == [(1, 0), (1, 1), (2, 0), (3, 0)]


def test_the_run_moved_and_another_grain_would_have_moved_it_elsewhere():
    start = World.new().state()[0]
    assert not torch.equal(reference()[0].state()[0], start)
    assert not torch.equal(reference()[0].state()[0], reference(2)[0].state()[0])


def test_a_run_goes_on_from_its_state_alone():
    """Stop after a step, take weights, moments and exponents elsewhere: the same end."""
    world, _ = run(alone)
    copy = World.new()
    for name, weight in world.weights.items():
        copy.weights[name].copy_(weight)
    copy.exponents = exp.Exponents.restore(world.exponents.widths, world.exponents.state())
    for group in ("moment1", "moment2"):
        for name, tensor in getattr(world.optimizer, group).items():
            getattr(copy.optimizer, group)[name].copy_(tensor)
    results = [attempt(w, 9, ["a"] * GRAINS, range(GRAINS), False) for w in (world, copy)]
    assert results[0][0] == results[1][0]
    first, second = (exchange(islands) for _, islands in results)
    assert all(torch.equal(first.flats[w], second.flats[w]) for w in first.flats)
