"""Initial weights: known bits, near-normal numbers, and independence of shard and machine."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder

MODEL = Model(layers=2, width=32, heads=4, kv_heads=2, ffn=48, context=16, vocab=100, qk_norm=True)


def test_known_bits() -> None:
    values = initial.elements(1, "embedding.weight", 0, 4, 0.02)
    assert [int(x) for x in values.view(np.uint32)] == [
        3145687617,
        1006700257,
        1000672239,
        1010939045,
    ]
    far = initial.elements(7, "blocks.3.ffn.up.weight", 2**40, 2**40 + 2, 0.02)
    assert [int(x) for x in far.view(np.uint32)] == [1017999270, 1020031576]


def test_scalar_arithmetic_in_plain_python_gives_the_same_numbers() -> None:
    """The definition once more, with Python's own integers."""

    def splitmix64(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    key = int(initial._key(11, "a.b"))
    expected = []
    for element in range(50):
        words = (
            splitmix64((2 * element + k) * 0x9E3779B97F4A7C15 + key & 2**64 - 1) for k in (0, 1)
        )
        total = sum(word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48))
        centred = total - 8 * 0xFFFF // 2
        factor = np.float32(0.5 / math.sqrt(8 * (2.0**32 - 1) / 12))
        expected.append(np.float32(centred) * factor)
    assert np.array_equal(initial.elements(11, "a.b", 0, 50, 0.5), np.array(expected))


def test_the_numbers_are_near_normal_and_unrelated() -> None:
    count = 400_000
    values = initial.elements(1, "x", 0, count, 2.0).astype(np.float64)
    unit = values / 2.0
    assert abs(unit.mean()) < 4 / math.sqrt(count)
    assert unit.std() == pytest.approx(1.0, abs=4 / math.sqrt(2 * count))
    assert (unit**3).mean() == pytest.approx(0.0, abs=0.02)
    assert (unit**4).mean() == pytest.approx(3.0 - 0.15, abs=0.04)
    # Beyond so many deviations lie so many of a normal's; ours has thinner tails.
    normal_shares = {0.5: 0.6171, 1.0: 0.3173, 2.0: 0.0455, 3.0: 0.0027}
    for distance, share in normal_shares.items():
        assert (abs(unit) > distance).mean() == pytest.approx(share, abs=0.001 + 0.025 * share)
    for lag in (1, 2, 384):
        assert abs(np.corrcoef(unit[lag:], unit[:-lag])[0, 1]) < 5 / math.sqrt(count)
    for other in (initial.elements(2, "x", 0, count, 1.0), initial.elements(1, "y", 0, count, 1.0)):
        assert abs(np.corrcoef(unit, other)[0, 1]) < 5 / math.sqrt(count)


@given(st.integers(0, 300_000), st.integers(0, 70_000))
def test_any_slice_alone_has_the_bits_of_the_whole(start: int, length: int) -> None:
    whole = initial.elements(5, "embedding.weight", 0, 370_000, 0.02)
    part = initial.elements(5, "embedding.weight", start, start + length, 0.02)
    assert np.array_equal(part, whole[start : start + length])


def test_fill_sets_every_tensor_by_the_rule() -> None:
    decoder = Decoder(MODEL)
    initial.fill(decoder, 9)
    for name, parameter in decoder.named_parameters():
        values = parameter.detach().numpy()
        if name.endswith("norm.weight"):
            assert np.array_equal(values, np.ones_like(values)), name
            continue
        residual = name.endswith(("attention.output.weight", "ffn.down.weight"))
        std = 0.02 / math.sqrt(2 * MODEL.layers) if residual else 0.02
        assert initial.standard_deviation(name, MODEL) == std
        assert np.array_equal(values, initial.tensor(9, name, values.shape, std)), name
        assert values.std() == pytest.approx(std, rel=0.1), name


def test_another_seed_gives_other_weights() -> None:
    first, second = (initial.tensor(seed, "head.weight", (100, 32), 0.02) for seed in (1, 2))
    assert (first == second).mean() < 0.01


def test_fill_keeps_the_parameters_themselves_and_their_type() -> None:
    decoder = Decoder(MODEL).double()
    before = {name: id(parameter) for name, parameter in decoder.named_parameters()}
    initial.fill(decoder, 9)
    assert before == {name: id(parameter) for name, parameter in decoder.named_parameters()}
    assert decoder.embedding.weight.dtype == torch.float64


DIGEST_PROGRAM = """
import hashlib
from atoll.modeling import initial, rotary
digest = hashlib.sha256(initial.elements(1, "x", 0, 200_000, 0.02).tobytes())
for table in rotary.table(2048, 64, 10000.0):
    digest.update(table.tobytes())
print(digest.hexdigest())
"""


def test_an_older_instruction_set_gives_the_same_bits() -> None:
    """NumPy without its vector instructions stands for another machine."""
    plain = dict(os.environ)
    old = {**plain, "NPY_DISABLE_CPU_FEATURES": " ".join(_optional_features())}
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST_PROGRAM],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for env in (plain, old)
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def _optional_features() -> list[str]:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
