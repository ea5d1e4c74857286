"""The command that serves a model over HTTP: serve."""

from __future__ import annotations

import json as json_module
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.models import Step
from atoll.cli.output import Json, note, print_json
from atoll.errors import InputError

if TYPE_CHECKING:
    from socket import socket

    from fastapi import FastAPI

    from atoll.modeling.loaded import Loaded
    from atoll.serving.request import Engine
    from atoll.serving.text import Language

READY_MODEL = "smollm2"
"""A model by name: real weights that ship inside a package."""

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The folder of a run, a model folder in the Hugging Face layout, a .gguf file, "
        "or smollm2: weights inside a package.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where to compute, as torch names it, such as cpu.",
        show_default="this machine's best",
    ),
]
Concurrency = Annotated[
    int, typer.Option("--max-concurrency", metavar="N", min=1, help="Requests computed at a time.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help='The bound on keys and values, such as "2 GiB".',
        show_default="as the engine finds room",
    ),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="On accelerators: faster, but a request's tokens may depend on what else is served. "
        "On CPUs nothing is faster than exact.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Threads to compute with.", show_default="all cores"),
]


Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where to listen; others need --api-key-file.")
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 for any that is free.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A file that holds the key to ask for.", show_default=False),
]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What clients call the model.", show_default="from MODEL"),
]
Queue = Annotated[
    int, typer.Option(metavar="N", min=0, help="Requests that may wait; more get status 429.")
]
Grace = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0.0, help="How long answers may take after Ctrl-C."),
]


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    name: Name = None,
    device: Device = None,
    max_concurrency: Concurrency = 8,
    memory: Memory = None,
    max_queue: Queue = 64,
    fast: Fast = False,
    threads: Threads = None,
    grace: Grace = 30.0,
    step: Step = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Serve the API alone.")] = False,
    json: Json = False,
) -> int:
    """Serve a model: an OpenAI-compatible API and a page to chat.

    The page needs gradio (pip install 'atoll[web]').

    \b
    Example:
      atoll serve smollm2
      atoll serve runs/tiny --port 8001 --max-concurrency 4

    Listens on this machine alone unless told otherwise. With --json the first line of stdout is
    the object, printed when the server is ready. Ctrl-C takes in nothing more, and lets answers
    end.
    """
    from atoll.serving import server

    key = None if api_key_file is None else read_key(api_key_file)
    with server.listen(host, port) as found:
        if key is None and not server.is_loopback(found):
            raise InputError(
                "others can reach this address, so a key is needed",
                key="--host",
                value=host,
                fix="write a key into a file and add --api-key-file FILE",
            )
        with opened(
            model,
            step=step,
            device=device,
            max_concurrency=max_concurrency,
            memory=memory,
            max_queue=max_queue,
            fast=fast,
            threads=threads,
        ) as (engine, language):
            app = create(engine, language, name=name or name_of(model), key=key)
            page = None if no_page else Path(model)
            return _serve_on(found, app, engine, grace=grace, key=key, page=page, json=json)


def create(engine: Engine, language: Language, *, name: str, key: str | None) -> FastAPI:
    """The application; its import takes a while."""
    from atoll.serving.api import create_app

    return create_app(engine, language, model_name=name, api_key=key)


def _serve_on(
    found: socket,
    app: FastAPI,
    engine: Engine,
    *,
    grace: float,
    key: str | None,
    page: Path | None,
    json: bool,
) -> int:
    """Serve on a socket until a signal; the exit code. `page` is what a page would tell of."""
    from atoll.serving import server

    url, name = server.url_of(found), app.state.service.model_name
    has_page = page is not None and _mount_page(app, url=url, key=key, name=name, model=page)

    def ready() -> None:
        if json:
            print_json({"url": url, "model": name, "engine": "atoll"})
        else:
            _welcome(url, name, key=key, page=has_page)

    running = server.Server(app, engine, grace=grace, on_ready=ready)
    ended_by = running.serve_until_signal(found)
    note("stopped")
    return 130 if ended_by == signal.SIGINT else 0


