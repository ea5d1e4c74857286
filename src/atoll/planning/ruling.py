"""A verdict by rules as an object for scripts, and as lines for people.

It decides nothing: the answer is `atoll.planning.rules`'. Everything that it writes says that it is
no legal advice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from atoll import units
from atoll.facts.countries import countries
from atoll.facts.rules import NO_ADVICE, Class, Condition, Rule
from atoll.planning.rules import Case, Finding, Verdict, thresholds_of
from atoll.planning.thresholds import (
    VARIED,
    End,
    Measures,
    Room,
    holds,
    in_class,
    is_under,
    measures_of,
    room,
    unknowns,
)

WORDS = {
    "tpp": "TPP",
    "density": "density",
    "memory": "memory",
    "io": "to other chips",
    "memory_io": "both bandwidths",
    "memory_density": "memory by area",
}
RATES = ("memory", "io", "memory_io")


def as_json(verdict: Verdict, rules: Sequence[Rule]) -> dict[str, Any]:
    """The answer, every rule that was asked, and the thresholds in force, as one object."""
    case = verdict.case
    measures = measures_of(case.chip)
    return {
        "chip": case.chip.name,
        "date": case.day.isoformat(),
        "to": case.destination,
        "hq": case.headquarters,
        "mode": case.mode,
        "owner": case.owner,
        "operator": case.operator,
        **_answer(verdict),
        "host": None if verdict.host is None else _answer(verdict.host),
        "measures": {
            "tpp": _number(measures.tpp),
            "tpp_format": measures.tpp_format,
            "density": _number(measures.density),
            "area": _number(measures.area),
            "memory": _number(measures.memory),
            "io": _number(measures.io),
        },
        "rules": [_finding(one) for one in verdict.findings],
        "thresholds": [_threshold(case, rule, one) for rule, one in _shown(case, rules)],
        "advice": NO_ADVICE,
    }


def _answer(verdict: Verdict) -> dict[str, Any]:
    return {
        "result": verdict.result,
        "reason": verdict.reason,
        "refused": verdict.refused,
        "missing": list(verdict.missing),
        "remarks": list(verdict.remarks),
    }


def _finding(found: Finding) -> dict[str, Any]:
    rule = found.rule
    return {
        "name": rule.name,
        "title": rule.title,
        "effect": rule.effect,
        "from": rule.start.isoformat(),
        "until": None if rule.until is None else rule.until.isoformat(),
        "applies": found.applies,
        "result": found.result,
        "text": found.text,
        "classes": list(found.classes),
        "missing": list(found.missing),
        "remarks": list(found.remarks),
        "doubt": found.doubt,
        "source": rule.source,
        "confidence": rule.confidence,
    }


def _threshold(case: Case, rule: Rule, one: Class) -> dict[str, Any]:
    measures = measures_of(case.chip, bits=rule.bits)
    found: dict[str, Any] = {
        "rule": rule.name,
        "class": one.name,
        "under": is_under(one),
        "met": in_class(one, measures, datacentre=case.chip.datacentre),
        "missing": unknowns(one, measures),
        "conditions": [list(_conditions(condition, measures)) for condition in one.when],
        "largest": {},
    }
    if (left := room(one, measures, "tpp")) is not None:
        found["largest"]["flops"] = {
            "tpp": _number(left.bound),
            **{name: left.largest_flops(measures.bits[name]) for name in measures.speeds},
            **_why(left),
        }
    for varied in VARIED[1:]:
        left = room(one, measures, varied)
        if left is not None:
            found["largest"][varied] = {"bandwidth": left.largest, **_why(left)}
    return found


def _why(left: Room) -> dict[str, Any]:
    return {"never": left.never, "unknown": list(left.unknown)}


def _conditions(condition: Condition, measures: Measures) -> Iterator[dict[str, Any]]:
    for quantity, limit in condition.limits().items():
        value = measures.value(quantity)
        answer = holds(limit, value)
        at_least, above, below = limit.bounds
        for sign, bound in ((">=", at_least), (">", above), ("<", below)):
            if bound is not None:
                ratio = None if value is None or not bound else float(value / bound)
                yield {
                    "quantity": quantity,
                    "sign": sign,
                    "bound": float(bound),
                    "value": _number(value),
                    "ratio": ratio,
                    "met": None if value is None else _compares(value, sign, bound),
                    "within": answer,
                }


def _compares(value: Fraction, sign: str, bound: Fraction) -> bool:
    return {">=": value >= bound, ">": value > bound, "<": value < bound}[sign]


def _number(value: Fraction | None) -> float | None:
    return None if value is None else float(value)


def _shown(case: Case, rules: Sequence[Rule]) -> Iterator[tuple[Rule, Class]]:
    """The classes in force on the day for such a chip, each set of conditions once."""
    seen = set()
    for rule, one in thresholds_of(rules, case.day):
        if rule.makers and case.makers not in rule.makers:
            continue
        if one.datacentre is not None and one.datacentre != case.chip.datacentre:
            continue
        key = (one.name, one.model_dump_json())
        if key not in seen:
            seen.add(key)
            yield rule, one


def lines(verdict: Verdict, rules: Sequence[Rule]) -> Iterator[str]:
    """The answer for people: the chip's measures, what follows, the rules, the thresholds."""
    case = verdict.case
    yield f"{case.chip.name}: {case.chip.description}"
    yield from _measured(case)
    yield ""
    yield _asked(case)
    yield f"  {_result(verdict)}"
    if verdict.host is not None:
        yield f"  the host: {_result(verdict.host)}"
    yield from (f"  missing: {one}" for one in verdict.missing)
    yield from (f"  note: {one}" for one in verdict.remarks)
    yield ""
    yield "rules in force"
    told = [one for one in verdict.findings if one.applies is not False or one.text]
    quiet = [one.rule.name for one in verdict.findings if one not in told]
    for one in told:
        yield from _told(one)
    if quiet:
        yield f"  do not reach it: {', '.join(quiet)}"
    if not verdict.findings:
        yield "  none"
    yield ""
    yield "thresholds in force"
    found = False
    for rule, one_class in _shown(case, rules):
        found = True
        yield from _threshold_lines(case, rule, one_class)
    if not found:
        yield "  none"
    yield ""
    yield NO_ADVICE


