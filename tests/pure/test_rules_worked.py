"""Rules judged: the worked figures and the check values of the decision procedure."""

from typing import Any

import pytest
from tests.pure.rule_cases import ask, design, rule_of

from atoll import facts
from atoll.planning.rules import classes_of
from atoll.planning.thresholds import measures_of

# chip of the facts, TPP, mm2, density, GB/s to others, R1, class of 2023, letters, under limits
WORKED = [
    ("a100-sxm-80gb", 4992, 826, 6.04, 600, True, "a", None, True),
    ("a800-sxm-80gb", 4992, 826, 6.04, 400, False, "a", None, True),
    ("h100-sxm-80gb", 15832, 814, 19.45, 900, True, "a", None, True),
    ("h100-pcie-80gb", 12104, 814, 14.87, 600, True, "a", None, True),
    ("h800", 15832, 814, 19.45, 400, False, "a", None, True),
    ("h20", 2368, 814, 2.91, 900, False, None, True, True),
    ("h20-141gb", 2368, 814, 2.91, 900, False, None, True, True),
    ("l20", 1912, 609, 3.14, 64, False, None, False, True),
    ("l40s", 5864, 609, 9.63, 64, False, "a", None, True),
    ("rtx-4090", 5285, 609, 8.68, 64, False, "consumer", None, True),
    ("v100-sxm2-32gb", 2000, 815, 2.45, 300, False, None, False, True),
    ("h200", 15832, 814, 19.45, 900, True, "a", None, True),
    ("b200", 36000, 1600, 22.50, 1800, True, "a", None, False),
    ("b30a", 30000, 800, 37.50, 900, True, "a", None, False),
    ("mi250x", 6128, 1448, 4.23, 700, True, "a", None, True),
    ("mi300x", 20912, 2400, 8.71, 896, True, "a", None, True),
    ("mi300x", 20912, 1536, 13.61, 896, True, "a", None, True),
    ("mi325x", 20912, 2400, 8.71, 896, True, "a", None, True),
    ("gaudi2", 6920, None, None, 600, True, "a", None, True),
    ("gaudi3", 26832, None, None, 1200, True, "a", None, False),
    ("ascend-910a", 4096, 456, 8.98, 180, False, "a", None, None),
    ("ascend-910b2", 5661, 665.61, 8.50, 392, False, "a", None, None),
    ("ascend-910b3", 4718, 665.61, 7.09, 392, False, "a", None, None),
    ("ascend-910b4", 3931, 665.61, 5.91, 64, False, "b", None, None),
    ("ascend-910b1", 6624, 665.61, 9.95, 392, False, "a", None, None),
    ("ascend-910c", 12032, 1331.2, 9.04, 784, True, "a", None, None),
    ("br100", 16384, 1074, 15.26, 512, False, "a", None, True),
]
NAMES = {"a": "3A090.a", "b": "3A090.b", "consumer": "3A090.a, not for data centres"}


@pytest.mark.parametrize("row", WORKED, ids=[f"{row[0]}-{row[2]}" for row in WORKED])
def test_the_worked_figures(row: tuple[Any, ...]) -> None:
    name, tpp, area, density, io, first, second, letters, under = row
    known = facts.chip(name)
    assert known.memory is not None and known.memory.bytes_per_second is not None
    memory = known.memory.bytes_per_second / 1e9
    chip = design(tpp=tpp, area=area, memory=memory, io=io, datacentre=known.datacentre)
    found = measures_of(chip)
    assert found.tpp is not None and float(found.tpp) == tpp
    # The worked figures round TPP first: 3,931 / 665.61 is 5.906, 20,912 / 1,536 is 13.61.
    shown = None if found.density is None else float(found.density)
    assert shown == (None if density is None else pytest.approx(density, abs=0.0051))
    assert classes_of(chip, rule_of("us-2022-10"))[0] == (("3A090",) if first else ())
    assert classes_of(chip, rule_of("us-2023-10"))[0] == ((NAMES[second],) if second else ())
    # What follows, for a chip that the rules reach and China, on a day of each rule.
    assert (ask(chip, "2022-12-01", "CN", None).result == "denial") == first
    expected = {"a": "denial", "b": "notify", "consumer": "notify", None: "none"}[second]
    assert ask(chip, "2023-12-01", "CN", "CN").result == expected
    if letters is not None:
        on = ask(chip, "2025-05-01", "CN", "CN")
        assert on.result == ("licence" if letters else "none")
        assert ask(chip, "2025-04-08", "CN", "CN").result == "none"
    else:
        finding = next(
            one
            for one in ask(chip, "2025-05-01", "CN", "CN").findings
            if one.rule.name == "us-2025-04-letters"
        )
        assert finding.applies is False and "not asked" in finding.text
    if under is not None:
        limits = rule_of("us-2026-01-case-by-case")
        assert (classes_of(chip, limits)[0] == ("under both limits",)) == under


