"""Grains: each sequence of the run once, for whoever asks; and texts too short for one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.data import Sampler, Shards, prepare
from atoll.errors import InputError
from atoll.recipe import DataSpec

CONTEXT = 16


def shards_of(folder: Path, corpus: Any, *, validation: float = 0.1) -> Shards:
    data = DataSpec.model_validate(
        {"corpus": corpus, "tokenizer": {"train": 257}, "validation": validation}
    )
    return prepare(data, cache=folder / "cache", base=folder, progress=lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sampler")
    for name, num_pages in (("a", 50), ("b", 20)):
        pages = (f"{name}{i} " + f"{i * i} {name}" * (20 + i) + "\n" for i in range(num_pages))
        lines = "".join(json.dumps({"text": page}) + "\n" for page in pages)
        (path / f"{name}.jsonl").write_text(lines)
    return path


@pytest.fixture(scope="module")
def shards(folder: Path) -> Shards:
    return shards_of(folder, "a.jsonl")


def sampler_of(shards: Shards, **keys: int) -> Sampler:
    settings = {"seed": 1, "context": CONTEXT, "sequences": 12, "grain": 3} | keys
    return Sampler(shards, **settings)


def test_a_grain_is_windows_of_the_shards(shards: Shards) -> None:
    sampler = sampler_of(shards)
    grain = sampler.grain(1, 0)
    assert grain.shape == (3, CONTEXT + 1)
    assert grain.dtype == np.int64
    tokens = shards.train(0).read(0, shards.num_train_tokens)
    windows = {
        tuple(tokens[start : start + CONTEXT + 1])
        for start in range(0, len(tokens) - CONTEXT, CONTEXT)
    }
    assert all(tuple(row) in windows for row in grain)


def test_one_pass_sees_every_window_once(shards: Shards) -> None:
    sampler = sampler_of(shards, sequences=1, grain=1)
    size = sampler.num_train_windows
    tokens = shards.train(0).read(0, shards.num_train_tokens)
    expected = sorted(tuple(tokens[i * CONTEXT : i * CONTEXT + CONTEXT + 1]) for i in range(size))
    assert len(tokens) - size * CONTEXT - 1 < CONTEXT  # nothing but an end is left over
    passes = [
        [tuple(sampler.grain(pass_ * size + i + 1, 0)[0]) for i in range(size)]
        for pass_ in range(2)
    ]
    assert sorted(passes[0]) == sorted(passes[1]) == expected
    assert passes[0] != passes[1]


@pytest.mark.parametrize("grain", [1, 2, 3, 4, 6, 12])
def test_grains_of_any_size_part_the_same_batch(shards: Shards, grain: int) -> None:
    whole = sampler_of(shards, grain=12)
    parts = sampler_of(shards, grain=grain)
    assert parts.num_grains == 12 // grain
    for step in (1, 2, 77):
        joined = np.concatenate([parts.grain(step, i) for i in range(parts.num_grains)])
        assert np.array_equal(joined, whole.grain(step, 0))


def test_a_grain_does_not_depend_on_what_was_asked_before(shards: Shards) -> None:
    fresh = sampler_of(shards).grain(5, 2)
    used = sampler_of(shards)
    for step in (9, 1, 5, 1000):
        for index in (3, 0):
            used.grain(step, index)
    assert np.array_equal(used.grain(5, 2), fresh)


def test_another_seed_gives_another_order(shards: Shards) -> None:
    assert not np.array_equal(
        sampler_of(shards).grain(1, 0), sampler_of(shards, seed=2).grain(1, 0)
    )


def test_validation_windows_are_each_there_once_and_do_not_depend_on_the_seed(
    shards: Shards,
) -> None:
    sampler = sampler_of(shards)
    size = sampler.num_validation_windows
    assert size == (shards.num_validation_tokens - 1) // CONTEXT
    found = sampler.validation(0, size)
    assert found.shape == (size, CONTEXT + 1)
    tokens = shards.validation(0).read(0, shards.num_validation_tokens)
    expected = [tuple(tokens[i * CONTEXT : i * CONTEXT + CONTEXT + 1]) for i in range(size)]
    assert sorted(map(tuple, found)) == sorted(expected)
    assert list(map(tuple, found)) != expected
    parts = np.concatenate([sampler.validation(0, 5), sampler.validation(5, size - 5)])
    assert np.array_equal(parts, found)
    assert np.array_equal(sampler_of(shards, seed=9).validation(0, size), found)


def test_a_mixture_draws_by_its_weights(folder: Path) -> None:
    corpus = [{"corpus": "a.jsonl", "weight": 0.25}, {"corpus": "b.jsonl", "weight": 0.75}]
    shards = shards_of(folder, corpus)
    sampler = sampler_of(shards, sequences=64, grain=64)
    windows: list[set[tuple[int, ...]]] = []
    for source in range(2):
        tokens = shards.train(source).read(0, len(shards.train(source)))
        count = (len(tokens) - 1) // CONTEXT
        windows.append(
            {tuple(tokens[i * CONTEXT : i * CONTEXT + CONTEXT + 1]) for i in range(count)}
        )
    only = [windows[0] - windows[1], windows[1] - windows[0]]
    rows = [tuple(row) for step in range(1, 17) for row in sampler.grain(step, 0)]
    assert sum(row in only[0] for row in rows) == 256
    assert sum(row in only[1] for row in rows) == 768
    assert sampler.num_validation_windows == sum(
        (len(shards.validation(source)) - 1) // CONTEXT for source in range(2)
    )


def test_a_corpus_shorter_than_one_sequence_is_refused(shards: Shards) -> None:
    size = shards.num_train_tokens
    with pytest.raises(InputError) as caught:
        sampler_of(shards, context=size)
    assert f"has {size:,} tokens, less than one sequence of {size + 1:,}" in str(caught.value)
    with pytest.raises(InputError, match=r"data.validation: the held-out text has"):
        sampler_of(shards, context=size - 1)


def test_without_held_out_text_there_are_no_validation_windows(folder: Path) -> None:
    shards = shards_of(folder, "a.jsonl", validation=0)
    sampler = sampler_of(shards, context=shards.num_train_tokens - 1)
    assert sampler.num_validation_windows == 0
    assert sampler.num_train_windows == 1


def test_a_source_too_rare_to_be_drawn_is_refused(folder: Path) -> None:
    corpus = [{"corpus": "a.jsonl", "weight": 1e-5}, {"corpus": "b.jsonl", "weight": 1}]
    with pytest.raises(InputError, match=r"(?s)data\.corpus\.0\.weight.*less than 1/1024"):
        sampler_of(shards_of(folder, corpus))


def test_the_data_package_never_imports_torch(shards: Shards) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from atoll.data import Sampler, open_shards\n"
        "shards = open_shards(Path(sys.argv[1]))\n"
        "sampler = Sampler(shards, seed=1, context=16, sequences=12, grain=3)\n"
        "print(sampler.grain(1, 0).tolist())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(shards.folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == sampler_of(shards).grain(1, 0).tolist()
