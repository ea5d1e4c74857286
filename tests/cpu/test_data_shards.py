"""Token shards: made once, found again, and never used when anything is wrong with them."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.data import Shards, matched_model, open_shards, prepare
from atoll.data.storage import MANIFEST, Tokens, TokenWriter
from atoll.data.tokenizer import load_tokenizer
from atoll.errors import InputError, RunError
from atoll.model import Model
from atoll.recipe import DataSpec

SENTENCE = "the sea is wide and the ring of islands keeps its own kind of light today"
WORDS = SENTENCE.split()


def page(number: int) -> str:
    """A small text, different for every number."""
    lines = [
        " ".join(WORDS[(number * 7 + line * 3 + i * i) % len(WORDS)] for i in range(12))
        for line in range(20 + number % 5)
    ]
    return f"Page {number}\n" + "\n".join(lines) + "\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with 40 documents in `pages/` and 10 in `more.jsonl`."""
    (tmp_path / "base" / "pages").mkdir(parents=True)
    for number in range(40):
        (tmp_path / "base" / "pages" / f"{number:02d}.txt").write_text(page(number))
    lines = (json.dumps({"text": page(number)}) + "\n" for number in range(100, 110))
    (tmp_path / "base" / "more.jsonl").write_text("".join(lines))
    return tmp_path / "base"


