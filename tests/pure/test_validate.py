"""`atoll validate`: what is read, what is skipped and why; nothing is predicted from itself."""

import csv
import json
import math
import random
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest

from atoll.cli import main
from atoll.errors import InputError
from atoll.facts.measured import Measured
from atoll.planning import validate as validation
from atoll.planning.calibration import log_formula
from atoll.planning.correction import fitted
from atoll.planning.cost import Coefficients
from atoll.planning.published import REQUIRED, case_of, read_runs
from atoll.planning.scatter import scatter_of
from atoll.planning.validate import factors_of, own_runs, own_table, rank_correlation, validate

Row = Mapping[str, object]
Write = Callable[..., Path]

PLAIN: Row = {
    "row_id": "mine-1", "source": "my cluster", "chip": "h100-sxm-80gb", "count": 64,
    "framework": "Megatron-LM core 0.8", "model": "mine-8b", "layers": 32, "hidden": 4096,
    "heads": 32, "kv_heads": 8, "ffn": 14336, "vocab": 128256, "seq_len": 8192, "gbs_seqs": 256,
    "mbs": 1, "TP": 2, "PP": 1, "DP": 32, "recompute": "none", "precision": "bf16",
    "step_time_s": 11.0,
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as a table, with the columns of the first one."""

    def write(*rows: Row, name: str = "runs.csv", columns: list[str] | None = None) -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore")
            out.writeheader()
            out.writerows(rows)
        return path

    return write


def own_rows(*, like: str = "", count: int = 20) -> list[dict[str, str]]:
    """Rows of the package's own table."""
    with own_table().open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if like in row["row_id"]][:count]


