"""Machine: an island as the cost model sees it, in bytes, seconds and FLOP/s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll import units
from atoll.errors import InputError
from atoll.facts import Chip
from atoll.facts.measured import Measured

FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


class Products:
    """The measured speed of matrix products, remembered by shape: a search asks often."""

    def __init__(self, measured: Measured) -> None:
        """Asks `measured` for every shape once."""
        self._measured = measured
        self._seen: dict[tuple[int, int, int, str], float | None] = {}

    def flops(self, m: int, n: int, k: int, number_format: str) -> float | None:
        """FLOP/s of the product (m, k) times (k, n); None if the format was not measured."""
        key = (m, n, k, number_format)
        if key not in self._seen:
            self._seen[key] = self._measured.gemm_flops(m, n, k, number_format)
        return self._seen[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Chips of one kind and the wires between them; bandwidths are one direction, per device.

    `peak` is dense FLOP/s by number format. `domain` devices share the fast link (a node, or a rack
    of nodes); on a `mesh` a sub-group has only the wires between its own members. `network` joins
    the domains. `matmul` is the best fraction of the peak that a matrix product has been measured
    at, None where nobody published one. `spread` is how far the peak itself is in doubt (low, high
    as factors).
    """

    chip: str
    peak: Mapping[str, float]
    memory: float
    memory_bandwidth: float
    node_devices: int
    domain: int
    link: float
    network: float
    mesh: bool = False
    devices_per_chip: int = 1
    link_latency: float = 5e-6
    network_latency: float = 15e-6
    matmul: float | None = None
    spread: tuple[float, float] = (1.0, 1.0)
    measured: Products | None = None
    notes: tuple[str, ...] = ()

    def speed(self, precision: str) -> float:
        """Dense FLOP/s of matrix products in a number format.

        A format that the chip does not name runs at its nearest wider one's speed.
        """
        for name in (precision, "bf16", "fp16", "tf32", "fp32"):
            if name in self.peak:
                return self.peak[name]
        return max(self.peak.values())

    def group_bandwidth(self, size: int, stride: int = 1) -> float:
        """Bytes a second that one device can send in a ring over `size` devices.

        Neighbours in the group are `stride` devices apart. Inside a domain it is the link; on a
        mesh only its part towards the other members, (size - 1) / (domain - 1). A group over
        several domains crosses each border once, and its members in the domain share the network of
        all their hosts: the ring gets the network of one device times the members there, while
        the `stride` rings beside it use the rest.
        """
        span = size * stride
        if span <= self.domain:
            if self.mesh and self.domain > 1:
                return self.link * (size - 1) / (self.domain - 1) if size > 1 else self.link
            return self.link
        inside = max(1, self.domain // stride)
        return min(self.link, self.network * inside) if inside > 1 else self.network

    def group_latency(self, size: int, stride: int = 1) -> float:
        """Seconds before the first byte arrives, for one hop of that ring."""
        return self.link_latency if size * stride <= self.domain else self.network_latency


def machine_of(
    chip: Chip,
    *,
    node_chips: int,
    nodes: int = 2,
    network: float | None = None,
    network_latency: float | None = None,
    whole_chips: bool = False,
    measured: Measured | None = None,
) -> Machine:
    """Nodes of `node_chips` chips as a machine of torch devices (some chips are several).

    With `whole_chips` a chip counts as one device, as published tables count them. What was
    `measured` on the chip itself takes the place of what was published.

    `network` is bytes a second of one chip, one direction; the chip's usual one if None. What is
    not known is never guessed: a fast link that nobody published counts as the network, and
    InputError names what the estimate cannot do without.
    """
    devices = 1 if whole_chips else chip.devices
    peak, spread = _peaks(chip, devices, measured)
    memory, bandwidth = _memory(chip, devices, measured)
    if not peak or memory is None or bandwidth is None:
        missing = "speed" if not peak else "memory size" if memory is None else "memory bandwidth"
        fix = "measure it (atoll measure), or write a chip file of your own (docs/chips.md)"
        message = f"nobody published the {missing} of this chip, so no time can be estimated"
        raise InputError(message, key="chip", value=chip.name, fix=fix)
    notes = []
    wire, link = network, _link_of(chip, measured)
    if wire is None and chip.network is not None:
        wire = chip.network.bytes_per_second
    if wire is None and measured is not None:
        wire = link
    if not wire and (nodes > 1 or (node_chips > 1 and not link)):
        fix = 'write network = { bandwidth = "200 Gb/s" }: of one chip, one direction'
        message = "the network of this island is not known"
        raise InputError(message, key="network", value=chip.name, fix=fix)
    domain = node_chips
    if chip.link is not None and (chip.link.chips or 0) > node_chips:
        domain = chip.link.chips or node_chips
    if not link and node_chips > 1:
        notes.append("the link inside a node is not published: counted as slow as the network")
        link, domain = wire, 1
    return Machine(
        chip=chip.name,
        peak=peak,
        memory=memory,
        memory_bandwidth=bandwidth,
        node_devices=node_chips * devices,
        devices_per_chip=devices,
        domain=max(1, domain * devices),
        link=float(link or 0.0) / devices,
        network=float(wire or link or 0.0) / devices,
        mesh=chip.link is not None and chip.link.topology == "mesh",
        network_latency=network_latency or 15e-6,
        matmul=_best_matmul(chip),
        spread=spread,
        measured=None if measured is None else Products(measured),
        notes=tuple(notes),
    )


def _link_of(chip: Chip, measured: Measured | None) -> float | None:
    """Bytes a second of one chip's fast link: as measured in an all-reduce, else as published."""
    if measured is not None and measured.collective:
        sums = [one for one in measured.collective if one.op == "all_reduce"]
        if sums:
            largest = max(sums, key=lambda one: units.parse_bytes(one.size))
            moved = 2.0 * (largest.ranks - 1) / largest.ranks * units.parse_bytes(largest.size)
            return moved / units.parse_seconds(largest.seconds)
    return chip.link.bytes_per_second if chip.link is not None else None


def _peaks(
    chip: Chip, devices: int, measured: Measured | None
) -> tuple[dict[str, float], tuple[float, float]]:
    """FLOP/s of one device by format, and how far sources disagree as factors."""
    peak: dict[str, float] = {}
    low, high = 1.0, 1.0
    for number_format in FORMATS:
        seen = measured.gemm_peak(number_format) if measured is not None else None
        found = chip.flops.range(number_format) if chip.flops is not None else None
        if seen is not None:
            peak[number_format] = seen
        elif found is not None:
            peak[number_format] = found[1] / devices
            low, high = min(low, found[0] / found[1]), max(high, found[2] / found[1])
    return peak, (low, high) if measured is None else (1.0, 1.0)


def _memory(
    chip: Chip, devices: int, measured: Measured | None
) -> tuple[float | None, float | None]:
    """Bytes and bytes a second of one device, None where nobody knows."""
    size = chip.memory.num_bytes / devices if chip.memory is not None else None
    bandwidth = chip.memory and chip.memory.bytes_per_second
    bandwidth = bandwidth / devices if bandwidth else None
    if measured is None:
        return size, bandwidth
    if size is None and measured.memory is not None:
        size = float(units.parse_bytes(measured.memory.size)) if measured.memory.size else None
    return size, measured.memory_bytes_per_second or bandwidth


def _best_matmul(chip: Chip) -> float | None:
    """Measured large matrix products as a fraction of the peak, where somebody published both."""
    if chip.measured is None or chip.flops is None:
        return None
    for number_format in ("bf16", "fp16"):
        reached = chip.measured.per_second(number_format)
        peak = chip.flops.per_second(number_format)
        if reached and peak:
            return min(reached / peak, 1.0)
    return None
