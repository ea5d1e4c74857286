"""Rules judged: who is reached, what is not known, and the room under thresholds."""

import datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure.rule_cases import ask, day, design, rule_of

from atoll import facts, strict
from atoll.errors import InputError
from atoll.facts import Chip
from atoll.facts.rules import Class, Rule, rule_set, rules
from atoll.planning.rules import Case, judge, placement
from atoll.planning.ruling import lines
from atoll.planning.thresholds import Measures, in_class, measures_of, room
from atoll.site import Site


def test_a_legal_risk_is_no_permission() -> None:
    def told(on: str) -> str:
        found = ask("h200", on, "MY", "CN").findings
        return " ".join(next(f for f in found if f.rule.name == "us-2023-10").remarks)

    assert "legal risk, not a permission" in told("2025-05-13")
    assert "legal risk, not a permission" not in told("2025-05-12")
    assert "confirms the test of headquarters" in told("2026-05-31")


def test_chinese_chips_abroad_are_flagged_but_not_at_home() -> None:
    def flagged(chip: str, on: str, to: str, hq: str) -> bool | None:
        name = "us-2025-05-general-prohibition-10"
        return next(
            (one.applies for one in ask(chip, on, to, hq).findings if one.rule.name == name), None
        )

    assert flagged("ascend-910c", "2025-05-13", "MY", "CN") is True
    assert flagged("ascend-910c", "2025-05-13", "CN", "US") is True
    assert flagged("ascend-910c", "2025-05-13", "CN", "CN") is False
    assert flagged("ascend-910c", "2025-05-12", "MY", "CN") is None
    assert flagged("h200", "2025-05-13", "MY", "CN") is None
    assert "not asked" in " ".join(ask("ascend-910c", "2025-06-01", "MY", "CN").remarks)


def test_leased_chips_ask_for_owner_and_operator() -> None:
    bare = ask("gb200", "2026-02-01", "MY", "CN", mode="lease")
    assert bare.result == "none" and bare.refused is None
    assert [one.split(":")[0] for one in bare.missing] == [
        "who owns the leased chips",
        "who runs the leased site",
    ]
    owned = ask("gb200", "2026-02-01", "MY", "CN", mode="lease", owner="US")
    assert [one.split(":")[0] for one in owned.missing] == ["who runs the leased site"]
    full = ask("gb200", "2026-02-01", "MY", "CN", mode="lease", owner="US", operator="MY")
    assert full.missing == () and full.refused is False
    for owner, operator in (("CN", "MY"), ("US", "CN")):
        chinese = ask(
            "gb200", "2026-02-01", "MY", "CN", mode="lease", owner=owner, operator=operator
        )
        assert chinese.host is not None and chinese.host.result == "denial"
        assert chinese.result == "none" and chinese.refused is True
        assert chinese.refusal().startswith("for the host: us-2023-10")


def test_the_caps_of_the_diffusion_rule_in_chips() -> None:
    rule = rule_of("us-2025-01-diffusion")
    caps = [cap.tpp / 15832 for cap in rule.cap]
    assert [round(one) for one in caps] == [49899, 99798, 1699]
    found = ask("h100-sxm-80gb", "2025-02-01", "MY", "MY")
    told = " ".join(one for f in found.findings for one in f.remarks)
    assert "1,699 of this chip" in told and "49,898 of this chip" in told
    assert found.result == "none", "it was never enforced, so it only tells"


