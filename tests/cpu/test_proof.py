"""The start-up proof on this CPU: it passes, and it sees each kind of wrong arithmetic."""

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from atoll import facts
from atoll.backends import named, proof, vectors
from atoll.backends.base import Backend, root_by_float64
from atoll.backends.cpu import Cpu

CPU = torch.device("cpu")
KEPT = ("add", "divide", "round", "sqrt")


def test_this_cpu_passes() -> None:
    assert proof.report(Cpu(), CPU) == {}
    assert Cpu().host_update is False


def test_the_other_kind_of_cpu_passes_too() -> None:
    code = (
        "from atoll.backends import named; b = named('cpu'); b.prepare(threads=1);"
        "f = b.kind_facts(); print(f['instruction_set'], f['mkl_branch'], b.prove_exact(), sep=';')"
    )
    environment = {**os.environ, **facts.chip("cpu-compat").environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    mkl = "COMPATIBLE" if torch.backends.mkl.is_available() else "no MKL"
    baseline, branch, failed = done.stdout.strip().split(";")
    assert baseline in ("DEFAULT", "NO AVX")  # the second until torch 2.5
    assert (branch, failed) == (mkl, "[]")


def test_plain_torch_root_fails_where_it_is_not_exact() -> None:
    x = torch.rand(100_003, generator=torch.Generator().manual_seed(0))
    exact = np.sqrt(x.numpy())
    wrong = int((torch.sqrt(x).numpy() != exact).sum())
    if wrong == 0:
        pytest.skip("this build of torch takes exact roots")
    reason = proof.root_failure(Cpu(), CPU, torch.sqrt)
    assert reason is not None and "right is" in reason
    assert proof.root_failure(Cpu(), CPU, root_by_float64) is None
    assert np.array_equal(Cpu().sqrt(x).numpy(), exact)


def test_a_plain_backend_finds_an_exact_root() -> None:
    backend = Backend("cpu")
    x = torch.rand(70_001, generator=torch.Generator().manual_seed(1))
    exact = np.sqrt(x.numpy())
    assert np.array_equal(backend.sqrt(x).numpy(), exact)
    assert backend.sqrt(x, out=x) is x and np.array_equal(x.numpy(), exact)


def test_roots_fall_back_to_the_host_where_float64_is_missing() -> None:
    class NoFloat64(Backend):
        def _exact_root(self, device: torch.device) -> Callable[[Tensor], Tensor]:
            return self._root_on_host

    x = torch.rand(5003)
    assert np.array_equal(NoFloat64("cpu").sqrt(x).numpy(), np.sqrt(x.numpy()))


def _fused(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a, b, alpha=1.0 + 2.0**-23)


def _reciprocal(a: Tensor, b: Tensor) -> Tensor:
    return a * (1.0 / b)


def _truncated(x: Tensor) -> Tensor:
    return torch.trunc(x + torch.copysign(torch.tensor(0.5), x))


def _tail_only(x: Tensor) -> Tensor:
    # Right in full vectors, wrong in the scalar tail behind them.
    root = root_by_float64(x)
    root[-(len(root) % 8) :] = torch.nextafter(root[-1:], torch.tensor(float("inf")))
    return root


@pytest.mark.parametrize(
    ("name", "inputs", "answer", "wrong"),
    [
        ("add", ("a", "b"), "add", _fused),
        ("divide", ("a", "b"), "divide", _reciprocal),
        ("round", ("round_in",), "round", _truncated),
        ("sqrt", ("sqrt_in",), "sqrt", _tail_only),
        ("flush", ("flush_in",), "flush", torch.clone),
        ("int64 to fp32", ("from_int64_in",), "from_int64", lambda x: x.double().float()),
        ("fp32 to int32", ("to_int32_in",), "to_int32", lambda x: (x * 1.0000001).int()),
        ("int32 shift", ("from_int32_in",), "shift_int32_7", lambda x: x.float().div(128).int()),
        ("int64 add", ("sum_int64_a", "sum_int64_b"), "sum_int64", lambda a, b: a.double() + b),
    ],
)
def test_wrong_arithmetic_is_seen(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    inputs: tuple[str, ...],
    answer: str,
    wrong: Callable[..., Tensor],
) -> None:
    planted = proof.Check(name=name, run=wrong, inputs=inputs, answer=answer, kept=name in KEPT)
    monkeypatch.setattr(proof, "checks", lambda backend: iter([planted]))
    assert list(proof.report(Cpu(), CPU)) == [name]


def test_an_operation_that_is_refused_fails_with_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(x: Tensor) -> Tensor:
        raise NotImplementedError("no kernel for float64\nmore")

    planted = proof.Check(name="sqrt", run=refuse, inputs=("sqrt_in",), answer="sqrt")
    monkeypatch.setattr(proof, "checks", lambda backend: iter([planted]))
    found = proof.report(Cpu(), CPU)
    assert found == {"sqrt": "aligned: NotImplementedError: no kernel for float64"}


def test_flushing_denormals_in_hardware_changes_nothing_that_is_kept() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert float(torch.tensor([2.0**-130]) * 1.0) == 0.0
        assert proof.report(Cpu(), CPU) == {}
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_passes(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert named("cpu").prove_exact() == []
    finally:
        torch.set_num_threads(before)


def test_vectors_run_past_what_one_thread_is_given() -> None:
    sizes = [len(x) for _, x in proof._layouts(CPU, np.zeros(vectors.NUM_VALUES, np.float32))]
    assert min(sizes) > 4096 and max(sizes) > 32_768 and all(size % 8 for size in sizes[:2])
