"""Ctrl-C and SIGTERM as a request to save and stop, not as an exception in the middle of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from atoll.errors import Interrupted


@contextmanager
def interruptible(interrupted: threading.Event) -> Iterator[None]:
    """Ctrl-C once: finish the step, save, leave. Twice: leave at once; the islands die too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: Any) -> None:
        if interrupted.is_set():
            os._exit(Interrupted.exit_code)
        interrupted.set()
        # Not through a display: a signal may land in the middle of its own writing.
        os.write(2, b"\nstopping after this step and saving; press Ctrl-C again to leave at once\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
