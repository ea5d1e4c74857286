"""A pilot in a process of its own, for test_training.py to interrupt and to kill.

Arguments: recipe, fleet, run, cache.
"""

import sys
from pathlib import Path

from atoll.training.crewing import Starting
from atoll.training.display import SilentDisplay
from atoll.training.session import train

if __name__ == "__main__":
    recipe, fleet, run, cache = sys.argv[1:]
    result = train(
        recipe,
        display=SilentDisplay(),
        fleet=Path(fleet),
        run=Path(run),
        cache=Path(cache),
        starting=Starting(entry="training_faults:slow", python_path=[Path(__file__).parent]),
    )
    sys.exit(result.exit_code)
