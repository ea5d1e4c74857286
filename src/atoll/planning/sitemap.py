"""Sitemap: sites with their islands, and the links between them.

Not geography: boxes stand in a row (or a column where there is little room) and every link has a
lane of its own beside them, so that nothing ever covers anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING

from atoll.errors import InputError
from atoll.fleet import Fleet, Island
from atoll.planning.segments import used_chips
from atoll.planning.svg import Drawing, fit, text_width, wrap
from atoll.site import Link
from atoll.units import parse_bandwidth

if TYPE_CHECKING:
    from atoll.planning.planner import Answer

COLUMN = 190.0
"""The least width of a site's column; with less the sites stand one below the other."""

PAD = 10.0
SIZE, SMALL = 12.0, 11.0
LINE = 15.0
LANE = 34.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An island as it is shown: lines of text, its part of the work, or why it has none."""

    name: str
    chips: str
    says: str
    part: float
    used: bool
    bounds: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A link as it is shown: places of its sites (the first is the smaller), its text, its lane."""

    first: int
    last: int
    between: str
    text: str
    bounds: bool
    lane: int


def cards_of(answer: Answer) -> dict[str, list[Card]]:
    """Site -> its islands, in the order of the fleet."""
    reasons = {one.what: one.why for one in answer.rejected}
    found: dict[str, list[Card]] = {}
    for island in answer.fleet.island:
        found.setdefault(island.site, []).append(_card(answer, island, reasons))
    return found


def _card(answer: Answer, island: Island, reasons: Mapping[str, str]) -> Card:
    """What an island does, or why it does nothing."""
    mine = [one for one in answer.islands if one.island.name == island.name]
    if not mine:
        why = reasons.get(island.name, "not used").removeprefix("left out: ")
        return Card(
            name=island.name, chips=f"{island.num_chips:,} x {PurePath(island.chip).stem}",
            says=f"left out: {why}", part=0.0, used=False, bounds="",
        )  # fmt: skip
    one, chain = mine[0], answer.way.chain
    used = used_chips(one)
    count = f"{used:,} of {island.num_chips:,}" if used < island.num_chips else f"{used:,}"
    if chain is not None:
        place = [part.name for part in chain.parts].index(island.name)
        before = sum(len(part.layers) for part in chain.parts[:place])
        stages, layers = len(one.stages), sum(one.stages)
        total = sum(sum(part.layers) for part in chain.parts)
        last = before + stages
        which = f"stage {last}" if stages == 1 else f"stages {before + 1} to {last}"
        says, part = f"{which}: {layers} of {total} layers", layers / total
    else:
        total = sum(other.grains for other in answer.islands)
        part = one.grains / total
        says = f"{100.0 * part:.3g} % of the grains: {one.grains:,}"
    return Card(
        name=island.name, chips=f"{count} x {one.machine.chip}", says=says, part=part, used=True,
        bounds={
            f"the network of {island.name}": "its network sets the pace",
            f"on {island.name}": "its slowest stage sets the pace",
        }.get(_bound(answer), ""),
    )  # fmt: skip


def _bound(answer: Answer) -> str:
    """What bounds the exchange or the chain; "on X" where it is a stage of island X."""
    if answer.way.chain is None:
        return answer.way.exchange.bound
    bound = answer.way.chain.bound.rstrip(",")
    return f"on {bound.rpartition(' on ')[2]}" if " on " in bound else bound


def bounding_ends(answer: Answer) -> tuple[str, str] | None:
    """The two sites whose way to each other sets the pace; None where something else does."""
    bound = _bound(answer)
    sites = list(dict.fromkeys(island.site for island in answer.fleet.island))
    pairs = ((a, b) for a in sites for b in sites if bound == f"the link {a} - {b}")
    return next(pairs, None)


def bounding_uplinks(answer: Answer) -> list[str]:
    """Of these two sites those whose uplink is what is narrow."""
    ends = bounding_ends(answer)
    if ends is None:
        return []
    best = _width(answer.fleet, *ends)
    return [
        site.name
        for site in answer.fleet.site
        if site.name in ends and site.uplink and parse_bandwidth(site.uplink) <= best
    ]


def bounding_link(answer: Answer) -> Link | None:
    """The link that sets the pace; None where an uplink or something else does.

    Between sites without a link of their own it is the one without which the way would be worse.
    """
    fleet, ends = answer.fleet, bounding_ends(answer)
    if ends is None or bounding_uplinks(answer):
        return None
    a, b = ends
    direct = [link for link in fleet.link if set(link.between) == {a, b}]
    best = _width(fleet, a, b)
    for index, link in enumerate(fleet.link):
        others = [other for i, other in enumerate(fleet.link) if i != index]
        without = _width(fleet.model_copy(update={"link": others}), a, b)
        if link.bytes_per_second <= best and without < best:
            return link
    return max(direct, key=lambda link: link.bytes_per_second) if direct else None


def _width(fleet: Fleet, a: str, b: str) -> float:
    """Bytes a second from one site to another, 0 without a way."""
    try:
        path = fleet.path(a, b)
    except InputError:
        return 0.0
    return path[0] if path is not None else 0.0


