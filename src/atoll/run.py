"""The run folder: run.json, the ledger, the events. Reading and writing only; no torch.

    run.json         what this run is: recipe, digests, versions, contract, kinds, fleet, status
    ledger.jsonl     one synced line a step: the commit of that step
    ledger-dropped.jsonl   lines that a resume from an older checkpoint took back
    events.jsonl     joins, deaths, heals, share changes, checkpoints, with time
    tokenizer.json   the tokenizer that made its tokens
    metrics/  checkpoints/  logs/

It does not know what a checkpoint holds (`atoll.training.checkpoint`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from atoll import strict
from atoll.digest import canonical_json
from atoll.errors import InputError, LedgerError, RunError
from atoll.fleet import Fleet
from atoll.recipe import Recipe, differences
from atoll.strict import SCHEMA, Noun


class Spike(Noun):
    """Why the recipe's guard did not let a step's update into the weights, and what it did.

    `why` is the key of the line whose `value` was too large beside the usual `reference`; `to` is
    the step whose weights were taken up again.
    """

    did: Literal["stop", "skip", "roll-back"]
    why: Literal["loss", "grad_norm"]
    value: float
    reference: float
    to: int | None = None


class LedgerLine(Noun):
    """One committed step.

    `grains` are inclusive [first, last] ranges for each island; `fingerprint` is of the weights
    before this step, so it travels with the step's results; `probe` is, for each island, one grain
    and the digest of its integer gradient. `seconds` is the step's wall time; `requantised` counts
    how often the step was computed anew with other exponents. `spike` is left out of the file if
    there was none.
    """

    step: int = Field(ge=1)
    grains: dict[str, list[list[int]]]
    kinds: dict[str, str]
    loss: float
    grad_norm: float
    lr: float
    clip: float
    exponents_digest: str
    sum_digest: str
    fingerprint: str
    probe: dict[str, list[Any]] = {}
    seconds: float
    tokens: int
    requantised: int = Field(default=0, ge=0)
    reassigned: list[Any] = []
    spike: Spike | None = None


class ShardsRef(Noun):
    """Where the token shards of a run lie, and their digest."""

    folder: str
    digest: str


class Status(Noun):
    """Where a run stands: the last committed step and the fingerprint of the weights after it."""

    state: Literal["new", "running", "interrupted", "stopped", "finished", "failed"] = "new"
    step: int = 0
    fingerprint: str | None = None
    message: str | None = None


class RunRecord(Noun):
    """What run.json holds."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    recipe: dict[str, Any]
    recipe_digest: str
    base: str
    shards: ShardsRef
    versions: dict[str, str]
    contract: str
    kinds: dict[str, Any] = {}
    fleet: dict[str, Any] = {}
    status: Status = Status()


