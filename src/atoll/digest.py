"""Digests: one canonical way to write a value, one hash.

Digests name things (a recipe, a file, a kind); they are no protection against an attacker who may
write to the same folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

_BLOCK = 1 << 20


def canonical_json(obj: object) -> bytes:
    """`obj` as UTF-8 JSON with sorted keys and no spaces; the same value, the same bytes.

    Takes what JSON holds (dict with str keys, list, tuple, str, int, float, bool, None). NaN and
    infinity are a ValueError, anything else a TypeError.
    """
    text = json.dumps(
        obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_of(obj: object) -> str:
    """The digest of a value: SHA-256 of its canonical JSON, 64 hex digits."""
    return sha256_hex(canonical_json(obj))


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file, read in blocks; `progress` gets the bytes of each. OSError as is."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
            if progress is not None:
                progress(len(block))
    return state.hexdigest()
