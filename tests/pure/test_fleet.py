"""Fleets: what they hold, and that plain tables bring them back."""

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InputError
from atoll.fleet import Fleet

FULL = """
[shares]
mode = "seeded"
seed = 3
[[site]]
name = "home"
country = "CN"
owner = "us"
operator = "them"
power = "30 MW"
uplink = "100 Gb/s"
[[site]]
name = "johor"
[[island]]
name = "a"
site = "home"
chip = "ascend-910b2"
nodes = 16
chips_per_node = 8
share = 3
[[island]]
name = "b"
site = "johor"
chip = "h20"
lanes = 3
start = "dial-in"
[[link]]
between = ["home", "johor"]
bandwidth = "10 Gb/s"
latency = "60 ms"
[[delivery]]
date = 2024-07-01
island = "a"
count = { low = 20000, mid = 30000, high = 30000 }
[[withdrawal]]
date = 2025-01-01
island = "b"
count = { low = 0, mid = 1, high = 1 }
"""


def test_a_full_fleet(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FULL)
    fleet = Fleet.load(path)
    a, b = fleet.island
    assert (a.num_chips, a.num_lanes, a.share) == (128, 128, 3.0)
    assert (b.num_chips, b.num_lanes, b.start) == (1, 3, "dial-in")
    assert fleet.link[0].bytes_per_second == 1.25e9
    assert fleet.link[0].latency_seconds == 0.06
    assert fleet.delivery[0].count.mid == 30000
    assert fleet.shares.seed == 3
    # As it travels in run.json.
    assert Fleet.from_dict(json.loads(json.dumps(fleet.as_dict()))) == fleet


def test_defaults() -> None:
    fleet = Fleet.from_dict({"island": [{"name": "a"}]})
    island = fleet.island[0]
    assert (island.chip, island.site, island.num_lanes, island.threads) == ("cpu", "here", 1, 1)
    assert island.share is None
    assert fleet.shares.mode == "auto"


def test_one_share_of_zero_is_allowed_beside_others() -> None:
    islands = [{"name": "a", "share": 0}, {"name": "b", "share": 1}]
    plain = {"shares": {"mode": "fixed"}, "island": islands}
    assert [island.share for island in Fleet.from_dict(plain).island] == [0, 1]


def test_the_digest_depends_on_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    digests = set()
    texts = [FULL, FULL.replace("60 ms", "61 ms"), FULL.replace("seed = 3", "seed = 4")]
    for text in texts:
        path.write_text(text)
        digests.add(Fleet.load(path).digest())
    assert len(digests) == len(texts)
    path.write_text(FULL)
    assert Fleet.load(path).digest() in digests


# ------------------------------------------------------------------ chips over time


def changing(
    *changes: tuple[str, str, str, tuple[int, int, int]],
    nodes: tuple[int, int] = (2, 1),
    chips_per_node: int = 8,
) -> Fleet:
    """A fleet of the islands a and b; a change is (table, day, island, (low, mid, high))."""
    plain: dict = {
        "island": [
            {"name": name, "nodes": number, "chips_per_node": chips_per_node}
            for name, number in zip("ab", nodes, strict=True)
        ]
    }
    for table, day, island, (low, mid, high) in changes:
        count = {"low": low, "mid": mid, "high": high}
        plain.setdefault(table, []).append({"date": day, "island": island, "count": count})
    return Fleet.from_dict(plain)


def chips(fleet: Fleet) -> dict[str, int]:
    return {island.name: island.num_chips for island in fleet.island}


