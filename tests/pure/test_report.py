"""The one-page report of a plan: numbers behind the pictures, and the page as a whole."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.fleet import Fleet
from atoll.planning.pictures import memory_picture, time_picture
from atoll.planning.planner import Answer, plan
from atoll.planning.report import report_of
from atoll.planning.schedule import schedule
from atoll.planning.segments import hidden_seconds, memory_segments, time_segments
from atoll.planning.sitemap import (
    bounding_ends,
    bounding_link,
    bounding_uplinks,
    cards_of,
    wires_of,
)
from atoll.planning.svg import NARROW, WIDE, escape, fit, text_width, wrap
from atoll.planning.timeline import cut_of, pipeline_of
from atoll.recipe import Recipe

HOSTILE = "<script>alert('1')</script> & \"x\" \x01 \u6f22\u5b57"


def recipe(root: Path, name: str, preset: str, **batch: int) -> Recipe:
    data = Recipe.load(root / "examples" / "recipes" / "moe-700b.toml").as_dict()
    data["name"] = name
    data["model"] = {"preset": preset, "context": 4096}
    data["batch"] = {**data["batch"], **batch}
    return Recipe.from_dict(data)


def island(name: str, chip: str, nodes: int, **keys: Any) -> dict[str, Any]:
    network = {"bandwidth": "200 Gb/s"}
    more = {"nodes": nodes, "chips_per_node": 8, "network": network}
    return {"name": name, "chip": chip, **more, **keys}


def two_sites(bandwidth: str, *islands: dict[str, Any], uplink: str | None = None) -> Fleet:
    there = {"name": "there", "country": "SG", "owner": HOSTILE}
    return Fleet.from_dict(
        {
            "site": [{"name": "home"}, there | ({"uplink": uplink} if uplink else {})],
            "island": list(islands),
            "link": [{"between": ["home", "there"], "bandwidth": bandwidth, "latency": "8 ms"}],
        }
    )


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(__file__).parents[2]


@pytest.fixture(scope="module")
def large(root: Path) -> Answer:
    """Islands of unlike chips at several sites, some of them left out, with pipelines."""
    examples = root / "examples"
    return plan(
        Recipe.load(examples / "recipes" / "dense-400b.toml"),
        Fleet.load(examples / "fleets" / "hundred-thousand.toml"),
    )


@pytest.fixture(scope="module")
def chained(root: Path) -> Answer:
    """A model that fits on no island, over a link so slow that it sets the pace."""
    fleet = two_sites(
        "500 Mb/s",
        island("near", "h800", 4, site="home"),
        island("far", "ascend-910b2", 6, site="there"),
    )
    answer = plan(recipe(root, HOSTILE, "qwen3-235b-a22b", sequences=512), fleet)
    assert answer.way.chain is not None
    return answer


@pytest.fixture(scope="module")
def alone(root: Path) -> Answer:
    """One island, one site, no link."""
    fleet = Fleet.from_dict({"island": [island("box", "h100-sxm-80gb", 1)]})
    return plan(recipe(root, "small", "llama3-8b", sequences=512), fleet)


@pytest.fixture(params=["large", "chained", "alone"])
def answer(request: pytest.FixtureRequest) -> Answer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Answer)
    return found


class Balance(HTMLParser):
    """Checks that every element of the page is closed where a browser expects it."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in (*self.VOID, "rect", "line", "path", "polygon"), f"<{tag}/> stays open"
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    """What a reader sees: no style, no markup."""
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    for parent in root.iter():
        for child in [child for child in parent if child.tag == "style"]:
            parent.remove(child)
    return " ".join(" ".join(root.itertext()).split())


def test_the_page_is_well_formed(answer: Answer) -> None:
    page = report_of(answer)
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "script" not in balance.seen
    assert {"svg", "table", "figure", "title"} <= set(balance.seen)
    text_of(page)


def test_every_island_and_the_numbers_are_there(answer: Answer) -> None:
    text = text_of(report_of(answer))
    for island in answer.fleet.island:
        assert island.name in text
    for site in answer.fleet.site:
        assert site.name in text
    for one in (*answer.rejected, *answer.islands):
        words = one.why if hasattr(one, "why") else one.layout.describe()
        assert " ".join(words.split()) in text
    assert answer.fleet.digest() in text
    assert answer.contract in text
    for note in answer.notes:
        assert note in text


