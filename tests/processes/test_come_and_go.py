"""Islands that end at any point of a step cost their grains and no step; bits stay the same."""

import json

import pytest
from tests.processes import training_faults as faults

from atoll.run import Events, Ledger

pytestmark = pytest.mark.processes


def ledger_of(run):
    return Ledger(run / "ledger.jsonl").read()


def same_run(result, reference):
    """The same bits, step by step; who computed what may differ."""
    mine, theirs = ledger_of(result.run), ledger_of(reference.run)
    assert [line.step for line in mine] == [line.step for line in theirs]
    for key in ("loss", "grad_norm", "sum_digest", "fingerprint", "tokens"):
        assert [getattr(a, key) for a in mine] == [getattr(b, key) for b in theirs], key
    assert result.fingerprint == reference.fingerprint


def lost(run):
    kinds = ("died", "failed", "hung", "corrupt", "left")
    events = Events(run / "events.jsonl").read()
    return [(event["kind"], event["island"]) for event in events if event["kind"] in kinds]


def every_grain_once(run, num_grains):
    for line in ledger_of(run):
        grains = [g for parts in line.grains.values() for a, b in parts for g in range(a, b + 1)]
        assert sorted(grains) == list(range(num_grains)), line.step


WHAT = {"killed": "died", "hung": "hung", "raised": "failed"}


@pytest.mark.parametrize("how", faults.SIGNALS)
@pytest.mark.parametrize("point", faults.POINTS)
def test_an_island_that_ends_costs_no_step(world, reference, tmp_path, leaves_nobody, point, how):
    result = world.train("three", tmp_path / "run", entry=f"{how}_{point}")
    same_run(result, reference)
    every_grain_once(result.run, 6)
    assert lost(result.run) == [(WHAT[how], "a" if point == "saving" else "b")]


@pytest.mark.parametrize(("entry", "what"), [("dies_in_b", "died"), ("hangs_in_b", "hung")])
@pytest.mark.parametrize("fleet", ["two", "three", "reshare"])
def test_an_island_that_ends_while_it_computes(
    world, reference, tmp_path, leaves_nobody, fleet, entry, what
):
    result = world.train(fleet, tmp_path / "run", entry=entry)
    same_run(result, reference)
    every_grain_once(result.run, 6)
    assert lost(result.run) in ([(what, "b")], [])  # a seeded split may give b nothing to compute
    line = ledger_of(result.run)[3]
    if lost(result.run):
        assert line.reassigned and all(part[0] == "b" for part in line.reassigned)
        assert "b" not in line.grains and "b" not in ledger_of(result.run)[4].grains
    assert json.loads((result.run / "ledger.jsonl").read_text().splitlines()[-1])["step"] == 8


def test_an_audit_replays_a_run_that_lost_an_island(world, tmp_path):
    result = world.train("three", tmp_path / "run", entry="dies_in_b")
    assert world.audit(result.run, steps=8).ok


LONGER = ["schedule.steps=24"]


@pytest.fixture(scope="module")
def longer(world):
    """The reference of a run that is long enough for islands to come back."""
    return world.train("one", world.folder / "longer", overrides=LONGER)


def events_of(run, *kinds):
    events = Events(run / "events.jsonl").read()
    return [(event["kind"], event["island"]) for event in events if event["kind"] in kinds]


def test_an_island_that_died_comes_back_heals_and_gets_grains(world, longer, tmp_path):
    run = tmp_path / "run"
    result = world.train("three", run, entry="slow_dies_once_in_b", overrides=LONGER)
    same_run(result, longer)
    every_grain_once(run, 6)
    story = events_of(run, "died", "restarted", "joined", "healed")
    assert story == [(kind, "b") for kind in ("died", "restarted", "joined", "healed")]
    assert "b" in ledger_of(run)[-1].grains, "it computes again"
