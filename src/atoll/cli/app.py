"""The table of commands, and what `atoll` alone prints."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll.cli import (
    chatting,
    chips,
    fleets,
    ledgers,
    measuring,
    models,
    ordering,
    planning,
    runs,
    scenarios,
    serving,
    validating,
    watching,
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: pipes well, and keeps the examples' lines
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 96},
)


@app.callback(invoke_without_command=True)
def atoll(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Train language models on whatever accelerators one can get: the fleet changes, the run
    does not.

    \b
    Example:
      atoll train examples/recipes/tiny.toml --run runs/tiny
      atoll audit runs/tiny
      atoll sample runs/tiny "To be"
    """
    if version:
        import atoll

        print(f"atoll {atoll.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


for _module in (
    *(runs, ledgers, watching, models, fleets, measuring, chips, planning, ordering, validating),
    *(scenarios, serving, chatting),
):
    for _command in _module.COMMANDS:
        app.command(_command.__name__.removesuffix("_"))(_command)
