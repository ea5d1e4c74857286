"""Checkpoints of a run: written beside the training, complete or absent, checked before use.

A checkpoint is a folder `step-N` of safetensors files (one for each group of tensors: weights,
first and second moments), `state.json` (what else the run needs) and `manifest.json` (size and
SHA-256 of every file, and of itself). It is written as `step-N.tmp`, synced and renamed, so a
folder without `.tmp` is complete; its bytes are hashed again before they are believed.

Nothing is copied as a whole: the writer holds one tensor of the device on the host at a time
(none at all on a CPU, where the live memory goes straight to the kernel), and the reader fills the
live tensors in place. It is not a sharded format: islands of many devices write through torch's
own distributed checkpoint. It does not decide when to save; the pilot does.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from atoll.digest import canonical_json, file_sha256, sha256_hex
from atoll.errors import CheckpointError
from atoll.training.tensorfile import (
    Entry,
    Written,
    code_of,
    empty,
    fill,
    read_header,
    write_bytes,
    write_tensors,
)
from atoll.units import format_bytes

if TYPE_CHECKING:
    import torch

SCHEMA = 1
MANIFEST = "manifest.json"
STATE = "state.json"
BEST = "best.json"

Tensors = Mapping[str, Mapping[str, "torch.Tensor"]]
Host = Callable[["torch.Tensor"], "torch.Tensor"]
Shapes = Mapping[str, tuple[int, ...]]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint that is safely on disk: its step, folder, size in bytes and seconds taken."""

    step: int
    path: Path
    bytes: int
    seconds: float
    snapshot_seconds: float


