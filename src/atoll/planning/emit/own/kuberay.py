"""KubeRay: a RayJob with a group of workers for every island; the pilot runs in its head pod."""

from __future__ import annotations

import json
import re

from atoll.facts.launchers import launchers
from atoll.planning.emit.own import ray
from atoll.planning.emit.own.group import Group, Order, Written, remarks, require_telling_sites
from atoll.planning.emit.text import header

LAUNCH = "/launch"
"""Where the config map with the plan and the pilot's script is mounted."""


def files(order: Order) -> Written:
    """The job, and what its config map holds."""
    require_telling_sites(order)
    made = "kubectl create configmap atoll-launch"
    return Written(
        files={"kuberay.yaml": _job(order), "pilot.sh": ray.pilot(order, folder=LAUNCH)},
        replace=_replace(order),
        commands=(
            f"{made} --from-file={{dir}}/plan.json --from-file={{dir}}/pilot.sh",
            "kubectl apply -f {dir}/kuberay.yaml",
        ),
        notes=remarks(order),
    )


def _stacks(order: Order) -> list[str]:
    """The stacks of the islands; with one all pods run the same image."""
    return list(dict.fromkeys(group.chip.backend for group in order.groups))


def _replace(order: Order) -> tuple[str, ...]:
    images = ["image"] if len(_stacks(order)) == 1 else ["image", *map(_image, _stacks(order))]
    version = launchers()[order.launcher].version
    return (
        f"{', '.join(images)}: with Atoll, {version} and one Python in all of them",
        "claim: one ReadWriteMany volume with the run and the token shards, mounted at /shared",
        "memory: of one pod of an island",
    )


def _image(stack: str) -> str:
    return f"image-{stack}"


def _job(order: Order) -> str:
    """The RayJob. What a person replaces stands in its annotations, which name it for the rest."""
    version = launchers()[order.launcher].version.partition(" ")[2]
    stacks = _stacks(order)
    images = ["image"] if len(stacks) == 1 else ["image", *map(_image, stacks)]
    lines = [
        f'a RayJob for "{order.recipe_name}": a cluster that trains and goes away.',
        "Replace, in the annotations below:",
        *(f"- {line}" for line in _replace(order)),
        "The config map atoll-launch holds plan.json and pilot.sh.",
    ]
    given = "".join(f"    atoll/{n}: &{n} registry.example/atoll:ray-{version}\n" for n in images)
    head = _pod("ray-head", "image", {"cpu": '"2"', "memory": "8Gi"}, launch=True)
    names = _group_names(order)
    workers = "".join(
        _workers(order, group, name, "image" if len(stacks) == 1 else _image(group.chip.backend))
        for group, name in zip(order.groups, names, strict=True)
    )
    return header(order.launcher, lines) + (
        "apiVersion: ray.io/v1\nkind: RayJob\nmetadata:\n  name: atoll\n  annotations:\n"
        f"{given}    atoll/claim: &claim atoll\n    atoll/memory: &memory 64Gi\n"
        f"spec:\n  entrypoint: bash {LAUNCH}/pilot.sh\n"
        "  backoffLimit: 3  # the same command goes on from the last checkpoint\n"
        "  shutdownAfterJobFinishes: true\n"
        f'  rayClusterSpec:\n    rayVersion: "{version}"\n    headGroupSpec:\n'
        f'      rayStartParams:\n        num-cpus: "0"\n{head}    workerGroupSpecs:\n{workers}'
    )


def _workers(order: Order, group: Group, name: str, image: str) -> str:
    """The pods of one island."""
    limits = {"cpu": f'"{group.tasks_per_node * group.task_cpus}"', "memory": "*memory"}
    if group.devices:
        limits[group.needs] = f'"{group.devices}"'
    offers = ray.resources(order.launcher, group)
    lines = [
        f"- groupName: {name}  # island {group.name}: {group.told()}",
        f"  replicas: {group.nodes}",
        f"  minReplicas: {group.nodes}",
        f"  maxReplicas: {group.nodes}",
        "  rayStartParams:" + ("" if offers else " {}"),
    ]
    if offers:
        quoted = json.dumps(offers).replace('"', '\\"')
        lines.append(f"    resources: '\"{quoted}\"'")
    text = "".join(f"      {line}\n" for line in lines)
    return text + _pod("ray-worker", image, limits, launch=False)


def _pod(container: str, image: str, limits: dict[str, str], *, launch: bool) -> str:
    """The template of a pod, indented for a group."""
    mounts = [("shared", "/shared")] + ([("launch", LAUNCH)] if launch else [])
    pairs = ", ".join(f"{key}: {value}" for key, value in limits.items())
    lines = [
        "template:",
        "  spec:",
        "    containers:",
        f"      - name: {container}",
        f"        image: *{image}",
        "        resources:",
        f"          limits: {{{pairs}}}",
        "        volumeMounts:",
        *(f"          - {{name: {name}, mountPath: {path}}}" for name, path in mounts),
        "    volumes:",
        "      - name: shared",
        "        persistentVolumeClaim: {claimName: *claim}",
    ]
    if launch:
        lines += ["      - name: launch", "        configMap: {name: atoll-launch}"]
    indent = " " * (6 if launch else 8)
    return "".join(f"{indent}{line}\n" for line in lines)


def _group_names(order: Order) -> list[str]:
    """Names that Kubernetes takes, each once."""
    out: list[str] = []
    for index, group in enumerate(order.groups):
        name = re.sub(r"[^a-z0-9]+", "-", group.name.lower()).strip("-")
        out.append(name if name not in out else f"{name}-{index}")
    return out