def wires_of(answer: Answer, sites: Sequence[str]) -> list[Wire]:
    """The links between sites that are shown, each in the first lane that is free there."""
    bounding = bounding_link(answer)
    place = {name: index for index, name in enumerate(sites)}
    shown = [link for link in answer.fleet.link if all(end in place for end in link.between)]
    shown.sort(key=lambda link: abs(place[link.between[0]] - place[link.between[1]]))
    lanes: list[list[tuple[int, int]]] = []
    found = []
    for link in shown:
        first, last = sorted(place[end] for end in link.between)
        free = (i for i, taken in enumerate(lanes) if all(b < first or last < a for a, b in taken))
        lane = next(free, len(lanes))
        if lane == len(lanes):
            lanes.append([])
        lanes[lane].append((first, last))
        found.append(
            Wire(
                first=first, last=last, between=" - ".join(link.between),
                text=f"{link.bandwidth}, {link.latency}", bounds=link is bounding, lane=lane,
            )
        )  # fmt: skip
    return found


def map_picture(answer: Answer, width: float) -> str:
    """Sites, islands, links; the link that bounds the exchange stands out."""
    cards = cards_of(answer)
    sites = _sites(answer, cards)
    wires = wires_of(answer, sites)
    drawing = Drawing(width)
    if len(sites) * COLUMN <= width:
        _row(drawing, answer, sites, cards, wires)
    else:
        _column(drawing, answer, sites, cards, wires)
    return drawing.svg("Sites, their islands, and the links between them")


def _sites(answer: Answer, cards: Mapping[str, Sequence[Card]]) -> list[str]:
    """Sites that hold an island or join links, in the order of the file."""
    joined = {end for link in answer.fleet.link for end in link.between}
    names = [site.name for site in answer.fleet.site]
    names += [name for name in cards if name not in names]
    return [name for name in names if name in cards or name in joined]


def _row(
    drawing: Drawing,
    answer: Answer,
    sites: Sequence[str],
    cards: Mapping[str, Sequence[Card]],
    wires: Sequence[Wire],
) -> None:
    """Sites side by side, lanes of links below them."""
    gap = 24.0
    wide = min(420.0, (drawing.width - gap * (len(sites) - 1)) / len(sites))
    lefts = [i * (wide + gap) for i in range(len(sites))]
    high = max(_site_height(cards.get(name, ()), wide) for name in sites)
    for name, left in zip(sites, lefts, strict=True):
        _site(drawing, answer, name, cards.get(name, ()), left, 1.0, wide - 1, high)
    ports = {key: lefts[key[1]] + part * wide for key, part in _ports(wires, len(sites)).items()}
    bottom = high + 1
    for index, wire in enumerate(wires):
        y = bottom + 30 + wire.lane * LANE
        ends = [ports[index, wire.first], ports[index, wire.last]]
        look = "wire bounding" if wire.bounds else "wire"
        drawing.path(
            [(ends[0], bottom), (ends[0], y), (ends[1], y), (ends[1], bottom)], class_=look
        )
    for index, wire in enumerate(wires):
        y = bottom + 30 + wire.lane * LANE
        a, b = ports[index, wire.first], ports[index, wire.last]
        drops = [ports[i, end] for i, other in enumerate(wires) for end in (other.first, other.last)
                 if other.lane > wire.lane and a < ports[i, end] < b]  # fmt: skip
        edges = sorted([a, b, *drops])
        long, middle = max((q - p, (p + q) / 2) for p, q in pairwise(edges))
        _wire_text(drawing, wire, middle, y, long)
    lanes = max((wire.lane for wire in wires), default=-1) + 1
    drawing.y = bottom + (16 + lanes * LANE + 4 if lanes else 4)


def _wire_text(drawing: Drawing, wire: Wire, middle: float, y: float, room: float) -> None:
    """The text of a link on its lane."""
    said = fit(wire.text, room - 12, SIZE)
    longer = f"{wire.text}: sets the pace"
    if wire.bounds and text_width(longer, SIZE) + 12 <= room:
        said = longer
    wide = text_width(said, SIZE) + 12
    drawing.box(middle - wide / 2, y - 9, wide, 18, class_="paper")
    look = "t boundtext" if wire.bounds else "t"
    drawing.text(middle, y + 4, said, size=SIZE, text_anchor="middle", class_=look)


def _ports(wires: Sequence[Wire], count: int) -> dict[tuple[int, int], float]:
    """(wire, site) -> where on the site's edge it leaves, 0 to 1, so that few lines cross."""
    found: dict[tuple[int, int], float] = {}
    for site in range(count):
        back = [i for i, wire in enumerate(wires) if wire.last == site]
        on = [i for i, wire in enumerate(wires) if wire.first == site]
        order = sorted(back, key=lambda i: wires[i].lane)
        order += sorted(on, key=lambda i: -wires[i].lane)
        for index, wire in enumerate(order):
            found[wire, site] = (index + 1) / (len(order) + 1)
    return found