class RunFolder:
    """A run's folder; made by `create` or `open`. One process writes to it, see `lock`."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        """For `create` and `open` only."""
        self.path = path
        self.record = record

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        recipe: Recipe,
        shards_folder: Path | str,
        shards_digest: str,
        versions: Mapping[str, str],
        contract: str,
        fleet: Fleet | None = None,
        kinds: Mapping[str, Any] | None = None,
        base: Path | str = ".",
    ) -> Self:
        """Makes the folder and its run.json; `base` is where the recipe's relative paths start.

        InputError if the folder holds a run already, or anything else.
        """
        path = Path(path)
        if (path / "run.json").exists():
            fix = f"resume it with: atoll train {path}"
            raise InputError("holds a run already", file=path, fix=fix)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            fix = "name a new or an empty folder with --run"
            raise InputError("exists and is no run folder", file=path, fix=fix)
        record = RunRecord(
            recipe=recipe.as_dict(),
            recipe_digest=recipe.digest(shards_digest),
            base=str(base),
            shards=ShardsRef(folder=str(shards_folder), digest=shards_digest),
            versions=dict(versions),
            contract=contract,
            kinds=dict(kinds or {}),
            fleet=fleet.as_dict() if fleet is not None else {},
        )
        folder = cls(path, record)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"the folder cannot be made: {error.strerror}"
            raise InputError(message, file=path, fix="name another folder with --run") from None
        folder._write()
        folder._make_inner_folders()
        return folder

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The run in a folder. InputError if there is none, or a newer Atoll wrote it."""
        path = Path(path)
        file = path / "run.json"
        if not file.is_file():
            fix = "name the folder that atoll train --run wrote"
            raise InputError("is no run folder: it has no run.json", file=path, fix=fix)
        try:
            data = json.loads(strict.read_text(file))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"is not JSON: {error}", file=file) from None
        if not isinstance(data, dict):
            raise InputError("must hold one JSON object", file=file)
        record = strict.validate(RunRecord, strict.take_schema(data, file=file), file=file)
        return cls(path, record)

    @staticmethod
    def is_run(path: Path | str) -> bool:
        """Whether a folder holds a run."""
        return (Path(path) / "run.json").is_file()

    @property
    def ledger_path(self) -> Path:
        """The ledger's file."""
        return self.path / "ledger.jsonl"

    @property
    def events_path(self) -> Path:
        """The events' file."""
        return self.path / "events.jsonl"

    @property
    def tokenizer_path(self) -> Path:
        """The run's tokenizer, a copy of the one that made its tokens."""
        return self.path / "tokenizer.json"

    @property
    def metrics_path(self) -> Path:
        """The folder of TensorBoard files."""
        return self.path / "metrics"

    @property
    def checkpoints_path(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def logs_path(self) -> Path:
        """The folder of the islands' own output."""
        return self.path / "logs"

    def recipe(self) -> Recipe:
        """The recipe of the run, as it was resolved when the run began."""
        return Recipe.from_dict(self.record.recipe, file=self.path / "run.json")

    def fleet(self) -> Fleet | None:
        """The fleet that the run used last, if it is known."""
        plain = self.record.fleet
        return Fleet.from_dict(plain, file=self.path / "run.json") if plain else None

    def check_recipe(self, recipe: Recipe) -> None:
        """InputError that names each differing key, if the folder holds another recipe."""
        lines = differences(recipe, self.recipe())
        if lines:
            more = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
            fix = "\n".join([*lines[:8], *more, "use another --run folder for another recipe"])
            raise InputError("holds a run of another recipe", file=self.path, fix=fix)

    def update(self, **changes: Any) -> None:
        """Writes changed fields of run.json, atomically. RunError if the disk refuses."""
        plain = self.record.model_dump(by_alias=True)
        for key, value in changes.items():
            plain[key] = value.model_dump() if isinstance(value, Noun) else value
        self.record = RunRecord.model_validate(plain)
        self._write()

    def set_status(
        self,
        state: Literal["new", "running", "interrupted", "stopped", "finished", "failed"],
        *,
        step: int,
        fingerprint: str | None = None,
        message: str | None = None,
    ) -> None:
        """Writes where the run stands."""
        status = Status(state=state, step=step, fingerprint=fingerprint, message=message)
        self.update(status=status)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one writer. InputError if another process has it."""
        self._make_inner_folders()
        with (self.path / "run.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                fix = "wait until it ends, or use another --run folder"
                message = "another process is training in this folder"
                raise InputError(message, file=self.path, fix=fix) from None
            yield

    def _make_inner_folders(self) -> None:
        for inner in (self.checkpoints_path, self.metrics_path, self.logs_path):
            inner.mkdir(exist_ok=True)

    def _write(self) -> None:
        data = canonical_json(self.record.model_dump(by_alias=True)) + b"\n"
        try:
            write_atomically(self.path / "run.json", data)
        except OSError as error:
            raise RunError(_disk_message(self.path / "run.json", error)) from error


class Ledger:
    """The ledger of a run; each line that `append` has returned from is on the disk.

    A torn last line (a crash during `append`) never was a commit: `read` leaves it out, and the
    first `append` or `truncate_after` removes it from the file. Every line ends with the CRC-32 of
    what stands before it, so that a changed digit is found too; a line without one is taken as is.
    """

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet; its folder must."""
        self.path = path
        self._file: int | None = None
        self._last_step: int | None = None

    def read(self) -> list[LedgerLine]:
        """All committed lines. LedgerError that names a damaged line or a gap in the steps."""
        return self._scan()[0]

    def append(self, line: LedgerLine) -> None:
        """Commits a step: writes, flushes and syncs one line.

        LedgerError if the disk refuses (the step is not committed then, and the file holds no
        part of the line as far as the disk allows), or if the step does not follow the last one.
        """
        file = self._open_for_append()
        if self._last_step is not None and line.step != self._last_step + 1:
            message = f"{self.path}: step {line.step} cannot follow step {self._last_step}"
            raise LedgerError(message)
        data = _encode(line)
        size = os.fstat(file).st_size
        try:
            _write_all(file, data)
            os.fsync(file)
        except OSError as error:
            _try_truncate(file, size)
            raise LedgerError(_disk_message(self.path, error)) from error
        self._last_step = line.step

    def truncate_after(self, step: int) -> list[LedgerLine]:
        """Takes back all lines after `step`; they go to ledger-dropped.jsonl and are returned."""
        self.close()
        lines, ends = self._scan()
        kept = sum(line.step <= step for line in lines)
        dropped = lines[kept:]
        try:
            if dropped:
                data = b"".join(_encode(line) for line in dropped)
                _append_synced(self.path.with_name("ledger-dropped.jsonl"), data)
            if self.path.exists():
                _truncate_synced(self.path, ends[kept - 1] if kept else 0)
        except OSError as error:
            raise LedgerError(_disk_message(self.path, error)) from error
        return dropped

    def close(self) -> None:
        """Closes the file; `append` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open_for_append(self) -> int:
        if self._file is None:
            lines, ends = self._scan()
            try:
                if self.path.exists():
                    _truncate_synced(self.path, ends[-1] if ends else 0)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                if ends and not self._ends_with_newline():
                    _write_all(self._file, b"\n")
                _sync_folder(self.path.parent)
            except OSError as error:
                raise LedgerError(_disk_message(self.path, error)) from error
            self._last_step = lines[-1].step if lines else None
        return self._file

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _scan(self) -> tuple[list[LedgerLine], list[int]]:
        """The committed lines, and the offset behind each."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], []
        lines: list[LedgerLine] = []
        ends: list[int] = []
        offset = 0
        pieces = data.split(b"\n")
        for number, raw in enumerate(pieces, start=1):
            is_last = number >= len(pieces) - (pieces[-1] == b"")
            offset += len(raw) + (number < len(pieces))
            try:
                line = _decode(raw)
            except ValueError as error:
                if is_last:
                    break
                message = f"{self.path}: line {number} is damaged ({error})"
                fix = f"restore the file, or resume from a checkpoint before step {number}"
                raise LedgerError(f"{message}\n  {fix}") from None
            if lines and line.step != lines[-1].step + 1:
                found = f"step {line.step} after step {lines[-1].step}"
                raise LedgerError(f"{self.path}: line {number} is {found}")
            lines.append(line)
            ends.append(offset)
            if is_last:
                break
        return lines, ends


class Events:
    """What happened beside the steps, for people and displays; not synced, never read back."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet; its folder must."""
        self.path = path

    def append(self, kind: str, **fields: Any) -> None:
        """Adds {"time", "kind", fields}. A full disk is ignored: an event is no commit."""
        event = {"time": time.time(), "kind": kind, **fields}
        try:
            with self.path.open("ab") as file:
                file.write(canonical_json(event) + b"\n")
        except OSError:
            return

    def read(self) -> list[dict[str, Any]]:
        """All events that can be read; a torn line is left out."""
        if not self.path.exists():
            return []
        events = []
        for raw in self.path.read_bytes().splitlines():
            try:
                event = json.loads(raw)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events


def _encode(line: LedgerLine) -> bytes:
    """A ledger line as bytes, with its check and a newline."""
    body = canonical_json(line.model_dump(exclude={"spike"} if line.spike is None else None))[:-1]
    return body + b',"check":"%08x"}\n' % zlib.crc32(body)


def _decode(raw: bytes) -> LedgerLine:
    """The line in `raw`, which has no newline. ValueError says why there is none."""
    body, mark, check = raw.rpartition(b',"check":"')
    if mark:
        if check != b'%08x"}' % zlib.crc32(body):
            raise ValueError("its check does not fit")
        raw = body + b"}"
    try:
        return LedgerLine.model_validate_json(raw)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that after a crash it is whole, old or new. OSError as is."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _disk_message(path: Path, error: OSError) -> str:
    """What to tell about a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space, then resume the run"
    return f"{path}: cannot be written: {error.strerror or error}"


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _append_synced(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _truncate_synced(path: Path, size: int) -> None:
    if path.stat().st_size == size:
        return
    with path.open("rb+") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def _try_truncate(file: int, size: int) -> None:
    """Best effort: a torn line is also recognised when the ledger is read."""
    try:
        os.ftruncate(file, size)
    except OSError:
        return
