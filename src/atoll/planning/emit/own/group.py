"""Group: one island of a fleet as launchers of Atoll's own trainer see it: nodes and processes.

Also the plan that such a run is started with: an island of several nodes is one island a node
there, since the processes of an island share a node. That changes no bit of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atoll import facts
from atoll.errors import InputError
from atoll.facts import Chip
from atoll.facts.launchers import launchers
from atoll.fleet import Fleet, Island
from atoll.plan import Plan, PlanIsland
from atoll.planning.emit.part import refuse_unless
from atoll.site import HERE

HOST = "cpu"
"""The stack whose islands are one process, with their lanes as threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """An island that a launcher starts: `lanes` in all, at most `per_node` of them on a node.

    A lane of an accelerator is a process, the lanes of a host's island are threads of one process
    a node. `needs` is what the launcher calls a node's devices; empty for none.
    """

    island: PlanIsland
    chip: Chip
    lanes: int
    per_node: int
    needs: str = ""

    @property
    def name(self) -> str:
        """The island's name in the fleet."""
        return self.island.name

    @property
    def nodes(self) -> int:
        """The number of nodes, the last one perhaps not full."""
        return math.ceil(self.lanes / self.per_node)

    @property
    def on_host(self) -> bool:
        """Whether its lanes are threads of one process a node."""
        return self.chip.backend == HOST

    @property
    def tasks_per_node(self) -> int:
        """Processes of a full node."""
        return 1 if self.on_host else self.per_node

    @property
    def tasks(self) -> int:
        """Processes of all nodes."""
        return self.nodes if self.on_host else self.lanes

    @property
    def task_cpus(self) -> int:
        """Cores of one process."""
        return self.island.threads * (self.per_node if self.on_host else 1)

    @property
    def devices(self) -> int:
        """Accelerators that are used of a full node; 0 on a host."""
        return 0 if self.on_host else self.per_node

    @property
    def site(self) -> str:
        """The name of its site; empty where the fleet names none."""
        return "" if self.island.site == HERE else self.island.site

    def told(self) -> str:
        """What it is, for a comment."""
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        if self.on_host:
            lanes = "1 lane" if self.per_node == 1 else f"{self.per_node} lanes"
            return f"{nodes} of {lanes}, {self.chip.name}, {self.island.threads} threads a lane"
        return f"{nodes} of {self.per_node} devices, {self.chip.name}"

    def by_node(self) -> list[PlanIsland]:
        """The island as one island a node."""
        out = []
        for node in range(self.nodes):
            lanes = min(self.per_node, self.lanes - node * self.per_node)
            share = self.island.share
            changes = {
                "name": self.name if self.nodes == 1 else f"{self.name}-{node}",
                "devices": max(lanes, 1),
                "layout": self.island.layout.model_copy(update={"dp": lanes}),
                "share": None if share is None else share * lanes / self.lanes,
            }
            out.append(self.island.model_copy(update=changes))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a launcher's files are written from.

    `groups` are the islands that it starts, `others` the names of those that somebody else does.
    """

    launcher: str
    plan: Plan
    groups: tuple[Group, ...]
    others: tuple[str, ...]

    @property
    def recipe_name(self) -> str:
        """The name of the recipe."""
        return str(self.plan.recipe.get("name", "a run"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Files by name; what a person must replace in them; the commands, in order; remarks."""

    files: dict[str, str]
    replace: tuple[str, ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()


def order_of(plan: Plan, fleet: Fleet, launcher: str, *, island: str | None, dials: bool) -> Order:
    """What a launcher starts of a plan. InputError for what it, or Atoll's trainer, cannot do.

    With `dials` its islands dial the pilot; otherwise the pilot's own crew starts them. An island
    with start = "dial-in" is somebody else's, unless `island` names it.
    """
    plan.require_executor()
    fleets = {one.name: one for one in fleet.island}
    groups, others, islands = list[Group](), list[Group](), list[PlanIsland]()
    for index, one in enumerate(plan.islands):
        mine = one.start == "here" or one.name == island
        group = _group(index, one, fleets[one.name], launcher if mine else None)
        (groups if mine else others).append(group)
        start = "dial-in" if dials or one.start == "dial-in" else "here"
        islands += [part.model_copy(update={"start": start}) for part in group.by_node()]
    if not groups:
        fix = f"leave start out for islands that {launchers()[launcher].version} shall start"
        message = "every island of the plan dials in: nothing is left to start"
        raise InputError(message, key="island[0].start", value="dial-in", fix=fix)
    _require_unlike_names(islands)
    short = Plan(
        recipe=plan.recipe,
        fleet_digest=plan.fleet_digest,
        contract=plan.contract,
        islands=islands,
        shares=plan.shares,
        exchange={"every": plan.exchange.get("every", "step")},
    )
    return Order(
        launcher=launcher,
        plan=short,
        groups=tuple(g for g in groups if island in (None, g.name)),
        others=tuple(group.name for group in others),
    )


def _group(index: int, island: PlanIsland, place: Island, launcher: str | None) -> Group:
    """One island; without a launcher nobody asks what its devices are called."""
    chip, needs = facts.chip(island.chip), ""
    lanes, per_node = island.layout.dp, place.chips_per_node * chip.devices
    if place.lanes is not None:  # the fleet fixes them
        lanes, per_node = place.lanes, math.ceil(place.lanes / place.nodes)
    if launcher is not None and chip.backend != HOST:
        devices = launchers()[launcher].devices
        why = f"what {launchers()[launcher].version} calls this chip is not known"
        fix = f"chips of {', '.join(devices)}; or start = 'dial-in' (docs/islands-elsewhere.md)"
        known = chip.backend in devices or not devices
        refuse_unless(known, index, "chip", why, value=island.chip, fix=fix)
        needs = devices.get(chip.backend, "")
    layout = island.layout.model_copy(update={"dp": lanes})
    return Group(
        island=island.model_copy(update={"layout": layout}),
        chip=chip,
        lanes=lanes,
        per_node=min(per_node, lanes),
        needs=needs,
    )


def _require_unlike_names(islands: Sequence[PlanIsland]) -> None:
    """InputError where an island of several nodes, one a node, has another island's name."""
    seen: set[str] = set()
    for island in islands:
        if island.name in seen:
            message = "an island a node: there is another island of this name"
            fix = "rename one of them in the fleet"
            raise InputError(message, key="island.name", value=island.name, fix=fix)
        seen.add(island.name)


def require_telling_sites(order: Order) -> None:
    """InputError where a cluster could put an island on another chip that it calls the same."""
    for one in order.groups:
        for other in order.groups:
            alike = one.needs and one.needs == other.needs and one.chip.name != other.chip.name
            if not alike or (one.site and other.site and one.site != other.site):
                continue
            index = next(i for i, g in enumerate(order.groups) if g is other)
            why = f"{one.name} and {other.name} both ask for {one.needs} and are unlike chips"
            fix = "give each a [[site]] of its own: its nodes then have a resource site:NAME"
            refuse_unless(False, index, "site", why, value=other.island.site, fix=fix)


def remarks(order: Order) -> tuple[str, ...]:
    """What a person should know beside the files."""
    out = ["Relative paths in the recipe (a corpus of your own) start at the folder of plan.json."]
    for group in order.groups:
        if group.nodes > 1:
            last = f"{group.name}-{group.nodes - 1}"
            out.append(
                f"Island {group.name} is {group.nodes} islands, one a node: {group.name}-0 to "
                f"{last}. No bit changes."
            )
        if facts.is_chip_file(group.island.chip):
            out.append(f"Every node of {group.name} needs the file {group.island.chip}.")
    if order.others:
        out.append(f"Not started by these files: {', '.join(order.others)} (start = dial-in).")
    return tuple(out)
