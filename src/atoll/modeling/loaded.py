"""Loaded: a model read from somebody's files, tensors still on disk; and the names that files use.

What it is: what every reader of a format returns and every writer takes. Tensors are read and
turned to fp32 one at a time, when asked for, so that a model larger than memory can be converted.
What it is not: a reader itself (huggingface.py, gguf.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import rotary
from atoll.modeling.decoder import Decoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TensorsOnDisk(Mapping[str, Tensor]):
    """Canonical name -> fp32 tensor, read by ``read(name)`` each time it is asked for."""

    def __init__(self, names: list[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model, its tensors (torch or NumPy) by canonical name, and what it takes to speak with it.

    ``stop_ids`` end a generation; ``chat_template`` is a Jinja template or None, and
    ``template_tokens`` the special tokens that it may name ("bos_token", "eos_token", ...).
    ``scratch`` keeps temporary files alive as long as this object.
    """

    source: Path
    model: Model
    tensors: Mapping[str, Any]
    tokenizer_json: Path
    stop_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    template_tokens: Mapping[str, str] = field(default_factory=dict)
    scratch: object = field(default=None, repr=False)

    def decoder(self) -> Decoder:
        """A decoder that holds the weights. InputError for a tensor of another shape."""
        decoder = Decoder(self.model)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                values = torch.as_tensor(self.tensors[name])
                check_shape(name, tuple(values.shape), tuple(parameter.shape), self.source)
                parameter.copy_(values)
        return decoder

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of ``tokenizer_json``, truncation and padding off."""
        from atoll.data.tokenizer import load_tokenizer

        return load_tokenizer(self.tokenizer_json)


def check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...], source: Path) -> None:
    """InputError unless a tensor has the shape that its model's configuration implies."""
    if found != wanted:
        raise InputError(
            f"the tensor {name} has shape {list(found)}, the configuration implies {list(wanted)}",
            file=source,
            fix="The weights and the configuration are not of the same model.",
        )


def check_layers(model: Model, num_tensors: int, *, file: Path, key: str) -> None:
    """InputError if there are more layers than tensors, before a table of them all is made."""
    if model.layers > num_tensors:
        message = f"the weights are {num_tensors} tensors: too few for so many layers"
        raise InputError(message, file=file, key=key, value=model.layers)


def check_context(model: Model, *, file: Path, key: str) -> None:
    """InputError for more positions than the rotary tables are exact for."""
    if model.context > rotary.MAX_POSITIONS:
        raise InputError(
            "is more positions than our rotary tables are exact for",
            file=file,
            key=key,
            value=model.context,
            fix=f"Supported: up to {rotary.MAX_POSITIONS}; write less in a copy of the file.",
        )


def check_names(
    found: set[str], wanted: set[str], *, ignored: Callable[[str], bool], source: Path
) -> None:
    """InputError unless the file holds the wanted tensors and nothing that would be lost."""
    missing = sorted(wanted - found)
    if missing:
        raise InputError(
            f"lacks {len(missing)} tensors of the model, {missing[0]} first",
            file=source,
            fix="The file is cut short, or of an architecture that is not supported.",
        )
    extra = sorted(name for name in found - wanted if not ignored(name))
    if extra:
        raise InputError(
            f"holds {len(extra)} tensors that the model does not have, {extra[0]} first",
            file=source,
            fix="Biases, experts and adapters are not supported: the model would compute "
            "something else without them.",
        )
