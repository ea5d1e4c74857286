"""Which islands of a fleet the rules leave in a plan. What rules say is `atoll.planning.rules`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll import facts
from atoll.errors import AtollError, InputError
from atoll.facts.rules import NO_ADVICE, Rule
from atoll.fleet import Fleet, Site
from atoll.planning.rules import binding_notes, placement


class NoPlacement(AtollError):
    """The rules refuse every island of a fleet; the message says which rule for which island."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Island -> why the rules refuse it; `notes` tell what is unknown, and that it is no advice."""

    refused: Mapping[str, str]
    notes: tuple[str, ...]


def placed(
    fleet: Fleet,
    rules: Sequence[Rule],
    day: datetime.date,
    *,
    headquarters: str | None,
    none_left: bool = False,
) -> Placed:
    """What the rules say of every island of a stock; an island of which it cannot be told stays.

    InputError for a site whose country there is not; `NoPlacement` if no island is left, unless
    `none_left` may be.
    """
    sites = {site.name: site for site in fleet.site}
    refused, notes = {}, list[str]()
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
            continue
        if verdict.refused is None:
            missing = "; ".join(verdict.missing) or verdict.reason
            notes.append(f"rules: of island {island.name} it cannot be told: {_in_a_file(missing)}")
        notes += [f"rules: island {island.name}: {told}" for told in binding_notes(verdict)]
    if len(refused) == len(fleet.island) and not none_left:
        why = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
        raise NoPlacement(f"the rules refuse every island on {day}\n{why}\n  {NO_ADVICE}")
    return Placed(refused=refused, notes=(*notes, f"rules of {day}: {NO_ADVICE}"))


def _in_a_file(text: str) -> str:
    """What is missing, by the key of a site instead of the flag of a command."""
    for flag, key in (("--owner", "site.owner_hq"), ("--operator", "site.operator_hq")):
        text = text.replace(f"({flag})", f"({key})")
    return text


def left_of(fleet: Fleet, found: Placed) -> Fleet:
    """The stock without the islands that the rules refuse."""
    kept = [island for island in fleet.island if island.name not in found.refused]
    return fleet.model_copy(update={"island": kept})
