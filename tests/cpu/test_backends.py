"""Which backend is chosen, what each says of itself, and what this machine's own answers."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from atoll import backends, facts
from atoll.backends.base import Backend, Feature, Memory
from atoll.backends.cpu import Cpu
from atoll.backends.null import Null
from atoll.errors import InputError, RunError

MEMBERS = {
    "name": str,
    "device_type": str,
    "collective": str,
    "visible_devices_variable": (str, type(None)),
    "ray_resource": str,
}


@pytest.mark.parametrize("name", backends.NAMES)
def test_each_backend_has_the_members_and_reasons(name: str) -> None:
    backend = backends.named(name)
    assert backend.name == name
    for member, kind in MEMBERS.items():
        assert isinstance(getattr(backend, member), kind), member
    for feature, reason in backend.unsupported.items():
        assert isinstance(feature, Feature) and len(reason.split()) >= 3, feature


def test_asking_for_a_backend_does_not_import_torch() -> None:
    code = (
        "import sys; from atoll import backends;"
        "found = [backends.named(n) for n in backends.NAMES]; backends.of_chip('h20');"
        "print([m for m in ('torch', 'numpy', 'torch_npu', 'torch_mlu') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_chip_has_a_backend_whose_device_is_its_own() -> None:
    types = {"cpu": "cpu", "nvidia": "cuda", "ascend": "npu", "cambricon": "mlu"}
    for name in facts.chips():
        chip = facts.chip(name)
        if chip.backend != "here":
            assert backends.of_chip(chip).device_type == types[chip.backend]


def test_an_unknown_backend_is_an_input_error_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="cambricon"):
        backends.named("cuda")


def test_here_is_the_cpu_where_torch_has_no_accelerator() -> None:
    if backends.current_accelerator() is not None and backends.here().device_type != "cpu":
        pytest.skip("this machine has an accelerator")
    assert isinstance(backends.here(), Cpu)
    assert isinstance(backends.of_chip("here"), Cpu)


@pytest.mark.parametrize("name", ["ascend", "cambricon"])
def test_a_vendor_that_is_not_installed_is_said_to_be_absent(name: str) -> None:
    backend = backends.named(name)
    if hasattr(torch, backend.device_type):
        pytest.skip("this vendor's package is installed")
    assert not backend.available()
    with pytest.raises(RunError, match="cannot be loaded"):
        backend.prepare()


def test_nvidia_wants_its_environment_before_deterministic_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    was = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    try:
        with pytest.raises(RunError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8"):
            backends.named("nvidia").prepare()
    finally:
        torch.use_deterministic_algorithms(was[0])
        torch.set_num_threads(was[1])
    for chip in map(facts.chip, facts.chips()):
        if chip.backend == "nvidia":
            assert chip.environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", chip.name


def test_the_cpu_shares_memory_with_the_host() -> None:
    x = torch.arange(4.0, requires_grad=True)
    host = Cpu().host(x)
    assert host.data_ptr() == x.data_ptr() and not host.requires_grad
    assert Cpu().device(3) == torch.device("cpu") and Cpu().num_devices() == 1


def test_the_memory_of_this_machine() -> None:
    memory = Cpu().memory()
    assert memory.total and memory.free and memory.peak
    assert 0 < memory.free <= memory.total and 2**24 < memory.peak <= memory.total


def test_prepare_settles_threads_and_flags() -> None:
    code = (
        "import torch; from atoll.backends import named; b = named('cpu');"
        "b.prepare(threads=2); f = b.kind_facts(compute='fp32');"
        "print(f['threads'], f['deterministic'], f['matmul'], torch.get_num_threads());"
        "b.prepare(threads=1, deterministic=False); f = b.kind_facts();"
        "print(f['threads'], f['deterministic'], torch.empty(9).isnan().all().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "2 True highest 2" and second.startswith("1 False")


def _facts_under(environment: dict[str, str]) -> str:
    code = "from atoll.backends import named; print(named('cpu').kind_facts())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_kind_facts_tell_what_is_in_force_not_what_was_asked() -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("this torch has no MKL")
    assert "'mkl_branch': 'COMPATIBLE'" in _facts_under({"MKL_CBWR": "COMPATIBLE"})
    # A word that MKL does not know: it takes another branch than it was asked for.
    assert "NONSENSE" not in _facts_under({"MKL_CBWR": "NONSENSE"})
    baseline = _facts_under({"ATEN_CPU_CAPABILITY": "default"})
    assert "'instruction_set': 'DEFAULT'" in baseline or "'instruction_set': 'NO AVX'" in baseline


def test_kind_facts_are_plain_values_and_repeat() -> None:
    first, second = Cpu().kind_facts(), Cpu().kind_facts()
    assert first == second and first["torch"] == torch.__version__
    assert all(isinstance(value, str | int | bool) for value in first.values())


def test_a_null_loop_runs_through_hooks_and_gives_zeros() -> None:
    backend = Null()
    backend.prepare(threads=torch.get_num_threads(), deterministic=False)
    model = torch.nn.Sequential(torch.nn.Linear(8, 1 << 20), torch.nn.Linear(1 << 20, 4))
    model = model.to(backend.device())
    arrived = []

    def take(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        integers = (parameter.grad * 2.0**10).round_().to(torch.int32)
        arrived.append(backend.host(integers.amax()))
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    loss = model(torch.empty(2, 8, device=backend.device())).sum()
    loss.backward()
    assert len(arrived) == 4 and all(int(x) == 0 and x.device.type == "cpu" for x in arrived)
    assert float(backend.host(loss)) == 0.0
    assert backend.sqrt(loss).device.type == "meta" and backend.prove_exact() == []
    assert backend.memory() == Memory(free=None, total=None, peak=None)
    assert Feature.TRAINING in backend.unsupported


def test_the_base_serves_a_type_it_has_no_file_for() -> None:
    generic = Backend("cpu")
    assert generic.name == "generic" and generic.collective == "gloo"
    assert generic.prove_exact() == [] and generic.host_update is False
    assert np.array_equal(generic.host(torch.arange(3)).numpy(), np.arange(3))
    with pytest.raises(AssertionError):
        Backend()
