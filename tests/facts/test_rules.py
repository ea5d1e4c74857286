"""The rules as data: strict, dated, with sources; and the worked figures from the chips' facts."""

import datetime
from pathlib import Path

import pytest

from atoll import facts
from atoll.errors import InputError
from atoll.facts import countries
from atoll.facts.rules import MODES, change_days, load_rule, rule_set, rules
from atoll.planning.rules import classes_of
from atoll.planning.thresholds import measures_of

DAY = datetime.date

FIGURES = {
    # chip -> TPP, mm2, density, class of October 2023: the worked figures, from the facts alone.
    "a100-sxm-80gb": (4992, 826, 6.04, "3A090.a"),
    "a800-sxm-80gb": (4992, 826, 6.04, "3A090.a"),
    "h100-sxm-80gb": (15832, 814, 19.45, "3A090.a"),
    "h100-pcie-80gb": (12104, 814, 14.87, "3A090.a"),
    "h800": (15832, 814, 19.45, "3A090.a"),
    "h20": (2368, 814, 2.91, None),
    "h20-141gb": (2368, 814, 2.91, None),
    "l20": (1914, 609, 3.14, None),  # by fp32 59.8; 1,912 by bf16 119.5
    "l40s": (5864, 609, 9.63, "3A090.a"),
    "rtx-4090": (5285, 609, 8.68, "3A090.a, not for data centres"),
    "v100-sxm2-32gb": (2000, 815, 2.45, None),
    "h200": (15832, 814, 19.45, "3A090.a"),
    "b200": (36000, 1600, 22.50, "3A090.a"),
    "b30a": (30000, 800, 37.50, "3A090.a"),
    "mi250x": (6128, 1448, 4.23, "3A090.a"),
    "mi300x": (20912, 2400, 8.71, "3A090.a"),
    "mi325x": (20912, 2400, 8.71, "3A090.a"),
    "gaudi2": (6920, None, None, "3A090.a"),
    "gaudi3": (26832, None, None, "3A090.a"),
    "ascend-910a": (4096, 456, 8.98, "3A090.a"),
    "ascend-910b2": (5663, 665.61, 8.51, "3A090.a"),  # by int8 707.9; 5,661 and 8.50 by bf16 353.8
    "ascend-910b3": (4718, 665.61, 7.09, "3A090.a"),
    "ascend-910b4": (3932, 665.61, 5.91, "3A090.b"),  # by int8 491.5; 3,931 by bf16 245.7
    "ascend-910c": (12032, 1331.2, 9.04, "3A090.a"),
    "br100": (16384, 1074, 15.26, "3A090.a"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_worked_figures_follow_from_the_facts(name: str) -> None:
    tpp, area, density, expected = FIGURES[name]
    chip = facts.chip(name)
    found = measures_of(chip)
    assert found.tpp is not None and round(found.tpp) == tpp
    assert (None if found.area is None else float(found.area)) == area
    assert (None if found.density is None else round(float(found.density), 2)) == density
    rule = next(rule for rule in rules() if rule.name == "us-2023-10")
    assert classes_of(chip, rule)[0] == (() if expected is None else (expected,))


@pytest.mark.parametrize(
    ("name", "by_format"),
    [
        # Halving ladders give one number; elsewhere the largest decides.
        ("h100-sxm-80gb", {"bf16": 15832, "fp8": 15832}),
        ("b200", {"fp8": 36000, "fp4": 36000}),
        ("rtx-4090", {"bf16": 2640, "int8": 5285}),
        ("gaudi3", {"bf16": 26832, "fp8": 13416}),
        ("h20", {"bf16": 2368, "int8": 2368}),
        ("trainium2", {"bf16": 10672}),
    ],
)
def test_which_format_decides(name: str, by_format: dict[str, int]) -> None:
    found = measures_of(facts.chip(name))
    each = {key: float(speed * found.bits[key] / 10**12) for key, speed in found.speeds.items()}
    for key, tpp in by_format.items():
        assert each[key] == pytest.approx(tpp, rel=2e-3), key
    assert found.tpp is not None and float(found.tpp) == max(each.values())


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("h20", 4000), ("l20", 864), ("h200", 4800), ("mi300x", 5300), ("mi325x", 6000),
        ("rtx-4090", 1008),
    ],
)  # fmt: skip
def test_the_bandwidth_of_memory(name: str, memory: int) -> None:
    found = measures_of(facts.chip(name)).memory
    assert found is not None and float(found) == pytest.approx(memory * 1e9, rel=0.01)


def test_stacked_memory_is_controlled_above_two_gigabytes_a_second_and_square_millimetre() -> None:
    rule = next(rule for rule in rules() if rule.name == "us-2024-12-memory")
    (limits,) = rule.class_[0].when
    at_least, above, below = limits.limits()["memory_density"].bounds
    assert (at_least, above, below) == (None, 2, None)
    assert "below 3.3 GB/s/mm2" in rule.outcome[0].text and rule.start == DAY(2024, 12, 31)