class Said:
    """A progress callback that keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, message: str, fraction: float | None) -> None:
        assert fraction is None or 0 <= fraction <= 1
        self.lines.append(message)

    def __contains__(self, part: str) -> bool:
        return any(part in line for line in self.lines)


def spec(corpus: Any = "pages", **keys: Any) -> DataSpec:
    return DataSpec.model_validate({"corpus": corpus, "tokenizer": {"train": 300}} | keys)


def made(data: DataSpec, base: Path) -> tuple[Shards, Said]:
    said = Said()
    return prepare(data, cache=base.parent / "cache", base=base, progress=said), said


def all_tokens(tokens: Tokens) -> list[int]:
    return tokens.read(0, len(tokens)).tolist()


def test_the_tokens_are_the_texts(base: Path) -> None:
    shards, said = made(spec(validation=0.1), base)
    assert "tokenising pages" in said
    tokenizer = load_tokenizer(shards.tokenizer_path)
    found: dict[str, list[str]] = {}
    for split, tokens in (("train", shards.train(0)), ("validation", shards.validation(0))):
        ids = all_tokens(tokens)
        assert ids[-1] == shards.end_of_text
        texts: list[list[int]] = [[]]
        for token in ids[:-1]:
            if token == shards.end_of_text:
                texts.append([])
            else:
                texts[-1].append(token)
        found[split] = [tokenizer.decode(text) for text in texts]
    assert sorted(found["train"] + found["validation"]) == sorted(page(i) for i in range(40))
    assert found["train"]
    assert found["validation"]
    assert shards.num_train_tokens == len(shards.train(0))
    assert shards.num_validation_tokens == len(shards.validation(0))
    num_bytes = sum(map(len, found["validation"]))
    ratio = num_bytes / shards.num_validation_tokens
    assert shards.validation_bytes_per_token == ratio
    assert math.isclose(shards.bits_per_byte(math.log(2)), 1 / ratio)
    assert shards.vocab == 300


def test_a_second_time_they_come_from_the_cache(base: Path) -> None:
    first, _ = made(spec(), base)
    again, said = made(spec(), base)
    assert again == first
    assert "tokenising" not in said
    assert open_shards(first.folder) == first


def test_the_digest_is_of_the_content_only(base: Path, tmp_path: Path) -> None:
    first, _ = made(spec(), base)
    shutil.copytree(base, tmp_path / "elsewhere" / "base")
    second, said = made(spec(), tmp_path / "elsewhere" / "base")
    assert "tokenising pages" in said
    assert second.folder != first.folder
    assert second.digest == first.digest
    shown = json.dumps(json.loads((first.folder / MANIFEST).read_text())["content"])
    assert str(tmp_path) not in shown
    assert "mtime" not in shown


@pytest.mark.parametrize(
    "other",
    [
        {"validation": 0.2},
        {"tokenizer": {"train": 310}},
        {"corpus": "more.jsonl"},
        {"corpus": [{"corpus": "pages", "weight": 1.0}, {"corpus": "more.jsonl", "weight": 3.0}]},
    ],
)
def test_another_spec_has_another_digest(base: Path, other: dict[str, Any]) -> None:
    assert made(spec(), base)[0].digest != made(spec(**other), base)[0].digest


def test_a_changed_source_is_noticed(base: Path) -> None:
    first, _ = made(spec(), base)
    (base / "pages" / "07.txt").write_text(page(77))
    second, said = made(spec(), base)
    assert "made again: the source pages changed since they were made" in said
    assert second.digest != first.digest
    (base / "pages" / "40.txt").write_text(page(40))
    third, said = made(spec(), base)
    assert "made again: the source pages changed" in said
    assert third.digest not in (first.digest, second.digest)
    assert open_shards(first.folder) == first  # a run that uses the old ones keeps them


def test_a_touched_source_gives_the_same_digest(base: Path) -> None:
    first, _ = made(spec(), base)
    os.utime(base / "pages" / "07.txt", ns=(5, 5))
    second, said = made(spec(), base)
    assert "changed since" in said
    assert second == first


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # The middle of a manifest may be the time of a source, which is only a hint.
    data[0 if path.name == MANIFEST else len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [flip_a_byte, truncate, remove])
@pytest.mark.parametrize(
    "name", ["train-00-00000.bin", "validation-00-00000.bin", "tokenizer.json", MANIFEST]
)
def test_damaged_shards_are_made_again(base: Path, harm: Any, name: str) -> None:
    first, _ = made(spec(), base)
    tokens = all_tokens(first.train(0))
    harm(first.folder / name)
    again, said = made(spec(), base)
    assert "the token shards are made again: " in said
    assert "tokenising pages" in said
    assert again.digest == first.digest
    assert all_tokens(again.train(0)) == tokens
    _, said = made(spec(), base)
    assert "made again" not in said
    assert sorted(path.name for path in (base.parent / "cache" / "shards").iterdir()) == [
        again.folder.name
    ]


def test_a_whole_folder_that_is_gone_is_made_again(base: Path) -> None:
    first, _ = made(spec(), base)
    shutil.rmtree(first.folder)
    with pytest.raises(InputError, match="holds no finished token shards"):
        open_shards(first.folder)
    again, said = made(spec(), base)
    assert "made again: " in said
    assert again.digest == first.digest


def test_an_unfinished_preparation_is_removed(base: Path) -> None:
    first, _ = made(spec(), base)
    shelf = base.parent / "cache" / "shards"
    entry = next((base.parent / "cache" / "specs").iterdir())
    entry.unlink()
    _die_while_building(base)
    assert any(path.name.startswith("building-") for path in shelf.iterdir())
    again, said = made(spec(), base)
    assert "an unfinished preparation was found and is removed" in said
    assert again == first
    assert [path.name for path in shelf.iterdir()] == [first.folder.name]


def _die_while_building(base: Path) -> None:
    """Another process that is killed, without any clean-up, when it begins to write tokens."""
    process = multiprocessing.get_context("fork").Process(target=_prepare_and_die, args=(base,))
    process.start()
    process.join(60)
    assert process.exitcode == 9


def _prepare_and_die(base: Path) -> None:
    def die(message: str, _: float | None) -> None:
        if message.startswith("tokenising"):
            os._exit(9)

    prepare(spec(), cache=base.parent / "cache", base=base, progress=die)


def _prepare_and_tell(base: Path, start: Any, results: Any) -> None:
    start.wait()
    shards, said = made(spec(), base)
    results.put((shards.digest, all_tokens(shards.train(0)), "tokenising pages" in said))


def test_two_processes_at_once_make_the_same_shards(base: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=_prepare_and_tell, args=(base, start, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len({digest for digest, _, _ in found}) == 1
    assert found[0][1] == found[1][1] == found[2][1]
    assert sum(built for _, _, built in found) == 1  # the others waited, or came later
    assert len(list((base.parent / "cache" / "shards").iterdir())) == 1


def test_a_mixture_keeps_its_sources_apart(base: Path) -> None:
    corpus = [{"corpus": "pages", "weight": 3}, {"corpus": "more.jsonl", "weight": 1}]
    shards, _ = made(spec(corpus, validation=0.1), base)
    assert shards.num_sources == 2
    assert shards.weights == (3.0, 1.0)
    assert shards.source_names == ("pages", "more.jsonl")
    tokenizer = load_tokenizer(shards.tokenizer_path)
    assert "Page 10" in tokenizer.decode(all_tokens(shards.train(1)))
    assert "Page 1\n" not in tokenizer.decode(all_tokens(shards.train(1)))
    assert len(shards.train(0)) + len(shards.train(1)) == shards.num_train_tokens


def test_a_single_document_loses_its_tail_and_this_is_said(base: Path) -> None:
    shards, said = made(spec("pages/03.txt", validation=0.2), base)
    assert "pages/03.txt is one document: its last 20.0% is held out" in said
    assert shards.content["sources"][0]["split"] == {"rule": "tail", "fraction": 0.2}
    tokenizer = load_tokenizer(shards.tokenizer_path)
    whole = all_tokens(shards.train(0))[:-1] + all_tokens(shards.validation(0))[:-1]
    assert tokenizer.decode(whole) == page(3)


def test_nothing_is_held_out_if_so_asked(base: Path) -> None:
    shards, _ = made(spec(validation=0), base)
    assert shards.num_validation_tokens == 0
    assert len(shards.validation(0)) == 0
    assert shards.validation_bytes_per_token == 0.0
    assert math.isnan(shards.bits_per_byte(1.0))


def test_too_little_text_for_the_vocabulary_is_said(base: Path) -> None:
    shards, said = made(spec("pages/03.txt", tokenizer={"train": 5000}), base)
    assert shards.vocab < 5000
    assert f"a vocabulary of {shards.vocab:,} tokens only, not 5,000" in said


def test_a_given_tokenizer_is_used_and_its_change_noticed(base: Path) -> None:
    first, _ = made(spec(), base)
    shutil.copy(first.tokenizer_path, base / "tokenizer.json")
    given = spec(tokenizer={"path": "tokenizer.json"})
    shards, said = made(given, base)
    assert "training the tokenizer" not in said
    assert shards.digest == first.digest  # the same tokenizer, wherever it came from
    other, _ = made(spec(tokenizer={"train": 280}), base)
    shutil.copy(other.tokenizer_path, base / "tokenizer.json")
    again, said = made(given, base)
    assert "made again: the tokenizer changed" in said
    assert again.vocab == 280


def test_a_large_vocabulary_takes_wider_tokens(base: Path) -> None:
    first, _ = made(spec(), base)
    content = json.loads(first.tokenizer_path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 70_000, "content": "<x>"})
    content["model"]["vocab"]["<x>"] = 70_000
    (base / "wide.json").write_text(json.dumps(content))
    shards, _ = made(spec(tokenizer={"path": "wide.json"}), base)
    assert shards.vocab == 70_001
    assert shards.content["dtype"] == "uint32"
    assert all_tokens(shards.train(0)) == all_tokens(first.train(0))


def nothing_was_written(base: Path) -> bool:
    return not (base.parent / "cache").exists()


def test_bad_input_is_refused_and_nothing_is_written(base: Path) -> None:
    (base / "empty.txt").write_text(" \n")
    (base / "binary.txt").write_bytes(bytes(range(256)))
    (base / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    (base / "tokenizer.json").write_text("{}")
    cases = [
        (spec("empty.txt"), "the corpus is empty"),
        (spec("binary.txt"), "is it a binary file"),
        (spec("broken.jsonl"), "line 2 is not valid JSON"),
        (spec("absent.txt"), "neither a known corpus nor a file"),
        (spec(tokenizer={"path": "absent.json"}), "no such tokenizer file"),
        (spec(tokenizer={"path": "tokenizer.json"}), "is not a tokenizer.json"),
        (spec(tokenizer={"from": "nothing"}), "no tokenizer of this name"),
    ]
    for data, said in cases:
        with pytest.raises(InputError) as caught:
            made(data, base)
        assert said in str(caught.value)
        assert nothing_was_written(base)


def test_the_vocabulary_of_the_model_must_hold_the_tokenizer(base: Path) -> None:
    shards, _ = made(spec(), base)
    model = Model(layers=1, width=8, heads=2, ffn=8, context=8)
    assert matched_model(model, shards).vocab == 300
    assert matched_model(model.with_vocab(512), shards).vocab == 512
    with pytest.raises(InputError) as caught:
        matched_model(model.with_vocab(299), shards)
    assert "model.vocab = 299: the tokenizer has 300 tokens" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_a_run_error(base: Path) -> None:
    (base.parent / "cache").write_text("a file, not a folder")
    with pytest.raises(
        RunError, match=os.strerror(errno.EEXIST) + "|" + os.strerror(errno.ENOTDIR)
    ):
        made(spec(), base)


def test_a_newer_schema_is_refused(base: Path) -> None:
    shards, _ = made(spec(), base)
    path = shards.folder / MANIFEST
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(InputError, match="has schema 99; this Atoll reads up to 1"):
        open_shards(shards.folder)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_stream_goes_on_from_file_to_file(tmp_path: Path, dtype: str) -> None:
    values = np.arange(1000) * 65
    writer = TokenWriter(tmp_path, "t", dtype=dtype, file_bytes=130)
    for start in range(0, 1000, 7):
        writer.write(values[start : start + 7])
    writer.close()
    size = np.dtype(dtype).itemsize
    assert all(item["num_bytes"] <= 130 for item in writer.files)
    assert len(writer.files) == -(-1000 * size // (130 - 130 % size))
    tokens = Tokens(
        [(tmp_path / item["name"], item["num_bytes"] // size) for item in writer.files],
        dtype=dtype,
    )
    assert len(tokens) == 1000
    for start, stop in ((0, 1000), (0, 0), (64, 66), (31, 200), (999, 1000), (1000, 1000)):
        found = tokens.read(start, stop)
        assert found.dtype == np.int64
        assert found.tolist() == values[start:stop].tolist()
