"""Many clients for minutes, a third of whom leave midway: nothing leaks, hangs or is lost.

Claim: 64 clients at a time for two minutes, with prompts and answers of mixed lengths, streamed or
not; a third of all requests are given up by their client on the way. Every request is answered to
its end or refused with 429 and a Retry-After; afterwards no slot, no page of the cache, no
connection is held, the server's memory has not grown, and the same request gets the same text as
before. The exit code is 1 if not. Speed is told, and no claim: `benchmarks/serving.py` has it.

The server is `atoll serve` in a process of its own; the clients are one process with asyncio.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from common import Report, arguments, run_main

HANG = 300.0  # seconds without a byte: a request that takes longer hangs
_TEXT = "the cat sat on a mat while seven old ships sailed home through rain and cold light"
WORDS = tuple(_TEXT.split())
GROWTH = 48 << 20  # bytes: what an allocator may keep between a warm server and the end


@dataclass
class Seen:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    tokens: int = 0


def main() -> None:
    """Load a server, then look at what is left."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="smollm2", help="as for atoll serve (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of load (%(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="at a time (%(default)s)")
    parser.add_argument(
        "--longest", type=int, default=160, help="tokens of an answer (%(default)s)"
    )
    parser.add_argument(
        "--patience", type=float, default=6.0,
        help="seconds after which a client that leaves has left (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.clients, options.longest = 4.0, 8, 12
    report = Report((__doc__ or "").split("\n\n")[1].replace("\n", " "), quick=options.quick)
    server = subprocess.Popen(
        [sys.executable, "-m", "atoll", "serve", options.model, "--port", "0", "--no-page",
         "--max-queue", "40", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        wrong = asyncio.run(load(ready, server.pid, options, report))
        server.send_signal(signal.SIGTERM)
        if server.wait(60) != 0:
            wrong.append(f"the server ended with {server.returncode}")
    finally:
        server.kill()
        server.wait()
    for line in wrong[:20]:
        report.note(f"**wrong**: {line}")
    report.note("Nothing was lost, held or leaked." if not wrong else f"{len(wrong)} wrong.")
    report.show()
    if wrong:
        raise SystemExit(1)


async def load(ready: dict[str, Any], pid: int, options: Any, report: Report) -> list[str]:
    """Run the clients; what was wrong."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(base_url=ready["url"], limits=limits, timeout=HANG) as http:
        probe = {"model": ready["model"], "prompt": "Once upon a time", "seed": 1, "max_tokens": 24}
        before = (await http.post("/v1/completions", json=probe)).json()["choices"][0]["text"]
        start = resources(pid)
        seen, warm = Seen(), start
        began = time.monotonic()
        tasks = [
            asyncio.create_task(client(http, ready["model"], number, began, options, seen))
            for number in range(options.clients)
        ]
        # Warm: every size of batch and prompt has been met, the cache is full.
        await asyncio.sleep(options.seconds / 2)
        warm = resources(pid)
        await asyncio.gather(*tasks)
        seconds = time.monotonic() - began
        left = await settled(http)
        after = (await http.post("/v1/completions", json=probe)).json()["choices"][0]["text"]
    await asyncio.sleep(0.3)
    end = resources(pid)
    wrong = seen.wrong + left
    if after != before:
        wrong.append(f"the same request got {after!r} after the load, {before!r} before")
    if end["memory"] - warm["memory"] > GROWTH:
        wrong.append(f"memory grew from {warm['memory'] >> 20} to {end['memory'] >> 20} MiB")
    for what, slack in (("files", 2), ("threads", 40)):  # threads of a pool that is bounded
        if end[what] > start[what] + slack:
            wrong.append(f"{what}: {start[what]} before, {end[what]} after")
    show(report, ready, options, seen, seconds, (start, warm, end))
    return wrong


async def client(
    http: httpx.AsyncClient, model: str, number: int, began: float, options: Any, seen: Seen
) -> None:
    """One request after another until the time is over."""
    drawn = random.Random(number)
    while time.monotonic() - began < options.seconds:
        longest = 160 if options.longest > 50 else 20  # words of a prompt
        words = drawn.choices(WORDS, k=drawn.choice([3, 12, 40, longest]))
        body = {
            "model": model,
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": drawn.randint(1, options.longest),
            "temperature": drawn.choice([0.0, 1.0]),
            "stream": drawn.random() < 0.7,
            "user": str(number),
        }
        leaves = drawn.random() < 1 / 3
        patience = drawn.uniform(0.05, 1.0) * options.patience if leaves else HANG
        try:
            async with asyncio.timeout(patience):
                await ask(http, body, seen)
        except TimeoutError:
            seen.outcomes["left midway" if leaves else "hung"] += 1
            if not leaves:
                seen.wrong.append(f"a request got no end in {HANG:g} s")
        except Exception as error:
            seen.outcomes["failed"] += 1
            seen.wrong.append(f"{type(error).__name__}: {error}")


async def ask(http: httpx.AsyncClient, body: dict[str, Any], seen: Seen) -> None:
    """One request to its end; what it was is counted."""
    began = time.monotonic()
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code == 429:
            await answer.aread()
            seen.outcomes["refused: 429"] += 1
            wait = answer.headers.get("Retry-After")
            if wait is None:
                seen.wrong.append("429 without Retry-After")
            await asyncio.sleep(min(float(wait or 1), 3.0))
            return
        if answer.status_code != 200:
            text = (await answer.aread()).decode()
            seen.outcomes[f"status {answer.status_code}"] += 1
            seen.wrong.append(f"status {answer.status_code}: {text[:200]}")
            return
        if body["stream"]:
            await read_stream(answer, began, seen)
        else:
            content = json.loads(await answer.aread())
            reason = content["choices"][0]["finish_reason"]
            seen.tokens += content["usage"]["completion_tokens"]
            seen.outcomes[f"answered whole: {reason}"] += 1


async def read_stream(answer: httpx.Response, began: float, seen: Seen) -> None:
    """Events up to the last."""
    reason, done, first = None, False, True
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            done = True
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            seen.outcomes["error in a stream"] += 1
            seen.wrong.append(f"error in a stream: {event['error']['message']}")
            return
        choice = event["choices"][0]
        reason = choice["finish_reason"] or reason
        if choice["delta"].get("content"):
            seen.tokens += 1
            if first:
                seen.first_token.append(time.monotonic() - began)
                first = False
    if not done or reason is None:
        seen.wrong.append("a stream broke off")
    seen.outcomes[f"answered streamed: {reason}"] += 1


async def settled(http: httpx.AsyncClient) -> list[str]:
    """What is still held when all clients have gone."""
    end = time.monotonic() + 30
    while True:
        text = (await http.get("/metrics")).text
        values = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if not line.startswith("#")
        }
        held = [
            f"{name} is {values[name]:g}, not {wanted}"
            for name, wanted in (
                ("atoll_running_requests", 0),
                ("atoll_queued_requests", 0),
                ("atoll_cache_used_bytes", 0),
                ("atoll_open_requests", 1),  # this one
            )
            if values[name] != wanted
        ]
        if not held or time.monotonic() > end:
            return held
        await asyncio.sleep(0.1)


def resources(pid: int) -> dict[str, int]:
    """Bytes of memory, open files and threads of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = {line.partition(":")[0]: line.partition(":")[2].split() for line in status.splitlines()}
    return {
        "memory": int(found["VmRSS"][0]) * 1024,
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(found["Threads"][0]),
    }


def show(
    report: Report,
    ready: dict[str, Any],
    options: Any,
    seen: Seen,
    seconds: float,
    stages: tuple[dict[str, int], dict[str, int], dict[str, int]],
) -> None:
    """The tables."""
    total = sum(seen.outcomes.values())
    report.table(
        f"{ready['model']}: {options.clients} clients, {seconds:.0f} s, answers of up to "
        f"{options.longest} tokens",
        ["outcome", "requests", "share"],
        [[what, n, f"{n / total:.1%}"] for what, n in sorted(seen.outcomes.items())],
    )
    waits = sorted(seen.first_token)
    if waits:
        report.note(
            f"{seen.tokens / seconds:,.1f} tokens/s read by clients that stayed; time to the first "
            f"token, queue included: median {waits[len(waits) // 2]:.2f} s, "
            f"99th of 100 {waits[int(len(waits) * 0.99)]:.2f} s."
        )
    report.table(
        "The server's process",
        ["", "before", "half-way", "after"],
        [
            ["resident memory, MiB", *(f"{s['memory'] / 2**20:,.0f}" for s in stages)],
            ["open files", *(s["files"] for s in stages)],
            ["threads", *(s["threads"] for s in stages)],
        ],
    )


if __name__ == "__main__":
    run_main(main)
