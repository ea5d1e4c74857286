"""The run folder: made once, opened again, never mixed up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.recipe import Recipe
from atoll.run import Events, RunFolder, write_atomically


@pytest.fixture
def recipe(examples: Path) -> Recipe:
    return Recipe.load(examples / "recipes" / "tiny.toml")


def create(path: Path, recipe: Recipe) -> RunFolder:
    return RunFolder.create(
        path,
        recipe=recipe,
        shards_folder=path.parent / "shards",
        shards_digest="5" * 64,
        versions={"atoll": "0"},
        contract="bitwise",
        fleet=Fleet.from_dict({"island": [{"name": "a"}]}),
        base=path.parent,
    )


def test_a_run_is_made_and_opened(tmp_path: Path, recipe: Recipe) -> None:
    made = create(tmp_path / "runs" / "x", recipe)
    opened = RunFolder.open(made.path)
    assert opened.record == made.record
    assert opened.recipe().digest("d") == recipe.digest("d")
    assert opened.recipe().run == recipe.run
    assert opened.record.recipe_digest == recipe.digest("5" * 64)
    assert opened.record.status.state == "new"
    assert opened.fleet() == Fleet.from_dict({"island": [{"name": "a"}]})
    assert RunFolder.is_run(made.path)
    assert not RunFolder.is_run(tmp_path)
    for inner in (made.checkpoints_path, made.metrics_path, made.logs_path):
        assert inner.is_dir()
    assert json.loads((made.path / "run.json").read_bytes())["schema"] == 1


def test_a_status_is_kept(tmp_path: Path, recipe: Recipe) -> None:
    folder = create(tmp_path / "x", recipe)
    folder.update(contract="replicas identical", kinds={"k1": {"chip": "cpu"}})
    folder.set_status("interrupted", step=7, fingerprint="f")
    record = RunFolder.open(folder.path).record
    assert (record.contract, record.kinds) == ("replicas identical", {"k1": {"chip": "cpu"}})
    assert (record.status.state, record.status.step, record.status.fingerprint) == (
        "interrupted",
        7,
        "f",
    )
    assert not list(folder.path.glob(".*tmp"))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    create(tmp_path / "x", recipe)
    with pytest.raises(InputError) as caught:
        create(tmp_path / "x", recipe)
    assert f"atoll train {tmp_path / 'x'}" in caught.value.fix


def test_a_folder_with_other_things_is_refused_and_left_alone(
    tmp_path: Path, recipe: Recipe
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.doc").write_text("mine")
    with pytest.raises(InputError):
        create(tmp_path / "x", recipe)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["thesis.doc"]


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        create(tmp_path / "file" / "x", recipe)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text[:-20], "JSON"),
        (lambda _: "[]", "object"),
        (lambda text: text.replace('"schema":1', '"schema":7'), "newer"),
        (lambda text: text.replace('"contract"', '"contrakt"'), "contract"),
    ],
)
def test_a_damaged_run_json_is_said(tmp_path: Path, recipe: Recipe, change, part: str) -> None:
    file = create(tmp_path / "x", recipe).path / "run.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError) as caught:
        RunFolder.open(tmp_path / "x")
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


def test_another_recipe_in_the_folder_names_each_key(tmp_path: Path, recipe: Recipe) -> None:
    folder = create(tmp_path / "x", recipe)
    folder.check_recipe(recipe)
    plain = recipe.as_dict()
    other = Recipe.from_dict({**plain, "seed": 2, "batch": {"sequences": 16, "grain": 4}})
    with pytest.raises(InputError) as caught:
        folder.check_recipe(other)
    assert "seed: 2 here, 1 there" in caught.value.fix
    assert "batch.grain: 4 here, 2 there" in caught.value.fix
    # Cadences may change between two parts of a run.
    folder.check_recipe(Recipe.from_dict({**plain, "run": {"keep_last": 9}}))


def test_one_writer_at_a_time(tmp_path: Path, recipe: Recipe) -> None:
    folder = create(tmp_path / "x", recipe)
    program = (
        "import sys\nfrom atoll.run import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).lock():\n    print('locked')"
    )
    command = [sys.executable, "-c", program, str(folder.path)]
    with folder.lock():
        refused = subprocess.run(command, capture_output=True, text=True)
    allowed = subprocess.run(command, capture_output=True, text=True)
    assert "another process is training" in refused.stderr
    assert refused.returncode != 0
    assert allowed.stdout == "locked\n"


def test_events_are_kept_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    assert events.read() == []
    events.append("join", island="a")
    with events.path.open("ab") as file:
        file.write(b'{"kind":"to\n[3]\n')
    events.append("checkpoint", step=3)
    assert [event["kind"] for event in events.read()] == ["join", "checkpoint"]
    assert events.read()[1]["step"] == 3
    assert events.read()[0]["time"] > 0


def test_an_event_that_cannot_be_written_stops_nothing() -> None:
    Events(Path("/dev/full")).append("join")


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom atoll.run import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "write_atomically(Path(sys.argv[1]), b'x' * 1000)"
    )
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "OSError" in result.stderr
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
