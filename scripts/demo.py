"""`make demo`: train on two unlike CPU islands, audit the run, let the model speak.

A plain sequence of the commands that a person would type; it computes nothing itself.
"""

# ruff: noqa: T201
from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from atoll.run import RunFolder

RECIPE = "examples/recipes/quickstart.toml"
FLEET = "examples/fleets/two-kinds.toml"
PROMPT = "To be, or not to be"


def main(run: str) -> int:
    """Run the demo into the folder `run`; returns the exit code of the first command that fails."""
    # Ctrl-C reaches the command that runs, which saves and stops; this program then ends with it.
    signal.signal(signal.SIGINT, lambda *_: None)
    begun = time.monotonic()
    overrides: list[str] = []
    if not has_shakespeare():
        print("Shakespeare is not installed: reading the standard library's documentation instead.")
        overrides, run = ["--set", 'data.corpus="stdlib"'], f"{run}-stdlib"

    if RunFolder.is_run(run):
        shutil.rmtree(run)  # an earlier demo's: this one is to be seen from its first step

    title("1. Train a small model on two unlike CPU islands")
    result = atoll_json("train", RECIPE, "--fleet", FLEET, "--run", run, *overrides)

    title("2. Do the two kinds really differ?")
    kinds = json.loads(Path(run, "run.json").read_text(encoding="utf-8"))["kinds"]
    print(difference_of(kinds))

    title("3. What came out")
    print(f"loss          {result['loss']:.4f} nats a token")
    if result["val_loss"] is not None:
        bits = result["bits_per_byte"]
        print(f"held out      {result['val_loss']:.4f} nats a token, {bits:.3f} bits a byte")
    print(f"contract      {result['contract']}")
    print(f"fingerprint   {result['fingerprint']}")
    print("              (of all weights; both islands held these same bits after every step)")

    title("4. Audit: compute random steps again and compare them with the ledger")
    audited = atoll_json("audit", run, "--steps", "2", "--within", "10", fail=False)
    if not audited["ok"]:
        print(f"THE AUDIT FAILED: {audited['first_difference']}")
        return 1
    steps = ", ".join(map(str, audited["steps"]))
    print(f"bit for bit the same; steps computed again: {steps}")

    title("5. Let it speak")
    atoll("sample", run, PROMPT, "--max-tokens", "100", "--temperature", "0.7")
    print(
        "\nA model this small, trained for minutes, has learned how the text looks and little of"
        "\nwhat it means. It is no conversationalist."
    )
    print(f"\ndone in {time.monotonic() - begun:.0f} s; the run is in {run}")
    return 0


def has_shakespeare() -> bool:
    """Whether the text that the recipe names is installed."""
    from atoll.data.corpora import locate
    from atoll.errors import InputError

    try:
        locate("shakespeare", base=Path.cwd())
    except InputError:
        return False
    return True


def difference_of(kinds: dict[str, dict[str, Any]]) -> str:
    """What run.json says of the kinds: their chips, and the digest of one grain on each."""
    lines = [
        f"{kind}  {facts['chip']:<12}one grain's gradient: {facts['probe'][:16]}"
        for kind, facts in kinds.items()
    ]
    probes = {facts["probe"] for facts in kinds.values()}
    if len(kinds) < 2:
        lines.append("No: this machine gives both islands the same bits; the run was of one kind.")
    elif len(probes) < len(kinds):
        lines.append("Not in the probe grain: here both compute its gradient to the same bits.")
    else:
        lines.append(
            "Yes: the same grain gives other bits on each. The weights agree all the same."
        )
    return "\n".join(lines)


def atoll(*arguments: str) -> None:
    """Run a command and leave its output to the terminal; ends the demo if it fails."""
    print("$", shlex.join(["atoll", *arguments]), flush=True)
    code = subprocess.run([sys.executable, "-m", "atoll", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def atoll_json(*arguments: str, fail: bool = True) -> dict[str, Any]:
    """Run a command with --json and return its object; its progress goes to the terminal."""
    print("$", shlex.join(["atoll", *arguments]), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "atoll", *arguments, "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode and (fail or not done.stdout):
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
