"""What `atoll ledger` answers: about a step, an island, a site, leased chips, the whole run.

Answers are plain tables for JSON; how they look to a person is the command's business.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection
from typing import Any

from atoll.errors import InputError
from atoll.history.goodput import accounts, goodput
from atoll.history.story import LOST, History, chip_of, num_grains
from atoll.run import LedgerLine


def summary(history: History) -> dict[str, Any]:
    """The whole run: how far, how long, by whom, and what happened."""
    lines = history.lines
    return {
        "question": "summary",
        "run": str(history.folder),
        "state": history.state,
        "step": lines[-1].step if lines else 0,
        "total_steps": history.total_steps,
        "loss": lines[-1].loss if lines else None,
        "tokens": sum(line.tokens for line in lines),
        "contract": history.record.contract,
        "sessions": [
            {
                "started": session.started,
                "seconds": session.ended - session.started,
                "first_step": session.first_step,
                "ended": session.how,
            }
            for session in history.sessions
        ],
        "goodput": goodput(history).as_dict(),
        "islands": islands(history),
        "events": dict(Counter(event["kind"] for event in history.events)),
        "damaged_lines": history.num_damaged,
    }


def islands(history: History) -> list[dict[str, Any]]:
    """A table for each island, those that computed most first."""
    whole = max(1, sum(story.num_grains for story in history.islands.values()))
    rented = leased_sites(history)
    return [
        {
            "island": story.name,
            "chip": story.chip,
            "site": story.site,
            "leased": story.site in rented,
            "state": story.state,
            "lanes": story.lanes,
            "steps": story.num_steps,
            "grains": story.num_grains,
            "share": story.num_grains / whole,
            "last_step": story.last_step,
            "last_seen": story.last_seen or None,
            "last_grains": story.last_grains,
            "grains_per_second": story.speed,
            "events": dict(Counter(event["kind"] for event in story.events)),
        }
        for story in sorted(history.islands.values(), key=lambda one: -one.num_grains)
    ]


def about_step(history: History, step: int) -> dict[str, Any]:
    """Who computed a step, what it cost, and what happened in it. InputError if it is not there."""
    found = [one for one in accounts(history) if one.attempt.line.step == step]
    kept = next((one for one in found if one.attempt.kept), None)
    if kept is None:
        last = history.lines[-1].step if history.lines else 0
        fix = f"it holds 1 to {last}" if last else "it holds no step yet"
        raise InputError("the ledger does not hold this step", key="--step", value=step, fix=fix)
    line = kept.attempt.line
    return {
        "question": "step",
        "run": str(history.folder),
        "step": step,
        "loss": line.loss,
        "val_loss": history.val_losses.get(step),
        "grad_norm": line.grad_norm,
        "lr": line.lr,
        "tokens": line.tokens,
        "seconds": line.seconds,
        "usual_seconds": kept.usual_seconds,
        "lost_seconds": kept.lost_seconds,
        "cause": kept.cause if kept.lost_seconds else None,
        "session": kept.attempt.session + 1,
        "requantised": line.requantised,
        "spike": None if line.spike is None else line.spike.model_dump(),
        "fingerprint_before": line.fingerprint,
        "islands": [_part(history, line, name, kind) for name, kind in line.kinds.items()],
        "reassigned": [_handed_on(line, part) for part in line.reassigned],
        "events": history.events_of(step),
        "taken_back": [
            {
                "session": one.attempt.session + 1,
                "seconds": one.attempt.line.seconds,
                "loss": one.attempt.line.loss,
                "same_bits": _bits(one.attempt.line) == _bits(line),
                "islands": sorted(one.attempt.line.grains),
            }
            for one in found
            if not one.attempt.kept
        ],
    }


def about_island(history: History, name: str) -> dict[str, Any]:
    """What an island did, and what it cost the run. InputError if the run knows no such island."""
    story = history.islands.get(name)
    if story is None:
        near = difflib.get_close_matches(name, history.islands, n=1)
        known = ", ".join(history.islands) or "no island yet"
        fix = (f"nearest: {near[0]}\n" if near else "") + f"it has {known}"
        raise InputError("this run has no such island", key="--island", value=name, fix=fix)
    handed = [
        (line.step, last - first + 1)
        for line in history.lines
        for owner, first, last in line.reassigned
        if owner == name
    ]
    blamed = [one for one in accounts(history) if one.attempt.kept and name in one.islands]
    seconds = dict.fromkeys(("lost_islands", "joins"), 0.0)
    for one in blamed:
        if one.cause in seconds:
            seconds[one.cause] += one.lost_seconds
    own = next(one for one in islands(history) if one["island"] == name)
    steps = [line.step for line in history.lines if line.grains.get(name)]
    return {
        "question": "island",
        "run": str(history.folder),
        **own,
        "kinds": story.kinds,
        "owner": story.owner,
        "computed": ranges_of(steps),
        "losses": sum(event["kind"] in LOST for event in story.events),
        "handed_out_again": {
            "grains": sum(number for _, number in handed),
            "steps": ranges_of(sorted({step for step, _ in handed})),
        },
        "lost_seconds_estimate": seconds["lost_islands"],
        "joining_seconds_estimate": seconds["joins"],
        "events": story.events,
    }


def about_site(history: History, site: str) -> dict[str, Any]:
    """The steps that islands of a site computed. InputError if no island of the run is there."""
    sites = {story.site for story in history.islands.values() if story.site}
    if site not in sites:
        fix = f"it has islands at {', '.join(sorted(sites)) or 'no site that is known'}"
        raise InputError("no island of this run is there", key="--site", value=site, fix=fix)
    return {"question": "site", **_steps_at(history, {site})}


def about_leased(history: History) -> dict[str, Any]:
    """The steps that islands on leased chips computed; see `leased_sites`."""
    return {"question": "leased", **_steps_at(history, leased_sites(history))}


def leased_sites(history: History) -> set[str]:
    """Sites whose owner is named and is another one than that of most islands.

    Of two owners with as many islands, the one that comes first in the fleet is not the lessor.
    """
    owners = Counter(story.owner for story in history.islands.values() if story.site)
    usual = max(owners, key=lambda owner: owners[owner], default="")
    stories = history.islands.values()
    return {story.site for story in stories if story.owner not in ("", usual)}


def ranges_of(steps: Collection[int]) -> list[list[int]]:
    """Ascending numbers as closed ranges: 1, 2, 3, 7 -> [[1, 3], [7, 7]]."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    return ranges


