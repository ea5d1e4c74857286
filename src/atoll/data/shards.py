"""From a recipe's [data] to finished token shards: `prepare`, once, then from the cache.

The cache folder:

    specs/KEY.json        which shards belong to this [data], and what its sources looked like
    shards/DIGEST/        finished shards (`storage.py`), named by their content, never changed
    shards/building-*     an unfinished one; removed by the next process that needs the same
    locks/KEY             held while one process builds

Shards that are half-written, damaged (every byte is checked) or older than their sources are found
and made again, which `progress` is told. It is not: cleaning of text. Next: `sampler.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll.data.corpora import Source, locate
from atoll.data.holdout import WHOLE, Split, Text, hashed, survey
from atoll.data.storage import (
    SPLITS,
    TOKENIZER,
    Shards,
    TokenWriter,
    damage_of,
    open_shards,
    sync_and_close,
    write_manifest,
)
from atoll.data.tokenizer import (
    TRAINING_BYTES,
    end_of_text_id,
    load_tokenizer,
    ready_tokenizer,
    tokenizer_file,
    train_tokenizer,
    vocab_of,
)
from atoll.digest import digest_of, file_sha256
from atoll.errors import InputError, RunError
from atoll.model import Model
from atoll.recipe import DataSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Shards", "matched_model", "open_shards", "prepare"]

Progress = Callable[[str, float | None], None]

FORMAT = 1
"""Raised whenever the same [data] would give other tokens than before."""

_BATCH_CHARS = 1 << 20
_SECONDS_BETWEEN_REPORTS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """All that was found for a [data]: `key` names the request, `identity` the state it is in."""

    data: DataSpec
    tokenizer_file: Path | None
    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    key: str
    identity: dict[str, str]


def prepare(data: DataSpec, *, cache: Path, base: Path, progress: Progress) -> Shards:
    """Token shards for `data`: from `cache` if they are there, sound and fresh, else made now.

    Relative paths start from `base` (the folder of the recipe). `progress(what, fraction)` hears of
    everything that takes time and of everything that is done again, with the reason. Several
    processes may prepare at once; one builds, the others wait and use it. Deterministic: the same
    texts, the same `data` and the same version of `tokenizers` give the same digest anywhere.
    InputError (nothing is left behind): anything wrong with the corpus or tokenizer. RunError: the
    cache cannot be written.
    """
    tell = _throttled(progress)
    request = _find(data, base)
    found, reason = _cached(request, cache, tell)
    if found is not None:
        return found
    if reason:
        tell(f"the token shards are made again: {reason}", None)
    splits = [_survey(source, data.validation, tell) for source in request.sources]
    ready = None
    if request.tokenizer_file is not None:
        tell(f"reading the tokenizer in {request.tokenizer_file.name}", None)
        ready = ready_tokenizer(request.tokenizer_file)
        end_of_text_id(ready)
    try:
        with _locked(cache / "locks" / request.key, tell):
            found, _ = _cached(request, cache, tell)
            if found is None:
                found = _build(request, splits, ready, cache, tell)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"the token shards cannot be written below {cache}: {reason}") from error
    tell(f"token shards ready: {found.summary()}", 1.0)
    return found


def matched_model(model: Model, shards: Shards) -> Model:
    """`model` with a vocabulary: the recipe's own if it gives one, else that of the tokenizer.

    InputError if the recipe's is smaller than the tokenizer's. A larger one is padding, and kept.
    """
    if model.vocab is None:
        return model.with_vocab(shards.vocab)
    if model.vocab < shards.vocab:
        raise InputError(
            f"the tokenizer has {shards.vocab:,} tokens",
            key="model.vocab",
            value=model.vocab,
            fix=f"Leave model.vocab out, or give at least {shards.vocab}.",
        )
    return model


def _find(data: DataSpec, base: Path) -> _Input:
    """Locates all sources and takes down what they look like."""
    import tokenizers

    if isinstance(data.corpus, str):
        shares = [(data.corpus, 1.0)]
    else:
        shares = [(share.corpus, float(share.weight)) for share in data.corpus]
    sources = tuple(locate(corpus, base=base) for corpus, _ in shares)
    path = tokenizer_file(data.tokenizer, base=base)
    places = [source.place for source in sources]
    wanted = data.model_dump(mode="json", by_alias=True)
    key = digest_of({"format": FORMAT, "data": wanted, "places": places, "tokenizer": str(path)})
    identity = {f"the source {source.name}": digest_of(source.record()) for source in sources} | {
        "the version of tokenizers": tokenizers.__version__
    }
    if path is not None:
        state = path.stat()
        identity["the tokenizer"] = f"{state.st_size}:{state.st_mtime_ns}"
    return _Input(
        data=data,
        tokenizer_file=path,
        sources=sources,
        weights=tuple(weight for _, weight in shares),
        key=key,
        identity=identity,
    )


def _cached(request: _Input, cache: Path, tell: Progress) -> tuple[Shards | None, str]:
    """Sound and fresh shards, or None and why those that are there cannot be used."""
    try:
        entry = json.loads((cache / "specs" / f"{request.key}.json").read_text(encoding="utf-8"))
        folder = cache / "shards" / str(entry["folder"])
        identity = entry["identity"]
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError):
        return None, "their entry in the cache cannot be read"
    for what, state in request.identity.items():
        if identity.get(what) != state:
            return None, f"{what} changed since they were made"
    damage = damage_of(folder, tell)
    if damage is not None:
        return None, damage
    return open_shards(folder), ""


def _survey(source: Source, fraction: float, tell: Progress) -> Split:
    """The first pass: refuses an empty corpus, fixes the split."""
    what = f"reading {source.name}"
    tell(what, None)
    split = survey(
        _reported(hashed(source.documents()), what, source.num_bytes, tell), fraction=fraction
    )
    if split.num_documents == 0:
        raise InputError(
            "the corpus is empty: it holds no text", key="data.corpus", value=source.name
        )
    if split.tail:
        tell(f"{source.name} is one document: its last {fraction:.1%} is held out", None)
    return split


def _reported(texts: Iterator[Text], what: str, num_bytes: int, tell: Progress) -> Iterator[Text]:
    """The same texts; tells how far they are of about `num_bytes`."""
    done = 0
    for text in texts:
        yield text
        done += text.num_bytes
        # Compressed files hold more text than bytes: no fraction is better than a wrong one.
        tell(what, done / num_bytes if done <= num_bytes else None)


def _build(
    request: _Input, splits: list[Split], ready: Tokenizer | None, cache: Path, tell: Progress
) -> Shards:
    """Makes shards in a temporary folder and moves them into place; the lock of the key is held."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    prefix = f"building-{request.key[:16]}-{host}-"
    shelf = cache / "shards"
    shelf.mkdir(parents=True, exist_ok=True)
    for old in shelf.glob(f"{prefix}*"):
        tell("an unfinished preparation was found and is removed", None)
        shutil.rmtree(old, ignore_errors=True)
    folder = shelf / f"{prefix}{os.getpid()}"
    folder.mkdir()
    try:
        tokenizer = ready or _trained(request, splits, tell)
        tokenizer.save(str(folder / TOKENIZER), pretty=False)
        # Read again, so that tokens are made by exactly what the file says.
        content = _content(request, splits, load_tokenizer(folder / TOKENIZER), folder, tell)
        digest = write_manifest(
            folder,
            content,
            sources=[source.record() for source in request.sources],
            made_with={
                "python": platform.python_version(),
                "tokenizers": request.identity["the version of tokenizers"],
            },
        )
        _publish(folder, shelf / digest[:32], tell)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _write_entry(cache / "specs" / f"{request.key}.json", digest[:32], request.identity)
    return open_shards(shelf / digest[:32])


