"""Strict loading: a file becomes a noun, or one error that says what to write instead.

It holds the base class of all nouns, the TOML reader, and the translation of pydantic's errors.
It is not a config framework: no merging, no environment, no defaults of its own.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from atoll.errors import MISSING, InputError, show_key, show_value

SCHEMA = 1
"""The newest schema number of recipes, fleets, plans and run folders that this code knows."""


class Noun(BaseModel):
    """The base of all nouns: frozen, no unknown keys, no silent conversion, no NaN."""

    FILE_KEYS: ClassVar[tuple[str, ...]] = ()
    """Keys that a file may hold too and that are resolved before validation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True
    )


N = TypeVar("N", bound=BaseModel)


def read_text(path: Path | str) -> str:
    """The text of a file that a user named. InputError if missing, a folder, binary."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, fix=_near_files(path)) from None
    except IsADirectoryError:
        raise InputError("is a folder; a file is needed", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"is not a text file (byte {error.start} is no UTF-8)"
        raise InputError(message, file=path, fix="a UTF-8 text file is needed") from None
    if "\0" in text:
        raise InputError("is a binary file; a text file is needed", file=path)
    return text


def load_toml(path: Path | str) -> dict[str, Any]:
    """The tables of a TOML file. InputError with line and column for a fault in the syntax."""
    try:
        return tomllib.loads(read_text(path).replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        fix = "text values need quotes, tables look like [model], keys like layers = 4"
        raise InputError(f"is not TOML: {error}", file=path, fix=fix) from None


def take_schema(data: Mapping[str, Any], *, file: Path | str) -> dict[str, Any]:
    """`data` without its `schema` number (1 if absent). InputError if it is newer than ours."""
    rest = dict(data)
    schema = rest.pop("schema", 1)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        fix = f"write schema = {SCHEMA}, or leave it out"
        raise InputError("is no schema number", file=file, key="schema", value=schema, fix=fix)
    if schema > SCHEMA:
        message = f"was written for a newer Atoll; this one reads schema {SCHEMA} and older"
        fix = "upgrade with: pip install --upgrade atoll"
        raise InputError(message, file=file, key="schema", value=schema, fix=fix)
    return rest


def validate(cls: type[N], data: object, *, file: Path | str | None = None) -> N:
    """An instance of `cls` from plain data.

    Raises one InputError that names file, dotted key, value, and the nearest right key or the
    allowed values. When several things are wrong it explains the first and names the others.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        # An unknown key often explains a missing one, so it is told first.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    found = _explain(cls, data, faults[0])
    told = {found.key, *(found.fix or "").removeprefix("nearest: ").splitlines()[:1]}
    others = {_dotted(_steps(data, fault["loc"])) for fault in faults[1:]} - told
    if others:
        also = "also wrong: " + ", ".join(sorted(others)[:5])
        found.fix = also if found.fix is None else f"{found.fix}\n{also}"
    found.file = None if file is None else str(file)
    raise found from None


def _explain(cls: type[BaseModel], data: object, fault: ErrorDetails) -> InputError:
    """One pydantic fault as an InputError, without a file."""
    steps = _steps(data, fault["loc"])
    key = _dotted(steps)
    kind, context = fault["type"], fault.get("ctx", {})
    value = fault["input"]
    if kind == "extra_forbidden":
        shown = MISSING if isinstance(value, dict) else value
        message = f"there is no such {'table' if isinstance(value, dict) else 'key'}"
        return InputError(message, key=key, value=shown, fix=_near_keys(cls, steps))
    if kind == "missing":
        return InputError("this key is missing", key=key, fix=_example(cls, steps))
    raised = context.get("error")
    if isinstance(raised, InputError):
        inner = ".".join(part for part in (key, raised.key) if part)
        shown = raised.value
        if shown is MISSING and raised.key is None and not isinstance(value, dict | BaseModel):
            shown = value
        return InputError(raised.message, key=inner or None, value=shown, fix=raised.fix)
    if kind in ("literal_error", "enum"):
        return _not_allowed(key, value, cls, steps)
    fix = _PATTERNS.get(context.get("pattern", "")) if kind == "string_pattern_mismatch" else None
    message = "cannot be written so" if fix else _wanted(kind, context, fault["msg"])
    return InputError(message, key=key or None, value=value, fix=fix)


_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters from A to Z, digits, and . _ - between them",
    r"^[a-z0-9][a-z0-9.-]*$": "small letters from a to z, digits, and . - between them",
    r"^[A-Z]{3}$": 'three capitals, for example "USD"',
}
"""Patterns of keys, and what to write by them; a stranger reads no regular expressions."""


def _wanted(kind: str, context: Mapping[str, Any], message: str) -> str:
    """What a value should have been, in plain words."""
    words = {
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "string_type": "must be text in quotes",
        "list_type": "must be a list in [ ]",
        "tuple_type": "must be a list in [ ]",
        "dict_type": "must be a table",
        "model_type": "must be a table",
        "model_attributes_type": "must be a table",
        "date_type": "must be a date such as 2024-07-01",
        "string_too_short": "must not be empty",
        "string_too_long": "must have at most {max_length} characters",
        "too_short": "must have at least {min_length} entries",
        "too_long": "must have at most {max_length} entries",
        "greater_than": "must be greater than {gt}",
        "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
    }
    numbers = {name: _plain_number(value) for name, value in context.items()}
    return words[kind].format_map(numbers) if kind in words else message


