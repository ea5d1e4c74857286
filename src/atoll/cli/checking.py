"""What `atoll chips check` does: a chip held against the rules of a day."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.output import print_json
from atoll.errors import InputError

Date = Annotated[
    str | None,
    typer.Option(
        "--date", metavar="DATE", help="check: the day (2024-07-01); today.", show_default=False
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="CC", help="check: the country where it will stand.", show_default=False
    ),
]
Headquarters = Annotated[
    str | None,
    typer.Option(
        "--hq",
        metavar="CC",
        help="check: the country of the headquarters of the ultimate parent of who buys or leases.",
        show_default=False,
    ),
]
How = Annotated[
    str | None,
    typer.Option("--mode", metavar="buy|own-abroad|lease|api", help="check: how it is had; buy.",
                 show_default=False),
]  # fmt: skip
Owner = Annotated[
    str | None,
    typer.Option(
        "--owner",
        metavar="CC",
        help="check, leased: headquarters of the ultimate parent of the chips' owner.",
        show_default=False,
    ),
]
Operator = Annotated[
    str | None,
    typer.Option(
        "--operator",
        metavar="CC",
        help="check, leased: headquarters of who runs the site.",
        show_default=False,
    ),
]
ShippedFrom = Annotated[
    str | None,
    typer.Option(
        "--shipped-from",
        metavar="CC",
        help="check: the country that it is shipped from.",
        show_default=False,
    ),
]
Maker = Annotated[
    str | None,
    typer.Option(
        "--maker",
        metavar="CC",
        help="check: the country of its maker, where the facts do not say.",
        show_default=False,
    ),
]
RuleFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--rules",
        metavar="FILE",
        help="check: a rule of your own; it replaces that of its name.",
        show_default=False,
    ),
]
NoRules = Annotated[
    list[str] | None,
    typer.Option(
        "--no-rules",
        metavar="NAME",
        help='check: switch a rule off, or "all".',
        show_default=False,
    ),
]


def check(
    chip: str,
    *,
    date: str | None,
    to: str | None,
    hq: str | None,
    mode: str | None,
    owner: str | None,
    operator: str | None,
    shipped_from: str | None,
    maker: str | None,
    files: list[Path] | None,
    off: list[str] | None,
    json: bool,
) -> int:
    """Prints what the rules say of a chip; InputError for whatever is wrong."""
    from atoll import facts
    from atoll.facts.countries import country
    from atoll.facts.rules import rule_set
    from atoll.planning import rules, ruling

    def code(text: str | None, flag: str) -> str | None:
        return None if text is None else country(text, key=flag)

    how = rules.require_mode("buy" if mode is None else mode)
    given = [flag for flag, text in (("--owner", owner), ("--operator", operator)) if text]
    if given and how not in rules.LEASED:
        fix = "add --mode lease, or say --hq of who buys"
        raise InputError("is asked of leased chips only", key=given[0], fix=fix)
    asked = rule_set(files or [], off=off or [])
    case = rules.Case(
        chip=facts.resolve_chip(chip),
        day=day_of(date),
        destination=code(to, "--to"),
        headquarters=code(hq, "--hq"),
        mode=how,
        owner=code(owner, "--owner"),
        operator=code(operator, "--operator"),
        shipped_from=code(shipped_from, "--shipped-from"),
        maker=code(maker, "--maker"),
    )
    verdict = rules.judge(case, asked)
    if json:
        print_json(ruling.as_json(verdict, asked))
    else:
        _print(ruling.lines(verdict, asked))
    return 0


def _print(lines: Iterable[str]) -> None:
    """Lines, the long ones folded under their own indent."""
    import textwrap

    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()))
        folded = textwrap.wrap(
            line.strip(), 100, initial_indent=indent, subsequent_indent=indent + "  ",
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        print("\n".join(folded))


def day_of(text: str | None, *, flag: str = "--date") -> datetime.date:
    """The day of a flag, today without one. InputError for what is no date."""
    if text is None:
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        message = "is no date"
        raise InputError(message, key=flag, value=text, fix="write 2024-07-01") from None
