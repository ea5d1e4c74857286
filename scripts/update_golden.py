"""Writes the golden files of tests/golden/emit anew; look at the difference before you keep it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.pure.emit_cases import update

update()
