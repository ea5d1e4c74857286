"""Shell: what pilots and dialling islands run under any launcher; no launcher's own words.

A pilot leaves RUN.ended when the run is over, so that islands know whether another one comes.
"""

from __future__ import annotations

import shlex

from atoll.planning.emit.own.group import Group

SETTINGS = {
    "RUN": ("/shared/run", "the run's folder, on a file system that all nodes share"),
    "CACHE": ("/shared/cache", "where token shards are kept, there too"),
    "PLAN": ("/shared/launch/plan.json", "the plan beside this file, there too"),
    "LAUNCH": ("", "what goes before atoll, such as: apptainer exec vendor.sif"),
    "WAIT": ("3600", "seconds that an island waits for a pilot"),
}
"""Shell variables that a person sets: what stands for them, and what they hold."""


def settings(*names: str) -> str:
    """Lines that give variables their placeholders unless the environment has them."""
    lines = []
    for name in names:
        value, what = SETTINGS[name]
        assignment = f"{name}=${{{name}:-{value}}}"
        lines.append(f"{assignment:<41} # {what}\n")
    return "".join(lines)


def replaced(*names: str) -> tuple[str, ...]:
    """What a person must replace, for a note."""
    return tuple(f"{name}: {SETTINGS[name][1]}" for name in names)


def pilot(plan: str, address: str) -> str:
    """The pilot, to its end; `plan` and `address` are words of shell.

    A signal to end is handed on: the pilot saves, and a later one goes on with the run.
    """
    return f"""\
mkdir -p "$(dirname "$RUN")"
rm -f "$RUN/pilot.json" "$RUN.ended"  # of a pilot before this one
$LAUNCH atoll train {plan} --run "$RUN" --cache "$CACHE" --listen {address} &
PILOT=$! ASKED="" code=0
trap 'ASKED=1; kill -TERM $PILOT' TERM
wait "$PILOT" || code=$?
while kill -0 "$PILOT" 2> /dev/null; do  # a signal has ended only the waiting
  code=0
  wait "$PILOT" || code=$?
done
[ -n "$ASKED" ] || echo "$code" > "$RUN.ended"
exit "$code"
"""


def process(group: Group) -> str:
    """A function `process NUMBER DEVICE`: one process of an island, until the run has ended."""
    names, lanes = _names(group)
    settings = [f"{key}={value}" for key, value in group.chip.environment.items()]
    before = shlex.join(["env", *settings]) + " " if settings else ""
    return f"""\
# Dial the pilot as process $1 with device $2, again after every end, until the run has ended.
process() {{
  local {names} {lanes}
  local begun=$SECONDS tried at
  while [ $((SECONDS - begun)) -lt "$WAIT" ]; do
    if [ -s "$RUN/pilot.json" ]; then
      tried=$SECONDS
      at=$(sed -E 's/.*"address": "([^"]+)".*/\\1/' "$RUN/pilot.json")
      if $LAUNCH {before}atoll island \\
        --pilot "$at" --token-file "$RUN/token" --name "$name" --device-index "$2" --patience 60 \\
        --chip {shlex.quote(group.island.chip)} --lanes "$lanes" --threads {group.island.threads} \\
        || [ $((SECONDS - tried)) -gt 60 ]
      then begun=$SECONDS; fi
    elif [ -e "$RUN.ended" ]; then
      return
    fi
    sleep 2
  done
}}
"""


def _names(group: Group) -> tuple[str, str]:
    """Assignments of `name` and `lanes` for the process of number $1.

    The members of an island are called as `training.crewing.members_of` calls them.
    """
    per, last = group.per_node, group.lanes % group.per_node
    if group.on_host:
        name = group.name if group.nodes == 1 else f"{group.name}-$1"
        lanes = str(per)
        if last:
            lanes = f"$(($1 < {group.nodes - 1} ? {per} : {last}))"
        return f"name={name}", f"lanes={lanes}"
    if group.nodes == 1:
        name = group.name if per == 1 else f"{group.name}.$1"
    elif per == 1:
        name = f"{group.name}-$1"
    else:
        name = f"{group.name}-$(($1 / {per})).$(($1 % {per}))"
        if last == 1:  # a node with one process: it has no number
            alone = group.name + f"-{group.nodes - 1}"
            name = f"$([ $1 -lt {group.lanes - 1} ] && echo {name} || echo {alone})"
    return f"name={name}", "lanes=1"
