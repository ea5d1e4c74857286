"""Flags that several commands share: facts of one's own, and the rules that refuse placements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.errors import InputError

if TYPE_CHECKING:
    from atoll.planning.placing import Chosen

Facts = Annotated[
    Path | None,
    typer.Option(
        "--facts",
        metavar="DIR",
        help="A folder of your own facts: measured/*.toml by `atoll measure` go before "
        "published numbers.",
        show_default=False,
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rules",
        metavar="SET",
        help="Leave out chips that export rules refuse at their site on their day: all, or a file "
        "of your own beside them (docs/rules.md). No legal advice.",
        show_default=False,
    ),
]
NoRules = Annotated[
    list[str] | None,
    typer.Option(
        "--no-rules", metavar="NAME", help="With --rules: switch one off.", show_default=False
    ),
]
Refuse = Annotated[
    str | None,
    typer.Option(
        "--refuse",
        metavar="RESULT",
        help="With --rules: the mildest result that refuses, from notify, approval, case-by-case, "
        "licence (if not given) to denial.",
        show_default=False,
    ),
]
Headquarters = Annotated[
    str | None,
    typer.Option(
        "--hq",
        metavar="CC",
        help="With --rules: the country of the headquarters of your ultimate parent.",
        show_default=False,
    ),
]


def chosen(
    asked: list[str] | None, off: list[str] | None, refuse: str | None, hq: str | None
) -> Chosen | None:
    """The rules that --rules and its companions ask for; None without --rules. InputError."""
    if not asked:
        for flag, given in (("--no-rules", off), ("--refuse", refuse), ("--hq", hq)):
            if given:
                raise InputError("is an option of --rules", key=flag, fix="add --rules all")
        return None
    from atoll.facts.countries import country
    from atoll.facts.rules import REFUSED, SEVERITY, rule_set
    from atoll.planning.placing import Chosen

    mildest = SEVERITY[SEVERITY.index("notify") :]
    if refuse is not None and refuse not in mildest:
        fix = "allowed: " + ", ".join(mildest)
        raise InputError("is not allowed here", key="--refuse", value=refuse, fix=fix)
    return Chosen(
        rules=rule_set([one for one in asked if one != "all"], off=off or []),
        headquarters=None if hq is None else country(hq, key="--hq"),
        mildest=REFUSED if refuse is None else mildest[mildest.index(refuse)],
    )
