"""Importing this installs the stand-in device: for processes that can only be given a module."""

import device

device.install()
