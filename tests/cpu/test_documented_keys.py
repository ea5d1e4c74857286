"""The JSON keys in docs/files.md are those that the commands print."""

import json
import re
from pathlib import Path

import pytest

from atoll.cli import main
from atoll.model import Model
from atoll.modeling.decoder import Decoder
from atoll.modeling.huggingface import write_folder
from atoll.modeling.initial import fill
from atoll.training.audit import AuditResult
from atoll.training.doctor import DoctorResult, Patient
from atoll.training.examination import StageError
from atoll.training.export import Written
from atoll.training.session import TrainResult

PAGE = Path(__file__).parents[2] / "docs" / "files.md"


def documented(command: str) -> set[str]:
    """The keys of a command's row."""
    text = PAGE.read_text(encoding="utf-8")
    row = re.search(rf"^\| `atoll {command}` \| (.*) \|$", text, flags=re.MULTILINE)
    assert row is not None, command
    return set(re.findall(r"`(\w+)`", row[1]))


def test_train() -> None:
    result = TrainResult(
        run=Path("r"),
        step=1,
        total_steps=2,
        loss=1.0,
        val_loss=None,
        bits_per_byte=None,
        tokens=3,
        tokens_per_second=4.0,
        fingerprint="f",
        contract="bitwise",
        islands={},
    )
    assert set(result.json()) == documented("train")


def test_audit() -> None:
    assert set(AuditResult(run="r", drawn=[1]).json()) == documented("audit")


def test_doctor() -> None:
    patient = Patient(
        chip="cpu",
        kind_id="k",
        kind={},
        free_memory=None,
        failed_operations=[],
        grain_seconds=1.0,
    )
    stage = StageError(stage="head", output=0.0, gradients=0.0, worst="")
    found = DoctorResult(
        subject=patient,
        reference=patient,
        stages=[stage],
        loss=(1.0, 1.0),
        link_bytes_per_second=None,
    ).json()
    assert set(found) == documented("doctor")
    text = PAGE.read_text(encoding="utf-8")
    listed = re.search(r"`stages` is a list of (.*?);", text)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(found["stages"][0])


@pytest.mark.parametrize(("command", "step"), [("export", 3), ("import", None)])
def test_model_folders(command: str, step: int | None) -> None:
    written = Written(to=Path("a"), source=Path("b"), step=step, num_parameters=1)
    assert set(written.json()) == documented(command)


def test_sample(tmp_path, capsys) -> None:
    from atoll.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["the tide came in, the tide went out. "] * 50, vocab=270)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = Model(layers=1, width=16, heads=2, ffn=16, context=16, vocab=270)
    decoder = Decoder(model)
    fill(decoder, 1)
    tensors = {name: value.detach() for name, value in decoder.named_parameters()}
    write_folder(tmp_path / "model", model, tensors, tmp_path / "tokenizer.json")
    assert main(["sample", str(tmp_path / "model"), "the", "--max-tokens", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(printed) == documented("sample")