def test_nothing_comes_from_elsewhere_and_no_number_is_missing(answer: Answer) -> None:
    page = report_of(answer)
    assert not re.search(r"https?:|//|@import|<script|<img|<link|src=|javascript:", page)
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", page))
    assert not re.search(r"\b(nan|NaN|inf|None)\b", text_of(page))
    assert not re.search(r'="-?(nan|inf|None)"', page)


def test_every_hatch_that_is_used_is_there_once(answer: Answer) -> None:
    page = report_of(answer)
    used = set(re.findall(r"url\(#([^)]*)\)", page))
    assert used
    for name in used:
        assert page.count(f'id="{name}"') == 1


def test_pictures_have_names(answer: Answer) -> None:
    root = ElementTree.fromstring(report_of(answer).removeprefix("<!DOCTYPE html>\n"))
    pictures = [svg for svg in root.iter("svg") if svg.get("aria-hidden") != "true"]
    assert len(pictures) >= 6
    for svg in pictures:
        assert svg.get("role") == "img"
        assert svg[0].tag == "title"
        assert svg[0].text
        assert svg.get("viewBox")


def test_names_from_files_are_escaped(chained: Answer) -> None:
    page = report_of(chained)
    assert "<script" not in page
    assert "\x01" not in page
    assert escape(HOSTILE) in page
    assert HOSTILE.replace("\x01", "") in "".join(
        ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n")).itertext()
    )


@given(st.text())
def test_any_text_is_escaped(text: str) -> None:
    escaped = escape(text)
    assert not set("<>\"'") & set(escaped)
    ElementTree.fromstring(f'<a b="{escaped}">{escaped}</a>')


def test_the_bar_of_an_island_is_the_step(answer: Answer) -> None:
    for one in answer.islands:
        parts = time_segments(answer, one)
        assert sum(part.size for part in parts) == pytest.approx(answer.way.seconds)
        assert min(part.size for part in parts) > 0
        if answer.way.chain is None:
            own = [part for part in parts if part.key not in ("waiting", "exchange")]
            assert sum(part.size for part in own) == pytest.approx(one.seconds)
            assert one.cost is not None
            assert hidden_seconds(one) == pytest.approx(one.cost.hidden * one.factor)


def test_the_bar_of_a_device_is_its_memory(answer: Answer) -> None:
    for one in answer.islands:
        used = sum(part.size for part in memory_segments(one))
        assert used == pytest.approx(one.memory_used)
        assert used <= one.memory_size


def test_nothing_is_drawn_outside_of_the_picture(answer: Answer) -> None:
    for draw in (memory_picture, time_picture):
        for width in (WIDE, NARROW):
            svg = ElementTree.fromstring(draw(answer, width))
            high = float(svg.attrib["viewBox"].split()[3])
            boxes = [rect for rect in svg.iter("rect") if "width" in rect.attrib]
            assert boxes
            for box in boxes:
                x, y = float(box.attrib["x"]), float(box.attrib["y"])
                assert -0.01 <= x <= x + float(box.attrib["width"]) <= width + 0.1
                assert 0 <= y <= y + float(box.attrib["height"]) <= high


@given(st.integers(1, 9), st.integers(1, 12))
def test_a_plain_pipeline_lasts_as_long_as_the_formula_says(stages: int, count: int) -> None:
    boxes = schedule([(1.0, 2.0)] * stages, count)
    assert max(box.end for box in boxes) == pytest.approx(3.0 * (count + stages - 1))
    assert len(boxes) == 2 * stages * count


@given(st.integers(2, 6), st.integers(1, 3), st.integers(2, 5))
def test_interleaving_divides_the_bubble(stages: int, groups: int, chunks: int) -> None:
    count = stages * groups
    boxes = schedule([(1.0, 2.0)] * stages, count, chunks=chunks)
    assert max(box.end for box in boxes) == pytest.approx(3.0 * (count + (stages - 1) / chunks))


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)), min_size=1, max_size=6),
       st.integers(1, 8))  # fmt: skip
def test_a_stage_does_one_thing_at_a_time_and_in_order(
    stages: list[tuple[float, float]], count: int
) -> None:
    boxes = schedule(stages, count)
    done = {(box.stage, box.microbatch, box.backward): box for box in boxes}
    assert len(done) == 2 * len(stages) * count
    for stage in range(len(stages)):
        mine = sorted((box for box in boxes if box.stage == stage), key=lambda box: box.begin)
        assert all(a.end <= b.begin + 1e-9 for a, b in pairwise(mine))
        for m in range(count):
            assert done[stage, m, False].end <= done[stage, m, True].begin + 1e-9
            if stage:
                assert done[stage - 1, m, False].end <= done[stage, m, False].begin + 1e-9
                assert done[stage, m, True].end <= done[stage - 1, m, True].begin + 1e-9