@pytest.mark.parametrize(
    ("chip", "on", "to", "hq", "more", "result"),
    [
        # The check values of the decision procedure.
        ("a100-sxm-80gb", "2023-12-01", "CN", "CN", {}, "denial"),
        ("a800-sxm-80gb", "2023-11-16", "CN", "CN", {}, "none"),
        ("a800-sxm-80gb", "2023-11-17", "CN", "CN", {}, "denial"),
        ("h100-sxm-80gb", "2022-10-20", "CN", "CN", {}, "none"),
        ("h100-sxm-80gb", "2022-10-21", "CN", "CN", {}, "denial"),
        ("h100-sxm-80gb", "2022-12-01", "HK", None, {}, "denial"),
        ("h100-sxm-80gb", "2023-01-17", "MO", None, {}, "none"),
        ("h100-sxm-80gb", "2023-01-18", "MO", None, {}, "denial"),
        ("h100-sxm-80gb", "2022-12-01", "MY", "CN", {}, "none"),
        ("h100-sxm-80gb", "2023-12-01", "MY", "CN", {}, "denial"),
        ("h100-sxm-80gb", "2023-12-01", "MY", "SG", {}, "none"),
        ("h100-sxm-80gb", "2023-12-01", "AE", "AE", {}, "approval"),
        ("h100-sxm-80gb", "2023-12-01", "AE", "CN", {}, "denial"),
        ("h20", "2023-12-01", "CN", "CN", {}, "none"),
        ("h20", "2025-04-09", "CN", "CN", {}, "licence"),
        ("h20", "2025-04-09", "MY", "CN", {}, "licence"),
        ("h20", "2025-08-11", "CN", "CN", {}, "case-by-case"),
        ("l20", "2025-05-01", "CN", "CN", {}, "none"),
        ("rtx-4090", "2023-12-01", "CN", "CN", {}, "notify"),
        ("rtx-4090", "2024-04-03", "VN", "VN", {}, "approval"),
        ("rtx-4090", "2024-04-04", "VN", "VN", {}, "exception"),
        ("rtx-3090", "2024-04-04", "CN", "CN", {}, "none"),
        ("h800", "2023-11-16", "CN", "CN", {}, "none"),
        ("h800", "2023-11-17", "CN", "CN", {}, "denial"),
        ("gb200", "2026-02-01", "CN", "CN", {"shipped_from": "US"}, "denial"),
        ("b30a", "2026-02-01", "CN", "CN", {"shipped_from": "US"}, "denial"),
        ("gaudi3", "2026-02-01", "CN", "CN", {"shipped_from": "US"}, "denial"),
        ("ascend-910d", "2026-02-01", "CN", "CN", {}, "none"),
        # Countries that came into a group, or left it, on a day.
        ("h100-sxm-80gb", "2024-03-14", "NI", "NI", {}, "none"),
        ("h100-sxm-80gb", "2024-03-15", "NI", "NI", {}, "denial"),
        ("h100-sxm-80gb", "2026-02-02", "KH", "KH", {}, "denial"),
        ("h100-sxm-80gb", "2026-02-03", "KH", "KH", {}, "approval"),
        ("h200", "2026-01-14", "CN", "CN", {}, "denial"),
        ("h200", "2026-01-15", "CN", "CN", {}, "case-by-case"),
        ("h200", "2026-01-15", "CN", "CN", {"shipped_from": "US"}, "case-by-case"),
        ("h200", "2026-01-15", "CN", "CN", {"shipped_from": "SG"}, "denial"),
        ("h200", "2026-02-01", "MY", "CN", {}, "denial"),
        ("h200", "2026-06-15", "MY", "CN", {"mode": "own-abroad"}, "denial"),
        ("b200", "2026-02-01", "CN", "CN", {}, "denial"),
        ("mi325x", "2026-02-01", "CN", "CN", {}, "case-by-case"),
        ("gb200", "2026-02-01", "MY", "CN", {"mode": "lease", "owner": "US"}, "none"),
        ("gb200", "2026-02-01", "MY", "CN", {"mode": "api"}, "none"),
        ("ascend-910b2", "2026-02-01", "CN", "CN", {}, "none"),
        ("ascend-910c", "2026-02-01", "MY", "CN", {}, "none"),
    ],
)
def test_what_follows(
    chip: str, on: str, to: str, hq: str | None, more: dict[str, Any], result: str
) -> None:
    verdict = ask(chip, on, to, hq, **more)
    assert verdict.result == result
    grave = result in ("licence", "denial")
    assert (verdict.refused is True) == grave or verdict.host is not None
    assert verdict.refuses("denial") is (result == "denial") or verdict.host is not None


@pytest.mark.parametrize(
    ("memory", "io", "result"),
    [
        (1398, 64, "none"),  # a chip that was designed to sit under the letters
        (1400, 64, "licence"),
        (864, 64, "none"),  # 928 together
        (600, 1099, "none"),
        (600, 1100, "licence"),
        (1000, 699, "none"),
        (1000, 700, "licence"),
    ],
)
def test_the_letters_by_memory_by_connection_and_by_both(memory: int, io: int, result: str) -> None:
    chip = design(tpp=2000, area=800, memory=memory, io=io)
    assert ask(chip, "2025-05-01", "CN", "CN").result == result
