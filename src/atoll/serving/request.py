"""Request, its Sampling, and what comes back: the one interface between the engine and its callers.

What it is: token ids in, token ids out. What it is not: text. Templates, stop strings and JSON
live on the caller's side (api.py); a constraint and a set of stop ids are all that the engine
sees of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from atoll.errors import AtollError

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Constraint(Protocol):
    """Which tokens may come next, as a grammar sees it. One object a request, never shared."""

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """The tokens that may come next, [V]; None for all."""

    def advance(self, token: int) -> None:
        """Take in the token that was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Greedy is temperature 0; ``top_k`` 0 and ``top_p`` 1 mean no limit.

    ``top_logprobs`` is how many alternatives each token carries (None: no logprobs at all).
    Penalties are those of the OpenAI API, over the tokens generated so far. ``seed`` None: the
    engine draws one for the request.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. ``logprob`` is of the model's own distribution (temperature 1, before
    limits and penalties); ``top`` its likeliest tokens with theirs. Both empty unless asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a request; ``message`` says what went wrong if the reason is "error"."""

    reason: FinishReason
    message: str = ""
    cached_tokens: int = 0  # of the prompt, taken from what earlier requests had computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt of at least one token, and how to go on with it."""

    prompt: Sequence[int]
    sampling: Sampling
    constraint: Constraint | None = None
    client: str = ""  # requests of one client wait for one another before those of others do


class Stream(Protocol):
    """A request that the engine has taken in."""

    def __aiter__(self) -> AsyncIterator[Token | Finish]:
        """Tokens as they are found, then exactly one Finish."""

    def cancel(self) -> None:
        """Give the request's slot and memory back; safe from any thread, more than once."""


class Busy(AtollError):
    """The queue is full; ``retry_after`` is how many seconds until a place is likely free."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(AtollError):
    """The engine takes nothing in: it is closing, or it has failed and says how."""


class TooLong(AtollError):
    """The prompt and the tokens asked for do not fit; says both numbers and the limit."""

    def __init__(self, *, prompt: int, max_tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt has {prompt} tokens and {max_tokens} more are asked for; "
            f"this model holds {limit} together"
        )
        self.prompt, self.max_tokens, self.limit = prompt, max_tokens, limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine is doing at this moment, and has done since it started."""

    running: int = 0
    queued: int = 0
    slots: int = 0
    cache_used: int = 0  # bytes that running requests hold or were promised
    cache_kept: int = 0  # bytes of prefixes that nobody uses now, available to anyone
    cache_size: int = 0  # bytes
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # by FinishReason
    finished_tokens: dict[str, int] = field(default_factory=dict)  # of these requests' answers
    failure: str = ""  # what stopped the engine's thread, if a bug did


class Engine(Protocol):
    """Computes many requests at a time."""

    limit: int  # tokens of prompt and answer together

    def submit(self, request: Request) -> Stream:
        """Take a request in; call it inside a running event loop. Raises Busy, TooLong, Closed."""

    def load(self) -> Load:
        """What it is doing."""

    def close(self, grace: float = 0.0) -> None:
        """Take in nothing more, let running requests end for ``grace`` seconds, then cancel."""
