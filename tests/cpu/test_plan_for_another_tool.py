"""`atoll train` refuses a plan that another tool is to carry out."""

from pathlib import Path

import pytest

from atoll.cli import main

FLEET = """
[[island]]
name = "a"
chip = "h20"
nodes = 2
chips_per_node = 8
"""


def test_train_refuses_it_and_writes_nothing(
    tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, plan, run = (tmp_path / name for name in ("fleet.toml", "plan.json", "run"))
    fleet.write_text(FLEET)
    recipe = str(examples / "recipes" / "tiny.toml")
    assert main(["plan", recipe, str(fleet), "--layout", "tp=2", "--save", str(plan)]) == 0
    capsys.readouterr()
    assert main(["train", str(plan), "--run", str(run)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("atoll: ") == 1
    assert "feature plan.executor" in captured.err and "emit:" in captured.err
    assert not run.exists()
