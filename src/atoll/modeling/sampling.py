"""Generation: one token after another from a decoder, with a cache; and text out of token ids.

What it is: temperature, top-k, top-p and a seed. The choice is made on the host, in float64, by a
counter-based generator keyed by (seed, position), so that it depends on the logits and on nothing
else of the device. What it is not: batched serving.

Context rule: the model sees at most its context. When that is full, it forgets the older half and
reads the newer half again from position 0; of a longer prompt it reads the last ``context`` tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from atoll.errors import InputError
from atoll.modeling.decoder import Cache, Decoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_READ_AT_ONCE = 512  # tokens of a prompt that go through the decoder in one call
_FIRST_LOOK = 64  # of the likeliest tokens are sorted before all others are looked at
_MASK = (1 << 64) - 1
_REPLACEMENT = "\ufffd"


def generate(
    decoder: Decoder,
    token_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Collection[int] = (),
    device: torch.device | str | None = None,
) -> Iterator[int]:
    """Yield up to ``max_tokens`` ids that continue ``token_ids``; a stop id ends it unyielded.

    ``temperature`` 0 takes the likeliest token; ``top_k`` None or 0 and ``top_p`` None: no limit.
    ``device`` is where the decoder is (None: look). InputError: an empty prompt, an id outside the
    vocabulary, a setting out of range.
    """
    top_k = top_k or decoder.model.resolved_vocab
    top_p = 1.0 if top_p is None else top_p
    _check(decoder, token_ids, max_tokens, temperature, top_k, top_p)
    place = decoder.embedding.weight.device if device is None else torch.device(device)
    return _generate(
        decoder, list(token_ids), max_tokens, temperature, top_k, top_p, seed, stop_ids, place
    )


def _generate(
    decoder: Decoder,
    seen: list[int],
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop_ids: Collection[int],
    device: torch.device,
) -> Iterator[int]:
    context = decoder.model.context
    num_positions = min(context, len(seen) + max_tokens)
    cache = Cache(decoder, num_sequences=1, num_positions=num_positions)
    unread = seen[-num_positions:]
    for position in range(max_tokens):
        if cache.length + len(unread) > num_positions:
            cache.length = 0
            unread = seen[-max(1, context // 2) :]
        logits = _read(decoder, unread, cache, device)
        chosen = choose(logits, temperature, top_k, top_p, uniform(seed, position))
        if chosen in stop_ids:
            return
        yield chosen
        seen.append(chosen)
        unread = [chosen]


def _read(
    decoder: Decoder, unread: list[int], cache: Cache, device: torch.device
) -> npt.NDArray[np.float64]:
    """Feed tokens to the decoder; the logits [V] of the token after them, on the host."""
    with torch.no_grad():
        for first in range(0, len(unread), _READ_AT_ONCE):
            part = torch.tensor([unread[first : first + _READ_AT_ONCE]], dtype=torch.int64)
            logits = decoder(part.to(device), cache, last_only=True)
        return logits[0, -1].float().cpu().numpy().astype(np.float64)


def choose(
    logits: npt.NDArray[np.float64],
    temperature: float,
    top_k: int,
    top_p: float,
    point: float,
    *,
    min_p: float = 0.0,
) -> int:
    """The token at ``point`` in [0, 1) of the cumulated probabilities, likeliest first.

    Equal logits are ordered by id; one of -inf is never chosen. ``top_k`` 0 is no limit. With
    ``top_p``, the smallest set of likeliest tokens that reaches that probability is left (Holtzman
    et al. 2020); with ``min_p``, those at least that fraction as likely as the likeliest (Nguyen
    et al. 2024). InputError if a logit is NaN or +inf, or none is above -inf.
    """
    top = logits.max(initial=-np.inf)
    if not np.isfinite(top):
        raise InputError("the model's logits are not finite: its weights are damaged")
    if temperature == 0.0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # at 1e-320 every other logit is -inf, and that is right
        weights = np.exp((logits - top) / temperature)
    possible = int(np.count_nonzero(weights >= min_p)) if min_p > 0.0 else len(logits)
    limit = min(top_k or len(logits), possible)
    total = weights.sum() if limit == len(logits) else None
    # The likeliest few nearly always reach as far as is asked; sorting all takes milliseconds.
    num = _FIRST_LOOK
    while True:
        num = min(num, limit) if total is not None else limit
        order = _likeliest(logits, num)
        cumulated = np.cumsum(weights[order])
        cumulated /= cumulated[-1] if total is None else total
        last = int(np.searchsorted(cumulated, top_p, side="left"))
        reach = point * (cumulated[last] if last < num else 1.0)
        if num == limit or (reach < cumulated[-1] and (last < num or top_p >= 1.0)):
            found = int(np.searchsorted(cumulated, reach, side="right"))
            return int(order[min(found, last, num - 1)])
        num *= 16


def _likeliest(logits: npt.NDArray[np.float64], num: int) -> npt.NDArray[np.int64]:
    """The ``num`` largest logits' ids, largest first, equal ones by id."""
    if num >= len(logits):
        return np.argsort(-logits, kind="stable")
    least = np.partition(logits, len(logits) - num)[len(logits) - num]
    ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")[:num]]


