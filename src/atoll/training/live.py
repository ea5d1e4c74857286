"""The live page of a run on a terminal: learning curve, islands, progress, last messages.

It draws what `display.Snapshot` holds and nothing else; Rich repaints it in a thread of its own,
so that a slow terminal does not slow the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from atoll.training.curve import ASCII, UNICODE, Points, draw
from atoll.training.display import IslandView, Pace, Snapshot, validation_of
from atoll.units import format_count, format_seconds

_PAINTS_PER_SECOND = 2.5
_WIDEST = 120
_MOST_MESSAGES = 3
_MOST_ISLANDS = 12
_STATE_STYLES = {
    "computing": "green",
    "training": "green",
    "joining": "yellow",
    "waiting": "yellow",
    "lost": "red",
}


class LiveDisplay:
    """A page that is repainted in place; messages scroll away above it."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._glyphs = ASCII if console.options.ascii_only else UNICODE
        self._lock = threading.Lock()
        self._pace = Pace(clock)
        self._train = Points()
        self._validation = Points()
        self._snapshot: Snapshot | None = None
        self._phase: tuple[str, float | None] | None = None
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")
        self._live = Live(
            console=console,
            get_renderable=self.page,
            refresh_per_second=_PAINTS_PER_SECOND,
            redirect_stdout=False,
        )
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Take the new state; it is painted a moment later."""
        with self._lock:
            before, self._snapshot = self._snapshot, snapshot
            self._phase = None
            self._pace.seen(snapshot.step)
            if snapshot.loss is not None and (before is None or snapshot.step > before.step):
                self._train.add(snapshot.step, snapshot.loss)
            known = before.val_loss if before is not None else None
            if snapshot.val_loss is not None and snapshot.val_loss != known:
                self._validation.add(snapshot.step, snapshot.val_loss)
        if snapshot.message and (before is None or snapshot.message != before.message):
            self.say(snapshot.message)
        self._start()

    def say(self, text: str) -> None:
        """Print the text above the page."""
        self._console.print(Text(text), soft_wrap=True)

    def phase(self, text: str, fraction: float | None) -> None:
        """Show what is being prepared."""
        with self._lock:
            self._phase = (text, fraction)
        self._start()

    def close(self) -> None:
        """Paint a last time and hand the terminal back."""
        if not self._closed:
            self._closed = True
            with self._lock:
                self._phase = None
            if self._live.is_started:
                self._live.stop()

    def page(self) -> RenderableType:
        """The page as it stands now, fitted to the console."""
        with self._lock:
            parts: list[RenderableType] = []
            width = min(_WIDEST, self._console.width)
            if self._snapshot is not None:
                parts.append(self._run(self._snapshot, width))
            if self._phase is not None:
                parts.append(self._preparing(*self._phase, width))
            return Group(*parts)

    def _start(self) -> None:
        if not self._live.is_started and not self._closed:
            self._live.start(refresh=True)

    def _preparing(self, text: str, fraction: float | None, width: int) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        if fraction is None:
            line.add_row(self._spinner, Text(text))
        else:
            bar = ProgressBar(total=1.0, completed=fraction, width=min(30, width // 3))
            line.add_row(self._spinner, Text(text), bar, Text(f"{fraction:4.0%}"))
        return line

    def _run(self, snapshot: Snapshot, width: int) -> RenderableType:
        inside = width - 4
        islands = snapshot.islands
        # All that is not the curve: borders, numbers, table with its head, progress, blank lines.
        used = 9 + min(len(islands), _MOST_ISLANDS + 1)
        height = max(6, min(14, self._console.height - used - 2))
        parts: list[RenderableType] = [_numbers(snapshot, self._glyphs.mark, inside), Text()]
        parts += draw(
            self._train.series(),
            self._validation.series(),
            width=inside,
            height=height,
            last_step=snapshot.total_steps,
            glyphs=self._glyphs,
        )
        if islands:
            parts += [Text(), _table(islands, inside)]
        parts += [Text(), self._progress(snapshot, inside)]
        title = Text.assemble((" atoll ", "bold cyan"), (f"{snapshot.run} ", "bold"))
        contract = Text(f" {snapshot.contract} ", "dim")
        return Panel(
            Group(*parts),
            title=title,
            title_align="left",
            subtitle=contract,
            subtitle_align="right",
            box=box.ROUNDED,
            border_style="blue",
            width=width,
        )

    def _progress(self, snapshot: Snapshot, width: int) -> RenderableType:
        done, total = snapshot.step, max(1, snapshot.total_steps)
        left = self._pace.left(total)
        texts = [f"step {done:,} of {total:,}", f"{done / total:.0%}"]
        if done >= total:
            texts.append("done")
        elif left is not None:
            texts.append(f"{format_seconds(max(1, round(left)))} left")
        words = "   ".join(texts)
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(
            total=total,
            completed=done,
            width=max(10, width - len(words) - 2),
            complete_style="cyan",
            finished_style="green",
        )
        line.add_row(bar, Text(words))
        return line


def _numbers(snapshot: Snapshot, mark: str, width: int) -> Text:
    """The line of numbers above the curve, as many as fit."""
    line = Text()
    if snapshot.loss is not None:
        line.append("loss ", "dim").append(f"{snapshot.loss:.4f}", "bold cyan").append("   ")
    if snapshot.val_loss is not None:
        line.append(f"{mark} ", "bold yellow").append("validation ", "dim")
        line.append(validation_of(snapshot), "yellow").append("   ")
    if snapshot.tokens_per_second is not None:
        line.append(f"{snapshot.tokens_per_second:,.0f}", "bold").append(" tokens/s   ", "dim")
    tokens = format_count(snapshot.tokens)
    if line.cell_len + len(tokens) + 7 <= width:
        line.append(tokens).append(" tokens", "dim")
    return line


def _table(islands: Iterable[IslandView], width: int) -> Table:
    """The islands, one a row; the rest of many is summed up in a last row."""
    islands = list(islands)
    shown, hidden = islands[:_MOST_ISLANDS], islands[_MOST_ISLANDS:]
    all_grains = max(1, sum(island.grains for island in islands))
    bar_width = 24 if width >= 100 else 10
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    for name in ("island", "chip"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=bar_width + 6)
    table.add_column("lanes", justify="right")
    table.add_column("share", no_wrap=True)
    table.add_column("grains", justify="right")
    table.add_column("grains/s", justify="right")
    table.add_column("state", no_wrap=True)
    for island in shown:
        speed = island.grains_per_second
        table.add_row(
            Text(island.name, "bold"),
            island.chip,
            str(island.lanes),
            ProgressBar(
                total=all_grains,
                completed=island.grains,
                width=bar_width,
                complete_style="cyan",
                finished_style="cyan",
            ),
            str(island.grains),
            "" if speed is None else f"{speed:.1f}",
            Text(island.state, _STATE_STYLES.get(island.state, "")),
        )
    if hidden:
        grains = sum(island.grains for island in hidden)
        table.add_row(Text(f"{len(hidden)} more", "dim"), "", "", "", str(grains), "", "")
    return table
