"""Fleets: what they hold, and that plain tables bring them back."""

import json
from pathlib import Path

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
