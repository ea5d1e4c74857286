"""The real torch_npu package over no-op stubs of the vendor's libraries, where one is given.

    python3 -m venv npu && npu/bin/pip install torch==2.13.0 torch-npu==2.13.0 numpy pydantic
    pytest tests/optional --torch-npu-python npu/bin/python

It shows that the package loads beside our code, that our backend is picked and speaks to its real
interface, and that the decoder's operations exist there with the right shapes. It cannot show that
a number is right: that takes a card.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import stubs  # noqa: E402  (a module beside this file)

pytestmark = [pytest.mark.optional, pytest.mark.ascend]


def _packages(python: str) -> Path:
    """The folder of packages of that Python, asked without importing any."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `traced.py` says, run over stubs made for exactly this build of the package."""
    python = request.config.getoption("--torch-npu-python")
    if python is None:
        pytest.skip("no Python with torch_npu was given (--torch-npu-python PATH)")
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"building the stubs needs {tool}")
    packages = _packages(python)
    own = [*packages.glob("torch_npu/_C*.so")]
    own += [packages / "torch_npu/lib" / f"lib{n}.so" for n in ("torch_npu", "tensorpipe")]
    own += [packages / "torch_npu/lib/libnpu_profiler.so"]
    functions = stubs.missing_functions(own, (packages / "torch/lib").glob("*.so*"))
    assert "aclInit" in functions and 50 < len(functions) < 200
    supplied = {path.name for path in [*own, *(packages / "torch/lib").iterdir()]}
    names = set().union(*map(stubs.needed, own)) - supplied
    names = {name for name in names if not stubs.system_libraries([name])}
    assert "libascendcl.so" in names
    folder = tmp_path_factory.mktemp("stubs")
    stubs.build(folder, functions=functions, names=names)
    source = HERE.parents[1] / "src"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        # Loading is the backend's to ask for here, after the stubs are in place.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "PYTHONPATH": str(source),
    }
    # In a process of its own: what the stubs do not cover ends the process, not with an exception.
    done = subprocess.run(
        [python, str(HERE / "traced.py")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_our_backend_is_picked_with_its_collective(report: Any) -> None:
    assert report["accelerator"] == "npu"
    assert report["here"] == report["of_chip"] == "ascend"
    assert report["available"] and report["num_devices"] == 1
    assert report["collective"] == "hccl" and report["device"] == "npu:0"


def test_the_decoder_traces_forward_and_backward_on_the_device(report: Any) -> None:
    assert len(report["traced"]) == 2
    for devices in report["traced"]:
        assert len(devices) > 15 and set(devices.values()) == {"npu:0"}


def test_its_settings_and_facts_are_taken(report: Any) -> None:
    facts = report["kind_facts"]
    assert facts["torch_npu"] == report["torch_npu"]
    assert facts["deterministic"] is True and facts["hf32"] is False
    # No CANN is installed: its versions are unknown, which is said and is not a version.
    assert facts["cann"] == facts["driver"] == "unknown"
