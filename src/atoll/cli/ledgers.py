"""The command about the past of a run: ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from atoll.cli.output import Json, print_json, print_pairs
from atoll.errors import InputError
from atoll.history.telling import clock_of, duration, spike_words, words_of
from atoll.units import format_count

SiteName = Annotated[
    str | None,
    typer.Option(
        "--site",
        metavar="NAME",
        help="Which steps ran on islands of this site?",
        show_default=False,
    ),
]
_MOST_RANGES = 12


def ledger(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    step: Annotated[
        int | None,
        typer.Option(metavar="N", help="Who computed step N?", show_default=False),
    ] = None,
    island: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What did this island do, and what did it cost?",
            show_default=False,
        ),
    ] = None,
    site: SiteName = None,
    leased: Annotated[
        bool,
        typer.Option(
            "--leased",
            help="Which steps ran on leased chips: at sites whose owner is named and is another "
            "one than that of most islands?",
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Say who computed what in a run, when, and what was lost.

    \b
    Example:
      atoll ledger runs/tiny
      atoll ledger runs/tiny --step 1234
      atoll ledger runs/tiny --island johor --json

    Only reads, so it may look at a run that goes on. Seconds lost are an estimate: what the steps
    took longer than comparable ones.
    """
    from atoll.history import answers, reading

    if sum((step is not None, island is not None, site is not None, leased)) > 1:
        fix = "choose one of --step, --island, --site, --leased"
        raise InputError("one question at a time", fix=fix)
    history = reading.read(run)
    if step is not None:
        answer, show = answers.about_step(history, step), _show_step
    elif island is not None:
        answer, show = answers.about_island(history, island), _show_island
    elif site is not None:
        answer, show = answers.about_site(history, site), _show_steps
    elif leased:
        answer, show = answers.about_leased(history), _show_steps
    else:
        answer, show = answers.summary(history), _show_summary
    if json:
        print_json(answer)
    else:
        show(answer)
    return 0


def _show_summary(answer: Mapping[str, Any]) -> None:
    parts = answer["goodput"]
    pairs = {
        "run": answer["run"],
        "state": f"{answer['state']}, step {answer['step']:,} of {answer['total_steps']:,}",
        "loss": "" if answer["loss"] is None else f"{answer['loss']:.4f} nats a token",
        "tokens": f"{answer['tokens']:,}",
        "contract": answer["contract"],
        "wall time": f"{duration(parts['wall_seconds'])} in {len(answer['sessions'])} session(s)",
        "goodput": f"{parts['goodput']:.1%}"
        + ("" if not parts["lost_seconds"]["stopped"] else ", while running ")
        + ("" if not parts["lost_seconds"]["stopped"] else f"{parts['goodput_while_running']:.1%}"),
    }
    print_pairs({name: text for name, text in pairs.items() if text})
    _print_goodput(parts)
    _print_islands(answer["islands"])
    counts = ", ".join(f"{number} {kind}" for kind, number in answer["events"].items())
    print(f"\nevents: {counts or 'none'}")
    if answer["damaged_lines"]:
        print(f"{answer['damaged_lines']} damaged line(s) of the ledger were left out")


def _print_goodput(parts: Mapping[str, Any]) -> None:
    from atoll.history.goodput import CAUSES

    wall = parts["wall_seconds"] or 1.0
    rows = [["useful", duration(parts["useful_seconds"]), f"{parts['goodput']:.1%}", "steps"]]
    for cause, seconds in parts["lost_seconds"].items():
        if seconds > 0:
            name = cause.replace("_", " ")
            rows.append([name, duration(seconds), f"{seconds / wall:.1%}", CAUSES[cause]])
    _print_table(["time", "", "", ""], rows, numbers=(1, 2))


def _print_islands(islands: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            one["island"],
            one["chip"],
            one["site"] + (" (leased)" if one["leased"] else ""),
            one["state"],
            f"{one['steps']:,}",
            f"{one['grains']:,}",
            f"{one['share']:.1%}",
            ", ".join(f"{number} {kind}" for kind, number in one["events"].items()),
        ]
        for one in islands
    ]
    head = ["island", "chip", "site", "state", "steps", "grains", "share", "events"]
    _print_table(head, rows, numbers=(4, 5, 6))