def test_what_is_not_known_is_not_guessed() -> None:
    nobody = ask("h200", "2026-02-01", "MY", None)
    assert nobody.result is None and nobody.refused is None
    assert any("headquarters" in one for one in nobody.missing)
    assert ask("h200", "2026-02-01", "CN", None, shipped_from="SG").result == "denial"
    nowhere = ask("h200", "2026-02-01", None, "SG")
    assert nowhere.result is None and any("country of the site" in one for one in nowhere.missing)
    no_area = design(tpp=3000)
    verdict = ask(no_area, "2024-01-01", "CN", "CN")
    assert verdict.result is None
    assert verdict.missing == ("die area is not known",)
    assert "cannot be told: us-2023-10: die area is not known" in "\n".join(lines(verdict, rules()))
    # Above 4,800 and below 1,600 the area does not matter.
    assert ask(design(tpp=4800), "2024-01-01", "CN", "CN").result == "denial"
    assert ask(design(tpp=1599), "2024-01-01", "CN", "CN").result == "none"
    assert ask(design(tpp=None), "2024-01-01", "CN", "CN").result is None


def test_a_rule_for_what_another_leaves_waits_for_the_other() -> None:
    verdict = ask(design(tpp=3000, memory=2000), "2025-05-01", "CN", "CN")
    letters = next(f for f in verdict.findings if f.rule.name == "us-2025-04-letters")
    assert letters.applies is None and letters.missing == ("die area is not known",)
    assert verdict.result is None


def test_numbers_in_doubt_are_told() -> None:
    rule = rule_of("us-2025-05-general-prohibition-10")
    found = ask("ascend-910b4", "2025-06-01", "MY", "CN")
    finding = next(one for one in found.findings if one.rule == rule)
    assert finding.classes == ("3A090.b",)
    assert finding.doubt == "by the highest numbers of the facts it is 3A090.a"


def test_rules_of_china_are_told_but_refuse_nothing() -> None:
    found = ask("h20", "2025-12-01", "CN", "CN")
    told = {one.rule.name for one in found.findings if one.applies}
    assert {"cn-2024-09-domestic", "cn-2025-07-security"} <= told
    assert found.refused is False
    abroad = {one.rule.name for one in ask("h20", "2025-12-01", "MY", "CN").findings if one.applies}
    assert not [name for name in abroad if name.startswith("cn-")]


def test_a_rule_that_is_off_says_nothing() -> None:
    case = Case(chip=facts.chip("h200"), day=day("2024-01-01"), destination="CN", headquarters="CN")
    assert judge(case, rules()).result == "denial"
    assert judge(case, rule_set(off=["us-2023-10"])).result == "none"
    assert judge(case, ()).result == "none"


def test_a_placement_at_a_site() -> None:
    chip, on = facts.chip("h100-sxm-80gb"), day("2024-07-01")
    johor = Site(name="johor", country="MY", mode="lease", owner_hq="SG", operator_hq="MY")
    assert placement(chip, johor, on, rules(), headquarters="CN").refused is False
    bought = Site(name="johor", country="MY", mode="own-abroad", owner_hq="CN")
    assert placement(chip, bought, on, rules()).refusal().startswith("us-2023-10: ")
    silent = placement(chip, Site(name="johor", country="MY"), on, rules(), headquarters="CN")
    assert silent.refused is True and "taken as bought" in " ".join(silent.remarks)
    nowhere = placement(chip, Site(name="x"), on, rules(), headquarters="SG")
    assert nowhere.refused is None
    with pytest.raises(InputError) as caught:
        placement(chip, Site(name="x", country="Nowhere"), on, rules())
    assert caught.value.key == "site.country"
    with pytest.raises(InputError, match="there is no such country"):
        strict.validate(Site, {"name": "x", "owner_hq": "XX"})


CLASSES = [
    (rule, one) for rule in rules() if rule.goods == "chip" for one in rule.class_
]  # fmt: skip
some_class = st.sampled_from(CLASSES)
maybe = st.none()
quantity = st.integers(min_value=1, max_value=50_000)
area = maybe | st.decimals(min_value="1", max_value="3000", places=2).map(Fraction)
bandwidth = maybe | st.integers(min_value=0, max_value=12_000_000_000_000).map(Fraction)