def penalised(
    logits: npt.NDArray[np.float64], counts: Mapping[int, int], presence: float, frequency: float
) -> npt.NDArray[np.float64]:
    """Logits less ``presence`` for every token that was generated and ``frequency`` for each time.

    ``counts``: token -> how often it was generated. The penalties of the OpenAI API.
    """
    if not counts or (presence == 0.0 and frequency == 0.0):
        return logits
    lowered = logits.copy()
    ids = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
    times = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
    lowered[ids] -= presence + frequency * times
    return lowered


def log_probabilities(
    logits: npt.NDArray[np.float64], chosen: int, num_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """(log probability of ``chosen``, the ``num_top`` likeliest tokens with theirs), in nats."""
    top = logits.max()
    total = top + np.log(np.exp(logits - top).sum())
    ids = _likeliest(logits, num_top) if num_top else np.zeros(0, dtype=np.int64)
    alternatives = tuple((int(i), float(logits[i] - total)) for i in ids)
    return float(logits[chosen] - total), alternatives


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) of 53 random bits, a function of seed and position alone (splitmix64)."""
    z = _mixed((_mixed(seed & _MASK) + (position + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return (z >> 11) * 2.0**-53


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class TextStream:
    """Turns token ids into text as they come, never in the middle of a character.

    A character may be spread over several tokens: its text comes with the last of them. ``finish``
    returns what is left, an incomplete character as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        # The last ids, from a place where a character began, and how much of their text is out.
        # One stretch more than needed is kept, for tokenizers whose text depends on what precedes.
        self._ids: list[int] = []
        self._num_before = 0
        self._num_out = 0

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; often empty."""
        self._ids.append(token_id)
        text = self._text()
        # An unfinished character is one U+FFFD at the end: hold it back.
        held = text.endswith(_REPLACEMENT)
        piece = text[self._num_out : len(text) - held]
        self._num_out += len(piece)
        if not held:
            self._ids = self._ids[self._num_before :]
            self._num_before = len(self._ids)
            self._num_out = len(self._text())
        return piece

    def finish(self) -> str:
        """The text still held back; the stream is then empty."""
        piece = self._text()[self._num_out :]
        self._ids, self._num_before, self._num_out = [], 0, 0
        return piece

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        return text


def _check(
    decoder: Decoder,
    token_ids: Sequence[int],
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    if not token_ids:
        raise InputError(
            "the prompt has no tokens", fix="Give at least one token, end-of-text say."
        )
    vocab = decoder.model.resolved_vocab
    outside = [item for item in token_ids if not 0 <= item < vocab]
    if outside:
        raise InputError(f"the model has {vocab} tokens", key="token id", value=outside[0])
    bounds = {
        "max_tokens": (max_tokens, max_tokens >= 0, "at least 0"),
        "temperature": (temperature, 0.0 <= temperature < float("inf"), "at least 0"),
        "top_k": (top_k, top_k >= 1, "at least 1"),
        "top_p": (top_p, 0.0 < top_p <= 1.0, "above 0 and at most 1"),
    }
    for key, (value, fits, wanted) in bounds.items():
        if not fits:
            raise InputError(f"must be {wanted}", key=key, value=value)