def scaled(row: Mapping[str, str], factor: float) -> dict[str, str]:
    """The same run as if every step had taken `factor` times as long."""
    slower = dict(row)
    for name in ("step_time_s", "derived_step_time_s"):
        slower[name] = str(float(row[name]) * factor) if row[name] else ""
    for name in ("tokens_s_chip", "derived_tokens_s_chip", "tokens_s_total"):
        slower[name] = str(float(row[name]) / factor) if row[name] else ""
    return slower


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["validate", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    found: dict[str, object] = json.loads(captured.out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["validate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


# ---------------------------------------------------------------------- reading


def test_a_run_of_ones_own_is_predicted(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, str(write(PLAIN)), "--rows")
    assert (found["rows"], found["predicted"], found["skipped"]) == (1, 1, {})
    assert found["held_out"] == 0
    (each,) = found["each"]  # type: ignore[misc]  # a list of one
    assert 3 < each["predicted"] < 40
    assert found["median"] == pytest.approx(abs(each["predicted"] / 11.0 - 1.0))


def test_the_keys_that_scripts_use(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**PLAIN, "row_id": f"m{i}", "mbs": m, "sweep_id": "s", "peak_mem_GiB": 70}
            for i, m in enumerate((1, 2, 4))]  # fmt: skip
    found = as_json(capsys, str(write(*rows)))
    keys = {"rows", "predicted", "skipped", "mean", "median", "p90", "bias", "by", "memory"}
    assert keys | {"sweeps"} <= found.keys()
    by, memory, sweeps = found["by"], found["memory"], found["sweeps"]
    assert isinstance(by, dict) and isinstance(memory, dict) and isinstance(sweeps, dict)
    assert set(by) == {"completeness", "source", "chip", "kind"}
    assert set(by["completeness"]) == {"A", "A+B", "all"}
    assert set(by["kind"]) == {"dense bf16"} and set(by["chip"]) == {"h100-sxm-80gb"}
    assert set(by["source"]["my cluster"]) == {"rows", "median", "mean", "p90", "bias"}
    assert memory["rows"] == 3 and {"median", "mean", "p90"} <= memory.keys()
    assert sweeps["count"] == 1 and {"mean_reached", "worst"} <= sweeps.keys()
    assert sweeps["plans"]["count"] == 1 and 0 < sweeps["worst"] <= 1


def test_missing_columns_are_named_at_once(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = {"TP", "hidden"}
    message = refused(capsys, str(write({k: v for k, v in PLAIN.items() if k not in left_out})))
    assert "columns are missing: hidden, TP" in message
    assert all(name in message for name in REQUIRED)


def test_a_ragged_row_is_counted_and_the_others_are_predicted(write: Write) -> None:
    path = write(*({**PLAIN, "row_id": f"m{i}"} for i in range(4)))
    lines = path.read_text().splitlines()
    lines[2] += ",one more"
    lines[3] = lines[3].rsplit(",", 1)[0]
    path.write_text("\n".join(lines))
    found = validate(path)
    assert (found.rows, len(found.scored)) == (4, 2)
    assert found.skipped == {"another number of cells than the header": 2}


def test_a_table_without_speeds(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write({k: v for k, v in PLAIN.items() if k != "step_time_s"})
    assert "no measured speed" in refused(capsys, str(path))


def test_a_header_alone(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(PLAIN)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert "holds no rows" in refused(capsys, str(path))
    path.write_text("")
    assert "columns are missing" in refused(capsys, str(path))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"chip": "tea kettle"}, "a chip that the facts do not have"),
        ({"layers": "many"}, "no model shape"),
        ({"hidden": ""}, "no model shape"),
        ({"count": "unknown"}, "no number of chips"),
        ({"seq_len": "4k"}, "no sequence length"),
        ({"step_time_s": ""}, "no measured speed"),
        ({"step_time_s": "-3"}, "no measured speed"),
        ({"TP": 128}, "a layout larger than the machine"),
        ({"heads": 0.5}, validation.IMPOSSIBLE),
        ({"hidden": -4096}, validation.IMPOSSIBLE),
        ({"vocab": -1}, validation.IMPOSSIBLE),
        ({"layers": -3}, validation.IMPOSSIBLE),
        ({"ffn": -1}, validation.IMPOSSIBLE),
        ({"seq_len": -8192}, validation.IMPOSSIBLE),
    ],
)
def test_a_row_that_cannot_be_predicted_is_counted(
    changed: Row, reason: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(PLAIN, {**PLAIN, "row_id": "bad", **changed})
    found = as_json(capsys, str(path))
    assert (found["rows"], found["predicted"], found["skipped"]) == (2, 1, {reason: 1})
    message = refused(capsys, str(write({**PLAIN, **changed})))
    assert "no row can be predicted" in message and f"1 x {reason}" in message


@pytest.mark.parametrize(
    "changed",
    [
        {"mbs": "", "gbs_seqs": "", "step_time_s": "", "tokens_s_chip": 3000},
        {"recompute": ""},
        {"vocab": "?", "ffn": "?"},
        {"framework": "a stack of our own"},
        {"extra": "a column that nobody knows", "completeness": "?", "tier": ""},
        {"gbs_seqs": "1e9"},
        {"experts": 8},
        {"precision": "fp7"},
    ],
)
def test_what_is_missing_is_assumed(changed: Row, write: Write) -> None:
    base = {**PLAIN, "tokens_s_chip": ""}
    (one,) = validate(write({**base, **changed})).scored
    assert math.isfinite(one.predicted) and one.predicted > 0


def test_no_cell_brings_it_down(write: Write) -> None:
    """Rows with cells of all kinds: each is predicted or counted with a reason."""
    draw = random.Random(1)
    odd = ["", "-1", "0", "nan", "inf", "1e300", "text", "0.5", "7", "1e-9", "-0", "12,288", "999"]
    rows = []
    for index in range(300):
        row = {**PLAIN, "experts": "", "topk": "", "moe_ffn": "", "EP": "", "CP": "", "VPP": "",
               "head_dim": "", "params_B": "", "peak_mem_GiB": "", "grad_accum": "",
               "chips_per_node": "", "zero_fsdp": "", "inter_node_net": "", "date": "",
               "row_id": f"r{index}"}  # fmt: skip
        names = [name for name in row if name not in ("row_id", "source", "chip")]
        for name in draw.sample(names, draw.randint(1, 4)):
            row[name] = draw.choice(odd)
        rows.append(row)
    found = validate(write(*rows))
    assert found.rows == 300 == len(found.scored) + sum(found.skipped.values())
    assert found.scored and found.skipped
    assert all(math.isfinite(one.error) for one in found.scored)


def test_tiers(write: Write) -> None:
    rows = [{**PLAIN, "row_id": tier or "none", "tier": tier} for tier in ("core", "", "bulk")]
    path = write(*rows)
    found = validate(path)
    assert found.rows == 2 and found.other_tiers == {"bulk": 1}
    every = validate(path, every_tier=True)
    assert every.rows == 3 and every.other_tiers == {}
    with pytest.raises(InputError, match="1 x tier bulk"):
        validate(write(rows[2]))


# ---------------------------------------------------------------------- never from itself


def test_a_tripled_time_does_not_move_its_prediction(write: Write) -> None:
    """Whatever the row is called: it is known by its row_id, or by what it says."""
    rows = own_rows(like="bloom-prequel", count=12)
    plain = validate(write(*rows, name="plain.csv")).scored
    tripled = validate(write(*(scaled(row, 3.0) for row in rows), name="tripled.csv")).scored
    renamed = [{**row, "row_id": f"x{i}"} for i, row in enumerate(rows)]
    other = validate(write(*renamed, name="renamed.csv")).scored
    assert all(one.held_out for one in (*plain, *tripled, *other))
    for a, b, c in zip(plain, tripled, other, strict=True):
        assert b.predicted == pytest.approx(a.predicted) == pytest.approx(c.predicted)
        assert b.seconds == pytest.approx(3.0 * a.seconds)
        assert b.error < -0.5


def test_held_out_is_not_in_sample() -> None:
    """The fit knows its own runs far better than they are predicted."""
    fit, runs = validation.own_fit(), own_runs()
    formula = validation.log_formula(fit.coefficients, [run.case for run in runs])
    inside = formula + validation.correction().log_factor([run.features() for run in runs])
    logs, held_out = validation.log_seconds(runs)
    assert held_out.all()
    measured = [math.log(run.seconds) for run in runs]
    seen = sorted(abs(a - b) for a, b in zip(inside, measured, strict=True))
    unseen = sorted(abs(a - b) for a, b in zip(logs, measured, strict=True))
    assert seen[len(seen) // 2] < 0.6 * unseen[len(unseen) // 2]


def test_another_configuration_under_a_known_name(write: Write) -> None:
    """It gets its own formulas and still no correction from its own group."""
    row = own_rows(like="bloom-prequel", count=1)[0]
    longer = {**row, "gbs_seqs": str(2 * int(row["gbs_seqs"])), "gbs_tokens": ""}
    one, two = validate(write(row, longer)).scored
    assert two.held_out
    assert two.predicted == pytest.approx(2.0 * one.predicted, rel=0.25)


def test_leaving_out_a_source_is_harder() -> None:
    by = {leave: validate(own_table(), leave=leave).errors for leave in ("group", "source")}
    assert by["source"].rows == by["group"].rows
    assert by["source"].median > 1.2 * by["group"].median


# ---------------------------------------------------------------------- calibration


def test_a_factor_finds_a_slower_cluster(write: Write) -> None:
    rows = [
        scaled({**row, "source": "mine", "group_id": "", "row_id": f"mine-{i}"}, 1.5)
        for i, row in enumerate(own_rows(like="foundry", count=12))
    ]
    path, three = write(*rows), write(*rows[:3], name="three.csv")
    before = validate(path)
    after = validate(path, calibrate=three)
    assert before.errors.median > 0.2 and after.errors.median < 0.5 * before.errors.median
    assert after.rows == before.rows - 3 and after.calibrated_on == 3
    chips = {one.chip for one in before.scored}
    assert set(after.factors) <= chips
    assert all(1.2 < factor < 1.9 for factor in after.factors.values())
    assert after.factors == factors_of(three)


def test_a_factor_of_a_measured_chip_is_beside_its_measurements(write: Write) -> None:
    """A plan takes a measured chip without what published runs say; so does its factor."""
    numbers = {
        "m": 4096, "n": 4096, "k": 4096, "dtype": "bf16", "flops": "400 TFLOP/s",
        "low": "390 TFLOP/s", "high": "410 TFLOP/s", "repeats": 7,
    }  # fmt: skip
    host = {"device": "a", "processor": "b", "cores": 2, "threads": 1, "torch": "2",
            "collective": "a", "settings": {}}  # fmt: skip
    facts = Measured.model_validate(
        {"chip": "h100-sxm-80gb", "date": date(2026, 11, 25), "host": host, "gemm": [numbers]}
    )
    measured = {"h100-sxm-80gb": facts}
    case = case_of(read_runs(write(PLAIN))[0], measured)
    assert case.machine.measured is not None
    alone = math.exp(float(log_formula(Coefficients(**fitted()["time"]), [case])[0]))
    factor = factors_of(write(PLAIN), measured=measured)["h100-sxm-80gb"]
    assert factor == pytest.approx(11.0 / alone)
    assert factor != pytest.approx(factors_of(write(PLAIN))["h100-sxm-80gb"], rel=0.01)


def test_calibrating_on_known_runs_is_held_out_too(write: Write) -> None:
    rows = own_rows(like="bloom-prequel", count=6)
    (plain,) = factors_of(write(*rows)).values()
    (tripled,) = factors_of(write(*(scaled(row, 3.0) for row in rows))).values()
    assert tripled == pytest.approx(3.0 * plain)


def test_nothing_to_calibrate_with(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(PLAIN), write({**PLAIN, "chip": "tea kettle"}, name="bad.csv")
    assert "nothing can be calibrated" in refused(capsys, str(good), "--calibrate", str(bad))
    message = refused(capsys, str(good), "--calibrate", str(good))
    assert "1 x row of --calibrate" in message


# ---------------------------------------------------------------------- the command


def test_the_bound(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(PLAIN))
    assert main(["validate", path, "--bound", "1000"]) == 0
    assert main(["validate", path, "--bound", "0"]) == 1
    captured = capsys.readouterr()
    assert "above the bound of 0.00%" in captured.err and "median" in captured.out


def test_the_own_table_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys)
    assert found["file"] == str(own_table()) and found["predicted"] == found["held_out"]


def test_what_people_see(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(PLAIN, {**PLAIN, "row_id": "[b]odd", "source": "[/x] a source"})
    assert main(["validate", str(path), "--rows"]) == 0
    output = capsys.readouterr().out
    for words in ("2 of 2 predicted", "[/x] a source", "[b]odd", "h100-sxm-80gb", "dense bf16"):
        assert words in output


def test_the_picture(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**PLAIN, "row_id": f"r{i}", "source": "<&>", "mbs": m} for i, m in enumerate((1, 2))]
    path, to = write(*rows), tmp_path / "found.svg"
    assert main(["validate", str(path), "--plot", str(to)]) == 0
    root = ElementTree.parse(to).getroot()
    dots = [one for one in root.iter("{http://www.w3.org/2000/svg}circle") if one.get("r") == "3.4"]
    assert len(dots) == 2 and "none of them fitted" in to.read_text()
    assert scatter_of(validate(path)) == to.read_text()
    capsys.readouterr()
    assert "is a folder" in refused(capsys, str(path), "--plot", str(tmp_path))
    assert "does not exist" in refused(capsys, str(path), "--plot", str(tmp_path / "a" / "b.svg"))


def test_wrong_words(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert "group or source" in refused(capsys, str(write(PLAIN)), "--leave", "chip")
    assert "no such file" in refused(capsys, "nowhere.csv")


def test_rank_correlation() -> None:
    import numpy as np

    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 20, 30])) == pytest.approx(1.0)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1.0)
    assert rank_correlation(np.array([1, 2, 3]), np.array([5, 5, 5])) == 0.0
    ties = rank_correlation(np.array([1, 1, 2]), np.array([1, 1, 2]))
    assert ties == pytest.approx(1.0)


def test_rows_that_no_plan_tells_apart(write: Write) -> None:
    """They share a rank, and are one plan: an ablation of a stack is no sweep of plans."""
    rows = [{**PLAIN, "row_id": f"r{i}", "sweep_id": "s", "step_time_s": t}
            for i, t in enumerate((9.0, 10.0, 11.0))]  # fmt: skip
    (sweep,) = validate(write(*rows)).sweeps()
    assert (sweep.rows, sweep.plans, sweep.rank) == (3, 1, 0.0)
    assert sweep.reached == pytest.approx(0.9)