def _trained(request: _Input, splits: list[Split], tell: Progress) -> Tokenizer:
    """A tokenizer trained on the training text, at most `TRAINING_BYTES` of it.

    Each source may give its share of the mixture; which documents of a larger one are taken,
    decides their hash.
    """
    assert request.data.tokenizer.train is not None
    wanted = request.data.tokenizer.train
    everything = sum(request.weights)

    def sample() -> Iterator[str]:
        for source, split, weight in zip(request.sources, splits, request.weights, strict=True):
            budget = int(TRAINING_BYTES * (weight / everything))
            limit = WHOLE if split.num_bytes <= budget else WHOLE * budget // split.num_bytes
            texts = _reported(
                hashed(source.documents()), "training the tokenizer", split.num_bytes, tell
            )
            for text in texts:
                part, _ = split.parts(text)
                if part and text.second_position < limit:
                    yield part
        tell("learning the merges of the tokenizer", None)

    tell("training the tokenizer", None)
    tokenizer = train_tokenizer(sample(), vocab=wanted)
    have = vocab_of(tokenizer)
    if have < wanted:
        tell(f"the text gives a vocabulary of {have:,} tokens only, not {wanted:,}", None)
    return tokenizer


def _content(
    request: _Input, splits: list[Split], tokenizer: Tokenizer, folder: Path, tell: Progress
) -> dict[str, Any]:
    """Writes all tokens; returns the content part of the manifest."""
    vocab = vocab_of(tokenizer)
    content: dict[str, Any] = {
        "format": FORMAT,
        "dtype": "uint16" if vocab <= 1 << 16 else "uint32",
        "vocab": vocab,
        "end_of_text": end_of_text_id(tokenizer),
        "tokenizer_sha256": file_sha256(folder / TOKENIZER),
        "sources": [],
    }
    for index, (source, split) in enumerate(zip(request.sources, splits, strict=True)):
        entry = {
            "content_sha256": split.sha256,
            "weight": request.weights[index],
            "num_documents": split.num_documents,
            "num_bytes": split.num_bytes,
            "split": split.record(),
        }
        entry |= _write_tokens(source, split, tokenizer, content, folder, index, tell)
        content["sources"].append(entry)
    return content


