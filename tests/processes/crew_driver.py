"""A pilot for test_crew.py to kill: starts islands and then only waits.

Arguments: folder, modules to preload (or ""), number of islands.
"""

import sys
import time
from pathlib import Path

from atoll.crew.local import LocalCrew

if __name__ == "__main__":
    folder, preload, num_islands = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    crew = LocalCrew(
        entry="crew_island:main",
        logs=folder,
        preload=[module for module in preload.split(",") if module],
        python_path=[Path(__file__).parent, folder],
    )
    for number in range(num_islands):
        crew.start(
            f"i{number}", ["wait", str(folder / f"i{number}.json")], {"WHO": str(number % 2)}
        )
    (folder / "driving").touch()
    time.sleep(600)