def test_the_pipeline_is_that_of_the_largest_island(large: Answer) -> None:
    line = pipeline_of(large)
    assert line is not None
    piped = [one for one in large.islands if one.layout.pp > 1]
    one = max(piped, key=lambda one: one.layout.num_devices)
    assert (line.who, line.stages, line.chunks) == (
        one.island.name, one.layout.pp, one.layout.vpp,
    )  # fmt: skip
    assert one.cost is not None
    assert line.bubble == pytest.approx(one.cost.bubble * one.factor)
    for most in (4, 12, 24):
        cut = cut_of(line, most=most)
        assert 2 <= len(cut.rows) <= most
        assert cut.chunks == 1 or cut.microbatches % len(cut.rows) == 0
        assert cut.microbatches + cut.apart <= line.microbatches + len(cut.rows)


def test_a_chain_shows_its_stages_and_the_link_that_sets_the_pace(chained: Answer) -> None:
    chain, line = chained.way.chain, pipeline_of(chained)
    assert chain is not None
    assert line is not None
    assert line.stages == sum(len(part.layers) for part in chain.parts)
    links = [row for row in line.rows if row.link]
    assert [row.island for row in links] == [chain.bound]
    assert sum(links[0].times) == pytest.approx(chain.slowest)
    cut = cut_of(line, most=5)
    assert {row.island for row in cut.rows} == {row.island for row in line.rows}
    link = bounding_link(chained)
    assert link is not None
    assert link.between == ["home", "there"]
    assert any(wire.bounds for wire in wires_of(chained, ["home", "there"]))
    cards = [card for cards in cards_of(chained).values() for card in cards]
    assert sum(card.part for card in cards) == pytest.approx(1.0)


def test_a_lane_without_stages_says_so(alone: Answer) -> None:
    if any(one.layout.pp > 1 for one in alone.islands):
        pytest.fail("this island was meant to need no pipeline")
    assert pipeline_of(alone) is None
    assert "no bubble and nothing to draw" in text_of(report_of(alone))


def test_islands_that_are_left_out_say_why(large: Answer) -> None:
    cards = [card for cards in cards_of(large).values() for card in cards]
    assert [card.name for card in cards if card.used] == [o.island.name for o in large.islands]
    assert all(card.says.startswith("left out: ") for card in cards if not card.used)
    assert sum(card.part for card in cards) == pytest.approx(1.0)


def test_links_never_lie_on_one_another(large: Answer) -> None:
    wires = wires_of(large, [site.name for site in large.fleet.site])
    assert len(wires) == len(large.fleet.link)
    for index, a in enumerate(wires):
        for b in wires[:index]:
            assert a.lane != b.lane or a.last < b.first or b.last < a.first


@pytest.mark.parametrize(("uplink", "narrow"), [("100 Gb/s", ["there"]), (None, [])])
def test_what_bounds_an_exchange_is_a_link_or_an_uplink(
    root: Path, uplink: str | None, narrow: list[str]
) -> None:
    fleet = two_sites(
        "4000 Gb/s",
        island("a", "h800", 64, site="home"),
        island("b", "h800", 64, site="there"),
        uplink=uplink,
    )
    answer = plan(recipe(root, "two", "llama3-70b", sequences=16384), fleet)
    assert len(answer.islands) == 2
    assert bounding_ends(answer) is not None
    assert bounding_uplinks(answer) == narrow
    assert (bounding_link(answer) is None) == bool(narrow)


@given(st.text(max_size=80), st.floats(20, 400), st.booleans())
def test_texts_fit_or_are_cut(text: str, width: float, middle: bool) -> None:
    assert text_width(fit(text, width, 12.0, middle=middle), 12.0) <= width
    lines = wrap(text, width, 12.0, most=3)
    assert len(lines) <= 3
    assert all(text_width(line, 12.0) <= width for line in lines)


def test_the_end_of_a_long_name_stays() -> None:
    cut = fit("an-island-with-a-long-name-7", 120, 12.0, middle=True)
    assert cut.startswith("an-")
    assert cut.endswith("-7")