def _measured(case: Case) -> Iterator[str]:
    measures, chip = measures_of(case.chip), case.chip
    name = measures.tpp_format
    if measures.tpp is None or name is None:
        yield "  TPP             cannot be told: the FLOP/s are not known"
    else:
        speed = units.format_rate(float(measures.speeds[name]), "FLOP/s")
        yield f"  TPP             {_plain(measures.tpp)} ({name}: {speed} x {measures.bits[name]})"
    if measures.density is None:
        yield f"  density         cannot be told: {', '.join(measures.missing('density'))}"
    else:
        yield f"  density         {_plain(measures.density)} (by {_plain(measures.area)} mm2)"
    for quantity in ("memory", "io"):
        value = measures.value(quantity)
        shown = "not known" if value is None else units.format_rate(float(value))
        both = " (both directions)" if quantity == "io" and value is not None else ""
        yield f"  {WORDS[quantity]:<15} {shown}{both}"
    tf32 = None if chip.flops is None else chip.flops.per_second("tf32")
    if tf32 is not None and measures.tpp is not None:
        counted = Fraction(tf32) * 32 / 10**12
        if counted > measures.tpp * Fraction(201, 200):
            yield f"  note: tf32 is not counted; with 32 bits the TPP would be {_plain(counted)}"
    if not chip.datacentre:
        yield "  neither designed nor marketed for data centres"


def _asked(case: Case) -> str:
    parts = [f"on {case.day}", f"to {_country(case.destination)}"]
    parts.append(f"parent's headquarters {_country(case.headquarters)}")
    parts.append(f"mode {case.mode}")
    for word, code in (("owner", case.owner), ("operator", case.operator)):
        if code is not None:
            parts.append(f"{word} {_country(code)}")
    if case.shipped_from is not None:
        parts.append(f"shipped from {_country(case.shipped_from)}")
    return ", ".join(parts)


def _country(code: str | None) -> str:
    return "(not said)" if code is None else f"{countries()[code]} ({code})"


