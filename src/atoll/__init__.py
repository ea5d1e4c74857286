"""Atoll: the fleet changes, the run does not.

Importing this package imports nothing heavy; start at `atoll.recipe`, `atoll.fleet`, `atoll.plan`
and `atoll.run`, or at the command line with `atoll --help`.
"""

__version__ = "0.1.0"
