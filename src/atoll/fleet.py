"""Fleet: sites, islands, the links between sites, deliveries and withdrawals over time.

The fleet decides how long a run takes, never its bits. It holds no measurement: shares that follow
speed are the pilot's business. `Fleet.stock` is the fleet of one day, `Fleet.path` the way between
two sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from atoll import facts, strict
from atoll.digest import digest_of
from atoll.errors import InputError
from atoll.hours import Hours, parse_offset, require_hours
from atoll.model import Count
from atoll.site import HERE, Link, Name, Network, Site, paths, require_known
from atoll.strict import Noun
from atoll.supply import Change, Costs, Delivery, Dollars, Failures, Lease, Which
from atoll.traffic import Traffic, with_day_file


def _known_chip(value: str) -> str:
    """The name itself; InputError with the nearest one if the facts hold no such chip."""
    try:
        facts.chip(value)
    except InputError as error:
        if not facts.is_chip_file(value):
            error.key = None
            raise
        message = f"is a file of a chip that does not load: {str(error).splitlines()[0]}"
        raise InputError(message, value=value, fix=error.fix) from None
    return value


ChipName = Annotated[str, AfterValidator(_known_chip)]


class Island(Noun):
    """Nodes of one chip under one fast fabric.

    `chip` is a name of the facts, or the path of a file of one's own (in a fleet file relative to
    it). `nodes` is 0 where everything is still to be delivered. `network` joins the nodes; None
    means what the facts say of the chip.

    A lane computes one grain at a time; `lanes` None means one for each chip. `threads` is of one
    lane and matters for CPUs only. `share` fixes the share, or is where it starts when shares
    follow speed. An island whose `start` is "dial-in" is started by somebody else. With a `lease`
    it is there for a time only; otherwise it is bought, a chip for `price`, None as the facts say.
    With `hours` it is there only at these of each day ("22:00-07:00", by the
    clocks of its site).
    """

    name: Name
    site: str = HERE
    chip: ChipName = "cpu"
    nodes: int = Field(default=1, ge=0, le=2**40)
    chips_per_node: Count = 1
    network: Network | None = None
    threads: int = Field(default=1, ge=1, le=4096)
    lanes: Count | None = None
    share: float | None = Field(default=None, ge=0)
    start: Literal["here", "dial-in"] = "here"
    lease: Lease | None = None
    price: Dollars | None = None
    hours: str | None = Field(default=None, examples=["22:00-07:00"])

    @field_validator("hours")
    @classmethod
    def _is_hours(cls, value: str | None) -> str | None:
        return None if value is None else require_hours(value)

    @field_validator("chip", mode="before")
    @classmethod
    def _one_kind(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            fix = "make two islands: one [[island]] with its own name for each kind of chip"
            raise InputError("an island holds one kind of chip", value=value, fix=fix)
        return value

    @property
    def num_chips(self) -> int:
        """The number of chips of the island."""
        return self.nodes * self.chips_per_node

    @property
    def num_lanes(self) -> int:
        """The number of lanes of the island."""
        return self.num_chips if self.lanes is None else self.lanes

    def is_there(self, day: date) -> bool:
        """Whether it may be used on a day: always, but for a lease that has not begun or ended."""
        return self.lease is None or self.lease.holds(day)


class Shares(Noun):
    """How grains are split: "auto" follows speed, "fixed" stays, "seeded" changes every step."""

    mode: Literal["auto", "fixed", "seeded"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)


class Fleet(Noun):
    """All sites, islands, links, deliveries and withdrawals; the only mixed thing.

    The names of the lists are singular because the file writes them as [[island]].
    """

    FILE_KEYS = ("schema",)

    shares: Shares = Shares()
    site: list[Site] = []
    island: list[Island] = Field(min_length=1)
    link: list[Link] = []
    delivery: list[Delivery] = []
    withdrawal: list[Change] = []
    failures: Failures | None = None
    costs: Costs | None = None
    traffic: list[Traffic] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        strict.unique("site", (site.name for site in self.site))
        strict.unique("island", (island.name for island in self.island))
        sites = [HERE, *(site.name for site in self.site if site.name != HERE)]
        for index, island in enumerate(self.island):
            require_known(island.site, sites, key=f"island[{index}].site", what="sites")
            self._require_clock(island, index)
        for index, link in enumerate(self.link):
            for end in link.between:
                require_known(end, sites, key=f"link[{index}].between", what="sites")
            if link.between[0] == link.between[1]:
                message, key = "joins a site to itself", f"link[{index}].between"
                raise InputError(message, key=key, value=link.between, fix="name two sites")
        names = [island.name for island in self.island]
        for table, changes in (("delivery", self.delivery), ("withdrawal", self.withdrawal)):
            for index, change in enumerate(changes):
                require_known(change.island, names, key=f"{table}[{index}].island", what="islands")
        expected = {change.island for change in self.delivery}
        for index, island in enumerate(self.island):
            if island.nodes == 0 and island.name not in expected:
                fix = "write nodes = 1 or more, or add a [[delivery]] for this island"
                message, key = "zero chips, and none are delivered", f"island[{index}].nodes"
                raise InputError(message, key=key, value=0, fix=fix)
        _possible_shares(self.shares, self.island)
        self._require_servers()
        return self

    def _require_clock(self, island: Island, index: int) -> None:
        """InputError for hours by clocks of which nobody knows the offset."""
        try:
            self.hours_of(island)
        except InputError as error:
            error.key = f"island[{index}].hours"
            raise

    def _require_servers(self) -> None:
        """InputError for traffic of an island that is not there, or that cannot say its hours."""
        islands = {island.name: island for island in self.island}
        for index, one in enumerate(self.traffic):
            key = f"traffic[{index}].island"
            require_known(one.island, list(islands), key=key, what="islands")
            if one.island in [other.island for other in self.traffic[:index]]:
                message, fix = "serves other traffic already", "one [[traffic]] for each island"
                raise InputError(message, key=key, value=one.island, fix=fix)
            if islands[one.island].hours is not None:
                fix = "leave hours out of the island: the plan finds them from the traffic"
                raise InputError("has hours of its own", key=key, value=one.island, fix=fix)
            if self.offset_of(islands[one.island].site) is None:
                site = islands[one.island].site
                fix = f'write utc = "+08:00" in the [[site]] named "{site}"'
                message = "the offset from UTC of its site is not known"
                raise InputError(message, key=key, value=one.island, fix=fix)

    @property
    def shares_hours(self) -> bool:
        """Whether chips are lent to training at some hours of the day only."""
        return bool(self.traffic) or any(island.hours is not None for island in self.island)

    def hours_of(self, island: Island) -> Hours | None:
        """The hours of the day at which an island may be used; None: always."""
        if island.hours is None:
            return None
        return Hours.parse(island.hours, offset=self.offset_of(island.site))

    def offset_of(self, site: str) -> float | None:
        """Seconds by which the clocks of a site are ahead of UTC; None where the file says none."""
        told = next((one.utc for one in self.site if one.name == site), None)
        return None if told is None else parse_offset(told)

    @classmethod
    def load(cls, path: Path | str) -> Fleet:
        """The fleet in a TOML file; chips of one's own are looked for beside it.

        InputError for whatever is wrong.
        """
        return cls.from_dict(_with_other_files(strict.load_toml(path), Path(path)), file=path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, file: Path | str | None = None) -> Fleet:
        """The fleet in plain tables, as in run.json. InputError as `load`."""
        return strict.validate(cls, strict.take_schema(data, file=file or "fleet"), file=file)

    def as_dict(self) -> dict[str, Any]:
        """All keys as plain tables that `from_dict` reads back."""
        return self.model_dump(exclude_none=True)

    def digest(self) -> str:
        """The digest of everything in the fleet."""
        return digest_of(self.as_dict())

    def require_present(self, *, file: Path | str | None = None) -> None:
        """InputError for an island without chips: they come with a delivery, nothing runs there."""
        for index, island in enumerate(self.island):
            if island.nodes == 0:
                day = min(one.date for one in self.delivery if one.island == island.name)
                fix = f"its first delivery is on {day}: until then leave it out of this file"
                message, key = "this island has no chips yet", f"island[{index}].nodes"
                raise InputError(message, file=file, key=key, value=0, fix=fix)

    def require_no_traffic(self, *, file: Path | str | None = None) -> None:
        """InputError for an island that serves people: only a plan knows when it is free."""
        for index, one in enumerate(self.traffic):
            fix = "atoll plan RECIPE FLEET --executor atoll --save plan.json, then train plan.json;"
            fix += f' or write hours = "22:00-07:00" for {one.island} instead of its [[traffic]]'
            message, key = "this island serves people, at hours that a plan finds", "island"
            key = f"traffic[{index}].{key}"
            raise InputError(message, file=file, key=key, value=one.island, fix=fix)

    def stock(self, day: date | None = None, *, which: Which = "mid") -> Fleet:
        """The fleet as it stands on a day: deliveries, withdrawals, leases until then are applied.

        Without a day nothing is applied. "low" counts what is delivered low and what is withdrawn
        high, "high" the other way round; "low" ends at no chips. Chips that fill no node are left
        out (`loose_chips`), and so are islands without a node. The answer has no deliveries or
        withdrawals left. InputError if more is withdrawn than is there, or if nothing is left.
        """
        chips = self._chips_on(day, which)
        islands = [
            island.model_copy(
                update={"nodes": chips[island.name] // island.chips_per_node, "lease": None}
            )
            for island in self.island
        ]
        left = [island for island in islands if island.nodes]
        if not left:
            raise self._nothing_left(day)
        _possible_shares(self.shares, left)
        return self.model_copy(update={"island": left, "delivery": [], "withdrawal": []})

    def change_days(self, after: date) -> list[date]:
        """The days after `after` on which chips arrive or leave, leases begin or end, sorted.

        InputError if more is withdrawn on any of them, or before, than is there then.
        """
        days = sorted({one.date for one in (*self.delivery, *self.withdrawal)})
        if days:
            self._chips_on(days[-1], "mid")
        leases = (one.lease for one in self.island if one.lease is not None)
        days += [day for lease in leases for day in (lease.start, lease.end) if day is not None]
        return sorted({day for day in days if day > after})

    def loose_chips(self, day: date | None = None, *, which: Which = "mid") -> dict[str, int]:
        """Island -> chips on a day that fill no node and are left out of `stock`; no zeros."""
        chips = self._chips_on(day, which)
        loose = {one.name: chips[one.name] % one.chips_per_node for one in self.island}
        return {name: number for name, number in loose.items() if number}

    def _chips_on(self, day: date | None, which: Which) -> dict[str, int]:
        """Island -> chips on a day, whole nodes or not. InputError as `stock`."""
        ends: dict[Which, Which] = {"low": "high", "mid": "mid", "high": "low"}
        chips = {island.name: island.num_chips for island in self.island}
        likely = dict(chips)
        changes: list[tuple[date, bool, int, Change]]
        changes = [(one.date, False, index, one) for index, one in enumerate(self.delivery)]
        changes += [(one.date, True, index, one) for index, one in enumerate(self.withdrawal)]
        for when, taken, index, change in sorted(changes, key=lambda entry: entry[:3]):
            if day is None or when > day:
                break
            name, mid = change.island, change.chips("mid")
            if not taken:
                chips[name] += change.chips(which)
                likely[name] += mid
                continue
            if mid > likely[name]:
                message = f"more chips than the {likely[name]} that island {name} has on {when}"
                key, fix = f"withdrawal[{index}].count", f"at most {likely[name]} (mid)"
                raise InputError(message, key=key, value=mid, fix=fix)
            chips[name] = max(0, chips[name] - change.chips(ends[which]))
            likely[name] -= mid
        gone = [one.name for one in self.island if day is not None and not one.is_there(day)]
        return chips | dict.fromkeys(gone, 0)

    def _nothing_left(self, day: date | None) -> InputError:
        """The error for a fleet without a node on a day."""
        message = "no island has a whole node" + ("" if day is None else f" on {day}")
        later = [one for one in self.delivery if day is None or one.date > day]
        coming = [one.date for one in later if one.chips("mid")]
        starts = (one.lease.start for one in self.island if one.lease is not None)
        leases = [one for one in starts if one is not None and day is not None and one > day]
        if leases and min(leases) < min(coming, default=date.max):
            fix = f"a lease begins on {min(leases)}: name that day or a later one"
        elif coming:
            fix = f"the first delivery is on {min(coming)}: name that day or a later one"
            if day is not None and min(coming) > min(one.date for one in self.delivery):
                fix = f"the next delivery is on {min(coming)}"
        elif later:
            fix = "no delivery is as likely as not (its probability, or its mid is 0)"
        else:
            fix = "all chips are withdrawn, or too few for a node of chips_per_node"
        return InputError(message, key="island", fix=fix)

    def path(self, a: str, b: str) -> tuple[float, float] | None:
        """(bytes a second, seconds of latency) from one site to another; None inside a site.

        The way with the greatest bandwidth, and among those the one with the least latency; see
        `paths`.
        """
        return next(iter(self.paths(a, b)), None)

    def paths(self, a: str, b: str) -> list[tuple[float, float]]:
        """All ways worth taking, as `atoll.site.paths`."""
        return paths(self.site, self.link, a, b)


def _with_other_files(data: dict[str, Any], file: Path) -> dict[str, Any]:
    """The tables of a fleet file with paths of chips from anywhere, and CSV files as numbers."""
    tables = {"island": with_chip_file, "traffic": with_day_file}
    found = dict(data)
    for name, resolved in tables.items():
        if isinstance(listed := data.get(name), list):
            found[name] = [resolved(table, file.parent) for table in listed]
    return found


def with_chip_file(table: Any, folder: Path) -> Any:
    """A table of an island or an offer with the path of its chip as it is from anywhere."""
    chip = table.get("chip") if isinstance(table, dict) else None
    if isinstance(chip, str) and facts.is_chip_file(chip) and "\0" not in chip:
        return {**table, "chip": str((folder / chip).resolve())}
    return table


def _possible_shares(shares: Shares, islands: list[Island]) -> None:
    """InputError for shares by which nobody would compute anything."""
    given = [island.share for island in islands]
    if all(share == 0 for share in given):
        message, key = "every island has share 0: nobody would compute", "island[0].share"
        raise InputError(message, key=key, value=given[0], fix="give one a share above 0")
    if shares.mode == "fixed" and None in given:
        key = f"island[{given.index(None)}].share"
        fix = 'write share = 1, or mode = "auto" in [shares]'
        raise InputError("fixed shares need a share for every island", key=key, fix=fix)
