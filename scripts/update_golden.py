"""Writes the golden files of tests/golden/emit and examples/clusters anew.

Look at the difference before you keep it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.pure import cluster_cases, emit_cases

emit_cases.update()
cluster_cases.update()
