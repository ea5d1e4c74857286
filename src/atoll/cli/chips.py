"""Commands about chips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli import checking
from atoll.cli.output import Json, print_json
from atoll.errors import InputError

if TYPE_CHECKING:
    from atoll.facts import Chip, Number

WIDTH = 100


def chips(
    chip: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[check] [CHIP]",
            help="A chip's name, one of its names in published tables, or a file of your own. "
            "check: hold it against the rules of a day.",
            show_default=False,
        ),
    ] = None,
    date: checking.Date = None,
    to: checking.To = None,
    hq: checking.Headquarters = None,
    mode: checking.How = None,
    owner: checking.Owner = None,
    operator: checking.Operator = None,
    shipped_from: checking.ShippedFrom = None,
    maker: checking.Maker = None,
    rules: checking.RuleFiles = None,
    no_rules: checking.NoRules = None,
    json: Json = False,
) -> int:
    """Show known chips, or check one against export rules.

    \b
    Example:
      atoll chips h20
      atoll chips my-chip.toml
      atoll chips check my-chip.toml --date 2025-05-01 --to MY --hq CN

    What check says is engineering input from dated sources, and no legal advice.
    """
    words = chip or []
    flags = {
        "--date": date, "--to": to, "--hq": hq, "--mode": mode, "--owner": owner,
        "--operator": operator, "--shipped-from": shipped_from, "--maker": maker,
        "--rules": rules, "--no-rules": no_rules,
    }  # fmt: skip
    _require_words(words, [flag for flag, value in flags.items() if value])
    if words[:1] == ["check"]:
        return checking.check(
            words[1], date=date, to=to, hq=hq, mode=mode, owner=owner, operator=operator,
            shipped_from=shipped_from, maker=maker, files=rules, off=no_rules, json=json,
        )  # fmt: skip
    return _tell(words[0] if words else None, json=json)


def _require_words(words: Sequence[str], flags: Sequence[str]) -> None:
    """InputError for words and flags that do not go together."""
    checked = words[:1] == ["check"]
    if checked and len(words) == 1:
        fix = "for example: atoll chips check h20 --date 2025-05-01 --to CN --hq CN"
        raise InputError("which chip is to be checked is not said", key="check", fix=fix)
    if len(words) > (2 if checked else 1):
        fix = "one chip at a time: atoll chips CHIP, or atoll chips check CHIP"
        raise InputError("is one word too many", value=words[-1], fix=fix)
    if flags and not checked:
        fix = "write atoll chips check CHIP"
        raise InputError("is an option of check", key=flags[0], fix=fix)


def _tell(chip: str | None, *, json: bool) -> int:
    """One chip, or the table of all."""
    from atoll import facts

    if chip is not None:
        found = facts.resolve_chip(chip)
        if json:
            print_json(_content(found))
        else:
            _show(found)
        return 0
    every = [facts.chip(name) for name in facts.chips()]
    if json:
        print_json({"chips": [_content(one) for one in every]})
    else:
        _list(every)
    return 0


def _content(chip: Chip) -> dict[str, Any]:
    """A chip as one object; `facts` holds its numbers in base units by their key in the file."""
    words = (
        *("name", "vendor", "backend", "description", "aliases", "confidence", "process"),
        *("collectives", "plugin", "environment", "notes"),
    )
    numbers = {
        number.key: {
            "low": number.low,
            "mid": number.mid,
            "high": number.high,
            "unit": number.unit,
            "basis": number.basis,
            "source": number.source,
        }
        for number in chip.numbers()
    }
    topology = None if chip.link is None else chip.link.topology
    plain = {word: getattr(chip, word) for word in words}
    more = {"devices": chip.devices, "datacentre": chip.datacentre, "topology": topology}
    return plain | more | {"facts": numbers}


def _list(every: Sequence[Chip]) -> None:
    """The table of all chips, by vendor; kinds without numbers come last."""
    head = (
        "chip",
        "vendor",
        "year",
        "TFLOP/s",
        "memory",
        "read",
        "link",
        "chips",
        "power",
        "conf.",
    )
    ordered = sorted(every, key=lambda one: (one.vendor is None, one.vendor or "", one.name))
    rows = [head, *map(_row, ordered)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, 1, 9) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(" ".join(cells).rstrip())
    print(
        "\nTFLOP/s: dense bf16, or fp16 where there is no bf16. read: memory bandwidth. link: one "
        "direction,\nto the chips of one fabric. ~: sources disagree. -: not known. "
        f"With sources: atoll chips {ordered[0].name}"
    )


def _row(chip: Chip) -> tuple[str, ...]:
    known = {number.key: number for number in chip.numbers()}

    def cell(*keys: str) -> str:
        number = next((known[key] for key in keys if key in known), None)
        if number is None:
            return "-"
        mid = f"{number.mid / 1e12:.10g}" if number.unit == "FLOP/s" else _text(number.mid, number)
        return ("~" if number.low < number.high else "") + mid.removesuffix(" chips")

    return (
        chip.name,
        chip.vendor or "-",
        str(chip.year or "-"),
        cell("flops.bf16", "flops.fp16"),
        cell("memory.size"),
        cell("memory.bandwidth"),
        cell("link.bandwidth"),
        cell("link.chips"),
        cell("power"),
        chip.confidence or "-",
    )


def _text(value: float, number: Number) -> str:
    """A number for people, in the unit that suits its size."""
    from atoll import units

    if number.unit in ("B", "B/s", "FLOP/s"):
        return units.format_rate(value, number.unit)
    plain = f"{value:.10g}" if number.unit in ("", "chips", "devices") else f"{value:,.10g}"
    return f"{plain} {number.unit}".rstrip()


def _between(number: Number) -> str:
    """Mid, and low and high where they differ; of money the two ends only."""
    low, mid, high = (_text(one, number) for one in (number.low, number.mid, number.high))
    if low == high:
        return mid
    same_unit = low.split(" ")[1:] == high.split(" ")[1:]
    between = f"{low.split(' ')[0] if same_unit else low} to {high}"
    if number.unit.startswith("USD"):
        return between
    if same_unit and mid.split(" ")[1:] == high.split(" ")[1:]:
        between = between.removesuffix(" " + high.split(" ")[1])
    return f"{mid} ({between})"


def _show(chip: Chip) -> None:
    """All that is known of a chip; beside each group of numbers stands its source."""
    print(*_wrapped(f"{chip.name}: {chip.description}", WIDTH), "", sep="\n")
    pairs = {
        "vendor": chip.vendor,
        "backend": chip.backend,
        "also called": ", ".join(chip.aliases),
        "confidence": chip.confidence,
        "process": chip.process,
        "topology": None if chip.link is None else chip.link.topology,
        "collectives": chip.collectives,
        "plugin": chip.plugin,
        "data centres": None if chip.datacentre else "neither designed nor marketed for them",
        "environment": " ".join(f"{key}={value}" for key, value in chip.environment.items()),
    }
    shown = {name: value for name, value in pairs.items() if value}
    for name, value in shown.items():
        lines = _wrapped(value, WIDTH - 18)
        print(*_beside([f"{name:<18}"], lines, width=18), sep="\n")
    numbers = chip.numbers()
    print("\nmid (low to high)" if numbers else "\nno numbers are known")
    width = max((len(_between(number)) for number in numbers), default=0) + 20
    for source, group in groupby(numbers, key=lambda number: number.source):
        left = [f"{number.key:<18}{_between(number)}" for number in group]
        right = _wrapped(source, max(WIDTH - width, 30))
        print(*_beside(left, right, width=width), sep="\n")
    for note in chip.notes:
        print("", *_wrapped(note, WIDTH), sep="\n")


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a text; an address stays whole, however long."""
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def _beside(left: Iterable[str], right: Iterable[str], *, width: int) -> list[str]:
    """Two columns of lines, the left one `width` wide."""
    return [f"{a:<{width}}{b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]


COMMANDS = (chips,)
