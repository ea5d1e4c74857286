"""`atoll measure`: profile the chip of this machine and write what was seen as measured facts.

The timing runs in processes of their own (`profiling`), under the chip's environment, as islands
do: first one device alone, then several together for collectives. This file checks the request
before anything is measured, follows those processes, and writes the file when all is there.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atoll import facts, strict
from atoll.backends import Backend, Feature, of_chip
from atoll.crew.local import LocalCrew
from atoll.errors import InputError, Interrupted, RunError
from atoll.facts import Chip
from atoll.facts.measured import FOLDER, Measured, to_toml
from atoll.run import write_atomically
from atoll.training.crewing import Starting
from atoll.training.display import Display
from atoll.training.sweep import FULL, Sweep
from atoll.training.target import num_cores, this_machine
from atoll.units import format_bytes, format_rate, parse_bytes, parse_seconds

_PROCESSES = Starting(
    entry="atoll.training.profiling:main",
    preload=("torch", "torch.distributed", "atoll.training.profiling"),
)
_LOOK_SECONDS = 0.1
CPU_RANKS = 2
"""How many processes of a CPU take part in collectives unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureResult:
    """What was measured, where it was written, and how long it took."""

    file: Path
    measured: Measured
    seconds: float

    def peaks(self) -> dict[str, float]:
        """Number format -> FLOP/s of its fastest product."""
        formats = dict.fromkeys(gemm.dtype for gemm in self.measured.gemm)
        return {name: self.measured.gemm_peak(name) or 0.0 for name in formats}

    def json(self) -> dict[str, Any]:
        """All that scripts use as plain values: FLOP/s, bytes, seconds."""
        measured = self.measured
        return {
            "file": str(self.file),
            "chip": measured.chip,
            "device": measured.host.device,
            "gemm": self.peaks(),
            "memory_bytes_per_second": measured.memory_bytes_per_second,
            "collective": [
                {
                    "op": one.op,
                    "ranks": one.ranks,
                    "bytes": parse_bytes(one.size),
                    "seconds": parse_seconds(one.seconds),
                }
                for one in measured.collective
            ],
            "left_out": [one.model_dump() for one in measured.left_out],
            "seconds": self.seconds,
        }

    def text(self) -> str:
        """The findings for a person."""
        measured = self.measured
        lines = [f"chip        {measured.chip}: {measured.host.device}"]
        for name, speed in self.peaks().items():
            count = sum(gemm.dtype == name for gemm in measured.gemm)
            lines.append(
                f"{name:<11} {format_rate(speed, 'FLOP/s')} at best, {count} products measured"
            )
        if measured.memory_bytes_per_second is not None:
            speed_text = format_rate(measured.memory_bytes_per_second)
            lines.append(f"memory      {speed_text}, read plus written")
        for operation, ranks in dict.fromkeys((c.op, c.ranks) for c in measured.collective):
            seen = [c for c in measured.collective if (c.op, c.ranks) == (operation, ranks)]
            last = max(seen, key=lambda one: parse_bytes(one.size))
            rate = format_rate(parse_bytes(last.size) / parse_seconds(last.seconds))
            shown = f"{format_bytes(parse_bytes(last.size))} in {last.seconds}, {rate}"
            lines.append(f"{operation} over {ranks} ranks: {shown}")
        lines += [f"left out    {one.what}: {one.why}" for one in measured.left_out]
        return "\n".join([*lines, f"file        {self.file}"])


