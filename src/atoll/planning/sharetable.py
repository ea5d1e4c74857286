"""The shared day for people and scripts: lines, a table by hour, the JSON keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atoll.hours import format_offset, format_time
from atoll.planning.serving import Server
from atoll.planning.serving import as_json as served_as_json
from atoll.planning.sharing import Lender, Sharing
from atoll.units import format_count, format_seconds


def summary(found: Sharing) -> list[tuple[str, str]]:
    """What a reader wants first, a line each: (name, text)."""
    lines = [("a day", _gain_text(found)), ("done in", _days_text(found))]
    lines += [("people", text) for text in map(_people_text, _serving(found))]
    lines += [("moving", text) for text in _moving_texts(found)]
    return lines


def _serving(found: Sharing) -> list[tuple[Server, list[int]]]:
    """Every server, and its nodes that train at each hour."""
    return [
        (one.server, [found.lent(index, hour) for hour in range(24)])
        for index, one in enumerate(found.lenders)
        if one.server is not None
    ]


def _gain_text(found: Sharing) -> str:
    shared, without, fixed = found.schedule.tokens, found.without, found.fixed.tokens
    text = f"{format_count(shared)} tokens by the hour, {format_count(without)} without lending"
    if without:
        text += f" ({100 * (shared / without - 1):+.1f} %)"
    text += f", {format_count(fixed)} with what is free at all hours"
    if without and fixed > without * (1.0 + 1e-9):
        text += f" ({100 * (fixed / without - 1):+.1f} %)"
    return text


def _days_text(found: Sharing) -> str:
    texts = []
    for tokens in (found.schedule.tokens, found.without):
        days = found.days(tokens)
        texts.append("never" if days is None else format_seconds(86400.0 * days))
    return f"{texts[0]} instead of {texts[1]}, all days alike"


def _people_text(one: tuple[Server, list[int]]) -> str:
    """Who is served in time, over a day and at the worst hour."""
    server, lent = one
    traffic, nodes = server.traffic, server.island.nodes

    def over(times: float, end: int) -> tuple[float, float]:
        shares = [server.in_time(hour, nodes - lent[hour], times=times, end=end)
                  for hour in range(24)]  # fmt: skip
        day = sum(a * b for a, b in zip(shares, server.load, strict=True)) / sum(server.load)
        return day, min(shares)

    mean, burst, slow = over(1.0, 1), over(traffic.burst, 1), over(1.0, 2)
    a_day = format_count(3600.0 * sum(server.load))
    return (
        f"{server.island.name}: {a_day} requests a day to {server.model}; in time (first token "
        f"{traffic.time_to_first_token}, then {traffic.time_per_token}) {_percent(mean[0])}, at "
        f"{traffic.burst:g} times the hour {_percent(burst[0])} ({_percent(burst[1])} at the worst "
        f"hour), with the slowest published servers {_percent(slow[0])} ({_percent(slow[1])})"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %" if share >= 0.9995 else f"{100 * share:.1f} %"


def _moving_texts(found: Sharing) -> Iterator[str]:
    lost, made = found.schedule.lost, found.schedule.tokens + found.schedule.lost
    part = (
        f" ({100 * lost / made:.2f} %; {100 * found.slow.lost / made:.2f} % if slow)"
        if made
        else ""
    )
    yield f"{found.schedule.moves} moves a day cost {format_count(lost)} tokens{part}"
    for one in found.lenders:
        yield (
            f"{one.island.name}: lending takes {_range(one.moving.lend)}, "
            f"giving back {_range(one.moving.give_back)}"
        )


def _range(times: tuple[float, float, float]) -> str:
    low, mid, high = (format_seconds(seconds) for seconds in times)
    return f"{mid} ({low} to {high})"


def shown_hours(found: Sharing) -> tuple[list[str], list[list[str]]]:
    """The table of a day by the clocks of the first lender's site; like hours are one row."""
    clock = f"hours {format_offset(found.offset)}"
    head = [clock, *(_columns(one) for one in found.lenders), "training chips", "tokens/s"]
    head += [name for one in found.lenders if one.server for name in ("requests/s", "in time")]
    begin = int(-(found.offset // 3600)) % 24
    rows: list[list[str]] = []
    for first, last in _alike(found, begin):
        hours = [(begin + n) % 24 for n in range(first, last)]
        rows.append(_row(found, begin + first, begin + last, hours))
    return head, rows


def _columns(one: Lender) -> str:
    if one.server is None:
        return f"{one.island.name}: lent of {one.island.num_chips:,}"
    return f"{one.island.name}: needed, lent of {one.island.num_chips:,}"


def _alike(found: Sharing, begin: int) -> Iterator[tuple[int, int]]:
    """Runs (first, after the last) of hours of one state, counted from `begin`."""
    first = 0
    for hour in range(1, 25):
        states = found.schedule.states
        if hour == 24 or states[(begin + hour) % 24] != states[(begin + first) % 24]:
            yield first, hour
            first = hour


def _row(found: Sharing, begin: int, end: int, hours: list[int]) -> list[str]:
    def local(hour: int) -> str:
        return format_time(3600.0 * hour + found.offset)

    cells = [f"{local(begin)}-{local(end)}"]
    for index, one in enumerate(found.lenders):
        each = one.island.chips_per_node
        lent = f"{found.lent(index, hours[0]) * each:,}"
        if one.server is not None:
            needed = max(int(one.server.needed(hour)) for hour in hours) * each
            lent = f"{needed:,}, {lent}"
        cells.append(lent)
    cells += [f"{found.chips(hours[0]):,}", format_count(found.speed(hours[0]))]
    for server, lent_nodes in _serving(found):
        worst = min(server.in_time(hour, server.island.nodes - lent_nodes[hour],
                                   times=server.traffic.burst) for hour in hours)  # fmt: skip
        cells += [f"{max(server.load[hour] for hour in hours):,.0f}", _percent(worst)]
    return cells


def notes(found: Sharing) -> Iterator[str]:
    """What a reader should know before believing the day."""
    yield (
        "needed and in time are for the burst; a request beyond the capacity is late, nobody else; "
        "speeds of servers are reckoned, at the middle of published ones (docs/sharing.md)"
    )
    for server, _ in _serving(found):
        hours = [hour for hour in range(24) if server.needed(hour) > server.island.nodes]
        if hours:
            most = int(max(server.needed(hour) for hour in hours)) * server.island.chips_per_node
            yield (
                f"{server.island.name} is too small for its burst at {len(hours)} of 24 hours: it "
                f"would take {most:,} chips, and nothing is lent then"
            )
        site = next(
            (one for one in found.answer.fleet.site if one.name == server.island.site), None
        )
        if site is not None and site.power is not None:
            yield f"{site.name}: its power counts for chips that train, not those that serve"
        if server.capacities[2] is None:
            yield f"{server.island.name}: the slowest published servers meet the target at no load"
    blocks, shared = found.blocks.tokens, found.schedule.tokens
    if shared > blocks * (1.0 + 1e-6):
        yield (
            "a plan file has each lent island with all of its chips or not at all: "
            f"{format_count(blocks)} tokens a day, {100 * (1 - blocks / shared):.1f} % less"
        )


def as_json(found: Sharing) -> dict[str, Any]:
    """The key `sharing` of `atoll plan --json`; hours are of UTC."""
    names = ("low", "mid", "high")
    hours = range(24)
    return {
        "tokens_a_day": {
            "shared": found.schedule.tokens, "without": found.without,
            "fixed": found.fixed.tokens, "blocks": found.blocks.tokens, "ideal": found.ideal,
        },
        "days": {
            "shared": found.days(found.schedule.tokens), "without": found.days(found.without),
            "fixed": found.days(found.fixed.tokens),
        },
        "moves": found.schedule.moves,
        "lost_tokens": {"mid": found.schedule.lost, "high": found.slow.lost},
        "tokens_per_second": [found.speed(hour) for hour in hours],
        "chips": [found.chips(hour) for hour in hours],
        "lent": [
            {
                "island": one.island.name,
                "nodes": [found.lent(index, hour) for hour in hours],
                "free": list(one.free),
                "lend_seconds": dict(zip(names, one.moving.lend, strict=True)),
                "give_back_seconds": dict(zip(names, one.moving.give_back, strict=True)),
            }
            for index, one in enumerate(found.lenders)
        ],
        "served": [served_as_json(server, lent) for server, lent in _serving(found)],
        "notes": list(notes(found)),
    }  # fmt: skip
