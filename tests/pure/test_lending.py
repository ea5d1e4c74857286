"""Lending by the hour: the programme against trying every day there is."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.planning import lending
from atoll.planning.lending import HOUR, Pool, best, in_blocks, levels_of, states_of, tokens_of

seconds = st.floats(0, 4000)


def pools(hours, most):
    free = st.tuples(*[st.integers(0, most)] * hours)
    return st.builds(Pool, free=free, lend=seconds, give_back=seconds, again=seconds)


@st.composite
def cases(draw, *, most=2):
    """A short day, one or two pools, and tokens a second that grow with every node."""
    hours = draw(st.integers(2, 4))
    found = draw(st.lists(pools(hours, most), min_size=1, max_size=2))
    own = draw(st.floats(0, 10))
    each = [draw(st.floats(0, 5)) for _ in found]
    bend = draw(st.floats(0.5, 1.0))
    return found, lambda state: own + sum(e * n for e, n in zip(each, state, strict=True)) ** bend


def every_day(found, states):
    may = [[s for s in states if all(n <= p.free[h] for n, p in zip(s, found, strict=True))]
           for h in range(len(found[0].free))]  # fmt: skip
    return itertools.product(*may)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_best_day_is_the_best_of_all_days(case):
    found, rate = case
    states = states_of(found)
    day = best(found, rate, states)
    tried = [tokens_of(found, rate, list(one)) for one in every_day(found, states)]
    most = max(one.tokens for one in tried)
    assert abs(day.tokens - most) <= 1e-9 * max(1.0, abs(most))
    assert all(n <= p.free[h] for h, s in enumerate(day.states)
               for n, p in zip(s, found, strict=True)), "people keep their chips"  # fmt: skip
    blocks = in_blocks(found, rate, states)
    assert blocks.tokens <= day.tokens + 1e-9 * max(1.0, abs(most))
    for pool in range(len(found)):
        assert len({state[pool] for state in blocks.states} - {0}) <= 1


@settings(max_examples=60, deadline=None)
@given(cases(most=5), st.floats(1.0, 3.0))
def test_dearer_moves_never_make_a_better_day_and_free_ones_follow_what_is_free(case, times):
    found, rate = case
    states = states_of(found)
    dear = [Pool(free=p.free, lend=times * p.lend, give_back=times * p.give_back,
                 again=times * p.again) for p in found]  # fmt: skip
    none = [Pool(free=p.free, lend=0.0, give_back=0.0, again=0.0) for p in found]
    cheap, usual, high = (best(some, rate, states).tokens for some in (none, found, dear))
    assert cheap >= usual - 1e-6 and usual >= high - 1e-6
    resting = HOUR * len(found[0].free) * rate((0,) * len(found))
    assert high >= resting - 1e-6, "nobody has to lend"
    if len(found) == 1 and len(set(found[0].free)) <= 25:
        follow = sum(HOUR * rate((n,)) for n in found[0].free)
        assert abs(cheap - follow) <= 1e-9 * max(1.0, follow)


def test_a_chip_does_not_move_for_less_than_the_move_costs():
    """Free for one hour of 24, and 31 minutes to and fro each: it stays where it is."""
    free = (0,) * 12 + (8,) + (0,) * 11
    slow = Pool(free=free, lend=1860.0, give_back=1860.0, again=0.0)
    quick = Pool(free=free, lend=1700.0, give_back=1700.0, again=0.0)

    def rate(state):
        return 100.0 + 10.0 * state[0]

    assert best([slow], rate, states_of([slow])).moves == 0
    day = best([quick], rate, states_of([quick]))
    assert day.moves == 2 and day.tokens == 86400 * 100.0 + 80.0 * 200.0
    assert day.lost == 80.0 * 3400.0


def test_what_stays_begins_anew_when_others_leave():
    pool = Pool(free=(4, 2), lend=100.0, give_back=200.0, again=50.0)
    day = tokens_of([pool], lambda state: float(state[0]), [(4,), (2,)])
    # Two come: the four that are then there begin after 100 s. Two leave: all stop for 200 s before
    # that, and two of them begin again 50 s after it.
    assert day.lost == 4 * 100.0 + 4 * 200.0 + 2 * 50.0


@given(st.lists(st.integers(0, 1000), min_size=24, max_size=24), st.integers(2, 9))
def test_levels_are_free_at_some_hour_and_hold_the_ends(free, most):
    pool = Pool(free=tuple(free), lend=0.0, give_back=0.0, again=0.0)
    levels = levels_of(pool, most)
    assert levels[0] == 0 and levels[-1] == max(free) and len(levels) <= most
    assert set(levels) <= {0, *free}


def test_states_stay_few():
    free = tuple(range(24))
    many = [Pool(free=free, lend=0.0, give_back=0.0, again=0.0)] * 3
    assert all(len(states_of(many[:n])) <= max(lending.MOST_STATES, 2**n) for n in range(4))
