"""What all tests share: a marker for each folder, and calm settings for property tests.

It imports neither torch nor numpy, because tests/facts, tests/pure and tests/rules need none.
"""

from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
FOLDERS = ("facts", "pure", "cpu", "standin", "processes", "browser", "nvidia", "optional")

# No deadline: this project asserts no times, and a shared machine may stall anywhere.
settings.register_profile("atoll", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("atoll")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Things that are not always installed, given by path; without them their tests skip."""
    parser.addoption(
        "--torch-npu-python",
        metavar="PATH",
        help="a Python that has torch-npu and atoll's requirements, for tests/optional",
    )
    parser.addoption(
        "--other-torch-python",
        metavar="PATH",
        help="a Python that has another torch and atoll's requirements, for tests/optional",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with the name of its folder, so that `-m pure` works."""
    for item in items:
        parts = item.path.relative_to(TESTS).parts if item.path.is_relative_to(TESTS) else ()
        if parts and parts[0] in FOLDERS:
            item.add_marker(parts[0])


@pytest.fixture
def root() -> Path:
    """The top folder of the repository."""
    return TESTS.parent


@pytest.fixture
def examples(root: Path) -> Path:
    """The folder of example recipes and fleets."""
    return root / "examples"