def _write_tokens(
    source: Source,
    split: Split,
    tokenizer: Tokenizer,
    content: dict[str, Any],
    folder: Path,
    index: int,
    tell: Progress,
) -> dict[str, Any]:
    """Encodes one source into the files of both splits; a document is followed by end-of-text."""
    dtype, end = content["dtype"], content["end_of_text"]
    writers = {name: TokenWriter(folder, f"{name}-{index:02d}", dtype=dtype) for name in SPLITS}
    totals = {name: {"num_documents": 0, "num_bytes": 0, "num_tokens": 0} for name in SPLITS}
    everything = hashlib.sha256()
    batch: list[tuple[str, str]] = []
    batch_chars = 0

    def flush() -> None:
        encoded = tokenizer.encode_batch_fast([part for _, part in batch], add_special_tokens=False)
        for (name, part), encoding in zip(batch, encoded, strict=True):
            tokens = np.array([*encoding.ids, end], dtype=dtype)
            writers[name].write(tokens)
            totals[name]["num_documents"] += 1
            totals[name]["num_bytes"] += len(part.encode("utf-8"))
            totals[name]["num_tokens"] += len(tokens)
        batch.clear()

    texts = _reported(
        hashed(source.documents()), f"tokenising {source.name}", split.num_bytes, tell
    )
    for text in texts:
        everything.update(text.sha256)
        batch += [
            (name, part) for name, part in zip(SPLITS, split.parts(text), strict=True) if part
        ]
        batch_chars += len(text.text)
        if batch_chars >= _BATCH_CHARS:
            flush()
            batch_chars = 0
    flush()
    for writer in writers.values():
        writer.close()
    if everything.hexdigest() != split.sha256:
        raise InputError(
            "the corpus changed while it was being read", key="data.corpus", value=source.name
        )
    return {name: totals[name] | {"files": writers[name].files} for name in SPLITS}


def _publish(folder: Path, place: Path, tell: Progress) -> None:
    """Moves finished shards to `place`. Sound ones that are there already win; damaged ones go."""
    for attempt in range(8):
        try:
            folder.rename(place)
            return
        except OSError:
            if not place.exists():
                raise
        if damage_of(place, tell) is None:
            return
        discarded = folder.with_name(f"{folder.name}-discarded-{attempt}")
        with contextlib.suppress(FileNotFoundError):
            place.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
    raise RunError(f"the token shards in {place} are damaged and cannot be replaced")


def _write_entry(path: Path, folder: str, identity: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    file = temporary.open("w", encoding="utf-8")
    json.dump({"schema": 1, "folder": folder, "identity": identity}, file)
    sync_and_close(file)
    temporary.replace(path)


@contextlib.contextmanager
def _locked(path: Path, tell: Progress) -> Iterator[None]:
    """Holds the lock `path` of this machine; it is free again when its process ends, however."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("another process is making the same token shards: waiting for it", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _throttled(progress: Progress) -> Progress:
    """Passes on every new message, and the same one only a few times a second."""
    last_message, last_time = "", 0.0

    def tell(message: str, fraction: float | None) -> None:
        nonlocal last_message, last_time
        now = time.monotonic()
        if message != last_message or now - last_time >= _SECONDS_BETWEEN_REPORTS:
            last_message, last_time = message, now
            progress(message, fraction)

    return tell
