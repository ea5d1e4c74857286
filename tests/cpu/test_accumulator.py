"""Integer gradient sums: the same integers in any order, by any threads, in any partition."""

import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.training.accumulator import BLOCK, Accumulator, IntegerSums, blocks, square_sum
from atoll.training.digests import PRIME, sum_digest

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, BLOCK // 2 + 3)}
WIDTHS = (32, 64, 32)
EXPONENTS = [12, 40, 9]
HOST = torch.device("cpu")


@pytest.fixture(autouse=True, params=[1, 2], ids=["one-core", "two-cores"])
def num_threads(request):
    """The host has one way of adding for lanes of one thread and one for more: the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def accumulator():
    found = Accumulator(IntegerSums(SHAPES, WIDTHS, HOST))
    found.start(EXPONENTS)
    return found


@cache
def gradients(seed, count=6):
    made = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(shape, generator=made) * 10.0 ** (i % 3) for shape in SHAPES.values()]
        for i in range(count)
    ]


def total_of(parts):
    """All flat buffers of one or several accumulators, added up."""
    return {
        width: sum(part.sums.flats[width].to(torch.int64) for part in parts)
        for width in parts[0].sums.flats
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[w].long(), b[w].long()) for w in a)


REFERENCE = accumulator()
for grain in gradients(1):
    for tensor, gradient in enumerate(grain):
        REFERENCE.add(tensor, gradient.clone())


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_no_order_and_no_partition_changes_a_sum(drawn, num_islands):
    work = [(grain, tensor) for grain in range(6) for tensor in range(3)]
    drawn.shuffle(work)
    islands = [accumulator() for _ in range(num_islands)]
    owner = [drawn.randrange(num_islands) for _ in range(6)]
    grains = gradients(1)
    for grain, tensor in work:
        islands[owner[grain]].add(tensor, grains[grain][tensor].clone())
    assert equal(total_of(islands), total_of([REFERENCE]))


def test_threads_that_add_at_once_lose_nothing():
    for seed in range(5):
        work = [(grain, tensor) for grain in gradients(1) for tensor in range(3)]
        random.Random(seed).shuffle(work)
        shared = accumulator()
        with ThreadPoolExecutor(6) as pool:
            jobs = [pool.submit(shared.add, t, grain[t].clone()) for grain, t in work]
        assert all(job.result()[0] > 0 for job in jobs)
        assert equal(total_of([shared]), total_of([REFERENCE]))


@pytest.mark.parametrize("exponent", [-20, 0, 7, 23])
def test_an_element_is_scaled_and_rounded_to_the_nearest_even_integer(exponent):
    values = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1.0 / 3, -7.25, 2.0**30 / 2.0**exponent]
    values += [(n + 0.5) / 2.0**exponent for n in (-3, -2, 0, 1, 4)]
    gradient = torch.tensor(values)
    sums = Accumulator(IntegerSums({"x": gradient.shape}, [64], HOST))
    sums.start([exponent])
    exact = [round(Fraction(x) * Fraction(2) ** exponent) for x in gradient.tolist()]
    sums.add(0, gradient)
    assert sums.sums.views[0].tolist() == exact


@pytest.mark.parametrize(("width", "exponent"), [(32, 30), (64, 62)])
def test_the_largest_sum_that_does_not_overflow_is_held_exactly(width, exponent):
    """Two grains: one of half the limit, one of the next smaller fp32 number, of both signs."""
    below = 1.0 - 2.0**-24
    sums = Accumulator(IntegerSums({"x": (2,)}, [width], HOST))
    sums.start([exponent])
    for value in (1.0, below):
        sums.add(0, torch.tensor([value, -value]))
    exact = int(Fraction(2) ** exponent * (1 + Fraction(below)))
    assert sums.sums.views[0].tolist() == [exact, -exact]


def test_the_maximum_is_of_the_magnitude_over_all_blocks():
    sums = Accumulator(IntegerSums({"x": (3 * BLOCK + 5,)}, [32], HOST))
    sums.start([4])
    gradient = torch.zeros(3 * BLOCK + 5)
    assert float(sums.add(0, gradient.clone())[0]) == 0.0
    for place in (0, BLOCK - 1, BLOCK, 3 * BLOCK + 4):
        for sign in (1.0, -1.0):
            there = gradient.clone()
            there[place] = sign * 3.25
            assert float(sums.add(0, there)[0]) == 3.25, (place, sign)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, BLOCK + 1, 2 * BLOCK])
def test_one_value_that_is_not_finite_shows_in_the_maximum(bad, place):
    sums = Accumulator(IntegerSums({"x": (2 * BLOCK + 1,)}, [32], HOST))
    sums.start([4])
    gradient = torch.ones(2 * BLOCK + 1)
    gradient[place] = bad
    assert not bool(torch.isfinite(sums.add(0, gradient)[0]))


def test_a_step_starts_from_zero_also_after_values_that_were_not_finite():
    sums = accumulator()
    for tensor, shape in enumerate(SHAPES.values()):
        sums.add(tensor, torch.full(shape, float("nan")))
    sums.start(EXPONENTS)
    for grain in gradients(1):
        for tensor, gradient in enumerate(grain):
            sums.add(tensor, gradient.clone())
    assert equal(total_of([sums]), total_of([REFERENCE]))


def test_the_digest_of_a_grain_is_of_its_own_integers_alone():
    grains = gradients(2)
    shared, alone = accumulator(), accumulator()
    for tensor in range(3):
        shared.add(tensor, grains[0][tensor].clone())
        alone.add(tensor, grains[1][tensor].clone())
        _, digest = shared.add(tensor, grains[1][tensor].clone(), digest=True)
        expected = sum_digest(alone.sums.views[tensor], tensor=tensor)
        assert digest % PRIME == expected


def test_a_gradient_that_is_not_contiguous_is_added_in_the_order_of_its_elements():
    straight, turned = accumulator(), accumulator()
    gradient = gradients(3)[0][0]
    turned.add(0, gradient.t().contiguous().t())
    straight.add(0, gradient.clone())
    assert equal(total_of([straight]), total_of([turned]))
    assert straight.sums.views[0].any()


def test_views_share_the_flat_buffer_and_do_not_overlap():
    sums = IntegerSums(SHAPES, WIDTHS, HOST)
    for number, view in enumerate(sums.views, start=1):
        view.add_(number)
    assert {w: flat.dtype for w, flat in sums.flats.items()} == {32: torch.int32, 64: torch.int64}
    assert sums.flats[32].bincount().tolist() == [0, 15, 0, 2 * (BLOCK // 2 + 3)]
    assert sums.flats[64].tolist() == [2] * 7
    other = sums.like()
    assert not any(flat.any() for flat in other.flats.values())


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_blocks_cover_a_tensor_once(size):
    pieces = blocks(torch.arange(size))
    assert torch.equal(torch.cat([piece for _, piece in pieces]), torch.arange(size))
    assert [offset for offset, _ in pieces] == [int(piece[0]) for _, piece in pieces]


# Sums of squares

LARGEST = {torch.int32: 2**31 - 1, torch.int64: 2**63 - 1}


def exact_squares(values, shift):
    return sum((value >> shift) ** 2 for value in values)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_squares_are_exact(dtype, data):
    largest = data.draw(st.sampled_from([1, 2**14, 2**15, 2**20, LARGEST[dtype]]))
    values = data.draw(st.lists(st.integers(-largest, largest), max_size=50))
    found = square_sum(torch.tensor(values, dtype=dtype))
    assert found.total == exact_squares(values, found.shift)
    most = max((abs(value) for value in values), default=0)
    assert most >> found.shift < 2**15
    assert found.shift == 0 or most >> (found.shift - 1) >= 2**15


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_squares_of_the_extremes_are_exact_over_many_blocks(dtype):
    """Every partial sum must stay below 2**53, or float64 would round."""
    for value in (LARGEST[dtype], -LARGEST[dtype], -LARGEST[dtype] - 1, 2**15 - 1, -(2**15) + 1):
        found = square_sum(torch.full((2 * BLOCK + 3,), value, dtype=dtype))
        assert found.total == (2 * BLOCK + 3) * (value >> found.shift) ** 2, value


def test_squares_do_not_depend_on_where_the_elements_lie():
    values = torch.randint(-(2**31) + 1, 2**31 - 1, (2 * BLOCK,), dtype=torch.int32)
    there = square_sum(values)
    assert square_sum(values[torch.randperm(values.numel())]) == there
    assert there.total > 0


def test_squares_of_nothing():
    assert square_sum(torch.zeros(5, dtype=torch.int32)).total == 0
    assert square_sum(torch.zeros(0, dtype=torch.int64)).total == 0
