"""Which islands of a fleet the rules leave in a plan. What rules say is `atoll.planning.rules`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll import facts
from atoll.errors import AtollError, InputError
from atoll.facts.rules import NO_ADVICE, Rule
from atoll.fleet import Fleet, Site
from atoll.planning.rules import placement


class NoPlacement(AtollError):
    """The rules refuse every island of a fleet; the message says which rule for which island."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Island -> why the rules refuse it; `notes` tell what is unknown, and that it is no advice."""

    refused: Mapping[str, str]
    notes: tuple[str, ...]


def placed(
    fleet: Fleet, rules: Sequence[Rule], day: datetime.date, *, headquarters: str | None
) -> Placed:
    """What the rules say of every island of a stock; an island of which it cannot be told stays.

    InputError for a site whose country there is not; `NoPlacement` if no island is left.
    """
    sites = {site.name: site for site in fleet.site}
    refused, unknown = {}, []
    for island in fleet.island:
        site = sites.get(island.site, Site(name=island.site))
        chip = facts.chip(island.chip)
        if chip.vendor is None and chip.flops is None:
            continue  # a kind of process of this machine, or whatever torch finds: nothing to buy
        try:
            verdict = placement(chip, site, day, rules, headquarters=headquarters)
        except InputError as fault:
            if fault.key == "site.country":
                fault.key = f"site[{list(sites).index(site.name)}].country"
            raise
        if verdict.refused:
            refused[island.name] = f"refused by rule {verdict.refusal}"
        elif verdict.refused is None:
            missing = "; ".join(verdict.missing) or verdict.reason
            unknown.append(f"rules: of island {island.name} it cannot be told: {missing}")
    if len(refused) == len(fleet.island):
        why = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
        raise NoPlacement(f"the rules refuse every island on {day}\n{why}\n  {NO_ADVICE}")
    return Placed(refused=refused, notes=(*unknown, f"rules of {day}: {NO_ADVICE}"))


def left_of(fleet: Fleet, found: Placed) -> Fleet:
    """The stock without the islands that the rules refuse."""
    kept = [island for island in fleet.island if island.name not in found.refused]
    return fleet.model_copy(update={"island": kept})
