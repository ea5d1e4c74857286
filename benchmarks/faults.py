"""What the end of an island costs, beside a restart from a checkpoint and beside torchft.

Claims: after `kill -9` of one of three islands in the middle of a step the others commit that very
step at most 1.6 steps + 1 s later; an island that comes back delays no step of the others by more
than one step; with a failure every 20 steps goodput is at least 0.90.

Goodput is the time that as many steps take without faults / the time taken; without faults are
quiet steps before the first kill or after the last, whichever are faster. All train our decoder of
the same shape in three processes of one thread each; each contender is measured in its own
steps, and runs alone. The kills come at the middle of a step; who is killed is started again at
once: by `atoll train` itself, by torchrun, and for torchft by this script.

`--chaos N` is another thing: N faults of all kinds at random, and the bits of a quiet run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import (
    QUICKSTART,
    ROOT,
    TINY,
    Report,
    arguments,
    data_of,
    fleet_file,
    model_of,
    recipe_of,
    run_main,
    scratch,
    shape_of,
    tell,
)

PEER = Path(__file__).with_name("faults_peer.py")
TESTS = ROOT / "tests" / "processes"
NAMES = ("a", "b", "c")
LOOK_SECONDS = 0.01


@dataclass(slots=True)
class Story:
    """What was measured of one contender."""

    name: str
    median: float = 0.0
    mean: float = 0.0
    recoveries: list[float] = field(default_factory=list)
    goodput: float = 0.0
    slowest_join: list[float] = field(default_factory=list)
    note: str = ""


class Commits:
    """Reads the lines that a contender appends for each step, with the time it saw them."""

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        self._path, self._alive = path, alive
        self._read = 0
        self.seen: list[tuple[float, int]] = []  # (time, step)

    def look(self) -> None:
        """Take in what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        now = time.perf_counter()
        self.seen += [(now, json.loads(line)["step"]) for line in whole.splitlines()]

    def wait(self, condition: Callable[[], bool], seconds: float = 300.0) -> None:
        """Look until `condition` holds. RuntimeError if the contender ends or nothing happens."""
        deadline = time.perf_counter() + seconds
        while True:
            self.look()
            if condition():
                return
            if not self._alive() or time.perf_counter() > deadline:
                raise RuntimeError("it ended, or stood still")
            time.sleep(LOOK_SECONDS)

    @property
    def step(self) -> int:
        """The highest step so far."""
        return max((step for _, step in self.seen), default=0)

    def seconds(self, first: int) -> list[float]:
        """Times between neighbouring commits from the `first`-th on."""
        times = [at for at, _ in self.seen[first:]]
        return [b - a for a, b in itertools.pairwise(times)]


def measure(story: Story, commits: Commits, strike: Callable[[int], None], options: Any) -> None:
    """Quiet steps, then a kill every so many steps."""
    commits.wait(lambda: commits.step >= 3)
    first = len(commits.seen)
    quiet = commits.step + options.every
    commits.wait(lambda: commits.step >= quiet)
    quiet_steps = commits.seconds(first)
    story.median, story.mean = statistics.median(quiet_steps), statistics.mean(quiet_steps)
    began, done = commits.seen[-1][0], commits.step
    for turn in range(options.kills):
        at = len(commits.seen)
        commits.wait(lambda at=at: len(commits.seen) > at)  # type: ignore[misc]  # a default binds it
        time.sleep(story.median / 2)
        commits.look()
        interrupted, at = commits.step + 1, len(commits.seen)
        struck = time.perf_counter()
        strike(turn)
        commits.wait(lambda: any(step >= interrupted for _, step in commits.seen[at:]))  # noqa: B023
        back = next(t for t, step in commits.seen[at:] if step >= interrupted)
        story.recoveries.append(back - struck)
        after = len(commits.seen)
        goal = interrupted + options.every - 2
        commits.wait(lambda: commits.step >= goal)  # noqa: B023
        story.slowest_join.append(max(commits.seconds(after - 1), default=0.0))
    ended, steps, first = commits.seen[-1][0], commits.step - done, len(commits.seen)
    quiet = commits.step + options.every
    commits.wait(lambda: commits.step >= quiet)
    story.mean = min(story.mean, statistics.mean(commits.seconds(first)))
    story.goodput = steps * story.mean / (ended - began)


# ---------------------------------------------------------------------- the contenders