def read_key(path: Path) -> str:
    """The API key that a file holds. InputError if there is none in it."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"cannot be read: {reason}", file=path, key="--api-key-file") from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            "must hold one key: a line of letters, digits and signs, without spaces",
            file=path,
            key="--api-key-file",
            fix='python -c "import secrets; print(secrets.token_urlsafe())" > FILE makes one',
        )
    return key


def name_of(model: str) -> str:
    """What clients call a model that was given no name: the last part of its path."""
    return Path(model).resolve().name.removesuffix(".gguf") if model != READY_MODEL else model


@contextmanager
def opened(
    model: str,
    *,
    step: int | None,
    device: str | None,
    max_concurrency: int,
    memory: str | None,
    max_queue: int,
    fast: bool,
    threads: int | None,
) -> Iterator[tuple[Engine, Language]]:
    """The engine that computes a model, and its language; both closed at the end. InputError."""
    from atoll.serving.text import Language
    from atoll.units import format_count, parse_bytes

    size = None if memory is None else parse_bytes(memory)
    loaded = load(model, step=step)
    from atoll.serving.engine import open_engine

    note(f"loading {model} ({format_count(loaded.model.num_parameters())} parameters)")
    language = Language(loaded)
    with _bar(loaded) as counted:
        engine = open_engine(
            counted,
            device=_device(device),
            max_concurrency=max_concurrency,
            memory=size,
            max_queue=max_queue,
            fast=fast,
            threads=threads,
            tell=note,
        )
    try:
        yield engine, language
    finally:
        engine.close()
        language.close()


@contextmanager
def _bar(loaded: Loaded) -> Iterator[Loaded]:
    """The same model, with a bar on the terminal that moves as its tensors are read."""
    from rich.console import Console
    from rich.progress import Progress

    from atoll.modeling.loaded import TensorsOnDisk

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("weights", total=len(loaded.tensors))

        def read(name: str) -> Any:
            progress.advance(task)
            return loaded.tensors[name]

        yield replace(loaded, tensors=TensorsOnDisk(list(loaded.tensors), read))


def _device(name: str | None) -> Any:
    """A torch device that is there. InputError."""
    import torch

    from atoll import backends

    if name is None:
        return backends.here().device(0)
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).cpu()
    except Exception as error:  # torch raises several kinds for what is not there
        reason = str(error).partition("\n")[0]
        raise InputError(f"is no device here: {reason}", key="--device", value=name) from error
    return found


def load(model: str, *, step: int | None) -> Loaded:
    """The model that a word of the command line names, its weights still on disk. InputError."""
    from atoll.data.corpora import package_file
    from atoll.modeling import open_model
    from atoll.run import RunFolder
    from atoll.training.export import load_run

    path = Path(model)
    if RunFolder.is_run(path):
        loaded, _ = load_run(path, step=step, report=note)
        return loaded
    if step is not None:
        raise InputError("only a run has steps to choose from", file=model, fix="leave --step out")
    if model == READY_MODEL and not path.exists():
        try:
            path = package_file("tokenizer", READY_MODEL)
        except InputError as error:
            error.key = "MODEL"
            raise
    return open_model(path)


def _mount_page(app: FastAPI, *, url: str, key: str | None, name: str, model: Path) -> bool:
    """Add the page to chat; False where what it needs is not installed."""
    from importlib.util import find_spec

    from atoll.run import RunFolder
    from atoll.web import mount

    if find_spec("gradio") is None:
        return False
    run = model if RunFolder.is_run(model) else None
    mount(app, url=url, api_key=key, model=name, run=run)
    return True


def _welcome(url: str, name: str, *, key: str | None, page: bool) -> None:
    header = "" if key is None else " -H 'Authorization: Bearer KEY'"
    question = {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    without = "a page to chat needs gradio: pip install 'atoll[web]'\n"
    note(
        f"\n{f'chat here:  {url}' if page else without}\n"
        f"API:        {url}/v1  (model {name})\n\n"
        f"  curl {url}/v1/chat/completions{header} \\\n"
        f"    -H 'Content-Type: application/json' -d {shlex.quote(json_module.dumps(question))}\n\n"
        "Ctrl-C stops it."
    )


COMMANDS = (serve,)
