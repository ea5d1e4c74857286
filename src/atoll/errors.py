"""Every error that a user of Atoll can meet.

This is the one exception tree, and nothing else: no logging, no printing, no exit.

    AtollError                exit code 1
      InputError              2     what the user wrote is wrong; nothing was written
      RunError                1     the run failed
        NonFiniteError              a loss or a gradient is not a number
        IslandError                 an island died or misbehaved
          ExchangeError             an exchange broke off because another island is gone
        CheckpointError             a checkpoint cannot be read or written
        LedgerError                 the ledger cannot be read or written
      CheckFailed             1     an audit, a proof or a validation said no
      Interrupted             130   stopped by the user after a clean save

Messages carry the fix. `assert` is for our own bugs only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_LONGEST_VALUE = 80


class _Missing:
    """The type of `MISSING`: told apart from None, which is a value."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""Says that an `InputError` concerns no particular value."""


class AtollError(Exception):
    """The base of all errors meant for a user; `exit_code` is what the command returns."""

    exit_code: int = 1


class InputError(AtollError, ValueError):
    """What the user wrote is wrong: a file, a key, a value, a flag.

    Assumes that nothing has been written yet. It is a ValueError too, so that a validator of a
    noun may raise it, with `key` relative to that noun; `strict.validate` then adds the rest.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        key: str | None = None,
        value: object = MISSING,
        fix: str | None = None,
    ) -> None:
        """`message` says what is wrong in one line; `fix` what to write instead."""
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.key = key
        self.value = value
        self.fix = fix

    def __str__(self) -> str:
        """The whole message: at most a few lines, the first one `file: key = value: message`."""
        place = self.key or ""
        if self.value is not MISSING:
            shown = show_value(self.value)
            place = f"{place} = {shown}" if place else shown
        head = ": ".join(part for part in (self.file, place, self.message) if part)
        if self.fix is None:
            return head
        return head + "".join(f"\n  {line}" for line in self.fix.splitlines())


class RunError(AtollError):
    """The run failed; its last checkpoint and its ledger are intact."""


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite, twice in a row for the same grain."""


class IslandError(RunError):
    """An island died, could not start, or sent something wrong."""


class ExchangeError(IslandError):
    """An exchange between islands broke off: another member is gone, and is the cause."""


class CheckpointError(RunError):
    """A checkpoint is damaged, of another shape, or could not be written."""


class LedgerError(RunError):
    """The ledger is damaged or could not be written."""


class CheckFailed(AtollError):
    """A check ran to its end and found a difference."""


class Interrupted(AtollError):
    """The user stopped the run; the state was saved."""

    exit_code = 130


def show_key(key: str) -> str:
    """`key` as a person would write it in TOML: bare where that is allowed, else in quotes."""
    bare = key.replace("_", "a").replace("-", "a")
    return key if bare.isascii() and bare.isalnum() else show_value(key)


def show_value(value: object) -> str:
    """`value` as a person would write it in TOML, cut to fit on a line."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = '"' + "".join(map(_printable, value)) + '"'
    elif isinstance(value, dict):
        inner = (f"{show_key(str(key))} = {show_value(item)}" for key, item in value.items())
        text = "{ " + ", ".join(inner) + " }"
    elif isinstance(value, list):
        text = "[" + ", ".join(show_value(item) for item in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _printable(character: str) -> str:
    """A character, or its escape where it would break the line or hide."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()