def measure(
    *,
    chip: str | None = None,
    to: Path | None = None,
    sweep: Sweep = FULL,
    ranks: int | None = None,
    threads: int = 1,
    display: Display,
    starting: Starting = _PROCESSES,
) -> MeasureResult:
    """Measure this machine's accelerator, or its CPU, and write a file of measured facts.

    `chip` is a name of the facts or a file of one's own; by default what `train` would call this
    machine. `to` is measured/CHIP-DATE.toml if not given, and must not exist. Collectives run over
    2, 4, ... up to `ranks` devices (all, if not given; two processes of a CPU); `threads` are
    those of one CPU lane. Raises InputError before anything is measured, RunError if the device
    fails, Interrupted at Ctrl-C; then nothing is written. Where only collectives fail, the file
    says so.
    """
    start = time.monotonic()
    if ranks is not None and ranks < 2:
        fix = "give at least 2, or leave it out"
        raise InputError("a collective needs two ranks", key="--ranks", value=ranks, fix=fix)
    if to is not None:
        _require_writable(to)
    named, known, backend = _chip_here(chip)
    today = datetime.date.today()
    path = to or Path(FOLDER) / f"{known.name.replace('/', '-')}-{today.isoformat()}.toml"
    if to is None:
        _require_writable(path)
    groups, why_none = _groups(backend, ranks=ranks, threads=threads)
    found = _Findings(display)
    found.left_out += [{"what": "collective", "why": why_none}] if why_none else []
    try:
        with TemporaryDirectory(prefix="atoll-measure-") as scratch:
            stages = _Stages(
                folder=Path(scratch),
                chip=named,
                environment=known.environment,
                threads=threads,
                sweep=sweep,
                num_devices=1 if backend.device_type == "cpu" else backend.num_devices(),
            )
            _run(stages, groups, found, starting)
    except KeyboardInterrupt:
        raise Interrupted("stopped measuring; nothing was written") from None
    measured = found.measured(known.name, today)
    _write(path, to_toml(measured))
    return MeasureResult(file=path, measured=measured, seconds=time.monotonic() - start)


def _run(stages: _Stages, groups: Sequence[int], found: _Findings, starting: Starting) -> None:
    """One device alone, then the groups; where these fail, what the device told is kept."""
    with LocalCrew(
        entry=starting.entry,
        logs=stages.folder / "logs",
        preload=starting.preload,
        python_path=starting.python_path,
    ) as crew:
        found.display.phase("starting", None)
        stages.run(crew, "device", [], found.hear)
        if not groups:
            return
        try:
            stages.run(crew, "collectives", groups, found.hear)
        except RunError as error:
            found.display.say(f"collectives could not be measured: {error}")
            found.left_out.append({"what": "collective", "why": _last_line(error)})


def _chip_here(name: str | None) -> tuple[str, Chip, Backend]:
    """The chip to measure, as processes name it and as its facts do, and its backend.

    InputError if it is unknown or not in this machine.
    """
    if name is None:
        name = this_machine().island[0].chip
        return name, facts.chip(name), of_chip(name)
    try:
        chip = facts.resolve_chip(name)
    except InputError as error:
        error.key = error.key and error.key.replace("chip", "--chip", 1)
        raise
    backend = of_chip(chip)
    # A chip of whatever accelerator is here is none where only the CPU is.
    alone = chip.backend == "here" and backend.device_type == "cpu"
    if alone or not backend.available():
        raise InputError(
            "this machine has none: torch finds no such device",
            key="--chip",
            value=name,
            fix="measure on the machine that has it, or leave --chip out",
        )
    return str(Path(name).absolute()) if facts.is_chip_file(name) else chip.name, chip, backend


def _groups(backend: Backend, *, ranks: int | None, threads: int) -> tuple[list[int], str | None]:
    """Sizes of the groups to measure collectives in, or [] and why there are none."""
    cores = num_cores()
    if threads > cores:
        message = f"this machine has {cores}: threads would wait for one another"
        raise InputError(message, key="--threads", value=threads, fix=f"at most {cores}")
    reason = backend.unsupported.get(Feature.COLLECTIVE)
    most = ranks or CPU_RANKS
    if backend.device_type != "cpu":
        devices = backend.num_devices()
        if ranks is not None and ranks > devices:
            message = f"this machine has {devices}; a rank needs a device of its own"
            raise InputError(message, key="--ranks", value=ranks, fix="leave it out: all are taken")
        most = ranks or devices
        if devices == 1:
            reason = reason or "there is one device"
    if reason is not None:
        return [], reason
    return sorted({most, *(size for size in (2, 4, 8, 16, 32, 64) if size < most)}), None