def _steps_at(history: History, sites: Collection[str]) -> dict[str, Any]:
    names = {name for name, story in history.islands.items() if story.site in sites}
    steps, grains, whole, tokens = [], 0, 0, 0.0
    for line in history.lines:
        counts = {name: num_grains(ranges) for name, ranges in line.grains.items()}
        here, all_ = sum(counts[name] for name in counts if name in names), sum(counts.values())
        grains, whole = grains + here, whole + all_
        tokens += line.tokens * here / max(1, all_)
        if here:
            steps.append(line.step)
    chosen = [one for one in islands(history) if one["island"] in names]
    return {
        "run": str(history.folder),
        "sites": sorted(sites),
        "owners": sorted({history.islands[name].owner for name in names}),
        "islands": chosen,
        "num_steps": len(steps),
        "steps": ranges_of(steps),
        "grains": grains,
        "share": grains / max(1, whole),
        "tokens": round(tokens),
    }


def _part(history: History, line: LedgerLine, name: str, kind: str) -> dict[str, Any]:
    story = history.islands[name]
    ranges = line.grains.get(name, [])
    return {
        "island": name,
        "chip": chip_of(history.record, kind) or story.chip,
        "kind": kind,
        "site": story.site,
        "leased": story.site in leased_sites(history),
        "grains": num_grains(ranges),
        "ranges": ranges,
    }


def _handed_on(line: LedgerLine, part: list[Any]) -> dict[str, Any]:
    owner, first, last = part
    takers = [
        name
        for name, ranges in line.grains.items()
        if any(a <= last and first <= b for a, b in ranges)
    ]
    return {"from": owner, "first": first, "last": last, "to": takers}


def _bits(line: LedgerLine) -> tuple[Any, ...]:
    return line.loss, line.grad_norm, line.sum_digest, line.fingerprint
