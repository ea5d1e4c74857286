"""Closing: on which days rules keep an offer's chips away, and what of the fleet they refuse.

What rules say is `atoll.planning.rules`; here it is asked for every offer from day to day. It is no
legal advice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from atoll import facts
from atoll.errors import InputError
from atoll.facts.rules import NO_ADVICE
from atoll.fleet import Fleet
from atoll.planning.case import Closed
from atoll.planning.offers import Offer, Offers
from atoll.planning.placing import Chosen, Span, allowed, is_bought, short_of, spans
from atoll.planning.rules import LEASED
from atoll.site import Site

MOST_NOTES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruled:
    """What rules leave: the fleet, days on which offers are closed, what of the fleet they refuse
    (what, why), and what somebody should know who takes what they let. Nobody asked about `end`.
    """

    fleet: Fleet
    closed: tuple[Closed, ...]
    refused: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    end: date

    def lines(self) -> list[str]:
        """Which rule refuses what and from when, a line each; the last says: no legal advice."""
        told = [f"{one.offer} {when(one, self.end)}: {one.why}" for one in self.closed]
        told += [f"{what}: {why}" for what, why in self.refused]
        return [*(told or ["the rules refuse nothing here"]), NO_ADVICE]


def when(closed: Closed, end: date) -> str:
    """The days of a refusal in words; `end` is the first day that nobody asked about."""
    until = "" if closed.until >= end else f" to {closed.until - timedelta(days=1)}"
    return f"from {closed.since}{until}"


def ruled_of(fleet: Fleet, offers: Offers, chosen: Chosen) -> Ruled:
    """What rules say of a fleet's chips and of all offers. InputError for an unknown country."""
    left, refused = allowed(fleet, chosen, offers.start)
    closed, notes = list[Closed](), list[str]()
    until = offers.end
    sites = {site.name: site for site in fleet.site}
    for offer in offers.offer:
        chip = facts.chip(offer.chip)
        if not is_bought(chip):
            continue
        site, hq = _site(sites.get(offer.site, Site(name=offer.site)), offer)
        by = chosen if hq is None else Chosen(
            rules=chosen.rules, headquarters=hq, mildest=chosen.mildest
        )  # fmt: skip
        try:
            found = spans(chip, site, by, offers.start, until)
        except InputError as fault:
            if fault.key == "site.country":
                fault.key = f"site[{list(sites).index(site.name)}].country"
            raise
        for span in found:
            why = by.why_not(span.verdict)
            if why is not None:
                closed.append(Closed(offer=offer.name, since=span.since, until=span.until, why=why))
            else:
                notes += _notes(offer, span, by, offers)
    if len(notes) > MOST_NOTES:
        notes = [*notes[:MOST_NOTES], f"and {len(notes) - MOST_NOTES} more of this kind"]
    return Ruled(fleet=left, closed=tuple(closed), refused=refused, notes=tuple(notes), end=until)


def _site(site: Site, offer: Offer) -> tuple[Site, str | None]:
    """The site as an offer's chips stand there, and the headquarters that the offer says."""
    mode = offer.mode
    if mode is None:
        leased = offer.kind == "lease"
        mode = site.mode if site.mode is not None and (site.mode in LEASED) == leased else None
        mode = mode or ("lease" if leased else "buy")
    owner = offer.owner_hq or site.owner_hq
    if mode not in LEASED and offer.hq is not None:
        owner = offer.hq
    update = {"mode": mode, "owner_hq": owner, "operator_hq": offer.operator_hq or site.operator_hq}
    return site.model_copy(update=update), offer.hq


def _notes(offer: Offer, span: Span, chosen: Chosen, offers: Offers) -> Iterator[str]:
    """What is unknown or short of refusal in a span, with its days."""
    days = f" from {span.since}" if span.since > offers.start else ""
    for told in short_of(span.verdict, f"offer {offer.name}{days}", chosen):
        yield f"rules: {told}"
