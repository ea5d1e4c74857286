"""Worked cases of memory: what must not fit on a device, and published runs that did fit.

Each line that must not fit has a lower bound that a pencil gives (states alone, or logits alone, or
activations alone), so that the planner is checked against arithmetic and not against itself.
"""

from dataclasses import dataclass

import pytest

from atoll import facts
from atoll.model import Model
from atoll.plan import Layout
from atoll.planning.correction import fitted
from atoll.planning.machine import machine_of
from atoll.planning.memory import MemoryCoefficients, MemoryUse, memory_use
from atoll.planning.work import Shape, Work


@dataclass(frozen=True)
class Case:
    """A preset on a chip in a layout; `at_least` GB are needed by `reason`, None where it ran."""

    model: str
    chip: str
    layout: str
    reason: str
    at_least: float | None = None
    microbatches: int = 8
    sequence: int | None = None
    precision: str = "bf16"

    def used(self) -> MemoryUse:
        """What the planner counts."""
        model = Model.model_validate(facts.model_preset(self.model))
        sequence = self.sequence or model.context
        work = Work(shape=Shape.of(model), sequence=sequence, precision=self.precision)
        keys = {"dp": 1, "tp": 1, "pp": 1, "cp": 1, "ep": 1, "vpp": 1, "zero": 0}
        keys |= {"recompute": "none", **Layout.parse(self.layout)}
        layout = Layout(**{"sequence_parallel": keys["tp"] > 1, **keys})
        c = MemoryCoefficients(**fitted()["memory"])
        return memory_use(work, layout, self.microbatches, c)

    def size(self) -> float:
        """Bytes of one device."""
        return machine_of(facts.chip(self.chip), node_chips=8, network=25e9).memory


TOO_LARGE = [
    Case("llama3-70b", "h100-sxm-80gb", "dp=8,microbatch=1,recompute=full",
         "data parallelism alone: 70.6e9 x 18 bytes of state on every device", 1270),
    Case("gpt3-175b", "a100-sxm-80gb", "tp=8,microbatch=1,recompute=full",
         "8 devices: 175e9 x 18 / 8", 390),
    Case("deepseek-v3", "h800", "dp=64,ep=8,microbatch=1,zero=1,recompute=full",
         "64 chips, 8 experts' shards: weights and gradients, 6 x 654e9 / 8", 490),
    Case("llama3-405b", "h100-sxm-80gb", "tp=8,pp=4,microbatch=1,recompute=full",
         "32 devices without sharded states: 405e9 x 18 / 32", 225),
    Case("llama3-405b", "h200", "tp=8,pp=2,dp=4,microbatch=1,zero=1,recompute=full",
         "weights and gradients: 405e9 x 6 / 16", 150),
    Case("llama2-70b", "ascend-910b2", "tp=8,pp=2,microbatch=1,recompute=full",
         "16 chips of 64 GB: 69e9 x 18 / 16", 77),
    Case("llama2-7b", "rtx-4090", "dp=8,microbatch=1,recompute=full",
         "6.7e9 x 18 bytes on a card of 24 GB", 120),
    Case("llama2-7b", "rtx-4090", "dp=4,microbatch=1,zero=3,recompute=full",
         "sharded over 4: 6.7e9 x 16 / 4 = 27 GB of state on 24 GB", 26.9),
    Case("llama3-8b", "a100-sxm-80gb", "dp=8,microbatch=1,recompute=full",
         "unsharded: 8.03e9 x 18", 144),
    Case("llama3-8b", "a100-sxm-80gb", "dp=64,microbatch=8,zero=3",
         "65,536 tokens: 32 layers x 3 x 14,336 x 2 bytes of feed-forward alone",
        180),
    Case("llama3-8b", "h100-sxm-80gb", "dp=64,microbatch=16,zero=3,recompute=full",
         "131,072 x 128,256 logits of 4 bytes, and as many of gradients",
        134),
    Case("qwen3-32b", "h100-sxm-80gb", "tp=4,dp=2,microbatch=1,recompute=full",
         "32.8e9 x 18 / 4", 147),
    Case("qwen3-235b-a22b", "h100-sxm-80gb", "dp=64,ep=8,microbatch=1,zero=1,recompute=full",
         "weights and gradients of the experts: 227e9 x 6 / 8", 170),
    Case("mixtral-8x7b", "a100-sxm-80gb", "dp=8,ep=8,microbatch=1,recompute=full",
         "experts 45e9 x 18 / 8, and the dense part on every device", 101),
    Case("mixtral-8x22b", "a100-sxm-80gb", "dp=16,ep=8,microbatch=1,zero=1,recompute=full",
         "weights and gradients of the experts: 135e9 x 6 / 8", 100),
    Case("gpt3-175b", "a100-sxm-40gb", "tp=8,pp=8,microbatch=1,recompute=full",
         "64 devices of 40 GB: 175e9 x 18 / 64 = 49 GB", 49),
    Case("gpt3-175b", "ascend-910a", "tp=8,pp=16,microbatch=8,sequence_parallel=false",
         "16 micro-batches of 8 x 2,048 tokens in flight, 6 layers each, 10 x 12,288 bytes of "
         "residual a token", 190, microbatches=64),
    Case("pangu-ultra-135b", "ascend-910b2", "tp=8,pp=4,microbatch=1,recompute=full",
         "32 chips of 64 GB: 135e9 x 18 / 32", 75),
    Case("llama2-13b", "v100-sxm2-32gb", "tp=4,microbatch=1,recompute=full",
         "13e9 x 18 / 4 = 58 GB on 32 GB", 58, precision="fp16"),
    Case("pangu-ultra-moe-718b", "ascend-910b2",
         "tp=8,pp=16,ep=4,dp=4,microbatch=1,zero=1,recompute=full",
         "experts over 4 only: weights and gradients 700e9 x 6 / (16 x 4)", 65.6),
]  # fmt: skip
"""Twenty cases that a planner must refuse."""

