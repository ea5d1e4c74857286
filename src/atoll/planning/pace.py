"""Pace: how fast many stocks compute, by the lanes of a few that were planned, all at once.

A lane computes whole grains, so that a chip more often brings nothing and then a whole turn less:
steps of some per cent, in which a line between planned stocks would be lost. The seconds of a lane
follow from those at other numbers of lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atoll.planning.calendar import Rated, Rates
    from atoll.planning.options import Option

    Floats = NDArray[np.float64]


def pace_of(rates: Rates, whole: Floats, like: Sequence[Rated]) -> Floats | None:
    """Steps a second of every stock; None where the planned ones are no sum of islands.

    `whole` is chips in whole nodes, a row a stock and a column an island of the fleet; `like` are
    planned stocks. Exchange, power and islands that take part in none of them are not in it.
    """
    import numpy as np

    islands = {one.name: place for place, one in enumerate(rates.fleet.island)}
    taking: dict[str, int] = {}
    lanes: dict[str, dict[tuple[object, ...], list[Option]]] = {}
    for rated in like:
        if rated.answer is None or rated.answer.way.chain is not None:
            return None
        for one in rated.answer.islands:
            taking[one.island.name] = one.machine.devices_per_chip
        for name, tried in rated.answer.tried.items():
            for option in tried:
                free = {"dp": 1, "zero": bool(option.layout.zero)}
                key = tuple({**option.layout.__dict__, **free}.values())
                lanes.setdefault(name, {}).setdefault(key, []).append(option)
    counted = []
    for name, devices in taking.items():
        chips = whole[:, islands[name]] * devices
        counted += [[_lane(chips, own, rates.recipe.num_grains) for own in lanes[name].values()]]
    low, high = np.full(len(whole), -7.0), np.full(len(whole), 12.0)
    for _ in range(44):  # logarithm of seconds, to a billionth
        middle = (low + high) / 2.0
        done = sum(np.max([lane.grains(np.exp(middle)) for lane in own], axis=0) for own in counted)
        enough = done >= rates.recipe.num_grains
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    pace: Floats = np.exp(-high)
    return pace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lanes:
    """By run: how many lanes of one layout an island has, and the seconds of one."""

    number: Floats
    fixed: Floats
    each: Floats
    most: Floats

    def grains(self, seconds: Floats) -> Floats:
        """How many they compute in a step of so many seconds."""
        import numpy as np

        turns = np.maximum(0.0, np.floor((seconds - self.fixed) / self.each + 1e-9))
        found: Floats = np.minimum(self.number * turns, self.most)
        return found


def _lane(devices: Floats, options: Sequence[Option], grains: int) -> _Lanes:
    """The lanes of one layout on so many devices, by options with other numbers of them."""
    import numpy as np

    known = sorted({one.layout.dp: one for one in options}.items())
    number = np.minimum(np.floor(devices / options[0].layout.lane_devices), float(grains))
    at = [dp for dp, _ in known]

    def between(values: list[float]) -> Floats:
        found: Floats = np.interp(number, at, values)
        return found

    return _Lanes(
        number=number,
        fixed=between([one.fixed for _, one in known]),
        each=between([one.each for _, one in known]),
        most=between([min(one.most, float(grains)) for _, one in known]),
    )
