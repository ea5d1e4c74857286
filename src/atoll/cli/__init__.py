"""The command line: `atoll VERB`, also `python -m atoll VERB`.

One file a group of commands; each imports what it needs only when it runs, so that `--help` is
instant. This file turns errors into messages and exit codes: 0 done, 1 failed, 2 wrong input,
130 interrupted. Nothing is computed here.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atoll.errors import AtollError

__all__ = ["main"]

# What the system may refuse without a fault of ours, and of these what a wrong path brings about.
_WRONG_PATHS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (`sys.argv` if no arguments are given) and return its exit code.

    Every error becomes one message on stderr. What is no `AtollError` is a fault of the program:
    its traceback goes to a file that the message names.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _require_streams()
    try:
        return _run(arguments)
    except AtollError as error:
        _tell(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`atoll ... | head`); keep Python from saying so at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSALS | _WRONG_PATHS:
            _tell(f"{error.strerror}: {error.filename or 'while writing'}")
            return 2 if error.errno in _WRONG_PATHS else 1
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            _tell("out of memory: this needs more than the machine has free")
            return 1
        place = _write_traceback(arguments)
        _tell(
            f"{type(error).__name__}: {error}\n"
            f"  this is a bug in Atoll; please report it with the traceback in {place}"
        )
        return 1


def _run(arguments: Sequence[str]) -> int:
    import typer

    from atoll.cli.app import app

    # Typer carries its own copy of the click library in newer versions and uses the shared one
    # in older ones; the base of its public error class is right for both.
    bases: tuple[Any, ...] = typer.BadParameter.__mro__
    usage_errors = next(base for base in bases if base.__name__ == "ClickException")
    try:
        result = app(args=list(arguments), prog_name="atoll", standalone_mode=False)
    except usage_errors as error:
        error.show(file=sys.stderr)
        return 2
    except typer.Abort:
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0


def _require_streams() -> None:
    """Open what a caller has closed (`atoll ... >&-`), and let no terminal refuse a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _tell(text: str) -> None:
    print(f"atoll: {text}", file=sys.stderr, flush=True)


def _write_traceback(arguments: Sequence[str]) -> Path:
    """Write the current exception to the logs of the run that the command named, else to a
    temporary file."""
    named = [Path(part) for argument in arguments for part in argument.split("=", 1)]
    logs = next((path / "logs" for path in named if (path / "run.json").is_file()), None)
    folder = logs if logs is not None and os.access(logs, os.W_OK) else None
    descriptor, name = tempfile.mkstemp(prefix="atoll-bug-", suffix=".log", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        print("atoll", *arguments, file=file)
        traceback.print_exc(file=file)
    return Path(name)
