"""Reading the files of a run that may be written meanwhile, again and again, only what is new.

A line without its newline is left for later, as is a folder that changes under one's eyes; a
damaged line is counted, not raised: to judge a ledger is the business of `atoll audit`.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from atoll.errors import InputError
from atoll.history.story import History
from atoll.run import LedgerLine, RunFolder

_RECENT_SECONDS = 60.0
_NUM_REMEMBERED = 256  # bytes before the offset that must still be the same
Item = TypeVar("Item")


class Tail(Generic[Item]):
    """The items of a file with one JSON object a line; `refresh` reads what was appended.

    If what was read before is no longer there (a resume cuts the ledger back), all is read anew.
    """

    def __init__(self, path: Path, decode: Callable[[bytes], Item | None]) -> None:
        """`decode` gives None for a line that cannot be read."""
        self.path = path
        self.items: list[Item] = []
        self.num_damaged = 0
        self._decode = decode
        self._offset = 0
        self._before = b""

    def refresh(self) -> bool:
        """Read on; whether `items` has changed. A file that is not there is empty."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self._offset - len(self._before)))
                again = file.read(len(self._before)) != self._before
                if again:
                    file.seek(0)
                data = file.read()
        except OSError:
            again, data = self._offset > 0, b""
        if again:
            self.items, self.num_damaged, self._offset, self._before = [], 0, 0, b""
        whole = data[: data.rfind(b"\n") + 1]
        for raw in whole.split(b"\n"):
            item = self._decode(raw) if raw else None
            if item is not None:
                self.items.append(item)
            elif raw:
                self.num_damaged += 1
        self._offset += len(whole)
        self._before = (self._before + whole)[-_NUM_REMEMBERED:]
        return again or bool(whole)


class Reader:
    """The history of a run folder, kept up to date by `refresh`."""

    def __init__(self, path: Path | str) -> None:
        """InputError if `path` is no run folder."""
        self.folder = RunFolder.open(path)
        self._ledger = Tail(self.folder.ledger_path, _line)
        self._dropped = Tail(self.folder.path / "ledger-dropped.jsonl", _line)
        self._events = Tail(self.folder.events_path, event_of)
        self._seen: tuple[Any, ...] = ()

    def refresh(self) -> bool:
        """Read what is new; whether anything is."""
        with suppress(InputError):  # it is being replaced, or was removed: the old one stays
            self.folder = RunFolder.open(self.folder.path)
        # The events first: a ledger that is a step ahead of them is easier to understand.
        changed = [tail.refresh() for tail in (self._events, self._dropped, self._ledger)]
        seen = (self.folder.record, self._losses(), self.is_running())
        changed.append(seen != self._seen)
        self._seen = seen
        return any(changed)

    def history(self) -> History:
        """What was read by the last `refresh`."""
        if not self._seen:
            self.refresh()
        record, losses, running = self._seen
        return History(
            folder=self.folder.path,
            record=record,
            lines=self._ledger.items,
            dropped=self._dropped.items,
            events=self._events.items,
            val_losses=losses,
            running=running,
            written=self._written(),
            num_damaged=self._ledger.num_damaged,
        )

    def is_running(self) -> bool:
        """Whether a process seems to train here: it holds run.lock, or wrote a moment ago.

        The lock is looked for and not tried: trying it could keep a training from starting.
        """
        if self.folder.record.status.state != "running":
            return False
        return _is_locked(self.folder.path / "run.lock") or (
            abs(time.time() - self._written()) < _RECENT_SECONDS
        )

    def _written(self) -> float:
        """When the ledger was written last, seconds since 1970; 0.0 if never."""
        try:
            return self.folder.ledger_path.stat().st_mtime
        except OSError:
            return 0.0

    def _losses(self) -> dict[int, float]:
        """Step to validation loss, as the checkpoints' folder notes them."""
        try:
            data = (self.folder.checkpoints_path / "best.json").read_bytes()
            return {int(step): float(loss) for step, loss in json.loads(data)["losses"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def read(path: Path | str) -> History:
    """The history of a run folder as it stands now. InputError if it is none."""
    return Reader(path).history()


def _line(raw: bytes) -> LedgerLine | None:
    body, mark, check = raw.rpartition(b',"check":"')
    if mark:
        if check != b'%08x"}' % zlib.crc32(body):
            return None
        raw = body + b"}"
    try:
        return LedgerLine.model_validate_json(raw)
    except ValidationError:
        return None


def event_of(raw: bytes) -> dict[str, Any] | None:
    """The event on a line of events.jsonl; None if it cannot be read."""
    try:
        event = json.loads(raw)
        return {**event, "kind": str(event["kind"]), "time": float(event["time"])}
    except (ValueError, KeyError, TypeError):
        return None


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine holds a lock on a file; False where that is not told."""
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return False
    return any(f":{inode} " in line and "FLOCK" in line for line in locks)
