"""The language model itself: one decoder, its initial weights, file formats, sampling.

Read decoder.py first. Importing this package imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from atoll.errors import InputError
from atoll.model import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from atoll.modeling.decoder import Decoder
    from atoll.modeling.loaded import Loaded


class Speaker(NamedTuple):
    """A decoder with its weights, on the CPU, and the tokenizer that it was trained with."""

    decoder: Decoder
    tokenizer: Tokenizer
    model: Model


def open_model(path: Path) -> Loaded:
    """Open a Hugging Face folder or a .gguf file; tensors are read when they are asked for.

    InputError if it is neither, or if our decoder would not compute what the file means.
    """
    from atoll.modeling import gguf, huggingface

    if path.is_dir() and (path / "config.json").is_file():
        return huggingface.read_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        return gguf.read(path)
    raise InputError(
        "is no model" if path.exists() else "no such file or folder",
        file=path,
        fix="Give a model folder (config.json, model.safetensors, tokenizer.json) or a .gguf file.",
    )


def load_model(path: Path) -> Speaker:
    """The decoder, its tokenizer and its shapes, from any source that ``open_model`` takes."""
    loaded = open_model(path)
    return Speaker(loaded.decoder(), loaded.tokenizer(), loaded.model)
