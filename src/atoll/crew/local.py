"""Islands on this machine: started, watched and stopped; none of them outlives its pilot.

An island here is started by the same path as by any launcher: a command line, nothing else. What
is special is the speed: one `atoll.crew.preload` process per distinct environment imports the heavy
libraries once and forks. Not here: what the command line says, and what to do when an island dies.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

_TAIL_BYTES = 256 * 1024


@dataclass(slots=True, kw_only=True)
class _Island:
    """One started process, from the request to its end."""

    name: str
    preloader: "_Preloader"
    log: Path
    log_start: int
    pid: int | None = None
    status: int | None = None


class _Preloader:
    """The preloading process of one environment, and the thread that hears its reports."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        on_report: Callable[[dict[str, Any]], None],
        on_end: Callable[["_Preloader", int], None],
    ) -> None:
        self.log = log
        self.alive = True
        self._on_report = on_report
        self._on_end = on_end
        self._writing = threading.Lock()
        with log.open("wb") as errors:
            # A session of its own: Ctrl-C in the terminal is for the pilot alone.
            self.process = subprocess.Popen(
                arguments,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests: IO[bytes] = self.process.stdin
        self._thread = threading.Thread(
            target=self._read, args=(self.process.stdout,), name=f"reports {log.name}", daemon=True
        )
        self._thread.start()

    def request(self, **fields: Any) -> None:
        """Write one line. A preloader that is gone is reported by `on_end`, not here."""
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._requests.write(json.dumps(fields).encode() + b"\n")
            self._requests.flush()

    def close(self, *, timeout: float) -> None:
        """End it, by ending its stdin; what it still holds dies with it."""
        with self._writing, contextlib.suppress(OSError):
            self._requests.close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._thread.join()

    def _read(self, reports: IO[bytes]) -> None:
        with reports:
            for line in reports:
                self._on_report(json.loads(line))
        self._on_end(self, self.process.wait())


class LocalCrew:
    """The islands of one pilot on this machine; use as `with LocalCrew(...) as crew`.

    `entry` is "module:function" with function(argv) -> status; it is imported in the island only.
    `preload` are the modules to import before forking. `logs` is the folder for one file of output
    per island (appended to). `python_path` are folders put before the islands' import path.
    `on_exit(name, status)` is called at once when an island ends, from a thread of the crew.

    When the pilot dies, however it dies, all islands die too. `host` is where they reach the pilot.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *,
        entry: str,
        logs: Path,
        preload: Sequence[str] = ("torch",),
        python_path: Sequence[Path] = (),
        on_exit: Callable[[str, int], None] | None = None,
    ) -> None:
        assert entry.count(":") == 1
        self._arguments = [sys.executable, "-P", "-m", "atoll.crew.preload", "--entry", entry]
        self._arguments += ["--preload", ",".join(preload)]
        self._logs = logs
        self._python_path = [str(path) for path in python_path]
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._islands: dict[str, _Island] = {}
        self._preloaders: dict[frozenset[tuple[str, str]], _Preloader] = {}
        self._ended_preloaders: list[_Preloader] = []
        self._exited: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._change = threading.Condition(self._lock)
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start an island; returns at once. `environment` is what its chip adds to ours.

        A failure to start is an exit like any other, with its reason in `log_tail`. A name may be
        used again after its process has ended.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self.log_path(name)
        with self._lock:
            assert not self._stopped
            old = self._islands.get(name)
            assert old is None or old.status is not None, f"{name} is running"
            preloader = self._preloader(environment)
            self._islands[name] = _Island(
                name=name,
                preloader=preloader,
                log=log,
                log_start=log.stat().st_size if log.exists() else 0,
            )
        preloader.request(start=name, argv=list(argv), log=str(log.absolute()))

    def warm(self, environment: Mapping[str, str]) -> None:
        """Begin importing for `environment` now, so that a later `start` finds it done."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._lock:
            assert not self._stopped
            self._preloader(environment)

    def _preloader(self, environment: Mapping[str, str]) -> _Preloader:
        """The living preloader of `environment`, started if there is none. Holds the lock."""
        key = frozenset(environment.items())
        preloader = self._preloaders.get(key)
        if preloader is None or not preloader.alive:
            if preloader is not None:
                self._ended_preloaders.append(preloader)
            number = len(self._preloaders) + len(self._ended_preloaders)
            preloader = self._preloaders[key] = _Preloader(
                self._arguments,
                environment=_child_environment(environment, self._python_path),
                log=self._logs / f"_preload-{number}.log",
                on_report=self._hear,
                on_end=self._lose,
            )
        return preloader

    def log_path(self, name: str) -> Path:
        """The file that holds the output of the island `name`."""
        return self._logs / log_name(name)

    def pids(self) -> dict[str, int]:
        """Process ids of the islands that run now."""
        with self._lock:
            return {
                island.name: island.pid
                for island in self._islands.values()
                if island.pid is not None and island.status is None
            }

    def exited(self) -> dict[str, int]:
        """Return codes of the islands that ended since the last call; negative: by that signal."""
        ended = {}
        with contextlib.suppress(queue.Empty):
            while True:
                name, status = self._exited.get_nowait()
                ended[name] = status
        return ended

    def log_tail(self, name: str, num_lines: int = 40) -> str:
        """The last lines that `name` has written since its last start.

        Where it wrote nothing, those of its preloader: a failed import is told there.
        """
        with self._lock:
            island = self._islands[name]
        text = read_tail(island.log, start=island.log_start)
        if not text.strip():
            text = read_tail(island.preloader.log, start=0)
        return "\n".join(text.splitlines()[-num_lines:])

    def kill(self, name: str) -> None:
        """Kill `name` and its children at once (SIGKILL); nothing happens if it has ended."""
        self._signal(name, signal.SIGKILL)

    def _signal(self, name: str, number: int) -> None:
        with self._lock:
            preloader = self._islands[name].preloader
        # The parent sends it: only the parent knows that the id is still this child's.
        preloader.request(signal=name, number=int(number))

    def stop(self, grace: float = 5.0) -> None:
        """Ask all to end (SIGTERM), kill after `grace` seconds whoever has not. May be repeated."""
        with self._lock:
            self._stopped = True
            preloaders = [*self._ended_preloaders, *self._preloaders.values()]
        if grace > 0:
            for name in self.running():
                self._signal(name, signal.SIGTERM)
            self.wait(grace)
        for name in self.running():
            self._signal(name, signal.SIGKILL)
        self.wait(2.0)
        for preloader in preloaders:
            preloader.close(timeout=5.0)

    def running(self) -> list[str]:
        """Names of the islands that were started and have not ended, begun or not."""
        with self._lock:
            return [island.name for island in self._islands.values() if island.status is None]

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds` until all islands have ended by themselves; True if so."""
        deadline = time.monotonic() + seconds
        with self._change:
            while any(island.status is None for island in self._islands.values()):
                left = deadline - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    return False
        return True

    def _hear(self, report: dict[str, Any]) -> None:
        if "started" in report:
            with self._lock:
                self._islands[report["started"]].pid = report["pid"]
        elif "exited" in report:
            self._end(report["exited"], report["status"])

    def _lose(self, preloader: _Preloader, status: int) -> None:
        """A preloader ended: all of its islands have, or are about to be killed by the kernel."""
        with self._lock:
            preloader.alive = False
            orphans = [
                island
                for island in self._islands.values()
                if island.preloader is preloader and island.status is None
            ]
        for island in orphans:
            if island.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(island.pid, signal.SIGKILL)
            self._end(island.name, -signal.SIGKILL if island.pid is not None else status or 1)

    def _end(self, name: str, status: int) -> None:
        with self._change:
            self._islands[name].status = status
            self._change.notify_all()
        self._exited.put((name, status))
        if self._on_exit is not None:
            self._on_exit(name, status)


def _child_environment(environment: Mapping[str, str], python_path: list[str]) -> dict[str, str]:
    """Our environment, what the chip adds, and a path on which the child finds this package."""
    complete = {**os.environ, **environment}
    paths = [*python_path, *filter(None, [complete.get("PYTHONPATH")])]
    here = Path(__file__).resolve().parents[2]
    if here.name not in ("site-packages", "dist-packages"):
        paths.append(str(here))  # a checkout that is not installed
    if paths:
        complete["PYTHONPATH"] = os.pathsep.join(paths)
    return complete


def log_name(name: str) -> str:
    """The name of the file for the output of the island `name`."""
    return name.replace("%", "%25").replace("/", "%2F") + ".log"


def read_tail(path: Path, *, start: int) -> str:
    """The end of a file, from `start` on; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
