"""Where a pilot is and what lets one in: addresses and token files.

Not here: what is said at the door (`listening`, `wire`).
"""

import os
import secrets
from pathlib import Path

from atoll.errors import InputError


def parse_address(text: str) -> tuple[str, int]:
    """ "host:4711" or "[::1]:4711" as (host, port); `InputError` for anything else."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise InputError(
            f"{text!r} is not an address", fix="write HOST:PORT, for example 127.0.0.1:4711"
        )
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def write_token_file(path: Path) -> str:
    """Write a new random token (32 bytes as hex) that only this user can read, and return it."""
    token = secrets.token_hex(32)
    write_private(path, token)
    return token


def write_private(path: Path, token: str) -> None:
    """Write a token to a new file that only this user can read."""
    try:
        # A new file, never an old one: somebody may hold that open, or it may be a link.
        path.unlink(missing_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(token + "\n")
    except OSError as error:
        raise InputError(f"cannot write the token file: {error}", file=path) from error


def read_token_file(path: Path) -> str:
    """The token in `path`; `InputError` when the file is missing, unreadable, empty or no token."""
    fix = "copy the token file that the pilot wrote, and give its path"
    try:
        with path.open(encoding="ascii") as file:
            token = file.read(4097).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the token file: {error}", file=path, fix=fix) from error
    if not token or len(token) > 4096 or len(token.split()) != 1:
        raise InputError("the token file does not hold one token", file=path, fix=fix)
    return token
