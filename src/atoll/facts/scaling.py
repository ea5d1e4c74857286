"""Scaling laws as data: how many tokens a model of so many parameters should see, and what its loss
would be then; facts/scaling.toml. A recipe asks for one by its name, or for tokens a parameter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field

from atoll import strict
from atoll.errors import InputError

USUAL = "20 a parameter"
"""Compute-optimal tokens as a rule of thumb (Hoffmann et al. 2022, arXiv:2203.15556, table 3)."""

_RATIO = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE]\+?\d{1,2})?)\s+a\s+parameter\s*", re.ASCII)


class Law(strict.Noun):
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token; C = 6 N D FLOP.

    The least loss for C is where a parameter and a token bring the same, alpha A / N^alpha = beta B
    / D^beta (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3 and equation 4).
    """

    name: str = Field(min_length=1)
    E: float = Field(gt=0)
    A: float = Field(gt=0)
    B: float = Field(gt=0)
    alpha: float = Field(gt=0, lt=1)
    beta: float = Field(gt=0, lt=1)
    source: str = Field(min_length=1)

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        left = self.A / parameters**self.alpha + self.B / tokens**self.beta
        return float(self.E + left)

    def tokens(self, parameters: float) -> float:
        """The tokens with which so many parameters are the best use of their FLOP."""
        equal = self.beta * self.B * parameters**self.alpha / (self.alpha * self.A)
        return float(equal ** (1.0 / self.beta))

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the least loss for so many FLOP."""
        both = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / both)
        parameters = ratio * (flops / 6.0) ** (self.beta / both)
        return parameters, flops / (6.0 * parameters)


class _Laws(strict.Noun):
    law: list[Law] = Field(min_length=1)


@cache
def laws() -> dict[str, Law]:
    """Name -> law, in the order of the file."""
    path = Path(str(resources.files("atoll.facts"))) / "scaling.toml"
    data = strict.take_schema(strict.load_toml(path), file=path)
    return {law.name: law for law in strict.validate(_Laws, data, file=path).law}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Tokens by parameters: those of a law, or `ratio` tokens a parameter."""

    text: str
    law: Law | None = None
    ratio: float = 0.0

    def tokens(self, parameters: float) -> float:
        """Tokens that a model should see, of whose parameters so many take part in a token."""
        return self.ratio * parameters if self.law is None else self.law.tokens(parameters)


def rule_of(text: str) -> Rule | None:
    """ "20 a parameter", "chinchilla-epoch" as a rule; None for what begins as a plain number.

    InputError for the name of no law, and for no tokens a parameter.
    """
    found = _RATIO.fullmatch(text)
    if found is not None:
        ratio = float(found[1])
        if not 0.0 < ratio <= 1e6:
            fix = f'from 0.001 to 1,000,000, for example "{USUAL}"'
            raise InputError("is no number of tokens a parameter", value=text, fix=fix)
        return Rule(text=text.strip(), ratio=ratio)
    if text.strip() in laws():
        return Rule(text=text.strip(), law=laws()[text.strip()])
    if re.match(r"\s*[A-Za-z]", text):
        fix = f'a count ("1 B"), "{USUAL}", or ' + strict.nearest(text, list(laws()), what="laws")
        raise InputError("is the name of no scaling law", value=text, fix=fix)
    return None
