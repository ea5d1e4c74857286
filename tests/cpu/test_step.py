"""How the pilot judges a step, and how it hears its islands: no process, real sockets."""

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.crew import wire
from atoll.errors import IslandError, NonFiniteError
from atoll.training.digests import PRIME
from atoll.training.exponents import load_of, pack_loads
from atoll.training.membership import Crewed
from atoll.training.step import add_up, check_exchange, check_replicas, finite, not_finite

magnitudes = st.floats(min_value=0.0, max_value=2.0**127, width=32)


def result(maxima=(), losses=(), exponent=40, **changes):
    return {
        "loads": pack_loads([sum(load_of(x, exponent) for x in maxima)]),
        "losses": [[grain, loss] for grain, loss in losses],
        "tokens": 64 * len(losses),
        "sum_digest": 0,
        "probe": None,
        "not_finite": [],
    } | changes


@given(st.lists(magnitudes, min_size=2, max_size=12), st.integers(-20, 102), st.data())
def test_loads_add_up_to_the_same_whoever_computed_what(maxima, exponent, data):
    """Also where gradients are so large that their load fits no integer of a machine: a cap on
    what an island reports made the next exponents depend on the split."""
    cut = data.draw(st.integers(0, len(maxima)))
    alone = add_up({"a": result(maxima, exponent=exponent)}).loads
    parts = {
        "a": result(maxima[:cut], exponent=exponent),
        "b": result(maxima[cut:], exponent=exponent),
    }
    assert add_up(parts).loads == alone


