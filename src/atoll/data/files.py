"""Reading a user's own text files as a stream of documents.

It is: `.txt` and `.md` (any UTF-8 text, in fact), `.jsonl` with a key "text", `.parquet` with a
column "text", and each of the first three as `.gz`. Everything is a generator: no file, and no long
document, is ever in memory as a whole. It is not: cleaning, filtering or deduplication; text passes
through unchanged. See `corpora.py` for the corpora that have names.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from atoll.errors import InputError

KNOWN_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
"""What a folder is searched for; each of them but `.parquet` may carry `.gz` behind it."""

DOCUMENT_CHARS = 64 * 1024
"""A long plain text is cut into documents of about this many characters, at blank lines."""

LONGEST_DOCUMENT_CHARS = 1024 * 1024
"""A record of a `.jsonl` or `.parquet` file that is longer is cut like a plain text."""

_BLOCK_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 256 << 20
_PARQUET_ROWS = 256


def kind_of(path: Path) -> str:
    """The suffix that decides how `path` is read, `.gz` left out."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def documents_of(path: Path) -> Iterator[str]:
    """The documents of one file, in order, unchanged; documents of white space only are left out.

    A file of an unknown suffix is read as plain text. InputError: not readable, not UTF-8 text, a
    broken line of `.jsonl` (file and line are named), no key or column "text".
    """
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            records = _parquet_records(path)
        elif kind == ".jsonl":
            records = _jsonl_records(path)
        else:
            records = cut_text(_decoded(path))
        for text in records:
            if text.strip():
                yield text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"the compressed file is damaged: {error}", file=path) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot be read: {reason}", file=path) from error


def cut_text(blocks: Iterable[str]) -> Iterator[str]:
    """Cuts a stream of text into documents; joined again they are the text.

    A cut is made at the first blank line after `DOCUMENT_CHARS`; where twice that many characters
    have none, at the last line end before; where there is none either, at exactly that length. It
    depends on the text only, never on the size of the blocks.
    """
    longest = 2 * DOCUMENT_CHARS
    buffer = ""
    for block in blocks:
        buffer += block
        start = 0
        while len(buffer) - start > longest:
            end = _cut_position(buffer, start)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    while len(buffer) > DOCUMENT_CHARS:
        end = _cut_position(buffer, 0)
        if end >= len(buffer):
            break
        yield buffer[:end]
        buffer = buffer[end:]
    if buffer:
        yield buffer


def _cut_position(text: str, start: int) -> int:
    """Where the document that begins at `start` ends, at most two lengths later."""
    limit = min(start + 2 * DOCUMENT_CHARS, len(text))
    search_from = start + DOCUMENT_CHARS - 1
    found = [
        position + len(blank)
        for blank in ("\n\n", "\n\r\n")
        if (position := text.find(blank, search_from, limit)) >= 0
    ]
    if found:
        return min(found)
    line_end = text.rfind("\n", search_from, limit)
    return line_end + 1 if line_end >= 0 else limit


def _cut_long(text: str) -> Iterator[str]:
    if len(text) <= LONGEST_DOCUMENT_CHARS:
        yield text
    else:
        yield from cut_text([text])


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def _decoded(path: Path) -> Iterator[str]:
    """Blocks of text of a plain file; a byte order mark of UTF-8 is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with _open(path) as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_text(path, position - pending + error.start) from error
            if "\0" in text:
                before = len(text[: text.index("\0")].encode("utf-8"))
                raise _not_text(path, position - pending + before)
            if position == 0 and text.startswith("\ufeff"):
                text = text[1:]
            if not block:
                if text:
                    yield text
                return
            position += len(block)
            yield text


def _not_text(path: Path, position: int) -> InputError:
    return InputError(
        f"is not UTF-8 text: the byte at {position:,} cannot be part of it; is it a binary file?",
        file=path,
        fix="Give .txt, .md, .jsonl or .parquet files; other encodings: iconv -f NAME -t UTF-8.",
    )


def _jsonl_records(path: Path) -> Iterator[str]:
    """The value of "text" of every line; lines of white space only are skipped."""
    with _open(path) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE_BYTES + 1):
            number += 1
            if len(line) > _LONGEST_LINE_BYTES:
                limit = _LONGEST_LINE_BYTES >> 20
                raise InputError(f"line {number} is longer than {limit} MiB", file=path)
            if not line.strip():
                continue
            yield from _cut_long(_text_of_line(path, number, line))


def _text_of_line(path: Path, number: int, line: bytes) -> str:
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"line {number} is not valid JSON: {error}",
            file=path,
            fix='Every line must be one object such as {"text": "..."}.',
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"line {number} is no JSON object but {type(record).__name__}",
            file=path,
            fix='Every line must be one object such as {"text": "..."}.',
        )
    if "text" not in record:
        keys = ", ".join(sorted(map(str, record))) or "none"
        raise InputError(
            f'line {number} has no key "text"; its keys: {keys}',
            file=path,
            fix='Rename the key that holds the text to "text".',
        )
    text = record["text"]
    if not isinstance(text, str):
        raise InputError(f'line {number}: "text" is no string but {type(text).__name__}', file=path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f'line {number}: "text" holds half of a surrogate pair at character {error.start}',
            file=path,
        ) from error
    return text


def _parquet_records(path: Path) -> Iterator[str]:
    """The values of the column "text"; nulls are skipped."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "reading .parquet needs the package pyarrow",
            file=path,
            fix="pip install pyarrow",
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise InputError(
                    f'has no column "text"; its columns: {", ".join(names)}',
                    file=path,
                    fix='Rename the column that holds the text to "text".',
                )
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=["text"]):
                for value in batch.column(0).to_pylist():
                    if value is None:
                        continue
                    if not isinstance(value, str):
                        raise InputError(
                            f'column "text" holds {type(value).__name__}, not strings', file=path
                        )
                    yield from _cut_long(value)
    except pyarrow.ArrowException as error:
        raise InputError(f"is not a readable Parquet file: {error}", file=path) from error
