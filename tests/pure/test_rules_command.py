"""The commands that ask rules: `atoll chips check`, `atoll plan --rules`, and bad input to both."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from atoll import facts
from atoll.cli import main
from atoll.facts.rules import rules
from atoll.planning.rules import Case, judge
from atoll.planning.ruling import as_json, lines

ADVICE = "no legal advice"

DESIGN = """
name = "lab-design"
backend = "here"
description = "a chip on paper"
die_area = 600
source = "our floor plan"
[memory]
size = "96 GB"
bandwidth = "1.3 TB/s"
source = "our floor plan"
[flops]
bf16 = "149 TFLOP/s"
fp8 = "298 TFLOP/s"
source = "our floor plan"
[link]
bandwidth = "150 GB/s"
source = "our floor plan"
"""


@pytest.fixture
def on_paper(tmp_path: Path) -> Path:
    path = tmp_path / "lab-design.toml"
    path.write_text(DESIGN)
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["chips", "check", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["chips", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= 5
    return captured.err


def test_a_design_is_checked(on_paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--date", "2025-05-01", "--to", "cn", "--hq", "China")
    output = printed(capsys, str(on_paper), *flags)
    assert ADVICE in output.splitlines()[-1]
    assert "TPP             2,384" in output and "density         3.97" in output
    assert "notify: us-2023-10" in output
    assert "its maker's country is not known" in output
    words = " ".join(output.split())
    assert "stays under with TPP less than 1,920: less than 120 TFLOP/s bf16" in words
    assert all(len(line) <= 100 for line in output.splitlines())
    found = json.loads(printed(capsys, str(on_paper), *flags, "--json"))
    assert found["result"] == "notify" and ADVICE in found["advice"] and found["to"] == "CN"
    assert found["measures"]["tpp"] == 2384
    by_class = {one["class"]: one for one in found["thresholds"]}
    assert by_class["3A090.b"]["met"] is True
    assert by_class["3A090.b"]["largest"]["flops"]["bf16"] == 119_999_999_999_999
    letters = by_class["fast memory or connection"]
    assert letters["largest"]["memory"]["bandwidth"] == 1_399_999_999_999
    assert letters["largest"]["io"]["bandwidth"] == 399_999_999_999


def test_every_output_says_that_it_is_no_legal_advice() -> None:
    for name in facts.chips():
        case = Case(
            chip=facts.chip(name),
            day=datetime.date(2026, 2, 1),
            destination="MY",
            headquarters="CN",
            mode="lease",
        )
        verdict = judge(case, rules())
        assert ADVICE in list(lines(verdict, rules()))[-1]
        assert ADVICE in as_json(verdict, rules())["advice"]
        json.dumps(as_json(verdict, rules()), allow_nan=False)


def test_bits_of_tf32_would_double_one_chip_only() -> None:
    told = {}
    for name in ("trainium2", "h100-sxm-80gb", "a100-sxm-80gb", "b200"):
        case = Case(chip=facts.chip(name), day=datetime.date(2026, 2, 1), destination="CN")
        said = "\n".join(line for line in lines(judge(case, rules()), rules()) if "tf32" in line)
        told |= {name: said} if said else {}
    assert set(told) == {"trainium2"} and "21,344" in told["trainium2"]


def test_rules_are_switched_off_and_replaced_from_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("h200", "--date", "2024-05-01", "--to", "MY", "--hq", "CN", "--json")
    assert json.loads(printed(capsys, *flags))["result"] == "denial"
    off = json.loads(printed(capsys, *flags, "--no-rules", "us-2023-10"))
    assert off["result"] == "none"
    assert json.loads(printed(capsys, *flags, "--no-rules", "all"))["rules"] == []
    own = tmp_path / "own.toml"
    own.write_text(
        'name = "us-2023-10"\ntitle = "ours"\njurisdiction = "US"\neffect = "licence"\n'
        'from = 2023-01-01\nread = 2026-08-01\nsource = "us"\nconfidence = "low"\n'
        '[[outcome]]\nto = ["MY"]\nresult = "licence"\ntext = "ask our lawyers"\n'
    )
    found = json.loads(printed(capsys, *flags, "--rules", str(own)))
    assert found["result"] == "licence" and found["reason"] == "us-2023-10: ask our lawyers"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check",), "which chip"),
        (("check", "h20", "h200"), "one word too many"),
        (("h20", "h200"), "one word too many"),
        (("h20", "--date", "2024-01-01"), "--date: is an option of check"),
        (("check", "h20", "--date", "2024-02-30"), '--date = "2024-02-30": is no date'),
        (("check", "h20", "--to", "Atlantis"), '--to = "Atlantis": there is no such country'),
        (("check", "h20", "--hq", "Chine"), 'nearest: "CN" (China)'),
        (("check", "h20", "--mode", "steal"), "--mode"),
        (("check", "h20", "--owner", "US"), "--owner: is asked of leased chips only"),
        (("check", "h20", "--no-rules", "us-2023"), 'nearest: "us-2023-10"'),
        (("check", "h21", "--to", "CN"), "there is no such chip"),
        (("check", "h20", "--rules", "nowhere.toml"), "nowhere.toml: there is no such file"),
    ],
)
def test_bad_input_ends_in_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_wrong_rule_file_ends_in_2_with_file_key_and_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.toml"
    text = 'name = "a"\ntitle = "b"\njurisdiction = "US"\neffect = "flag"\nfrom = 2024-01-01\n'
    text += 'read = 2026-08-01\nsource = "us"\nconfidence = "low"\n'
    for more, said in (
        ('colour = "red"\n', 'colour = "red": there is no such key'),
        ('until = "never"\n', 'until = "never": is no date'),
        ('makers = ["XX"]\n', 'makers[0] = "XX": there is no such country'),
    ):
        path.write_text(text + more)
        message = refused(capsys, "check", "h20", "--rules", str(path))
        assert message.startswith(f"atoll: {path}: {said}")


FLEET = """
[[site]]
name = "home"
country = "CN"
[[site]]
name = "johor"
country = "MY"
mode = "lease"
owner_hq = "SG"
operator_hq = "MY"
[[site]]
name = "batam"
country = "Indonesia"
mode = "own-abroad"
[[island]]
name = "domestic"
site = "home"
chip = "ascend-910b2"
chips_per_node = 8
[[island]]
name = "leased"
site = "johor"
chip = "h100-sxm-80gb"
chips_per_node = 8
[[island]]
name = "bought"
site = "batam"
chip = "h100-sxm-80gb"
chips_per_node = 8
[[link]]
between = ["home", "johor"]
bandwidth = "100 Gb/s"
latency = "20 ms"
[[link]]
between = ["home", "batam"]
bandwidth = "100 Gb/s"
latency = "20 ms"
"""


def plan_json(
    capsys: pytest.CaptureFixture[str], examples: Path, fleet: Path, *flags: str, code: int = 0
) -> Any:
    recipe = examples / "recipes" / "quickstart.toml"
    arguments = ["plan", str(recipe), str(fleet), "--set", "precision.compute=bf16", "--json"]
    assert main([*arguments, "--from", "2024-07-01", *flags]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out) if code == 0 else captured.err


def test_a_plan_leaves_out_what_is_refused(
    tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(FLEET)
    free = plan_json(capsys, examples, fleet)
    assert not [one for one in free["rejected"] if "us-2023-10" in one["why"]]
    assert ADVICE not in " ".join(free["notes"])
    held = plan_json(capsys, examples, fleet, "--rules", "all", "--hq", "CN")
    reasons = {one["what"]: one["why"] for one in held["rejected"]}
    assert reasons["bought"].startswith("refused by rule us-2023-10: ")
    assert "bought" not in held["shares"]
    assert not [w for n, w in reasons.items() if n in ("leased", "domestic") and "rule" in w]
    assert ADVICE in " ".join(held["notes"])
    off = plan_json(
        capsys, examples, fleet, "--rules", "all", "--hq", "CN", "--no-rules", "us-2023-10"
    )
    assert not [one for one in off["rejected"] if "refused" in one["why"]]
    assert not [one for one in held["notes"] if one.startswith("rules: ")]
    unsaid = plan_json(capsys, examples, fleet, "--rules", "all")
    assert "of island bought it cannot be told: the headquarters" in " ".join(unsaid["notes"])
    fleet.write_text(FLEET.replace("h100-sxm-80gb", "h20"))
    flags = ("--rules", "all", "--hq", "CN", "--from", "2025-05-01")
    late = plan_json(capsys, examples, fleet, *flags)
    reasons = {one["what"]: one["why"] for one in late["rejected"]}
    assert reasons["bought"].startswith("refused by rule us-2025-04-letters: a licence is needed")
    milder = plan_json(capsys, examples, fleet, *flags, "--refuse", "denial")
    notes = " ".join(milder["notes"])
    assert "rules: island bought: licence: us-2025-04-letters: a licence is needed" in notes
    fleet.write_text(FLEET.replace('owner_hq = "SG"', 'owner_hq = "CN"'))
    both = plan_json(capsys, examples, fleet, "--rules", "all", "--hq", "CN")
    assert {one["what"] for one in both["rejected"] if "refused" in one["why"]} == {
        "leased",
        "bought",
    }
    alone = FLEET.replace('chip = "ascend-910b2"', 'chip = "h100-sxm-80gb"')
    fleet.write_text(alone.replace('owner_hq = "SG"', 'owner_hq = "CN"'))
    why = plan_json(capsys, examples, fleet, "--rules", "all", "--hq", "CN", code=1)
    assert "the rules refuse every island on 2024-07-01" in why and ADVICE in why
    assert all(name in why for name in ("domestic", "leased", "bought"))


def test_each_delivery_is_judged_on_its_own_day(
    tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = "count = { low = 8, mid = 16, high = 16 }"
    days = ("2025-03-01", "2025-04-08", "2025-04-09", "2025-08-11")
    changes = "".join(f'[[delivery]]\ndate = {day}\nisland = "bought"\n{count}\n' for day in days)
    gone = f'[[withdrawal]]\ndate = 2025-06-01\nisland = "bought"\n{count}\n'
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(FLEET.replace("h100-sxm-80gb", "h20") + changes + gone)
    flags = ("--from", "2025-02-01", "--draws", "50", "--set", "schedule.steps=40000000000")
    asked = (*flags, "--rules", "all", "--hq", "CN")
    found = plan_json(capsys, examples, fleet, *asked)["calendar"]
    left = [one for one in found["notes"] if one.startswith("left out: ")]
    assert len(left) == 1
    assert left[0].startswith("left out: 16 chips for bought on 2025-04-09: refused by rule us-202")
    # 8 chips on the first day and 16 twice; of what never came the withdrawal takes 16 first.
    bought = {one["from"]: one["chips"].get("bought", 0) for one in found["periods"]}
    expected = {"2025-02-01": 8, "2025-03-01": 24, "2025-04-08": 40, "2025-08-11": 56}
    assert bought == expected
    free = plan_json(capsys, examples, fleet, *flags)["calendar"]["periods"]
    counts = [one["chips"].get("bought", 0) for one in free]
    assert counts == [8, 24, 40, 56, 40, 56]


def test_what_is_refused_on_the_first_day_comes_later_where_a_rule_lets_it(
    tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = "count = { low = 8, mid = 8, high = 8 }"
    text = FLEET.replace("h100-sxm-80gb", "h20")
    text += f'[[delivery]]\ndate = 2025-08-11\nisland = "bought"\n{count}\n'
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(text)
    flags = ("--from", "2025-05-01", "--draws", "0", "--set", "schedule.steps=40000000000")
    found = plan_json(capsys, examples, fleet, *flags, "--rules", "all", "--hq", "CN")["calendar"]
    chips = [one["chips"].get("bought", 0) for one in found["periods"]]
    assert chips == [0, 8]


def test_bad_flags_of_a_plan_end_in_2(
    tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(FLEET)
    for flags, said in (
        (("--hq", "CN"), "--hq: is an option of --rules"),
        (("--no-rules", "all"), "--no-rules: is an option of --rules"),
        (("--refuse", "denial"), "--refuse: is an option of --rules"),
        (("--rules", "all", "--refuse", "never"), '--refuse = "never": is not allowed here'),
        (("--rules", "all", "--hq", "XX"), '--hq = "XX": there is no such country'),
        (("--rules", "us-2023"), "there is no such file"),
    ):
        assert said in plan_json(capsys, examples, fleet, *flags, code=2)
    fleet.write_text(FLEET.replace('"Indonesia"', '"Atlantis"'))
    message = plan_json(capsys, examples, fleet, "--rules", "all", code=2)
    assert f'{fleet}: site[2].country = "Atlantis": there is no such country' in message
    fleet.write_text(FLEET.replace('operator_hq = "MY"', 'operator_hq = "MYS"'))
    message = plan_json(capsys, examples, fleet, code=2)
    assert f'{fleet}: site[1].operator_hq = "MYS": there is no such country' in message
