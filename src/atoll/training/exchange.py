"""The integer sums of several islands added up, by gloo over the hosts' network.
 Gloo runs on every vendor's host and between unlike ones. Each membership (epoch) has a new process
group on the pilot's store, so that nothing of an old one can reach into a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch import Tensor, distributed

from atoll.training.accumulator import IntegerSums

_dist: Any = distributed  # its stubs leave out what gloo groups by hand need

BUCKET_BYTES = 64 * 2**20
"""Largest piece that one collective moves."""
TIMEOUT = timedelta(minutes=10)
"""How long a collective may hang; the pilot stops an island whose peer died long before."""


def serve_store(host: str) -> Any:
    """The store by which islands find each other; lives in the pilot. Its port is `.port`."""
    return _dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)


class Exchange:
    """One island's membership in the current epoch's group."""

    def __init__(self, *, store_host: str, store_port: int, local_host: str) -> None:
        self._store = _dist.TCPStore(store_host, store_port, is_master=False)
        self._local_host = local_host
        self._group: Any = None

    def join(self, *, epoch: int, rank: int, size: int) -> None:
        """Enter the group of `epoch`; all its members must call this. Alone (size 1) needs no
        group.
        """
        self._group = None  # dropping the last reference closes the old group's sockets
        if size == 1:
            return
        options = _dist.ProcessGroupGloo._Options()
        options._timeout = TIMEOUT
        options._devices = [_dist.ProcessGroupGloo.create_device(hostname=self._local_host)]
        prefix = _dist.PrefixStore(f"epoch-{epoch}", self._store)
        self._group = _dist.ProcessGroupGloo(prefix, rank, size, options)

    def add_up(
        self, sums: IntegerSums, into: IntegerSums, *, host: Callable[[Tensor], Tensor]
    ) -> None:
        """Write the sum over all islands of `sums` into `into`; `sums` stay as they are."""
        assert self._group is not None
        pending: list[tuple[Any, Tensor, Tensor]] = []
        for width, source in sums.flats.items():
            target = into.flats[width]
            step = BUCKET_BYTES // source.element_size()
            for first in range(0, source.numel(), step):
                piece = target[first : first + step]
                piece.copy_(source[first : first + step])
                staged = host(piece)
                pending.append((self._group.allreduce([staged]), staged, piece))
        for work, staged, piece in pending:
            work.wait()
            if staged.device != piece.device:
                piece.copy_(staged)
