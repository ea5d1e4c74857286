"""SkyPilot: a task for the pilot and a task for every island, whose processes dial it; no Ray."""

from __future__ import annotations

import math

from atoll.facts.engines import tools
from atoll.planning.emit.own import shell
from atoll.planning.emit.own.group import Group, Order, Written, remarks
from atoll.planning.emit.part import refuse_unless
from atoll.planning.emit.text import header, yaml

VOLUME = {"/shared": "atoll"}
SETUP = 'set -e\npython -m pip install "$ATOLL"\n'
REPLACE = (
    "ATOLL: what pip installs on every node, such as a wheel; an image goes to resources.image_id",
    "volumes: a volume of SkyPilot that all nodes mount at /shared (sky volumes apply)",
)


def files(order: Order, *, alone: bool) -> Written:
    """The tasks; `alone` leaves out what is not of the one island."""
    tasks = {
        f"island-{group.name}.yaml": _island(order, index, group)
        for index, group in enumerate(order.groups)
    }
    start = "sky launch --detach-run --yes"
    commands = [f"{start} -c {_cluster(g)} {{dir}}/island-{g.name}.yaml" for g in order.groups]
    if alone:
        return Written(files=tasks, replace=REPLACE, commands=tuple(commands))
    return Written(
        files={"pilot.yaml": _pilot(order), **tasks},
        replace=REPLACE,
        commands=(f"cd {{dir}} && {start} -c atoll-pilot pilot.yaml", *commands),
        notes=(
            *remarks(order),
            "Nodes reach one another by their own addresses: one cluster, or one cloud's network.",
        ),
    )


def _cluster(group: Group) -> str:
    """The name of the island's cluster."""
    return "atoll-" + group.name.lower().replace("_", "-").replace(".", "-")


def _variables() -> dict[str, str]:
    return {"RUN": "/shared/run", "CACHE": "/shared/cache", "ATOLL": "atoll", "LAUNCH": ""}


def _pilot(order: Order) -> str:
    fact = tools()[order.launcher]
    lines = [
        f'the pilot of "{order.recipe_name}"; start it before the islands, in this folder.',
        f"For {fact.version}. Replace:",
        *(f"- {line}" for line in REPLACE),
    ]
    run = 'ADDRESS=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
    task: dict[str, object] = {
        "name": "atoll-pilot",
        "envs": _variables(),
        "volumes": VOLUME,
        "workdir": ".",
        "num_nodes": 1,
        "resources": {"cpus": "2+"},
        "setup": SETUP,
        "run": run + shell.pilot("plan.json", '"$ADDRESS:0"'),
    }
    return header(order.launcher, lines) + yaml(task)


def _island(order: Order, index: int, group: Group) -> str:
    """The task of one island. InputError for a chip that SkyPilot has no name for."""
    fact = tools()[order.launcher]
    lines = [
        f'island "{group.name}" of "{order.recipe_name}": {group.told()}.',
        f"For {fact.version}. Replace:",
        *(f"- {line}" for line in REPLACE),
    ]
    resources: dict[str, object] = {"cpus": f"{group.task_cpus}+"}
    if group.devices:
        known, chip = {**fact.names, **fact.labelled}, group.chip.name
        why = f"{fact.version} has no name for this chip, and nobody labels nodes with one"
        fix = "chips it finds: " + ", ".join(sorted(known))
        refuse_unless(chip in known, index, "chip", why, value=chip, fix=fix)
        chips = math.ceil(group.devices / group.chip.devices)
        resources = {"accelerators": f"{known[chip]}:{chips}"}
        if chip in fact.labelled:
            resources["infra"] = "kubernetes"
            label = fact.labelled[chip].lower()
            lines.append(f"No cloud rents this chip: nodes need skypilot.co/accelerator={label}.")
    run = (
        f"{shell.process(group)}"
        f"FIRST=$((SKYPILOT_NODE_RANK * {group.tasks_per_node}))\n"
        f"for ((i = 0; i < {group.tasks_per_node} && FIRST + i < {group.tasks}; i++)); do\n"
        '  process "$((FIRST + i))" "$i" &\ndone\nwait\n'
    )
    task: dict[str, object] = {
        "name": _cluster(group),
        "envs": {**_variables(), "WAIT": "3600"},
        "volumes": VOLUME,
        "num_nodes": group.nodes,
        "resources": resources,
        "setup": SETUP,
        "run": run,
    }
    for key in task:
        assert fact.knows(key), f"{fact.version} has no {key}"
    return header(order.launcher, lines) + yaml(task)
