"""Language: text to token ids and back, for one model: prompts, chats, single tokens.

What it is: the tokenizer twice (as plain text, and with special tokens read as such), the chat
template and what ends an answer. Text of a user that spells a special token stays text, so that no
message can forge a turn. What it is not: computation.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from atoll.data.tokenizer import end_of_text_id
from atoll.errors import InputError
from atoll.serving.stops import Writer
from atoll.serving.template import PLAIN_STOPS, Messages, Template, plain

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from atoll.modeling.loaded import Loaded


class Language:
    """How a model's text is written. Safe from several threads.

    ``num_tokens`` is the size V of the vocabulary that the model computes logits for.
    """

    def __init__(self, loaded: Loaded) -> None:
        """InputError if the tokenizer cannot be read, or nothing tells where an answer ends."""
        self._tokenizer = loaded.tokenizer()  # special tokens spelled in text are plain text
        self._with_special = loaded.tokenizer()
        self._with_special.encode_special_tokens = False
        self.stop_ids = frozenset(loaded.stop_ids or (end_of_text_id(self._tokenizer),))
        self.num_tokens = loaded.model.resolved_vocab
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {t.content: index for index, t in added.items() if t.special}
        self._added = {index: t.content for index, t in added.items()}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._forged = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._template = (
            Template(loaded.chat_template, loaded.template_tokens) if loaded.chat_template else None
        )
        self._bytes_of = _byte_alphabet() if _is_byte_level(self._tokenizer) else {}

    @property
    def chat_stops(self) -> tuple[str, ...]:
        """Texts that end an answer of a chat, beside ``stop_ids``."""
        return () if self._template else PLAIN_STOPS

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that reads all text as plain text."""
        return self._tokenizer

    def close(self) -> None:
        """End the process that fills in the template, if there is one."""
        if self._template is not None:
            self._template.close()

    def prompt(self, text: str) -> list[int]:
        """The ids of a text that is to be continued; of an empty one, the beginning of a text."""
        ids = _ids(self._tokenizer, text, add_special_tokens=True)
        return ids or [min(self.stop_ids)]

    def chat(self, messages: Messages) -> list[int]:
        """The ids of a chat with the beginning of the next answer.

        InputError and TemplateFailed as Template.render.
        """
        if self._template is None:
            return self.prompt(plain(messages))
        # What spells a special token is kept from the template and from the tokenizer's reading
        # of special tokens, and put back as plain text.
        mark = f"\ue000{secrets.token_hex(8)}:"
        kept: list[str] = []

        def keep(found: re.Match[str]) -> str:
            kept.append(found[0])
            return f"{mark}{len(kept) - 1}\ue001"

        hidden = [{**m, "content": self._forged.sub(keep, m["content"])} for m in messages]
        text = self._template.render(hidden)
        ids: list[int] = []
        for number, part in enumerate(re.split(f"{mark}([0-9]+)\ue001", text)):
            if number % 2 == 1:
                ids += _ids(self._tokenizer, kept[int(part)], add_special_tokens=False)
            else:
                ids += _ids(self._with_special, part, add_special_tokens=False)
        return ids or [min(self.stop_ids)]

    def check_ids(self, ids: Sequence[int]) -> None:
        """InputError for an id outside the vocabulary."""
        outside = next((i for i in ids if not 0 <= i < self.num_tokens), None)
        if outside is not None:
            raise InputError(f"token {outside} is none of the model's {self.num_tokens} tokens")

    def writer(self, stops: tuple[str, ...] = ()) -> Writer:
        """What turns the tokens of one answer into text."""
        from atoll.modeling.sampling import TextStream

        return Writer(TextStream(self._tokenizer), stops)

    def token(self, index: int) -> tuple[str, bytes | None]:
        """A token's own text, and its bytes where the tokenizer tells them.

        Bytes that are no text are spelled out, as in "bytes:\\xe4\\xbd".
        """
        if index in self._added:
            return self._added[index], self._added[index].encode()
        spelled = self._tokenizer.id_to_token(index)
        if spelled is None:  # the model has more rows than the tokenizer has tokens
            return "", b""
        if not self._bytes_of:
            return self._tokenizer.decode([index], skip_special_tokens=False), None
        raw = bytes(self._bytes_of[character] for character in spelled)
        try:
            return raw.decode(), raw
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw


def _ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of a text. By the call for many texts: the one for a single text keeps the
    interpreter's lock, and 4 MiB of text would stop every other answer for seconds."""
    (found,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = found.ids
    return ids


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    return type(tokenizer.decoder).__name__ == "ByteLevel"


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The letter that a byte-level tokenizer writes for each byte (GPT-2's encoder.py): printable
    bytes stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}
