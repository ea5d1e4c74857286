"""SkyPilot: a task for each island, beside the launch files of the engine that it starts.

SkyPilot finds and wires up machines; what runs on them is torchtitan's or Megatron-LM's script, the
first that can express the island's layout.
"""

from __future__ import annotations

from collections.abc import Mapping

from atoll.errors import InputError
from atoll.facts.engines import Tool, tools
from atoll.plan import Plan, PlanIsland
from atoll.planning.emit import megatron, torchtitan
from atoll.planning.emit.part import Part, check_make, islands_for, part_of, refuse_unless
from atoll.planning.emit.text import header, yaml

ENVIRONMENT = ("DATA", "TOKENIZER", "CHECKPOINTS")
"""What a person gives each task; SkyPilot refuses to start without."""

SETUP = "python -m pip install"


def files(plan: Plan, tool: str, name: str | None) -> dict[str, str]:
    """ISLAND.yaml and a folder ISLAND for each island that SkyPilot can find machines for."""
    fact = tools()[tool]
    out = {}
    for island in islands_for(plan, tool, name):
        index = plan.islands.index(island)
        check_make(fact, index, island)
        known = {**fact.names, **fact.labelled}
        why = f"{fact.version} has no name for this chip, and nobody labels nodes with one"
        fix = "chips it finds: " + ", ".join(sorted(known))
        refuse_unless(island.chip in known, index, "chip", why, value=island.chip, fix=fix)
        engine, part, texts = _engine(fact, plan, island)
        out[f"{island.name}.yaml"] = _task(tool, fact, engine, part)
        out.update({f"{island.name}/{path}": text for path, text in texts.items()})
    return {path: _marked(tool, text) for path, text in out.items()}


def _engine(fact: Tool, plan: Plan, island: PlanIsland) -> tuple[str, Part, dict[str, str]]:
    """The first engine that can express the island's layout, and its files."""
    refusals = []
    for engine in fact.words("engines"):
        try:
            part = part_of(plan, engine, island)
            if tools()[engine].family == "torchtitan":
                return engine, part, torchtitan.texts_of(part)
            return engine, part, {"run.sh": megatron.run_script(part)}
        except InputError as refusal:
            refusals.append((engine, refusal))
    (_, first), *rest = refusals
    first.fix = "\n".join(f"{engine}: {refusal.message}" for engine, refusal in rest) or first.fix
    raise first


def _marked(tool: str, text: str) -> str:
    """An engine's file with our tool in its first comment, so that the folder is one tool's."""
    for engine in tools():
        text = text.replace(f"--emit {engine}:", f"--emit {tool}:", 1)
    return text


def _task(tool: str, fact: Tool, engine: str, part: Part) -> str:
    """The task of one island."""
    chip = part.island.chip
    resources: dict[str, object] = {
        "accelerators": f"{fact.names.get(chip) or fact.labelled[chip]}:{part.per_node}"
    }
    start = f"sky launch {part.island.name}.yaml"
    wants = " ".join(f"--env {name}=..." for name in ENVIRONMENT)
    lines = [
        f"{part.title()}, run by {engine}.",
        f"For {fact.version}. Start it in this folder: {start} {wants}",
        *part.notes,
    ]
    if chip in fact.labelled:
        resources["infra"] = "kubernetes"
        label = fact.labelled[chip].lower()
        lines.append(f"No cloud rents this chip: nodes need skypilot.co/accelerator={label}.")
    home = {"MEGATRON": "$HOME/megatron"} if part.fact.repository else {}
    task: Mapping[str, object] = {
        "name": part.island.name.lower().replace("_", "-").replace(".", "-"),
        "workdir": ".",
        "num_nodes": part.nodes,
        "resources": resources,
        "envs": dict.fromkeys(ENVIRONMENT),
        "setup": _setup(part),
        "run": _run(part, home),
    }
    for key in task:
        assert fact.knows(key), f"{fact.version} has no {key}"
    assert all(fact.knows(f"resources.{key}") for key in resources)
    return header(tool, lines) + yaml(task)


def _setup(part: Part) -> str:
    """What each node needs before it starts."""
    if not part.fact.repository:
        return f"set -e\n{SETUP} torch {' '.join(part.fact.requires)}\n"
    fetch = f"git -C ~/megatron fetch --depth 1 {part.fact.repository} {part.fact.commit}"
    return (
        f"set -e\ngit init -q ~/megatron\n{fetch}\ngit -C ~/megatron checkout -q FETCH_HEAD\n"
        f"{SETUP} torch transformers\n"
        "# Add resources.image_id for an image that has Transformer Engine and flash attention.\n"
    )


def _run(part: Part, home: Mapping[str, str]) -> str:
    """What each node runs; SkyPilot tells it the addresses and its rank."""
    lines = [
        'export MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
        "export NODE_RANK=$SKYPILOT_NODE_RANK",
        "export NNODES=$SKYPILOT_NUM_NODES",
        f"export NPROC_PER_NODE={part.per_node}",
        *(f'export {name}="{value}"' for name, value in home.items()),
        f"bash {part.island.name}/run.sh",
    ]
    return "\n".join(lines) + "\n"
