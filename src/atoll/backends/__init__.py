"""Backends: one file a vendor stack, and the two ways to get one.

`of_chip` goes by the chip's fact file, `here` by what torch finds in this process. Importing this
package imports neither torch nor a vendor's library. What a backend is: `base.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from atoll.backends.base import Backend, Feature, Memory, current_accelerator
from atoll.errors import InputError

if TYPE_CHECKING:
    from atoll.facts import Chip

__all__ = [
    "NAMES",
    "Backend",
    "Feature",
    "Memory",
    "current_accelerator",
    "here",
    "named",
    "of_chip",
]

_CLASSES = {
    "cpu": ("atoll.backends.cpu", "Cpu"),
    "nvidia": ("atoll.backends.nvidia", "Nvidia"),
    "ascend": ("atoll.backends.ascend", "Ascend"),
    "cambricon": ("atoll.backends.cambricon", "Cambricon"),
    "null": ("atoll.backends.null", "Null"),
}
NAMES = tuple(_CLASSES)
"""Names of the backends with a file of their own, as chip facts write them."""


def named(name: str) -> Backend:
    """The backend of that name; InputError with the known names for another.

    It may be one that this machine cannot run: ask its `available()`.
    """
    if name not in _CLASSES:
        raise InputError(
            f"no backend is called {name!r}",
            key="backend",
            value=name,
            fix=f"use one of {', '.join(NAMES)}",
        )
    module, member = _CLASSES[name]
    made = getattr(importlib.import_module(module), member)()
    assert isinstance(made, Backend)
    return made


def of_chip(chip: str | Chip) -> Backend:
    """The backend that runs this chip, by its facts (a chip's name, or a loaded Chip).

    A chip whose facts say backend "here" is whatever this process has.
    """
    if isinstance(chip, str):
        from atoll import facts

        chip = facts.chip(chip)
    return here() if chip.backend == "here" else named(chip.backend)


def here() -> Backend:
    """The backend of this process: its accelerator as torch names it, else the CPU.

    A type without a file of its own gets the base class, with plain-torch answers. An accelerator
    that is only listed (no device, no driver) does not count.
    """
    device_type = current_accelerator()
    if device_type is not None:
        for name in NAMES:
            backend = named(name)
            if backend.device_type == device_type and backend.available():
                return backend
        generic = Backend(device_type)
        if generic.available():
            return generic
    return named("cpu")
