"""Model folders in Hugging Face's layout: written so that transformers loads them, and read.

What it is: config.json, model.safetensors (sharded with an index above a size), tokenizer.json,
tokenizer_config.json and generation_config.json. Read are Llama, Qwen3 and Mistral configurations
without what our decoder does not compute: anything else is refused with file, key and value.
What it is not: a downloader, and no pickle is ever opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from atoll.strict import read_text, validate

ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")
"""What ``read_folder`` accepts."""

MAX_SHARD_BYTES = 4 << 30

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_TOP_NAMES = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}

# What config.json calls the shapes of a Model.
_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "context": "max_position_embeddings",
    "vocab": "vocab_size",
    "tied": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_base": "rope_theta",
}

# Keys whose other values change what the model computes, and the values that our decoder computes.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "use_sliding_window": (False, None),
}


def file_name_of(name: str) -> str:
    """The name that Hugging Face gives to our tensor ``name``."""
    stem = name.removesuffix(".weight")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.weight"
    _, layer, rest = stem.split(".", 2)
    return f"model.layers.{layer}.{_BLOCK_NAMES[rest]}.weight"


def config_of(model: Model, *, stop_ids: tuple[int, ...] = ()) -> dict[str, Any]:
    """The config.json of ``model``: LlamaForCausalLM, or Qwen3ForCausalLM with query/key norms."""
    return {
        "architectures": ["Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if model.qk_norm else "llama",
        "vocab_size": model.resolved_vocab,
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.resolved_kv_heads,
        "head_dim": model.resolved_head_dim,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        # Versions 4 and 5 of transformers look for the base in different places.
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": _one_or_list(stop_ids),
        "pad_token_id": None,
    }


def write_folder(
    folder: Path,
    model: Model,
    tensors: Mapping[str, np.ndarray | Tensor],
    tokenizer_json: Path,
    *,
    stop_ids: tuple[int, ...] | None = None,
    chat_template: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a folder that transformers, vLLM and ``read_folder`` load; weights in fp32.

    ``tensors`` holds every name of ``model.tensors()``. ``stop_ids`` None means the tokenizer's
    end-of-text token. Each file is written aside and renamed; config.json comes last, so that a
    folder that has it is complete.
    """
    from atoll.data.tokenizer import end_of_text_id, load_tokenizer

    tokenizer = load_tokenizer(tokenizer_json)
    if stop_ids is None:
        stop_ids = (end_of_text_id(tokenizer),)
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, model, tensors, max_shard_bytes)
    _put(folder / "tokenizer.json", tokenizer_json.read_bytes())
    stop = tokenizer.id_to_token(stop_ids[0]) if stop_ids else None
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "clean_up_tokenization_spaces": False,
        "eos_token": stop,
        **({"chat_template": chat_template} if chat_template else {}),
    }
    _put_json(folder / "tokenizer_config.json", tokenizer_config)
    generation = {"eos_token_id": _one_or_list(stop_ids), "do_sample": True, "temperature": 0.8}
    _put_json(folder / "generation_config.json", generation)
    _put_json(folder / "config.json", config_of(model, stop_ids=stop_ids))


def read_folder(folder: Path) -> Loaded:
    """Open a model folder; weights in fp32, fp16 or bf16, in one file or in shards.

    InputError: no such folder, a missing file, another architecture, a setting that our decoder
    does not compute, tensors that do not fit the configuration.
    """
    config_path = folder / "config.json"
    config = _read_json(config_path)
    model = model_of(config, config_path)
    places = _places(folder)
    check_layers(model, len(places), file=config_path, key=_KEYS["layers"])
    names = {file_name_of(name): name for name in model.tensors()}
    tied_head = {file_name_of("head.weight")} if model.tied else set()
    check_names(
        set(places),
        set(names),
        ignored=lambda name: name in tied_head or name.endswith("rotary_emb.inv_freq"),
        source=folder,
    )
    tokenizer_json = folder / "tokenizer.json"
    if not tokenizer_json.is_file():
        raise InputError(
            "no tokenizer.json",
            file=folder,
            fix="Save the tokenizer in the fast format: tokenizer.save_pretrained(folder).",
        )
    settings = _read_json(folder / "tokenizer_config.json", missing_ok=True)
    generation = _read_json(folder / "generation_config.json", missing_ok=True)
    template = folder / "chat_template.jinja"
    shapes = model.tensors()
    # Before memory is taken: sizes that do not fit the weights may be of any size.
    for name, found in _shapes({file_name: places[file_name] for file_name in names}).items():
        check_shape(name, found, shapes[names[name]], places[name])

    def read(name: str) -> Tensor:
        file_name = file_name_of(name)
        return _read_tensor(places[file_name], file_name).to(torch.float32)

    return Loaded(
        source=folder,
        model=model,
        tensors=TensorsOnDisk(list(shapes), read),
        tokenizer_json=tokenizer_json,
        stop_ids=_stop_ids(generation, folder / "generation_config.json")
        or _stop_ids(config, config_path),
        chat_template=read_text(template)
        if template.is_file()
        else _only_string(settings.get("chat_template")),
        template_tokens=_template_tokens(settings),
    )


