"""Entry points of `atoll measure`'s processes that go wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

from atoll.training import profiling


def dies(arguments: Sequence[str]) -> int:
    """The device is lost at once."""
    raise ZeroDivisionError("the device is gone")


def dies_in_collectives(arguments: Sequence[str]) -> int:
    """The device works; rank 1 is lost as soon as ranks shall meet."""
    if arguments[1] == "1" and json.loads(Path(arguments[0]).read_text())["ranks"]:
        raise ZeroDivisionError("the network is gone")
    return profiling.main(arguments)
