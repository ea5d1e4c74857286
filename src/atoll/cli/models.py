"""Commands about models: sample, export, import."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.output import Json, note, print_json, print_pairs
from atoll.errors import InputError

Source = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The folder of a run, a model folder in the Hugging Face layout, or a .gguf file.",
    ),
]
Step = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="For a run: the checkpoint of step N instead of the newest.",
        show_default=False,
    ),
]
To = Annotated[Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.")]


Prompt = Annotated[str, typer.Argument(help="How the text begins.")]
MaxTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Stop after so many tokens.")]
Temperature = Annotated[
    float,
    typer.Option(
        metavar="X", min=0.0, help="0 takes the likeliest token each time; more is more varied."
    ),
]
TopK = Annotated[
    int,
    typer.Option(metavar="K", min=0, help="Draw from the k likeliest tokens only; 0 for all."),
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="P",
        min=0.0,
        max=1.0,
        help="Draw from the likeliest tokens that hold this probability.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="The same seed, the same text on this machine.")
]


def sample(
    model: Source,
    prompt: Prompt = "",
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    step: Step = None,
    json: Json = False,
) -> int:
    """Let a model go on with a text, printed as it is found.

    \b
    Example:
      atoll sample runs/tiny "To be, or" --max-tokens 100 --temperature 0.7
    """
    from atoll.training.export import open_voice

    if any("\ud800" <= character <= "\udfff" for character in prompt):
        fix = "for UTF-8 set LC_ALL=C.UTF-8"
        raise InputError("is no text in this terminal's encoding", key="prompt", fix=fix)
    voice = open_voice(model, step=step, report=note)
    stream = sys.stderr if json else sys.stdout
    stream.write(prompt)
    pieces = []
    begun = time.perf_counter()
    for piece in voice.speak(
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    ):
        pieces.append(piece)
        stream.write(piece)
        stream.flush()
    stream.write("\n")
    stream.flush()
    if json:
        seconds = time.perf_counter() - begun
        print_json(
            {
                "model": str(model),
                "prompt": prompt,
                "text": "".join(pieces),
                "tokens": voice.num_tokens,
                "tokens_per_second": voice.num_tokens / seconds if seconds > 0 else None,
            }
        )
    return 0


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    to: To,
    step: Step = None,
    json: Json = False,
) -> int:
    """Write a run's model for other tools to load.

    The folder has the Hugging Face layout.

    \b
    Example:
      atoll export runs/tiny --to models/tiny
    """
    from atoll.training.export import export_run

    written = export_run(run, to, step=step, report=note)
    return _written(written.json(), json=json)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A model folder in the Hugging Face layout, or a .gguf file."
        ),
    ],
    to: To,
    json: Json = False,
) -> int:
    """Read a model from elsewhere and write a model folder.

    \b
    Example:
      atoll import model.gguf --to models/imported
    """
    from atoll.training.export import import_model

    written = import_model(source, to)
    return _written(written.json(), json=json)


def _written(content: dict[str, object], *, json: bool) -> int:
    if json:
        print_json(content)
    else:
        print_pairs({name: str(value) for name, value in content.items()})
    return 0


COMMANDS = (sample, export, import_)
