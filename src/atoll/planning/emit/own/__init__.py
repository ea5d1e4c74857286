"""Own: files by which launchers of clusters start Atoll's own trainer for a plan.

The launchers find machines and start commands; what trains is `atoll train` and `atoll island`.
Files for other people's trainers are the modules beside this package.
"""

from __future__ import annotations

from collections.abc import Mapping

from atoll.digest import canonical_json
from atoll.errors import InputError
from atoll.facts.launchers import Launcher, launchers
from atoll.fleet import Fleet
from atoll.plan import Plan
from atoll.planning.emit.own import kuberay, ray, skypilot, slurm
from atoll.planning.emit.own.group import Written, order_of

LAUNCHERS: Mapping[str, Launcher] = launchers()
"""The launchers by name: version, why, what files."""

PLAN = "plan.json"

_ONE_FILE = {"ray": ray.files, "kuberay": kuberay.files}
_JOBS = {"slurm": slurm.files, "skypilot": skypilot.files}


def written(plan: Plan, fleet: Fleet, launcher: str, *, island: str | None = None) -> Written:
    """The files of a launcher for the islands of a plan, and how to start them.

    `fleet` is the stock that was planned for: it knows the nodes. With `island` only that one's
    file, for a run whose pilot somebody else starts. InputError for what cannot be.
    """
    if launcher in _ONE_FILE:
        if island is not None:
            fix = "leave --island out, or --emit slurm"
            message = f"one file of {LAUNCHERS[launcher].version} holds all islands"
            raise InputError(message, key="--island", value=island, fix=fix)
        order = order_of(plan, fleet, launcher, island=None, dials=False)
        made = _ONE_FILE[launcher](order)
    else:
        order = order_of(plan, fleet, launcher, island=island, dials=True)
        made = _JOBS[launcher](order, alone=island is not None)
    if island is not None:
        return made
    text = canonical_json(order.plan.as_dict()).decode("utf-8") + "\n"
    return Written(
        files={**made.files, PLAN: text},
        replace=made.replace,
        commands=made.commands,
        notes=made.notes,
    )
