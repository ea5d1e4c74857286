"""Second look: a few grains are computed by two islands of one kind, to see silent corruption.

Whose grain and by whom is drawn from (seed, step). If the two differ, a third island of the kind
says who is wrong, or the two compute it once more; who is wrong is dropped with its sums of the
open step, before anything is committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll.digest import digest_of
from atoll.errors import IslandError
from atoll.training import shares

if TYPE_CHECKING:
    from atoll.training.pilot import Pilot


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """`other` computes `grain` of `owner` once more."""

    step: int
    owner: str
    other: str
    grain: int


def second_looks(pilot: Pilot, step: int, todo: Mapping[str, shares.Ranges]) -> list[Look]:
    """Which grains of a step are computed twice: `run.double_check` of all, at most one an island,
    one in every few steps where that is less than one a step.
    """
    rate, seed, grains = pilot.recipe.run.double_check, pilot.recipe.seed, pilot.recipe.num_grains
    owners = [name for name, part in todo.items() if part]
    if not rate or not owners:
        return []
    drawn = int(digest_of([seed, step, "second look"])[:12], 16)
    every = max(1, round(1.0 / (rate * grains)))
    if (step + seed) % every:
        return []
    count = min(len(owners), max(1, round(rate * grains)))
    looks = []
    for turn in range(count):
        owner = owners[(drawn + turn) % len(owners)]
        others = _of_kind(pilot, owner)
        grain = draw(seed, step, todo[owner])
        if others and grain is not None:
            other = others[drawn // 7 % len(others)]
            looks.append(Look(step=step, owner=owner, other=other, grain=grain))
    return looks


def judge(pilot: Pilot, look: Look, results: Mapping[str, Any]) -> None:
    """Compare the two digests of a grain and drop who is wrong. IslandError if there is no
    telling.
    """
    crew, asked = pilot.crew, {"step": look.step, "grain": look.grain}
    found = crew.gather("checked", [look.other], match=asked)
    probe = results[look.owner]["probe"] if look.owner in results else None
    if look.other not in found or look.owner not in crew.members or not probe:
        return
    digests = {look.owner: str(probe[1]), look.other: str(found[look.other]["digest"])}
    if probe[0] != look.grain or digests[look.owner] == digests[look.other]:
        return
    judges = [name for name in _of_kind(pilot, look.owner) if name != look.other][:1]
    judges = judges or [look.owner, look.other]
    crew.tell("check", dict.fromkeys(judges, asked))
    verdicts = {str(a["digest"]) for a in crew.gather("checked", judges, match=asked).values()}
    wrong = [name for name, value in digests.items() if value not in verdicts]
    if len(verdicts) != 1 or len(wrong) != 1:
        raise IslandError(
            f"step {look.step}: islands {look.owner!r} and {look.other!r} compute other bits of "
            f"grain {look.grain}, and there is no telling which is right; `atoll doctor` tells "
            "whether a chip computes right"
        )
    crew.drop(wrong[0], "corrupt", f"other bits of grain {look.grain} in step {look.step}")


def draw(seed: int, step: int, ranges: shares.Ranges) -> int | None:
    """One grain of these ranges, drawn from (seed, step): its own digest goes into the ledger."""
    grains = shares.grains_in(ranges)
    if not grains:
        return None
    return grains[int(digest_of([seed, step, grains[0]])[:12], 16) % len(grains)]


def _of_kind(pilot: Pilot, name: str) -> list[str]:
    """The other whole members of a member's kind."""
    if name not in pilot.crew.members:
        return []
    kind = pilot.crew.members[name].kind_id
    return [n for n, member in pilot.whole().items() if n != name and member.kind_id == kind]
