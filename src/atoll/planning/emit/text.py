"""Text: comments, shell words, TOML and YAML as the launch files need them; no parsing.

The YAML is the part of YAML 1.1 and 1.2 that both read alike: block maps, flow lists, literal
blocks, and quotes around every text that is not a plain word.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

MARK = "# Written by atoll plan --emit "
"""How the first comment of each file begins; the tool's name and a colon follow."""

WIDTH = 100
PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
RESERVED = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def comment(lines: Iterable[str]) -> str:
    """Paragraphs as lines of a comment."""
    out: list[str] = []
    for line in lines:
        out += textwrap.wrap(line, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in out)


def header(tool: str, lines: Sequence[str]) -> str:
    """The comment at the top of a file; its first line names the tool and what the file is."""
    first, *rest = lines
    return f"{MARK}{tool}: {first}\n" + comment(rest)


def number(value: float) -> str:
    """A number as all of shell, TOML and YAML read it; a float keeps a point."""
    text = repr(value)
    if isinstance(value, float) and "." not in text and "e" in text:
        text = text.replace("e", ".0e")
    return text


def toml_value(value: object) -> str:
    """A bool, number, text or list of such as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    assert isinstance(value, str)
    return json.dumps(value)


def toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Tables of keys as TOML; empty tables are left out."""
    parts = []
    for name, table in tables.items():
        rows = [f"{key} = {toml_value(value)}\n" for key, value in table.items()]
        if rows:
            parts.append(f"[{name}]\n" + "".join(rows))
    return "\n".join(parts)


def yaml(tree: Mapping[str, object], indent: int = 0) -> str:
    """Nested maps, lists of scalars, texts and numbers as YAML."""
    pad, out = " " * indent, ""
    for name, value in tree.items():
        key = _scalar(name)
        if isinstance(value, Mapping):
            out += f"{pad}{key}:\n" + yaml(value, indent + 2) if value else f"{pad}{key}: {{}}\n"
        elif isinstance(value, str) and "\n" in value:
            body = textwrap.indent(value.rstrip("\n"), pad + "  ", lambda line: bool(line.strip()))
            out += f"{pad}{key}: |\n{body}\n"
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            out += f"{pad}{key}:\n" + "".join(_item(item, pad) for item in value)
        else:
            out += f"{pad}{key}: {_scalar(value)}\n"
    return out


def _item(value: object, pad: str) -> str:
    """One entry of a list with a line for each entry."""
    if isinstance(value, Mapping):
        (key, inner), *_ = value.items()
        return f"{pad}  - {_scalar(key)}: {_scalar(inner)}\n"
    return f"{pad}  - {_scalar(value)}\n"


def _scalar(value: object) -> str:
    """A scalar or a flow list of scalars as YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    text = str(value)
    plain = PLAIN.fullmatch(text) and text.lower() not in RESERVED
    return text if plain else json.dumps(text)
