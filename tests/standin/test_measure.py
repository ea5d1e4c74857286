"""`atoll measure` on an accelerator of an unknown make: products, memory and both links."""

import subprocess
import sys
from pathlib import Path

from atoll.facts.measured import load_measured

HERE = Path(__file__).parent


def test_a_device_without_a_backend_of_its_own_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "measured" / "here.toml"
    script = [sys.executable, str(HERE / "standin_measuring.py"), str(file)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    measured = load_measured(file)
    assert measured.chip == "here"
    assert measured.host.settings["device_type"] == "standin"
    for dtype in ("fp32", "bf16"):
        assert {(g.m, g.n, g.k) for g in measured.gemm if g.dtype == dtype} == {
            (8, 8, 8),
            (16, 8, 32),
        }
    assert measured.memory is not None and len(measured.memory.copies) == 1
    directions = [link.direction for link in measured.link]
    assert sorted(directions) == ["device-to-host"] * 2 + ["host-to-device"] * 2
    assert measured.link_seconds("host-to-device", 5000) is not None
    left_out = {one.what: one.why for one in measured.left_out}
    assert left_out["collective"] == "there is one device"
    assert left_out["link device-to-device"] == "there is one device"
