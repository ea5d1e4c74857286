"""Run folders that are told, not trained: the same files, the same writers, a clock of ours."""

import math
import os
from pathlib import Path

from atoll.fleet import Fleet
from atoll.recipe import Recipe
from atoll.run import Events, Ledger, LedgerLine, RunFolder

GRAINS = 12
RECIPE = {
    "name": "told",
    "seed": 1,
    "optimizer": {"lr": 0.01},
    "model": {"layers": 1, "width": 32, "heads": 2, "ffn": 48, "context": 24},
    "data": {"corpus": "texts", "tokenizer": {"train": 300}},
    "batch": {"sequences": GRAINS, "grain": 1},
    "schedule": {"steps": 1000},
}
FLEET = {
    "site": [
        {"name": "home", "owner": "us"},
        {"name": "johor", "owner": "a lessor", "operator": "a cloud"},
    ],
    "island": [
        {"name": "a", "site": "home"},
        {"name": "b", "site": "home", "chip": "cpu-compat"},
        {"name": "c", "site": "johor"},
    ],
}


class Told:
    """Writes a run step by step; `clock` is seconds since 1970."""

    def __init__(self, path: Path, *, steps: int = 1000, fleet: dict | None = None) -> None:
        recipe = Recipe.from_dict({**RECIPE, "schedule": {"steps": steps}})
        self.folder = RunFolder.create(
            path,
            recipe=recipe,
            shards_folder="nowhere",
            shards_digest="0" * 64,
            versions={},
            contract="bitwise",
            fleet=Fleet.from_dict(fleet or FLEET),
            kinds={"k1": {"chip": "cpu"}, "k2": {"chip": "cpu-compat"}},
        )
        self.path, self.clock, self.step = path, 1_800_000_000.0, 0
        self.members: dict[str, str] = {}
        self.healing: set[str] = set()
        self.ledger = Ledger(self.folder.ledger_path)
        self.events = Events(self.folder.events_path)

    def event(self, kind: str, **fields: object) -> None:
        self.events.append(kind, time=self.clock, **fields)

    def start(self, **members: str) -> None:
        self.members, self.healing = dict(members), set()
        self.folder.set_status("running", step=self.step)
        islands = {name: {"kind": kind, "lanes": 1} for name, kind in members.items()}
        self.event("started", step=self.step, contract="bitwise", islands=islands)

    def steps(self, count: int, *, seconds: float = 1.0, **changes: object) -> None:
        for _ in range(count):
            self.step += 1
            self.clock += seconds
            self.ledger.append(self.line(seconds=seconds, **changes))

    def line(self, **changes: object) -> LedgerLine:
        here = [name for name in self.members if name not in self.healing]
        size = -(-GRAINS // len(here))
        grains = {
            name: [[i * size, min(GRAINS, (i + 1) * size) - 1]] for i, name in enumerate(here)
        }
        given = {
            "step": self.step,
            "grains": grains,
            "kinds": dict(self.members),
            "loss": 2.0 + 4.0 * math.exp(-self.step / 150) + 0.02 * math.sin(self.step * 1.7),
            "grad_norm": 0.5,
            "lr": 0.01,
            "clip": 1.0,
            "exponents_digest": "e",
            "sum_digest": f"s{self.step}",
            "fingerprint": f"f{self.step}",
            "seconds": 1.0,
            "tokens": 288,
        }
        return LedgerLine(**{**given, **changes})

    def lose(self, name: str, *, kind: str = "died", seconds: float = 4.0, of: int = 2) -> None:
        """The next step loses an island: its last `of` grains are handed out again."""
        del self.members[name]
        self.healing.discard(name)
        self.steps(1, seconds=seconds, reassigned=[[name, GRAINS - of, GRAINS - 1]])
        self.event(kind, island=name, reason="no heartbeat", step=self.step)

    def join(self, name: str, kind: str = "k1") -> None:
        self.members[name] = kind
        self.healing.add(name)
        chip = {"k1": "cpu", "k2": "cpu-compat"}.get(kind, "cpu")
        self.event("joined", island=name, step=self.step, chip=chip, lanes=1, lane_kind=kind)

    def healed(self, name: str) -> None:
        self.healing.discard(name)
        self.event("healed", island=name, step=self.step)

    def end(self, kind: str = "stopped", *, after: float = 0.0) -> None:
        self.clock += after
        self.folder.set_status(kind, step=self.step)
        self.event(kind, step=self.step, fingerprint="f")
        self.ledger.close()

    def roll_back(self, step: int) -> None:
        dropped = self.ledger.truncate_after(step)
        self.step = step
        self.event("rolled_back", to=step, dropped=len(dropped))

    def validate(self, **losses: float) -> None:
        text = ", ".join(f'"{step[1:]}": {loss}' for step, loss in losses.items())
        path = self.folder.checkpoints_path / "best.json"
        path.write_text(f'{{"schema": 1, "losses": {{{text}}}}}')


def eventful(path: Path) -> Told:
    """Three sessions: a death, a hang, a join, an overflow, a pause, a crash and steps again."""
    run = Told(path)
    run.start(a="k1", b="k2", c="k1")
    run.steps(1, seconds=3.0)
    run.steps(59)
    run.lose("b")
    run.event("restarted", island="b", step=run.step)
    run.steps(20, seconds=1.5)
    run.join("b", "k2")
    run.steps(3, seconds=1.8)
    run.healed("b")
    run.steps(40)
    run.steps(1, seconds=2.5, requantised=1)
    run.event("requantised", step=run.step, times=1)
    run.steps(75)
    run.end(after=2.0)
    run.clock += 100.0
    run.start(a="k1", b="k2", c="k1")
    run.steps(1, seconds=2.0)
    run.steps(60)
    run.lose("c", kind="hung", seconds=12.0, of=4)
    run.steps(38, seconds=1.5)
    run.ledger.close()  # it crashed: no event says so
    run.clock += 50.0
    run.roll_back(280)
    run.start(a="k1", b="k2", c="k1")
    run.steps(120)
    run.event("left", island="c", reason="as asked", step=run.step + 1)
    del run.members["c"]
    run.steps(30, seconds=1.4)
    run.validate(**{f"s{step}": 2.1 + 4.0 * math.exp(-step / 150) for step in range(25, 430, 25)})
    date_the_ledger(run)
    return run


def date_the_ledger(run: Told) -> None:
    """Makes the ledger look as if it had been written last at `clock`."""
    os.utime(run.folder.ledger_path, (run.clock, run.clock))