def recipe_for(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """The quickstart's model; as many sequences as make a step long enough to be hit."""
    path = TINY if options.quick else QUICKSTART
    return path, [
        f"batch.sequences={options.sequences}",
        "batch.grain=1",
        "schedule.steps=100000",
        "run.checkpoint_every=10",
        "run.validate_every=100000",
    ]


def ours(options: argparse.Namespace, folder: Path) -> Story:
    """`atoll train` in a process of its own; islands note their process ids for us."""
    story = Story("atoll train")
    run = folder / "run"
    words = [sys.executable, str(Path(__file__).resolve()), "--be-atoll", str(folder)]
    words += ["--sequences", str(options.sequences), "--cache", str(options.cache)]
    words += ["--quick"] if options.quick else []
    with (folder / "atoll.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            commits = Commits(run / "ledger.jsonl", lambda: process.poll() is None)

            def strike(turn: int) -> None:
                name = NAMES[turn % len(NAMES)]
                paths = sorted(run.glob(f"pid-{name}-*"), key=lambda path: path.stat().st_mtime)
                os.kill(int(paths[-1].name.rpartition("-")[2]), signal.SIGKILL)

            measure(story, commits, strike, options)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        except RuntimeError as error:
            story.note = f"{error}: {_end_of(folder / 'atoll.log')}"
        finally:
            process.kill()
            process.wait()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    story.note = story.note or f"{sum(e['kind'] == 'healed' for e in events)} islands came back"
    return story


def be_atoll(options: argparse.Namespace) -> None:
    """The child of `ours`."""
    from atoll.training.crewing import Starting
    from atoll.training.display import SilentDisplay
    from atoll.training.session import train

    path, overrides = recipe_for(options)
    folder = Path(options.be_atoll)
    islands = [{"name": name, "chip": "cpu", "threads": 1} for name in NAMES]
    train(
        str(path),
        display=SilentDisplay(),
        fleet=fleet_file(folder, "fleet", *islands),
        run=folder / "run",
        overrides=overrides,
        cache=options.cache,
        starting=Starting(entry="training_faults:plain", python_path=[TESTS, ROOT]),
    )


def torchrun(options: argparse.Namespace, folder: Path) -> Story:
    """DDP under torchrun: all ranks start again from the last checkpoint."""
    story = Story(f"torchrun, DDP, a checkpoint every {options.checkpoint} steps")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", "3", "--max-restarts", "100", str(PEER), "ddp"]
    words += [*_peer_words(options, folder), "--every", str(options.checkpoint)]
    return _peer(story, folder, [words], options, lambda turn: 1 + turn % 2, _environment())


def torchft(options: argparse.Namespace, folder: Path) -> Story:
    """torchft with a lighthouse; this script starts a killed replica again."""
    python = Path(options.torchft_python)
    beat = ["--heartbeat_timeout_ms", str(options.torchft_beat)]
    story = Story(f"torchft 0.2.0, heartbeat time-out {options.torchft_beat / 1000:g} s")
    port = 29517 + options.torchft_beat % 97
    lighthouse = [str(python.parent / "torchft_lighthouse"), "--min_replicas", "1"]
    lighthouse += ["--join_timeout_ms", "1000", "--quorum_tick_ms", "20", *beat]
    lighthouse += ["--bind", f"0.0.0.0:{port}"]
    words = [str(python), str(PEER), "ft", *_peer_words(options, folder)]
    words += ["--lighthouse", f"http://localhost:{port}"]
    replicas = [[*words, "--replica", str(rank)] for rank in range(3)]
    return _peer(
        story, folder, [lighthouse, *replicas], options, lambda turn: 1 + turn % 2, _environment()
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def _peer_words(options: argparse.Namespace, folder: Path) -> list[str]:
    path, overrides = recipe_for(options)
    recipe = recipe_of(path, *overrides)
    model = model_of(recipe, data_of(recipe, options.cache)).model_dump_json()
    return ["--model", model, "--sequences", str(options.sequences), "--folder", str(folder)]


def _peer(
    story: Story,
    folder: Path,
    commands: Sequence[Sequence[str]],
    options: argparse.Namespace,
    victim: Callable[[int], int],
    environment: dict[str, str],
) -> Story:
    """Run a peer's processes; rank 0, whose commits are read, is never killed."""
    log = (folder / "peer.log").open("w")
    started = [
        subprocess.Popen(list(words), stdout=log, stderr=log, env=environment) for words in commands
    ]
    many = len(commands) > 1

    def strike(turn: int) -> None:
        rank = victim(turn)
        os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
        if many:
            started[1 + rank].wait()
            words = list(commands[1 + rank])
            started[1 + rank] = subprocess.Popen(words, stdout=log, stderr=log, env=environment)

    try:
        commits = Commits(folder / "commits-0.jsonl", lambda: started[0].poll() is None)
        measure(story, commits, strike, options)
    except RuntimeError as error:
        story.note = f"{error}: {_end_of(folder / 'peer.log')}"
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM if not many else signal.SIGKILL)
        for process in started:
            process.wait()
        log.close()
    return story


def _end_of(path: Path) -> str:
    """The last line of a log."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "nothing was said"


# ---------------------------------------------------------------------- the table


def main() -> None:
    """All contenders, one after the other; or chaos."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--sequences", type=int, default=30, help="grains a step (%(default)s)")
    parser.add_argument("--every", type=int, default=20, help="steps between two kills")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--checkpoint", type=int, default=10, help="steps between torchrun's")
    parser.add_argument("--torchft-python", help="a Python that has torchft, torch and pydantic")
    parser.add_argument("--torchft-beat", type=int, default=5000, help="ms; its default is 5000")
    parser.add_argument("--chaos", type=int, metavar="N", help="N faults of all kinds at random")
    parser.add_argument("--seed", type=int, default=1, help="of the chaos")
    parser.add_argument("--be-atoll", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_atoll:
        be_atoll(options)
        return
    if options.quick:
        options.sequences, options.every, options.kills = 6, 3, 1
    report = Report("What the end of an island costs", quick=options.quick)
    if options.chaos:
        chaos(options, report)
    else:
        compare(options, report)
    report.show()


def compare(options: argparse.Namespace, report: Report) -> None:
    """The table and the claims."""
    path, overrides = recipe_for(options)
    recipe = recipe_of(path, *overrides)
    data = data_of(recipe, options.cache)
    contenders: list[Callable[[argparse.Namespace, Path], Story]] = [ours, torchrun]
    if options.torchft_python:
        contenders.append(torchft)
    stories = []
    for contender in contenders:
        with scratch() as folder:
            tell(contender.__name__)
            stories.append(contender(options, folder))
    head = ["", "quiet step, s", "kill to commit, s", "in steps",
            "slowest step after it, in steps", "goodput", ""]  # fmt: skip
    rows = [[s.name, *_numbers(s), s.note] for s in stories]
    report.table(
        f"{shape_of(recipe, data)}; 3 processes of 1 thread; {options.kills} kills, one every "
        f"{options.every} steps. Medians, and the range.",
        head,
        rows,
    )
    mine = stories[0]
    if mine.goodput:
        bound = 1.6 * mine.median + 1.0
        worst = statistics.median(mine.recoveries)
        report.check("kill to commit, s:", worst, bound, at_least=False, form=".2f")
        delay = statistics.median(mine.slowest_join) / mine.median - 1.0
        text = "an island that comes back delays a step by, in steps:"
        report.check(text, delay, 1.0, at_least=False, form=".2f")
        report.check("goodput:", mine.goodput, 0.90, at_least=True, form=".2f")


def _numbers(story: Story) -> list[str]:
    if not story.goodput:
        return ["-"] * 5
    steps = [seconds / story.median for seconds in story.recoveries]
    joins = [seconds / story.median for seconds in story.slowest_join]
    return [
        f"{story.median:.2f} (mean {story.mean:.2f})",
        f"{statistics.median(story.recoveries):.2f} ({_range(story.recoveries)})",
        f"{statistics.median(steps):.2f}",
        f"{statistics.median(joins):.2f} ({_range(joins)})",
        f"{story.goodput:.2f}",
    ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}"


# ---------------------------------------------------------------------- chaos


def chaos(options: argparse.Namespace, report: Report) -> None:
    """Real processes, real signals, the bits of a quiet run."""
    sys.path[:0] = [str(ROOT), str(TESTS)]
    from tests.processes.chaos import Chaos, bits_of, check_grains

    from atoll.run import Ledger
    from conftest import World

    with scratch() as folder:
        world = World(folder / "world")
        run, forever = folder / "run", ["schedule.steps=1000000", "run.checkpoint_every=50"]
        driver = Chaos(run, seed=options.seed, num_faults=options.chaos).start()

        def end() -> None:
            while not driver.over.is_set() and driver.error is None:
                if driver.faults.total() >= options.chaos:
                    break
                tell(f"{driver.faults.total()} faults")
                time.sleep(5.0)
            signal.raise_signal(signal.SIGINT)

        threading.Thread(target=end, daemon=True).start()
        result = world.train("re-split", run, entry="brisk", overrides=forever)
        driver.stop()
        tell(f"{result.step} steps; now a quiet run of as many")
        quiet = world.train(
            "one", folder / "quiet", entry="plain", overrides=forever, until=result.step
        )
        lines = Ledger(run / "ledger.jsonl").read()
        same = bits_of(lines) == bits_of(Ledger(quiet.run / "ledger.jsonl").read())
        check_grains(lines, 6)
        if not same:
            shutil.copytree(run, Path("chaos-run"), dirs_exist_ok=True)
    rows = [[kind, count] for kind, count in sorted(driver.faults.items())]
    report.table(f"{result.step} steps, seed {options.seed}.", ["fault", "how often"], rows)
    report.note(
        f"Every grain of every step exactly once; ledger lines "
        f"{'the same' if same else '**not** the same'} as in a quiet run; last fingerprint "
        f"{'the same' if result.fingerprint == quiet.fingerprint else '**not** the same'}."
    )


if __name__ == "__main__":
    run_main(main)
