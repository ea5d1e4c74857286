"""The past of a run from its files: attempts, sessions, islands, goodput, and what ledger says."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure import run_cases

from atoll.cli import main
from atoll.errors import InputError
from atoll.history import answers, goodput, reading


@pytest.fixture(scope="module")
def eventful(tmp_path_factory):
    run = run_cases.eventful(tmp_path_factory.mktemp("told") / "run")
    run.end("finished", after=1.0)
    return run


@pytest.fixture(scope="module")
def history(eventful):
    return reading.read(eventful.path)


def ledger(capsys, *arguments):
    code = main(["ledger", *map(str, arguments), "--json"])
    out = capsys.readouterr()
    return json.loads(out.out.splitlines()[-1]) if code == 0 else (code, out.err)


def test_sessions_and_attempts(history):
    assert [session.how for session in history.sessions] == ["stopped", "crashed", "finished"]
    assert [session.first_step for session in history.sessions] == [1, 201, 281]
    assert len(history.attempts) == 430 + 20
    taken_back = [one for one in history.attempts if not one.kept]
    assert [one.line.step for one in taken_back] == list(range(281, 301))
    assert {one.session for one in taken_back} == {1}
    kept = [one for one in history.attempts if one.kept]
    assert [one.line.step for one in kept] == list(range(1, 431))
    assert {one.session for one in kept if one.line.step > 280} == {2}
    ended = [one.ended for one in history.attempts]
    assert ended == sorted(ended)


def test_where_the_time_went(history, eventful):
    found = goodput.goodput(history)
    lost = found.lost_seconds
    assert list(lost) == list(goodput.CAUSES)
    assert lost["lost_islands"] == pytest.approx((4.0 - 1.0) + (12.0 - 1.0))
    assert lost["joins"] == pytest.approx(3 * (1.8 - 1.5))
    assert lost["requantised"] == pytest.approx(1.5)
    assert lost["recomputed"] == pytest.approx(20 * 1.5)
    assert lost["first_steps"] == pytest.approx(2.0 + 1.0)
    assert lost["stopped"] == pytest.approx(100.0 + 50.0)
    assert lost["between_steps"] == pytest.approx(2.0 + 1.0)
    assert lost["uneven"] == pytest.approx(0.0)
    assert found.wall_seconds == pytest.approx(eventful.clock - 1_800_000_000.0)
    assert found.useful_seconds + sum(lost.values()) == pytest.approx(found.wall_seconds)
    assert 0 < found.ratio < found.running_ratio < 1
    assert found.as_dict()["goodput"] == found.ratio


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=80), st.integers(0, 3))
def test_the_parts_add_up_whatever_the_steps_took(tmp_path_factory, seconds, every):
    run = run_cases.Told(tmp_path_factory.mktemp("any") / "run")
    run.start(a="k1", b="k2")
    for index, each in enumerate(seconds):
        run.steps(1, seconds=each, requantised=int(every and index % (every + 1) == 0))
    run.end()
    found = goodput.goodput(reading.read(run.path))
    total = found.useful_seconds + sum(found.lost_seconds.values())
    assert total == pytest.approx(found.wall_seconds) == pytest.approx(sum(seconds))
    assert all(part >= 0 for part in found.lost_seconds.values())


def test_a_clock_that_was_set_back_takes_nothing_from_other_sessions(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    run.steps(10)
    run.clock -= 3600.0
    run.end()
    run.clock += 5.0
    run.start(a="k1")
    run.steps(10)
    run.end("finished", after=7.0)
    found = goodput.goodput(reading.read(run.path))
    assert found.lost_seconds["between_steps"] == pytest.approx(7.0)
    assert found.lost_seconds["stopped"] == 0.0
    assert found.wall_seconds == pytest.approx(27.0)
    assert found.useful_seconds == pytest.approx(20.0)


jumps = st.sampled_from([0.0, 0.0, -1.0, -3600.0, -1e8, 2.0, 1e6])


@given(st.lists(st.tuples(jumps, st.integers(0, 3), jumps, jumps, st.booleans()), min_size=1))
def test_the_parts_add_up_wherever_the_clock_jumps(tmp_path_factory, sessions):
    run = run_cases.Told(tmp_path_factory.mktemp("jumped") / "run")
    for first, count, second, third, is_told in sessions:
        run.clock += first
        run.start(a="k1", b="k2")
        run.steps(count)
        run.clock += second
        run.event("requantised", step=run.step, times=1)
        run.clock += third
        if is_told:
            run.event("stopped", step=run.step, fingerprint="f")
    run.end("finished")
    found = goodput.goodput(reading.read(run.path))
    total = found.useful_seconds + sum(found.lost_seconds.values())
    assert total == pytest.approx(found.wall_seconds)
    assert found.useful_seconds >= 0 and all(part >= 0 for part in found.lost_seconds.values())
    assert found.wall_seconds >= run.step * 0.999999
    assert 0 <= found.ratio <= 1 and 0 <= found.running_ratio <= 1


def test_a_folder_without_events_is_known_by_its_lines(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.members = {"a": "k1"}
    run.steps(5)
    found = goodput.goodput(reading.read(run.path))
    assert found.wall_seconds == found.useful_seconds == pytest.approx(5.0)


def test_a_new_folder_has_an_empty_history(tmp_path, capsys):
    run = run_cases.Told(tmp_path / "run")
    answer = ledger(capsys, run.path)
    assert answer["step"] == 0 and answer["loss"] is None and answer["goodput"]["goodput"] == 0.0
    code, message = ledger(capsys, run.path, "--step", 1)
    assert code == 2 and "holds no step yet" in message


def test_who_computed_a_step(eventful, capsys):
    answer = ledger(capsys, eventful.path, "--step", 61)
    assert answer["reassigned"] == [{"from": "b", "first": 10, "last": 11, "to": ["c"]}]
    assert [(one["island"], one["grains"]) for one in answer["islands"]] == [("a", 6), ("c", 6)]
    assert [one["leased"] for one in answer["islands"]] == [False, True]
    assert answer["seconds"] == 4.0 and answer["usual_seconds"] == 1.0
    assert answer["cause"] == "lost_islands"
    assert [event["kind"] for event in answer["events"]] == ["died"]
    again = ledger(capsys, eventful.path, "--step", 290)
    assert again["session"] == 3
    (before,) = again["taken_back"]
    assert before["session"] == 2 and before["islands"] == ["a", "b"] and before["same_bits"]
    chips = {one["island"]: (one["chip"], one["kind"]) for one in again["islands"]}
    assert chips == {"a": ("cpu", "k1"), "b": ("cpu-compat", "k2"), "c": ("cpu", "k1")}


def test_what_an_island_cost(eventful, capsys):
    answer = ledger(capsys, eventful.path, "--island", "b")
    assert answer["losses"] == 1 and answer["state"] == "ended"
    assert answer["computed"] == [[1, 60], [85, 430]]
    assert answer["handed_out_again"] == {"grains": 2, "steps": [[61, 61]]}
    assert answer["lost_seconds_estimate"] == pytest.approx(3.0)
    assert answer["joining_seconds_estimate"] == pytest.approx(0.9)
    kinds = [event["kind"] for event in answer["events"]]
    assert kinds == ["died", "restarted", "joined", "healed"]
    assert ledger(capsys, eventful.path, "--island", "c")["state"] == "left"
    code, message = ledger(capsys, eventful.path, "--island", "cc")
    assert code == 2 and "nearest: c" in message and "a, b, c" in message


def test_which_steps_ran_on_leased_chips(eventful, capsys):
    leased = ledger(capsys, eventful.path, "--leased")
    site = ledger(capsys, eventful.path, "--site", "johor")
    assert leased["sites"] == ["johor"] and leased["owners"] == ["a lessor"]
    assert leased["steps"] == site["steps"] == [[1, 261], [281, 400]]
    assert leased["num_steps"] == 381
    assert leased["tokens"] == pytest.approx(leased["share"] * 430 * 288, abs=1)
    assert ledger(capsys, eventful.path, "--site", "home")["num_steps"] == 430
    code, message = ledger(capsys, eventful.path, "--site", "hom")
    assert code == 2 and "home, johor" in message
    assert ledger(capsys, eventful.path, "--leased", "--step", "3")[0] == 2


@pytest.mark.parametrize(
    ("owners", "leased"),
    [
        (["", "", "x"], {"s2"}),
        (["us", "us", ""], set()),
        (["us", "x", "us"], {"s1"}),
        (["us", "x", "y"], {"s1", "s2"}),
        (["", "", ""], set()),
    ],
)
def test_what_counts_as_leased(tmp_path, owners, leased):
    fleet = {
        "site": [{"name": f"s{i}", "owner": owner} for i, owner in enumerate(owners)],
        "island": [{"name": f"i{i}", "site": f"s{i}"} for i in range(len(owners))],
    }
    run = run_cases.Told(tmp_path / "run", fleet=fleet)
    run.start(i0="k1", i1="k1", i2="k1")
    run.steps(2)
    assert answers.leased_sites(reading.read(run.path)) == leased


def test_people_get_text(eventful, capsys):
    for question in ([], ["--step", "61"], ["--island", "c"], ["--leased"], ["--step", "290"]):
        assert main(["ledger", str(eventful.path), *question]) == 0
    text = capsys.readouterr().out
    for words in ("goodput", "handed out again, to c", "about 11 s", "the same bits", "a lessor"):
        assert words in text


def test_an_island_that_nobody_planned(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    run.steps(3)
    run.join("far", "k9")
    run.steps(2)
    run.event("refused", island="odd", reason="another kind")
    told = {one["island"]: one for one in answers.islands(reading.read(run.path))}
    assert list(told) == ["a", "far", "odd"], "those of the fleet that took no part are left out"
    assert told["far"]["chip"] == "cpu" and told["far"]["site"] == ""
    assert told["odd"]["state"] == "refused" and told["odd"]["steps"] == 0


def test_reading_goes_on_with_what_is_new(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1", b="k2")
    run.steps(5)
    reader = reading.Reader(run.path)
    assert len(reader.history().lines) == 5 and not reader.refresh()
    data = run.ledger.path.read_bytes()
    run.steps(2)
    whole = run.ledger.path.read_bytes()
    half = (len(data) + len(whole)) // 2 + 40
    run.ledger.path.write_bytes(whole[:half])  # the second new line is being written
    assert reader.refresh() and len(reader.history().lines) == 6
    assert reader.history().num_damaged == 0
    run.ledger.path.write_bytes(whole)
    assert reader.refresh() and len(reader.history().lines) == 7
    run.ledger.close()
    run.roll_back(3)
    run.start(a="k1")
    run.steps(9)
    assert reader.refresh()
    history = reader.history()
    assert [line.step for line in history.lines] == list(range(1, 13))
    assert set(history.lines[-1].grains) == {"a"}
    assert len([one for one in history.attempts if not one.kept]) == 4


def test_a_damaged_line_is_counted_and_left_out(tmp_path, capsys):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    run.steps(4)
    lines = run.ledger.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"step":2', b'"step":9')
    run.ledger.path.write_bytes(b"".join(lines))
    with run.events.path.open("ab") as file:
        file.write(b"\xff{\n[]\n{}\n")
    answer = ledger(capsys, run.path)
    assert answer["damaged_lines"] == 1 and answer["step"] == 4
    with pytest.raises(InputError):
        answers.about_step(reading.read(run.path), 2)


def test_a_run_seems_to_go_on_while_it_is_locked_or_just_wrote(tmp_path):
    run = run_cases.Told(tmp_path / "run")
    run.start(a="k1")
    run.steps(1)
    run.clock = time.time()
    run_cases.date_the_ledger(run)
    assert reading.read(run.path).state == "running"
    run.clock -= 3600
    run_cases.date_the_ledger(run)
    assert reading.read(run.path).state == "crashed"
    with run.folder.lock():
        assert reading.read(run.path).state == "running"
    assert reading.read(run.path).islands["a"].state == "ended"


def test_no_run_is_said_so(tmp_path, capsys):
    assert ledger(capsys, tmp_path)[0] == 2
