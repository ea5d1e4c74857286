"""Opening: the text, the folder and the sampler of a run, before any island is started."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import atoll
from atoll.data.sampler import Sampler
from atoll.data.shards import Shards, prepare
from atoll.data.storage import damage_of, open_shards
from atoll.errors import InputError
from atoll.recipe import Recipe
from atoll.run import RunFolder
from atoll.training.display import Display
from atoll.training.target import Target


def text_of(found: Target, cache: Path, display: Display) -> Shards:
    """The token shards: a run that has begun keeps its own while they are sound."""
    if found.folder is not None:
        recorded = found.folder.record.shards
        if damage_of(Path(recorded.folder), display.phase) is None:
            shards = open_shards(Path(recorded.folder))
            if shards.digest == recorded.digest:
                return shards
    return prepare(
        found.recipe.data, cache=cache.resolve(), base=found.base, progress=display.phase
    )


def sampler_of(recipe: Recipe, data: Shards) -> Sampler:
    """The recipe's order over these shards; InputError if the text is shorter than a sequence."""
    return Sampler(
        data,
        seed=recipe.seed,
        context=recipe.model.context,
        sequences=recipe.batch.sequences,
        grain=recipe.batch.grain,
    )


def folder_of(found: Target, data: Shards, run: Path | None) -> RunFolder:
    """The folder of this very run: opened if it is there, else made. InputError if it is that of
    another recipe or text.
    """
    folder = found.folder or _open_or_create(found, data, run)
    folder.check_recipe(found.recipe)
    if folder.record.shards.digest != data.digest:
        raise InputError(
            "the text of this run has changed since it began: its token shards have another digest",
            file=folder.path,
            fix="restore the text, or train into a new folder with --run",
        )
    return folder


def _open_or_create(found: Target, data: Shards, run: Path | None) -> RunFolder:
    digest = found.recipe.digest(data.digest)
    path = run or Path("runs") / f"{found.recipe.name}-{digest[:8]}"
    if RunFolder.is_run(path):
        return RunFolder.open(path)
    folder = RunFolder.create(
        path,
        recipe=found.recipe,
        shards_folder=data.folder,
        shards_digest=data.digest,
        versions=_versions(),
        contract="unknown",
        fleet=found.fleet,
        base=found.base,
    )
    # The run can be exported and sampled wherever it is carried, without the shards.
    shutil.copyfile(data.tokenizer_path, folder.tokenizer_path)
    return folder


def _versions() -> dict[str, str]:
    import torch

    return {
        "atoll": atoll.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
