"""The process that imports the heavy libraries once and forks an island for each request.

Run by `atoll.crew.local` as `python -m atoll.crew.preload --entry module:function --preload torch`
under the environment of one chip, which must be complete before those libraries are imported.
It reads JSON lines on stdin and writes JSON lines on stdout:

    {"start": name, "argv": [...], "log": path}   ->  {"started": name, "pid": n}
    {"signal": name, "number": n}                 ->  {"exited": name, "status": n}

Three rules. It starts no thread and computes nothing before it forks, for neither survives a fork.
Nobody outlives it: the kernel kills an island whose parent died (elsewhere than on Linux a thread
in the island does), and when stdin ends, because the pilot died, it kills all islands itself.
And an island is started in no other way than by a launcher's command line: entry(argv) -> status.
"""

import argparse
import ctypes
import faulthandler
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A request to start one island: its name, its command line and the file for its output."""

    name: str
    argv: list[str]
    log: str


@dataclass(slots=True, kw_only=True)
class Nursery:
    """What the preloader holds: where it reports, and its living children by name."""

    reports: int
    woken: socket.socket
    waker: socket.socket
    pids: dict[str, int] = field(default_factory=dict)
    unread: bytes = b""

    def report(self, **fields: Any) -> None:
        """Write one line; a pilot that is gone will be noticed by the end of stdin."""
        with suppress(OSError):
            os.write(self.reports, json.dumps(fields).encode() + b"\n")

    def reap(self) -> None:
        """Report every child that has ended, and kill what it left behind in its group."""
        for name, pid in list(self.pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended == pid:
                del self.pids[name]
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                self.report(exited=name, status=os.waitstatus_to_exitcode(status))

    def kill_all(self) -> None:
        """Kill all children at once and wait for their end: there is nobody left to ask."""
        for pid in self.pids.values():
            _signal_group(pid, signal.SIGKILL)
        for pid in self.pids.values():
            os.waitpid(pid, 0)
        self.pids.clear()

    def close(self) -> None:
        """Give up, in a child, what belongs to the preloader."""
        self.woken.close()
        self.waker.close()
        os.close(self.reports)


def main(arguments: Sequence[str] | None = None) -> int:
    """Import, say {"ready": pid}, then serve until stdin ends. In a child: run the island."""
    parser = argparse.ArgumentParser(prog="python -m atoll.crew.preload", description=__doc__)
    parser.add_argument("--entry", required=True, metavar="MODULE:FUNCTION")
    parser.add_argument("--preload", default="", metavar="MODULE,MODULE")
    options = parser.parse_args(arguments)
    # Whatever the imports print must not end up between the reports.
    reports = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in filter(None, options.preload.split(",")):
        importlib.import_module(module)
    nursery = _nursery(reports)
    # Keep the garbage collector of a child from writing into the pages that all share.
    gc.collect()
    gc.freeze()
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        sys.stderr.write(f"preload: importing has started threads that no fork has: {names}\n")
    nursery.report(ready=os.getpid())
    start = _serve(nursery)
    return 0 if start is None else _run_island(start, entry=options.entry)


def _nursery(reports: int) -> Nursery:
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    return Nursery(reports=reports, woken=woken, waker=waker)


def _serve(nursery: Nursery) -> Start | None:
    """Work until stdin ends (None), or, in a child just forked, return what it shall be."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(nursery.woken, select.POLLIN)
    while True:
        ready = {number for number, _ in poll.poll()}
        if nursery.woken.fileno() in ready:
            with suppress(BlockingIOError):
                nursery.woken.recv(4096)
        nursery.reap()
        if 0 not in ready:
            continue
        data = os.read(0, 65536)
        if not data:
            nursery.kill_all()
            return None
        *lines, nursery.unread = (nursery.unread + data).split(b"\n")
        for line in lines:
            start = _obey(nursery, json.loads(line))
            if start is not None:
                return start


def _obey(nursery: Nursery, request: dict[str, Any]) -> Start | None:
    if "signal" in request:
        pid = nursery.pids.get(request["signal"])
        if pid is not None:
            _signal_group(pid, request["number"])
        return None
    start = Start(name=request["start"], argv=request["argv"], log=request["log"])
    preloader = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal between the fork and the child's own settings would run the preloader's.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        pid = os.fork()
    except OSError as error:
        sys.stderr.write(f"cannot start island {start.name}: {error}\n")
        sys.stderr.flush()
        nursery.report(exited=start.name, status=1)
        pid = -1
    if pid == 0:
        nursery.close()
        _become_island(start, parent=preloader)
        return start
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
    if pid > 0:
        nursery.pids[start.name] = pid
        nursery.report(started=start.name, pid=pid)
    return None


def _become_island(start: Start, *, parent: int) -> None:
    """Cut the ties to preloader and terminal: own session, own output, own signals."""
    _die_with(parent)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    log = os.open(start.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _die_with(parent: int) -> None:
    """Have this process killed when `parent` ends, however it ends."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)  # it died before the kernel was told


def _watch(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run_island(start: Start, *, entry: str) -> int:
    """Call the entry as a command would be: a traceback and status 1 for what it does not catch."""
    faulthandler.enable()
    sys.argv = list(start.argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    try:
        module, _, function = entry.partition(":")
        return int(getattr(importlib.import_module(module), function)(list(start.argv)) or 0)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        sys.stderr.write(f"{leaving.code}\n")
        return 1
    except BaseException as error:
        assert error.__traceback__ is not None
        error.__traceback__ = error.__traceback__.tb_next  # less this function's own frame
        traceback.print_exception(error)
        return 1


def _signal_group(pid: int, number: int) -> None:
    """Signal a child and its own children; the child alone while it has no group yet."""
    with suppress(PermissionError):  # what some systems say of a group of zombies
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)


if __name__ == "__main__":
    status = main()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: the libraries' goodbyes would run in a fork that never said hello, and a
    # thread left behind must not keep a finished island alive.
    os._exit(status & 0xFF)