def test_deliveries_and_withdrawals_until_a_day() -> None:
    fleet = changing(
        ("withdrawal", "2024-07-01", "a", (8, 16, 16)),
        ("delivery", "2024-07-01", "a", (16, 24, 40)),
        ("delivery", "2024-09-01", "b", (8, 8, 8)),
    )
    assert chips(fleet.stock()) == chips(fleet.stock(date(2024, 6, 30))) == {"a": 16, "b": 8}
    assert chips(fleet.stock(date(2024, 7, 1))) == {"a": 24, "b": 8}
    assert chips(fleet.stock(date(2024, 7, 1), which="low")) == {"a": 16, "b": 8}
    assert chips(fleet.stock(date(2024, 7, 1), which="high")) == {"a": 48, "b": 8}
    later = fleet.stock(date(2030, 1, 1))
    assert chips(later) == {"a": 24, "b": 16}
    assert later.delivery == later.withdrawal == []
    # The answer is a fleet like any other.
    assert Fleet.from_dict(later.as_dict()) == later


def test_chips_that_fill_no_node_are_left_out_and_told() -> None:
    fleet = changing(("delivery", "2024-07-01", "a", (3, 13, 20)))
    day = date(2024, 7, 1)
    assert chips(fleet.stock(day)) == {"a": 24, "b": 8}
    assert fleet.loose_chips(day) == {"a": 5}
    assert fleet.loose_chips(day, which="high") == {"a": 4}
    assert fleet.loose_chips() == {}


def test_an_island_that_only_deliveries_fill() -> None:
    fleet = changing(("delivery", "2024-07-01", "b", (8, 8, 8)), nodes=(1, 0))
    assert chips(fleet.stock(date(2024, 6, 30))) == {"a": 8}
    assert chips(fleet.stock(date(2024, 7, 1))) == {"a": 8, "b": 8}
    with pytest.raises(InputError) as caught:
        fleet.require_present(file="fleet.toml")
    assert caught.value.key == "island[1].nodes"
    assert "2024-07-01" in str(caught.value.fix)
    fleet.stock(date(2024, 7, 1)).require_present()


def test_a_fleet_of_which_nothing_is_left() -> None:
    fleet = changing(
        ("delivery", "2024-08-01", "b", (8, 8, 8)),
        ("delivery", "2024-07-01", "a", (8, 8, 8)),
        ("withdrawal", "2024-07-15", "a", (8, 8, 8)),
        ("withdrawal", "2024-08-15", "b", (8, 8, 8)),
        nodes=(0, 0),
    )
    for day, hint in (
        (None, "first delivery is on 2024-07-01"),
        (date(2024, 6, 1), "first delivery is on 2024-07-01"),
        (date(2024, 7, 20), "next delivery is on 2024-08-01"),
        (date(2024, 9, 1), "withdrawn"),
    ):
        with pytest.raises(InputError) as caught:
            fleet.stock(day)
        assert hint in str(caught.value.fix)


def test_more_withdrawn_than_is_there_names_the_entry() -> None:
    fleet = changing(
        ("withdrawal", "2024-07-01", "b", (0, 8, 8)),
        ("withdrawal", "2024-06-01", "a", (0, 17, 20)),
    )
    for which in ("low", "mid", "high"):
        with pytest.raises(InputError) as caught:
            fleet.stock(date(2024, 6, 1), which=which)
        assert caught.value.key == "withdrawal[1].count"
        assert "island a" in caught.value.message
        assert "at most 16" in str(caught.value.fix)
    # At worst more is taken than there is: then nothing is left of it.
    worst = changing(("withdrawal", "2024-06-01", "a", (0, 16, 90)))
    assert chips(worst.stock(date(2024, 6, 1), which="low")) == {"b": 8}


def test_an_island_without_chips_takes_its_share_with_it() -> None:
    plain = changing(("withdrawal", "2024-07-01", "b", (8, 8, 8))).as_dict()
    plain["shares"]["mode"] = "fixed"
    plain["island"][0]["share"], plain["island"][1]["share"] = 0, 1
    with pytest.raises(InputError, match="nobody would compute"):
        Fleet.from_dict(plain).stock(date(2024, 7, 1))


