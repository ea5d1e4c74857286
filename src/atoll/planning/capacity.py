"""Capacity: how many chips serve so many requests a second within a target, by arithmetic.

A request is a prompt that is computed (bound by FLOP/s) and then tokens one after another, many
requests at once (bound by memory: every step reads the weights and the keys and values of all
texts that are open). Prompts and tokens are counted as if they had chips of their own, or took
turns on the same ones: seconds of a chip add up. `Slowness` is how far real servers stay behind
these formulas (facts/serving.toml has the published figures that say so).

The decode step of one group of `tp` devices, with B requests of context L in it, takes

    max(bytes / (W memory), FLOP / (P matmul)) + traffic + layers x overhead

where bytes = weights that the step touches / tp + B L kv / split. Of E experts, top k, the tokens
n of all groups touch E (1 - (1 - k / E)^n) on average (each token draws k at random). The FLOP are
2 a parameter and token, and those of scores and values over L; latent attention is computed in its
absorbed form, 2 heads (2 kv_rank + rope_dim) L a layer (arXiv:2405.04434, section 2.1). Traffic is
two all-reduces a layer inside the group, and tokens to their experts and back.

A prompt waits for others before it: with Poisson arrivals, a fixed service time s and the part r of
time at work the first token comes after s (1 + r / (2 (1 - r))) on average (Pollaczek and
Khinchine), so a target T allows r <= 2x / (1 + 2x), x = T / s - 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from atoll import facts
from atoll.facts.serving import Speed, serving
from atoll.model import Model
from atoll.planning.cost import HALF, Coefficients
from atoll.planning.machine import Machine, machine_of
from atoll.planning.work import Shape
from atoll.units import parse_seconds

USABLE = 0.9
"""Part of a device's memory that weights, keys and values fill."""
BUSIEST = 0.95
"""The part of time at work that no prompt server goes beyond, however late its target."""
WIDTHS = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
"""Bytes of a number by its format."""
MOST_DEVICES = 512
"""Devices over which experts are spread at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one request is: tokens read and written, the part of the prompt that is cached, targets.

    `first` and `each` are the seconds until the first token and between two.
    """

    tokens_in: float
    tokens_out: float
    first: float
    each: float
    cached: float = 0.0

    @property
    def computed(self) -> float:
        """Tokens of the prompt that are computed."""
        return self.tokens_in * (1.0 - self.cached)

    @property
    def context(self) -> float:
        """The text that a token sees, on average over an answer."""
        return self.tokens_in + self.tokens_out / 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model as it is served: its shape, bytes of a weight and of a token's keys and values.

    `split` is over how many devices these can be divided; `scores` are the FLOP of a token for
    each token before it, in all layers; `weights` the number format of the matrices.
    """

    shape: Shape
    weights: str
    kv: float
    split: int
    scores: float

    @classmethod
    def of(cls, model: Model, *, weights: str, kv: str) -> Served:
        """A model whose vocabulary is known, its matrices and its cache in these formats."""
        shape = Shape.of(model)
        scores = 2.0 * shape.layers * (shape.query + shape.value)
        if model.mla is not None:
            wide = 2 * model.mla.kv_rank + model.mla.rope_dim
            scores = 2.0 * shape.layers * shape.heads * wide
        return cls(
            shape=shape, weights=weights, kv=model.kv_bytes_per_token(1) * WIDTHS[kv],
            split=1 if model.mla is not None else model.resolved_kv_heads, scores=scores,
        )  # fmt: skip

    @property
    def width(self) -> float:
        """Bytes of a weight."""
        return WIDTHS[self.weights]

    @property
    def dense(self) -> float:
        """Parameters that every token meets, the output head among them."""
        return float(self.shape.dense_parameters + self.shape.embedding)

    @property
    def routed(self) -> float:
        """Parameters of experts that a token meets."""
        return float(self.shape.sparse_layers * self.shape.top_k * self.shape.expert)

    @property
    def num_bytes(self) -> float:
        """Bytes of all weights."""
        return self.width * self.shape.parameters

    def held(self, tp: int, devices: int) -> float:
        """Bytes of weights on a device."""
        shape = self.shape
        embedding = 0.0 if shape.tied else float(shape.embedding)
        return self.width * ((self.dense + embedding) / tp + shape.expert_parameters / devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Devices that serve together: groups of `tp`, `devices` in all over which experts are spread.

    `batch` requests are open in a group (1 for prompts); a step or a prompt takes `seconds`, and a
    request `cost` seconds of a device.
    """

    tp: int
    devices: int
    batch: int
    seconds: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a request costs: arrangements for its prompt and its tokens, seconds of a device."""

    prompt: Arrangement
    tokens: Arrangement
    busy: float

    @property
    def per_request(self) -> float:
        """Seconds of a device that a request takes, waiting room of its prompt included."""
        return self.prompt.cost / self.busy + self.tokens.cost

    @property
    def least(self) -> int:
        """Devices without which not one request is served: both take turns on them."""
        return max(self.prompt.devices, self.tokens.devices)

    def devices_for(self, rate: float) -> float:
        """Devices that so many requests a second need."""
        return max(float(self.least), rate * self.per_request)


class Beyond(Exception):
    """No arrangement meets a target; the message says which one and by how much."""


def capacity_of(
    served: Served,
    machine: Machine,
    request: Request,
    *,
    devices: int,
    slowness: float,
    overhead: float,
    c: Coefficients,
) -> Capacity:
    """The cheapest arrangements among `devices` devices. Beyond if none meets the targets.

    All times are `slowness` times the formula's; `overhead` is in seconds a layer.
    """
    ways = list(_arrangements(served, machine, devices))
    if not ways:
        raise Beyond(_too_large(served, machine, devices))
    prompts = []
    for tp, spread in ways:
        seconds = slowness * prompt_seconds(served, machine, request, tp, spread, c)
        prompts.append(Arrangement(tp=tp, devices=spread, batch=1, seconds=seconds,
                                   cost=seconds * tp))  # fmt: skip
    quick = [one for one in prompts if one.seconds < request.first]
    if not quick:
        least = min(one.seconds for one in prompts)
        raise Beyond(f"a prompt alone takes {least:.2g} s, the first token shall come in "
                     f"{request.first:g} s")  # fmt: skip
    best = min(quick, key=lambda one: one.cost / _busiest(one.seconds, request.first))
    tokens = [_fullest(served, machine, request, tp, spread, slowness, overhead, c)
              for tp, spread in ways]  # fmt: skip
    able = [one for one in tokens if one is not None]
    if not able:
        least = min(slowness * step_seconds(served, machine, 1, request.context, tp, spread,
                                            overhead, c) for tp, spread in ways)  # fmt: skip
        raise Beyond(f"one token takes {1e3 * least:.3g} ms even alone, or there is no room for "
                     f"its text; the target is {1e3 * request.each:g} ms")  # fmt: skip
    return Capacity(
        prompt=best, tokens=min(able, key=lambda one: one.cost),
        busy=_busiest(best.seconds, request.first),
    )  # fmt: skip


def _busiest(seconds: float, target: float) -> float:
    """The part of time that prompts may take so that the first token comes in time on average."""
    room = 2.0 * (target / seconds - 1.0)
    return min(BUSIEST, room / (1.0 + room))


def _arrangements(served: Served, machine: Machine, devices: int) -> Iterator[tuple[int, int]]:
    """(tp, devices) that hold the weights: groups inside a domain, experts over many groups."""
    tp = 1
    while tp <= min(machine.domain, devices, 64):
        spread = tp
        while spread <= min(devices, MOST_DEVICES):
            if served.held(tp, spread) < USABLE * machine.memory:
                yield tp, spread
            if not served.shape.sparse_layers:
                break
            spread *= 2
        tp *= 2


def _too_large(served: Served, machine: Machine, devices: int) -> str:
    need, have = served.num_bytes / 1e9, USABLE * machine.memory * devices / 1e9
    return f"its weights are {need:,.0f} GB; {devices} devices have {have:,.0f} GB for them"


def _fullest(
    served: Served,
    machine: Machine,
    request: Request,
    tp: int,
    devices: int,
    slowness: float,
    overhead: float,
    c: Coefficients,
) -> Arrangement | None:
    """The most requests at once whose tokens come in time and whose texts fit; None if not one."""
    room = USABLE * machine.memory - served.held(tp, devices)
    text = (request.tokens_in + request.tokens_out) * served.kv / min(tp, served.split)

    def seconds(batch: int) -> float:
        return slowness * step_seconds(
            served, machine, batch, request.context, tp, devices, overhead, c
        )

    def fits(batch: int) -> bool:
        return batch * text <= room and seconds(batch) <= request.each

    if not fits(1):
        return None
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
        if high > 2**20:
            break
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    cost = request.tokens_out * seconds(low) * tp / low
    return Arrangement(tp=tp, devices=devices, batch=low, seconds=seconds(low), cost=cost)


def step_seconds(
    served: Served,
    machine: Machine,
    batch: int,
    context: float,
    tp: int,
    devices: int,
    overhead: float,
    c: Coefficients,
) -> float:
    """Seconds until each of `batch` requests of a group has one token more."""
    shape = served.shape
    tokens = batch * devices / tp
    touched = 0.0
    if shape.experts:
        touched = 1.0 - (1.0 - shape.top_k / shape.experts) ** tokens
    weights = served.dense / tp + shape.expert_parameters * touched / devices
    moved = served.width * weights + batch * context * served.kv / min(tp, served.split)
    memory = moved / (machine.memory_bandwidth * c.memory)
    plain = 2.0 * batch * (served.dense + served.routed) / tp
    compute = plain / _speed(machine, served.weights, c)
    compute += batch * served.scores * context / tp / (_speed(machine, "bf16", c) * c.flash)
    traffic = _traffic(served, machine, float(batch), tp, devices, c)
    return max(memory, compute) + traffic + overhead * shape.layers


def prompt_seconds(
    served: Served, machine: Machine, request: Request, tp: int, devices: int, c: Coefficients
) -> float:
    """Seconds of a group of `tp` devices for the prompt of a request."""
    shape, tokens = served.shape, request.computed
    before = request.tokens_in - tokens
    plain = 2.0 * tokens * (shape.dense_parameters + served.routed) / tp
    seconds = plain / _speed(machine, served.weights, c)
    span = before + tokens / 2.0
    attention = 2.0 * shape.layers * (shape.query + shape.value) * tokens * span / tp
    seconds += attention / (_speed(machine, "bf16", c) * c.flash)
    return seconds + _traffic(served, machine, tokens, tp, devices, c)


def _speed(machine: Machine, precision: str, c: Coefficients) -> float:
    """FLOP/s of large matrix products, as in training (`cost`)."""
    reached = (machine.matmul or 0.8) * c.matmul
    return machine.speed(precision) * reached * (c.eight_bit if WIDTHS[precision] < 2 else 1.0)


def _traffic(
    served: Served, machine: Machine, tokens: float, tp: int, devices: int, c: Coefficients
) -> float:
    """Seconds of traffic for `tokens` tokens of a group that pass all layers."""
    shape = served.shape
    seconds = 0.0
    if tp > 1:
        moved = 2.0 * (tp - 1) / tp * tokens * shape.width * HALF
        wire = machine.group_bandwidth(tp) * c.link
        seconds += 2.0 * shape.layers * (moved / wire + 2.0 * machine.group_latency(tp))
    if devices > 1 and shape.sparse_layers:
        # To the experts in the width of the weights, back in 16 bits.
        routed = tokens / tp * shape.top_k * shape.width * (served.width + HALF)
        inside = min(devices, machine.domain) / devices
        far = routed * (1.0 - inside) / (machine.network * c.network)
        near = routed * inside / (machine.link * c.link) if machine.link else 0.0
        once = far + near + 2.0 * machine.group_latency(devices)
        seconds += c.expert_exposed * shape.sparse_layers * once
    return seconds


def slowness_of(speed: Speed, c: Coefficients) -> float:
    """Published seconds by those of the formulas above, for one published speed."""
    chip = facts.chip(speed.chip)
    machine = machine_of(chip, node_chips=chip.node_chips or 8, nodes=64)
    model = Model.model_validate(facts.model_preset(speed.model))
    served = Served.of(model, weights=speed.weights, kv=speed.cache)
    each = parse_seconds(speed.each) if speed.each else 1.0
    asked = Request(tokens_in=speed.tokens_in, tokens_out=speed.tokens_out, first=1.0, each=each,
                    cached=speed.cached)  # fmt: skip
    overhead = parse_seconds(serving().overhead.layer)
    devices = speed.chips * machine.devices_per_chip
    groups = devices / speed.tp

    def step(batch: int) -> float:
        return step_seconds(served, machine, batch, asked.context, speed.tp, speed.devices,
                            overhead, c)  # fmt: skip

    if speed.of == "tokens":
        return each / step(max(1, round(speed.rate * each / groups)))
    prompt = prompt_seconds(served, machine, asked, speed.tp, speed.devices, c)
    if speed.of == "prompt":
        return groups * asked.tokens_in / speed.rate / prompt
    assert speed.batch is not None
    together = prompt + asked.tokens_out * step(speed.batch) / speed.batch
    return groups * asked.tokens_out / speed.rate / together
