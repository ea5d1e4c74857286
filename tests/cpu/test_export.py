"""A run's model taken out: exported, imported, spoken with; real shards, checkpoints, files."""

import json
import shutil

import pytest
import torch

from atoll.cli import main
from atoll.data.shards import matched_model, prepare
from atoll.errors import CheckpointError, InputError
from atoll.modeling import open_model
from atoll.modeling.decoder import Decoder
from atoll.modeling.initial import fill
from atoll.recipe import Recipe
from atoll.run import RunFolder
from atoll.training import checkpoint
from atoll.training.export import export_run, import_model, load_run, open_voice

TEXT = "The tide came in, the tide went out; 潮来潮去, 岛还在。 A boat lay on the sand.\n\n"
RECIPE = """
name = "spoken"
seed = 3
[model]
layers = 2
width = 32
heads = 2
kv_heads = 1
ffn = 48
context = 32
[data]
corpus = "text.txt"
tokenizer = { train = 300 }
validation = 0.0
[batch]
sequences = 2
grain = 1
[optimizer]
lr = 1e-3
[schedule]
steps = 4
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("spoken")
    (base / "text.txt").write_text(TEXT * 100, encoding="utf-8")
    (base / "recipe.toml").write_text(RECIPE)
    recipe = Recipe.load(base / "recipe.toml")
    shards = prepare(
        recipe.data, cache=base / "cache", base=base, progress=lambda what, fraction: None
    )
    folder = RunFolder.create(
        base / "run",
        recipe=recipe,
        shards_folder=shards.folder,
        shards_digest=shards.digest,
        versions={},
        contract="bitwise",
        base=base,
    )
    shutil.copyfile(shards.tokenizer_path, folder.tokenizer_path)
    model = matched_model(recipe.model, shards)
    for step in (2, 4):
        save(folder.path, model, step)
    return folder.path


def save(run, model, step):
    decoder = Decoder(model)
    fill(decoder, step)
    tensors = {name: value.detach() for name, value in decoder.named_parameters()}
    checkpoint.write(
        run / "checkpoints",
        step,
        tensors={"weights": tensors, "moment1": tensors},
        host=lambda tensor: tensor,
        state={},
        on_snapshot=lambda: None,
    )


def no_report(text):
    raise AssertionError(text)


def weights_of(run, step):
    return dict(checkpoint.read(run / "checkpoints", step, report=no_report).tensors("weights"))


@pytest.mark.parametrize(("step", "used"), [(None, 4), (2, 2)])
def test_an_export_holds_the_checkpoints_bits(run, tmp_path, step, used):
    written = export_run(run, tmp_path / "out", step=step, report=no_report)
    assert (written.step, written.to) == (used, tmp_path / "out")
    found = open_model(tmp_path / "out")
    wanted = weights_of(run, used)
    assert found.model.num_parameters() == written.num_parameters
    assert set(found.tensors) == set(wanted)
    assert all(torch.equal(found.tensors[name], wanted[name]) for name in wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_import_of_an_export_is_the_same_model(run, tmp_path):
    export_run(run, tmp_path / "one", report=no_report)
    written = import_model(tmp_path / "one", tmp_path / "two")
    assert written.step is None
    one, two = open_model(tmp_path / "one"), open_model(tmp_path / "two")
    assert one.model == two.model and one.stop_ids == two.stop_ids
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(run, tmp_path):
    file = run / "checkpoints" / "step-4" / "weights.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    said = []
    try:
        _, step = load_run(run, step=None, report=said.append)
        with pytest.raises(CheckpointError, match="step 4"):
            export_run(run, tmp_path / "out", step=4, report=said.append)
    finally:
        file.write_bytes(good)
    assert step == 2
    assert len(said) == 2 and all("damaged" in text for text in said)
    assert list(tmp_path.iterdir()) == []


def test_a_step_without_a_checkpoint_is_wrong_input(run, tmp_path, capsys):
    for command in (["sample", str(run)], ["export", str(run), "--to", str(tmp_path / "out")]):
        assert main([*command, "--step", "3"]) == 2
        assert "kept: 2, 4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    export_run(run, tmp_path / "out", report=no_report)
    with pytest.raises(InputError, match="not an empty folder"):
        export_run(run, tmp_path / "out", report=no_report)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        import_model(tmp_path / "out", tmp_path / "file")


def test_the_folder_where_one_stands_can_be_filled(run, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["export", str(run), "--to", "."]) == 0
    assert open_model(folder).model.layers == 2


def test_a_place_that_cannot_be_is_wrong_input(run, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for place in ("file/under", "a" * 300):
        assert main(["export", str(run), "--to", str(tmp_path / place)]) == 2
        assert "bug" not in capsys.readouterr().err
    assert main(["sample", "a" * 5000]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_export_of_a_model_folder_points_to_import(run, tmp_path):
    export_run(run, tmp_path / "out", report=no_report)
    with pytest.raises(InputError, match="atoll import"):
        export_run(tmp_path / "out", tmp_path / "again", report=no_report)


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("atoll.training.export.write_folder", fail)
    with pytest.raises(OSError, match="disk full"):
        export_run(run, tmp_path / "out", report=no_report)
    assert list(tmp_path.iterdir()) == []


def spoken(source, prompt, **options):
    voice = open_voice(source, report=no_report)
    settings = {"max_tokens": 40, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 5}
    text = "".join(voice.speak(prompt, **(settings | options)))
    return text, voice.num_tokens


def test_a_run_and_its_export_say_the_same(run, tmp_path):
    export_run(run, tmp_path / "out", report=no_report)
    text, num_tokens = spoken(run, "The tide")
    assert (text, num_tokens) == spoken(tmp_path / "out", "The tide")
    assert 0 < num_tokens <= 40 and text
    assert text != spoken(run, "The tide", seed=6)[0]


@pytest.mark.parametrize("prompt", ["", "潮", "<|endoftext|>"])
def test_any_prompt_is_text(run, prompt):
    text, num_tokens = spoken(run, prompt)
    assert isinstance(text, str) and num_tokens <= 40


def test_only_a_run_has_steps(run, tmp_path):
    export_run(run, tmp_path / "out", report=no_report)
    with pytest.raises(InputError, match="only a run has steps"):
        open_voice(tmp_path / "out", step=3, report=no_report)


def test_the_commands(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", str(out), "--step", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 2

    sample = ["sample", str(out), "The", "--max-tokens", "8", "--seed", "1"]
    assert main(sample) == 0
    streamed = capsys.readouterr().out
    assert streamed.startswith("The") and streamed.endswith("\n")
    assert main([*sample, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and captured.err == streamed
    found = json.loads(captured.out)
    assert found["prompt"] + found["text"] + "\n" == streamed
    assert found["tokens"] <= 8

    assert main(["sample", str(out), "The", "--top-p", "0"]) == 2
