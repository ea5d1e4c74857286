"""A user's own files as streams of documents, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.data.files import DOCUMENT_CHARS, LONGEST_DOCUMENT_CHARS, cut_text, documents_of
from atoll.errors import InputError


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(documents_of(path))
    message = str(caught.value)
    assert path.name in message
    return message


def paragraphs(count: int) -> str:
    return "\n\n".join(f"paragraph {i}\n" + "some words " * 40 for i in range(count))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.TXT", "a.rst", "plain"])
def test_a_short_text_file_is_one_document_unchanged(tmp_path: Path, name: str) -> None:
    text = "first line\r\n\r\n\u4f60\u597d \U0001f600\n"
    (tmp_path / name).write_bytes(text.encode())
    assert list(documents_of(tmp_path / name)) == [text]


def test_a_byte_order_mark_is_dropped_and_white_space_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "blank.txt").write_bytes(b" \n\n\t ")
    assert list(documents_of(tmp_path / "bom.txt")) == ["hello"]
    assert list(documents_of(tmp_path / "blank.txt")) == []


def test_a_long_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    text = paragraphs(1000)
    (tmp_path / "long.txt").write_text(text)
    found = list(documents_of(tmp_path / "long.txt"))
    assert "".join(found) == text
    assert len(found) == len(text) // (DOCUMENT_CHARS + 500) + 1
    assert all(piece.endswith("\n\n") for piece in found[:-1])
    assert all(DOCUMENT_CHARS <= len(piece) < DOCUMENT_CHARS + 500 for piece in found[:-1])


@given(
    pieces=st.lists(
        st.sampled_from(["a" * 30_000, "b" * 7_000, "\n", "\n\n", "\r\n\r\n", "c\n" * 900]),
        max_size=40,
    ),
    block=st.integers(900, 200_000),
)
def test_cuts_lose_nothing_and_do_not_depend_on_blocks(pieces: list[str], block: int) -> None:
    text = "".join(pieces)
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    found = list(cut_text(blocks))
    assert "".join(found) == text
    assert found == list(cut_text([text]))
    assert all(0 < len(piece) <= 2 * DOCUMENT_CHARS for piece in found)


def test_memory_does_not_grow_with_the_file() -> None:
    block = "0123456789" * 100_000

    def blocks() -> Iterator[str]:
        for _ in range(100):
            yield block

    tracemalloc.start()
    total = sum(len(piece) for piece in cut_text(blocks()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 100 * len(block)
    assert peak < 8 * len(block)


@pytest.mark.parametrize(
    ("data", "position"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 0),
        (b"text\0more", 4),
        ("\u4f60\u597d".encode() + b"\xff", 6),
        (b"a" * (1 << 20) + b"b" * 10 + b"\xfe", (1 << 20) + 10),
        (b"a" * ((1 << 20) - 1) + "\u4f60".encode() + b"\0", (1 << 20) + 2),
        (b"cut \xe4\xbd", 4),
        ("utf-16".encode("utf-16"), 0),
    ],
)
def test_a_binary_file_is_refused_with_the_place(
    tmp_path: Path, data: bytes, position: int
) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    assert f"the byte at {position:,} " in refused(tmp_path / "x.txt")


def test_jsonl_gives_the_text_of_each_line(tmp_path: Path) -> None:
    lines = [{"text": "one\ntwo"}, {"text": "\u4e09", "id": 3}, {"text": ""}]
    body = "\n\n".join(json.dumps(line) for line in lines)
    (tmp_path / "x.jsonl").write_text("\ufeff" + body, encoding="utf-8")
    assert list(documents_of(tmp_path / "x.jsonl")) == ["one\ntwo", "\u4e09"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "cut', "line 2 is not valid JSON"),
        ('{"body": "x", "id": 1}', 'line 2 has no key "text"; its keys: body, id'),
        ('["x"]', "line 2 is no JSON object but list"),
        ('{"text": 3}', 'line 2: "text" is no string but int'),
        ('{"text": "\\ud800"}', "line 2"),
        ("\0\0", "line 2 is not valid JSON"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    assert said in refused(tmp_path / "x.jsonl")


def test_a_line_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert "line 1 is not valid JSON" in refused(tmp_path / "x.jsonl")


def test_a_very_long_record_is_cut(tmp_path: Path) -> None:
    text = "word " * (LONGEST_DOCUMENT_CHARS // 4)
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}))
    found = list(documents_of(tmp_path / "x.jsonl"))
    assert "".join(found) == text
    assert max(map(len, found)) <= 2 * DOCUMENT_CHARS


def test_compressed_files_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.txt.gz", "wb") as file:
        file.write(b"hello")
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        file.write(b'{"text": "hello"}\n')
    assert list(documents_of(tmp_path / "x.txt.gz")) == ["hello"]
    assert list(documents_of(tmp_path / "x.jsonl.gz")) == ["hello"]


def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"hello " * 10_000)
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-20])
    (tmp_path / "not.txt.gz").write_bytes(b"hello")
    (tmp_path / "flip.txt.gz").write_bytes(whole[:30] + b"\xff\xff\xff" + whole[33:])
    for name in ("cut.txt.gz", "not.txt.gz", "flip.txt.gz"):
        assert "the compressed file is damaged" in refused(tmp_path / name)


def test_parquet_gives_the_column_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"document {i}" for i in range(700)]
    table = pyarrow.table({"id": list(range(701)), "text": [*texts, None]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=300)
    assert list(documents_of(tmp_path / "x.parquet")) == texts
    parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), tmp_path / "y.parquet")
    assert 'no column "text"; its columns: body, id' in refused(tmp_path / "y.parquet")
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "z.parquet")
    assert "not strings" in refused(tmp_path / "z.parquet")
    (tmp_path / "w.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert "not a readable Parquet file" in refused(tmp_path / "w.parquet")


def test_a_file_that_cannot_be_opened_is_an_input_error(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "absent.txt")
