"""What the tests of training share: a small text, its recipe, fleets, and one reference run."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HANG = 60.0  # seconds: a guard against hanging, never a measure

RECIPE = """
name = "small"
seed = 3
[model]
layers = 1
width = 32
heads = 2
ffn = 48
context = 24
[data]
corpus = "texts"
tokenizer = { train = 300 }
validation = 0.1
[batch]
sequences = 12
grain = 2
[optimizer]
lr = 1e-2
[schedule]
steps = 8
warmup = 2
[run]
checkpoint_every = 2
keep_last = 20
validate_every = 4
validation_sequences = 9
"""

FLEETS = {
    "only-b": '[[island]]\nname = "b"\n',
    "one": '[[island]]\nname = "a"\n',
    "of-h20": '[[island]]\nname = "a"\nchip = "h20"\n',
    "two": '[[island]]\nname = "a"\n[[island]]\nname = "b"\n',
    "three-to-one": '[shares]\nmode = "fixed"\n[[island]]\nname = "a"\nshare = 3\n'
    '[[island]]\nname = "b"\nshare = 1\n',
    "three": '[[island]]\nname = "a"\n[[island]]\nname = "b"\n[[island]]\nname = "c"\n',
    "reshare": '[shares]\nmode = "seeded"\nseed = 1\n'
    '[[island]]\nname = "a"\n[[island]]\nname = "b"\n',
    "re-split": '[shares]\nmode = "seeded"\nseed = 2\n'
    '[[island]]\nname = "a"\n[[island]]\nname = "b"\n[[island]]\nname = "c"\n',
    "three-lanes": '[[island]]\nname = "a"\nlanes = 3\n',
    "two-kinds": '[shares]\nmode = "fixed"\n[[island]]\nname = "a"\nshare = 1\n'
    '[[island]]\nname = "b"\nchip = "cpu-compat"\nshare = 1\n',
    "dial-in": '[shares]\nmode = "fixed"\n[[island]]\nname = "a"\nshare = 1\n'
    '[[island]]\nname = "b"\nshare = 1\nstart = "dial-in"\n',
}


class World:
    """A folder with the text, the recipe, the fleets and the cache of tokens.

    `engine` are the fields of Starting that say who starts the islands.
    """

    engine = {}

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.recipe = folder / "small.toml"
        self.recipe.write_text(RECIPE)
        self.cache = folder / "cache"
        drawn = random.Random(1)
        letters = "abcdefghijklmnop"
        words = ["".join(drawn.choices(letters, k=drawn.randint(2, 7))) for _ in range(300)]
        (folder / "texts").mkdir()
        for number in range(20):
            lines = [" ".join(drawn.choices(words, k=9)) for _ in range(60)]
            (folder / "texts" / f"{number}.txt").write_text("\n".join(lines))
        for name, text in FLEETS.items():
            self.fleet(name).write_text(text)

    def fleet(self, name):
        return self.folder / f"{name}.toml"

    def train(self, fleet, run, *, target=None, entry="plain", display=None, **options):
        """`session.train` on real processes; `entry` is one of training_faults.py."""
        from atoll.training.crewing import Starting
        from atoll.training.display import SilentDisplay
        from atoll.training.session import train

        return train(
            str(target or self.recipe),
            display=display or SilentDisplay(),
            fleet=self.fleet(fleet) if fleet else None,
            run=None if target else run,
            cache=self.cache,
            starting=Starting(entry=f"training_faults:{entry}", python_path=[HERE], **self.engine),
            **options,
        )

    def resume(self, fleet, run, **options):
        return self.train(fleet, run, target=run, **options)

    def audit(self, run, *, fleet=None, steps=8, entry=None, **options):
        from atoll.training.audit import audit
        from atoll.training.crewing import Starting
        from atoll.training.display import SilentDisplay

        faulty = Starting(entry=f"training_faults:{entry}", python_path=[HERE])
        return audit(
            run,
            display=SilentDisplay(),
            steps=steps,
            fleet=self.fleet(fleet) if fleet else None,
            starting=faulty if entry else None,
            **options,
        )

    def pilot(self, fleet, run):
        """A pilot of slow islands in a process of its own."""
        arguments = [self.recipe, self.fleet(fleet), run, self.cache]
        return subprocess.Popen(
            [sys.executable, str(HERE / "training_driver.py"), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def reference(world):
    """The result of the run on one island, whose every bit all other fleets must give."""
    return world.train("one", world.folder / "reference")


@pytest.fixture(scope="session")
def two_kinds(world):
    """The result of a run on two unlike kinds of lanes."""
    return world.train("two-kinds", world.folder / "two-kinds")


@pytest.fixture
def new_world():
    """Makes a world of its own in a folder, with the same text."""
    return World


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a result's run folder, to be harmed."""

    def copied(result):
        return Path(shutil.copytree(result.run, tmp_path / "copy"))

    return copied


@pytest.fixture
def leaves_nobody(tmp_path):
    """Checks after the test that no island process of a run in `tmp_path` lives."""
    yield
    pids = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("*/pid-*")]
    assert pids, "no island noted its process id"
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def wait_until(condition):
    deadline = time.monotonic() + HANG
    while not (value := condition()):
        assert time.monotonic() < deadline, "hangs"
        time.sleep(0.02)
    return value


def is_running(pid):
    """False for a process that is gone, or dead and only not yet buried by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX" and pid != os.getpid()


@pytest.fixture(name="wait_until")
def _wait_until():
    return wait_until
