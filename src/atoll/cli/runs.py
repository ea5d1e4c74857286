"""Commands about a run: train, audit, doctor, island."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from atoll.cli.output import Json, Quiet, note, print_json, print_pairs

FleetFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet",
        metavar="FILE",
        help="The islands to use (TOML). Without it: this machine's accelerators or CPU cores; "
        "for a run that exists, the islands it had last.",
        show_default=False,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A recipe (.toml), a plan (.json), or the folder of a run to go on with.",
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="DIR",
        help="The run's folder; runs/NAME-DIGEST if not given. A folder that holds this run "
        "is gone on with.",
        show_default=False,
    ),
]
Until = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Stop after step N and save. This changes no bit of the run.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the recipe, such as model.layers=4; may be repeated. It is "
        "then another recipe, with another digest.",
        show_default=False,
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where islands with start = 'dial-in' reach this run.",
        show_default=False,
    ),
]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine",
        help="Who starts the islands that do not dial in: this machine, or a Ray cluster.",
    ),
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The Ray cluster; the one that runs on this machine if not given.",
        show_default=False,
    ),
]
MetricsAt = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="HOST:PORT",
        help="Serve the state of the run to Prometheus at http://HOST:PORT/metrics; PORT alone "
        "is of this machine only.",
        show_default=False,
    ),
]
ClockOption = Annotated[
    str | None,
    typer.Option(
        "--clock",
        metavar="HH:MM[xN]",
        help="Rehearse the hours of a fleet's islands: begin the day at this time (UTC), N times "
        "as fast. This machine's clock if not given.",
        show_default=False,
    ),
]
Grace = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.0, help="What SIGTERM leaves to hand over.")
]
Patience = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", min=0.0, help="How long to wait for another pilot if this one dies."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where tokenised text is kept; ~/.cache/atoll if not given.",
        show_default=False,
    ),
]


def train(
    target: Target,
    fleet: FleetFile = None,
    run: RunOption = None,
    until: Until = None,
    set_: Overrides = None,
    listen: Listen = None,
    metrics: MetricsAt = None,
    engine: EngineName = "local",
    address: ClusterAddress = None,
    cache: Cache = None,
    clock: ClockOption = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train a model on a fleet of islands.

    The recipe decides the bits of the model, the fleet only the time.

    \b
    Example:
      atoll train examples/recipes/tiny.toml --fleet examples/fleets/three.toml --run runs/tiny
      atoll train runs/tiny --fleet examples/fleets/one.toml

    Ctrl-C saves and stops (exit code 130); a second Ctrl-C leaves at once. Run the command again
    with the run's folder to go on, on the same islands or on others.
    """
    from atoll.training.crewing import Starting
    from atoll.training.display import Display, open_display
    from atoll.training.session import train as start
    from atoll.training.timetable import Rehearsal

    rehearsal = None if clock is None else Rehearsal.parse(clock)
    starting = Starting(engine=engine, address=address)
    shown: Display = open_display(quiet=quiet)
    if metrics is not None:
        from atoll.training.prometheus import PrometheusDisplay

        shown = PrometheusDisplay(shown, metrics)
    with closing(shown) as display:
        result = start(
            target,
            display=display,
            fleet=fleet,
            run=run,
            until=until,
            overrides=set_ or [],
            listen=listen,
            cache=cache,
            starting=starting,
            clock=rehearsal,
        )
    if json:
        print_json(result.json())
    else:
        print_pairs(_summary(result.json()))
        note(f"\ncheck it:     atoll audit {result.run}")
        note(f'let it speak: atoll sample {result.run} "..."')
    return result.exit_code


def _summary(result: Mapping[str, Any]) -> dict[str, str]:
    """The result of a training for a person to read."""
    lines = {"run": str(result["run"]), "step": str(result["step"])}
    if result["loss"] is not None:
        lines["loss"] = f"{result['loss']:.4f} nats a token"
    if result["val_loss"] is not None:
        lines["validation"] = f"{result['val_loss']:.4f} nats a token"
    if result.get("bits_per_byte") is not None:
        lines["validation"] += f", {result['bits_per_byte']:.3f} bits a byte"
    speed = result["tokens_per_second"]
    lines["tokens"] = f"{result['tokens']:,}" + (f" ({speed:,.0f} a second)" if speed else "")
    lines["contract"] = str(result["contract"])
    lines["fingerprint"] = str(result["fingerprint"])
    return lines


