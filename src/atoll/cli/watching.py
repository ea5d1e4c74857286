"""The command that shows a run from outside: watch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.output import Json, note, print_json
from atoll.errors import InputError

if TYPE_CHECKING:
    from atoll.history.reading import Reader
    from atoll.history.story import History

_POLL_SECONDS = 1.0
_NUM_EVENTS = 20


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once and stop.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write it as a page for a browser (HTML; needs nothing else) and stop.",
            show_default=False,
        ),
    ] = None,
    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh",
            help="With --page: write it anew while the run goes on; it reloads itself.",
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Watch a run: islands, curve, events, lost time.

    \b
    Example:
      atoll watch runs/tiny
      atoll watch runs/tiny --page tiny.html --refresh

    Only reads the run's folder, so it works for a run of another process, and for one that has
    ended. Ctrl-C leaves; the run does not notice.
    """
    from atoll.history.reading import Reader

    if refresh and page is None:
        raise InputError("--refresh is for --page", fix="add --page FILE, or leave it out")
    reader = Reader(run)
    history = reader.history()
    if page is not None:
        _write(history, page, reload=refresh and history.running)
    if json:
        print_json(_answer(history))
    elif page is not None and not refresh:
        print(page)
    elif once or not sys.stdout.isatty():
        _print(history)
        if refresh and not once:
            _follow(reader, page)
    else:
        _follow_live(reader, page)
    return 0


def _write(history: History, page: Path, *, reload: bool) -> None:
    from atoll.run import write_atomically
    from atoll.web.run_page import html_of

    if page.is_dir():
        raise InputError("is a folder", file=page, fix="name a file in it, such as page.html")
    try:
        write_atomically(page, html_of(history, reload=reload).encode())
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise InputError(message, file=page, fix="name a file in a folder that exists") from None


def _print(history: History) -> None:
    from rich.console import Console

    from atoll.cli.watch_terminal import page

    console = Console(file=sys.stdout)
    console.print(page(history, console))


def _follow(reader: Reader, page: Path | None) -> None:
    """Write the page until the run ends or Ctrl-C."""
    pause = _POLL_SECONDS
    try:
        while reader.is_running():
            time.sleep(pause)
            began = time.monotonic()
            if reader.refresh() and page is not None:
                history = reader.history()
                _write(history, page, reload=history.running)
            pause = _pause_after(began)
        if page is not None:  # it must not reload itself for ever
            reader.refresh()
            _write(reader.history(), page, reload=False)
    except KeyboardInterrupt:
        return


def _follow_live(reader: Reader, page: Path | None) -> None:
    """The page on the terminal, painted anew when a file changes; it ends with a finished run."""
    from rich.console import Console
    from rich.live import Live

    from atoll.cli import watch_terminal

    console = Console(file=sys.stdout)
    history = reader.history()
    painted, pause = watch_terminal.page(history, console), _POLL_SECONDS
    try:
        with Live(painted, console=console, auto_refresh=False) as live:
            while history.state != "finished":
                time.sleep(pause)
                began = time.monotonic()
                if reader.refresh():
                    history = reader.history()
                    if page is not None:
                        _write(history, page, reload=history.running)
                live.update(watch_terminal.page(history, console), refresh=True)
                pause = _pause_after(began)
    except KeyboardInterrupt:
        note("no longer watching; the run was not touched")


def _pause_after(began: float) -> float:
    """A second, or longer for a history of many steps: most of a core stays with the training."""
    return max(_POLL_SECONDS, 9.0 * (time.monotonic() - began))


def _answer(history: History) -> dict[str, Any]:
    """What the page shows, as plain tables."""
    from atoll.history import answers
    from atoll.history.telling import marks_of

    last = history.lines[-1] if history.lines else None
    known = {"run", "state", "step", "total_steps", "loss", "tokens", "contract"}
    told = answers.summary(history)
    return {
        **{key: value for key, value in told.items() if key in known},
        "val_loss": list(history.val_losses.values())[-1] if history.val_losses else None,
        "tokens_per_second": last.tokens / last.seconds if last and last.seconds else None,
        "goodput": told["goodput"],
        "islands": told["islands"],
        "marks": [{"step": step, "what": kind} for step, kind in marks_of(history)],
        "events": history.events[-_NUM_EVENTS:],
    }


COMMANDS = (watch,)
