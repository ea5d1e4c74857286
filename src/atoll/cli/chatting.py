"""The command that talks to a model in the terminal: chat."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.models import MaxTokens, Step, Temperature, TopP
from atoll.cli.output import Json, note, print_json
from atoll.cli.serving import Device, Fast, Memory, Threads, name_of, opened, read_key
from atoll.errors import AtollError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.serving.speakers import Manner, Speaker

_HELP = """/reset        forget what was said
/system TEXT  say what the model is to be; no TEXT: nothing
/save FILE    write the chat to a new file, as JSON
/quit         leave
A message that begins with a slash is written with two. Ctrl-C stops an answer, twice leaves."""

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""What a terminal obeys instead of showing it: no answer may move the cursor or name the window."""


ModelHereOrThere = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="The folder of a run, a model folder in the Hugging Face layout, a .gguf file, "
        "or smollm2; with --url the name of a model there.",
        show_default=False,
    ),
]
System = Annotated[
    str, typer.Option(metavar="TEXT", help="What the model is to be.", show_default=False)
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="The same seed, the same answers.", show_default="another each time"
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Talk to a server instead: OpenAI-compatible.", show_default=False
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="With --url: a file that holds the key.", show_default=False),
]


def chat(
    model: ModelHereOrThere = None,
    system: System = "",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = None,
    url: Url = None,
    api_key_file: KeyFile = None,
    device: Device = None,
    memory: Memory = None,
    fast: Fast = False,
    threads: Threads = None,
    step: Step = None,
    json: Json = False,
) -> int:
    """Talk to a model in the terminal.

    \b
    Example:
      atoll chat smollm2
      atoll chat runs/tiny --system "You are a poet." --temperature 0
      atoll chat --url http://127.0.0.1:8000

    /help shows what else one can write. From a pipe each line is a message, and each answer is
    printed on one line.
    """
    from atoll.serving.speakers import Manner, There

    if not _is_text(system):
        raise InputError("is not UTF-8", key="--system")
    if url is None and api_key_file is not None:
        raise InputError(
            "is for a server, and none is named", key="--api-key-file", fix="--url URL"
        )
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, TextIOWrapper):  # one bad byte, or a narrow locale, ends no chat
            stream.reconfigure(errors=errors)
    manner = Manner(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if url is not None:
        key = None if api_key_file is None else read_key(api_key_file)
        speaker = There(url, model=model, key=key)
        talk = Talk(speaker, manner, system=system, quiet=json)
        talk.run()
    else:
        if model is None:
            raise InputError("a model is needed", fix="atoll chat smollm2, or atoll chat --url URL")
        with _here(model, step, device, memory, fast, threads) as here:
            talk = Talk(here, manner, system=system, quiet=json)
            talk.run()
    if json:
        print_json({"model": talk.model, "messages": talk.messages, "failed": talk.num_failed})
    return 1 if talk.num_failed and not talk.by_hand else 0


@contextmanager
def _here(
    model: str,
    step: int | None,
    device: str | None,
    memory: str | None,
    fast: bool,
    threads: int | None,
) -> Iterator[Speaker]:
    from atoll.serving.speakers import Here

    with opened(
        model,
        step=step,
        device=device,
        max_concurrency=1,
        memory=memory,
        max_queue=1,
        fast=fast,
        threads=threads,
    ) as (engine, language):
        yield Here(engine, language, model=name_of(model))


class Talk:
    """A chat at the terminal, or from a pipe. ``messages`` is what was said."""

    def __init__(self, speaker: Speaker, manner: Manner, *, system: str, quiet: bool) -> None:
        from rich.console import Console

        self._speaker, self._manner, self.model = speaker, manner, speaker.model
        ends = (sys.stdin, sys.stdout)  # None where a shell closed one
        self.by_hand = not quiet and all(end is not None and end.isatty() for end in ends)
        self._quiet = quiet
        self._console: Console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.messages: list[dict[str, str]] = []
        self.num_failed = 0
        self._set_system(system)

    def run(self) -> None:
        """Until the input ends, /quit, or Ctrl-C twice."""
        if self.by_hand:
            self._dim(
                f"{self._speaker.model}. /help shows what you can write, Ctrl-C twice leaves."
            )
        stopped = False  # by Ctrl-C, and nothing was written since
        while True:
            try:
                line = self._read()
                if line is None:
                    return
                stopped = False
                if line.strip() and not self._take(line.strip()):
                    return
            except KeyboardInterrupt:
                if stopped or not self.by_hand:
                    raise
                stopped = True
                self._dim("\nstopped; Ctrl-C once more leaves")

    def _read(self) -> str | None:
        """The next line, None at the end."""
        if not self.by_hand:
            return (sys.stdin and sys.stdin.readline()) or None
        with suppress(ImportError):
            import readline  # noqa: F401 so that lines can be edited and called back
        try:
            return input("> ")
        except EOFError:
            return None

    def _take(self, line: str) -> bool:
        """Do what a line says; False if it says to leave."""
        if not _is_text(line):
            self._fail("this line is not UTF-8 and was left out")
            return True
        if line.startswith("//"):
            line = line[1:]
        elif line.startswith("/"):
            return self._command(*line[1:].partition(" ")[::2])
        self._say(line)
        return True

    def _command(self, name: str, rest: str) -> bool:
        known: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._dim(_HELP),
            "reset": lambda _: self._reset(),
            "system": self._set_system,
            "save": self._save,
        }
        if name == "quit":
            return False
        if name in known:
            known[name](rest.strip())
        else:
            self._fail(f"there is no /{name}; /help shows what there is")
        return True

    def _say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []

        def out(piece: str) -> None:
            if piece:
                pieces.append(piece)
            if self.by_hand:
                print(piece.translate(_CONTROLS), end="", flush=True)

        try:
            whole = self._speaker.answer(self.messages, self._manner, out)
        except AtollError as error:
            self.messages.pop()
            if self.by_hand and pieces:
                print()
            self._fail(str(error))
            return
        except KeyboardInterrupt:
            if pieces:
                self._keep("".join(pieces))
            else:  # an empty answer would teach the model to give more of them
                self.messages.pop()
            raise
        answer = "".join(pieces)
        self._keep(answer)
        if self.by_hand:
            print()
            if not whole:
                self._dim(f"[cut off after {self._manner.max_tokens} tokens: --max-tokens]")
        elif not self._quiet:
            print(" ".join(answer.split()).translate(_CONTROLS), flush=True)

    def _keep(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})

    def _reset(self) -> None:
        self.messages = [m for m in self.messages if m["role"] == "system"]

    def _set_system(self, text: str) -> None:
        rest = [m for m in self.messages if m["role"] != "system"]
        self.messages = [{"role": "system", "content": text}] * bool(text) + rest

    def _save(self, name: str) -> None:
        content = {"model": self._speaker.model, "messages": self.messages}
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                json_module.dump(content, file, ensure_ascii=False, indent=2)
        except (OSError, RuntimeError, ValueError) as error:  # the latter two: ~nobody, a NUL
            reason = getattr(error, "strerror", None) or error
            self._fail(f"cannot write {name or 'a file without a name'}: {reason}")
            return
        self._dim(f"written to {name}")

    def _fail(self, text: str) -> None:
        self.num_failed += 1
        note(f"atoll: {text}".translate(_CONTROLS))

    def _dim(self, text: str) -> None:
        if self.by_hand:
            self._console.print(text, style="dim")
        elif not self._quiet:
            note(text)


def _is_text(line: str) -> bool:
    """Whether it came in as UTF-8; Python keeps other bytes as what cannot be written again."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


COMMANDS = (chat,)
