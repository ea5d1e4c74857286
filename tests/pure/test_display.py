"""What a person sees: the curve's geometry, the page at two widths, the plain lines."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from atoll.training import curve
from atoll.training.display import (
    IslandView,
    Pace,
    PlainDisplay,
    SilentDisplay,
    Snapshot,
    open_display,
)
from atoll.training.live import LiveDisplay


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def snapshot(step, **changes):
    known = {
        "run": "quickstart",
        "step": step,
        "total_steps": 400,
        "loss": 8.0 / (1 + step / 100),
        "val_loss": None,
        "bits_per_byte": None,
        "tokens": 8192 * step,
        "tokens_per_second": 12345.6,
        "contract": "replicas identical, replayable",
        "islands": (
            IslandView(
                name="a", chip="cpu", lanes=2, grains=12, grains_per_second=3.25, state="training"
            ),
            IslandView(
                name="b",
                chip="cpu-compat",
                lanes=1,
                grains=4,
                grains_per_second=None,
                state="joining",
            ),
        ),
    }
    return Snapshot(**(known | changes))


# ------------------------------------------------------------------------------------- the curve

finite = st.floats(min_value=-1e6, max_value=1e6)


@given(
    values=st.lists(finite, min_size=1, max_size=50),
    width=st.integers(10, 120),
    height=st.integers(0, 30),
    validation=st.lists(finite, max_size=5),
)
def test_a_curve_always_fits(values, width, height, validation):
    lines = curve.draw(
        list(enumerate(values, 1)),
        list(enumerate(validation, 1)),
        width=width,
        height=height,
        last_step=100,
    )
    assert len(lines) == height
    assert all(line.cell_len <= width for line in lines)


def test_a_falling_loss_is_drawn_falling():
    points = [(step, 10 - step / 20) for step in range(1, 101)]
    lines = curve.draw(points, [], width=60, height=12, last_step=100)
    rows = [line.plain for line in lines[:-2]]
    dots = [[x for x, c in enumerate(row) if 0x2800 < ord(c) <= 0x28FF] for row in rows]
    assert all(dots)
    middles = [sum(row) / len(row) for row in dots]
    assert middles == sorted(middles)
    assert dots[0][0] < 10 and dots[-1][-1] > 55


def test_validation_points_lie_at_their_place():
    lines = curve.draw(
        [(1, 8.0), (100, 2.0)], [(50, 8.0), (100, 2.0)], width=64, height=12, last_step=100
    )
    marks = [
        (y, line.plain.index("\u25c6")) for y, line in enumerate(lines) if "\u25c6" in line.plain
    ]
    assert len(marks) == 2
    (top, middle), (bottom, right) = marks
    assert (top, bottom) == (0, 9)
    assert abs(middle - 34) <= 2 and right >= 62


def test_axis_is_logarithmic_only_for_a_wide_range():
    assert curve.fit_axis([1.0, 10.0]).log
    assert not curve.fit_axis([8.0, 9.0]).log
    assert not curve.fit_axis([0.0, 10.0]).log


@given(low=st.floats(1e-6, 1e6), ratio=st.floats(1.0, 1e6), most=st.integers(2, 10))
def test_ticks_lie_inside_and_are_few(low, ratio, most):
    axis = curve.fit_axis([low, low * ratio])
    found = curve.ticks(axis, most)
    assert 1 <= len(found) <= 2 * most + 1
    assert found == sorted(set(found))
    span = axis.high - axis.low
    assert all(axis.low - 1e-9 * span <= value <= axis.high + 1e-9 * span for value in found)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([2.0, 3.0], ["2", "3"]),
        ([8.2, 8.25, 8.3], ["8.20", "8.25", "8.30"]),
        ([5.00001, 5.00002], ["5.00001", "5.00002"]),
        ([1500.0, 2000.0], ["1,500", "2,000"]),
        ([2.5], ["2.5"]),
    ],
)
def test_tick_numbers_tell_neighbours_apart(values, texts):
    assert curve._numbers(values, log=False) == texts


def test_many_points_stay_bounded_and_keep_their_mean():
    points = curve.Points()
    for step in range(1, 50_001):
        points.add(step, float(step))
    series = points.series()
    assert len(series) <= 4097
    assert all(math.isclose(step, value) for step, value in series)
    assert series[0][0] < 10 and series[-1][0] > 49_980


def test_a_loss_that_is_not_a_number_is_not_drawn():
    points = curve.Points()
    points.add(1, math.nan)
    points.add(2, math.inf)
    assert points.series() == []


# -------------------------------------------------------------------------------------- the page


def page(width, height, steps, *, encoding="utf-8", **changes):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(record=True, width=width, height=height, force_terminal=True, file=stream)
    clock = Clock()
    display = LiveDisplay(console, clock=clock)
    for step in range(1, steps + 1):
        clock.now += 0.5
        display.update(snapshot(step, **changes))
    display.close()
    console.export_text(clear=True)
    console.print(display.page())
    return console.export_text()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (120, 50), (200, 60)])
def test_the_page_fits_and_says_everything(width, height):
    text = page(width, height, 100, val_loss=4.25, bits_per_byte=2.125)
    lines = text.splitlines()
    assert {len(line) for line in lines} == {min(width, 120)}
    assert len(lines) <= height
    for word in (
        "quickstart",
        "loss 4.0000",
        "4.2500 (2.125 bits/byte)",
        "12,346 tokens/s",
        "step 100 of 400",
        "25%",
        "2 min 30 s left",
        "cpu-compat",
        "3.2",
        "training",
        "joining",
        "replicas identical, replayable",
    ):
        assert word in text, word


def test_a_terminal_without_unicode_gets_ascii():
    assert page(80, 24, 20, encoding="ascii").isascii()


def test_many_islands_are_summed_up():
    islands = tuple(
        IslandView(
            name=f"i{n}", chip="cpu", lanes=1, grains=2, grains_per_second=1.0, state="training"
        )
        for n in range(40)
    )
    text = page(80, 40, 3, islands=islands)
    assert "28 more" in text
    assert len(text.splitlines()) <= 40


def test_messages_stay_above_the_page():
    stream = io.StringIO()
    console = Console(width=80, height=30, force_terminal=True, file=stream)
    display = LiveDisplay(console)
    display.phase("tokenising [shakespeare]", 0.5)
    display.say("island b: [joined]")
    display.update(snapshot(1, message="saved step 1"))
    display.close()
    display.close()
    assert "tokenising [shakespeare]" in stream.getvalue()
    assert "island b: [joined]" in stream.getvalue()
    assert "saved step 1" in stream.getvalue()


# --------------------------------------------------------------------------------------- in lines


def plain():
    clock = Clock()
    stream = io.StringIO()
    return PlainDisplay(stream, clock=clock), clock, stream


def test_plain_lines_every_two_seconds_at_validation_and_at_the_end():
    display, clock, stream = plain()
    display.phase("tokenising", None)
    for step in range(1, 11):
        clock.now += 0.5
        display.update(
            snapshot(step, total_steps=10, val_loss=3.0 if step >= 3 else None, message="b joined")
        )
    display.close()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["tokenising ...", "b joined"]
    assert [line.split()[1] for line in lines[2:]] == ["3/10", "7/10", "10/10"]
    assert ["val" in line for line in lines[2:]] == [True, False, False]
    assert "val 3.0000" in lines[2]
    assert "grains a:12 b:4" in lines[2]
    assert "4 s left" in lines[2] and "left" not in lines[-1]


def test_plain_phases_are_few_however_many_there_are():
    display, clock, stream = plain()
    for step in range(100):
        clock.now += 0.1
        display.phase(f"replaying step {step} of 99", step / 99)
    display.phase("starting", None)
    for _ in range(100):
        clock.now += 0.1
        display.phase("reading", 0.25)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "replaying step 0 of 99 ..."
    assert lines[5:] == ["replaying step 99 of 99", "starting ...", "reading ...", "reading: 25%"]


def test_plain_close_shows_the_last_state_once():
    display, clock, stream = plain()
    display.update(snapshot(1))
    clock.now += 0.1
    display.update(snapshot(2))
    display.close()
    display.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/400", "2/400"]


def test_a_reader_that_went_away_does_not_stop_the_run():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    display = PlainDisplay(Broken())
    display.say("one")
    display.update(snapshot(1))
    display.close()


def test_pace():
    clock = Clock()
    pace = Pace(clock)
    assert pace.left(10) is None
    pace.seen(3)
    assert pace.left(10) is None
    clock.now = 4.0
    pace.seen(5)
    pace.seen(5)
    assert pace.left(10) == 10.0


def test_the_form_follows_the_stream():
    assert isinstance(open_display(quiet=True), SilentDisplay)
    assert isinstance(open_display(stream=io.StringIO()), PlainDisplay)
