"""The two forms of an answer: a chat's and a completion's, whole or in events.

What it is: pieces and tokens into the shapes of protocol.py. What it is not: waiting for them.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atoll.serving import protocol as p
from atoll.serving.replies import End
from atoll.serving.stops import Piece

if TYPE_CHECKING:
    from pydantic import BaseModel

    from atoll.serving.request import Token
    from atoll.serving.text import Language

_NO_PIECE = Piece("")


class Form(ABC):
    """How one request is answered; ``created`` is in seconds since 1970."""

    prefix: str

    def __init__(
        self, language: Language, *, model: str, created: int, num_choices: int, logprobs: bool
    ) -> None:
        self._language, self._logprobs = language, logprobs
        self._model, self._created, self.num_choices = model, created, num_choices
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"

    def first(self) -> list[BaseModel]:
        """Events before any text."""
        return []

    @abstractmethod
    def event(self, index: int, item: Piece | End) -> BaseModel:
        """The event of a piece, or of the end, of choice ``index``."""

    @abstractmethod
    def usage_event(self, usage: p.Usage) -> BaseModel:
        """The last event, with no choice, if the usage was asked for."""

    @abstractmethod
    def whole(self, replies: Sequence[tuple[list[Piece], End]], usage: p.Usage) -> BaseModel:
        """The answer in one."""


class ChatForm(Form):
    """/v1/chat/completions."""

    prefix = "chatcmpl"

    def first(self) -> list[BaseModel]:
        """One event a choice that says who speaks."""
        return [
            self._chunk(index, p.Delta(role="assistant", content=""), None, None)
            for index in range(self.num_choices)
        ]

    def event(self, index: int, item: Piece | End) -> BaseModel:
        """See Form."""
        if isinstance(item, End):
            return self._chunk(index, p.Delta(), None, item.reason)
        return self._chunk(index, p.Delta(content=item.text), self._scores([item]), None)

    def usage_event(self, usage: p.Usage) -> BaseModel:
        """See Form."""
        return p.ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=[], usage=usage
        )

    def whole(self, replies: Sequence[tuple[list[Piece], End]], usage: p.Usage) -> BaseModel:
        """See Form."""
        choices = [
            p.ChatChoice(
                index=index,
                message=p.AnswerMessage(content="".join(piece.text for piece in pieces)),
                logprobs=self._scores(pieces),
                finish_reason=end.reason,
            )
            for index, (pieces, end) in enumerate(replies)
        ]
        return p.ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _chunk(
        self, index: int, delta: p.Delta, scores: p.ChatLogprobs | None, reason: p.Reason | None
    ) -> BaseModel:
        choice = p.ChatChunkChoice(index=index, delta=delta, logprobs=scores, finish_reason=reason)
        return p.ChatChunk(id=self._id, created=self._created, model=self._model, choices=[choice])

    def _scores(self, pieces: Sequence[Piece]) -> p.ChatLogprobs | None:
        if not self._logprobs:
            return None
        return p.ChatLogprobs(content=[self._score(t) for x in pieces for t, _ in x.tokens])

    def _score(self, token: Token) -> p.TokenLogprob:
        own = self._alternative(token.id, token.logprob or 0.0)
        top = [self._alternative(*pair) for pair in token.top]
        return p.TokenLogprob(**dict(own), top_logprobs=top)

    def _alternative(self, index: int, logprob: float) -> p.TopLogprob:
        text, raw = self._language.token(index)
        return p.TopLogprob(token=text, logprob=logprob, bytes=None if raw is None else list(raw))


class CompletionForm(Form):
    """/v1/completions."""

    prefix = "cmpl"

    def event(self, index: int, item: Piece | End) -> BaseModel:
        """See Form."""
        piece, reason = (_NO_PIECE, item.reason) if isinstance(item, End) else (item, None)
        return self._completion([self._choice(index, [piece], reason)], None)

    def usage_event(self, usage: p.Usage) -> BaseModel:
        """See Form."""
        return self._completion([], usage)

    def whole(self, replies: Sequence[tuple[list[Piece], End]], usage: p.Usage) -> BaseModel:
        """See Form."""
        choices = [
            self._choice(index, pieces, end.reason) for index, (pieces, end) in enumerate(replies)
        ]
        return self._completion(choices, usage)

    def _completion(self, choices: list[p.CompletionChoice], usage: p.Usage | None) -> BaseModel:
        return p.Completion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _choice(
        self, index: int, pieces: Sequence[Piece], reason: p.Reason | None
    ) -> p.CompletionChoice:
        return p.CompletionChoice(
            index=index,
            text="".join(piece.text for piece in pieces),
            logprobs=self._scores(pieces),
            finish_reason=reason,
        )

    def _scores(self, pieces: Sequence[Piece]) -> p.Logprobs | None:
        if not self._logprobs:
            return None
        pairs = [pair for piece in pieces for pair in piece.tokens]
        return p.Logprobs(
            tokens=[self._language.token(token.id)[0] for token, _ in pairs],
            token_logprobs=[token.logprob or 0.0 for token, _ in pairs],
            top_logprobs=[
                {self._language.token(index)[0]: logprob for index, logprob in token.top}
                for token, _ in pairs
            ],
            text_offset=[start for _, start in pairs],
        )
