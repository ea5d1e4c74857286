"""The guard: what a recipe may say, what is a spike, and that its state follows from the ledger."""

import random
from statistics import median_high

import pytest
from tests.pure.run_cases import Told
from tests.pure.test_recipe import recipe

from atoll.errors import InputError, RunError
from atoll.history.telling import spike_words
from atoll.recipe import GuardSpec, Recipe
from atoll.run import Ledger, LedgerLine
from atoll.training.guard import Guard, require_no_stop

SKIP = {"on_spike": "skip", "grad_norm": 2.0}


def line_of(guard: Guard, step: int, loss: float, grad_norm: float) -> LedgerLine:
    """The line of a step as this guard judges it."""
    return LedgerLine(
        step=step, grains={}, kinds={}, loss=loss, grad_norm=grad_norm, lr=0.1, clip=1.0,
        exponents_digest="", sum_digest="", fingerprint="", seconds=1.0, tokens=1,
        spike=guard.judge(step=step, loss=loss, grad_norm=grad_norm),
    )  # fmt: skip


# The recipe


@pytest.mark.parametrize(
    ("table", "key", "says"),
    [
        ({"on_spike": "jump", "loss": 2.0}, "guard.on_spike", "skip"),
        ({"on_spike": "skip"}, "guard.on_spike", "neither"),
        ({"on_spike": "skip", "loss": 1.0}, "guard.loss", "greater"),
        ({"on_spike": "skip", "loss": "2"}, "guard.loss", "number"),
        ({"on_spike": "skip", "grad_norm": 0.5}, "guard.grad_norm", "greater"),
        ({**SKIP, "window": 0}, "guard.window", "at least"),
        ({**SKIP, "after": -1}, "guard.after", "at least"),
        ({**SKIP, "limit": 0}, "guard.limit", "at least"),
        ({**SKIP, "every": 8}, "guard.every", "roll-back"),
        ({"on_spike": "stop", "loss": 2.0, "limit": 3}, "guard.limit", "no meaning"),
        ({"loss": 2.0}, "guard.loss", "no meaning"),
        ({**SKIP, "windows": 8}, "guard.windows", "window"),
    ],
)
def test_a_wrong_key_is_one_clear_error(table: dict, key: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe(guard=table)
    assert caught.value.key == key
    assert says in str(caught.value)


def test_the_guard_is_part_of_the_bits_and_its_absence_is_not() -> None:
    plain = recipe().digest("d")
    assert "guard" not in recipe().as_dict()
    assert recipe(guard={"on_spike": "none", "window": 32}).digest("d") == plain
    tables = [
        SKIP,
        {"on_spike": "stop", "grad_norm": 2.0},
        {"on_spike": "roll-back", "grad_norm": 2.0},
        {"on_spike": "roll-back", "grad_norm": 2.0, "every": 8},
        {"on_spike": "skip", "loss": 2.0},
        *({**SKIP, key: value} for key, value in [("window", 8), ("after", 9), ("limit", 2)]),
    ]
    digests = {recipe(guard=table).digest("d") for table in tables}
    assert len(digests | {plain}) == len(tables) + 1


def test_a_guard_survives_plain_tables() -> None:
    full = recipe(guard={**SKIP, "limit": 3})
    back = Recipe.from_dict(full.as_dict())
    assert back.guard == full.guard and back.guard.limit == 3


# The reference


def test_a_spike_is_above_the_median_of_whole_windows() -> None:
    guard = Guard(GuardSpec(on_spike="skip", grad_norm=2.0, window=4, after=5))
    for step, norm in enumerate([1.0, 90.0, 1.5, 1.0], start=1):
        guard.take(line_of(guard, step, 3.0, norm))
    # a whole window, but the fifth step is not judged yet
    assert guard.take(line_of(guard, 5, 3.0, 1.2)) == "update"
    assert guard.judge(step=6, loss=3.0, grad_norm=3.0) is None, "twice 1.5 is no spike yet"
    spike = guard.judge(step=6, loss=99.0, grad_norm=3.0000001)
    assert spike is not None and (spike.did, spike.why) == ("skip", "grad_norm")
    assert (spike.value, spike.reference, spike.to) == (3.0000001, 1.5, None)
    assert "skipped" in spike_words(spike.model_dump())


def test_of_two_spikes_the_loss_is_named() -> None:
    guard = Guard(GuardSpec(on_spike="stop", loss=1.5, grad_norm=2.0, window=1))
    guard.take(line_of(guard, 1, 2.0, 1.0))
    spike = guard.judge(step=2, loss=3.1, grad_norm=9.0)
    assert spike is not None and (spike.why, spike.reference) == ("loss", 2.0)


def test_a_skipped_step_is_no_reference_and_no_update() -> None:
    guard = Guard(GuardSpec(**SKIP, window=2))
    norms = [1.0, 1.0, 50.0, 60.0, 2.0, 2.1]
    lines = []
    for step, norm in enumerate(norms, start=1):
        lines.append(line_of(guard, step, 3.0, norm))
        guard.take(lines[-1])
    assert [one.spike is not None for one in lines] == [False, False, True, True, False, False]
    assert lines[3].spike is not None and lines[3].spike.reference == 1.0
    assert guard.lost == 2


def test_going_back_takes_the_steps_between_out_of_the_reference() -> None:
    spec = GuardSpec(on_spike="roll-back", grad_norm=2.0, window=2, every=3)
    guard = Guard(spec)
    changes = []
    for step, norm in enumerate([1.0, 1.0, 1.1, 1.9, 1.9, 9.0], start=1):
        line = line_of(guard, step, 3.0, norm)
        changes.append(guard.take(line))
    assert changes == ["keep", "update", "update", "keep", "update", "roll-back"]
    assert line.spike is not None and line.spike.to == 3
    assert guard.lost == 3, "steps 4, 5 and 6 are not in the weights"
    assert guard.judge(step=7, loss=3.0, grad_norm=2.3), "against 1.1 of step 3, not 1.9"


def test_weights_are_kept_only_once_the_step_after_them_was_good() -> None:
    """The state after step 3 would be kept in step 4; 4 is a spike, so the one before stays."""
    guard = Guard(GuardSpec(on_spike="roll-back", loss=2.0, window=1, every=3))
    for step, loss in enumerate([1.0, 1.0, 1.0, 9.0], start=1):
        line = line_of(guard, step, loss, 1.0)
        guard.take(line)
    assert line.spike is not None and line.spike.to == 0


@pytest.mark.parametrize("on_spike", ["skip", "roll-back"])
def test_more_spikes_than_the_limit_stop_the_run(on_spike: str) -> None:
    every = {"every": 1} if on_spike == "roll-back" else {}
    spec = GuardSpec(on_spike=on_spike, loss=2.0, window=2, limit=2, **every)
    guard = Guard(spec)
    for step, loss in enumerate([1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 5.0], start=1):
        guard.take(line_of(guard, step, loss, 1.0))
    line = line_of(guard, 8, 5.0, 1.0)
    assert line.spike is not None and line.spike.did == "stop"
    with pytest.raises(RunError) as caught:
        require_no_stop(line, spec=spec)
    assert "step 8" in str(caught.value) and "guard.limit = 2" in str(caught.value)
    for step in (8, 9):  # a window of good steps: the count begins anew
        guard.take(line_of(guard, step, 1.0, 1.0))
    spike = guard.judge(step=10, loss=5.0, grad_norm=1.0)
    assert spike is not None and spike.did == on_spike


def test_steps_without_a_stop_pass() -> None:
    guard = Guard(GuardSpec())
    for step in range(1, 9):
        line = line_of(guard, step, 10.0**step, 10.0**step)
        require_no_stop(line, spec=guard.spec)
        assert guard.take(line) == "update" and guard.lost == 0


# All of it follows from the ledger


@pytest.mark.parametrize("on_spike", ["skip", "roll-back"])
def test_a_guard_that_reads_the_ledger_judges_as_the_one_that_was_there(on_spike: str) -> None:
    drawn = random.Random(5)
    every = {"every": 7} if on_spike == "roll-back" else {}
    spec = GuardSpec(on_spike=on_spike, loss=1.3, grad_norm=1.6, window=5, limit=500, **every)
    guard, lines, kept = Guard(spec), [], []
    weights: list[LedgerLine] = []  # those whose updates are in them, told in another way
    kept_weights: tuple[int, list[LedgerLine]] = (0, [])
    for step in range(1, 400):
        loss, norm = 2.0 + drawn.random(), drawn.lognormvariate(0.0, 0.4)
        line = line_of(guard, step, loss, norm)
        if len(weights) < 5:
            assert line.spike is None
        else:
            expected = [
                median_high(getattr(one, why) for one in weights[-5:])
                for why in ("loss", "grad_norm")
            ]
            is_spike = loss > 1.3 * expected[0] or norm > 1.6 * expected[1]
            assert (line.spike is not None) == is_spike
        change = guard.take(line)
        if change == "keep":
            kept_weights = (step - 1, list(weights))
        if change in ("keep", "update"):
            weights.append(line)
        elif change == "roll-back":
            assert line.spike is not None and line.spike.to == kept_weights[0]
            weights = list(kept_weights[1])
        assert guard.lost == step - len(weights)
        lines.append(line)
        kept.append(guard.kept_step)
    num_spikes = sum(line.spike is not None for line in lines)
    assert 20 < num_spikes < 300
    for step in (0, 1, 6, 57, 200, 399):
        other = Guard(spec)
        other.replay(lines[:step])
        other.replay(lines[:step])  # again: nothing is left of the first time
        for line in lines[step : step + 40]:
            again = line_of(other, line.step, line.loss, line.grad_norm)
            assert again.spike == line.spike
            other.take(again)
            assert other.kept_step == kept[line.step - 1]


def test_a_line_without_a_spike_is_written_as_ever(tmp_path) -> None:
    told = Told(tmp_path / "run")
    told.start(a="k1")
    told.steps(2)
    told.steps(1, spike={"did": "skip", "why": "loss", "value": 3.0, "reference": 1.5})
    told.ledger.close()
    path = told.folder.ledger_path
    first, _, last = path.read_text().splitlines()
    assert "spike" not in first
    assert '"spike":{"did":"skip","reference":1.5,"to":null,"value":3.0,"why":"loss"}' in last
    assert [line.spike is not None for line in Ledger(path).read()] == [False, False, True]
