"""The command that profiles a chip."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.output import Json, Quiet, note, print_json

Chip = Annotated[
    str | None,
    typer.Option(
        "--chip",
        metavar="NAME",
        help="The chip that this machine has: a name of the facts, or a file of your own; what "
        "`atoll train` would call it if not given.",
        show_default=False,
    ),
]
To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        metavar="FILE",
        help="The file to write, which must not exist; measured/CHIP-DATE.toml if not given.",
        show_default=False,
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Fewer points in a quarter of a minute: a first look.")
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        metavar="N",
        help="Measure collectives over 2, 4, ... N devices; all of them, or two CPU "
        "processes, if not given.",
        show_default=False,
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="Threads of one CPU lane, as the fleet file will have them.",
    ),
]


def measure(
    chip: Chip = None,
    to: To = None,
    quick: Quick = False,
    ranks: Ranks = None,
    threads: Threads = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure this machine's chip for the planner.

    Times matrix products by shape and number format, memory, links and collectives by size, each
    several times, and writes medians and extremes as a file of measured facts.

    \b
    Example:
      atoll measure --quick
      atoll measure --chip h20 --to measured/h20-node7.toml

    Run it on a machine that does nothing else. Ctrl-C leaves nothing behind.
    """
    from atoll.training.display import open_display
    from atoll.training.measure import measure as profile
    from atoll.training.sweep import FULL, QUICK

    with closing(open_display(quiet=quiet)) as display:
        result = profile(
            chip=chip,
            to=to,
            sweep=QUICK if quick else FULL,
            ranks=ranks,
            threads=threads,
            display=display,
        )
    if json:
        print_json(result.json())
    else:
        print(result.text())
        note(f"\nit took {result.seconds:.0f} s; the planner reads measured/*.toml of a folder")
    return 0


COMMANDS = (measure,)