@given(st.lists(st.floats(0.0, 1e9), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_the_loss_is_the_same_for_every_split(losses, drawn):
    grains = list(enumerate(losses))
    alone = add_up({"a": result(losses=grains)})
    parts = {name: [] for name in "abc"}
    for grain in grains:
        parts[drawn.choice("abc")].append(grain)
    split = add_up({name: result(losses=mine) for name, mine in parts.items()})
    assert split.loss == alone.loss and split.tokens == alone.tokens == 64 * len(losses)


def test_digests_add_up_modulo_the_prime_and_probes_are_kept():
    totals = add_up(
        {
            "a": result(sum_digest=PRIME - 1, probe=[3, 17]),
            "b": result(sum_digest=5),
        }
    )
    assert totals.sum_digest == 4 and totals.probe == {"a": [3, 17]}


def test_grains_that_are_not_finite_are_named_with_step_island_and_tensor():
    assert not_finite(7, {"a": result(), "b": result()}) is None
    bad = {"a": result(), "b": result(not_finite=[[5, "norm.weight"]])}
    text = str(not_finite(7, bad))
    assert all(part in text for part in ("step 7", "grain 5", "island 'b'", "norm.weight"))
    many = {"a": result(not_finite=[[grain, "the loss"] for grain in range(9)])}
    assert "and 6 more" in str(not_finite(7, many))


def answer(digest, squares=((4, 0),)):
    return {"sum_digest": digest, "squares": [list(s) for s in squares]}


def test_a_validation_loss_that_is_none_ends_the_run():
    assert finite(3, 4.5) == 4.5
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="after step 3 the loss on the held-out text"):
            finite(3, bad)


def test_a_bad_exchange_names_its_island():
    totals = add_up({"a": result(sum_digest=3), "b": result(sum_digest=4)})
    good = {"a": answer(7), "b": answer(7)}
    assert check_exchange(1, totals, good) == [[4, 0]]
    with pytest.raises(IslandError, match="island 'b'") as caught:
        check_exchange(9, totals, {"a": answer(7), "b": answer(8)})
    assert "step 9" in str(caught.value) and "'a'" not in str(caught.value)
    with pytest.raises(IslandError, match="another norm"):
        check_exchange(9, totals, {"a": answer(7), "b": answer(7, [(5, 0)])})


def test_the_odd_replica_is_named():
    assert check_replicas(3, {"a": "x", "b": "x"}) == "x"
    for odd in "abc":
        prints = {name: "y" if name == odd else "x" for name in "abc"}
        with pytest.raises(IslandError, match=f"step 3 the weights of island '{odd}' differ"):
            check_replicas(3, prints)
    with pytest.raises(IslandError, match="differ"):
        check_replicas(3, {"a": "x", "b": "y"})


# Hearing the islands


class Islands:
    """A listener, and islands that are sockets in this very process."""

    def __init__(self, *names, admitted=None):
        self.listener = wire.Listener("127.0.0.1:0", token="t")
        self.crew = Crewed(explain=lambda name: f"(the log of {name})")
        self.crew.listen_to(self.listener)
        self.ends = {name: self.dial(name) for name in names}
        self.crew.admit(dict.fromkeys(admitted or names, "cpu"), waiting=lambda missing: None)

    def dial(self, name):
        facts = {"chip": "cpu", "lanes": 1, "threads": 1}
        return wire.dial(self.listener.address, token="t", name=name, torch="2", facts=facts)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        for end in self.ends.values():
            end.close()


def test_answers_come_in_the_order_of_the_members_whatever_comes_first():
    for order in itertools.permutations("abc"):
        with Islands("a", "b", "c") as islands:
            for name in order:
                islands.ends[name].send("checkpointed", step=1)
                islands.ends[name].send("result", value=name)
            got = islands.crew.gather("result")
            assert list(got) == list(islands.crew.members)
            assert [got[name]["value"] for name in got] == list(got)
            late = islands.crew.take("checkpointed")
            assert sorted(name for name, _ in late) == ["a", "b", "c"]
            assert islands.crew.take("checkpointed") == []


def test_the_second_answer_of_an_island_waits_for_its_own_question():
    with Islands("a", "b") as islands:
        islands.ends["a"].send("result", value=1)
        islands.ends["a"].send("result", value=2)
        islands.ends["b"].send("result", value=3)
        assert [m["value"] for m in islands.crew.gather("result", ["a", "b"]).values()] == [1, 3]
        islands.ends["b"].send("result", value=4)
        assert [m["value"] for m in islands.crew.gather("result", ["a", "b"]).values()] == [2, 4]


def test_the_last_words_of_an_island_are_the_error():
    with Islands("a", "b") as islands:
        islands.ends["b"].send("failed", reason="boom", traceback="Traceback: boom in a kernel")
        islands.ends["b"].close()
        with pytest.raises(IslandError, match="island 'b' failed") as caught:
            islands.crew.gather("result")
        assert "boom in a kernel" in str(caught.value)


def test_the_last_words_are_heard_also_when_speaking_to_the_dead():
    """The pilot is just about to send when the island fails: its own words must still win."""
    with Islands("a", "b") as islands:
        islands.ends["b"].send("failed", reason="boom", traceback="Traceback: boom in a kernel")
        islands.ends["b"].close()
        with pytest.raises(IslandError, match="boom in a kernel"):
            for _ in range(10_000):  # until the system knows that the other end is gone
                islands.crew.tell_all("assign", padding="x" * 1000)


def test_an_island_that_leaves_without_a_word_is_named_with_its_log():
    with Islands("a", "b") as islands:
        islands.ends["a"].close()
        with pytest.raises(IslandError, match=r"island 'a' is gone(.|\n)*the log of a"):
            islands.crew.gather("result")


def test_an_island_may_leave_after_it_has_finished():
    with Islands("a", "b") as islands:
        for name in "ab":
            islands.ends[name].send("finished")
            islands.ends[name].close()
        assert set(islands.crew.gather("finished")) == {"a", "b"}
        assert islands.crew.take("checkpointed") == []


def test_an_exit_may_be_seen_before_the_goodbye():
    """The process is watched on another way than its words take; a busy machine swaps the two."""
    with Islands("a") as islands:
        islands.listener.events.put(wire.Event("a", wire.Exit(status=0)))
        timer = threading.Timer(0.2, islands.ends["a"].send, ["finished"])
        timer.start()
        assert set(islands.crew.gather("finished")) == {"a"}
        timer.join()


def test_an_exit_without_a_goodbye_is_an_error_whatever_its_status():
    for status in (0, 1, -9):
        with Islands("a") as islands:
            islands.listener.events.put(wire.Event("a", wire.Exit(status=status)))
            islands.ends["a"].close()
            with pytest.raises(IslandError, match="island 'a' is gone"):
                islands.crew.gather("finished")


def test_an_island_that_exits_before_it_dials_is_an_error():
    listener = wire.Listener("127.0.0.1:0", token="t")
    crew = Crewed(explain=lambda name: "(its log)")
    crew.listen_to(listener)
    listener.events.put(wire.Event("a", wire.Exit(status=0)))
    with pytest.raises(IslandError, match="its log"):
        crew.admit(["a"], waiting=lambda missing: None)
    listener.close()


def test_a_stranger_with_the_token_is_told_and_does_no_harm():
    """An island of another name, started by mistake, must not end a run of hours."""
    with Islands("a", "stranger", admitted=["a"]) as islands:
        islands.dial("late").close()
        timer = threading.Timer(0.3, islands.ends["a"].send, ["result"])
        timer.start()
        assert set(islands.crew.gather("result")) == {"a"}
        told = islands.ends["stranger"].receive(10)
        assert told.kind == "failed" and "stranger" in told["reason"]
        timer.join()