def test_the_disputed_area_of_one_chip_does_not_move_its_class() -> None:
    high = measures_of(facts.chip("mi300x"), end="high")
    assert high.density is not None and round(float(high.density), 2) == 13.61  # by 1,536 mm2
    rule = next(rule for rule in rules() if rule.name == "us-2023-10")
    assert classes_of(facts.chip("mi300x"), rule, end="high")[0] == ("3A090.a",)


@pytest.mark.parametrize(
    ("name", "both_directions"),
    [
        *(("a100-sxm-80gb", 600), ("a800-sxm-80gb", 400), ("h100-sxm-80gb", 900)),
        *(("h100-pcie-80gb", 600), ("h800", 400), ("h20", 900), ("v100-sxm2-32gb", 300)),
        *(("h200", 900), ("b200", 1800), ("b30a", 900), ("mi250x", 700), ("mi300x", 896)),
        *(("gaudi2", 600), ("gaudi3", 1200), ("ascend-910a", 180), ("ascend-910b2", 392)),
        *(("ascend-910b4", 64), ("ascend-910c", 784), ("br100", 512)),
    ],
)
def test_the_bandwidth_to_other_chips_is_that_of_both_directions(
    name: str, both_directions: int
) -> None:
    assert measures_of(facts.chip(name)).io == both_directions * 10**9


def test_every_rule_has_a_source_a_date_and_something_to_say() -> None:
    assert {"us-2022-10", "us-2023-10", "us-2025-04-letters", "us-2026-01-case-by-case"} <= {
        rule.name for rule in rules()
    }
    folder = Path(facts.__file__).parent / "rules"
    assert {path.stem for path in folder.glob("*.toml")} == {rule.name for rule in rules()}
    for rule in rules():
        assert rule.source and rule.title and rule.outcome, rule.name
        assert rule.published is None or rule.published <= rule.start, rule.name
        assert datetime.date(2022, 1, 1) < rule.start < rule.read, rule.name
        assert set(rule.modes) <= set(MODES)
        for outcome in rule.outcome:
            assert all(name in facts.chips() for name in outcome.chips), rule.name


def test_reliefs_and_exceptions_name_rules_that_there_are() -> None:
    names = {rule.name for rule in rules()}
    assert {rule.relieves for rule in rules()} - {None} <= names
    assert {rule.unless_class_of for rule in rules()} - {None} <= names


def test_the_october_rule_ends_where_the_next_begins() -> None:
    first, second = (
        next(rule for rule in rules() if rule.name == name) for name in ("us-2022-10", "us-2023-10")
    )
    assert not first.in_force(DAY(2022, 10, 20)) and first.in_force(DAY(2022, 10, 21))
    assert first.in_force(DAY(2023, 11, 16)) and not first.in_force(DAY(2023, 11, 17))
    assert not second.in_force(DAY(2023, 11, 16)) and second.in_force(DAY(2023, 11, 17))


def test_groups_hold_known_countries_and_keep_out_what_the_rules_except() -> None:
    assert set(countries.groups()) == {"D:1", "D:4", "D:5"}
    for held in countries.groups().values():
        assert set(held) <= set(countries.countries()) and held == sorted(held)
        assert not {"MY", "ID", "TH", "SG", "IL", "CY", "US"} & set(held)
    assert {"CN", "HK"} <= set(countries.groups()["D:5"])


D_ON_8_JULY_2026 = {
    # Supplement 1 to 15 CFR part 740; Israel (A:6) is left out here, Hong Kong stands beside China.
    "D:1": "AM AZ BY CN GE IQ KG KH KP KZ LA LY MD MM MN MO NI RU TJ TM UZ VE VN YE",
    "D:4": "AE BH BY CN EG IQ IR JO KP KW LB LY MO OM PK QA RU SA SY VE YE",
    "D:5": "AF BY CD CF CN CU ER HT IQ IR KP LB LY MM NI RU SD SO SS SY VE ZW",
}


def test_the_groups_are_those_of_a_day() -> None:
    def on(group: str, year: int, month: int, day: int) -> frozenset[str]:
        return countries.expanded([group], DAY(year, month, day))

    for group, codes in D_ON_8_JULY_2026.items():
        assert on(group, 2026, 7, 8) == {*codes.split(), "HK"}
    assert on("D:5", 2026, 2, 2) - on("D:5", 2026, 2, 3) == {"KH"}
    assert on("D:5", 2024, 3, 15) - on("D:5", 2024, 3, 14) == {"NI"}
    assert on("D:1", 2024, 3, 15) - on("D:1", 2024, 3, 14) == {"NI"}
    assert on("D:4", 2022, 3, 2) - on("D:4", 2022, 3, 1) == {"BY"}
    assert DAY(2026, 2, 3) in change_days(rules()) and DAY(2025, 4, 9) in change_days(rules())