def _require_writable(path: Path) -> None:
    """InputError if the file exists already, or could not be written where it shall lie."""
    key = "--to"
    if path.suffix != ".toml":
        fix = f"for example {FOLDER}/mine.toml"
        raise InputError("must end in .toml", key=key, value=str(path), fix=fix)
    if path.exists():
        fix = "give another file with --to, or remove this one"
        raise InputError("exists already; it is not overwritten", file=path, fix=fix)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"cannot be written: {above} is no folder", key=key, value=str(path))
    if not os.access(above, os.W_OK | os.X_OK):
        message = f"cannot be written: no right to write into {above}"
        raise InputError(message, key=key, value=str(path), fix="give another file with --to")


def _write(path: Path, text: str) -> None:
    """The whole file or none, also at Ctrl-C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        path.with_name(f".{path.name}.tmp").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """What the stages share: where they leave their files, and what all of them are told."""

    folder: Path
    chip: str
    environment: Mapping[str, str]
    threads: int
    sweep: Sweep
    num_devices: int

    def run(
        self,
        crew: LocalCrew,
        name: str,
        ranks: Sequence[int],
        hear: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Start the processes of one stage, hear their lines until all have ended.

        RunError with the end of its log if one fails; the crew ends the others.
        """
        results, order = self.folder / f"{name}.jsonl", self.folder / f"{name}.json"
        results.touch()
        content = {
            "chip": self.chip,
            "threads": self.threads,
            "sweep": asdict(self.sweep),
            "ranks": list(ranks),
            "num_devices": self.num_devices,
            "results": str(results),
            "meeting": str(self.folder / f"{name}.store"),
        }
        order.write_text(json.dumps(content), encoding="utf-8")
        waiting = {f"{name}-{rank}" for rank in range(max(ranks, default=1))}
        for rank, member in enumerate(sorted(waiting, key=lambda text: int(text.split("-")[1]))):
            crew.start(member, [str(order), str(rank)], self.environment)
        rest = ""
        with results.open(encoding="utf-8") as lines:
            while True:
                ended = crew.exited()  # before reading: what they wrote before is then seen
                *whole, rest = (rest + lines.read()).split("\n")
                for line in whole:
                    hear(json.loads(line))
                for member, status in ended.items():
                    if status != 0:
                        log = crew.log_tail(member)
                        raise RunError(f"{member} ended with status {status}:\n{log}")
                waiting -= ended.keys()
                if not waiting:
                    return
                time.sleep(_LOOK_SECONDS)


@dataclass(slots=True)
class _Findings:
    """The lines of the processes, gathered; progress among them goes to the display."""

    display: Display
    host: dict[str, Any] | None = None
    memory_size: str | None = None
    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take one line: progress, or one finding under its name."""
        if "phase" in line:
            self.display.phase(line["phase"], line["fraction"])
            return
        for name, value in line.items():
            if name == "host":
                self.host = value
            elif name == "memory_size":
                self.memory_size = value
            elif name == "left_out":
                self.left_out.append(value)
            else:
                self.entries.setdefault(name, []).append(value)

    def measured(self, chip: str, date: datetime.date) -> Measured:
        """The noun. RunError if nothing could be measured."""
        if not self.entries.get("gemm"):
            reasons = "; ".join(f"{one['what']}: {one['why']}" for one in self.left_out)
            raise RunError(f"no matrix product could be measured: {reasons or 'no reason given'}")
        copies = self.entries.get("copy")
        content = {
            "chip": chip,
            "date": date,
            "host": self.host,
            "memory": {"size": self.memory_size, "copies": copies} if copies else None,
            "left_out": self.left_out,
        }
        for name in ("gemm", "link", "collective"):
            content[name] = self.entries.get(name, [])
        return strict.validate(Measured, content)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
