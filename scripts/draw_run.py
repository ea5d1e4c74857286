"""Draw a run folder as the picture that `atoll train` shows on a terminal: an SVG file.

    python scripts/draw_run.py runs/demo docs/images/run.svg [STEP]

The picture in the README is made by this from the ledger of a real run.
"""

# ruff: noqa: T201
from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from atoll.run import Ledger, RunFolder
from atoll.training.checkpoint import recorded_losses
from atoll.training.display import IslandView, Snapshot
from atoll.training.live import LiveDisplay

NATS_PER_BIT = 0.6931471805599453


def main(run: str, to: str, last_step: int | None) -> int:
    """Replay the ledger into the live page and save the page as it stood after `last_step`."""
    folder = RunFolder.open(run)
    recipe, kinds = folder.recipe(), folder.record.kinds
    lines = Ledger(folder.ledger_path).read()
    losses = recorded_losses(folder.checkpoints_path)
    bytes_per_token = _bytes_per_token(folder)
    console = Console(record=True, width=96, height=34, file=io.StringIO(), force_terminal=True)
    # A clock that the ledger drives, so that the time left is the run's own.
    elapsed = [0.0]
    display = LiveDisplay(console, clock=lambda: elapsed[0])
    val_loss = None
    for line in lines[:last_step]:
        elapsed[0] += line.seconds
        val_loss = losses.get(line.step, val_loss)
        grains = {name: sum(b - a + 1 for a, b in parts) for name, parts in line.grains.items()}
        display.update(
            Snapshot(
                run=run,
                step=line.step,
                total_steps=recipe.total_steps(),
                loss=line.loss,
                val_loss=val_loss,
                bits_per_byte=None
                if val_loss is None
                else val_loss / NATS_PER_BIT / bytes_per_token,
                tokens=line.step * recipe.tokens_per_step,
                tokens_per_second=line.tokens / line.seconds,
                contract=folder.record.contract,
                islands=tuple(
                    IslandView(
                        name=name,
                        chip=kinds[kind]["chip"],
                        lanes=1,
                        grains=grains.get(name, 0),
                        grains_per_second=grains.get(name, 0) / line.seconds,
                        state="computing",
                    )
                    for name, kind in line.kinds.items()
                ),
            )
        )
    page = display.page()
    display.close()
    picture = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    picture.print(page)
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    picture.save_svg(to, title=f"atoll train {recipe.name}.toml")
    print(f"wrote {to}")
    return 0


def _bytes_per_token(folder: RunFolder) -> float:
    from atoll.data import open_shards

    return open_shards(Path(folder.record.shards.folder)).validation_bytes_per_token


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else None))
