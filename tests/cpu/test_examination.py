"""The doctor's comparison: a stage that computes wrong is named, and only that one."""

import pytest
import torch
from torch import Tensor

from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder
from atoll.training.examination import TOLERANCE, examine, trace
from atoll.training.lane import probe_tokens

LAYERS = 3


def decoder(*, tied: bool = True) -> Decoder:
    model = Model(
        layers=LAYERS, width=32, heads=4, kv_heads=2, ffn=48, context=16, vocab=64, tied=tied
    )
    made = Decoder(model)
    initial.fill(made, 5)
    return made


def tokens() -> Tensor:
    return torch.from_numpy(probe_tokens(sequences=2, context=16, vocab=64))


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_code_differs_nowhere(tied: bool) -> None:
    stages = examine(decoder(tied=tied), tokens(), trace(decoder(tied=tied), tokens()))
    assert [s.stage for s in stages] == ["embedding", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert all(s.output <= TOLERANCE and s.gradients <= TOLERANCE for s in stages)
    assert not any(s.wrong for s in stages)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_layer_that_computes_wrong_is_named_and_only_it(layer: int) -> None:
    patient = decoder()
    ffn = patient.blocks[layer].ffn
    ffn.register_forward_hook(lambda _module, _args, output: output * 1.01)
    stages = examine(patient, tokens(), trace(decoder(), tokens()))
    assert [s.stage for s in stages if s.wrong] == [f"blocks.{layer}"]


def test_a_backward_pass_that_is_wrong_is_found_though_the_output_is_right() -> None:
    patient = decoder()
    patient.blocks[1].attention.key.weight.register_hook(lambda gradient: gradient * 1.01)
    stages = {s.stage: s for s in examine(patient, tokens(), trace(decoder(), tokens()))}
    assert [name for name, s in stages.items() if s.wrong] == ["blocks.1"]
    assert stages["blocks.1"].output <= TOLERANCE
    assert stages["blocks.1"].worst == "blocks.1.attention.key.weight"


def test_not_a_number_is_wrong() -> None:
    patient = decoder()
    patient.blocks[2].register_forward_hook(lambda _module, _args, output: output * float("nan"))
    stages = examine(patient, tokens(), trace(decoder(), tokens()))
    assert [s.stage for s in stages if s.wrong] == ["blocks.2"]


def test_the_trace_leaves_no_hook_and_no_gradient_behind() -> None:
    patient = decoder()
    trace(patient, tokens())
    assert all(parameter.grad is None for parameter in patient.parameters())
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in patient.blocks)
