"""Slurm: a job for the pilot and a job for every island, whose processes dial it; no Ray."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from atoll.planning.emit.own import shell
from atoll.planning.emit.own.group import Group, Order, Written, remarks
from atoll.planning.emit.text import header

KEPT = ("--requeue", "--open-mode=append")


def files(order: Order, *, alone: bool) -> Written:
    """The jobs; `alone` leaves out what is not of the one island."""
    jobs = {f"island-{group.name}.sh": _island(order, group) for group in order.groups}
    here = "{dir}"
    if alone:
        commands = tuple(f"RUN=/shared/run sbatch {here}/{name}" for name in jobs)
        return Written(files=jobs, replace=shell.replaced("RUN", "LAUNCH"), commands=commands)
    return Written(
        files={
            "submit.sh": _submit(order, list(jobs)),
            "pilot.sh": _pilot(order),
            **jobs,
        },
        replace=shell.replaced("RUN", "CACHE", "LAUNCH"),
        commands=(f"bash {here}/submit.sh  # options are handed on to every sbatch",),
        notes=(
            *remarks(order),
            "The folder lies on a file system that all nodes share.",
        ),
    )


def _submit(order: Order, jobs: Sequence[str]) -> str:
    lines = [
        f'the pilot and the islands of "{order.recipe_name}", all at once.',
        "bash submit.sh -A account: options go to every sbatch; write others on its line below.",
        "The folder of this file lies on a file system that all nodes share; RUN and CACHE too.",
    ]
    out = "#!/bin/bash\n" + header(order.launcher, lines) + "set -euo pipefail\n"
    out += shell.settings("RUN", "CACHE", "LAUNCH")
    out += 'here=$(cd "$(dirname "$0")" && pwd)\n'
    out += "PLAN=$here/plan.json\nexport RUN CACHE LAUNCH PLAN\n\n"
    out += 'mkdir -p "$(dirname "$RUN")"\nrm -f "$RUN.ended"\n'
    return out + "".join(
        f'sbatch "$@" "$here"/{shlex.quote(name)}\n' for name in ("pilot.sh", *jobs)
    )


def _pilot(order: Order) -> str:
    lines = [
        f'the pilot of "{order.recipe_name}".',
        "It hands out work and holds no tensors; any node that the islands can dial will do.",
        "Before Slurm ends the job it asks: the pilot saves, and the requeued job goes on.",
    ]
    options = ("--job-name=atoll-pilot", "--nodes=1", "--ntasks=1", "--cpus-per-task=2", *KEPT)
    out = _head(order, lines, (*options, "--signal=B:TERM@120"))
    out += shell.settings("RUN", "CACHE", "PLAN", "LAUNCH")
    out += "ADDRESS=${ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}\n\n"
    return out + shell.pilot('"$PLAN"', '"$ADDRESS:0"')


def _island(order: Order, group: Group) -> str:
    lines = [
        f'island "{group.name}" of "{order.recipe_name}": {group.told()}.',
        "Its processes dial the pilot at the address in RUN/pilot.json, again when they have died.",
    ]
    options = [
        f"--job-name=atoll-{group.name}",
        f"--nodes={group.nodes}",
        f"--ntasks={group.tasks}",
        f"--ntasks-per-node={group.tasks_per_node}",
        f"--cpus-per-task={group.task_cpus}",
    ]
    if group.devices:
        options.append(group.needs.format(group.devices))
        lines.append(
            "Every task must see all devices of its node: it takes the one of its local number."
        )
    out = _head(order, lines, (*options, "--no-kill", *KEPT))
    out += shell.settings("RUN", "LAUNCH", "WAIT")
    out += "export RUN LAUNCH WAIT\n\n"
    out += "read -r -d '' PROCESS << 'END' || true\n" + shell.process(group)
    out += 'process "$SLURM_PROCID" "$SLURM_LOCALID"\nEND\n'
    return out + 'srun --no-kill --kill-on-bad-exit=0 --wait=0 bash -c "$PROCESS"\n'


def _head(order: Order, lines: Sequence[str], options: Sequence[str]) -> str:
    """What a job begins with: what it is, its options."""
    marks = "".join(f"#SBATCH {option}\n" for option in options)
    return "#!/bin/bash\n" + header(order.launcher, lines) + marks + "set -euo pipefail\n"
