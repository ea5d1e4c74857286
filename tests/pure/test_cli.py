"""The command line without torch: help, exit codes, messages, and what goes to which stream."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import atoll.cli
from atoll.cli import main
from atoll.cli.fleets import toml_of
from atoll.cli.output import print_json
from atoll.errors import CheckFailed, InputError, Interrupted, RunError
from atoll.fleet import Fleet

COMMANDS = ["train", "audit", "doctor", "island", "sample", "export", "import", "fleet"]
COMMANDS += ["measure", "scenario"]

TWO = """
[shares]
mode = "seeded"
seed = 7
[[site]]
name = "home"
country = "CN"
[[island]]
name = "a"
site = "home"
chip = "cpu"
share = 3
[[island]]
name = "b"
site = "home"
chip = "cpu-compat"
lanes = 2
"""


@pytest.fixture
def two(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_teaches(command, flag, capsys):
    assert main([command, flag]) == 0
    output = capsys.readouterr().out
    assert f"Usage: atoll {command}" in output
    assert "Example:" in output
    assert f"    atoll {command} " in output
    assert all(len(line) <= 96 for line in output.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_is_explained(command, capsys):
    main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  -") and len(line.split("  ")) < 3:
            assert lines[number + 1].startswith("        "), line


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "island"])
def test_every_command_that_has_a_result_gives_it_as_json(command, capsys):
    main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_atoll_alone_lists_the_commands(capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command}" in output
    assert "..." not in output.split("Commands:")[1], "a summary is too long for its line"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"atoll {atoll.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_neither_torch_nor_what_is_slow(arguments):
    program = (
        "import sys; from atoll.cli import main; main(sys.argv[1:]); "
        "slow = {'torch', 'numpy', 'tokenizers', 'tensorboard', 'atoll.recipe'}; "
        "print('imported:', sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "train"),
        (["audit"], "RUN"),
        (["audit", "x", "--stepz", "3"], "--steps"),
        (["audit", "x", "--steps", "many"], "--steps"),
        (["audit", "x", "--steps", "0"], "--steps"),
        (["train", "a", "b"], "b"),
        (["island", "--pilot", "here:1"], "--token-file"),
        (["export", "runs/x"], "--to"),
    ],
)
def test_a_wrong_command_line_ends_in_2_with_a_hint(arguments, said, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_a_missing_file_ends_in_2_and_is_named(tmp_path, capsys):
    assert main(["fleet", str(tmp_path / "none.toml")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("atoll: ")
    assert "none.toml" in captured.err and "Traceback" not in captured.err


def test_fleet_wants_a_file_or_here(two, capsys):
    assert main(["fleet"]) == 2
    assert main(["fleet", str(two), "--here"]) == 2
    assert capsys.readouterr().out == ""


def test_fleet_as_one_object(two, capsys):
    assert main(["fleet", str(two), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    found = json.loads(captured.out)
    assert [island["name"] for island in found["island"]] == ["a", "b"]


def test_fleet_for_people(two, capsys):
    assert main(["fleet", str(two)]) == 0
    output = capsys.readouterr().out
    assert "cpu-compat" in output and "by speed" in output


def test_a_printed_fleet_is_the_same_fleet(two):
    fleet = Fleet.load(two)
    again = Fleet.from_dict(tomllib.loads(toml_of(fleet.as_dict())))
    assert again == fleet
    assert again.digest() == fleet.digest()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("is wrong", file="a.toml", key="model.width", value=3, fix="use 4"), 2),
        (RunError("the run failed"), 1),
        (CheckFailed("it differs"), 1),
        (Interrupted("saved at step 7"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_one_message_and_a_code(error, code, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr(atoll.cli, "_run", fail)
    assert main(["train", "x"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("atoll: ")
    assert str(error) in captured.err


@pytest.fixture
def broken(monkeypatch):
    def fail(arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(atoll.cli, "_run", fail)


def test_a_bug_is_called_one_and_its_traceback_kept(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["sample", "x", "prompt"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("atoll: ZeroDivisionError: a bug\n")
    assert "this is a bug in Atoll" in message and "Traceback" not in message
    (log,) = tmp_path.iterdir()
    assert str(log) in message
    text = log.read_text()
    assert text.startswith("atoll sample x prompt\n")
    assert "Traceback" in text and "ZeroDivisionError" in text


@pytest.mark.parametrize("form", ["{}", "--run={}"])
def test_a_bug_in_a_run_is_kept_in_its_logs(broken, tmp_path, form, capsys):
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    assert main(["train", form.format(tmp_path / "run")]) == 1
    (log,) = logs.iterdir()
    assert str(log) in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_bug():
    command = f"{sys.executable} -m atoll fleet {Path(__file__).parent}/none | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr

    program = (
        "import os, sys; from atoll.cli import main\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "sys.exit(main(['fleet', sys.argv[1], '--json']))"
    )
    fleet = Path(__file__).parents[2] / "examples" / "fleets" / "one.toml"
    done = subprocess.run(
        [sys.executable, "-c", program, str(fleet)], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_an_argument_that_is_no_text_is_wrong_input(capsys):
    assert main(["sample", "nowhere", "a\udcff"]) == 2
    assert "is no text in this terminal's encoding" in capsys.readouterr().err


def test_closed_and_poor_outputs_are_no_bug():
    command = [sys.executable, "-c", "import sys; sys.stdout = None\nfrom atoll.cli import main\n"]
    command[-1] += "code = main(['--version']); sys.stdout.write('x'); sys.exit(code)"
    assert subprocess.run(command, check=False).returncode == 0
    command[-1] = "from atoll.cli import main; main(['--version']); print('\\u4e09')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.endswith(b"?\n")


def test_json_is_strict(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1], "c": Path("x"), "d": {1: (2, "\u6c34")}})
    found = json.loads(capsys.readouterr().out)
    assert found == {"a": None, "b": [None, 1], "c": "x", "d": {"1": [2, "\u6c34"]}}


def test_the_module_runs_too():
    done = subprocess.run(
        [sys.executable, "-m", "atoll", "nonsense"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "No such command" in done.stderr
