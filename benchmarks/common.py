"""What the benchmarks share: arguments, the head and the table of a result, recipes and token data.

A result is printed as Markdown, so that it can go into docs/benchmarks.md as it is. No script
fails because a claim was missed: it says so in its last line.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atoll.data.sampler import Sampler
from atoll.data.shards import Shards, prepare
from atoll.errors import AtollError
from atoll.model import Model
from atoll.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "atoll"
QUICKSTART = ROOT / "examples" / "recipes" / "quickstart.toml"
TINY = ROOT / "examples" / "recipes" / "tiny.toml"

WIDTH_384 = (
    "name=width-384",
    "model.layers=6",
    "model.width=384",
    "model.heads=6",
    "model.kv_heads=2",
    "model.ffn=1024",
    "model.context=512",
    "data.tokenizer={train = 8192}",
)
"""Overrides of the quickstart recipe that make the shape that the claims on speed name."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------- arguments


def arguments(text: str) -> argparse.ArgumentParser:
    """A parser with what every script has: --quick and --cache."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test in seconds; its numbers mean nothing"
    )
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where token shards are kept (%(default)s)"
    )
    return parser


def run_main(main: Callable[[], None]) -> None:
    """Run a script's main; what the user can mend is told in one screen."""
    try:
        main()
    except AtollError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def tell(text: str) -> None:
    """Progress, on stderr: stdout holds the result alone."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- what a result stands on


@functools.cache
def processor() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


@functools.cache
def commit() -> str:
    """The commit of this checkout; a plus says that the sources differ from it."""
    changed = _git("status", "--porcelain", "--", "src", "benchmarks")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _busy_seconds() -> float | None:
    """Processor seconds that the whole machine has worked since it started."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Report:
    """One script's result: made at its start, printed at its end.

    It watches how busy the machine was with the work of others, because that decides what a number
    measured here is worth. All children must have ended before `show`.
    """

    def __init__(self, claim: str, *, quick: bool) -> None:
        self.claim = claim
        self.quick = quick
        self._started = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()
        self._parts: list[str] = []
        self._verdicts: list[str] = []

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; numbers are given as text, formatted by the caller."""
        cells = [[str(cell) for cell in row] for row in (head, *rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
            for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        self._parts.append("\n".join([title, "", *lines] if title else lines))

    def note(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(text)

    def check(self, what: str, value: float, bound: float, *, at_least: bool, form: str) -> None:
        """Add one claim and whether the measured value keeps it."""
        kept = value >= bound if at_least else value <= bound
        sign = ">=" if at_least else "<="
        self._verdicts.append(
            f"- {'kept' if kept else '**missed**'}: {what} {value:{form}} ({sign} {bound:{form}})"
        )

    def show(self) -> None:
        """Print everything."""
        print(f"**{self.claim}**\n")
        if self.quick:
            print("Quick run: a smoke test, its numbers mean nothing.\n")
        print("\n\n".join(self._parts))
        if self._verdicts:
            print("\n" + "\n".join(self._verdicts))
        print("\n" + self._stand(), flush=True)

    def _stand(self) -> str:
        seconds = time.perf_counter() - self._started
        others = "unknown"
        if self._busy is not None and (now := _busy_seconds()) is not None:
            foreign = (now - self._busy) - (_own_seconds() - self._own)
            others = f"{max(foreign, 0.0) / (seconds * cores()):.0%}"
        words = [f"`{shlex.join(['python', *_command()])}`"]
        words.append(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC")
        words.append(f"{cores()} cores of {processor()}")
        words.append(f"python {platform.python_version()}")
        words += [f"{name} {_version(name)}" for name in ("torch", "transformers")]
        words.append(f"atoll {commit()}")
        words.append(f"{seconds:.0f} s, other work on the machine meanwhile: {others} of its cores")
        return "Measured: " + "; ".join(words) + "."


def _command() -> list[str]:
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return [name, *sys.argv[1:]]


def spread(values: Sequence[float]) -> str:
    """The range of some rounds as "low-high"."""
    return f"{min(values):,.3g}-{max(values):,.3g}" if max(values) < 1000 else _whole(values)


def _whole(values: Sequence[float]) -> str:
    return f"{min(values):,.0f}-{max(values):,.0f}"


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of above / below: neighbours in time are compared with each other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


# ---------------------------------------------------------------------- recipes and data


def recipe_of(path: Path, *overrides: str) -> Recipe:
    """A recipe file with overrides, as `--set` takes them."""
    return Recipe.load(path, overrides)


def data_of(recipe: Recipe, cache: Path) -> Shards:
    """The token shards of a recipe; prepared once, then found in the cache."""

    def progress(text: str, fraction: float | None) -> None:
        if fraction is None:
            tell(text)

    return prepare(recipe.data, cache=cache, base=ROOT, progress=progress)


def sampler_of(recipe: Recipe, data: Shards) -> Sampler:
    """The recipe's order of sequences."""
    batch = recipe.batch
    return Sampler(
        data,
        seed=recipe.seed,
        context=recipe.model.context,
        sequences=batch.sequences,
        grain=batch.grain,
    )


def model_of(recipe: Recipe, data: Shards) -> Model:
    """The recipe's model with the vocabulary of its text."""
    return recipe.model.with_vocab(data.vocab)


def shape_of(recipe: Recipe, data: Shards) -> str:
    """One line that says what is trained."""
    m, b = model_of(recipe, data), recipe.batch
    return (
        f"width {m.width}, {m.layers} layers, length {m.context}, vocabulary {m.vocab}, "
        f"{m.num_parameters() / 1e6:.1f} M parameters; {b.num_grains} grains of "
        f"{b.grain * m.context} tokens a step"
    )


def fleet_file(folder: Path, name: str, *islands: dict[str, Any], mode: str = "auto") -> Path:
    """Write a fleet file and return its path."""
    lines = ["[shares]", f'mode = "{mode}"', ""]
    for island in islands:
        lines.append("[[island]]")
        for key, value in island.items():
            lines.append(f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}")
        lines.append("")
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines), encoding="ascii")
    return path


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for runs that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="atoll-benchmark-") as folder:
        yield Path(folder)
