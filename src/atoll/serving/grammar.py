"""Answers that follow a JSON Schema: which tokens may come next, by the library llguidance.

What it is: one Grammars a model, which makes one constraint a request. What it is not: a JSON
parser; llguidance compiles the schema and walks it, in native code.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atoll.errors import InputError, RunError

if TYPE_CHECKING:
    from atoll.serving.text import Language

# Between two parts of the JSON. Without a bound a small model may write spaces for ever.
_WHITESPACE = r"[\x20\x0A]{1,16}"

_LONGEST_REASON = 500  # characters


class Grammars:
    """Makes constraints for one model; the first call reads the tokenizer, in about a second."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._lock = threading.Lock()
        self._tokens: Any = None

    def json(self, schema: dict[str, Any]) -> Matching:
        """A constraint for JSON that follows ``schema``.

        InputError if the package llguidance is missing (with the pip line), or the schema is wrong
        or asks for what llguidance does not do.
        """
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError as error:
            raise InputError(
                "response_format needs the package llguidance", fix="pip install llguidance"
            ) from error
        stop_ids = sorted(self._language.stop_ids)
        with self._lock:
            if self._tokens is None:
                self._tokens = LLTokenizer(
                    self._language.tokenizer.to_str(),
                    n_vocab=self._language.num_tokens,
                    eos_token=stop_ids,
                )
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_pattern": _WHITESPACE}
            )
            matcher = LLMatcher(self._tokens, grammar, log_level=0)
            matcher.compute_bitmask()  # a schema that allows nothing is found out by its first step
        except ValueError as error:
            raise InputError(f"this JSON Schema cannot be followed: {_brief(error)}") from error
        if matcher.is_error():
            reason = _brief(matcher.get_error())
            raise InputError(f"this JSON Schema cannot be followed: {reason}")
        return Matching(matcher, self._language.num_tokens, self._language.stop_ids)


class Matching:
    """A Constraint (request.py) by an llguidance matcher."""

    def __init__(self, matcher: Any, num_tokens: int, stop_ids: frozenset[int]) -> None:
        self._matcher, self._num_tokens, self._stop_ids = matcher, num_tokens, stop_ids

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """The tokens that may come next, [V]; only those that end the answer when it is whole."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        whole = np.unpackbits(bits, count=self._num_tokens, bitorder="little")
        return whole.view(np.bool_)

    def advance(self, token: int) -> None:
        """Take in the token that was chosen. RunError for one that was not allowed."""
        if token in self._stop_ids:
            return
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RunError(f"the JSON constraint failed: {_brief(self._matcher.get_error())}")


def _brief(error: object) -> str:
    """What the library says, without the dump of its state and what it quotes at length."""
    return str(error).partition("\n<state>")[0][:_LONGEST_REASON]
