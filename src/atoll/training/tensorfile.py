"""Files of tensors in the safetensors format, written and read one tensor at a time.

The format is a header length (8 bytes, little-endian), a JSON header (type, shape and place of each
tensor) and the raw bytes; the safetensors library reads what is written here. That library itself
is not used, because it wants all tensors of a file on the host at once to write them, and maps
the whole file to read one: either shows up as peak memory of the run. Nothing is verified here;
`checkpoint` keeps the checksums.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CHUNK = 4 << 20

# The names that the safetensors format gives to torch's types.
_CODES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
_TORCH_NAMES = {code: name.removeprefix("torch.") for name, code in _CODES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written to a file: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where one tensor lies in a file; `start` counts from the file's first byte."""

    code: str
    shape: tuple[int, ...]
    start: int


def code_of(dtype: torch.dtype) -> str:
    """The format's name of a torch type, such as "F32"."""
    return _CODES[str(dtype)]


def write_tensors(
    file: FileIO,
    named: Mapping[str, torch.Tensor],
    *,
    host: Callable[[torch.Tensor], torch.Tensor],
) -> Written:
    """Stream `named` into an empty file, with one result of `host` alive at a time.

    When it returns the kernel holds every byte, so the tensors may change; the file is not synced.
    Raises OSError.
    """
    assert sys.byteorder == "little", "the safetensors format is little-endian"
    # Widest elements first, so that every tensor starts at a multiple of its element's size.
    names = sorted(named, key=lambda name: -named[name].element_size())
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = named[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": code_of(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    _put(file, memoryview(len(text).to_bytes(8, "little") + text), digest)
    for name in names:
        _put(file, _bytes_of(host(named[name])), digest)
    return Written(size=8 + len(text) + end, sha256=digest.hexdigest())


def write_bytes(file: FileIO, data: bytes) -> Written:
    """Write `data` into an empty file, all of it. Raises OSError."""
    digest = hashlib.sha256()
    _put(file, memoryview(data), digest)
    return Written(size=len(data), sha256=digest.hexdigest())


def read_header(path: Path) -> dict[str, Entry]:
    """Name and place of each tensor in a file whose bytes are known to be right."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: Entry(
            code=info["dtype"],
            shape=tuple(info["shape"]),
            start=8 + length + info["data_offsets"][0],
        )
        for name, info in header.items()
    }


def empty(entry: Entry) -> torch.Tensor:
    """A CPU tensor of the entry's shape and type, to be filled."""
    import torch

    return torch.empty(entry.shape, dtype=getattr(torch, _TORCH_NAMES[entry.code]))


def fill(file: FileIO, entry: Entry, tensor: torch.Tensor) -> None:
    """Read an entry's bytes straight into the memory of a contiguous CPU tensor.

    The tensor must have the entry's shape and type. Raises OSError, also when the file ends early.
    """
    target = _bytes_of(tensor)
    file.seek(entry.start)
    while target:
        count = file.readinto(target)
        if not count:
            raise OSError(f"{file.name} ended early while it was read")
        target = target[count:]


def _put(file: FileIO, data: memoryview, digest: hashlib._Hash) -> None:
    """Write and hash in pieces that stay in the processor's cache; short writes go on."""
    for begin in range(0, len(data), _CHUNK):
        piece = data[begin : begin + _CHUNK]
        digest.update(piece)
        while piece:
            piece = piece[file.write(piece) :]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a CPU tensor as bytes, without a copy where it is contiguous."""
    import torch

    assert tensor.device.type == "cpu", "host() must return a CPU tensor"
    if tensor.numel() == 0:
        return memoryview(b"")
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # an array is a buffer
