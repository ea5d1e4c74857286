"""Laws of the cost and memory model that hold for every model, machine and layout; worked numbers.

Models, machines and layouts are drawn; only layouts that `layouts.problem` lets pass are asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atoll.model import Model
from atoll.plan import Layout
from atoll.planning.correction import fitted
from atoll.planning.cost import Coefficients, Cost, held_parameters, step_cost
from atoll.planning.layouts import problem
from atoll.planning.machine import Machine
from atoll.planning.memory import MemoryCoefficients, MemoryUse, in_flight, memory_use
from atoll.planning.work import Shape, Software, Work

GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that a cost is asked of."""

    work: Work
    layout: Layout
    machine: Machine
    microbatches: int
    time: Coefficients
    memory: MemoryCoefficients

    def cost(self) -> Cost:
        return step_cost(self.work, self.layout, self.machine, self.microbatches, self.time)

    def bytes(self) -> MemoryUse:
        return memory_use(self.work, self.layout, self.microbatches, self.memory)

    def with_layout(self, **changes: object) -> Case:
        return replace(self, layout=self.layout.model_copy(update=changes))


@st.composite
def models(draw: st.DrawFn) -> Model:
    heads = draw(st.sampled_from([4, 8, 32]))
    sparse: dict[str, int] = {}
    layers = draw(st.sampled_from([2, 8, 12, 61]))
    if draw(st.booleans()):
        experts = draw(st.sampled_from([8, 64]))
        sparse = {
            "experts": experts, "top_k": draw(st.sampled_from([1, 4])),
            "moe_ffn": draw(st.sampled_from([512, 2048])),
            "shared_experts": draw(st.integers(0, 1)), "dense_layers": draw(st.integers(0, 1)),
        }  # fmt: skip
    return Model(
        layers=layers, width=heads * draw(st.sampled_from([64, 128])), heads=heads,
        kv_heads=draw(st.sampled_from([heads, heads // 4])),
        ffn=draw(st.sampled_from([2048, 11264])),
        context=draw(st.sampled_from([1024, 8192, 65536])), tied=draw(st.booleans()),
        vocab=draw(st.sampled_from([1024, 50304, 256000])), gated=draw(st.booleans()), **sparse,
    )  # fmt: skip


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    node = draw(st.sampled_from([1, 4, 8]))
    link = draw(st.sampled_from([2e10, 4.5e11]))
    return Machine(
        chip="invented",
        peak={"bf16": draw(st.sampled_from([2e13, 3.12e14, 2e15])), "fp32": 2e13},
        memory=8e10,
        memory_bandwidth=draw(st.sampled_from([2e11, 2e12, 8e12])),
        node_devices=node,
        domain=draw(st.sampled_from([1, node, 64])),
        link=link,
        network=draw(st.sampled_from([1e9, 2.5e10])),
        mesh=draw(st.booleans()),
        matmul=draw(st.sampled_from([None, 0.6, 0.9])),
    )


def sampled(values: list[int]) -> st.SearchStrategy[int]:
    return st.sampled_from(values)


LAYOUTS = st.builds(
    Layout,
    dp=sampled([1, 2, 8, 100]), tp=sampled([1, 2, 8]), pp=sampled([1, 2, 4]), cp=sampled([1, 2]),
    ep=sampled([1, 1, 8]), vpp=sampled([1, 1, 2]), microbatch=sampled([1, 2]),
    zero=sampled([0, 1, 2, 3]), sequence_parallel=st.booleans(),
    recompute=st.sampled_from(["none", "selective", "full"]),
)  # fmt: skip

TABLES = fitted()
TIMES = st.sampled_from([Coefficients(), Coefficients(**TABLES["time"])])
MEMORIES = st.sampled_from([MemoryCoefficients(), MemoryCoefficients(**TABLES["memory"])])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A valid case; keys of a layout that cannot be are set back to their defaults."""
    model, layout = draw(models()), draw(LAYOUTS)
    work = Work(
        shape=Shape.of(model), sequence=model.context,
        precision=draw(st.sampled_from(["bf16", "fp32"])),
        software=Software(flash=draw(st.booleans()), overlap=draw(st.booleans()),
                          overlap_tp=draw(st.booleans()), fused=draw(st.booleans())),
    )  # fmt: skip
    while (found := problem(work, layout, 2**20)) is not None:
        layout = layout.model_copy(update={found[0]: Layout.model_fields[found[0]].default})
    return Case(
        work=work, layout=layout, machine=draw(machines()),
        microbatches=draw(st.integers(1, 40)), time=draw(TIMES), memory=draw(MEMORIES),
    )  # fmt: skip


@settings(max_examples=100)
@given(cases())
def test_seconds_are_finite_and_their_parts_add_up(case: Case) -> None:
    cost = case.cost()
    assert 0.0 < cost.seconds < math.inf
    assert all(0.0 <= seconds < math.inf for seconds in cost.parts().values())
    assert cost.hidden >= 0.0
    assert sum(cost.parts().values()) == pytest.approx(cost.seconds, rel=1e-6)
    assert cost.matmul > 0.0 and cost.attention > 0.0 and cost.head > 0.0 and cost.update > 0.0


@given(cases(), st.integers(1, 50))
def test_seconds_are_a_line_in_the_micro_batches(case: Case, microbatches: int) -> None:
    here, there = case.cost(), replace(case, microbatches=microbatches).cost()
    assert here.fixed == pytest.approx(there.fixed, rel=1e-12)
    assert here.each == pytest.approx(there.each, rel=1e-12)
    assert there.seconds == pytest.approx(here.fixed + microbatches * here.each, rel=1e-12)


def no_slower(fast: Case, slow: Case) -> bool:
    return fast.cost().seconds <= slow.cost().seconds * (1.0 + 1e-12)


@settings(max_examples=80)
@given(cases())
def test_more_tokens_are_never_cheaper(case: Case) -> None:
    more = case.layout.microbatch * 2
    assert no_slower(case, replace(case, microbatches=case.microbatches + 1))
    assert no_slower(case, case.with_layout(microbatch=more))
    longer = replace(case, work=replace(case.work, sequence=2 * case.work.sequence))
    assert no_slower(case, longer)


@settings(max_examples=80)
@given(cases(), st.sampled_from([1.01, 2.0, 50.0]))
def test_a_faster_machine_is_never_slower(case: Case, factor: float) -> None:
    machine = case.machine
    peaks = {name: speed * factor for name, speed in machine.peak.items()}
    faster = [replace(machine, peak=peaks)]
    for key in ("memory_bandwidth", "link", "network"):
        faster.append(replace(machine, **{key: getattr(machine, key) * factor}))
    faster.append(replace(machine, link_latency=0.0, network_latency=0.0))
    for one in faster:
        assert no_slower(replace(case, machine=one), case)
    assert replace(case, machine=faster[0]).cost().matmul < case.cost().matmul
    assert replace(case, machine=faster[1]).cost().update < case.cost().update


@settings(max_examples=80)
@given(cases())
def test_recompute_costs_time_and_saves_memory(case: Case) -> None:
    none, full = case.with_layout(recompute="none"), case.with_layout(recompute="full")
    some = case.with_layout(recompute="selective")
    assert no_slower(none, full) and no_slower(none, some)
    assert none.cost().recompute == 0.0 < full.cost().recompute
    slack = 1.0 + 1e-12
    assert full.bytes().total <= none.bytes().total * slack
    assert some.bytes().total <= none.bytes().total * slack
    assert full.bytes().activations < some.bytes().activations


@settings(max_examples=80)
@given(cases())
def test_each_stage_of_sharding_holds_no_more(case: Case) -> None:
    totals = [case.with_layout(zero=zero).bytes().total for zero in (0, 1, 2)]
    assert totals[0] >= totals[1] >= totals[2]
    if case.layout.dp > 1:
        assert totals[0] > totals[1] > totals[2]
        if case.layout.zero:
            doubled = case.with_layout(dp=2 * case.layout.dp)
            assert doubled.bytes().optimizer < case.bytes().optimizer
    if case.layout.pp == 1:
        states = ("weights", "gradients", "optimizer")
        sharded, whole = case.with_layout(zero=3).bytes(), case.with_layout(zero=2).bytes()
        lanes = case.layout.dp * case.layout.cp
        if lanes > 1:
            assert sum(getattr(sharded, s) for s in states) < sum(getattr(whole, s) for s in states)


@given(cases())
def test_bytes_are_positive_and_a_model_of_more_layers_needs_more(case: Case) -> None:
    use = case.bytes()
    assert all(0.0 <= part < math.inf for part in use.parts().values())
    assert use.total == pytest.approx(sum(use.parts().values()))
    assert use.weights > 0 and use.gradients > 0 and use.optimizer > 0 and use.activations > 0
    shape = case.work.shape
    grow = 2 if shape.sparse_layers else 1
    deeper = replace(shape, layers=2 * shape.layers, sparse_layers=grow * shape.sparse_layers)
    assert replace(case, work=replace(case.work, shape=deeper)).bytes().total > use.total
    assert replace(case, microbatches=case.microbatches + 1).bytes().total >= use.total


@given(cases())
def test_a_pipeline_holds_more_micro_batches_only_until_it_is_full(case: Case) -> None:
    assume(case.layout.pp > 1)
    most = 2 * case.layout.pp
    full = [in_flight(case.layout, m) for m in (1, most, 10 * most)]
    assert full[0] == 1.0
    assert case.layout.pp <= full[1] == full[2] < most


def test_a_pair_on_a_mesh_has_a_seventh_of_the_link() -> None:
    plain = {
        "chip": "invented", "peak": {"bf16": 1e14}, "memory": 6e10, "memory_bandwidth": 1e12,
        "node_devices": 8, "domain": 8, "link": 1.96e11, "network": 2.5e10,
    }  # fmt: skip
    mesh, switch = Machine(**plain, mesh=True), Machine(**plain)
    assert mesh.group_bandwidth(2) == pytest.approx(1.96e11 / 7)
    assert mesh.group_bandwidth(4) == pytest.approx(1.96e11 * 3 / 7)
    assert mesh.group_bandwidth(8) == mesh.group_bandwidth(1) == 1.96e11
    assert switch.group_bandwidth(2) == switch.group_bandwidth(8) == 1.96e11
    # Over several domains: one ring of all devices may use all eight networks of a node, one of
    # eight rings beside each other its own.
    assert switch.group_bandwidth(16) == min(1.96e11, 8 * 2.5e10)
    assert switch.group_bandwidth(16, stride=8) == 2.5e10
    assert switch.group_bandwidth(16, stride=4) == 5e10
    assert switch.group_latency(8) == 5e-6 and switch.group_latency(2, stride=8) == 15e-6


def test_without_losses_a_step_takes_its_flop_at_the_peak() -> None:
    """6 FLOP a parameter and token; the backward of fused attention does its scores once more."""
    model = Model(layers=4, width=1024, heads=8, ffn=4096, context=2048, vocab=32000, tied=False)
    work = Work(shape=Shape.of(model), sequence=2048)
    machine = Machine(
        chip="ideal", peak={"bf16": 1e14}, memory=8e10, memory_bandwidth=1e30, node_devices=1,
        domain=1, link=1e30, network=1e30, matmul=1.0,
    )  # fmt: skip
    ideal = Coefficients(
        matmul=1.0, rows=0.0, columns=0.0, flash=1.0, launch=0.0, step=0.0, scale=0.0, progress=0.0
    )
    tokens = 3 * 2 * 2048
    cost = step_cost(work, Layout(microbatch=2), machine, 3, ideal)
    attention = 3.0 * 4 * 2048 * (1024 + 1024) * tokens / 1e14
    matmul = 6.0 * work.shape.active_matmul * tokens / 1e14
    assert cost.attention == pytest.approx(attention * 3.5 / 3.0)
    assert cost.matmul + cost.head == pytest.approx(matmul)
    assert cost.seconds == pytest.approx(matmul + attention * 3.5 / 3.0)
    counted = work.shape.flops_per_token(2048) * tokens / 1e14
    assert counted == pytest.approx(matmul + attention)
    again = step_cost(work, Layout(microbatch=2, recompute="full"), machine, 3, ideal)
    forward = (matmul - cost.head) / 3.0 + attention / 3.0
    assert again.seconds == pytest.approx(cost.seconds + forward)


def test_a_bubble_is_p_minus_one_micro_batches_and_shrinks_with_chunks() -> None:
    model = Model(layers=16, width=1024, heads=8, ffn=4096, context=2048, vocab=1024)
    work = Work(shape=Shape.of(model), sequence=2048)
    machine = Machine(
        chip="invented", peak={"bf16": 1e14}, memory=8e10, memory_bandwidth=2e12, node_devices=8,
        domain=8, link=1e30, network=1e30, link_latency=0.0, network_latency=0.0,
    )  # fmt: skip
    c = Coefficients(logits=0.0)
    plain = step_cost(work, Layout(pp=4), machine, 1, c)
    assert plain.bubble == pytest.approx(3 * (plain.each - plain.head), rel=0.05)
    chunks = step_cost(work, Layout(pp=4, vpp=4), machine, 1, c)
    assert chunks.bubble == pytest.approx(plain.bubble / 4, rel=1e-6)


# Korthikanti et al. 2022 (arXiv:2205.05198), figure 1, as calculon's validation file has its
# numbers. GiB on one device: parameters, gradients and optimizer; activations with nothing
# recomputed; activations with sequence parallelism and selective recompute. Layers, width, heads,
# micro-batch, stages and chunks: table 3 of that paper.
PAPER = [
    ("22B", 48, 6144, 64, 4, 1, 1, 45.56, 59.25, 9.56),
    ("175B", 96, 12288, 96, 1, 8, 3, 45.56, 66.84, 12.35),
    ("530B", 105, 20480, 128, 1, 35, 3, 31.64, 114.02, 23.08),
    ("1T", 128, 25600, 160, 1, 64, 1, 32.96, 131.25, 26.56),
]


@pytest.mark.parametrize(
    ("layers", "width", "heads", "size", "pp", "vpp", "states", "whole", "least"),
    [row[1:] for row in PAPER],
    ids=[row[0] for row in PAPER],
)
def test_bytes_are_those_of_the_paper(
    layers: int, width: int, heads: int, size: int, pp: int, vpp: int,
    states: float, whole: float, least: float,
) -> None:  # fmt: skip
    model = Model(
        layers=layers, width=width, heads=heads, ffn=4 * width, context=2048, vocab=51200,
        gated=False,
    )  # fmt: skip
    work = Work(shape=Shape.of(model), sequence=2048, software=Software(flash=False))
    plain = Layout(tp=8, pp=pp, vpp=vpp, microbatch=size)
    sparing = plain.model_copy(update={"sequence_parallel": True, "recompute": "selective"})
    exact = MemoryCoefficients(gaps=1.0, reserve=0.0, buffers=0.0)
    use, less = (memory_use(work, one, 256, exact) for one in (plain, sparing))
    # The paper's states are those of the layers: the embedding, 18 bytes a parameter, comes on top.
    embedding = 18.0 * work.shape.embedding / 8
    assert held_parameters(work, plain)[1] == 0.0
    held = use.weights + use.gradients + use.optimizer
    assert (held - embedding) / GIB == pytest.approx(states, rel=0.001)
    assert held / GIB == pytest.approx(states, rel=0.09)
    assert use.activations / GIB == pytest.approx(whole, rel=0.001)
    assert less.activations / GIB == pytest.approx(least, rel=0.001)


def test_state_is_eighteen_bytes_a_parameter_in_16_bits_and_sixteen_in_fp32() -> None:
    model = Model(layers=2, width=256, heads=4, ffn=512, context=64, vocab=512)
    shape = Shape.of(model)
    exact = MemoryCoefficients(gaps=1.0, reserve=0.0)
    for precision, zero, each in (("bf16", 0, 18.0), ("fp16", 0, 18.0), ("fp32", 0, 16.0),
                                  ("bf16", 3, 16.0)):  # fmt: skip
        work = Work(shape=shape, sequence=64, precision=precision)
        use = memory_use(work, Layout(zero=zero), 1, exact)
        states = use.weights + use.gradients + use.optimizer
        assert states == pytest.approx(each * shape.parameters)
    work = Work(shape=shape, sequence=64)
    use = memory_use(work, Layout(zero=1, dp=4), 1, exact)
    assert use.optimizer == pytest.approx(12.0 * shape.parameters / 4)
    assert use.weights == pytest.approx(2.0 * shape.parameters)


def test_no_more_micro_batches_are_held_than_there_are() -> None:
    """Nor is a checkpoint in fp32 as small as one in 16 bits."""
    model = Model(layers=8, width=256, heads=4, ffn=512, context=64, vocab=512)
    layout = Layout(pp=4, recompute="full")
    held = {}
    for precision in ("bf16", "fp32"):
        work = Work(shape=Shape.of(model), sequence=64, precision=precision)
        c = MemoryCoefficients(**TABLES["memory"])
        held[precision] = [memory_use(work, layout, m, c).activations for m in (1, 2, 4, 8)]
    one, two, four, eight = held["bf16"]
    assert (two, four) == pytest.approx((2 * one, 4 * one))
    assert 4 * one <= eight < 8 * one
    assert held["fp32"] == pytest.approx([2 * size for size in held["bf16"]])