def _plain_number(value: object) -> object:
    """0.0 as 0, the way a person writes a limit."""
    return f"{value:g}" if isinstance(value, float) else value


def _not_allowed(
    key: str, value: object, cls: type[BaseModel], steps: Sequence[str | int]
) -> InputError:
    """The error for a value outside a fixed list."""
    owner = _class_at(cls, steps[:-1])
    field = next((f for n, f in _fields(owner) if n == steps[-1]), None) if owner else None
    allowed = [str(item) for item in _literals(field.annotation)] if field is not None else []
    near = difflib.get_close_matches(str(value), allowed, n=1)
    fix = "allowed: " + ", ".join(f'"{item}"' for item in allowed)
    if near:
        fix = f'nearest: "{near[0]}"\n{fix}'
    return InputError("is not allowed here", key=key, value=value, fix=fix)


def nearest(name: str, known: Sequence[str], *, what: str) -> str:
    """The fix for an unknown name: the nearest known one, and the list."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"known {what}: " + (", ".join(known) if known else "none")
    return f'nearest: "{close[0]}"\n{listed}' if close else listed


def _near_keys(cls: type[BaseModel], steps: Sequence[str | int]) -> str:
    """The nearest right key: in this table, of that very name elsewhere, nearly so elsewhere."""
    wrong = str(steps[-1])
    owner = _class_at(cls, steps[:-1])
    here = _names(owner) if owner else []
    table = _dotted(steps[:-1])
    everywhere = list(_all_keys(cls))
    lines = []
    if near := difflib.get_close_matches(wrong, here, n=1):
        lines.append(f"nearest: {table + '.' if table else ''}{near[0]}")
    elif same := [key for key in everywhere if key.rsplit(".", 1)[-1] == wrong]:
        lines.append("nearest: " + ", ".join(same))
    else:
        leaves = {key.rsplit(".", 1)[-1]: key for key in everywhere}
        if near := difflib.get_close_matches(wrong, list(leaves), n=1, cutoff=0.8):
            lines.append(f"nearest: {leaves[near[0]]}")
    lines.append(f"keys of {f'[{table}]' if table else 'the file'}: {', '.join(here)}")
    return "\n".join(lines)


def _example(cls: type[BaseModel], steps: Sequence[str | int]) -> str | None:
    """What a missing key holds, from its description or an example in the noun."""
    owner = _class_at(cls, steps[:-1])
    for name, field in _fields(owner) if owner else ():
        if name == steps[-1] and field.examples:
            shown = field.examples[0]
            if isinstance(shown, dict):
                return "add the table [" + _dotted(steps) + "]: " + show_value(shown)
            return f"for example {name} = {show_value(shown)}"
    return None


def _near_files(path: Path) -> str:
    """What lies beside a missing file under nearly that name, or which folder is missing."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    near = difflib.get_close_matches(path.name, sorted(p.name for p in folder.iterdir()), n=1)
    return f"nearest: {folder / near[0]}" if near else f"the folder {folder} exists"


def _steps(data: object, loc: Sequence[str | int]) -> list[str | int]:
    """`loc` without the steps that pydantic adds for members of a union."""
    steps: list[str | int] = []
    here: Any = data
    for step in loc:
        if isinstance(step, int) and isinstance(here, list | tuple):
            here = here[step] if step < len(here) else None
        elif isinstance(step, str) and isinstance(here, dict):
            here = here.get(step)
        else:
            continue
        steps.append(step)
    return steps


def _dotted(steps: Sequence[str | int]) -> str:
    """(island, 1, share) -> "island[1].share"; entries count from 0 as in the file."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + show_key(step)
    return text


def _fields(cls: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """The fields of a noun under the names that files use."""
    for name, field in cls.model_fields.items():
        yield field.alias or name, field


def _names(cls: type[BaseModel]) -> list[str]:
    """The keys of a noun's table in a file."""
    return [name for name, _ in _fields(cls)] + list(getattr(cls, "FILE_KEYS", ()))


def _class_at(cls: type[BaseModel], steps: Sequence[str | int]) -> type[BaseModel] | None:
    """The noun that the table at `steps` becomes, or None where there is none."""
    owner: type[BaseModel] | None = cls
    for step in steps:
        if isinstance(step, int):
            continue
        field = next((f for n, f in _fields(owner) if n == step), None) if owner else None
        owner = next(_nouns_in(field.annotation), None) if field is not None else None
    return owner


def _nouns_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All nouns inside an annotation, such as the X of list[X] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _nouns_in(inner)


def _literals(annotation: Any) -> Iterator[object]:
    """All allowed values inside an annotation."""
    for inner in get_args(annotation):
        if isinstance(inner, str | int):
            yield inner
        else:
            yield from _literals(inner)


def _all_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a file of this noun may hold."""
    yield from (prefix + name for name in _names(cls))
    for name, field in _fields(cls):
        for inner in _nouns_in(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")


def unique(what: str, names: Iterable[str]) -> None:
    """InputError for a name that is there twice."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            key, fix = f"{what}[{index}].name", f"give each {what} its own name"
            raise InputError(f"there is another {what} of this name", key=key, value=name, fix=fix)
        seen.add(name)