def _show_step(answer: Mapping[str, Any]) -> None:
    pairs = {
        "step": f"{answer['step']:,} of {answer['run']}, session {answer['session']}",
        "loss": f"{answer['loss']:.4f} nats a token",
        "validation": "" if answer["val_loss"] is None else f"{answer['val_loss']:.4f}",
        "gradient": f"norm {answer['grad_norm']:.4g}, learning rate {answer['lr']:.4g}",
        "tokens": f"{answer['tokens']:,}",
        "time": f"{duration(answer['seconds'])}; comparable steps {answer['usual_seconds']:.3g} s",
        "fingerprint": f"{answer['fingerprint_before']} before it",
    }
    if answer["spike"] is not None:
        pairs["spike"] = spike_words(answer["spike"])
    if answer["requantised"]:
        pairs["requantised"] = f"{answer['requantised']} times"
    print_pairs({name: text for name, text in pairs.items() if text})
    rows = [
        [
            one["island"],
            one["chip"],
            one["kind"],
            one["site"] + (" (leased)" if one["leased"] else ""),
            str(one["grains"]),
            _ranges(one["ranges"]) or "none",
        ]
        for one in answer["islands"]
    ]
    _print_table(["island", "chip", "kind", "site", "grains", "which"], rows, numbers=(4,))
    for part in answer["reassigned"]:
        takers = ", ".join(part["to"]) or "nobody"
        grains = _ranges([[part["first"], part["last"]]])
        print(f"\ngrains {grains} of {part['from']} were handed out again, to {takers}")
    for old in answer["taken_back"]:
        same = "the same bits" if old["same_bits"] else "OTHER bits"
        names = ", ".join(old["islands"])
        print(f"\ncomputed before in session {old['session']} by {names}, then taken back: {same}")
    _print_events(answer["events"])


def _show_island(answer: Mapping[str, Any]) -> None:
    again = answer["handed_out_again"]
    seen = answer["last_seen"]
    pairs = {
        "island": f"{answer['island']}: {answer['chip']} at {answer['site'] or 'an unknown site'}"
        + (f", leased from {answer['owner']}" if answer["leased"] else ""),
        "state": answer["state"]
        + ("" if seen is None else f"; last in step {answer['last_step']:,}, {clock_of(seen)}"),
        "computed": f"{answer['steps']:,} steps, {answer['grains']:,} grains "
        f"({answer['share']:.1%} of all)",
        "steps": _ranges(answer["computed"]) or "none",
        "lost": f"{answer['losses']} times",
        "handed on": f"{again['grains']:,} grains were handed out again because of it"
        + (f", in steps {_ranges(again['steps'])}" if again["steps"] else ""),
        "cost": f"about {duration(answer['lost_seconds_estimate'])} in steps that lost it, "
        f"{duration(answer['joining_seconds_estimate'])} while it was healed (estimates)",
        "kinds": ", ".join(answer["kinds"]),
    }
    print_pairs(pairs)
    _print_events(answer["events"])


def _show_steps(answer: Mapping[str, Any]) -> None:
    if not answer["sites"]:
        print("no island of this run is on leased chips: no site has an owner of its own")
        return
    pairs = {
        "sites": ", ".join(answer["sites"]),
        "owner": ", ".join(owner or "not named" for owner in answer["owners"]),
        "steps": f"{answer['num_steps']:,}: {_ranges(answer['steps']) or 'none'}",
        "grains": f"{answer['grains']:,} ({answer['share']:.1%} of all)",
        "tokens": format_count(answer["tokens"]),
    }
    print_pairs(pairs)
    _print_islands(answer["islands"])


def _print_events(events: Sequence[Mapping[str, Any]]) -> None:
    if events:
        print("\nevents")
    for event in events:
        step = event.get("step")
        where = "" if step is None else f"step {step:,}  "
        print(f"  {clock_of(event['time'])}  {where}{words_of(event)}")


def _ranges(ranges: Sequence[Sequence[int]]) -> str:
    """Closed ranges as "1-3, 7", cut where there are many."""
    texts = [f"{a:,}" if a == b else f"{a:,}-{b:,}" for a, b in ranges]
    more = f" and {len(texts) - _MOST_RANGES} more ranges" if len(texts) > _MOST_RANGES else ""
    return ", ".join(texts[:_MOST_RANGES]) + more


def _print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> None:
    """Columns as wide as they need, after an empty line."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print()
    for row in (head, *rows):
        cells = [
            f"{cell:>{width}}" if index in numbers else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


COMMANDS = (ledger,)
