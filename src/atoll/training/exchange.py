"""The integer sums of several islands added up, by gloo over the hosts' network.

Gloo runs on every vendor's host and between unlike ones. Each membership (epoch) has a new process
group on the pilot's store, so that nothing of an old one can reach into a new one. The exchange of
a bucket starts as soon as the last grain's backward pass has finished with its tensors.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import Tensor, distributed

from atoll.errors import ExchangeError
from atoll.training.accumulator import IntegerSums
from atoll.training.exponents import Width

_dist: Any = distributed  # its stubs leave out what gloo groups by hand need

BUCKET_BYTES = 64 * 2**20
"""Largest piece that one collective moves."""
EARLY_BYTES = 8 * 2**20
"""Sums that are gathered before their exchange starts: smaller messages would cost latency."""
TIMEOUT = timedelta(hours=12)
"""How long a collective may wait: an early island's for the slowest one's last grain. Who waits for
the dead is called away by the pilot (`cancel`)."""
MEETING = timedelta(seconds=10)
"""How long the members of a new group may look for one another."""
LOOK_SECONDS = 0.001
"""Between two looks whether a collective has ended or the island is called away."""


def serve_store(host: str) -> Any:
    """The store by which islands find each other, on `host` alone; lives in the pilot.

    Its port is `.port`. It holds addresses of the islands' sockets and nothing else.
    """
    # Left to itself the store would listen on all interfaces.
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    listening = socket.create_server((host, 0), family=family)
    port = listening.getsockname()[1]
    return _dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )


class Exchange:
    """One island's membership in the current epoch's group."""

    def __init__(self, *, store_host: str, store_port: int, local_host: str) -> None:
        self._store = _dist.TCPStore(store_host, store_port, is_master=False)
        self._local_host = local_host
        self._group: Any = None
        self._called_away = threading.Event()
        self._parked: list[Any] = []  # gloo ends what hangs only by its own time-out

    def cancel(self) -> None:
        """End whatever `OpenExchange.finish` waits for; from any thread."""
        self._called_away.set()

    def park(self, unfinished: object) -> None:
        """Keep an exchange that was given up, its group and buffers too: it may still write."""
        self._parked.append((unfinished, self._group))
        self._group = None

    @property
    def hangs(self) -> bool:
        """Whether a collective that was given up is still under way."""
        return any(not unfinished[0].ended for unfinished, _ in self._parked)

    def join(self, *, epoch: int, rank: int, size: int) -> None:
        """Enter the group of `epoch`; all its members must call this. Alone (size 1) needs no
        group. ExchangeError if they do not find one another in time.
        """
        self._called_away.clear()
        self._parked = [item for item in self._parked if not item[0][0].ended]
        self._group = None  # dropping the last reference closes the old group's sockets
        if size == 1:
            return
        options = _dist.ProcessGroupGloo._Options()
        options._timeout = MEETING
        options._devices = [_dist.ProcessGroupGloo.create_device(hostname=self._local_host)]
        prefix = _dist.PrefixStore(f"epoch-{epoch}", self._store)
        try:
            self._group = _dist.ProcessGroupGloo(prefix, rank, size, options)
        except RuntimeError as error:
            raise ExchangeError(f"the islands of epoch {epoch} did not meet: {error}") from error

    def begin(
        self,
        sums: IntegerSums,
        into: IntegerSums,
        *,
        host: Callable[[Tensor], Tensor],
        num_grains: int,
    ) -> OpenExchange:
        """Begin to write the sum over all islands of `sums` into `into`; `sums` stay as they are.

        A bucket leaves when this island has added `num_grains` gradients to each of its tensors.
        All members must call this for the same steps and attempts.
        """
        return OpenExchange(
            self._group, sums, into, host=host, num_grains=num_grains, away=self._called_away
        )


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Elements [first, last) of one flat buffer, and the tensors that lie there."""

    width: Width
    first: int
    last: int
    tensors: tuple[int, ...]


def buckets_of(sums: IntegerSums) -> list[_Bucket]:
    """Neighbouring tensors, at least `EARLY_BYTES` of them, in the order in which backward passes
    finish: the last tensors of the model first. The same list on every island.
    """
    buckets: list[_Bucket] = []
    for width, flat in sums.flats.items():
        tensors: list[int] = []
        for index in reversed(range(len(sums.spans))):
            if sums.spans[index].width != width:
                continue
            tensors.append(index)
            first, last = sums.spans[index].first, sums.spans[tensors[0]].last
            if first == 0 or (last - first) * flat.element_size() >= EARLY_BYTES:
                buckets.append(_Bucket(width, first, last, tuple(tensors)))
                tensors = []
    return sorted(buckets, key=lambda bucket: min(bucket.tensors), reverse=True)


class OpenExchange:
    """One attempt's exchange. `added` is called by the lanes, `finish` by the island."""

    def __init__(
        self,
        group: Any,
        sums: IntegerSums,
        into: IntegerSums,
        *,
        host: Callable[[Tensor], Tensor],
        num_grains: int,
        away: threading.Event,
    ) -> None:
        self._away = away
        self._broken = "" if group is not None else "this island is in no group"
        self._group, self._sums, self._into, self._host = group, sums, into, host
        self._waiting = [num_grains] * len(sums.spans)
        self._buckets = buckets_of(sums)
        self._lock = threading.Lock()
        self._pending: list[tuple[Any, Tensor, Tensor]] = []

    def added(self, index: int) -> None:
        """A grain's gradient of tensor `index` is in the sums."""
        with self._lock:
            self._waiting[index] -= 1
            if self._broken:
                return
            # Strictly in order: collectives of a group must match on all its members.
            while self._buckets and not any(self._waiting[i] for i in self._buckets[0].tensors):
                self._send(self._buckets.pop(0))

    def finish(self) -> None:
        """Send what has not left yet (a tensor without a gradient, say) and wait for everything.

        ExchangeError if another member is gone, or if the pilot calls this island away.
        """
        with self._lock:
            while self._buckets and not self._broken:
                self._send(self._buckets.pop(0))
            for work, staged, piece in self._pending:
                if self._broken:
                    break
                self._wait(work)
                if staged.device != piece.device and not self._broken:
                    piece.copy_(staged)
            if self._broken:
                raise ExchangeError(f"the exchange with the other islands failed: {self._broken}")
            self._pending.clear()

    @property
    def ended(self) -> bool:
        """Whether nothing that was sent can still write into `into`."""
        return all(work.is_completed() for work, _, _ in self._pending)

    def _wait(self, work: Any) -> None:
        while not work.is_completed():
            if self._away.is_set():
                self._broken = "called away by the pilot"
                return
            time.sleep(LOOK_SECONDS)
        try:
            work.wait()
        except RuntimeError as error:
            self._broken = str(error)

    def _send(self, bucket: _Bucket) -> None:
        """Begin one bucket's collective; a group that is broken is remembered, not raised: lanes
        go on computing, and their sums are needed in the next group.
        """
        source, target = self._sums.flats[bucket.width], self._into.flats[bucket.width]
        step = BUCKET_BYTES // source.element_size()
        options = _dist.AllreduceOptions()
        options.timeout = TIMEOUT
        for first in range(bucket.first, bucket.last, step):
            last = min(first + step, bucket.last)
            piece = target[first:last]
            piece.copy_(source[first:last])
            staged = self._host(piece)
            try:
                self._pending.append((self._group.allreduce([staged], options), staged, piece))
            except RuntimeError as error:
                self._broken = str(error)
                return
