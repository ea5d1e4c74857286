"""The timetable: who comes and who goes, by a clock that a test turns."""

import pytest

from atoll.errors import InputError
from atoll.hours import Hours
from atoll.training.crewing import MemberSpec
from atoll.training.timetable import Rehearsal, Timetable

HOUR = 3600.0


class Hand:
    """A clock whose hand is set by hand."""

    def __init__(self, hour, speed=1.0):
        self.hour, self.speed = hour, speed

    def now(self):
        return self.hour * HOUR


def member(name, hours=None):
    return MemberSpec(
        name=name, island=name, site="here", chip="cpu", lanes=1, threads=1, device_index=0,
        share=None, dials_in=False, hours=hours and Hours.parse(hours, offset=0.0),
    )  # fmt: skip


def names(found):
    return [[one.name for one in part] for part in found]


def test_an_island_comes_once_and_goes_before_a_step_would_run_over():
    clock = Hand(20.0)
    table = Timetable([member("a"), member("b", "22:00-07:00")], clock)
    assert table.absent() == {"b"} and table.matters
    assert names(table.changes(0.0)) == [[], ["b"]]
    clock.hour = 22.0
    assert names(table.changes(600.0)) == [["b"], []]
    assert names(table.changes(600.0)) == [[], []]
    clock.hour = 6.7  # 18 minutes are left
    assert names(table.changes(600.0)) == [[], []]
    clock.hour = 6.8  # 12 are not enough for one and a half steps of ten
    assert names(table.changes(600.0)) == [[], ["b"]] and table.is_away("b")
    assert names(table.changes(1.0)) == [[], ["b"]], "it does not come back for the rest"
    clock.hour = 7.0
    assert names(table.changes(1.0)) == [[], ["b"]]
    clock.hour = 23.0
    assert names(table.changes(1.0)) == [["b"], []]


def test_a_day_that_goes_faster_has_shorter_hours():
    clock = Hand(6.5, speed=3600.0)
    table = Timetable([member("a"), member("b", "22:00-07:00")], clock)
    assert table.absent() == set()
    assert names(table.changes(0.3)) == [[], []]
    assert names(table.changes(0.4)) == [[], ["b"]]


def test_islands_of_a_changed_list_are_seen_and_those_without_hours_never_told():
    clock = Hand(23.0)
    members = [member("a")]
    table = Timetable(members, clock)
    assert table.absent() == set() and not table.matters
    members[:] = [member("c", "22:00-23:30"), member("d")]
    assert names(table.changes(1.0)) == [["c"], []]
    assert not table.is_away("d")


def test_waiting_ends_when_somebody_is_there():
    clock, said = Hand(12.0, speed=1e6), []
    table = Timetable([member("b", "22:00-07:00")], clock)
    table.clock = Turning(clock)
    table.wait(said.append)
    assert said == ["no island is there at this hour; the next one comes at 22:00 UTC"]


class Turning:
    """A clock that goes on by hours whenever somebody looks."""

    speed = 1e9

    def __init__(self, hand):
        self.hand = hand

    def now(self):
        self.hand.hour += 3.0
        return self.hand.now()


@pytest.mark.parametrize("text", ["25:00", "noon", "21:55x0", "21:55y2", "21:99"])
def test_what_is_no_clock_is_refused(text):
    with pytest.raises(InputError, match="no clock"):
        Rehearsal.parse(text)


def test_a_rehearsal_begins_when_it_is_told():
    fast = Rehearsal.parse("21:30x0.001")
    assert fast.speed == 0.001 and 0 <= fast.now() - 21.5 * HOUR < 1.0
    assert Rehearsal.parse("06:00").speed == 1.0
