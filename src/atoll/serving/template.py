"""Chat templates: messages to the text that a model was taught to answer.

What it is: the model's own Jinja template, filled in by a process that is bounded in memory and
time (template_process.py), and a plain form for models that have none. What it is not: tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from atoll.errors import AtollError, InputError

Messages = Sequence[Mapping[str, str]]
"""Of each a "role" (system, user, assistant) and a "content"."""

PLAIN_STOPS = ("\nUser:",)
"""Where an answer ends in the plain form."""

_MEMORY = 512 << 20  # bytes of address space for the process; Python and Jinja take about 50 MiB
_LONGEST_TEXT = 16 << 20  # bytes
_LONGEST_TIME = 10.0  # seconds; a usual template takes a millisecond


class TemplateFailed(AtollError):
    """The template is broken, takes too long or makes too much: the model's fault."""


def plain(messages: Messages) -> str:
    """The form for a model without a template: "User: ..." and "Assistant: ...", a line each."""
    names = {"user": "User", "assistant": "Assistant"}
    lines = []
    for message in messages:
        text = message["content"].strip()
        role = message["role"]
        lines.append(f"{text}\n" if role == "system" else f"{names[role]}: {text}")
    return "\n".join([*lines, "Assistant:"])


class Template:
    """A Jinja template and the process that fills it in, started when it is first needed.

    Safe from several threads, which wait for one another. ``close`` ends the process; another
    call would start a new one.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._source, self._variables = source, dict(variables)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def render(self, messages: Messages) -> str:
        """The text of the messages, with the beginning of the next answer.

        InputError if the template says that the messages are wrong, TemplateFailed if it fails.
        """
        variables = {
            **self._variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": True,
        }
        with self._lock:
            answer = self._ask(json.dumps(variables).encode())
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise InputError(f"the model's chat template refuses the messages: {answer['refused']}")
        raise TemplateFailed(f"the model's chat template fails: {answer['failed']}")

    def close(self) -> None:
        """End the process. Idempotent."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> dict[str, str]:
        connection = self._connection or self._start()
        try:
            connection.send_bytes(request)
            if connection.poll(_LONGEST_TIME):
                answer: dict[str, Any] = json.loads(connection.recv_bytes(_LONGEST_TEXT))
                return answer
            reason = f"it takes more than {_LONGEST_TIME:g} s"
        except (OSError, EOFError):
            reason = "it takes too much memory, or makes too much text"
        self._end()
        return {"failed": reason}

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        program = Path(__file__).with_name("template_process.py")
        command = [sys.executable, "-P", str(program), str(theirs.fileno()), str(_MEMORY)]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the terminal is the server's to deal with
            )
        ours.send_bytes(self._source.encode())
        self._connection = ours
        return ours

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None
