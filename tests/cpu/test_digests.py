"""Digests of integer sums add up like the sums, and notice a change of any element."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.training import digests
from atoll.training.digests import PRIME, ROW, add_digests, sum_digest

LIMITS = {torch.int32: 2**31, torch.int64: 2**63}
LENGTHS = [1, 2, ROW - 1, ROW, ROW + 1, 2 * ROW, 64 * ROW - 1, 64 * ROW, 65 * ROW + 3]
dtypes = pytest.mark.parametrize("dtype", [torch.int32, torch.int64])


def drawn(length, dtype, seed, most=None):
    made = torch.Generator().manual_seed(seed)
    most = LIMITS[dtype] // 2 if most is None else most
    return torch.randint(-most, most, (length,), dtype=dtype, generator=made)


def by_definition(values, tensor):
    """The digest by Python integers alone."""
    columns = [int(x) for x in digests._COLUMNS.tolist()]
    rows = digests.row_weights(tensor, 0, -(-len(values) // ROW))
    total = 0
    for place, value in enumerate(values.tolist()):
        total += value * columns[place % ROW] * rows[place // ROW]
    return total % PRIME


@dtypes
@pytest.mark.parametrize("length", LENGTHS[:6])
def test_the_digest_is_what_its_definition_says(dtype, length):
    values = drawn(length, dtype, length)
    assert sum_digest(values, tensor=3) == by_definition(values, 3)


@dtypes
@pytest.mark.parametrize("sign", ["low", "high", "mixed"])
def test_the_extremes_of_a_type_are_summed_exactly(dtype, sign):
    """The sums of a row are nearest to 2**53 here, beyond which float64 would round."""
    low, high = -LIMITS[dtype], LIMITS[dtype] - 1
    values = torch.full((3 * ROW + 5,), low if sign == "low" else high, dtype=dtype)
    if sign == "mixed":
        values[::2] = low
    assert sum_digest(values, tensor=0) == by_definition(values, 0)


@dtypes
@pytest.mark.parametrize("length", LENGTHS)
def test_the_digest_of_a_sum_is_the_sum_of_the_digests(dtype, length):
    a, b = drawn(length, dtype, 1), drawn(length, dtype, 2)
    parts = [sum_digest(x, tensor=5) for x in (a, b)]
    assert add_digests(parts) == sum_digest(a + b, tensor=5)
    assert sum_digest(-a, tensor=5) == -parts[0] % PRIME


@dtypes
@given(data=st.data())
def test_any_split_into_islands_adds_up(dtype, data):
    limit = LIMITS[dtype] // 8
    length = data.draw(st.integers(1, 40))
    grains = data.draw(
        st.lists(
            st.lists(st.integers(-limit, limit - 1), min_size=length, max_size=length),
            min_size=1,
            max_size=8,
        )
    )
    tensors = [torch.tensor(grain, dtype=dtype) for grain in grains]
    whole = sum(tensors[1:], tensors[0])
    assert add_digests(sum_digest(t, tensor=1) for t in tensors) == sum_digest(whole, tensor=1)


@dtypes
@pytest.mark.parametrize("cut", [ROW, 32 * ROW, 64 * ROW])
def test_digests_of_blocks_add_up_to_the_whole(dtype, cut):
    values = drawn(150 * ROW + 77, dtype, 9)
    parts = [
        sum_digest(values[first : first + cut], tensor=2, offset=first)
        for first in range(0, values.numel(), cut)
    ]
    assert add_digests(parts) == sum_digest(values, tensor=2)


@dtypes
def test_a_change_of_any_single_element_is_seen(dtype):
    length = 3 * ROW + 11
    values = drawn(length, dtype, 4)
    before = sum_digest(values, tensor=0)
    for place in [*range(0, length, 97), length - 1]:
        for change in (1, -1, 2**20):
            values[place] += change
            assert sum_digest(values, tensor=0) != before, (place, change)
            values[place] -= change
    assert sum_digest(values, tensor=0) == before


@pytest.mark.parametrize(
    ("dtype", "bit"),
    [(torch.int32, bit) for bit in (0, 1, 15, 30, 31)]
    + [(torch.int64, bit) for bit in (0, 1, 15, 30, 31, 32, 62, 63)],
)
def test_a_flip_of_any_single_bit_is_seen(dtype, bit):
    mask = torch.tensor(-LIMITS[dtype] if 2**bit == LIMITS[dtype] else 2**bit, dtype=dtype)
    values = drawn(ROW + 3, dtype, 6)
    before = sum_digest(values, tensor=0)
    for place in range(0, ROW + 3, 41):
        values[place] ^= mask
        assert sum_digest(values, tensor=0) != before
        values[place] ^= mask


@dtypes
def test_swapped_elements_rows_and_tensors_are_seen(dtype):
    values = drawn(4 * ROW, dtype, 7)
    before = sum_digest(values, tensor=0)
    assert sum_digest(values, tensor=1) != before
    rows = values.view(4, ROW)
    assert sum_digest(rows[[1, 0, 2, 3]], tensor=0) != before
    assert sum_digest(torch.roll(values, 1), tensor=0) != before
    assert sum_digest(rows.t().reshape(4, ROW), tensor=0) != before


def test_equal_integers_of_both_widths_have_equal_digests():
    values = drawn(2 * ROW + 9, torch.int32, 8)
    assert sum_digest(values, tensor=4) == sum_digest(values.to(torch.int64), tensor=4)


def test_zeros_have_the_digest_zero_and_shapes_do_not_matter():
    assert sum_digest(torch.zeros(ROW + 1, dtype=torch.int32), tensor=3) == 0
    values = drawn(6 * ROW, torch.int32, 5)
    assert sum_digest(values.view(6, ROW), tensor=3) == sum_digest(values, tensor=3)


def test_weights_are_below_the_prime_never_zero_and_differ():
    weights = [w for tensor in range(3) for w in digests.row_weights(tensor, 0, 1000)]
    assert all(0 < w < PRIME for w in weights)
    assert len(set(weights)) == len(weights)
    assert digests.row_weights(2, 100, 5) == digests.row_weights(2, 0, 200)[100:105]
    assert all(0 < int(c) < 2**10 for c in digests._COLUMNS.tolist())


def test_a_digest_has_these_very_bits():
    """Ledgers hold digests: another function of the integers would fail every audit."""
    values = torch.arange(-2500, 2500, dtype=torch.int64) * 2**40
    assert sum_digest(values, tensor=1) == KNOWN


KNOWN = 207125912106869235


def test_the_fingerprint_sees_every_bit_name_and_order():
    weights = {"a": torch.ones(3), "b": torch.zeros(2, 2)}

    def of(tensors):
        parts = {name: digests.tensor_bytes_sha256(t) for name, t in tensors.items()}
        return digests.combine_sha256(parts)

    before = of(weights)
    assert len(before) == 64
    assert of({"b": weights["b"], "a": weights["a"]}) != before
    assert of({"a": weights["a"], "c": weights["b"]}) != before
    negative = {"a": weights["a"], "b": torch.zeros(2, 2)}
    negative["b"][1, 1] = -0.0
    assert of(negative) != before, "-0.0 is other bits than 0.0"
    assert of({name: t.clone() for name, t in weights.items()}) == before