@given(some_class, st.integers(1, 10**17), area, bandwidth, bandwidth)
def test_the_largest_flops_stay_under_and_a_hair_more_do_not(
    asked: tuple[Rule, Class],
    speed: int,
    area: Fraction | None,
    memory: Fraction | None,
    io: Fraction | None,
) -> None:
    rule, one = asked
    datacentre = one.datacentre is not False
    under = rule.name == "us-2026-01-case-by-case"
    for name, bits in rule.bits.items():

        def met(flops: int, name: str = name) -> bool | None:
            numbers = Measures(
                speeds={name: Fraction(flops)}, bits=rule.bits, area=area, memory=memory, io=io
            )
            return in_class(one, numbers, datacentre=datacentre)

        now = Measures(
            speeds={name: Fraction(speed)}, bits=rule.bits, area=area, memory=memory, io=io
        )
        left = room(one, now, "tpp")
        if left is None:
            continue
        if left.bound is None:
            # No speed changes the answer: it stays as it is, or nothing helps.
            if under:
                assert left.never is None or met(1) is not True
            elif left.never is None:
                assert met(speed) is not True and met(10**17) is not True
            else:
                assert met(1) is not False
            continue
        largest = left.largest_flops(bits)
        assert largest is not None
        if under:
            assert met(largest) is not False and met(largest + 1) is False
            continue
        assert met(largest) is False
        assert met(largest // 2) is False and met(1) is False
        assert met(largest + 1) is True or (left.unknown and met(largest + 1) is None)


@given(some_class, st.integers(0, 10**17), area, bandwidth, bandwidth)
def test_the_largest_bandwidth_stays_under_and_a_hair_more_does_not(
    asked: tuple[Rule, Class],
    speed: int,
    area: Fraction | None,
    memory: Fraction | None,
    io: Fraction | None,
) -> None:
    rule, one = asked
    for varied in ("memory", "io"):

        def met(value: Fraction, varied: str = varied) -> bool | None:
            numbers = Measures(
                speeds={"fp8": Fraction(speed)},
                bits=rule.bits,
                area=area,
                memory=value if varied == "memory" else memory,
                io=value if varied == "io" else io,
            )
            return in_class(one, numbers, datacentre=True)

        now = Measures(
            speeds={"fp8": Fraction(speed)}, bits=rule.bits, area=area, memory=memory, io=io
        )
        left = room(one, now, "memory" if varied == "memory" else "io")
        if left is None:
            continue
        if left.largest is None:
            if rule.name == "us-2026-01-case-by-case":
                assert met(Fraction(1)) is not True
            elif left.never is None:
                assert met(Fraction(10**14)) is not True
            else:
                assert met(Fraction(0)) is not False
            continue
        if rule.name == "us-2026-01-case-by-case":
            assert met(Fraction(left.largest)) is True
            assert met(Fraction(left.largest + 1)) is False
            continue
        if left.bound is not None and left.bound > 0:
            assert met(Fraction(left.largest)) is False or left.unknown
            after = met(Fraction(left.largest + 1))
            assert after is True or (left.unknown and after is None)


@given(st.integers(1, 10**6), area, st.booleans())
def test_a_faster_chip_is_never_in_a_milder_class(
    tpp: int, area: Fraction | None, datacentre: bool
) -> None:
    """From no class to .b to .a: more FLOP/s on the same dies never lead back."""
    rule = rule_of("us-2023-10")
    order = {(): 0, ("3A090.b",): 1}

    def rank(number: int) -> int | None:
        numbers = Measures(
            speeds={"fp8": Fraction(number * 10**12, 8)}, bits=rule.bits, area=area, memory=None,
            io=None,
        )  # fmt: skip
        met = [one for one in rule.class_ if in_class(one, numbers, datacentre=datacentre)]
        unsure = [
            one for one in rule.class_ if in_class(one, numbers, datacentre=datacentre) is None
        ]
        if unsure:
            return None
        return order.get((met[0].name,) if met else (), 2)

    here, there = rank(tpp), rank(2 * tpp)
    if here is not None and there is not None:
        assert here <= there


def test_room_of_a_known_chip() -> None:
    now = measures_of(facts.chip("h20"))
    for rule, index, expected in (("us-2023-10", 0, 4800), ("us-2023-10", 2, 2400)):
        left = room(rule_of(rule).class_[index], now, "tpp")
        assert left is not None and left.bound == expected
    assert left is not None and left.largest_flops(16) == 149_999_999_999_999
    letters = rule_of("us-2025-04-letters").class_[0]
    memory, io = room(letters, now, "memory"), room(letters, now, "io")
    assert memory is not None and memory.largest == 799_999_999_999
    assert io is not None and io.never is not None
    # The density decides on small dies: 5.92 x 665.61 mm2.
    left = room(rule_of("us-2023-10").class_[0], measures_of(facts.chip("ascend-910b4")), "tpp")
    assert left is not None and left.bound == Fraction("5.92") * Fraction("665.61")
    unknown = room(rule_of("us-2023-10").class_[0], measures_of(design(tpp=3000)), "tpp")
    assert unknown is not None and unknown.bound == 1600
    assert unknown.unknown == ("die area is not known",)


def by_hand(chip: Chip, on: str, to: str, hq: str) -> str:
    """The decision procedure written out by hand, for a buyer and a maker outside China."""
    found = measures_of(chip)
    assert found.tpp is not None and found.density is not None
    assert found.memory is not None and found.io is not None
    tpp, density = float(found.tpp), float(found.density)
    memory, io = float(found.memory) / 1e9, float(found.io) / 1e9
    china, d5 = {"CN", "HK", "MO"}, {"CN", "HK", "MO", "RU", "IR"}
    if on < "2022-10-21":
        return "none"
    if on < "2023-11-17":
        where = {"CN", "HK"} | ({"MO"} if on >= "2023-01-18" else set())
        return "denial" if io >= 600 and tpp >= 4800 and to in where else "none"
    a = tpp >= 4800 or (chip.datacentre and tpp >= 1600 and density >= 5.92)
    b = chip.datacentre and not a
    b = b and ((tpp >= 2400 and density >= 1.6) or (tpp >= 1600 and density >= 3.2))
    reached, elsewhere = to in d5 or hq in d5, to in {"VN", "AE", "KZ"}
    if a and chip.datacentre:
        if to in china and on >= "2026-01-15" and tpp < 21000 and memory < 6500:
            return "case-by-case"
        return "denial" if reached else "approval" if elsewhere else "none"
    if a or b:
        mild = "exception" if on >= "2024-04-04" else "approval"
        return "notify" if reached else mild if elsewhere else "none"
    if reached and on >= "2025-04-09" and (memory >= 1400 or io >= 1100 or memory + io >= 1700):
        return "case-by-case" if on >= "2025-08-11" else "licence"
    return "none"


@given(
    st.sampled_from([1500, 1600, 2368, 2399, 2400, 3000, 4799, 4800, 15832, 20992, 21000, 36000]),
    st.sampled_from([270, 400, 500, 749, 750, 814, 1500, 2400]),
    st.sampled_from([300, 800, 1399, 1400, 4000, 6499, 6500]),
    st.sampled_from([64, 300, 400, 598, 600, 900, 1100]),
    st.booleans(),
    st.dates(day("2022-09-01"), day("2026-07-31")),
    st.sampled_from(["CN", "HK", "MO", "RU", "IR", "MY", "SG", "VN", "AE", "KZ", "DE"]),
    st.sampled_from(["CN", "MO", "RU", "MY", "SG", "VN", "AE", "DE"]),
)
def test_the_decision_procedure_by_hand(
    tpp: int, area: int, memory: int, io: int, dc: bool, on: datetime.date, to: str, hq: str
) -> None:
    chip = design(tpp=tpp, area=area, memory=memory, io=io, datacentre=dc, vendor="Intel")
    expected = by_hand(chip, on.isoformat(), to, hq)
    assert ask(chip, on.isoformat(), to, hq).result == expected
