"""Run by a Python that has torch_npu, over no-op stubs: what can be said of ascend with no card.

Prints one JSON object. Nothing is computed: tensors here have shapes only.
"""

import json
from typing import Any

import torch
import torch_npu
from torch._subclasses.fake_tensor import FakeTensorMode

from atoll import backends
from atoll.model import Model
from atoll.modeling.decoder import Decoder


def trace(*, tied: bool, qk_norm: bool) -> dict[str, str]:
    """Forward and backward of the decoder on the device: loss and every gradient's device."""
    model = Model(
        layers=2, width=64, heads=4, kv_heads=2, ffn=96, context=32, tied=tied, qk_norm=qk_norm
    ).with_vocab(101)
    with FakeTensorMode(allow_non_fake_inputs=False):
        with torch.device("npu:0"):
            decoder = Decoder(model)
        decoder.cos, decoder.sin = decoder.cos.to("npu:0"), decoder.sin.to("npu:0")
        found: dict[str, str] = {}
        for name, parameter in decoder.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: found.__setitem__(name, str(p.grad.device))
            )
        loss = decoder.loss(torch.zeros(2, 33, dtype=torch.int64, device="npu:0"))
        loss.backward()
    found["loss"] = str(loss.device)
    assert sorted(found) == sorted([*model.tensors(), "loss"])
    return found


def main() -> None:
    backend = backends.here()
    report: dict[str, Any] = {
        "torch_npu": torch_npu.__version__,
        "accelerator": str(torch.accelerator.current_accelerator()),
        "here": backend.name,
        "of_chip": backends.of_chip("ascend-910b2").name,
        "available": backend.available(),
        "num_devices": backend.num_devices(),
        "collective": backend.collective,
        "device": str(backend.device(0)),
        "traced": [trace(tied=True, qk_norm=False), trace(tied=False, qk_norm=True)],
    }
    backend.prepare(threads=1)
    report["kind_facts"] = backend.kind_facts()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
