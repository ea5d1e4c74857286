"""Entry point of an island on the stand-in device: install it, then be an ordinary island."""

import device

device.install()

from atoll.training.island import main  # noqa: E402  # the device must be there before torch is used

__all__ = ["main"]
