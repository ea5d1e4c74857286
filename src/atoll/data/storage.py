"""Token shards on disk: raw little-endian integers, and one manifest that is written last.

A folder of shards:

    manifest.json          schema, digest, content (all that the digest covers), sources, made_with
    tokenizer.json         the tokenizer that made the tokens
    train-00-00000.bin     training tokens of source 0, then -00001 ...; at most 256 MiB each
    validation-00-00000.bin

The digest covers contents only, no path and no time: the same text, tokenizer and split give the
same digest on any machine. This module reads and writes the format; `shards.py` fills it.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.digest import digest_of, file_sha256
from atoll.errors import InputError

SCHEMA = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
MAX_FILE_BYTES = 256 << 20
SPLITS = ("train", "validation")


class Tokens:
    """A stream of tokens over one or more memory-mapped files; nothing is read until asked for."""

    def __init__(self, files: list[tuple[Path, int]], *, dtype: str) -> None:
        """`files`: each path with its number of tokens, in order."""
        self._paths = [path for path, _ in files]
        self._ends = list(accumulate(count for _, count in files))
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._maps: list[NDArray[Any] | None] = [None] * len(files)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """A copy of tokens [start, stop), also across files."""
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        out = np.empty(stop - start, dtype=np.int64)
        done = 0
        index = bisect.bisect_right(self._ends, start)
        while done < len(out):
            file_start = self._ends[index - 1] if index else 0
            piece = self._map(index)[start + done - file_start : stop - file_start]
            out[done : done + len(piece)] = piece
            done += len(piece)
            index += 1
        return out

    def _map(self, index: int) -> NDArray[Any]:
        found = self._maps[index]
        if found is None:
            found = np.memmap(self._paths[index], dtype=self._dtype, mode="r")
            self._maps[index] = found
        return found


class TokenWriter:
    """Writes one stream of tokens into files of at most `file_bytes`, hashing on the way."""

    def __init__(
        self, folder: Path, stem: str, *, dtype: str, file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._folder = folder
        self._stem = stem
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file_bytes = file_bytes - file_bytes % self._dtype.itemsize
        self._open: Any = None
        self._hash = hashlib.sha256()
        self._filled = 0
        self.files: list[dict[str, Any]] = []

    def write(self, tokens: NDArray[Any]) -> None:
        """Appends tokens; values must fit the dtype. OSError as it comes."""
        data = memoryview(tokens.astype(self._dtype, copy=False).tobytes())
        while len(data):
            if self._open is None:
                name = f"{self._stem}-{len(self.files):05d}.bin"
                self._open = (self._folder / name).open("wb")
            piece = data[: self._file_bytes - self._filled]
            self._open.write(piece)
            self._hash.update(piece)
            self._filled += len(piece)
            data = data[len(piece) :]
            if self._filled == self._file_bytes:
                self.close()

    def close(self) -> None:
        """Ends the current file on the disk (synced) and enters it in `files`."""
        if self._open is None:
            return
        name = Path(self._open.name).name
        sync_and_close(self._open)
        self.files.append(
            {"name": name, "num_bytes": self._filled, "sha256": self._hash.hexdigest()}
        )
        self._open, self._hash, self._filled = None, hashlib.sha256(), 0


def sync_and_close(file: Any) -> None:
    """Flushes a file that was opened for writing down to the disk, then closes it."""
    try:
        file.flush()
        os.fsync(file.fileno())
    finally:
        file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Finished shards: what the sampler, the trainer and the exporter need to know of the data.

    `content` is the part of the manifest that `digest` covers; `source_names` are for messages.
    """

    folder: Path
    digest: str
    content: dict[str, Any] = field(repr=False)
    source_names: tuple[str, ...]

    @property
    def vocab(self) -> int:
        """Rows that an embedding needs: the largest token id plus 1."""
        return int(self.content["vocab"])

    @property
    def end_of_text(self) -> int:
        """The id of the token behind every document."""
        return int(self.content["end_of_text"])

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json that made these tokens."""
        return self.folder / TOKENIZER

    @property
    def num_sources(self) -> int:
        """Corpora in the mixture; 1 if it is none."""
        return len(self.content["sources"])

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each source in the mixture, as the recipe gives it."""
        return tuple(float(source["weight"]) for source in self.content["sources"])

    @property
    def num_train_tokens(self) -> int:
        """Tokens for training over all sources, end-of-text tokens included."""
        return self._total("train", "num_tokens")

    @property
    def num_validation_tokens(self) -> int:
        """Held-out tokens over all sources, end-of-text tokens included."""
        return self._total("validation", "num_tokens")

    @property
    def validation_bytes_per_token(self) -> float:
        """UTF-8 bytes of held-out text per token of it; 0.0 if nothing is held out."""
        tokens = self.num_validation_tokens
        return self._total("validation", "num_bytes") / tokens if tokens else 0.0

    def bits_per_byte(self, loss: float) -> float:
        """Mean loss in nats per held-out token -> bits per byte of held-out text (or NaN)."""
        ratio = self.validation_bytes_per_token
        return loss / (math.log(2.0) * ratio) if ratio else math.nan

    def train(self, source: int) -> Tokens:
        """The training tokens of a source, memory-mapped."""
        return self._tokens(source, "train")

    def validation(self, source: int) -> Tokens:
        """The held-out tokens of a source, memory-mapped."""
        return self._tokens(source, "validation")

    def summary(self) -> str:
        """One line for a person: documents and tokens of both splits, vocabulary, digest."""
        parts = (
            f"{self._total(split, 'num_documents'):,} documents "
            f"({self._total(split, 'num_tokens'):,} tokens) for {split}"
            for split in SPLITS
        )
        return f"{', '.join(parts)}; vocabulary {self.vocab:,}; digest {self.digest[:12]}"

    def _total(self, split: str, key: str) -> int:
        return sum(int(source[split][key]) for source in self.content["sources"])

    def _tokens(self, source: int, split: str) -> Tokens:
        dtype = self.content["dtype"]
        size = np.dtype(dtype).itemsize
        files = self.content["sources"][source][split]["files"]
        listed = [(self.folder / item["name"], item["num_bytes"] // size) for item in files]
        return Tokens(listed, dtype=dtype)


def write_manifest(
    folder: Path, content: dict[str, Any], *, sources: list[dict[str, Any]], made_with: Any
) -> str:
    """Writes and syncs the manifest, which ends a folder of shards; returns the digest."""
    digest = digest_of(content)
    manifest = {
        "schema": SCHEMA,
        "digest": digest,
        "content": content,
        "sources": sources,
        "made_with": made_with,
    }
    file = (folder / MANIFEST).open("w", encoding="utf-8")
    json.dump(manifest, file, ensure_ascii=False, indent=1)
    sync_and_close(file)
    return digest


def open_shards(folder: Path) -> Shards:
    """Opens finished shards; checks the manifest and all sizes, not the bytes (see `damage_of`).

    InputError: no shards there, half-written, a wrong size, a newer schema.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("holds no finished token shards", file=folder) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(f"has schema {schema}; this Atoll reads up to {SCHEMA}", file=path)
    try:
        content, digest = manifest["content"], manifest["digest"]
        names = tuple(str(source["name"]) for source in manifest["sources"])
        if digest_of(content) != digest or len(names) != len(content["sources"]):
            raise InputError("does not fit its own digest", file=path)
        for name, num_bytes, _ in _listed_files(content):
            if num_bytes is not None and (folder / name).stat().st_size != num_bytes:
                raise InputError(f"the shard {name} has another size than written", file=folder)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is damaged: {error!r}", file=path) from error
    except OSError as error:
        raise InputError(f"a shard cannot be read: {error}", file=folder) from error
    return Shards(folder=folder, digest=digest, content=content, source_names=names)


def damage_of(folder: Path, progress: Callable[[str, float | None], None]) -> str | None:
    """Reads every byte of the shards in `folder`: what is wrong with them, or None."""
    try:
        shards = open_shards(folder)
    except InputError as error:
        return str(error)
    listed = _listed_files(shards.content)
    total = sum(num_bytes or 0 for _, num_bytes, _ in listed) or 1
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("checking token shards", min(1.0, done / total))

    for name, _, sha256 in listed:
        try:
            if file_sha256(folder / name, count) != sha256:
                return f"the file {name} is not what was written (another checksum)"
        except OSError as error:
            return f"the file {name} cannot be read: {error}"
    return None


def _listed_files(content: dict[str, Any]) -> list[tuple[str, int | None, str]]:
    """Name, size if recorded, and checksum of every file but the manifest."""
    files: list[tuple[str, int | None, str]] = [(TOKENIZER, None, content["tokenizer_sha256"])]
    for source in content["sources"]:
        for split in SPLITS:
            files += [(f["name"], f["num_bytes"], f["sha256"]) for f in source[split]["files"]]
    return files
