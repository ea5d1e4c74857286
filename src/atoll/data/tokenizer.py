"""Tokenizers: byte-level BPE trained here, or a ready one; always as one tokenizer.json.

Training is deterministic: the same texts in the same order and the same version of `tokenizers`
give the same file. It is not: sampling from a model, or chat templates. Every tokenizer used for
training must have an end-of-text token, which separates documents.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll import facts
from atoll.data.corpora import package_file
from atoll.data.gguf_file import fields_of, open_gguf
from atoll.errors import InputError
from atoll.recipe import TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
"""The one special token of a tokenizer trained here; its id is 0."""

SMALLEST_VOCAB = 257
"""The 256 bytes and `END_OF_TEXT`."""

TRAINING_BYTES = 64 << 20
"""At most about this much text is looked at in training; which, decides the hash of each text."""

_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF, see the GGUF specification

_LETTERS_AND_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], *, vocab: int) -> Tokenizer:
    """Trains a byte-level BPE of at most `vocab` tokens; any text is encoded without loss.

    Fewer tokens result where the text has no more repeated pairs. InputError below
    `SMALLEST_VOCAB`.
    """
    if vocab < SMALLEST_VOCAB:
        raise InputError(
            f"a byte-level tokenizer has at least {SMALLEST_VOCAB} tokens",
            key="data.tokenizer.train",
            value=vocab,
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json and switches its truncation and padding off.

    Text that spells a special token is encoded as plain text, so that no document can forge the end
    of a document. InputError: missing or not a tokenizer.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError("no such tokenizer file", file=path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the bare class
        raise InputError(
            f"is not a tokenizer.json that the library tokenizers reads: {error}", file=path
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_file(spec: TokenizerSpec, *, base: Path) -> Path | None:
    """The file of a tokenizer that the recipe names by path or by `from`; None if it trains one.

    Relative paths start from `base`. InputError: missing file, unknown name, package not installed
    (with the pip line).
    """
    if spec.train is not None:
        return None
    if spec.path is not None:
        path = base / Path(spec.path).expanduser()
        if not path.is_file():
            raise InputError("no such tokenizer file", file=path, key="data.tokenizer.path")
        return path.absolute()
    assert spec.from_ is not None, "a TokenizerSpec has exactly one of train, path, from"
    known = facts.corpora()["tokenizer"]
    if spec.from_ not in known:
        raise InputError(
            "no tokenizer of this name is known",
            key="data.tokenizer.from",
            value=spec.from_,
            fix=f"Known: {', '.join(known)}; or {{ path = ... }} or {{ train = 4096 }}.",
        )
    return package_file("tokenizer", spec.from_)


def ready_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json or a GGUF file. InputError: see the two readers."""
    return tokenizer_from_gguf(path) if path.suffix == ".gguf" else load_tokenizer(path)


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """The id of the token that separates documents. InputError if the tokenizer has none."""
    names: list[str] = facts.corpora()["end_of_text"]["names"]
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    raise InputError(
        "the tokenizer has no end-of-text token",
        key="data.tokenizer",
        fix=f"Give one that has any of: {' '.join(names)}",
    )


def vocab_of(tokenizer: Tokenizer) -> int:
    """The smallest size of an embedding that has a row for every id: the largest id plus 1."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def tokenizer_from_gguf(path: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file: byte-level BPE ("gpt2") with a known way to split words.

    Keys: the GGUF specification, "tokenizer.ggml.*". InputError: another model of tokenizer, an
    unknown splitting rule, a file that is no GGUF, or the package gguf is missing.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    fields = fields_of(open_gguf(path), path)
    kind = fields("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InputError(
            f'holds a tokenizer of model "{kind}"; only byte-level BPE ("gpt2") is supported',
            file=path,
        )
    try:
        tokens = fields("tokenizer.ggml.tokens")
        vocab = {token: index for index, token in enumerate(tokens)}
        merges = [tuple(line.split(" ", 1)) for line in fields("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    except InputError:
        raise
    except Exception as error:  # the library has no narrower class
        raise InputError(f"holds a broken tokenizer: {error}", file=path) from error
    tokenizer.pre_tokenizer = _splitter(str(fields("tokenizer.ggml.pre") or "gpt-2"), path)
    tokenizer.decoder = decoders.ByteLevel()
    types = fields("tokenizer.ggml.token_type") or []
    pairs = list(zip(tokens, types, strict=False))
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, type_ in pairs
            if type_ == wanted
        ]
        if special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)
    return tokenizer


def _splitter(name: str, path: Path) -> Any:
    """How a text is cut into words before BPE, by the name that GGUF files use for it."""
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("gpt-2", "default"):
        return byte_level
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    if name == "qwen2":
        words = pre_tokenizers.Split(Regex(_LETTERS_AND_DIGITS), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([words, plain])
    raise InputError(
        f'its tokenizer splits words in the way "{name}", which is not supported',
        file=path,
        fix="Supported: gpt-2, smollm, qwen2.",
    )
