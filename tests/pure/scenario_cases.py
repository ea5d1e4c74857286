"""A small scenario, as texts and as a folder, for the tests of scenarios."""

import tomllib
from datetime import date
from pathlib import Path

from tests.pure.test_plan_command import RECIPE

from atoll import strict
from atoll.fleet import Fleet
from atoll.planning.scenario.file import Scenario, ScenarioFile

START = date(2024, 7, 1)

FLEET = """
[[site]]
name = "home"
country = "CN"
[[island]]
name = "west"
site = "home"
chip = "ascend-910b2"
nodes = 0
chips_per_node = 8
[[island]]
name = "east"
site = "home"
chip = "h20"
nodes = 2
chips_per_node = 8
[[delivery]]
date = 2024-07-01
island = "west"
count = { low = 8, mid = 16, high = 24 }
[[delivery]]
date = 2024-07-11
island = "west"
count = { low = 0, mid = 16, high = 32 }
[[withdrawal]]
date = 2024-07-16
island = "west"
count = { low = 0, mid = 8, high = 16 }
"""

OFFERS = """
start = 2024-07-01
months = 12
currency = "CNY"
[[exchange_rate]]
from = "USD"
to = "CNY"
rate = 7.0
[[budget]]
name = "home"
amount = "10 M CNY"
place = "CN"
[[budget]]
name = "rent"
amount = "1 M USD"
place = "CN"
[[limit]]
name = "makers"
sellers = ["one"]
at_least = 0.5
[[offer]]
name = "nine"
chip = "ascend-910b2"
seller = "one"
site = "home"
price = "100000 CNY"
stock = 64
a_month = 16
lead = "30 d"
lot = 8
[[offer]]
name = "twenty"
chip = "h20"
seller = "two"
site = "home"
price = "90000 CNY"
stock = 64
a_month = 8
lot = 8
[[offer]]
name = "hundred"
chip = "h100-sxm-80gb"
seller = "three"
site = "home"
kind = "lease"
price = "2 USD/h"
stock = 16
term = "60 d"
lot = 8
"""

SCENARIO = """
name = "small"
title = "A small one"
words = "Few chips, some late."
from = 2024-07-01
fleet = "fleet.toml"
headquarters = "CN"
[[model]]
label = "dense"
recipe = "recipe.toml"
[[shortfall]]
name = "all chips"
words = "As asked for."
deliveries = [
  { island = "west", date = 2024-07-01, count = 24 },
  { island = "west", date = 2024-07-11, count = { low = 32, mid = 32, high = 32 } },
]
[[shortfall]]
name = "west alone"
words = "Without the others."
given = "without east"
deliveries = [{ island = "west", date = 2024-07-01, count = 64 }]
[[what_if]]
name = "more"
words = "More of west."
change = "+16 west from 2024-07-03"
[[what_if]]
name = "no more west"
words = "What is there stays."
change = "no more 910B from 2024-07-05"
[[what_if]]
name = "no east"
words = "None at all."
change = "without h20 from 2024-07-08"
[[what_if]]
name = "a half of west"
words = "The rest serves."
change = "50 % of west"
[[what_if]]
name = "nothing left"
words = "All is away before the end."
change = "without h20 from 2024-07-08; without west from 2024-07-08"
[[fact]]
what = "chips asked for"
value = "56"
source = "nobody"
confidence = "low"
used = "as asked"
"""

ORDERS = """
[orders]
offers = "offers.toml"
recipe = "recipe.toml"
goal = "largest"
by = 2025-01-01
"""


SMALL = Scenario(
    file=Path("scenario.toml"), told=strict.validate(ScenarioFile, tomllib.loads(SCENARIO)),
    fleet=Fleet.from_dict(tomllib.loads(FLEET)), recipes=(), offers=None, order_recipe=None,
)  # fmt: skip


def files(folder: Path, scenario: str = SCENARIO, **others: str) -> Path:
    """A folder of a scenario; `others` are texts by the stem of their file."""
    texts = {"fleet": FLEET, "offers": OFFERS, "scenario": scenario, **others}
    texts.setdefault("recipe", RECIPE.replace("steps = 300", "steps = 1_500_000"))
    for name, words in texts.items():
        (folder / f"{name}.toml").write_text(words, encoding="utf-8")
    return folder
