"""Faults at random on real processes: the same bits as a quiet run; see chaos.py."""

import pytest
from tests.processes.chaos import Chaos, bits_of, check_grains

from atoll.run import Events, Ledger

pytestmark = pytest.mark.processes

STEPS = ["schedule.steps=220"]
NUM_FAULTS = 20


@pytest.fixture(scope="module")
def quiet(world):
    return world.train("one", world.folder / "quiet", overrides=STEPS)


def test_a_run_in_chaos_has_the_bits_of_a_quiet_one(world, quiet, tmp_path, leaves_nobody):
    run = tmp_path / "run"
    chaos = Chaos(run, seed=1, num_faults=NUM_FAULTS, pause=0.4).start()
    try:
        result = world.train("re-split", run, entry="brisk", overrides=STEPS)
    finally:
        chaos.stop()
    lines = Ledger(run / "ledger.jsonl").read()
    assert bits_of(lines) == bits_of(Ledger(quiet.run / "ledger.jsonl").read())
    assert result.fingerprint == quiet.fingerprint
    check_grains(lines, 6)
    assert all(guest.poll() is not None for guest in chaos.guests.values())
    kinds = {event["kind"] for event in Events(run / "events.jsonl").read()}
    print(chaos.faults)
    assert chaos.faults.total() >= NUM_FAULTS // 2 and {"died", "healed"} <= kinds
