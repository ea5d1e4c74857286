"""Model folders: transformers gives the same logits, ours reads them back, the rest is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atoll.data.tokenizer import train_tokenizer
from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import huggingface, initial, load_model, open_model
from atoll.modeling.decoder import Decoder

transformers = pytest.importorskip("transformers")

SHAPES: dict[str, dict[str, Any]] = {
    "tied, grouped": {},
    "untied, all heads": {"tied": False, "kv_heads": 4, "rope_base": 500000.0},
    "heads wider than width / heads": {"head_dim": 24, "norm_eps": 1e-6},
    "qwen3": {"qk_norm": True, "head_dim": 32, "tied": False},
}


def model_of(**changes: Any) -> Model:
    base = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "context": 64}
    return Model.model_validate({**base, "vocab": 300, **changes})


def lively(model: Model) -> Decoder:
    """Random weights large enough that a wrong rotation, norm or head order shows."""
    decoder = Decoder(model)
    initial.fill(decoder, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(5.0)
    return decoder


def tensors_of(decoder: Decoder) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in decoder.named_parameters()}


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["the cat sat on the mat 三国演义"] * 3, vocab=300).save(str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path, tokenizer_json: Path) -> Path:
    model = model_of()
    huggingface.write_folder(tmp_path / "m", model, tensors_of(lively(model)), tokenizer_json)
    return tmp_path / "m"


def change(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_transformers_loads_it_with_the_same_logits(
    shape: dict[str, Any], tmp_path: Path, tokenizer_json: Path
) -> None:
    decoder = lively(model_of(**shape))
    huggingface.write_folder(tmp_path, decoder.model, tensors_of(decoder), tokenizer_json)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys"))
    expected = "Qwen3ForCausalLM" if decoder.model.qk_norm else "LlamaForCausalLM"
    assert type(theirs).__name__ == expected
    tokens = torch.randint(0, 300, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, others = decoder(tokens), theirs(tokens).logits
    assert others.std() > 0.3
    assert (logits - others).abs().max() < 1e-4
    assert theirs.generation_config.eos_token_id == 0


def test_transformers_loads_the_tokenizer(folder: Path, tokenizer_json: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_model(folder).tokenizer
    text = "the mat 三国 \U0001f600"
    assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert theirs.decode(ours.encode(text).ids) == text
    assert theirs.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 40_000])
def test_what_was_written_is_read_back_bit_for_bit(
    shape: dict[str, Any], max_shard_bytes: int, tmp_path: Path, tokenizer_json: Path
) -> None:
    decoder = lively(model_of(**shape))
    arrays = {name: tensor.numpy() for name, tensor in tensors_of(decoder).items()}
    huggingface.write_folder(
        tmp_path,
        decoder.model,
        arrays,
        tokenizer_json,
        stop_ids=(0, 7),
        chat_template="{{ x }}",
        max_shard_bytes=max_shard_bytes,
    )
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes == 40_000)
    loaded = open_model(tmp_path)
    assert loaded.model.expanded() == decoder.model.expanded()
    assert loaded.stop_ids == (0, 7)
    assert loaded.chat_template == "{{ x }}"
    again = loaded.decoder()
    for name, tensor in tensors_of(decoder).items():
        assert torch.equal(again.get_parameter(name), tensor), name
    assert not list(tmp_path.glob(".*"))


def test_a_smaller_folder_written_over_shards_leaves_no_stale_index(
    tmp_path: Path, tokenizer_json: Path
) -> None:
    decoder = lively(model_of())
    for limit in (40_000, 1 << 30):
        huggingface.write_folder(
            tmp_path, decoder.model, tensors_of(decoder), tokenizer_json, max_shard_bytes=limit
        )
    assert torch.equal(open_model(tmp_path).tensors["norm.weight"], decoder.norm.weight)
    assert not (tmp_path / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_folders_that_transformers_wrote_are_read(
    kind: str, dtype: torch.dtype, tmp_path: Path, tokenizer_json: Path
) -> None:
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
        "mistral": (
            transformers.MistralConfig,
            transformers.MistralForCausalLM,
            {"sliding_window": None},
        ),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {}),
    }
    config_class, model_class, more = classes[kind]
    config = config_class(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=kind == "qwen3",
        initializer_range=0.2,
        **more,
    )
    torch.manual_seed(0)
    model_class(config).to(dtype).save_pretrained(
        tmp_path, max_shard_size="60KB" if kind == "llama" else "1GB"
    )
    shutil.copy(tokenizer_json, tmp_path / "tokenizer.json")
    decoder = load_model(tmp_path).decoder
    # Read anew, because .to(bfloat16) has rounded their rotary frequencies too.
    theirs = model_class.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = decoder(tokens) - theirs(tokens).logits
    assert difference.abs().max() < 1e-4
    assert decoder.embedding.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["GPT2LMHeadModel"]),
        ("architectures", None),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("sliding_window", 4096),
        ("quantization_config", {"bits": 4}),
        ("hidden_size", "wide"),
        ("num_hidden_layers", None),
        ("num_attention_heads", 5),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(folder: Path, key: str, value: Any) -> None:
    change(folder / "config.json", **{key: value})
    with pytest.raises(InputError) as caught:
        open_model(folder)
    message = str(caught.value)
    assert "config.json" in message
    assert key in message or "heads" in message


def test_an_unused_sliding_window_of_qwen_is_read(tmp_path: Path, tokenizer_json: Path) -> None:
    decoder = lively(model_of(qk_norm=True))
    huggingface.write_folder(tmp_path, decoder.model, tensors_of(decoder), tokenizer_json)
    change(tmp_path / "config.json", use_sliding_window=False, sliding_window=4096)
    assert open_model(tmp_path).model.qk_norm
    change(tmp_path / "config.json", use_sliding_window=True)
    with pytest.raises(InputError, match="use_sliding_window"):
        open_model(tmp_path)


def test_damaged_and_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_model(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        open_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="Pickled"):
        open_model(folder)
    weights.write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        open_model(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not JSON"):
        open_model(folder)
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="model folder"):
            open_model(path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"architectures": 5}),
        ("config.json", {"rope_parameters": "default"}),
        ("config.json", {"hidden_size": True}),
        ("config.json", {"rms_norm_eps": "small"}),
        ("config.json", {"tie_word_embeddings": "yes"}),
        ("config.json", {"num_hidden_layers": 10**12}),
        ("config.json", {"max_position_embeddings": 10**12}),
        ("generation_config.json", {"eos_token_id": "</s>"}),
        ("generation_config.json", {"eos_token_id": [None]}),
        ("model.safetensors.index.json", {"weight_map": []}),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_key(
    folder: Path, name: str, changes: dict[str, Any]
) -> None:
    path = folder / name
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **changes}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        open_model(folder)
    assert caught.value.file == str(path)
    assert caught.value.key == next(iter(changes))


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim"]
)
def test_sizes_beyond_the_weights_are_refused_before_memory_is_taken(
    folder: Path, key: str
) -> None:
    change(folder / "config.json", **{key: 10**10})
    with pytest.raises(InputError, match="the configuration implies"):
        open_model(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "chat_template.jinja"])
def test_files_that_no_reader_can_read_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80" if name.endswith("jinja") else b"[" * 100_000)
    with pytest.raises(InputError, match=re.escape(name)):
        open_model(folder)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    bias = "model.layers.0.self_attn.q_proj.bias"
    save_file({**tensors, bias: torch.zeros(64)}, weights)
    with pytest.raises(InputError, match=r"q_proj\.bias"):
        open_model(folder)
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, weights)
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        open_model(folder)
    save_file({**tensors, "model.norm.weight": torch.zeros(63)}, weights)
    with pytest.raises(InputError, match=r"\[63\].*\[64\]"):
        load_model(folder)
    save_file({**tensors, "model.norm.weight": torch.zeros(64, dtype=torch.int8)}, weights)
    with pytest.raises(InputError, match="int8"):
        load_model(folder)


def test_a_missing_shard_is_named(tmp_path: Path, tokenizer_json: Path) -> None:
    decoder = lively(model_of())
    tensors = tensors_of(decoder)
    huggingface.write_folder(
        tmp_path, decoder.model, tensors, tokenizer_json, max_shard_bytes=40_000
    )
    victim = sorted(tmp_path.glob("model-00002-*"))[0]
    victim.unlink()
    with pytest.raises(InputError, match="model-00002"):
        open_model(tmp_path)
