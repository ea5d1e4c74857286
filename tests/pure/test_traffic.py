"""Traffic in a fleet file: what a day of requests is, by whose clock, and what is refused."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InputError
from atoll.fleet import Fleet
from atoll.traffic import Traffic

BASE = {"island": "a", "tokens_in": 500, "tokens_out": 200, "time_to_first_token": "2 s",
        "time_per_token": "50 ms"}  # fmt: skip


def traffic(**keys):
    return Traffic.model_validate(BASE | keys)


@given(st.lists(st.floats(0, 1e9), min_size=24, max_size=24).filter(any), st.integers(-56, 56))
def test_clocks_move_requests_and_lose_none(day, quarters):
    one = traffic(day=day)
    found = one.hourly_utc(900.0 * quarters)
    assert sum(found) == pytest.approx(sum(day), rel=1e-9)
    if quarters % 4 == 0:
        assert [found[(hour - quarters // 4) % 24] for hour in range(24)] == pytest.approx(day)


def test_a_shape_is_scaled_and_absolute_numbers_stay():
    numbers = [float(hour) for hour in range(24)]
    assert traffic(day=numbers).hourly() == numbers
    assert sum(traffic(day=numbers, requests="24 M").hourly()) == pytest.approx(24e6)
    both = traffic(day="burstgpt", users="2 M", requests_per_user=7.5)
    assert sum(both.hourly()) == pytest.approx(15e6)
    # Of a student's day: the least in the morning, the most at noon and after it.
    assert both.hourly().index(min(both.hourly())) == 6
    assert both.hourly().index(max(both.hourly())) == 14


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"day": "burst"}, "no such day"), ({"day": "burstgpt"}, "shape alone"),
     ({"day": [1.0] * 23}, "23 numbers"), ({"day": [0.0] * 24}, "no day of requests"),
     ({"day": [-1.0] * 24}, "no day of requests"), ({"day": 7}, "no day of requests"),
     ({"day": ["1"] * 24}, "no day of requests"), ({"day": "flat", "lend": 3}, "lend"),
     ({"day": "flat", "users": "2 M"}, "other half"),
     ({"day": "flat", "requests": "2 M", "users": "1 M", "requests_per_user": 2.0}, "two numbers"),
     ({"day": "flat", "requests": "2 M", "time_per_token": "0 s"}, "more than 0"),
     ({"day": "flat", "requests": "2 M", "time_per_token": "50"}, "needs a unit"),
     ({"day": "flat", "requests": "2 M", "lend": {"low": "2 s", "mid": "1 s", "high": "3 s"}},
      "low <= mid"),
     ({"day": "flat", "requests": "2 M", "model": "gpt9"}, "no such preset"),
     ({"day": "flat", "requests": "2 M", "burst": 0.5}, "at least 1"),
     ({"day": "flat", "requests": "2 M", "weigths": "fp8"}, "no such key")],
)  # fmt: skip
def test_what_is_no_traffic_is_refused(keys, words):
    table = {**BASE, **keys}
    with pytest.raises(InputError, match=words):
        Fleet.from_dict(
            {"site": [{"name": "here", "utc": "+08:00"}], "island": [{"name": "a"}],
             "traffic": [table]}
        )  # fmt: skip


SITE = '[[site]]\nname = "here"\nutc = "+08:00"\n'
ISLAND = '[[island]]\nname = "a"\n'
SERVES = """[[traffic]]
island = "{}"
day = {}
requests = "1 M"
tokens_in = 500
tokens_out = 200
time_to_first_token = "2 s"
time_per_token = "50 ms"
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [(ISLAND + SERVES.format("a", '"flat"'), "offset from UTC"),
     (SITE + ISLAND + SERVES.format("b", '"flat"'), r"traffic\[0\].island.*none of the islands"),
     (SITE + ISLAND + 2 * SERVES.format("a", '"flat"'), r"traffic\[1\].island.*already"),
     (SITE + ISLAND + 'hours = "22:00-07:00"\n' + SERVES.format("a", '"flat"'), "hours of its")],
)  # fmt: skip
def test_traffic_needs_an_island_that_knows_its_clock(text, words):
    with pytest.raises(InputError, match=words):
        Fleet.from_dict(tomllib.loads(text))


def test_a_csv_file_lies_beside_the_fleet(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text(SITE + ISLAND + SERVES.format("a", '"day.csv"'))
    rows = [f"{hour},{100 + hour}" for hour in range(24)]
    (tmp_path / "day.csv").write_text("hour,requests\n" + "\n".join(reversed(rows)) + "\n")
    fleet = Fleet.load(file)
    assert fleet.traffic[0].day == [100.0 + hour for hour in range(24)]
    assert Fleet.from_dict(fleet.as_dict()) == fleet


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file"), ("a,b\n1,2\n", "line 2 is no hour"),
     ("hour,requests\n0,1\n0,2\n", "line 3: each hour"), ("hour,requests\n24,1\n", "line 2: each"),
     ("hour,requests\n0,nan\n", "line 2: each"), ("hour,requests\n0,1\n", "no line for hour 1, 2"),
     ("hour,requests\n" + "".join(f"{h},0\n" for h in range(24)), "no day of requests")],
)  # fmt: skip
def test_a_csv_file_that_is_no_day_is_refused(tmp_path, text, words):
    file = tmp_path / "fleet.toml"
    file.write_text(SITE + ISLAND + SERVES.format("a", '"day.csv"'))
    if text is not None:
        (tmp_path / "day.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        Fleet.load(file)
