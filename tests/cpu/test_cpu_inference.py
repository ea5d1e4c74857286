"""Inference on a CPU by compiled kernels: right, and a row has its bits in any company."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import initial, opening
from atoll.modeling.decoder import Decoder
from atoll.modeling.device_inference import DeviceInference
from atoll.modeling.inference import Inference, Piece

pytest.importorskip("numba")
from llvmlite import binding

from atoll.modeling import cpu_inference, kernels
from atoll.modeling.cpu_inference import CpuInference, packed

PAGE = 8


def lively(**changes: Any) -> Decoder:
    """A random model whose logits differ much."""
    base = {"layers": 2, "width": 40, "heads": 4, "kv_heads": 2, "ffn": 72, "context": 64}
    decoder = Decoder(Model.model_validate({**base, "vocab": 97, **changes}))
    initial.fill(decoder, 4)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(torch.linspace(0.5, 2.0, len(parameter)))
            else:
                parameter.mul_(8.0)
    return decoder


FORMS = (
    {},
    {"tied": False, "qk_norm": True, "head_dim": 24},
    {"heads": 5, "kv_heads": 1, "head_dim": 8, "width": 33, "ffn": 20},
    {"heads": 2, "kv_heads": 2, "head_dim": 66, "vocab": 128, "norm_eps": 1e-3},
)


def opened(decoder: Decoder, *, page: int = PAGE, threads: int = 2) -> CpuInference:
    num_pages = 3 * -(-decoder.model.context // page)
    tensors = dict(decoder.named_parameters())
    return CpuInference(decoder.model, tensors, num_pages=num_pages, page=page, threads=threads)


def prompt(seed: int, length: int = 64) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 97, length)]


def times(x: np.ndarray, tiles: np.ndarray, on_top_of: np.ndarray | None = None) -> np.ndarray:
    """x times the weight, or added to something, by the kernel."""
    y = np.empty((len(x), len(tiles) * kernels.WIDTH), np.float32)
    if on_top_of is not None:
        y[:, : on_top_of.shape[1]] = on_top_of
    factors = np.arange(1, len(x) + 1, dtype=np.float32)
    kernels.product(x, tiles, factors, y, int(on_top_of is not None))
    return y


@given(
    num=st.integers(1, 21),
    terms=st.integers(1, 90),
    columns=st.integers(1, 100),
    seed=st.integers(0, 99),
)
def test_a_product_is_right_and_a_row_has_its_bits_in_any_company(
    num: int, terms: int, columns: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    x, w, base = (
        draw.standard_normal(shape).astype(np.float32)
        for shape in ((num, terms), (columns, terms), (num, columns))
    )
    tiles = packed(torch.from_numpy(w))
    factors = np.arange(1, num + 1)[:, None]
    expected = factors * (x.astype(np.float64) @ w.T.astype(np.float64))
    bound = 2e-7 * terms * factors * (np.abs(x).astype(np.float64) @ np.abs(w.T)) + 1e-6
    found = times(x, tiles)
    assert np.all(np.abs(found[:, :columns] - expected) <= bound)
    assert np.all(np.abs(times(x, tiles, base)[:, :columns] - expected - base) <= bound)
    some = int(draw.integers(1, num + 1))
    assert np.array_equal(times(x[:some].copy(), tiles), found[:some])


def test_the_exponential_is_good_to_a_rounding_and_keeps_what_is_no_number() -> None:
    at = np.linspace(-87.0, 88.0, 20_001).astype(np.float32)
    found = np.array([kernels._exp(x) for x in at], dtype=np.float64)
    exact = np.exp(at.astype(np.float64))
    assert np.max(np.abs(found / exact - 1.0)) < 2.5e-7
    assert kernels._exp(np.float32(0.0)) == 1.0
    assert kernels._exp(np.float32(-np.inf)) == kernels._exp(np.float32(-87.0)) < 2e-38
    assert np.isnan(kernels._exp(np.float32(np.nan)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("page", [5, 8, 64])
def test_logits_are_those_of_the_decoder(form: dict[str, Any], page: int) -> None:
    decoder = lively(**form)
    inference, ids = opened(decoder, page=page), prompt(1)
    pages = list(range(-(-64 // page)))[::-1]
    found = inference.step([Piece(pages, 0, ids[:60], True)])
    found = np.concatenate([found, inference.step([Piece(pages, 60, ids[60:], True)])])
    with torch.no_grad():
        expected = decoder(torch.tensor([ids]))[0, [59, 63]].numpy()
    assert expected.std() > 1.0
    assert np.allclose(found, expected, rtol=0, atol=2e-4)


def logits_in_company(inference: CpuInference, seed: int) -> list[np.ndarray]:
    """Of one text after each of its pieces, cut and accompanied by the seed's draw."""
    draw = np.random.default_rng(seed)
    pages = draw.permutation(inference.num_pages).reshape(3, -1).tolist()
    texts, done = [prompt(7), prompt(seed), prompt(seed + 1)], [0, 0, 0]
    found: list[np.ndarray] = [np.zeros(0)] * 64
    while done[0] < 64:
        pieces = []
        for text in draw.permutation(3).tolist():
            num = min(64 - done[text], int(draw.choice([0, 1, 1, 2, 5, 17])))
            if num:
                tokens = texts[text][done[text] : done[text] + num]
                pieces.append((text, Piece(pages[text], done[text], tokens, text == 0)))
                done[text] += num
        if pieces:
            logits = inference.step([piece for _, piece in pieces])
            if any(text == 0 for text, _ in pieces):
                (found[done[0] - 1],) = logits
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_text_has_the_same_bits_however_it_is_cut_and_whatever_is_beside_it(
    form: dict[str, Any],
) -> None:
    decoder = lively(**form)
    alone, ids = opened(decoder), prompt(7)
    expected = [alone.step([Piece(range(8), at, [ids[at]], True)])[0] for at in range(64)]
    for seed in range(4):
        inference = opened(decoder, threads=1 + seed % 2)
        for found, right in zip(logits_in_company(inference, seed), expected, strict=True):
            assert not len(found) or np.array_equal(found, right)