def _result(verdict: Verdict) -> str:
    if verdict.result is None:
        return f"cannot be told: {verdict.reason}"
    return f"{verdict.result}: {verdict.reason}"


def _told(found: Finding) -> Iterator[str]:
    rule = found.rule
    until = "" if rule.until is None else f" until {rule.until}"
    yield f"  {rule.name}: {rule.title} (from {rule.start}{until})"
    if found.applies is None:
        yield f"    cannot be told: {', '.join(found.missing)}; it might be: {found.text}"
    else:
        words = ", ".join(found.classes)
        yield f"    {words + ': ' if words else ''}{found.text}"
    if found.doubt:
        yield f"    in doubt: {found.doubt}"
    yield from (f"    {one}" for one in found.remarks)
    yield f"    source ({rule.confidence}): {rule.source}"


def _threshold_lines(case: Case, rule: Rule, one: Class) -> Iterator[str]:
    measures = measures_of(case.chip, bits=rule.bits)
    met = in_class(one, measures, datacentre=case.chip.datacentre)
    said = "met" if met else "not met"
    if met is None:
        said = f"cannot be told: {', '.join(unknowns(one, measures))}"
    yield f"  {rule.name}, {one.name}: {said}"
    for condition in one.when:
        yield "    " + "; ".join(map(_compared, _conditions(condition, measures)))
    if doubt := _doubt(case, rule, one, met):
        yield f"    in doubt: {doubt}"
    for varied in VARIED:
        left = room(one, measures, varied)
        if left is not None:
            yield f"    stays under with {_room(left, measures, under=is_under(one))}"


def _doubt(case: Case, rule: Rule, one: Class, met: bool | None) -> str:
    """Where the ends of what sources say lead to another answer than the best numbers."""
    ends: tuple[End, End] = ("low", "high")
    said = []
    for end in ends:
        measures = measures_of(case.chip, bits=rule.bits, end=end)
        there = in_class(one, measures, datacentre=case.chip.datacentre)
        if there is not None and there != met:
            said.append(f"{'met' if there else 'not met'} by the {end}est numbers of the facts")
    return "; ".join(said)


def _compared(one: dict[str, Any]) -> str:
    quantity = one["quantity"]

    def shown(value: float) -> str:
        return (
            units.format_rate(value)
            if quantity in RATES
            else f"{value:,.4f}".rstrip("0").rstrip(".")
        )

    wanted = f"{WORDS[quantity]} {one['sign']} {shown(one['bound'])}"
    if one["value"] is None:
        return f"{wanted}: not known"
    ratio = "" if one["ratio"] is None else f", {one['ratio']:.4g} x"
    return f"{wanted}: {'yes' if one['met'] else 'no'} ({shown(one['value'])}{ratio})"


def _room(left: Room, measures: Measures, *, under: bool) -> str:
    what = {"tpp": "FLOP/s", "memory": "memory's bandwidth", "io": "bandwidth to other chips"}
    name = what[left.varied]
    if left.never is not None:
        return f"no {name}: {left.never}"
    if left.bound is None:
        return f"any {name}"
    sign = "less than" if left.itself else "at most"
    why = "if the rest is under too" if under else "more may be allowed"
    more = f" ({why}: {', '.join(left.unknown)})" if left.unknown else ""
    if left.varied != "tpp":
        both = " in both directions together" if left.varied == "io" else ""
        return f"{name} {sign} {_tidy(left.bound, 10**9)} GB/s{both}{more}"
    each = [
        f"{_tidy(left.bound * 10**12 / bits, 10**12)} TFLOP/s {name}"
        for name, bits in measures.bits.items()
        if name in measures.speeds
    ]
    known = f": {sign} {', '.join(each)}" if each else ""
    return f"TPP {sign} {_tidy(left.bound, 1)}{known}{more}"


def _tidy(value: Fraction, unit: int) -> str:
    """A bound in a unit, rounded down so that what is shown stays under."""
    return f"{math.floor(value * 10**4 / unit) / 10**4:,.4f}".rstrip("0").rstrip(".")


def _plain(value: Fraction | None) -> str:
    """A number with two decimals where it has any."""
    if value is None:
        return "not known"
    return f"{float(value):,.2f}".rstrip("0").rstrip(".")
