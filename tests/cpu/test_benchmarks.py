"""The benchmark scripts still run: `--help` of all, and the quick path of those that take seconds.

Nothing here looks at a time or a ratio.
"""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED = {"common", "contenders", "exact", "faults_peer", "llm_analysis_peer", "plain"}
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in SHARED)
QUICK = ["accumulators", "exactness_cost", "planner"]
"""The others start several fleets or the Trainer, and take longer than ten seconds."""


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards are prepared once for all scripts."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_is_claimed(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "laim" in done.stdout or "Utilisation" in done.stdout or "lose" in done.stdout


@pytest.mark.parametrize("name", QUICK)
def test_the_quick_path_prints_a_result(name: str, cache: Path) -> None:
    done = run(name, "--quick", "--cache", str(cache))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("|--") for line in lines), done.stdout
    assert f"benchmarks/{name}.py --quick" in lines[-1], done.stdout
    assert "nan" not in done.stdout


def test_every_script_has_its_section_in_the_docs() -> None:
    text = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    missing = [name for name in SCRIPTS if f"benchmarks/{name}.py" not in text]
    assert not missing
