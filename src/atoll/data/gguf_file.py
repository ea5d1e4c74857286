"""A GGUF file, opened by the package gguf: its tensors and its metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.errors import InputError


def open_gguf(path: Path) -> Any:
    """The package's reader. InputError if it is missing (with the pip line) or cannot read this."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(
            "reading a GGUF file needs the package gguf", file=path, fix="pip install gguf"
        ) from error
    if not path.is_file():
        raise InputError("no such file", file=path)
    try:
        return GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"is not a readable GGUF file: {error}",
            file=path,
            fix="It is another kind of file, or cut short: compare its size with the original.",
        ) from error


def fields_of(reader: Any, path: Path) -> Callable[[str], Any]:
    """From a metadata key to its value, None where the file lacks the key. It raises InputError."""

    def value(key: str) -> Any:
        field = reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, IndexError) as error:  # text that is no UTF-8 among them
            raise InputError(f"cannot be read: {error}", file=path, key=key) from None

    return value
