"""Waiting goes by a clock that nobody sets; the wall clock only stamps and shows."""

import ast

import pytest
from tests.rules.test_style import PATHS, SOURCE, parse

MAY_STAMP = {
    "cli/checking.py": "a check without a day is of today",
    "cli/watch_terminal.py": "how long ago an island was seen",
    "history/reading.py": "whether a file was written a moment ago",
    "planning/answer.py": "a plan without a day begins today",
    "serving/api.py": "when an answer was made",
    "run.py": "when an event happened",
    "training/measure.py": "the day of a measurement",
    "training/timetable.py": "the hours of a day are those of the wall",
    "training/metrics.py": "TensorBoard's events have a time",
    "web/run_page.py": "the page says when it was drawn",
}
"""Modules that may look at the wall clock, and what for. None of them waits for anything."""
MAY_COMPARE = {"history/reading.py", "training/timetable.py"}
"""With the time of a file, or the hours of the day: wall time too."""

WALL = {
    "time": {"time", "time_ns", "gmtime", "localtime", "ctime", "clock_gettime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
GIVEN_A_TIME = {"gmtime", "localtime", "ctime"}
"""With an argument these only write a time out."""


def wall_clocks(tree):
    """(line, how) of every look at the wall clock; `how` is "compared" where it is reckoned with.

    Imports by name and names under another name count as looks, so that nothing slips past.
    """
    reckoned = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.BinOp):
            reckoned.update(ast.walk(node))
        elif isinstance(node, ast.AugAssign) and isinstance(node.value, ast.Call):
            reckoned.add(node.value.func)
    harmless = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in GIVEN_A_TIME
        and node.args
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [(node.lineno, "named") for a in node.names if a.name in WALL["time"]]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, "named") for a in node.names if a.name == "time" and a.asname]
        elif isinstance(node, ast.Attribute) and node not in harmless:
            owner = ast.unparse(node.value).rpartition(".")[2]
            if node.attr in WALL.get(owner, ()):
                found.append((node.lineno, "compared" if node in reckoned else "stamped"))
    return found


@pytest.mark.parametrize("path", PATHS, ids=[str(path.relative_to(SOURCE)) for path in PATHS])
def test_the_wall_clock_only_stamps(path):
    name = str(path.relative_to(SOURCE))
    found = wall_clocks(parse(path))
    if name not in MAY_STAMP:
        assert not found, "use time.monotonic() to wait, time.perf_counter() to measure"
    elif name not in MAY_COMPARE:
        assert {how for _, how in found} <= {"stamped"}


def test_the_list_names_no_module_that_needs_no_place_on_it():
    assert all(wall_clocks(parse(SOURCE / name)) for name in MAY_STAMP)
    assert set(MAY_COMPARE) <= set(MAY_STAMP)


@pytest.mark.parametrize(
    ("text", "hows"),
    [
        ("import time\nend = time.time() + 5", ["compared"]),
        ("import time\nwhile time.time() < end: pass", ["compared"]),
        ("import time\nend += time.time()", ["compared"]),
        ("import time\nstamp(time.time())", ["stamped"]),
        ("import time\nclock = time.time", ["stamped"]),
        ("import time as t\nt.time()", ["named"]),
        ("from time import monotonic, time", ["named"]),
        ("import datetime\ndatetime.datetime.now() - began", ["compared"]),
        ("from datetime import date\ndate.today()", ["stamped"]),
        ("import time\ntime.localtime()", ["stamped"]),
        ("import time\ntime.localtime(seconds)", []),
        ("import time\nend = time.monotonic() + time.perf_counter()", []),
    ],
)
def test_looks_at_the_wall_clock_are_seen(text, hows):
    assert [how for _, how in wall_clocks(ast.parse(text))] == hows