COUNTS = st.lists(st.integers(0, 60), min_size=3, max_size=3).map(sorted).map(tuple)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["delivery", "withdrawal"]),
        st.dates(date(2024, 1, 1), date(2024, 1, 9)).map(date.isoformat),
        st.sampled_from("ab"),
        COUNTS,
    ),
    max_size=6,
)


@given(CHANGES, st.dates(date(2023, 12, 31), date(2024, 1, 10)), st.integers(1, 9))
def test_a_stock_is_ordered_whole_and_keeps_every_chip(changes, day, chips_per_node) -> None:
    fleet = changing(*changes, nodes=(9, 9), chips_per_node=chips_per_node)
    there = dict.fromkeys("ab", 9 * chips_per_node)
    # The same, written out: in order of days, what arrives before what leaves.
    for table, when, island, (_, mid, _) in sorted(changes, key=lambda one: (one[1], one[0])):
        if date.fromisoformat(when) <= day:
            there[island] += mid if table == "delivery" else -mid
            if there[island] < 0:
                with pytest.raises(InputError) as caught:
                    fleet.stock(day)
                assert caught.value.key.startswith("withdrawal[")
                return
    if not any(number // chips_per_node for number in there.values()):
        with pytest.raises(InputError, match="whole node"):
            fleet.stock(day)
        return
    stock, loose = chips(fleet.stock(day)), fleet.loose_chips(day)
    assert {name: stock.get(name, 0) + loose.get(name, 0) for name in "ab"} == there
    assert all(0 < number < chips_per_node for number in loose.values())
    assert all(number > 0 for number in stock.values())
    high = chips(fleet.stock(day, which="high"))
    try:
        low = chips(fleet.stock(day, which="low"))
    except InputError:
        low = {}
    assert all(low.get(n, 0) <= stock.get(n, 0) <= high.get(n, 0) for n in "ab")
    assert stock == chips(fleet.stock(day).stock(date(2030, 1, 1)))


# ------------------------------------------------------------------ ways between sites


def sites(*links: tuple[str, str, int, int], uplinks: dict[str, int] | None = None) -> Fleet:
    """Sites a to e with links (end, end, Gb/s, ms)."""
    uplinks = uplinks or {}
    return Fleet.from_dict(
        {
            "island": [{"name": "x", "site": "a"}],
            "site": [
                {"name": name} | ({"uplink": f"{uplinks[name]} Gb/s"} if name in uplinks else {})
                for name in "abcde"
            ],
            "link": [
                {"between": [a, b], "bandwidth": f"{gigabits} Gb/s", "latency": f"{ms} ms"}
                for a, b, gigabits, ms in links
            ],
        }
    )


def way(fleet: Fleet, a: str, b: str) -> tuple[float, float] | None:
    found = fleet.path(a, b)
    assert found == fleet.path(b, a)
    return found and (found[0] * 8 / 1e9, round(found[1] * 1000, 9))


def test_a_direct_link_and_none_at_home() -> None:
    fleet = sites(("a", "b", 10, 60))
    assert way(fleet, "a", "b") == (10, 60)
    assert fleet.path("a", "a") is None


def test_the_widest_way_wins_and_then_the_quickest() -> None:
    detour = sites(("a", "b", 10, 60), ("a", "c", 40, 20), ("c", "d", 30, 30), ("d", "b", 90, 5))
    assert way(detour, "a", "b") == (30, 55)
    # As wide as the detour by its narrowest part: the direct one is quicker.
    assert way(sites(("a", "b", 30, 60), ("a", "c", 99, 40), ("c", "b", 30, 40)), "a", "b") == (
        30,
        60,
    )
    twice = sites(("a", "b", 10, 60), ("a", "b", 10, 20))
    assert way(twice, "a", "b") == (10, 20)


def test_uplinks_bound_every_site_of_the_way() -> None:
    links = (("a", "b", 10, 60), ("a", "c", 40, 20), ("c", "b", 40, 20))
    assert way(sites(*links, uplinks={"a": 5}), "a", "b") == (5, 40)
    assert way(sites(*links, uplinks={"b": 20}), "a", "b") == (20, 40)
    assert way(sites(*links, uplinks={"c": 8}), "a", "b") == (10, 60)
    with pytest.raises(InputError, match="no link leads"):
        sites(*links, uplinks={"a": 0}).path("a", "b")


def test_sites_that_nothing_joins() -> None:
    fleet = sites(("a", "b", 10, 60), ("c", "d", 10, 60))
    with pytest.raises(InputError) as caught:
        fleet.path("a", "d")
    assert 'between = ["a", "d"]' in str(caught.value.fix)
    with pytest.raises(InputError) as caught:
        fleet.path("a", "f")
    assert "known sites" in str(caught.value.fix)


LINKS = st.lists(
    st.tuples(
        st.sampled_from("abcde"), st.sampled_from("abcde"), st.integers(1, 5), st.integers(1, 9)
    ).filter(lambda link: link[0] != link[1]),
    max_size=8,
)


@given(LINKS, st.dictionaries(st.sampled_from("abcde"), st.integers(1, 5)))
def test_no_way_is_wider_or_as_wide_and_quicker(links, uplinks) -> None:
    fleet = sites(*links, uplinks=uplinks)

    def all_ways(here: str, seen: str) -> list[tuple[int, int]]:
        if here == "b":
            return [(10**9, 0)]
        found = []
        for one, other, gigabits, ms in links:
            if here in (one, other):
                there = other if here == one else one
                bound = min(gigabits, uplinks.get(here, 9), uplinks.get(there, 9))
                if there not in seen:
                    ways = all_ways(there, seen + there)
                    found += [(min(width, bound), time + ms) for width, time in ways]
        return found

    ways = all_ways("a", "a")
    if not ways:
        with pytest.raises(InputError):
            fleet.path("a", "b")
    else:
        assert way(fleet, "a", "b") == min(ways, key=lambda one: (-one[0], one[1]))
        # And all that no other beats in both, widest first.
        best = {
            one
            for one in ways
            if not any(other != one and other[0] >= one[0] and other[1] <= one[1] for other in ways)
        }
        paths = fleet.paths("a", "b")
        found = [(round(width * 8 / 1e9), round(delay * 1e3)) for width, delay in paths]
        assert found == sorted(best, reverse=True)


# ------------------------------------------------------------------ networks, chips of one's own


def test_the_network_of_an_island() -> None:
    network = {"bandwidth": "200 Gb/s", "latency": "5 us"}
    fleet = Fleet.from_dict({"island": [{"name": "a", "network": network}, {"name": "b"}]})
    a, b = fleet.island
    assert b.network is None
    assert a.network is not None
    assert (a.network.bytes_per_second, a.network.latency_seconds) == (25e9, 5e-6)
    assert Fleet.from_dict(fleet.as_dict()) == fleet
    bare = Fleet.from_dict({"island": [{"name": "a", "network": {"bandwidth": "1 Gb/s"}}]})
    assert bare.island[0].network is not None
    assert bare.island[0].network.latency_seconds is None


def test_a_chip_of_ones_own_lies_beside_the_fleet(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nbackend = "cpu"\ndescription = "a chip"\n')
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[island]]\nname = "a"\nchip = "mine.toml"\n')
    loaded = Fleet.load(fleet)
    # From anywhere, as when the fleet of a run is taken up again.
    monkeypatch.chdir(Path(__file__).parent)
    assert loaded.island[0].chip == str(tmp_path / "mine.toml")
    assert Fleet.from_dict(loaded.as_dict()) == loaded
    (tmp_path / "mine.toml").write_text('name = "mine"\nbackend = "cpu"\n')
    with pytest.raises(InputError) as caught:
        Fleet.load(fleet)
    assert caught.value.key == "island[0].chip"
    assert "mine.toml: description" in caught.value.message
