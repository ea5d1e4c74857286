"""Text out of token ids, as it becomes certain: whole characters, and never a stop text.

What it is: the detokenizer of modeling.sampling with stop texts on top, and each token kept with
the place where its text begins. What it is not: stop ids, which the engine sees to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.modeling.sampling import TextStream
    from atoll.serving.request import Token


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that has become certain, and (token, where its text begins in the answer) of all tokens
    that begin in it, characters counted."""

    text: str
    tokens: tuple[tuple[Token, int], ...] = ()


class Writer:
    """Turns the tokens of one answer into pieces. ``stopped`` says that a stop text was met:
    what it was and what followed is not handed out."""

    def __init__(self, stream: TextStream, stops: tuple[str, ...] = ()) -> None:
        self._stream, self._stops = stream, stops
        self._held = ""  # text that may be the beginning of a stop text
        self._num_out = 0
        self._tokens: list[tuple[Token, int]] = []  # whose text is not out yet
        self.stopped = False

    def push(self, token: Token) -> Piece:
        """What has become certain with this token; often empty."""
        self._tokens.append((token, self._num_out + len(self._held)))
        return self._take(self._stream.push(token.id))

    def finish(self) -> Piece:
        """What was still held back, at the end of the answer."""
        piece = self._take(self._stream.finish())
        if self.stopped:
            return piece
        rest, tokens = self._held, tuple(self._tokens)
        self._held, self._tokens = "", []
        self._num_out += len(rest)
        return Piece(piece.text + rest, piece.tokens + tokens)

    def _take(self, text: str) -> Piece:
        if self.stopped:
            return Piece("")
        self._held += text
        places = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if places:  # the one that is whole first, however the text falls into tokens
            self.stopped = True
            return self._release(min(places)[1])
        return self._release(len(self._held) - self._num_uncertain())

    def _num_uncertain(self) -> int:
        """Characters at the end that may begin a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0

    def _release(self, size: int) -> Piece:
        text, self._held = self._held[:size], self._held[size:]
        self._num_out += size
        out = tuple(pair for pair in self._tokens if pair[1] < self._num_out)
        self._tokens = self._tokens[len(out) :]
        return Piece(text, out)
