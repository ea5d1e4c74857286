"""Hours of the day: what a text says, seen from the clocks of its site."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.hours import DAY, Hours, format_offset, parse_offset
from atoll.plan import Plan, plan_trivially
from atoll.recipe import Recipe

minutes = st.integers(0, 1439)
offsets = st.integers(-14 * 4, 14 * 4).map(lambda quarter: 900.0 * quarter)


def clock(minute):
    return f"{minute // 60:02}:{minute % 60:02}"


@given(begin=minutes, end=minutes, offset=offsets, now=minutes)
def test_a_window_holds_what_a_clock_on_the_wall_says(begin, end, offset, now):
    if begin == end:
        return
    hours = Hours.parse(f"{clock(begin)}-{clock(end)}", offset=offset)
    local = (60 * now + offset) % DAY / 60
    inside = begin <= local < end if begin < end else local >= begin or local < end
    assert hours.holds(60.0 * now) == inside
    left, until = hours.left(60.0 * now), hours.until(60.0 * now)
    assert (left > 0) == inside and (until == 0) == inside
    if inside:
        assert not hours.holds((60.0 * now + left) % DAY) and left <= DAY
    else:
        assert hours.holds((60.0 * now + until) % DAY) and until < DAY
    assert Hours.parse(hours.text) == hours, "the text says the same everywhere"


@given(cuts=st.sets(minutes, min_size=4, max_size=4), now=minutes)
def test_several_windows_hold_what_each_holds(cuts, now):
    cuts = sorted(cuts)
    parts = [f"{clock(a)}-{clock(b)}" for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    whole = Hours.parse(", ".join(parts), offset=0.0)
    each = [Hours.parse(part, offset=0.0) for part in parts]
    assert whole.left(60.0 * now) == max(one.left(60.0 * now) for one in each)


def test_windows_that_meet_are_one_also_over_midnight():
    assert Hours.parse("22:00-24:00, 00:00-06:30", offset=0.0).left(79200.0) == 8.5 * 3600
    assert Hours.parse("12:00-24:00, 00:00-12:00", offset=0.0).until(5.0) == 0
    night = Hours.parse("22:30-07:00", offset=0.0)
    assert [hour for hour in range(24) if night.whole(hour)] == [0, 1, 2, 3, 4, 5, 6, 23]


@given(offsets)
def test_offsets_read_back(seconds):
    assert parse_offset(format_offset(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no hours"), ("night", "no hours"), ("25:00-26:00", "no hours"), ("22:00", "no hours"),
     ("22:00-22:00", "begin when they end"), ("22:00-07:00, 06:00-08:00", "overlap"),
     ("00:00-24:00, 01:00-02:00", "overlap"), ("22:00-07:00 +19:00", "no offset"),
     ("22:00-07:61", "no hours"), (7, "no hours")],
)  # fmt: skip
def test_what_are_no_hours_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        Hours.parse(text, offset=0.0)


def fleet_of(text):
    import tomllib

    return Fleet.from_dict(tomllib.loads(text), file="fleet.toml")


def test_hours_need_the_clock_of_their_site():
    with pytest.raises(InputError, match=r"island\[0\].hours.*not known"):
        fleet_of('[[island]]\nname = "a"\nhours = "22:00-07:00"\n')
    told = '[[site]]\nname = "here"\nutc = "+08:00"\n'
    fleet = fleet_of(told + '[[island]]\nname = "a"\nhours = "22:00-07:00"\n')
    assert fleet.hours_of(fleet.island[0]).windows == ((50400.0, 82800.0),)
    with pytest.raises(InputError, match=r"site\[0\].utc"):
        fleet_of('[[site]]\nname = "here"\nutc = "8 h"\n[[island]]\nname = "a"\n')


def test_a_plan_keeps_the_hours_wherever_it_is_read():
    told = '[[site]]\nname = "here"\nutc = "-03:30"\n'
    fleet = fleet_of(
        told + '[[island]]\nname = "a"\n[[island]]\nname = "b"\nhours = "22:00-07:00"\n'
    )
    plan = plan_trivially(Recipe.load("examples/recipes/tiny.toml"), fleet)
    assert [one.hours for one in plan.islands] == [None, "22:00-07:00 -03:30"]
    again = Plan.from_dict(plan.as_dict())
    assert again.as_fleet().hours_of(again.as_fleet().island[1]).windows == ((5400.0, 37800.0),)
