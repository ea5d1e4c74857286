"""Capacity: the arithmetic of serving against published speeds, worked numbers, and its laws."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import facts
from atoll.facts.serving import serving
from atoll.model import Model
from atoll.planning.capacity import (
    Beyond,
    Request,
    Served,
    capacity_of,
    prompt_seconds,
    slowness_of,
    step_seconds,
)
from atoll.planning.correction import fitted
from atoll.planning.cost import Coefficients
from atoll.planning.machine import machine_of

C = Coefficients(**fitted()["time"])


def served(name, weights="bf16", kv="bf16"):
    return Served.of(Model.model_validate(facts.model_preset(name)), weights=weights, kv=kv)


def machine(chip):
    return machine_of(facts.chip(chip), node_chips=8, nodes=16)


def test_the_doubt_is_that_of_the_published_speeds():
    ratios = sorted(slowness_of(speed, C) for speed in serving().speed)
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    slow = serving().slowness
    assert (slow.low, slow.mid, slow.high) == pytest.approx(
        (tenths[0], tenths[4], tenths[8]), abs=0.01
    )
    assert len(ratios) >= 15 and ratios[0] > 0.6 and ratios[-1] < 2.8


def test_a_published_day_is_complete():
    day = next(one for one in serving().day if one.name == "burstgpt")
    assert sum(day.requests) == pytest.approx(1_429_737, rel=1e-4)


def test_a_step_reads_weights_and_texts_once():
    """Llama 3 70B in 8 bits on 4 H100s, 64 texts of 2,000 tokens: 8 heads of 128, 80 layers."""
    model, on = served("llama3-70b", "fp8", "fp8"), machine("h100-sxm-80gb")
    shape = model.shape
    weights = (shape.dense_parameters + shape.embedding) / 4
    texts = 64 * 2000 * (80 * 2 * 8 * 128) / 4
    memory = (weights + texts) / (on.memory_bandwidth * C.memory)
    moved = 2 * (3 / 4) * 64 * shape.width * 2
    wires = 2 * 80 * (moved / (on.group_bandwidth(4) * C.link) + 2 * on.group_latency(4))
    assert step_seconds(model, on, 64, 2000.0, 4, 4, 0.0, C) == pytest.approx(memory + wires)


def test_latent_attention_keeps_little_and_computes_more():
    latent = served("deepseek-v3")
    assert latent.kv == 61 * (512 + 64) * 2 and latent.split == 1
    assert latent.scores == 2 * 61 * 128 * (2 * 512 + 64)
    assert latent.shape.parameters == pytest.approx(671e9, rel=0.01)


def test_half_of_a_prompt_in_the_cache_saves_its_matrices_and_most_of_its_attention():
    model, on = served("qwen3-8b"), machine("h20")
    seconds = []
    for cached in (0.0, 0.5):
        asked = Request(tokens_in=8000, tokens_out=1, first=1, each=1, cached=cached)
        seconds.append(prompt_seconds(model, on, asked, 1, 1, C))
    assert 0.5 < seconds[1] / seconds[0] < 0.6


requests = st.builds(
    Request, tokens_in=st.integers(50, 4000), tokens_out=st.integers(20, 1000),
    first=st.floats(1.0, 8.0), each=st.floats(0.03, 0.3), cached=st.floats(0, 0.9),
)  # fmt: skip


def cost(name, request, slowness=1.0, devices=8, weights="bf16"):
    try:
        return capacity_of(served(name, weights), machine("h20"), request, devices=devices,
                           slowness=slowness, overhead=2e-5, c=C)  # fmt: skip
    except Beyond:
        return None


@settings(max_examples=25, deadline=None)
@given(requests, st.floats(1.0, 2.0), st.sampled_from(["qwen3-8b", "qwen3-30b-a3b"]))
def test_slower_later_and_longer_never_cost_less(request_, times, name):
    usual, slow = cost(name, request_), cost(name, request_, slowness=times)
    if slow is None:
        return
    assert usual is not None and usual.per_request <= slow.per_request * (1 + 1e-9)
    for one in (usual, slow):
        assert one.tokens.seconds <= request_.each and one.prompt.seconds < request_.first
        # The wait of Pollaczek and Khinchine keeps the target.
        wait = one.prompt.seconds * (1 + one.busy / (2 * (1 - one.busy)))
        assert wait <= request_.first * (1 + 1e-9)
    patient = replace(request_, first=2 * request_.first, each=2 * request_.each)
    assert cost(name, patient).per_request <= usual.per_request * (1 + 1e-9)
    assert usual.devices_for(0.0) == usual.least
    assert usual.devices_for(1e4) == pytest.approx(1e4 * usual.per_request)


@pytest.mark.parametrize(
    ("name", "devices", "first", "each", "words"),
    [("llama3-405b", 4, 2.0, 0.05, "its weights are 8"),
     ("qwen3-8b", 8, 1e-3, 0.05, "a prompt alone"),
     ("qwen3-8b", 8, 2.0, 1e-4, "one token takes")],
)  # fmt: skip
def test_what_is_out_of_reach_says_why(name, devices, first, each, words):
    request = Request(tokens_in=1000, tokens_out=100, first=first, each=each)
    with pytest.raises(Beyond, match=words):
        capacity_of(served(name), machine("h20"), request, devices=devices, slowness=1.0,
                    overhead=0.0, c=C)  # fmt: skip
