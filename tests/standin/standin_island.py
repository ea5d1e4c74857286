"""Entry points of islands on the stand-in device: install it, then be an ordinary island."""

import device

device.install()

from collections.abc import Sequence  # noqa: E402  # the device must be there before torch is used

from atoll.backends import Backend, here  # noqa: E402
from atoll.training.dialling import run_island  # noqa: E402
from atoll.training.island import Island, main  # noqa: E402

__all__ = ["inexact", "main"]


class InexactBackend(Backend):
    """The stand-in as a chip whose division is not correctly rounded would present itself."""

    def prove_exact(self, index: int = 0) -> list[str]:
        """Division fails."""
        return ["div"]


class InexactIsland(Island):
    """An island of such a chip."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)
        self.backend = InexactBackend(here().device_type)


def inexact(argv: Sequence[str]) -> int:
    """As `main`, on a chip that may not update weights."""
    return run_island(argv, InexactIsland)
