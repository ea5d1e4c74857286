"""Serving and training on one fleet: what a plan makes of it, from the file to the pages."""

import json
from datetime import date
from html.parser import HTMLParser

import pytest

from atoll.cli import main
from atoll.fleet import Fleet
from atoll.hours import Hours
from atoll.plan import Plan
from atoll.planning import sharetable
from atoll.planning.calendar import Rates, calendar_of, first_plan
from atoll.planning.daypicture import day_picture
from atoll.planning.planner import Asked, NoPlan, plan
from atoll.planning.sharing import plan_by_hours, share
from atoll.recipe import Recipe
from atoll.traffic import Span

FLEET = """
[[site]]
name = "east"
utc = "+05:30"
[[island]]
name = "own"
site = "east"
chip = "h20"
nodes = 2
chips_per_node = 8
[[island]]
name = "chat"
site = "east"
chip = "h20"
nodes = 4
chips_per_node = 8
[[traffic]]
island = "chat"
day = [1, 1, 1, 1, 1, 1, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9, 8, 8, 7, 6, 5, 3]
requests = "8500 K"
model = "qwen3-8b"
tokens_in = 500
tokens_out = 250
time_to_first_token = "1 s"
time_per_token = "40 ms"
"""
LENT = """
[[island]]
name = "guest"
site = "east"
chip = "h20"
nodes = 1
chips_per_node = 8
hours = "22:15-07:00"
"""
RECIPE = """
name = "middle"
seed = 1
[model]
preset = "qwen3-0.6b"
context = 4096
[data]
corpus = "none"
tokenizer = { path = "tokenizer.json" }
[batch]
sequences = 512
grain = 4
[optimizer]
lr = 1e-3
[schedule]
steps = 50000
[precision]
compute = "fp32"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "fleet.toml").write_text(FLEET)
    (folder / "both.toml").write_text(FLEET.replace("[[traffic]]", LENT + "[[traffic]]"))
    return folder


@pytest.fixture(scope="module")
def recipe(files):
    return Recipe.load(files / "recipe.toml")


@pytest.fixture(scope="module")
def both(files, recipe):
    return share(recipe, Fleet.load(files / "both.toml"), Asked(executor="atoll"))


def test_people_keep_their_chips_and_the_run_gets_the_rest(both):
    chat, guest = both.lenders
    assert chat.server is not None and guest.server is None
    used = False
    for hour in range(24):
        lent = both.lent(0, hour)
        used = used or lent > 0
        assert lent <= chat.free[hour] == max(0, 4 - chat.server.needed(hour))
        for times in (1.0, chat.server.traffic.burst):
            assert chat.server.in_time(hour, 4 - lent, times=times) == 1.0
        whole = Hours.parse("22:15-07:00 +05:30").whole(hour)
        assert both.lent(1, hour) <= (1 if whole else 0)
    assert used and both.without < both.schedule.tokens <= both.ideal
    assert both.fixed.tokens <= both.schedule.tokens and both.blocks.tokens <= both.schedule.tokens
    assert both.slow.lost >= both.schedule.lost > 0


def test_a_saved_plan_holds_lent_islands_with_hours_that_people_do_not_need(files, tmp_path, both):
    arguments = [
        "plan",
        "--executor",
        "atoll",
        str(files / "recipe.toml"),
        str(files / "both.toml"),
    ]
    assert main([*arguments, "--save", str(tmp_path / "plan.json")]) == 0
    islands = {one.name: one for one in Plan.load(tmp_path / "plan.json").islands}
    assert islands["own"].hours is None
    assert islands["guest"].hours == "22:15-07:00 +05:30"
    chat = islands["chat"]
    hours, nodes = Hours.parse(chat.hours), chat.devices // 8
    server = both.lenders[0].server
    for minute in range(0, 1440, 5):
        if hours.holds(60.0 * minute):
            assert server.needed(minute // 60) + nodes <= 4, "people need these chips then"
    # Every window begins after the answers are out and ends in time to start the server.
    opens = both.lenders[0].moving.open[1]
    for _, end in hours.windows:
        assert 3540 < (end + opens - 1e-6) % 3600 + 1e-6 <= 3600, "just in time for a full hour"


def test_json_has_the_day(files, capsys):
    code = main(
        [
            "plan",
            "--executor",
            "atoll",
            str(files / "recipe.toml"),
            str(files / "both.toml"),
            "--json",
        ]
    )
    day = json.loads(capsys.readouterr().out.splitlines()[-1])["sharing"]
    assert code == 0 and set(day) == {
        "tokens_a_day", "days", "moves", "lost_tokens", "tokens_per_second", "chips", "lent",
        "served", "notes",
    }  # fmt: skip
    (served,) = day["served"]
    assert served["requests_a_day"] == pytest.approx(8.5e6)
    for needed in zip(*served["nodes_needed"].values(), strict=True):
        low, mid, high = (float("inf") if one is None else one for one in needed)
        assert low <= mid <= high
    made = sum(3600 * speed for speed in day["tokens_per_second"]) - day["lost_tokens"]["mid"]
    assert day["tokens_a_day"]["shared"] == pytest.approx(made)


def test_a_fleet_that_lends_nothing_is_planned_as_ever(files, recipe, capsys):
    text = FLEET.partition("[[traffic]]")[0]
    (files / "plain.toml").write_text(text)
    plain = Fleet.load(files / "plain.toml")
    assert (
        plan_by_hours(recipe, plain, Asked(executor="atoll")).step_seconds
        == plan(recipe, plain, Asked(executor="atoll")).step_seconds
    )
    assert (
        main(
            [
                "plan",
                "--executor",
                "atoll",
                str(files / "recipe.toml"),
                str(files / "plain.toml"),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["sharing"] is None


def test_a_calendar_counts_the_mean_of_a_day(files, recipe):
    fleet = Fleet.load(files / "fleet.toml")
    asked = Asked(day=date(2025, 6, 1), executor="atoll")
    found = calendar_of(first_plan(recipe, fleet, asked), fleet, asked)
    day = share(recipe, fleet, asked)
    (period,) = found.mid.periods
    assert period.rated.rate() == pytest.approx(day.schedule.tokens / 86400)
    assert 0 < period.rated.parts["chat"] < 1.5
    always = Fleet.load(files / "plain.toml") if (files / "plain.toml").exists() else None
    if always is not None:
        whole = Rates(recipe, always, asked).of({"own": 16, "chat": 32}).rate()
        assert period.rated.rate() < whole


class Wellformed(HTMLParser):
    def __init__(self):
        super().__init__()
        self.words = []

    def handle_data(self, data):
        self.words.append(data)


def test_pages_and_pictures_say_the_same(files, tmp_path, both, capsys):
    arguments = [
        "plan",
        "--executor",
        "atoll",
        str(files / "recipe.toml"),
        str(files / "both.toml"),
    ]
    assert main([*arguments, "--report", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    page = Wellformed()
    page.feed((tmp_path / "page.html").read_text())
    text = " ".join(page.words)
    for _, line in sharetable.summary(both):
        assert line in printed and line in text
    head, rows = sharetable.shown_hours(both)
    assert head[0] == "hours +05:30" and all(len(row) == len(head) for row in rows)
    assert rows[0][0].partition("-")[0] == rows[-1][0].partition("-")[2], "a day is round"
    for width in (1040.0, 350.0):
        assert day_picture(both, width).count("<rect") > 48


def test_too_few_chips_are_said_and_nothing_is_lent_then(files, recipe):
    fleet = Fleet.load(files / "fleet.toml")
    many = fleet.traffic[0].model_copy(update={"requests": "12 M"})
    found = share(recipe, fleet.model_copy(update={"traffic": [many]}), Asked(executor="atoll"))
    server = found.lenders[0].server
    short = [hour for hour in range(24) if server.needed(hour) > 4]
    assert short and all(found.lent(0, hour) == 0 for hour in short)
    assert all(server.in_time(hour, 4, times=1.5) < 1 for hour in short)
    assert any("too small for its burst" in note for note in sharetable.notes(found))


def test_a_server_of_which_too_little_is_known_is_named_with_its_file(files, tmp_path, capsys):
    text = FLEET.replace('"h20"\nnodes = 4', '"mlu590"\nnodes = 4')
    (tmp_path / "unknown.toml").write_text(text)
    assert main(["plan", str(files / "recipe.toml"), str(tmp_path / "unknown.toml")]) == 2
    said = capsys.readouterr().err
    assert "unknown.toml: island[1].network" in said and "Traceback" not in said


def test_people_who_cannot_be_served_and_runs_without_chips_are_refused(files, recipe):
    fleet = Fleet.load(files / "fleet.toml")
    hasty = fleet.traffic[0].model_copy(update={"time_per_token": "1 us"})
    with pytest.raises(NoPlan, match=r"chat cannot serve qwen3-8b on h20 in time\n.*one token"):
        share(recipe, fleet.model_copy(update={"traffic": [hasty]}), Asked(executor="atoll"))
    only = [one for one in fleet.island if one.name == "chat"]
    busy = fleet.traffic[0].model_copy(update={"day": "flat", "requests": "90 M"})
    with pytest.raises(NoPlan, match="no chip trains at any hour"):
        share(
            recipe,
            fleet.model_copy(update={"traffic": [busy], "island": only}),
            Asked(executor="atoll"),
        )


def test_a_server_that_is_delivered_later_lends_nothing_until_then(files, tmp_path, capsys):
    text = FLEET.replace("nodes = 4", "nodes = 0")
    text += '[[delivery]]\ndate = 2025-07-01\nisland = "chat"\n'
    text += "count = { low = 32, mid = 32, high = 32 }\n"
    (tmp_path / "later.toml").write_text(text)
    arguments = ["plan", str(files / "recipe.toml"), str(tmp_path / "later.toml")]
    assert main([*arguments, "--executor", "atoll"]) == 0
    assert "0 moves a day" in capsys.readouterr().out
    dated = ["--executor", "atoll", "--from", "2025-06-25", "--draws", "20", "--json"]
    assert main([*arguments, *dated]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    first, second = told["calendar"]["periods"]
    assert first["to"] == second["from"] == "2025-07-01"
    assert second["tokens_per_second"] > 1.1 * first["tokens_per_second"]


def span(text):
    return Span(low=text, mid=text, high=text)


def test_given_times_of_moving_are_those_that_count(files, recipe):
    fleet = Fleet.load(files / "fleet.toml")
    slow = fleet.traffic[0].model_copy(update={"lend": span("40 min"), "give_back": span("30 min")})
    found = share(recipe, fleet.model_copy(update={"traffic": [slow]}), Asked(executor="atoll"))
    assert found.lenders[0].moving.lend == (2400.0,) * 3
    assert found.lenders[0].moving.give_back == (1800.0,) * 3
    usual = share(recipe, fleet, Asked(executor="atoll"))
    assert (
        found.schedule.tokens < usual.schedule.tokens
        and found.schedule.moves <= usual.schedule.moves
    )
