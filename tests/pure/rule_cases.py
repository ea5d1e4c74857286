"""Chips on paper and questions to the shipped rules."""

import datetime
from typing import Any

from atoll import facts, strict
from atoll.facts import Chip
from atoll.facts.rules import Rule, rules
from atoll.planning.rules import Case, Verdict, judge


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def rule_of(name: str) -> Rule:
    return next(rule for rule in rules() if rule.name == name)


def design(
    *,
    tpp: float | None,
    area: float | None = None,
    memory: float | None = None,
    io: float | None = None,
    datacentre: bool = True,
    vendor: str | None = None,
) -> Chip:
    """A chip that exists only as numbers: TPP by fp8, mm2, GB/s, GB/s of both directions."""
    data: dict[str, Any] = {"name": "design", "backend": "here", "description": "a design"}
    data |= {"source": "a test", "datacentre": datacentre}
    if tpp is not None:
        data["flops"] = {"fp8": f"{tpp / 8:.10g} TFLOP/s", "source": "a test"}
    if area is not None:
        data["die_area"] = area
    if memory is not None:
        data["memory"] = {"size": "80 GB", "bandwidth": f"{memory:g} GB/s", "source": "a test"}
    if io is not None:
        data["link"] = {"bandwidth": f"{io / 2:g} GB/s", "source": "a test"}
    if vendor is not None:
        data["vendor"] = vendor
    return strict.validate(Chip, data)


def ask(chip: Chip | str, on: str, to: str | None, hq: str | None, **more: Any) -> Verdict:
    found = facts.chip(chip) if isinstance(chip, str) else chip
    case = Case(chip=found, day=day(on), destination=to, headquarters=hq, **more)
    return judge(case, rules())
