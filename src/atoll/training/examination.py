"""One grain taken apart: every layer computed on another's inputs, so that errors do not travel.

The reference computes a grain and keeps, for each stage (the embedding, each block, the head),
what goes in and the gradient that comes back. The subject computes each stage from the reference's
input and the reference's gradient, so a wrong stage shows in that stage alone and not in all that
follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from atoll.modeling.decoder import Decoder

TOLERANCE = 1e-4
"""Largest relative error that fp32 rounding in another order explains; a wrong kernel is far above.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageError:
    """Relative errors |subject - reference| / |reference| (Euclidean norms) of one stage.

    `output` is of what the stage computes; `gradients` the worst of its parameters' and its input's
    gradients, `worst` naming which.
    """

    stage: str
    output: float
    gradients: float
    worst: str

    @property
    def wrong(self) -> bool:
        """More than rounding; not-a-number is wrong too."""
        return not (self.output <= TOLERANCE and self.gradients <= TOLERANCE)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a message."""
        return asdict(self)


def trace(decoder: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """What the reference keeps of one grain (token ids [sequences, context + 1]), as host tensors.

    "input.i" and "gradient.i" are of the input of block i (of the head for i = layers); "loss" is
    the summed loss; "weight.NAME" are the gradients of the parameters.
    """
    kept: dict[str, Tensor] = {}

    def keep(index: int, x: Tensor) -> None:
        kept[f"input.{index}"] = x.detach().cpu().contiguous()
        x.register_hook(
            lambda g: kept.__setitem__(f"gradient.{index}", g.detach().cpu().contiguous())
        )

    handles = _watch_blocks(decoder, keep=keep, replace=None)
    try:
        loss = decoder.loss(tokens)
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    kept["loss"] = loss.detach().cpu().reshape(1)
    kept.update(_take_gradients(decoder))
    return kept


def examine(decoder: Decoder, tokens: Tensor, reference: Mapping[str, Tensor]) -> list[StageError]:
    """Compute every stage from the reference's inputs; returns one StageError a stage."""
    computed: list[Tensor] = []
    entered: list[Tensor] = []

    def keep(_index: int, x: Tensor) -> None:
        computed.append(x)

    def replace(index: int) -> Tensor:
        leaf = reference[f"input.{index}"].detach().to(tokens.device, copy=True)
        leaf.requires_grad_(True)
        entered.append(leaf)
        return leaf

    handles = _watch_blocks(decoder, keep=keep, replace=replace)
    try:
        loss = decoder.loss(tokens)
        back = [reference[f"gradient.{i}"].to(tokens.device) for i in range(len(computed))]
        torch.autograd.backward([*computed, loss], [*back, torch.ones_like(loss)])
    finally:
        for handle in handles:
            handle.remove()
    gradients = _take_gradients(decoder)
    for i, leaf in enumerate(entered):
        assert leaf.grad is not None
        gradients[f"gradient.{i}"] = leaf.grad.cpu()
    outputs = {f"input.{i}": x.detach().cpu() for i, x in enumerate(computed)}
    outputs["loss"] = loss.detach().cpu().reshape(1)
    return _compare(decoder, outputs, gradients, reference)


def _watch_blocks(decoder: Decoder, *, keep: Any, replace: Any) -> list[Any]:
    """Hooks on each block's input and on the last one's output; `replace` may cut them."""
    last = len(decoder.blocks)

    def on_input(index: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            keep(index, args[0])
            return None if replace is None else (replace(index), *args[1:])

        return hook

    def on_output(_module: Any, _args: Any, output: Tensor) -> Tensor | None:
        keep(last, output)
        return None if replace is None else replace(last)

    handles = [
        block.register_forward_pre_hook(on_input(i)) for i, block in enumerate(decoder.blocks)
    ]
    handles.append(decoder.blocks[-1].register_forward_hook(on_output))
    return handles


def _take_gradients(decoder: Decoder) -> dict[str, Tensor]:
    taken = {}
    for name, parameter in decoder.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        taken[f"weight.{name}"] = gradient.detach().cpu().contiguous()
        parameter.grad = None
    return taken


def _compare(
    decoder: Decoder,
    outputs: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
) -> list[StageError]:
    last = len(decoder.blocks)
    stages: list[tuple[str, str, str | None]] = [("embedding", "input.0", None)]
    stages += [(f"blocks.{i}", f"input.{i + 1}", f"gradient.{i}") for i in range(last)]
    stages += [("head", "loss", f"gradient.{last}")]
    errors = []
    for stage, output, input_gradient in stages:
        keys = [k for k in gradients if k.startswith("weight.") and _stage_of(k[7:]) == stage]
        if input_gradient is not None:
            keys.append(input_gradient)
        found = {key: _error(gradients[key], reference[key]) for key in keys}
        worst = max(found, key=lambda k: found[k], default="")
        errors.append(
            StageError(
                stage=stage,
                output=_error(outputs[output], reference[output]),
                gradients=found.get(worst, 0.0),
                worst=worst.removeprefix("weight."),
            )
        )
    return errors


def _stage_of(name: str) -> str:
    """The stage that a parameter belongs to; a tied embedding counts as the embedding."""
    first, second = name.split(".")[:2]
    if first == "blocks":
        return f"blocks.{second}"
    return "embedding" if first == "embedding" else "head"


def _error(found: Tensor, expected: Tensor) -> float:
    difference = float((found.double() - expected.double()).norm())
    size = float(expected.double().norm())
    if difference == 0.0:
        return 0.0
    error = difference / size if size else float("inf")
    return error if error == error else float("inf")  # NaN compares with nothing
