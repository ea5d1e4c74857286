"""Script: the shell script that starts one island's processes on each of its nodes.

It checks what a person must set, and that as many processes start as the layout has. It knows no
tool's flags.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from atoll.planning.emit.part import Part
from atoll.planning.emit.text import header

NEEDED = {
    "CHECKPOINTS": "the absolute path of a folder for checkpoints, the same for all nodes",
    "TOKENIZER": "the absolute path of a folder with a Hugging Face tokenizer",
}
"""Shell variables that every script asks for, and what they hold; DATA differs by tool.

No text holds an apostrophe: the shell would read it as the begin of a quotation.
"""


QUOTED = '"'
"""How a value begins that is written as it is, shell variables and all."""


def script(
    part: Part,
    *,
    needed: Mapping[str, str],
    environment: Mapping[str, str],
    command: Sequence[str],
    arguments: Sequence[tuple[str, Sequence[str]]],
    directory: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The text of run.sh.

    `command` follows torchrun's own options; `arguments` are named groups of words, which may hold
    shell variables and are written as they are. `directory` is where the command runs.
    """
    lines = [
        f"{part.title()}: start this on each of its nodes.",
        f"For {part.fact.version}.",
        *part.notes,
        *notes,
        "Set NODE_RANK on each node (0 is MASTER_ADDR), and what the lines below ask for.",
        "Set NNODES and NPROC_PER_NODE together where your nodes differ.",
    ]
    world = part.layout.num_devices
    out = "#!/usr/bin/env bash\n" + header(part.tool, lines) + "set -euo pipefail\n"
    out += 'here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)\n\n'
    out += "".join(ask(name, what) for name, what in {**needed, **NEEDED}.items())
    out += (
        f"\nNNODES=${{NNODES:-{part.nodes}}}\nNPROC_PER_NODE=${{NPROC_PER_NODE:-{part.per_node}}}\n"
    )
    out += "MASTER_PORT=${MASTER_PORT:-29500}\n"
    out += 'if [ "$NNODES" -gt 1 ]; then\n'
    out += "  " + ask("MASTER_ADDR", "the address of node 0")
    out += "  " + ask("NODE_RANK", "the number of this node, from 0") + "fi\n"
    out += "MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}\nNODE_RANK=${NODE_RANK:-0}\n"
    out += f'if [ "$((NNODES * NPROC_PER_NODE))" -ne {world} ]; then\n'
    out += f'  echo "the layout has {world} processes, not $NNODES x $NPROC_PER_NODE" >&2\n'
    out += "  exit 2\nfi\n\n"
    for name, value in environment.items():
        out += f"export {name}={value if value.startswith(QUOTED) else shlex.quote(value)}\n"
    groups = [(name, words) for name, words in arguments if words]
    for name, words in groups:
        out += f"\n{name}=(\n" + "".join(f"  {word}\n" for word in words) + ")\n"
    out += f'\ncd "{directory or "$here"}"\nexec torchrun \\\n'
    out += '  --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" --node-rank "$NODE_RANK" \\\n'
    out += '  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \\\n'
    out += "  " + " ".join(command)
    out += "".join(f' \\\n  "${{{name}[@]}}"' for name, _ in groups)
    return out + ' "$@"\n'


def ask(name: str, what: str) -> str:
    """A line that stops the script, saying what to set, while a variable is not set."""
    assert "'" not in what
    return f': "${{{name}:?set {name} to {what}}}"\n'
