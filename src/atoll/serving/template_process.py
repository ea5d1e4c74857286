"""The process that fills in chat templates: `python template_process.py DESCRIPTOR BYTES`.

A template is a program that came with somebody's weights. It runs in Jinja's sandbox, and in a
process of its own that may take so many bytes of memory and no more; its parent ends it when it
takes too long. The first message on the connection is the template, every other one a JSON object
of variables; each is answered by {"text"}, {"refused"} (the template says that the messages are
wrong) or {"failed"}. Started by template.py. Imports nothing of atoll, so that it starts quickly.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refused(TemplateError):
    """The template called raise_exception."""


class Generation(Extension):
    """`{% generation %}`, which marks what to train on: here just its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes up to `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """What templates for chats count on, as transformers gives it to them, without the clock."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def raise_exception(message: object) -> None:
        raise Refused(str(message))

    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = raise_exception
    return env


def answer(render: Callable[..., str], variables: dict[str, Any]) -> dict[str, str]:
    """The text, or why there is none."""
    try:
        return {"text": render(**variables)}
    except Refused as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"failed": "it takes too much memory"}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def limit_memory(num_bytes: int) -> None:
    """Let this process have no more address space; where a system has no such limit, nothing."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    except (ImportError, ValueError, OSError):
        return


def main() -> None:
    """Answer until the other side closes the connection."""
    descriptor, num_bytes = map(int, sys.argv[1:])
    limit_memory(num_bytes)
    connection = Connection(descriptor)
    try:
        source = connection.recv_bytes().decode()
        try:
            render = environment().from_string(source).render
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            while connection.recv_bytes():
                connection.send_bytes(json.dumps({"failed": reason}).encode())
        while True:
            variables = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps(answer(render, variables)).encode())
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main()
