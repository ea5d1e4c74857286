"""`atoll measure` on the stand-in device: as a script the command itself, as a module its
processes. It times what the CPU does behind the stand-in: only the way there is real."""

import sys
from collections.abc import Sequence
from pathlib import Path

import device

device.install()

from atoll.training import profiling  # noqa: E402  # the device must be there before torch is used
from atoll.training.crewing import Starting  # noqa: E402
from atoll.training.display import SilentDisplay  # noqa: E402
from atoll.training.measure import measure  # noqa: E402
from atoll.training.sweep import Sweep  # noqa: E402


def main(arguments: Sequence[str]) -> int:
    """A process of `atoll measure` on the stand-in."""
    return profiling.main(arguments)


if __name__ == "__main__":
    measure(
        to=Path(sys.argv[1]),
        sweep=Sweep(
            gemms=[(8, 8, 8), (16, 8, 32)],
            dtypes=("fp32", "bf16"),
            copies=(4096,),
            messages=(1024, 65536),
            repeats=3,
            repeat_seconds=1e-5,
            point_seconds=1.0,
        ),
        display=SilentDisplay(),
        starting=Starting(
            entry="standin_measuring:main",
            preload=("torch", "torch.distributed"),
            python_path=[Path(__file__).parent],
        ),
    )