def _column(
    drawing: Drawing,
    answer: Answer,
    sites: Sequence[str],
    cards: Mapping[str, Sequence[Card]],
    wires: Sequence[Wire],
) -> None:
    """Sites one below the other, lanes at the right with numbers, and what the numbers mean."""
    lanes = max((wire.lane for wire in wires), default=-1) + 1
    pitch = min(26.0, 0.3 * drawing.width / max(1, lanes))
    wide = drawing.width - (lanes * pitch + 16 if lanes else 1)
    tops, highs, y = [], [], 1.0
    for name in sites:
        high = _site_height(cards.get(name, ()), wide)
        _site(drawing, answer, name, cards.get(name, ()), 1.0, y, wide - 1, high)
        tops.append(y)
        highs.append(high)
        y += high + 14
    ports = {
        key: tops[key[1]] + part * highs[key[1]] for key, part in _ports(wires, len(sites)).items()
    }
    badges = []
    for index, wire in enumerate(wires):
        x = wide + 14 + wire.lane * pitch
        a, b = ports[index, wire.first], ports[index, wire.last]
        look = "wire bounding" if wire.bounds else "wire"
        drawing.path([(wide, a), (x, a), (x, b), (wide, b)], class_=look)
        badges.append((x, (a + b) / 2, wire.bounds))
    for number, (x, middle, bounds) in enumerate(badges, start=1):
        _badge(drawing, x, middle, number, bounds)
    for number, wire in enumerate(wires, start=1):
        _badge(drawing, 10, y + 8, number, wire.bounds)
        said = f"{wire.between}: {wire.text}" + (", sets the pace" if wire.bounds else "")
        look = "t boundtext" if wire.bounds else "t"
        for line in wrap(said, drawing.width - 28, SIZE, most=3):
            drawing.text(26, y + 12, line, size=SIZE, class_=look)
            y += LINE
        y += 8
    drawing.y = y


def _badge(drawing: Drawing, x: float, y: float, number: int, bounds: bool) -> None:
    look = "badge bounding" if bounds else "badge"
    drawing.box(x - 9, y - 9, 18, 18, rx=9, class_=look)
    drawing.text(x, y + 4, str(number), size=SMALL, text_anchor="middle")


def _texts(card: Card, wide: float) -> tuple[list[str], list[str]]:
    """The lines of an island's chips and of what it does."""
    room = wide - 4 * PAD
    says = card.says + (f" ({card.bounds})" if card.bounds else "")
    return wrap(card.chips, room, SMALL, most=2), wrap(says, room, SMALL, most=5)


def _card_height(card: Card, wide: float) -> float:
    chips, says = _texts(card, wide)
    return 12 + LINE * (1 + len(chips) + len(says)) + (10 if card.used else 0)


def _site_height(cards: Sequence[Card], wide: float) -> float:
    return 48 + sum(_card_height(card, wide) + 8 for card in cards) + (18 if not cards else 0)


def _site(
    drawing: Drawing,
    answer: Answer,
    name: str,
    cards: Sequence[Card],
    x: float,
    y: float,
    wide: float,
    high: float,
) -> None:
    """A site's box with its islands."""
    drawing.box(x, y, wide, high, rx=8, class_="site")
    site = next((site for site in answer.fleet.site if site.name == name), None)
    about: list[str | None] = []
    if site is not None:
        about = [site.country, site.owner and f"of {site.owner}"]
        about.append(site.uplink and f"uplink {site.uplink}")
    drawing.text(
        x + PAD, y + 20, fit(name, wide - 2 * PAD, 15.0, middle=True), size=14.0, class_="t strong"
    )
    narrow = name in bounding_uplinks(answer)
    # What sets the pace comes first, so that it is never cut off.
    said = ", ".join(part for part in (reversed(about) if narrow else about) if part)
    look = "t boundtext" if narrow else "t dim"
    drawing.text(x + PAD, y + 36, fit(said, wide - 2 * PAD, SMALL), size=SMALL, class_=look)
    top = y + 44
    if not cards:
        drawing.text(x + PAD, top + 12, "no island here", size=SMALL, class_="t dim")
    for card in cards:
        _island(drawing, card, x + PAD, top, wide - 2 * PAD, _card_height(card, wide), wide)
        top += _card_height(card, wide) + 8


def _island(
    drawing: Drawing, card: Card, x: float, y: float, wide: float, high: float, site: float
) -> None:
    """An island's card; a bar shows its part of the work."""
    look = "island" if card.used else "island out"
    drawing.box(x, y, wide, high, rx=5, class_=f"{look} bounding" if card.bounds else look)
    chips, says = _texts(card, site)
    drawing.text(x + PAD, y + 17, fit(card.name, wide - 2 * PAD, 13.0, middle=True), size=SIZE,
                 class_="t strong" if card.used else "t strong dim")  # fmt: skip
    line = y + 17
    for said in (*chips, *says):
        line += LINE
        drawing.text(x + PAD, line, said, size=SMALL, class_="t" if card.used else "t dim")
    if card.used:
        room = wide - 2 * PAD
        drawing.box(x + PAD, line + 7, room, 5, rx=2.5, class_="track")
        drawing.box(x + PAD, line + 7, max(2.0, room * card.part), 5, rx=2.5, class_="part")