def model_of(config: Mapping[str, Any], file: Path) -> Model:
    """The Model of a config.json. InputError names the key that means something else to us."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else named
    if architecture not in ARCHITECTURES:
        raise InputError(
            "this architecture is not supported",
            file=file,
            key="architectures",
            value=architecture,
            fix=f"Supported: {', '.join(ARCHITECTURES)}.",
        )
    sliding = _ONLY if "use_sliding_window" in config else {**_ONLY, "sliding_window": (None,)}
    for key, allowed in sliding.items():
        if key in config and config[key] not in allowed:
            _refuse(file, key, config[key], allowed)
    rope = config.get("rope_parameters")
    rope = {} if rope is None else rope
    if not isinstance(rope, dict):
        raise InputError("must be an object", file=file, key="rope_parameters", value=rope)
    if rope.get("rope_type", "default") != "default":
        _refuse(file, "rope_parameters.rope_type", rope["rope_type"], ("default",))
    heads = _number(config, "num_attention_heads", file)
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    shapes = {
        "layers": _number(config, "num_hidden_layers", file),
        "width": _number(config, "hidden_size", file),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim"),
        "ffn": _number(config, "intermediate_size", file),
        "context": _number(config, "max_position_embeddings", file),
        "vocab": _number(config, "vocab_size", file),
        "tied": config.get("tie_word_embeddings") or False,
        "qk_norm": architecture == "Qwen3ForCausalLM",
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_base": base,
    }
    try:
        model = validate(Model, shapes, file=file)
    except InputError as error:
        error.key = _KEYS.get(error.key or "", error.key)
        raise
    check_context(model, file=file, key=_KEYS["context"])
    return model


def _refuse(file: Path, key: str, value: object, allowed: tuple[object, ...]) -> None:
    shown = ", ".join(json.dumps(item) for item in allowed)
    message = "our decoder does not compute this"
    raise InputError(message, file=file, key=key, value=value, fix=f"Supported: {shown}.")


def _number(config: Mapping[str, Any], key: str, file: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError("must be a positive whole number", file=file, key=key, value=value)
    return value


def _places(folder: Path) -> dict[str, Path]:
    """Tensor name in the files -> the file that holds it."""
    from safetensors import SafetensorError, safe_open

    index = folder / _INDEX
    if index.is_file():
        table = _read_json(index).get("weight_map")
        if not isinstance(table, dict):
            message = "must be an object: tensor name to file name"
            raise InputError(message, file=index, key="weight_map", value=table)
        places = {str(name): folder / str(file) for name, file in table.items()}
        missing = sorted({path for path in places.values() if not path.is_file()})
        if missing:
            raise InputError("this shard of the index is missing", file=missing[0])
        return places
    single = folder / _SINGLE
    if not single.is_file():
        fix = None
        if any(folder.glob("*.bin")):
            fix = "Pickled weights (.bin) are not opened: save them with safe_serialization=True."
        raise InputError(f"no {_SINGLE} and no {_INDEX}", file=folder, fix=fix)
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (SafetensorError, OSError) as error:
        raise InputError(f"is not a readable safetensors file: {error}", file=single) from error


def _shapes(places: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors as the headers of their files say."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted(set(places.values())):
        try:
            with safe_open(path, framework="pt") as file:
                for name in (name for name, place in places.items() if place == path):
                    found[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise InputError(f"is not a readable safetensors file: {error}", file=path) from error
    return found


def _read_tensor(path: Path, name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            values: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read the tensor {name}: {error}", file=path) from error
    if values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"the tensor {name} is {values.dtype}, not fp32, fp16 or bf16", file=path)
    return values


def _write_weights(
    folder: Path, model: Model, tensors: Mapping[str, np.ndarray | Tensor], max_bytes: int
) -> None:
    """One file, or shards of at most ``max_bytes`` (a tensor alone may be larger) and an index."""
    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in model.tensors().items():
        size = 4 * int(np.prod(shape))
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = _SINGLE if len(shards) == 1 else file
        part = {file_name_of(name): _host_fp32(tensors[name]) for name in names}
        aside = folder / f".{file}.partial"
        save_file(part, aside, metadata={"format": "pt"})
        aside.replace(folder / file)
        files.update(dict.fromkeys(part, file))
    (folder / _INDEX).unlink(missing_ok=True)
    if len(shards) > 1:
        total = 4 * model.num_parameters()
        _put_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _host_fp32(values: np.ndarray | Tensor) -> Tensor:
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


def _read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if missing_ok:
            return {}
        raise InputError("no such file", file=path, fix="A model folder has a config.json.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}", file=path) from error
    if not isinstance(data, dict):
        raise InputError("must hold a JSON object", file=path)
    return data


def _stop_ids(config: Mapping[str, Any], file: Path) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
        message = "must be a whole number or a list of them"
        raise InputError(message, file=file, key="eos_token_id", value=value)
    return tuple(ids)


def _template_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a tokenizer_config.json; each is text, or a table with its text."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = settings.get(name)
        text = _only_string(value.get("content") if isinstance(value, dict) else value)
        if text is not None:
            found[name] = text
    return found


def _only_string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    if len(ids) == 1:
        return ids[0]
    return list(ids) or None


def _put_json(path: Path, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    _put(path, text.encode("utf-8"))


def _put(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(data)
    aside.replace(path)
