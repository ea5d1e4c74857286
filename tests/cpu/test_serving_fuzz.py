"""The API, fuzzed from its own OpenAPI page: every answer is one that the page declares.

Seeded and bounded; a bigger run by hand: `python tests/cpu/test_serving_fuzz.py 2000`.
"""

import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from tests.served import serving
from tests.tiny_model import open_tiny

KEY = "secret-7"
NUM_EXAMPLES = 8
# What one field means beside another is no matter of a schema: a request that fits the page may
# be refused with 400, and many at a time with 429.
REFUSALS = ["400", "404", "422", "429"]


def fuzz(served, num_examples):
    """Every operation with bodies that fit the page and bodies that do not; how many of each."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    schema.config.checks.positive_data_acceptance.expected_statuses = ["2xx", *REFUSALS]
    counts = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with suppress(Unsatisfiable):  # an operation without inputs has none that are wrong
                cases = operation.as_strategy(generation_mode=mode)
                _run(cases, num_examples, counts, (operation.label, mode.value))
    return counts


def _run(cases, num_examples, counts, name):
    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case):
        response = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"})
        status = counts.setdefault(name, {})
        status[response.status_code] = status.get(response.status_code, 0) + 1

    check()


@pytest.mark.filterwarnings("ignore")
def test_every_answer_is_one_that_the_page_declares(tmp_path):
    with serving(open_tiny(tmp_path), key=KEY, fast=True) as served:
        counts = fuzz(served, NUM_EXAMPLES)
        load = served.engine.load()
    for path in ("POST /v1/chat/completions", "POST /v1/completions"):
        assert counts[path, "positive"].get(200), "some get through to the engine"
        assert counts[path, "negative"].get(400), "some are told what is wrong"
    assert not load.failure and not load.running


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(open_tiny(Path(folder)), key=KEY) as running,
    ):
        for (path, kind), statuses in fuzz(running, int(sys.argv[1])).items():
            print(f"{path:32} {kind:9} {dict(sorted(statuses.items()))}")
