"""The model of a run, or of a folder or file from elsewhere, taken out to be used.

Finds the newest good checkpoint of a run with its tokenizer, writes model folders that other tools
read, and lets a model speak. The formats themselves are `atoll.modeling`'s.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.data.tokenizer import end_of_text_id, load_tokenizer
from atoll.errors import InputError
from atoll.modeling import open_model
from atoll.modeling.huggingface import write_folder
from atoll.modeling.loaded import Loaded, TensorsOnDisk
from atoll.run import RunFolder
from atoll.training import checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from atoll.modeling.decoder import Decoder

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A model folder that was written: where, from what, and how many parameters it holds."""

    to: Path
    source: Path
    step: int | None
    num_parameters: int

    def json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        found = {"to": str(self.to), "source": str(self.source), "parameters": self.num_parameters}
        return found if self.step is None else found | {"step": self.step}


def export_run(run: Path, to: Path, *, step: int | None = None, report: Report) -> Written:
    """Write the weights of a run's checkpoint (the newest, or exactly `step`) as a model folder.

    `to` must be new or empty. Raises InputError, or CheckpointError if no good checkpoint is there.
    """
    if not RunFolder.is_run(run):
        raise InputError(
            "is no run folder: it has no run.json",
            file=run,
            fix=f"to copy a model folder or a GGUF file use: atoll import {run} --to {to}",
        )
    _require_empty(to)
    loaded, saved_step = load_run(run, step=step, report=report)
    return _write(loaded, to, source=run, step=saved_step)


def import_model(source: Path, to: Path) -> Written:
    """Read a Hugging Face folder or a GGUF file and write it as a model folder of our own.

    `to` must be new or empty. Raises InputError for what cannot be read, naming the reason.
    """
    _require_empty(to)
    return _write(open_model(source), to, source=source, step=None)


def load_run(run: Path, *, step: int | None, report: Report) -> tuple[Loaded, int]:
    """The model of a run with the weights of a checkpoint, still on disk, and its step.

    The newest one that is intact, damage being told through `report`, or exactly `step`.
    InputError for a step that has none.
    """
    folder = RunFolder.open(run)
    steps = checkpoint.list_steps(folder.checkpoints_path)
    if step is not None and step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise InputError(f"has no checkpoint; kept: {kept}", file=run, key="step", value=step)
    saved = checkpoint.read(folder.checkpoints_path, step, report=report, fall_back=step is None)
    shapes = saved.shapes("weights")
    model = folder.recipe().model.with_vocab(shapes["embedding.weight"][0])
    tokenizer = load_tokenizer(folder.tokenizer_path)
    loaded = Loaded(
        source=run,
        model=model,
        tensors=TensorsOnDisk(list(model.tensors()), lambda name: saved.tensor("weights", name)),
        tokenizer_json=folder.tokenizer_path,
        stop_ids=(end_of_text_id(tokenizer),),
    )
    return loaded, saved.step


class Voice:
    """A model with its tokenizer, ready to go on with a text.

    `num_tokens` counts what the last `speak` has generated so far.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, *, stop_ids: tuple[int, ...]
    ) -> None:
        self.decoder = decoder
        self.num_tokens = 0
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids

    def speak(
        self,
        prompt: str,
        *,
        max_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
    ) -> Iterator[str]:
        """Text that follows `prompt`, in pieces as they are found, never half a character.

        An empty prompt begins a
        document. Ends after `max_tokens` tokens or at the end of a text.
        """
        from atoll.modeling import sampling

        token_ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        stream = sampling.TextStream(self._tokenizer)
        self.num_tokens = 0
        for token in sampling.generate(
            self.decoder,
            token_ids or self._stop_ids[:1],
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_ids=self._stop_ids,
        ):
            self.num_tokens += 1
            yield stream.push(token)
        yield stream.finish()


def open_voice(source: Path, *, step: int | None = None, report: Report) -> Voice:
    """The model in a run folder, a model folder or a GGUF file, on this machine's best device."""
    from atoll import backends
    from atoll.data.tokenizer import end_of_text_id

    if RunFolder.is_run(source):
        loaded, _ = load_run(source, step=step, report=report)
    elif step is not None:
        raise InputError("only a run has steps to choose from", file=source, fix="leave --step out")
    else:
        loaded = open_model(source)
    decoder = loaded.decoder().to(backends.here().device(0))
    tokenizer = loaded.tokenizer()
    stop_ids = loaded.stop_ids or (end_of_text_id(tokenizer),)
    return Voice(decoder, tokenizer, stop_ids=stop_ids)


def _require_empty(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(
            "is there already and is not an empty folder", file=to, fix="name a new one with --to"
        )


def _write(loaded: Loaded, to: Path, *, source: Path, step: int | None) -> Written:
    with _arriving(to) as partial:
        write_folder(
            partial,
            loaded.model,
            loaded.tensors,
            loaded.tokenizer_json,
            stop_ids=loaded.stop_ids or None,
            chat_template=loaded.chat_template,
        )
    return Written(to=to, source=source, step=step, num_parameters=loaded.model.num_parameters())


@contextmanager
def _arriving(to: Path) -> Iterator[Path]:
    """A folder to fill that becomes `to` when all went well, and is removed when not."""
    to = to.absolute()  # "." has no name
    partial = to.with_name(f"{to.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        message = f"cannot be made: {error.strerror}"
        raise InputError(message, file=to, fix="name another one with --to") from None
    try:
        yield partial
        if to.exists():
            to.rmdir()
        partial.rename(to)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