RAN = [
    Case("gpt3-175b", "a100-sxm-80gb", "tp=8,pp=8,vpp=3,microbatch=1,recompute=selective",
         "Korthikanti et al. 2022: 64 devices", microbatches=64, precision="fp16"),
    Case("gpt3-175b", "a100-sxm-80gb", "tp=8,pp=12,dp=4,microbatch=1,recompute=full",
         "arXiv:2104.04473, table 2: 384 devices", microbatches=384, precision="fp16"),
    Case("llama3-8b", "h100-sxm-96gb", "dp=8,zero=3,microbatch=2,recompute=selective",
         "torchtitan benchmarks: 8 devices"),
    Case("llama3-70b", "h100-sxm-96gb", "tp=8,dp=32,zero=3,microbatch=16,recompute=full",
         "torchtitan benchmarks: 256 devices", microbatches=1),
    Case("llama2-7b", "ascend-910b2", "pp=2,dp=4,zero=1,microbatch=1",
         "ModelLink README: 8 chips, nothing recomputed", sequence=4096, microbatches=64),
    Case("llama2-13b", "ascend-910b2", "tp=8,microbatch=4",
         "ModelLink README: 8 chips, nothing recomputed", sequence=4096, microbatches=128),
    Case("deepseek-v3", "h800", "pp=16,dp=128,ep=64,zero=1,microbatch=1,recompute=selective",
         "arXiv:2412.19437, section 3.2: 2,048 chips, no tensor parallelism",
         sequence=4096, microbatches=15, precision="fp8"),
    Case("llama3-405b", "h100-sxm-80gb", "tp=8,pp=16,dp=64,zero=2,microbatch=1,vpp=4",
         "arXiv:2407.21783, table 4 and section 3.3.2: gradients sharded, nothing recomputed",
         microbatches=16),
]  # fmt: skip
"""Published runs, which must fit."""


def named(case: Case) -> str:
    return f"{case.model} on {case.chip}: {case.layout}"


@pytest.mark.parametrize("case", TOO_LARGE, ids=named)
def test_what_cannot_fit_is_seen(case: Case) -> None:
    used = case.used().total
    assert used > case.size()
    assert case.at_least is not None
    assert used > 0.97e9 * case.at_least
    assert 1e9 * case.at_least > case.size(), "a pencil sees it too"


@pytest.mark.parametrize("case", RAN, ids=named)
def test_what_ran_fits(case: Case) -> None:
    assert case.used().total < case.size()


def test_there_are_twenty() -> None:
    assert len(TOO_LARGE) == 20 and len({named(case) for case in TOO_LARGE}) == 20
