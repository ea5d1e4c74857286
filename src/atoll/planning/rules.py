"""What rules say of a chip at a place: which applies on a day, and what follows for whom.

A `Case` asks about a chip, a day, a destination, the headquarters of the owner's ultimate parent
and a mode; `judge` answers from a set of rules, `placement` for a site of a fleet. What is not
known makes an answer "cannot be told", never a guess. It is engineering input and no legal advice.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from atoll.errors import InputError
from atoll.facts import Chip
from atoll.facts.countries import country, expanded, maker_country
from atoll.facts.rules import REFUSED, SEVERITY, Class, Mode, Outcome, Result, Rule
from atoll.planning.thresholds import End, every, in_class, measures_of, some, unknowns
from atoll.site import Site

HQ = "the headquarters of the owner's ultimate parent (--hq)"
OWNER = "who owns the leased chips: the headquarters of the owner's ultimate parent (--owner)"
OPERATOR = "who runs the leased site: the headquarters of the operator (--operator)"
MAKER = "the country of the chip's maker (--maker)"
DESTINATION = "the country of the site"
ORIGIN = "from where it is shipped (--shipped-from)"

LEASED: tuple[Mode, ...] = ("lease", "api")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A question. Countries are two letters; None is not known.

    `headquarters` is of the ultimate parent of who buys or leases; `owner` and `operator` are of
    who owns and runs leased chips. `maker` replaces what the facts say of the chip's vendor.
    """

    chip: Chip
    day: datetime.date
    destination: str | None
    headquarters: str | None = None
    mode: Mode = "buy"
    owner: str | None = None
    operator: str | None = None
    shipped_from: str | None = None
    maker: str | None = None

    @property
    def makers(self) -> str | None:
        """Where the chip's maker is headquartered."""
        return self.maker if self.maker is not None else maker_country(self.chip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says of a case.

    `applies` is None where that cannot be told: `missing` says what would have to be known.
    `classes` are those that the chip meets by the best numbers, whether or not the rule reaches it;
    `doubt` says where the low or high numbers of the facts lead elsewhere.
    """

    rule: Rule
    applies: bool | None
    result: Result = "none"
    text: str = ""
    classes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    doubt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer: the gravest thing that follows, and every rule that was asked.

    `result` is None where it cannot be told; `reason` names the rule it is from. `host` is the
    same question for the host of leased chips; `missing` all that would have to be known.
    """

    case: Case
    result: Result | None
    reason: str
    findings: tuple[Finding, ...]
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    host: Verdict | None = None

    @property
    def refused(self) -> bool | None:
        """Whether a plan should not count on it: as `refuses` with a licence that is needed."""
        return self.refuses(REFUSED)

    def refuses(self, mildest: Result) -> bool | None:
        """Whether the result, or that of the host, is at least so grave. None: cannot be told."""
        own = None
        if self.result is not None:
            own = SEVERITY.index(self.result) >= SEVERITY.index(mildest)
        return own if self.host is None else some([own, self.host.refuses(mildest)])

    def refusal(self, mildest: Result = REFUSED) -> str:
        """The rule for which it is refused, in words."""
        if self.host is not None and self.host.refuses(mildest):
            alone = replace(self, host=None)
            return self.reason if alone.refuses(mildest) else f"for the host: {self.host.reason}"
        return self.reason


@dataclass(slots=True)
class _Told:
    """What was found missing on the way."""

    day: datetime.date
    missing: list[str] = field(default_factory=list)

    def among(self, code: str | None, places: Sequence[str], what: str) -> bool | None:
        """Whether a country is among places; unknown is noted under its name."""
        if not places:
            return False
        if code is None:
            self.missing.append(what)
            return None
        return code in expanded(places, self.day)


def judge(case: Case, rules: Sequence[Rule]) -> Verdict:
    """What the rules in force on the day say. Assumes countries that are known."""
    by_name = {rule.name: rule for rule in rules}
    findings = [
        finding
        for rule in rules
        if rule.in_force(case.day) and rule.goods == "chip" and case.mode in rule.modes
        for finding in [_finding(case, rule, by_name)]
        if finding is not None
    ]
    result, reason = _result(findings)
    missing = [one for found in findings if found.applies is None for one in found.missing]
    remarks = []
    if case.makers is None:
        remarks.append("taken as a chip that the rules reach: its maker's country is not known")
    apart = [
        rule.name
        for rule in rules
        if rule.in_force(case.day) and case.mode in rule.modes
        and case.makers in rule.makers_outside
    ]  # fmt: skip
    if apart:
        why = f"not asked, because the maker is headquartered in {case.makers}"
        remarks.append(f"{why}: {', '.join(apart)}")
    late = sorted({rule.read for rule in rules if rule.read < case.day})
    if late:
        remarks.append(f"sources were read up to {late[0]}: what came later is not known here")
    host = None
    if case.mode in LEASED:
        host, unknown = _host(case, rules)
        missing += unknown
    return Verdict(
        case=case, result=result, reason=reason, findings=tuple(findings),
        missing=tuple(dict.fromkeys(missing)), remarks=tuple(remarks), host=host,
    )  # fmt: skip


def placement(
    chip: Chip,
    site: Site,
    day: datetime.date,
    rules: Sequence[Rule],
    *,
    headquarters: str | None = None,
) -> Verdict:
    """What the rules say of a chip at a site, for a party whose parent has its headquarters there.

    At a site that is not leased its owner counts, where known. A site that does not say how its
    chips are had counts as bought, and the answer says so. InputError for an unknown country.
    """
    key = "site.country"
    where = country(site.country, key=key) if site.country else None
    owner, operator = site.owner_hq, site.operator_hq
    mode: Mode = site.mode or "buy"
    parent = owner if mode not in LEASED and owner is not None else headquarters
    verdict = judge(
        Case(
            chip=chip, day=day, destination=where, headquarters=parent, mode=mode, owner=owner,
            operator=operator,
        ),
        rules,
    )  # fmt: skip
    if site.mode is None:
        told = f"taken as bought: site {site.name} does not say how its chips are had (site.mode)"
        verdict = replace(verdict, remarks=(*verdict.remarks, told))
    return verdict


def binding_notes(verdict: Verdict) -> list[str]:
    """What a plan that keeps the chips should know: results short of refusal, and flags."""
    told = []
    asked = [verdict] if verdict.host is None else [verdict, verdict.host]
    for one in asked:
        who = "the host: " if one is verdict.host else ""
        if one.result is not None and one.result != "none":
            told.append(f"{who}{one.result}: {one.reason}")
    for found in verdict.findings:
        reach = any(one.to or one.hq or one.outside for one in found.rule.outcome)
        if found.rule.effect == "flag" and found.applies and reach:
            told.append(f"{found.rule.name}: {found.text}")
    return told


def classes_of(chip: Chip, rule: Rule, *, end: End = "mid") -> tuple[tuple[str, ...], list[str]]:
    """(the first class of a rule that a chip meets, or nothing; what is not known to tell).

    Where a class before it cannot be told, nothing is said but what is missing.
    """
    measures = measures_of(chip, bits=rule.bits, end=end)
    for one in rule.class_:
        met = in_class(one, measures, datacentre=chip.datacentre)
        if met:
            return (one.name,), []
        if met is None:
            return (), unknowns(one, measures)
    return (), []


def _finding(case: Case, rule: Rule, by_name: dict[str, Rule]) -> Finding | None:
    """What a rule says; None if it is about others' chips."""
    told = _Told(day=case.day)
    about = _about(case, rule, told)
    if about is False:
        return None
    classes, unknown = classes_of(case.chip, rule)
    possible = [one.name for one in rule.class_] if unknown else []
    not_told: list[str] = []
    doubt = _doubt(case.chip, rule, classes)
    other = by_name.get(rule.unless_class_of or "")
    if other is not None:
        theirs, not_told = classes_of(case.chip, other)
        if theirs:
            return Finding(
                rule=rule, applies=False, classes=classes,
                text=f"not asked: the chip is {theirs[0]} by {other.name}",
            )  # fmt: skip
        unknown = [*unknown, *not_told]
    found: list[tuple[Outcome, bool | None]] = []
    for outcome in rule.outcome:
        if not outcome.in_force(case.day):
            continue
        if outcome.chips and case.chip.name not in outcome.chips:
            continue
        fits = _fits(outcome, classes, possible)
        reaches = every([fits, False if fits is False else _reaches(case, outcome, told)])
        if reaches and (about is None or not_told):
            reaches = None
        if reaches is not False:
            found.append((outcome, reaches))
            if rule.effect in ("licence", "relief"):
                break
    if not found:
        return Finding(rule=rule, applies=False, classes=classes, doubt=doubt)
    applies = some([reach for _, reach in found])
    sure = [outcome for outcome, reach in found if reach] or [found[0][0]]
    gravest = max(sure, key=lambda one: SEVERITY.index(one.result))
    return Finding(
        rule=rule, applies=applies, result=gravest.result,
        text="; ".join(one.text for one in sure), classes=classes, doubt=doubt,
        missing=tuple(dict.fromkeys([*unknown, *told.missing])) if applies is None else (),
        remarks=tuple(_remarks(case, rule)),
    )  # fmt: skip


def _about(case: Case, rule: Rule, told: _Told) -> bool | None:
    """Whether a rule is about chips of this maker, shipped from there."""
    maker = case.makers
    answers: list[bool | None] = []
    if rule.makers:
        # A rule about one country's chips is not told of a chip from nobody knows where.
        answers.append(maker in rule.makers)
    if maker is not None and rule.makers_outside:
        answers.append(maker not in rule.makers_outside)
    if rule.shipped_from:
        at = told.among(case.shipped_from, rule.shipped_from, ORIGIN)
        if at is None:
            # A relief may be had by shipping from there; anything else starts there only.
            at = rule.effect == "relief"
            told.missing.clear()
        answers.append(at)
    return every(answers)


def _fits(outcome: Outcome, classes: Sequence[str], possible: Sequence[str]) -> bool | None:
    """Whether an outcome is for a chip of these classes, or perhaps of these possible ones."""
    if not outcome.class_:
        return True
    if any(name in classes for name in outcome.class_):
        return True
    return None if any(name in possible for name in outcome.class_) else False


def _reaches(case: Case, outcome: Outcome, told: _Told) -> bool | None:
    """Whether an outcome reaches the destination or the headquarters."""
    answers: list[bool | None] = []
    if outcome.outside:
        inside = told.among(case.destination, outcome.outside, DESTINATION)
        answers.append(None if inside is None else not inside)
    if outcome.to or outcome.hq:
        noted = len(told.missing)
        limbs = [
            told.among(case.destination, outcome.to, DESTINATION) if outcome.to else None,
            told.among(case.headquarters, outcome.hq, HQ) if outcome.hq else None,
        ]
        wanted = [
            limb for limb, asked in zip(limbs, (outcome.to, outcome.hq), strict=True) if asked
        ]
        answer = every(wanted) if outcome.limb == "both" else some(wanted)
        if answer is not None:
            del told.missing[noted:]
        answers.append(answer)
    return every(answers)


def _remarks(case: Case, rule: Rule) -> Iterator[str]:
    for remark in rule.remark:
        if not remark.in_force(case.day):
            continue
        told = _Told(day=case.day)
        where = told.among(case.destination, remark.outside, DESTINATION)
        who = told.among(case.headquarters, remark.hq, HQ) if remark.hq else True
        if where is False and who:
            yield remark.text
    if rule.effect == "relief" and case.shipped_from is None:
        yield "only if it is shipped from " + ", ".join(rule.shipped_from)
    tpp = measures_of(case.chip, bits=rule.bits).tpp
    for cap in rule.cap:
        if tpp:
            number = int(cap.tpp // float(tpp))
            yield f"{cap.name}: {cap.tpp / 1e6:,.10g} million TPP, {number:,} of this chip"
    yield from rule.notes


def _doubt(chip: Chip, rule: Rule, mid: Sequence[str]) -> str | None:
    """Where the ends of the facts lead to another class than the best numbers."""
    said = []
    for end, word in (("low", "lowest"), ("high", "highest")):
        there, unknown = classes_of(chip, rule, end="low" if end == "low" else "high")
        if not unknown and list(there) != list(mid):
            said.append(f"by the {word} numbers of the facts it is {_or_none(there)}")
    return "; ".join(said) or None


def _or_none(classes: Sequence[str]) -> str:
    return ", ".join(classes) or "in no class"


def _result(findings: Sequence[Finding]) -> tuple[Result | None, str]:
    """The gravest result of what binds, after reliefs, and the rule that it is from."""
    relieved = {f.rule.relieves: f for f in findings if f.rule.effect == "relief" and f.applies}
    binding: list[Finding] = []
    for found in findings:
        if found.rule.effect in ("relief", "flag", "guidance"):
            continue
        relief = relieved.get(found.rule.name)
        softer = relief is not None and SEVERITY.index(relief.result) < SEVERITY.index(found.result)
        binding.append(relief if softer and relief is not None and found.applies else found)
    sure = [found for found in binding if found.applies]
    worst = max(sure, key=lambda found: SEVERITY.index(found.result), default=None)
    unsure = [found for found in binding if found.applies is None]
    grave = max((SEVERITY.index(found.result) for found in unsure), default=-1)
    if unsure and (worst is None or SEVERITY.index(worst.result) < grave):
        gravest = max(unsure, key=lambda found: SEVERITY.index(found.result))
        return None, f"{gravest.rule.name}: {', '.join(gravest.missing)}"
    if worst is None:
        return "none", "no rule reaches it"
    return worst.result, f"{worst.rule.name}: {worst.text}"


def _host(case: Case, rules: Sequence[Rule]) -> tuple[Verdict | None, list[str]]:
    """The same question for who owns and runs leased chips, and what is not known of them."""
    missing = [OWNER] if case.owner is None else []
    missing += [OPERATOR] if case.operator is None else []
    parties = dict.fromkeys((case.owner, case.operator))
    verdicts = [
        judge(replace(case, mode="buy", headquarters=party, owner=None, operator=None), rules)
        for party in parties
    ]

    def gravity(verdict: Verdict) -> float:
        if verdict.result is None:
            return SEVERITY.index("denial") - 0.5
        return SEVERITY.index(verdict.result)

    host = max(verdicts, key=gravity)
    said = {HQ: OWNER if case.owner is None else OPERATOR}
    named = tuple(said.get(one, one) for one in host.missing)
    reason = host.reason
    for general, here in said.items():
        reason = reason.replace(general, here)
    missing += [one for one in named if one not in missing]
    return replace(host, missing=named, reason=reason), missing


def thresholds_of(rules: Sequence[Rule], day: datetime.date | None) -> list[tuple[Rule, Class]]:
    """Every class of a rule about chips that is in force on a day (None: of all rules)."""
    return [
        (rule, one)
        for rule in rules
        if rule.goods == "chip" and (day is None or rule.in_force(day))
        for one in rule.class_
    ]


def require_mode(text: str) -> Mode:
    """A mode by its name. InputError for another."""
    from atoll.facts.rules import MODES

    for mode in MODES:
        if mode == text:
            return mode
    fix = "allowed: " + ", ".join(f'"{mode}"' for mode in MODES)
    raise InputError("is not allowed here", key="--mode", value=text, fix=fix)
