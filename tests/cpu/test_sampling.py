"""Generation: the cache changes nothing, a seed fixes the choice, characters stay whole."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from atoll.data.tokenizer import train_tokenizer
from atoll.errors import InputError
from atoll.model import Model
from atoll.modeling import initial
from atoll.modeling.decoder import Decoder
from atoll.modeling.sampling import TextStream, choose, generate, uniform


def lively(context: int = 48) -> Decoder:
    """A random model whose logits differ enough that a wrong cache would change a choice."""
    model = Model(layers=2, width=32, heads=4, kv_heads=2, ffn=48, context=context, vocab=60)
    decoder = Decoder(model)
    initial.fill(decoder, 4)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.mul_(12.0)
    return decoder


def greedy_without_cache(decoder: Decoder, ids: list[int], count: int) -> list[int]:
    seen = list(ids)
    with torch.no_grad():
        for _ in range(count):
            seen.append(int(decoder(torch.tensor([seen]))[0, -1].argmax()))
    return seen[len(ids) :]


def test_greedy_equals_the_plain_loop_without_a_cache() -> None:
    decoder = lively()
    expected = greedy_without_cache(decoder, [5, 9, 2], 40)
    assert list(generate(decoder, [5, 9, 2], max_tokens=40, temperature=0.0)) == expected
    assert len(set(expected)) > 3


def test_a_stop_id_ends_it_and_is_not_yielded() -> None:
    decoder = lively()
    free = list(generate(decoder, [5, 9, 2], max_tokens=30, temperature=0.0))
    stop = free[4]
    expected = free[: free.index(stop)]
    found = list(generate(decoder, [5, 9, 2], max_tokens=30, temperature=0.0, stop_ids={stop}))
    assert found == expected


def test_a_seed_fixes_the_text_and_another_changes_it() -> None:
    decoder = lively()
    texts = [
        list(generate(decoder, [1], max_tokens=30, temperature=3.0, seed=seed))
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_full_context_forgets_the_older_half_and_goes_on() -> None:
    decoder = lively(context=16)
    found = list(generate(decoder, [5, 9, 2], max_tokens=40, temperature=0.0))
    seen = [5, 9, 2]
    first = 0
    with torch.no_grad():
        for _ in range(40):
            if len(seen) - first > 16:
                first = len(seen) - 8
            seen.append(int(decoder(torch.tensor([seen[first:]]))[0, -1].argmax()))
    assert found == seen[3:]


def test_of_a_prompt_longer_than_the_context_the_end_is_read() -> None:
    decoder = lively(context=16)
    prompt = [int(x) for x in np.random.default_rng(0).integers(0, 60, 50)]
    long, short = (
        list(generate(decoder, ids, max_tokens=8, temperature=0.0))
        for ids in (prompt, prompt[-16:])
    )
    assert long == short
    assert len(list(generate(lively(context=2), prompt, max_tokens=9, temperature=0.0))) == 9


@pytest.mark.parametrize(
    ("ids", "changes", "words"),
    [
        ([], {}, "no tokens"),
        ([60], {}, "60 tokens"),
        ([-1], {}, "60 tokens"),
        ([1], {"temperature": -0.5}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"top_p": 1.5}, "top_p"),
        ([1], {"top_k": -1}, "top_k"),
        ([1], {"max_tokens": -1}, "max_tokens"),
    ],
)
def test_wrong_input_is_refused_before_the_first_token(
    ids: list[int], changes: dict[str, float], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        generate(lively(), ids, **{"max_tokens": 3, **changes})  # type: ignore[arg-type]


def test_damaged_weights_are_said() -> None:
    decoder = lively()
    with torch.no_grad():
        decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        next(generate(decoder, [1], max_tokens=1))


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.05, 0.25]))
    counts = Counter(choose(logits, 1.0, 4, 1.0, uniform(3, i)) for i in range(20_000))
    for token, probability in enumerate((0.1, 0.6, 0.05, 0.25)):
        assert counts[token] / 20_000 == pytest.approx(probability, abs=0.015)


def test_the_smallest_temperature_is_greedy() -> None:
    with np.errstate(all="raise"):
        assert choose(np.array([1.0, 3.0, 2.0]), 5e-324, 0, 1.0, 0.999) == 1


def test_top_k_top_p_and_temperature_leave_out_what_they_should() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.05, 0.25]))
    points = [(i + 0.5) / 1000 for i in range(1000)]

    def drawn(temperature: float, top_k: int, top_p: float) -> Counter[int]:
        return Counter(choose(logits, temperature, top_k, top_p, point) for point in points)

    assert set(drawn(1.0, 2, 1.0)) == {1, 3}
    assert set(drawn(1.0, 4, 0.59)) == {1}
    assert set(drawn(1.0, 4, 0.86)) == {0, 1, 3}
    assert set(drawn(0.0, 4, 1.0)) == {1}
    assert drawn(0.5, 4, 1.0)[1] == pytest.approx(
        1000 * 0.36 / (0.01 + 0.36 + 0.0025 + 0.0625), abs=2
    )
    assert choose(logits, 1.0, 4, 1.0, 1.0 - 2.0**-53) == 2
    assert choose(np.zeros(5), 1.0, 1, 1.0, 0.99) == 0


def test_uniform_numbers_are_pinned_and_even() -> None:
    assert [uniform(0, 0).hex(), uniform(2**70 + 5, 9).hex()] == [
        "0x1.c4415072f63b9p-1",
        "0x1.829591de71dd5p-1",
    ]
    many = [uniform(1, i) for i in range(4000)]
    assert 0.0 <= min(many) < 0.01 and 0.99 < max(many) < 1.0
    assert np.mean(many) == pytest.approx(0.5, abs=0.02)


TEXT = "话说天下大势,分久必合,合久必分。To be, or not — 🙂🙂 \u00e9t\u00e9! \ufffd 三国\n演义 ok"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Learnt from the Chinese part only: other characters fall into their bytes."""
    return train_tokenizer([TEXT[:10]] * 3, vocab=270)


def test_streamed_pieces_are_whole_characters_and_add_up(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.encode(TEXT).ids
    assert len(ids) > len(TEXT) + 20, "characters must be spread over tokens"
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == TEXT
    assert sum(piece.count("\ufffd") for piece in pieces) <= 1
    assert pieces.count("") > 10


def test_an_unfinished_character_appears_at_the_end_only(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("a\U0001f600").ids[:-1]
    assert "".join(stream.push(token) for token in ids) == "a"
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@given(st.lists(st.integers(1, 256), max_size=40))
def test_any_ids_at_all_stream_to_what_decoding_at_once_gives(ids: list[int]) -> None:
    tokenizer = _bytes_only()
    stream = TextStream(tokenizer)
    text = "".join(stream.push(token) for token in ids) + stream.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


_made: list[Tokenizer] = []


def _bytes_only() -> Tokenizer:
    if not _made:
        _made.append(train_tokenizer(["a"], vocab=257))
    return _made[0]