def write(
    folder: Path,
    step: int,
    *,
    tensors: Tensors,
    host: Host,
    state: Mapping[str, Any],
    on_snapshot: Callable[[], None],
) -> CheckpointInfo:
    """Write the checkpoint of `step` into `folder`/step-N and return when it is on the disk.

    `tensors` maps a group ("weights", "moment1", ...) to its named tensors on any device; `host`
    brings one of them to the CPU (a view of the same memory where it already lies there). The
    tensors must not change until `on_snapshot` is called, which happens exactly once, also on
    failure: from then on only bytes that the kernel already holds are used. `state` is JSON.

    A checkpoint of the same step is replaced. Raises CheckpointError where the system refuses
    (a full disk, no permission): the half-written folder is removed, older checkpoints stay.
    """
    begun = time.perf_counter()
    final = folder / f"step-{step}"
    partial = folder / f"step-{step}.tmp"
    signalled = False
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files: dict[str, Written] = {}
        with _OpenFiles() as open_files:
            for group, named in tensors.items():
                name = f"{group}.safetensors"
                files[name] = write_tensors(open_files.create(partial / name), named, host=host)
            signalled = True
            on_snapshot()
            snapshot_seconds = time.perf_counter() - begun
            body = canonical_json({"schema": SCHEMA, "step": step, "state": dict(state)})
            files[STATE] = write_bytes(open_files.create(partial / STATE), body)
            listed = {name: asdict(file) for name, file in files.items()}
            manifest = _sealed({"schema": SCHEMA, "step": step, "files": listed})
            write_bytes(open_files.create(partial / MANIFEST), manifest)
            open_files.sync()
        _sync_folder(partial)
        _replace_folder(partial, final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_why_not_written(step, folder, error, tensors)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if not signalled:
            on_snapshot()
    return CheckpointInfo(
        step=step,
        path=final,
        bytes=sum(file.size for file in files.values()) + len(manifest),
        seconds=time.perf_counter() - begun,
        snapshot_seconds=snapshot_seconds,
    )


class _OpenFiles:
    """The files of one checkpoint, kept open so that all are synced after the snapshot."""

    def __init__(self) -> None:
        self._files: list[FileIO] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def create(self, path: Path) -> FileIO:
        """Open a new file without a buffer of ours: what is written is the kernel's at once."""
        file = FileIO(path, "x")
        self._files.append(file)
        return file

    def sync(self) -> None:
        """Wait until the disk has every byte of every file."""
        for file in self._files:
            os.fsync(file.fileno())


def _sealed(content: dict[str, Any]) -> bytes:
    """A JSON file that carries its own digest: `{"content": ..., "digest": ...}`, canonical."""
    return canonical_json({"content": content, "digest": sha256_hex(canonical_json(content))})


def _unsealed(data: bytes) -> dict[str, Any]:
    """The content of `_sealed` bytes; ValueError if any byte differs from what was written."""
    sealed = json.loads(data)
    if not isinstance(sealed, dict) or not isinstance(sealed.get("content"), dict):
        raise ValueError("is not a sealed JSON file")
    content: dict[str, Any] = sealed["content"]
    # Comparing the bytes too catches changes that JSON reads alike, such as other spaces.
    if data != _sealed(content):
        raise ValueError("does not match its own digest")
    return content


def _replace_folder(partial: Path, final: Path) -> None:
    """Rename `partial` to `final`; an older folder of that name goes away only afterwards."""
    aside = final.with_name(f"{final.name}.replaced.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    partial.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why_not_written(step: int, folder: Path, error: OSError, tensors: Tensors) -> str:
    size = sum(t.numel() * t.element_size() for named in tensors.values() for t in named.values())
    what = f"the checkpoint of step {step} ({format_bytes(size)}) was not written to {folder}: "
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what += f"the disk or a limit on it is full ({os.strerror(error.errno)}); free some space"
    else:
        what += str(error)
    return what + ". Older checkpoints were kept."


class Writer:
    """One background thread that writes checkpoints while the training goes on.

    Create it in the process that trains (after a fork, not before), use it as a context manager
    or call `close`. Errors of a save do not raise here: `finished` hands them out, so that a run
    survives a full disk and says so.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._work: queue.SimpleQueue[Callable[[], CheckpointInfo] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[CheckpointInfo | CheckpointError] = queue.SimpleQueue()
        self._snapshots: list[threading.Event] = []
        # A daemon, so that an island that fails ends at once; a torn folder is only a leftover.
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def save(self, step: int, *, tensors: Tensors, host: Host, state: Mapping[str, Any]) -> None:
        """Begin a checkpoint and return at once; see `write` for the arguments.

        The tensors must not change before `wait_snapshot` has returned. `state` is taken as it
        is now. Saves are written one after the other in the order of the calls.
        """
        assert self._thread.is_alive(), "the writer is closed"
        snapshot = threading.Event()
        self._snapshots.append(snapshot)
        frozen = json.loads(canonical_json(dict(state)))

        def work() -> CheckpointInfo:
            return write(
                self._folder,
                step,
                tensors=tensors,
                host=host,
                state=frozen,
                on_snapshot=snapshot.set,
            )

        self._work.put(work)

    def wait_snapshot(self) -> None:
        """Return when every save begun so far no longer needs the live tensors."""
        for snapshot in self._snapshots:
            snapshot.wait()
        self._snapshots.clear()

    def finished(self) -> list[CheckpointInfo | CheckpointError]:
        """The results of saves that ended since the last call, oldest first; never waits."""
        results: list[CheckpointInfo | CheckpointError] = []
        while True:
            try:
                results.append(self._results.get_nowait())
            except queue.Empty:
                return results

    def close(self) -> None:
        """Wait for every save begun, then end the thread; `finished` still works. Idempotent."""
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._results.put(work())
            except CheckpointError as error:
                self._results.put(error)
            except Exception as error:  # a device that was lost, say: told, never swallowed
                told = CheckpointError(f"a checkpoint failed: {type(error).__name__}: {error}")
                told.__cause__ = error
                self._results.put(told)


class Checkpoint:
    """A checkpoint whose files were all verified; tensors are read when asked for.

    `state` is the dict given to `write`. `groups` are the groups' names. The files must stay in
    place while it is used. The caller's tensors are filled by `load_into`, one at a time.
    """

    def __init__(self, path: Path, *, step: int, state: dict[str, Any]) -> None:
        self.path = path
        self.step = step
        self.state = state
        self._entries = {
            file.stem: read_header(file) for file in sorted(path.glob("*.safetensors"))
        }

    @property
    def groups(self) -> list[str]:
        """The names of the groups of tensors, sorted."""
        return list(self._entries)

    def shapes(self, group: str) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of a group, in the order of the file."""
        return {name: entry.shape for name, entry in self._group(group).items()}

    def tensor(self, group: str, name: str) -> torch.Tensor:
        """One tensor on the CPU, in memory of its own."""
        entry = self._group(group)[name]
        fresh = empty(entry)
        with FileIO(self.path / f"{group}.safetensors") as file:
            fill(file, entry, fresh)
        return fresh

    def tensors(self, group: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of a group with its name, read one at a time."""
        for name in self._group(group):
            yield name, self.tensor(group, name)

    def load_into(self, group: str, live: Mapping[str, torch.Tensor]) -> None:
        """Overwrite every tensor of `live` (any device) by the one of its name in `group`.

        On a CPU the bytes go from the file into the live memory with no copy between. Raises
        CheckpointError where names, shapes or types differ, before anything was changed.
        """
        import torch

        entries = self._group(group)
        _require_shapes(
            self.path, group, self.shapes(group), {k: tuple(v.shape) for k, v in live.items()}
        )
        for name, tensor in live.items():
            if code_of(tensor.dtype) != entries[name].code:
                raise CheckpointError(
                    f"{self.path}: {group} tensor {name} is {entries[name].code} in the "
                    f"checkpoint and {code_of(tensor.dtype)} in the run"
                )
        with torch.no_grad(), FileIO(self.path / f"{group}.safetensors") as file:
            for name, tensor in live.items():
                if tensor.device.type == "cpu" and tensor.is_contiguous():
                    fill(file, entries[name], tensor)
                else:
                    tensor.copy_(self.tensor(group, name))

    def _group(self, group: str) -> dict[str, Entry]:
        if group not in self._entries:
            raise CheckpointError(
                f"{self.path} has no tensors '{group}', it has: {', '.join(self.groups)}"
            )
        return self._entries[group]


def read(
    folder: Path,
    step: int | None = None,
    *,
    report: Report,
    expected: Shapes | None = None,
    fall_back: bool = True,
) -> Checkpoint:
    """The newest checkpoint in `folder` (at or before `step`, if given) whose bytes are intact.

    Every file is hashed first. A damaged checkpoint is told through `report` and the previous one
    is taken; with `fall_back=False` only `step` itself (or the newest) will do. `expected` gives
    the name and shape of each weight; every group must have exactly these. Raises CheckpointError
    when none is left, when a shape differs (naming tensor and both shapes), and when a newer
    version of Atoll wrote it.
    """
    steps = [s for s in list_steps(folder) if step is None or s <= step]
    if not fall_back:
        steps = [s for s in steps if s == step] if step is not None else steps[-1:]
    for candidate in reversed(steps):
        path = folder / f"step-{candidate}"
        problem, state = _verify(path, candidate)
        if problem is not None:
            report(f"the checkpoint {path} is damaged ({problem}) and is not used")
            continue
        found = Checkpoint(path, step=candidate, state=state)
        if expected is not None:
            for group in found.groups:
                _require_shapes(path, group, found.shapes(group), expected)
        return found
    what = "no checkpoint" if step is None else f"no checkpoint at step {step}"
    if step is not None and fall_back:
        what += " or before"
    kept = ", ".join(str(s) for s in list_steps(folder)) or "none"
    damaged = f"; {len(steps)} damaged" if steps else ""
    raise CheckpointError(f"{folder}: {what} can be used (steps found: {kept}{damaged})")


def list_steps(folder: Path) -> list[int]:
    """The steps that have a finished checkpoint folder, ascending; nothing is verified."""
    if not folder.is_dir():
        return []
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def _verify(path: Path, step: int) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a checkpoint (None: nothing), and its state."""
    try:
        content = _unsealed((path / MANIFEST).read_bytes())
        if content["schema"] > SCHEMA:
            raise CheckpointError(
                f"{path} has schema {content['schema']}; this Atoll reads up to {SCHEMA}: "
                "update Atoll"
            )
        if content["step"] != step:
            return f"its manifest is of step {content['step']}", {}
        for name, wanted in content["files"].items():
            size = (path / name).stat().st_size
            if size != wanted["size"]:
                return f"{name} has {size} bytes instead of {wanted['size']}", {}
            if file_sha256(path / name) != wanted["sha256"]:
                return f"{name} does not match its checksum", {}
        state: dict[str, Any] = json.loads((path / STATE).read_bytes())["state"]
    except (OSError, ValueError, KeyError, RecursionError) as error:
        return f"{MANIFEST}: {error}" if not isinstance(error, OSError) else str(error), {}
    extra = {file.name for file in path.glob("*.safetensors")} - set(content["files"])
    if extra:
        return f"it holds files that are not in its manifest: {', '.join(sorted(extra))}", {}
    return None, state


def _require_shapes(path: Path, group: str, found: Shapes, expected: Shapes) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{path}: {group} has no tensor {name}, which the model needs")
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(
                f"{path}: {group} tensor {name} has shape {tuple(found[name])} in the checkpoint, "
                f"but the model needs {tuple(shape)}"
            )
    surplus = [name for name in found if name not in expected]
    if surplus:
        raise CheckpointError(f"{path}: {group} tensor {surplus[0]} is not in the model")


def record_loss(folder: Path, step: int, loss: float) -> None:
    """Note the validation loss (nats a token) of the weights of `step`, for `prune` to keep the
    best; written to best.json and replaced atomically."""
    losses = recorded_losses(folder) | {step: loss}
    finished = list_steps(folder)
    newest = finished[-1] if finished else 0
    kept = {str(s): losses[s] for s in sorted(losses) if s >= newest or s in finished}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{BEST}.tmp"
    partial.write_bytes(canonical_json({"schema": SCHEMA, "losses": kept}))
    partial.replace(folder / BEST)


def recorded_losses(folder: Path) -> dict[int, float]:
    """Step to validation loss, as `record_loss` noted them; empty if the file is unreadable,
    because only what is kept longest depends on it."""
    try:
        losses = json.loads((folder / BEST).read_bytes())["losses"]
        return {int(step): float(loss) for step, loss in losses.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def prune(folder: Path, *, keep_last: int, keep_best: int) -> list[int]:
    """Delete old checkpoints and return their steps.

    The newest `keep_last` stay (at least one), and the `keep_best` of lowest recorded validation
    loss. A folder is renamed to `.tmp` first, so that no half-deleted checkpoint is ever seen.
    """
    steps = list_steps(folder)
    losses = recorded_losses(folder)
    best = sorted((s for s in steps if s in losses), key=lambda s: (losses[s], s))[:keep_best]
    kept = set(steps[-max(1, keep_last) :]) | set(best)
    dropped = [s for s in steps if s not in kept]
    for step in dropped:
        doomed = folder / f"step-{step}.pruned.tmp"
        (folder / f"step-{step}").rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return dropped


def remove_leftovers(folder: Path) -> list[str]:
    """Delete what a killed writer left (`*.tmp`) and return the names; call it when a run starts,
    never while a Writer of this folder lives."""
    names = sorted(path.name for path in folder.glob("*.tmp")) if folder.is_dir() else []
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return names
