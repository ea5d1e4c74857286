"""How well published runs are predicted without their group or source: the planner's own claims.

Everything here is deterministic: the table, the fit, and what is left out.
"""

import pytest

from atoll.planning.validate import Errors, Leave, Validation, own_table, sweeps_json, validate


@pytest.fixture(scope="module")
def by() -> dict[Leave, Validation]:
    """The package's table, predicted both ways."""
    leaves: tuple[Leave, Leave] = ("group", "source")
    return {leave: validate(own_table(), leave=leave) for leave in leaves}


def grade_a(found: Validation) -> Errors:
    return found.by()["completeness"]["A"]


def test_every_prediction_is_held_out(by: dict[Leave, Validation]) -> None:
    for found in by.values():
        assert len(found.scored) > 600 and all(one.held_out for one in found.scored)


def test_errors_without_the_group(by: dict[Leave, Validation]) -> None:
    errors = grade_a(by["group"])
    assert errors.rows > 400
    assert errors.median <= 0.06 and errors.mean <= 0.10 and errors.p90 <= 0.22
    assert abs(errors.bias) <= 0.02


def test_errors_without_the_source(by: dict[Leave, Validation]) -> None:
    errors = grade_a(by["source"])
    assert errors.median <= 0.11 and errors.p90 <= 0.40


def test_most_core_rows_are_predicted(by: dict[Leave, Validation]) -> None:
    found = by["group"]
    assert len(found.scored) >= 0.90 * found.rows
    assert found.rows == len(found.scored) + sum(found.skipped.values())


def test_peak_memory(by: dict[Leave, Validation]) -> None:
    memory = by["group"].memory()
    assert memory is not None and memory.rows > 100
    assert memory.median <= 0.10


def test_most_that_ran_is_counted_as_fitting(by: dict[Leave, Validation]) -> None:
    from atoll.planning.validate import own_runs

    size = {run.row.row_id: run.case.machine.memory for run in own_runs()}
    ran = [
        one for one in by["group"].scored
        if one.row.completeness == "A" and "recompute" not in one.assumed
    ]  # fmt: skip
    refused = [one for one in ran if one.memory > size[one.row.row_id]]
    assert len(ran) > 400 and len(refused) <= 0.08 * len(ran)


@pytest.mark.parametrize("leave", ["group", "source"])
def test_first_choices_of_sweeps(by: dict[Leave, Validation], leave: Leave) -> None:
    """97 % on average, and where there are more rows or plans to choose from too."""
    sweeps = sweeps_json(by[leave].sweeps())
    assert sweeps["count"] >= 40
    assert sweeps["rows"]["count"] >= 20 and sweeps["plans"]["count"] >= 15
    for one in (sweeps, sweeps["rows"], sweeps["plans"]):
        assert one["mean_reached"] >= 0.97
    assert sweeps["plans"]["mean_rank_correlation"] >= 0.5
