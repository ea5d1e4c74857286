"""What the pilot itself costs a step, by the number of islands.

Claim: with 100 islands at most 40 ms a step, with 1,000 at most 400 ms; the split and the ledger
line of 100,000 grains take at most 100 ms each.

The pilot, its wire and its ledger are the real ones. The islands are 100 or 1,000 connections over
real sockets from one other process, which answers every message at once with numbers made up
beforehand, and says that it lives as often as an island does: nothing is computed, nothing is
exchanged. What is left is the control plane. A model of 12 layers (so many loads and exponents go
over the wire), 4 grains an island.

The islands share the machine with the pilot. What their process takes is in the table, so that one
can see what the pilot would not have to share; it reads as cheaply as it can, and takes a message
apart only where its answer depends on it.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import random
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import Report, arguments, run_main, scratch, tell

from atoll.crew import wire
from atoll.crew.frames import decode, encode
from atoll.recipe import Recipe
from atoll.run import Ledger, LedgerLine
from atoll.training import shares
from atoll.training.membership import Crewed
from atoll.training.pilot import Pilot

TOKEN = "benchmark"
VOCAB = 32000
GRAINS_AN_ISLAND = 4
TARGETS = {100: 0.040, 1000: 0.400}
MANY_GRAINS = 100_000


def recipe_for(num_islands: int) -> Recipe:
    """A step in which each island has a few grains."""
    return Recipe.from_dict(
        {
            "name": "control-plane",
            "seed": 1,
            "model": {"layers": 12, "width": 768, "heads": 12, "ffn": 2048, "context": 1024},
            "data": {"corpus": "unread", "tokenizer": {"train": VOCAB}},
            "batch": {"sequences": GRAINS_AN_ISLAND * num_islands, "grain": 1},
            "optimizer": {"lr": 1e-3},
            "schedule": {"steps": 100_000},
        }
    )


def main() -> None:
    """Parent: the pilot at each size; child: the islands."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--islands", type=int, help="only so many")
    parser.add_argument("--steps", type=int, default=30, help="counted steps")
    parser.add_argument("--profile", action="store_true", help="show where the pilot's time goes")
    parser.add_argument(
        "--alive", type=float, default=wire.ALIVE_SECONDS,
        help="seconds between an island's words that it lives (%(default)s); 0: none",
    )  # fmt: skip
    parser.add_argument("--be-islands", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_islands:
        be_islands(options.be_islands[0], int(options.be_islands[1]), float(options.be_islands[2]))
        return
    sizes = [options.islands] if options.islands else [10, 100, 1000]
    if options.quick:
        sizes, options.steps = [3], 2
    report = Report("The pilot's own time", quick=options.quick)
    measured = {size: measure(size, options) for size in sizes}
    head = ["islands", "ms a step (median)", "10-90 %", "pilot's thread, CPU ms a step",
            "its reading thread", "all islands' process", "bytes a step"]  # fmt: skip
    rows = [
        [
            f"{size:,}", f"{1e3 * m['median']:.1f}", f"{1e3 * m['low']:.1f}-{1e3 * m['high']:.1f}",
            f"{1e3 * m['own']:.1f}", f"{1e3 * m['threads']:.1f}", f"{1e3 * m['islands']:.1f}",
            f"{m['bytes']:,.0f}",
        ]
        for size, m in measured.items()
    ]  # fmt: skip
    report.table("A step without any computing.", head, rows)
    many = 1000 if options.quick else MANY_GRAINS
    parts = big_step(many)
    report.table(
        f"{many:,} grains on 1,000 islands.", ["part", "ms"],
        [[part, f"{1e3 * seconds:.1f}"] for part, seconds in parts.items()],
    )  # fmt: skip
    for size, bound in TARGETS.items():
        if size in measured:
            report.check(
                f"{size:,} islands, ms a step:", 1e3 * measured[size]["median"], 1e3 * bound,
                at_least=False, form=".1f",
            )  # fmt: skip
    for part, seconds in parts.items():
        report.check(f"{part}, ms:", 1e3 * seconds, 100.0, at_least=False, form=".1f")
    report.show()


# ---------------------------------------------------------------------- the pilot's side


@contextmanager
def islands_at(address: str, count: int, *, alive: float) -> Iterator[int]:
    """The process that is all islands; its id."""
    words = [sys.executable, __file__, "--be-islands", address, str(count), str(alive)]
    process = subprocess.Popen(words)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def measure(num_islands: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and processor seconds a step."""
    tell(f"{num_islands} islands")
    recipe = recipe_for(num_islands)
    crewed = Crewed(explain=lambda _name: "")
    with scratch() as folder, wire.Listener(token=TOKEN) as listener:
        crewed.listen_to(listener)
        with islands_at(listener.address, num_islands, alive=options.alive) as islands:
            names = [f"i{number}" for number in range(num_islands)]
            crewed.admit(names, waiting=lambda missing: tell(f"waiting for {len(missing)}"))
            pilot = Pilot(recipe=recipe, model=recipe.model.with_vocab(VOCAB), crew=crewed)
            pilot.prepare(vocab=VOCAB, shards=None, run="unread", store_port=0)
            crewed.elastic = True
            ledger = Ledger(folder / "ledger.jsonl")
            for _ in range(3):
                one_step(pilot, ledger)
            size = ledger_size(folder)
            profile = cProfile.Profile()
            whole, own, theirs = time.process_time(), time.thread_time(), seconds_of(islands)
            taken = []
            if options.profile:
                profile.enable()
            for _ in range(options.steps):
                taken.append(one_step(pilot, ledger))
            profile.disable()
            own, whole = time.thread_time() - own, time.process_time() - whole
            theirs = seconds_of(islands) - theirs
            size = (ledger_size(folder) - size) / options.steps
            ledger.close()
    if options.profile:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(14)
    tenths = statistics.quantiles(taken, n=10)
    return {
        "median": statistics.median(taken), "low": tenths[0], "high": tenths[-1],
        "own": own / options.steps, "threads": (whole - own) / options.steps,
        "islands": theirs / options.steps, "bytes": size,
    }  # fmt: skip


def one_step(pilot: Pilot, ledger: Ledger) -> float:
    """What `session` does for a step; its seconds."""
    started = time.perf_counter()
    whole = pilot.whole()
    split = shares.by_speed(
        pilot.recipe.num_grains,
        grain_seconds={name: member.grain_seconds for name, member in whole.items()},
        lanes={name: member.lanes for name, member in whole.items()},
    )
    line, values = pilot.open_step(shares.contiguous(split))
    ledger.append(line)
    pilot.commit(values)
    pilot.settle()
    return time.perf_counter() - started


def seconds_of(pid: int) -> float:
    """Processor seconds of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def ledger_size(folder: Path) -> int:
    """Bytes of the ledger so far."""
    return (folder / "ledger.jsonl").stat().st_size


def big_step(num_grains: int) -> dict[str, float]:
    """The split of a very large step and its ledger line; the best of five."""
    drawn = random.Random(1)
    seconds = {f"i{number}": drawn.uniform(0.5, 2.0) for number in range(1000)}
    lanes = {name: drawn.choice([1, 2, 8]) for name in seconds}
    best = {"by_speed": 1e9, "ledger line": 1e9}
    with scratch() as folder:
        ledger = Ledger(folder / "ledger.jsonl")
        for step in range(1, 6):
            started = time.perf_counter()
            split = shares.by_speed(num_grains, grain_seconds=seconds, lanes=lanes)
            best["by_speed"] = min(best["by_speed"], time.perf_counter() - started)
            started = time.perf_counter()
            grains = {
                name: [list(part) for part in parts]
                for name, parts in shares.contiguous(split).items()
            }
            line = LedgerLine(
                step=step, grains=grains, kinds=dict.fromkeys(seconds, "k" * 16), loss=1.0,
                grad_norm=1.0, lr=1e-3, clip=1.0, exponents_digest="e" * 64, sum_digest="s" * 16,
                fingerprint="f" * 64, probe={name: [7, "p" * 16] for name in seconds}, seconds=1.0,
                tokens=1, requantised=0, reassigned=[],
            )  # fmt: skip
            ledger.append(line)
            best["ledger line"] = min(best["ledger line"], time.perf_counter() - started)
        ledger.close()
    return best


# ---------------------------------------------------------------------- the islands' side


class Answers:
    """What an island says to each message; made up once, the same for all."""

    def __init__(self) -> None:
        self.num_tensors = len(recipe_for(1).model.with_vocab(VOCAB).tensors())
        self.alive = encode(wire.ALIVE, {})
        self._last: tuple[bytes, bytes] = b"", b""

    def answer(self, frame: bytes) -> bytes:
        """The frame that answers a frame; empty if none does. What all islands were told alike is
        answered alike, without another look.
        """
        if frame != self._last[0]:
            message = decode(frame[4:])
            self._last = frame, self._made_up(message.kind, message.fields)
        return self._last[1]

    def _made_up(self, kind: str, fields: Any) -> bytes:
        told: dict[str, Any]
        if kind == "prepare":
            told = {
                "lane_kind": {"kind": "nothing"}, "probes": ["p"], "grain_seconds": 1.0,
                "failed": [], "updates_on_host": False, "fingerprint": "0" * 64, "step": 0,
                "state": None, "sum_digest": 0, "memory": {"free": None, "total": None},
            }  # fmt: skip
            return encode("ready", told)
        if kind == "join":
            return encode("joined", {"epoch": fields["epoch"], "ok": True})
        if kind == "assign":
            grains = shares.grains_in(fields["ranges"])
            told = {
                "step": fields["step"], "turn": fields["turn"], "attempt": fields["attempt"],
                "loads": [format(len(grains) * 123456, "x")] * self.num_tensors,
                "losses": [[grain, 3.25] for grain in grains], "tokens": 1024 * len(grains),
                "not_finite": [], "probe": [grains[0], "0" * 16] if grains else None,
                "sum_digest": 0, "lane_seconds": [1.0] * len(grains), "seconds": 1.0,
            }  # fmt: skip
            return encode("result", told)
        if kind == "exchange":
            told = {"step": fields["step"], "epoch": fields["epoch"], "ok": True, "sum_digest": 0}
            return encode("exchanged", {**told, "squares": [[12345, 7]] * self.num_tensors})
        if kind == "commit":
            return encode("updated", {"step": fields["step"], "fingerprint": "f" * 64})
        if kind == "check":
            told = {"step": fields["step"], "grain": fields["grain"], "digest": "0" * 16}
            return encode("checked", told)
        return b""


def be_islands(address: str, count: int, alive: float) -> None:
    """So many connections in one thread, until killed."""
    answers, picked = Answers(), selectors.DefaultSelector()
    buffers: dict[socket.socket, bytearray] = {}
    for number in range(count):
        connection, _ = wire.dial(
            address, token=TOKEN, name=f"i{number}", facts={"chip": "cpu", "lanes": 1, "threads": 1}
        )
        raw = connection._socket
        raw.setblocking(True)
        buffers[raw] = connection._buffer  # what came with the welcome
        picked.register(raw, selectors.EVENT_READ)
    for raw, buffer in buffers.items():
        take(raw, buffer, b"", answers)
    order = list(buffers)
    due = time.monotonic()
    turn = 0
    while True:
        now = time.monotonic()
        while alive and due <= now:  # spread over the interval, as those of real islands are
            order[turn % count].sendall(answers.alive)
            turn += 1
            due += alive / count
        for key, _ in picked.select(max(0.0, due - time.monotonic()) if alive else None):
            raw = key.fileobj
            assert isinstance(raw, socket.socket)
            data = raw.recv(1 << 15)
            if not data:
                return
            take(raw, buffers[raw], data, answers)


def take(raw: socket.socket, buffer: bytearray, data: bytes, answers: Answers) -> None:
    """Answer all messages that are whole."""
    buffer += data
    while len(buffer) >= 4:
        (length,) = struct.unpack_from(">I", buffer)
        if len(buffer) < 4 + length:
            return
        answer = answers.answer(bytes(buffer[: 4 + length]))
        del buffer[: 4 + length]
        if answer:
            raw.sendall(answer)


if __name__ == "__main__":
    run_main(main)
