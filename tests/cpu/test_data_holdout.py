"""Held-out documents: chosen by the hash of the text, never too few, never all."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from atoll.data.holdout import WHOLE, Split, hashed, survey


def split_of(texts: list[str], fraction: float) -> tuple[Split, list[str], list[str]]:
    split = survey(hashed(texts), fraction=fraction)
    parts = [split.parts(text) for text in hashed(texts)]
    return split, [a for a, _ in parts if a], [b for _, b in parts if b]


documents = st.lists(st.text(min_size=1, max_size=50), min_size=2, max_size=60)


@given(texts=documents, fraction=st.floats(0.001, 0.499))
def test_some_are_held_out_and_some_are_not(texts: list[str], fraction: float) -> None:
    split, train, held = split_of(texts, fraction)
    if len(set(texts)) > 1:
        assert not split.tail
        assert train
        assert held
        assert not set(train) & set(held)
        assert sorted(train + held) == sorted(texts)


@given(texts=documents, fraction=st.floats(0, 0.499))
def test_the_order_of_documents_decides_nothing(texts: list[str], fraction: float) -> None:
    _, train, held = split_of(texts, fraction)
    _, train_reversed, held_reversed = split_of(texts[::-1], fraction)
    assert train_reversed == train[::-1]
    assert held_reversed == held[::-1]


def test_with_many_documents_the_limit_is_the_fraction_alone() -> None:
    texts = [f"document number {i}" for i in range(5000)]
    split, _, held = split_of(texts, 0.05)
    assert split.limit == int(WHOLE * 0.05) or abs(split.limit / WHOLE - 0.05) < 1e-15
    assert abs(len(held) / 5000 - 0.05) < 0.01
    _, _, of_more = split_of([*texts, *(f"new {i}" for i in range(500))], 0.05)
    assert set(held) <= set(of_more)  # new documents move no old one


def test_too_small_a_catch_is_raised_to_the_wanted_bytes() -> None:
    texts = [f"{i} " + "word " * 1000 for i in range(20)]
    split, _, held = split_of(texts, 0.01)
    by_hash = sorted(hashed(texts), key=lambda text: text.position)
    assert held == [by_hash[0].text]
    assert split.limit == by_hash[0].position + 1
    assert split.record()["rule"] == "hash"


def test_small_documents_are_added_up_until_enough_is_held_out() -> None:
    texts = [f"{i}" for i in range(30)] + ["long " * 2000 + str(i) for i in range(10)]
    _, _, held = split_of(texts, 0.02)
    held_bytes = sum(map(len, held))
    assert held_bytes >= 0.02 * sum(map(len, texts)) / 2


def test_nothing_is_held_out_at_zero() -> None:
    split, train, held = split_of(["a", "b", "c"], 0.0)
    assert (train, held) == (["a", "b", "c"], [])
    assert split.limit == 0
    _, train, held = split_of(["only"], 0.0)
    assert (train, held) == (["only"], [])


def test_a_single_document_loses_its_last_lines() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    split, train, held = split_of([text], 0.1)
    assert split.tail
    assert split.record() == {"rule": "tail", "fraction": 0.1}
    assert train[0] + held[0] == text
    assert train[0].endswith("\n")
    assert held[0].startswith("line ")
    assert abs(len(held[0]) / len(text) - 0.1) < 0.01


def test_a_single_document_without_lines_is_cut_exactly() -> None:
    _, train, held = split_of(["x" * 1000], 0.1)
    assert (len(train[0]), len(held[0])) == (900, 100)
    _, train, held = split_of(["x"], 0.1)
    assert (train, held) == (["x"], [])


def test_copies_of_one_document_are_one_document() -> None:
    split, train, held = split_of(["a\nb\nc\nd\n"] * 5, 0.25)
    assert split.tail
    assert split.num_documents == 5
    assert train == ["a\nb\nc\n"] * 5
    assert held == ["d\n"] * 5


def test_memory_does_not_grow_with_the_number_of_documents() -> None:
    tracemalloc.start()
    survey(hashed(str(i) for i in range(60_000)), fraction=0.01)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