def test_each_vendor_of_the_chips_has_a_country() -> None:
    for name in facts.chips():
        chip = facts.chip(name)
        assert (countries.maker_country(chip) is None) == (chip.vendor is None), name


def test_a_country_is_found_by_its_code_and_its_name() -> None:
    assert countries.country("my", key="--to") == "MY"
    assert countries.country("Malaysia", key="--to") == "MY"
    with pytest.raises(InputError, match="Malaysia") as caught:
        countries.country("Malasia", key="--to")
    assert caught.value.key == "--to" and caught.value.value == "Malasia"


MINE = """
name = "our-policy"
title = "what our lawyers say"
jurisdiction = "US"
effect = "licence"
from = 2024-01-01
until = 2025-01-01
read = 2026-08-01
source = "a letter of ours"
confidence = "low"

[[class]]
name = "fast"
when = [{ tpp = { from = 1000 }, memory = { below = "2 TB/s" } }]

[[outcome]]
class = ["fast"]
to = ["MY", "D:5"]
result = "denial"
text = "not with us"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "our-policy.toml"
    path.write_text(MINE)
    return path


def test_a_rule_of_ones_own_is_added_or_replaces_that_of_its_name(mine: Path) -> None:
    assert len(rule_set([mine])) == len(rules()) + 1
    assert [rule.name for rule in rule_set([mine], off=["all"])] == ["our-policy"]
    mine.write_text(MINE.replace("our-policy", "us-2023-10"))
    replaced = rule_set([mine])
    assert len(replaced) == len(rules())
    assert next(rule for rule in replaced if rule.name == "us-2023-10").title.startswith("what our")
    assert len(rule_set(off=["us-2023-10"])) == len(rules()) - 1


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        ("title", "titel", "titel", "nearest: title"),
        ("memory = {", "memry = {", "class[0].when[0].memry", "nearest: class[0].when[0].memory"),
        ('"MY"', '"XX"', "outcome[0].to[0]", "there is no such country"),
        ('"MY"', '"Malaysia"', "outcome[0].to[0]", "two letters"),
        ('jurisdiction = "US"', 'jurisdiction = "UK"', "jurisdiction", "there is no such country"),
        ("from = 2024-01-01", 'from = "2024-13-01"', "from", "is no date"),
        ("from = 2024-01-01", "from = 2024", "from", "is no date"),
        ("from = 2024-01-01", "from = 2024-01-01T00:00:00", "from", "is no date"),
        ("from = 2024-01-01\n", "", "from", "this key is missing"),
        ("until = 2025-01-01", "until = 2023-01-01", "until", "ends before it begins"),
        ("read = 2026-08-01", 'read = "soon"', "read", "is no date"),
        ('source = "a letter of ours"\n', "", "source", "this key is missing"),
        ('"2 TB/s"', '"2 TB"', "class[0].when[0].memory.below", "unit"),
        ("from = 1000", "from = -1", "class[0].when[0].tpp.from", "at least 0"),
        ("{ from = 1000 }", "{ from = 5, below = 5 }", "class[0].when[0].tpp", "less than below"),
        ("{ from = 1000 }", "{}", "class[0].when[0].tpp", "holds no bound"),
        ('class = ["fast"]', 'class = ["fats"]', "outcome[0].class", 'nearest: "fast"'),
        ('result = "denial"', 'result = "denied"', "outcome[0].result", "denial"),
        ('effect = "licence"', 'effect = "relief"', "relieves", "go together"),
        ('confidence = "low"', 'confidence = "lo"', "confidence", 'nearest: "low"'),
        ("read = 2026-08-01", "read = 2026-08-01\nschema = 9", "schema", "newer Atoll"),
        ("read = 2026-08-01", "read = 2026-08-01\nbits = { fp7 = 7 }", "bits", "no such format"),
    ],
)
def test_a_wrong_file_is_one_clear_error(
    mine: Path, old: str, new: str, key: str, said: str
) -> None:
    assert old in MINE
    mine.write_text(MINE.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_rule(mine)
    assert caught.value.file == str(mine)
    assert caught.value.key == key
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_names_of_rules_are_refused(mine: Path) -> None:
    with pytest.raises(InputError, match=r'nearest: "us-2023-10"'):
        rule_set(off=["us-2023-11"])
    relief = MINE.replace('effect = "licence"', 'effect = "relief"\nrelieves = "us-2023-1"')
    mine.write_text(relief)
    with pytest.raises(InputError) as caught:
        rule_set([mine])
    assert caught.value.key == "relieves" and caught.value.file == str(mine)


def test_two_files_of_one_name_are_refused(mine: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(MINE)
    with pytest.raises(InputError, match="holds a rule of this name too"):
        rule_set([mine, other])
