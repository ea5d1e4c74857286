"""GGUF files, read through the package gguf: weights to fp32, tokenizer to a tokenizer.json.

What it is: the architectures llama and qwen3 of the GGUF specification, any quantisation that the
package can undo. llama.cpp stores the query and key rows of llama files in the interleaved order
of its rotary kernel: they are put back into halves here. What it is not: a writer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoll.data.gguf_file import fields_of, open_gguf
from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling.loaded import (
    Loaded,
    TensorsOnDisk,
    check_context,
    check_layers,
    check_names,
    check_shape,
)
from atoll.strict import validate

ARCHITECTURES = ("llama", "qwen3")
"""What ``read`` accepts."""

_BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}
_TOP_NAMES = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}


def file_name_of(name: str) -> str:
    """The name that GGUF files give to our tensor ``name``."""
    stem = name.removesuffix(".weight")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.weight"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{_BLOCK_NAMES[rest]}.weight"


def read(path: Path) -> Loaded:
    """Open a GGUF file; its tokenizer is written to a temporary tokenizer.json.

    InputError: the package gguf is missing (with the pip line), a file that is no GGUF or is cut
    short, another architecture, a setting that our decoder does not compute.
    """
    from atoll.data.tokenizer import tokenizer_from_gguf

    reader = open_gguf(path)
    value = fields_of(reader, path)
    architecture = value("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            "this architecture is not supported",
            file=path,
            key="general.architecture",
            value=architecture,
            fix=f"Supported: {', '.join(ARCHITECTURES)}.",
        )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    model = _model_of(value, architecture, stored, path)
    check_layers(model, len(stored), file=path, key=f"{architecture}.block_count")
    check_context(model, file=path, key=f"{architecture}.context_length")
    shapes = model.tensors()
    names = {file_name_of(name): name for name in shapes}
    check_names(set(stored), set(names), ignored=lambda _: False, source=path)
    # Before memory is taken: sizes that do not fit the weights may be of any size.
    for file_name, name in names.items():
        found = tuple(int(size) for size in reversed(stored[file_name].shape))
        check_shape(file_name, found, shapes[name], path)
    scratch = tempfile.TemporaryDirectory(prefix="atoll-gguf-")
    tokenizer_json = Path(scratch.name) / "tokenizer.json"
    tokenizer_from_gguf(path).save(str(tokenizer_json))
    stop = value("tokenizer.ggml.eos_token_id")

    def read_tensor(name: str) -> Tensor:
        values = _dequantised(stored[file_name_of(name)], path)
        return _halves(values, name, model) if architecture == "llama" else values

    return Loaded(
        source=path,
        model=model,
        tensors=TensorsOnDisk(list(shapes), read_tensor),
        tokenizer_json=tokenizer_json,
        stop_ids=() if stop is None else (int(stop),),
        chat_template=value("tokenizer.chat_template"),
        template_tokens=_template_tokens(value),
        scratch=scratch,
    )


def _template_tokens(value: Callable[[str], Any]) -> dict[str, str]:
    tokens, found = value("tokenizer.ggml.tokens"), {}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown")):
        index = value(f"tokenizer.ggml.{key}_token_id")
        if index is not None and 0 <= int(index) < len(tokens):
            found[name] = str(tokens[int(index)])
    return found


def _model_of(
    value: Callable[[str], Any], architecture: str, stored: dict[str, Any], path: Path
) -> Model:
    def number(key: str, otherwise: float | None = None) -> float:
        key = f"{architecture}.{key}"
        found = otherwise if (held := value(key)) is None else held
        if found is None:
            raise InputError("the file lacks this key", file=path, key=key)
        if not isinstance(found, int | float) or found <= 0:
            raise InputError("must be a positive number", file=path, key=key, value=found)
        return found

    def whole(key: str, otherwise: float | None = None) -> int:
        return int(number(key, otherwise))

    scaling = value(f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise InputError(
            "our decoder does not compute this",
            file=path,
            key=f"{architecture}.rope.scaling.type",
            value=scaling,
            fix='Supported: "none".',
        )
    width, heads = whole("embedding_length"), whole("attention.head_count")
    head_dim = whole("attention.key_length", width // heads)
    turned = whole("rope.dimension_count", head_dim)
    if turned != head_dim:
        raise InputError(
            "our decoder rotates whole heads",
            file=path,
            key=f"{architecture}.rope.dimension_count",
            value=turned,
            fix=f"Supported: the width of a head, {head_dim}.",
        )
    embedding = stored.get(file_name_of("embedding.weight"))
    if embedding is None:
        raise InputError("holds no token embedding", file=path)
    shapes = {
        "layers": whole("block_count"),
        "width": width,
        "heads": heads,
        "kv_heads": whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "ffn": whole("feed_forward_length"),
        "context": whole("context_length"),
        "vocab": int(embedding.shape[-1]),
        "tied": file_name_of("head.weight") not in stored,
        "qk_norm": architecture == "qwen3",
        # Stored in fp32: the nearest number of six digits is what was meant.
        "norm_eps": float(f"{number('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_base": float(number("rope.freq_base", 10000.0)),
    }
    return validate(Model, shapes, file=path)


def _dequantised(stored: Any, path: Path) -> Tensor:
    from gguf.quants import dequantize

    try:
        values = dequantize(stored.data, stored.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"the tensor {stored.name} is stored as {stored.tensor_type.name}, which the package "
            f"gguf cannot read: {error}",
            file=path,
        ) from error
    return torch.from_numpy(values.astype("float32"))


def _halves(values: Tensor, name: str, model: Model) -> Tensor:
    """Query and key rows from pairs (2i, 2i+1) back to halves (i, i + D/2), head by head."""
    if name.endswith("attention.query.weight"):
        num_heads = model.heads
    elif name.endswith("attention.key.weight"):
        num_heads = model.resolved_kv_heads
    else:
        return values
    rows, width = values.shape
    pairs = values.view(num_heads, rows // num_heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width)
