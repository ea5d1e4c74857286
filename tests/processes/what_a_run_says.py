"""What a run folder says of a run, as tests ask it."""

from atoll.run import Events, Ledger


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
    return events_of(run, "died", "failed", "hung", "corrupt", "left")


def every_grain_once(run, num_grains):
    for line in ledger_of(run):
        grains = [g for parts in line.grains.values() for a, b in parts for g in range(a, b + 1)]
        assert sorted(grains) == list(range(num_grains)), line.step


def events_of(run, *kinds):
    events = Events(run / "events.jsonl").read()
    return [(event["kind"], event["island"]) for event in events if event["kind"] in kinds]
