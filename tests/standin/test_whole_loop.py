"""Train, resume, audit and sample on the stand-in device: a silent `cpu` fails."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from atoll.run import Ledger, RunFolder
from atoll.training.audit import audit
from atoll.training.checkpoint import list_steps
from atoll.training.crewing import Starting
from atoll.training.display import SilentDisplay
from atoll.training.session import train

HERE = Path(__file__).parent
STARTING = Starting(
    entry="standin_island:main", python_path=[HERE], preload=("torch", "torch.distributed")
)
RECIPE = """
name = "stand-in"
seed = 3
[model]
layers = 2
width = 32
heads = 2
kv_heads = 1
ffn = 48
context = 16
qk_norm = true
tied = false
[data]
corpus = "text.txt"
tokenizer = { train = 300 }
[batch]
sequences = 4
grain = 2
[optimizer]
lr = 1e-2
[schedule]
steps = 4
warmup = 1
[run]
checkpoint_every = 2
validate_every = 2
"""
FLEETS = {
    "one": '[[island]]\nname = "a"\nchip = "here"\n',
    "two": '[[island]]\nname = "a"\nchip = "here"\n[[island]]\nname = "b"\nchip = "here"\n',
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("standin")
    (folder / "recipe.toml").write_text(RECIPE)
    words = re.findall(r"\w+", "the fleet changes and the run does not while islands come and go")
    text = (" ".join(words[(i * i + k) % len(words)] for k in range(9)) for i in range(1500))
    (folder / "text.txt").write_text("\n\n".join(text))
    for name, fleet in FLEETS.items():
        (folder / f"{name}.toml").write_text(fleet)
    results = {
        fleet: train(
            str(folder / "recipe.toml"),
            display=SilentDisplay(),
            fleet=folder / f"{fleet}.toml",
            run=folder / f"run-{fleet}",
            until=2 if fleet == "one" else None,
            cache=folder / "cache",
            starting=STARTING,
        )
        for fleet in FLEETS
    }
    return SimpleNamespace(folder=folder, results=results)


def test_it_really_ran_on_the_stand_in(made: SimpleNamespace) -> None:
    for fleet in FLEETS:
        kinds = RunFolder.open(made.folder / f"run-{fleet}").record.kinds
        assert [kind["device_type"] for kind in kinds.values()] == ["standin"]


def test_two_devices_and_a_resumed_one_hold_the_same_weights(made: SimpleNamespace) -> None:
    run = made.folder / "run-one"
    assert list_steps(run / "checkpoints") == [2]
    resumed = train(
        str(run), display=SilentDisplay(), cache=made.folder / "cache", starting=STARTING
    )
    assert resumed.step == 4
    assert resumed.fingerprint == made.results["two"].fingerprint
    assert resumed.val_loss == made.results["two"].val_loss


def test_the_audit_recomputes_it_on_the_stand_in(made: SimpleNamespace) -> None:
    result = audit(
        made.folder / "run-two", display=SilentDisplay(), steps=2, seed=1, starting=STARTING
    )
    assert result.ok, result.text()


def test_a_chip_that_rounds_otherwise_updates_on_its_host_to_the_same_bits(
    made: SimpleNamespace,
) -> None:
    run = made.folder / "run-inexact"
    for until in (2, None):  # resumed once: the masters follow a restored checkpoint
        result = train(
            str(made.folder / "recipe.toml"),
            display=SilentDisplay(),
            fleet=made.folder / "one.toml",
            run=run,
            until=until,
            cache=made.folder / "cache",
            starting=Starting(
                entry="standin_island:inexact", python_path=[HERE], preload=("torch",)
            ),
        )
    assert result.fingerprint == made.results["two"].fingerprint


def test_the_guard_goes_back_on_a_device_and_where_the_host_updates(made: SimpleNamespace) -> None:
    """A learning rate far too high, and factors so low that many steps are spikes."""
    text = RECIPE.replace("steps = 4", "steps = 14").replace("lr = 1e-2", "lr = 0.5")
    text += '[guard]\non_spike = "roll-back"\nloss = 1.001\nwindow = 2\nevery = 2\nlimit = 99\n'
    recipe = made.folder / "guarded.toml"
    recipe.write_text(text)
    inexact = Starting(entry="standin_island:inexact", python_path=[HERE], preload=("torch",))
    told = []
    for name, fleet, starting, stops in [
        ("one", "one", STARTING, [None]),
        ("two", "two", STARTING, [None]),
        ("inexact", "one", inexact, [7, None]),
    ]:
        run = made.folder / f"guarded-{name}"
        for until in stops:
            result = train(
                str(recipe),
                display=SilentDisplay(),
                fleet=made.folder / f"{fleet}.toml",
                run=run,
                until=until,
                cache=made.folder / "cache",
                starting=starting,
            )
        lines = Ledger(run / "ledger.jsonl").read()
        told.append((result.fingerprint, [(line.fingerprint, line.spike) for line in lines]))
    assert told[0] == told[1] == told[2]
    spikes = [step for step, (_, spike) in enumerate(told[0][1], start=1) if spike is not None]
    assert spikes and spikes[0] <= 7 < spikes[-1], spikes


def test_the_model_speaks_on_the_stand_in(made: SimpleNamespace) -> None:
    program = (
        "import sys, installed, torch\n"
        "from atoll.cli import main\n"
        "from atoll.training import export\n"
        "assert torch.accelerator.current_accelerator().type == 'standin'\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    run = str(made.folder / "run-two")
    done = subprocess.run(
        [sys.executable, "-c", program, "sample", run, "the fleet", "--max-tokens", "8"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > len("the fleet")