def test_what_lies_behind_is_not_looked_at_and_a_copied_beginning_is_as_good() -> None:
    inference, ids = opened(lively()), prompt(3)
    fresh = inference.step([Piece([0, 1], 0, ids[:12], True)])
    for store in (inference._keys, inference._values):
        store[:, 2:] = np.nan
    inference.copy(1, 2, 3)
    inference.copy(3, 3, 0)
    again = inference.step([Piece([0, 2], 11, ids[11:12], True)])
    assert np.array_equal(again, fresh)
    assert np.array_equal(inference.step([Piece([3, 4], 0, ids[:12], True)]), fresh)


def test_nothing_wanted_and_fewer_layers() -> None:
    inference = opened(lively())
    assert inference.step([Piece([0], 0, [1, 2], False)]).shape == (0, 97)
    two, none = (inference.step([Piece([0], 0, [1], True)], num_layers=n) for n in (2, 0))
    assert not np.array_equal(two, none)
    with pytest.raises(InputError, match="experts"):
        moe = lively().model.model_copy(update={"experts": 4, "top_k": 2, "moe_ffn": 8})
        CpuInference(moe, {}, num_pages=1)


def by(decoder: Decoder, tell: Any = lambda _: None) -> tuple[Inference, bool]:
    return opening.open_inference(
        decoder.model,
        dict(decoder.named_parameters()),
        device=torch.device("cpu"),
        num_pages=8,
        page=PAGE,
        max_rows=16,
        threads=2,
        fast=False,
        tell=tell,
    )


def test_without_working_kernels_torch_computes_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder, piece = lively(), Piece([0], 0, [1, 2, 3], True)
    compiled, exact = by(decoder)
    assert isinstance(compiled, CpuInference) and exact and not caplog.records
    monkeypatch.setattr(kernels, "layers", lambda *_: None)
    plain, exact = by(decoder)
    assert isinstance(plain, DeviceInference) and exact
    assert "compute something else" in caplog.text
    monkeypatch.undo()
    assert np.allclose(compiled.step([piece]), plain.step([piece]), rtol=0, atol=2e-4)
    broken = packed(torch.ones(70, 50))
    monkeypatch.setattr(cpu_inference, "packed", lambda _: broken)
    assert not cpu_inference.product_works()


def test_what_is_in_the_way_of_compiling_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: Any) -> None:
        raise EOFError("ran out of what was kept")

    monkeypatch.setattr(kernels, "layers", damaged)
    assert opening._why_not_compiled(print) == "numba cannot compile here: ran out of what was kept"
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: {"fma": False})
    assert "no fused multiply-add" in opening._why_not_compiled(print)


IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
{before}
import logging
import test_cpu_inference as t
decoder = t.lively()
inference, exact = t.by(decoder, tell=lambda text: print(text, file=sys.stderr))
found = inference.step([t.Piece(range(8), 0, t.prompt(1), True)])
with t.torch.no_grad():
    right = decoder(t.torch.tensor([t.prompt(1)]))[0, -1].numpy()
assert exact and t.np.allclose(found[0], right, rtol=0, atol=2e-4)
print(type(inference).__name__, t.kernels._MOST if "Cpu" in str(type(inference)) else "")
"""


JUNK_IN_FREED_MEMORY = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"


def in_another_process(before: str, **environment: str) -> tuple[str, str]:
    """What it printed, and what it said. What it reads of freed memory is wrong on purpose."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            IN_ANOTHER_PROCESS.format(before=before),
            str(Path(__file__).parent),
        ],
        env={**os.environ, "GLIBC_TUNABLES": JUNK_IN_FREED_MEMORY, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_a_processor_with_fewer_registers_and_no_folder_to_keep_anything() -> None:
    lesser = (
        "import llvmlite.binding as b, numba.core.caching as c\n"
        "b.get_host_cpu_features = lambda: {'avx2': True}\n"
        "c.CacheImpl._locator_classes = []"
    )
    printed, said = in_another_process(lesser, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="")
    assert printed == "CpuInference 2" and "compiling for this processor" in said


@pytest.mark.parametrize(
    ("layer", "printed", "said"),
    [
        ("workqueue", f"CpuInference {kernels._MOST}", "no OpenMP here"),
        ("nonsense", "DeviceInference", "numba cannot compile here"),
    ],
)
def test_threads_that_meet_slowly_or_not_at_all(layer: str, printed: str, said: str) -> None:
    found = in_another_process("", NUMBA_THREADING_LAYER=layer)
    assert found[0] == printed and said in found[1]