def audit(
    run: RunArgument,
    steps: Annotated[
        int, typer.Option(metavar="K", min=1, help="How many steps to draw and replay.")
    ] = 1,
    within: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Draw only from the N steps after a kept checkpoint: bounds the time.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Draw the same steps again; at random if not given.",
            show_default=False,
        ),
    ] = None,
    fleet: FleetFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compute steps of a run again and compare with its ledger.

    \b
    Example:
      atoll audit runs/tiny --steps 3

    Steps are replayed from the nearest kept checkpoint, each grain on the kind of chip that
    computed it. Exit code 0: all that was replayed is bit for bit the same, and at least one
    whole step was. 1: the first step that differs is named.
    """
    from atoll.training.audit import audit as replay
    from atoll.training.display import open_display

    with closing(open_display(quiet=quiet)) as display:
        result = replay(run, steps=steps, within=within, seed=seed, fleet=fleet, display=display)
    return _report(result, json=json)


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="The recipe whose model to try; a small built-in one if not given.",
            show_default=False,
        ),
    ] = None,
    island: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The island of --fleet to look at; this machine if not given.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(metavar="ISLAND", help="What to compare with: an island, or a chip."),
    ] = "cpu",
    fleet: FleetFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Say whether a chip computes right, layer by layer.

    \b
    Example:
      atoll doctor --against cpu-compat
      atoll doctor examples/recipes/tiny.toml --fleet examples/fleets/two-kinds.toml --island fast

    One grain is computed on it and on another. Shows the error of loss and gradients by layer,
    the kind, free memory and link speed. Exit code 1 if a layer is further off than rounding
    explains; it is named.
    """
    from atoll.training.display import open_display
    from atoll.training.doctor import doctor as examine

    with closing(open_display(quiet=quiet)) as display:
        result = examine(
            recipe=recipe, island=island, against=against, fleet=fleet, display=display
        )
    return _report(result, json=json)


def island(
    pilot: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the pilot (`atoll train`) listens.")
    ],
    token_file: Annotated[
        Path, typer.Option(metavar="FILE", help="A file with the run's secret token.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="This island's name in the fleet; the host's name if not given."
        ),
    ] = None,
    chip: Annotated[
        str | None, typer.Option(metavar="CHIP", help="Its chip; the CPU if not given.")
    ] = None,
    lanes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Grains computed at once.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads a lane.")
    ] = None,
    device_index: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Which of the host's accelerators comes first."),
    ] = None,
    grace: Grace = 30.0,
    patience: Patience = 600.0,
) -> int:
    """Run one island: compute what a pilot hands out.

    May be started before the run or while it goes on: it is then healed from a living island and
    gets grains. SIGTERM lets it finish the open step and leave.

    \b
    Example:
      atoll island --pilot 10.0.0.1:4711 --token-file token --name a --chip cpu --threads 1

    Use it where another launcher or a vendor's own container starts processes; `atoll train`
    starts the islands of its own machine by itself and prints this command for the others.
    """
    from atoll.training.island import main

    arguments = ["--pilot", pilot, "--token-file", str(token_file), "--grace", str(grace)]
    arguments += ["--patience", str(patience)]
    optional = {
        "--name": name,
        "--chip": chip,
        "--lanes": lanes,
        "--threads": threads,
        "--device-index": device_index,
    }
    for flag, value in optional.items():
        if value is not None:
            arguments += [flag, str(value)]
    return main(arguments)


def _report(result: Any, *, json: bool) -> int:
    """Print the result of a check and turn it into an exit code."""
    if json:
        print_json(result.json())
    else:
        print(result.text())
    return 0 if result.ok else 1


def leave(
    run: RunArgument,
    name: Annotated[str, typer.Argument(metavar="ISLAND", help="The island that shall leave.")],
    json: Json = False,
) -> int:
    """Let an island of a running training leave between two steps.

    \b
    Example:
      atoll leave runs/tiny johor

    No step is lost, and the bits of the run stay what they are.
    """
    from atoll.training.crewing import ask

    text = ask(run, leave=name)
    left = "has left" in text
    if json:
        print_json({"island": name, "left": left, "text": text})
    else:
        print(text)
    return 0 if left else 1


COMMANDS = (train, audit, doctor, island, leave)
