"""Ray: the file of its cluster launcher for machines with SSH, and the pilot's script.

The pilot's script is KubeRay's too: it waits for the nodes, then trains on them.
"""

from __future__ import annotations

import ipaddress
import json
import textwrap

from atoll.facts.launchers import launchers
from atoll.planning.emit.own.group import Group, Order, Written, remarks, require_telling_sites
from atoll.planning.emit.text import header

FIRST = ipaddress.ip_address("10.0.0.1")
"""What stands for the head's address; the workers' follow it."""
HOME = "/shared/atoll"
LAUNCH = "/shared/launch"
BIN = f"{HOME}/.venv/bin"
START = "ulimit -n 65536;"


def files(order: Order) -> Written:
    """The launcher's file and the pilot's script."""
    require_telling_sites(order)
    file = "{dir}/ray-cluster.yaml"
    return Written(
        files={"ray-cluster.yaml": _cluster(order), "pilot.sh": pilot(order, folder=LAUNCH)},
        replace=_replace(),
        commands=(
            f"ray up {file}",
            f"ray rsync-up {file} {{dir}}/ {LAUNCH}/",
            f"ray exec {file} 'PATH={BIN}:$PATH bash {LAUNCH}/pilot.sh'",
        ),
        notes=remarks(order),
    )


def _replace() -> tuple[str, ...]:
    return (
        "10.0.0.1 and the addresses after it, wherever they stand: the head, the islands' nodes",
        "ssh_user, ssh_private_key: who may log in on all of them",
        f"/shared: a file system that all mount; {HOME}/.venv: the environment there, with Ray",
    )


def resources(launcher: str, group: Group) -> dict[str, int]:
    """What a node of the island offers beside what Ray counts by itself."""
    fact, ray = launchers()[launcher], launchers()["ray"]
    out = {}
    if group.devices and group.chip.backend not in fact.counted:
        out[ray.devices[group.chip.backend]] = group.devices
    if group.site:
        out[f"site:{group.site}"] = 1
    return out


def pilot(order: Order, *, folder: str) -> str:
    """The script that waits until the cluster's nodes are there, and trains on them."""
    nodes = 1 + sum(group.nodes for group in order.groups)
    lines = [
        f'the pilot of "{order.recipe_name}", on the head node of the cluster.',
        f"It waits for {nodes} nodes, the head among them: a run needs what its islands ask for.",
        "The same command goes on with a run that was interrupted.",
    ]
    count = "import ray; ray.init('auto', log_to_driver=False)"
    count += "; print(sum(n['Alive'] for n in ray.nodes()))"
    return (
        "#!/bin/bash\n"
        + header(order.launcher, lines)
        + "set -euo pipefail\n"
        + "RUN=${RUN:-/shared/run} CACHE=${CACHE:-/shared/cache}\n"
        + f"PLAN=${{PLAN:-{folder}/plan.json}}\n\n"
        + f'count="{count}"\n'
        + f'until [ "$(python -c "$count" | tail -n 1)" -ge {nodes} ]; do sleep 2; done\n'
        + 'exec atoll train "$PLAN" --run "$RUN" --cache "$CACHE" --engine ray\n'
    )


def _cluster(order: Order) -> str:
    """The launcher's file."""
    nodes = [group for group in order.groups for _ in range(group.nodes)]
    addresses = [str(FIRST + 1 + index) for index in range(len(nodes))]
    width = max(map(len, addresses))
    workers = "".join(
        f"    - {address:<{width}}  # island {group.name}: {group.told()}\n"
        for address, group in zip(addresses, nodes, strict=True)
    )
    lines = [
        f'a Ray cluster for "{order.recipe_name}", by Ray\'s cluster launcher.',
        f"For {launchers()[order.launcher].version}. Replace, here and below:",
        *(f"- {line}" for line in _replace()),
        "The head runs the pilot and is no island. All nodes run one Python, one Ray, one Atoll.",
    ]
    head = (
        f"{START} {BIN}/ray start --head --port=6379 --num-cpus=0 --disable-usage-stats "
        "--autoscaling-config=~/ray_bootstrap_config.yaml"
    )
    return header(order.launcher, lines) + (
        f"cluster_name: atoll\nmin_workers: {len(nodes)}\nmax_workers: {len(nodes)}\n"
        f"provider:\n  type: local\n  head_ip: {FIRST}\n  worker_ips:\n{workers}"
        "auth:\n  ssh_user: train\n  ssh_private_key: ~/.ssh/id_ed25519\n"
        "setup_commands: []\nhead_setup_commands: []\nworker_setup_commands: []\n"
        f"head_start_ray_commands:\n  - {BIN}/ray stop\n{_folded(head)}"
        f"worker_start_ray_commands:\n  - {BIN}/ray stop\n"
        f"{_folded(_worker(order, nodes, addresses))}"
    )


def _worker(order: Order, nodes: list[Group], addresses: list[str]) -> str:
    """The command that starts Ray on a node, with what its island's node offers."""
    start = f"{BIN}/ray start --address=$RAY_HEAD_IP:6379 --disable-usage-stats"
    offers: dict[str, list[str]] = {}
    for group, address in zip(nodes, addresses, strict=True):
        offers.setdefault(json.dumps(resources(order.launcher, group)), []).append(address)
    if len(offers) == 1:
        offer = next(iter(offers))
        return f"{START} {start}" + ("" if offer == "{}" else f" --resources='{offer}'")
    cases = " ".join(
        "|".join(f'*" {address} "*' for address in found) + f") HAS='{offer}' ;;"
        for offer, found in offers.items()
    )
    return f'{START} case " $(hostname -I) " in {cases} esac; {start} --resources="$HAS"'


def _folded(command: str) -> str:
    """One entry of a list of commands as YAML, folded: the lines are joined by single spaces."""
    lines = textwrap.wrap(command, 92, break_long_words=False, break_on_hyphens=False)
    return "  - >-\n" + "".join(f"    {line}\n" for line in lines)
