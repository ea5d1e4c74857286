"""Healing: a living island hands its weights and moments to one that joins, while both go on.

The giver copies its tensors once, between two steps, and a thread of its own sends the copy; the
joiner's thread takes it in. Plain bytes over one TCP connection, opened by the joiner with a secret
that the pilot passed on; what arrives is proved by the fingerprint that the pilot already knows.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from atoll.errors import RunError

PATIENCE = 60.0
"""Seconds that either end waits for the other before it gives up."""
CHUNK = 4 * 2**20

Groups = Mapping[str, Mapping[str, Tensor]]
"""Group ("weights", "moment1", "moment2") -> name -> tensor."""


class Gift:
    """A copy of an island's state, waiting for its joiner; `address` and `secret` lead there."""

    def __init__(self, groups: Groups, *, host: Callable[[Tensor], Tensor], local: str) -> None:
        """Copies the tensors now; the thread that sends them ends after one joiner or in time."""
        self._copies = [host(tensor).clone() for tensor in _in_order(groups)]
        family = socket.getaddrinfo(local, 0, type=socket.SOCK_STREAM)[0][0]
        self._door = socket.create_server((local, 0), family=family)
        self._door.settimeout(PATIENCE)
        self.address = (local, int(self._door.getsockname()[1]))
        self.secret = secrets.token_hex(16)
        threading.Thread(target=self._give, name="gift", daemon=True).start()

    def _give(self) -> None:
        with self._door:
            try:
                while True:
                    peer, _ = self._door.accept()
                    with peer:
                        peer.settimeout(PATIENCE)
                        if hmac.compare_digest(
                            _exactly(peer, len(self.secret)), self.secret.encode()
                        ):
                            for tensor in self._copies:
                                peer.sendall(_bytes_of(tensor))
                            return
            except OSError:
                return  # nobody came, or it broke off: the joiner tells the pilot
            finally:
                self._copies = []


def receive(
    groups: Groups, *, address: tuple[str, int], secret: str
) -> dict[str, dict[str, Tensor]]:
    """The giver's state in new tensors on the host, shaped like `groups`. RunError if it fails."""
    found = {
        group: {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors.items()}
        for group, tensors in groups.items()
    }
    try:
        with socket.create_connection(address, timeout=PATIENCE) as giver:
            giver.sendall(secret.encode())
            for tensor in _in_order(found):
                view = _bytes_of(tensor)
                while view:
                    count = giver.recv_into(view, min(len(view), CHUNK))
                    if not count:
                        raise RunError("the giver left in the middle")
                    view = view[count:]
    except OSError as error:
        raise RunError(f"the state did not arrive: {error}") from error
    return found


def _in_order(groups: Groups) -> Iterator[Tensor]:
    """All tensors in the order of the wire."""
    for tensors in groups.values():
        yield from tensors.values()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous host tensor."""
    numbers: Any = tensor.detach().numpy()
    return memoryview(numbers).cast("B")


def _exactly(peer: socket.socket, count: int) -> bytes:
    """The next `count` bytes, fewer if the peer leaves."""
    data = b""
    while len(data) < count and (more := peer.recv(count - len(data))):
        data += more
    return data
