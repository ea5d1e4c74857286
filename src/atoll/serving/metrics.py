"""Numbers for Prometheus: what the engine is doing, and how requests fared.

What it is: a registry of its own for each server, so that several can live in one process. The
engine's numbers are read when somebody asks. Seconds, bytes, tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.serving.request import Engine

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Counts requests; ``page`` is all of it in Prometheus' text format."""

    def __init__(self, engine: Engine) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(engine))
        self._requests = Counter(
            "atoll_requests",
            "Answers by path and HTTP status; 499 is a client that left.",
            ["path", "status"],
            registry=self._registry,
        )
        self.open = Gauge(
            "atoll_open_requests", "HTTP requests not answered yet.", registry=self._registry
        )
        self.first_token = Histogram(
            "atoll_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_FIRST_TOKEN,
            registry=self._registry,
        )
        self.whole = Histogram(
            "atoll_request_seconds",
            "From a request's arrival to the end of its answer.",
            buckets=_WHOLE,
            registry=self._registry,
        )

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(path, str(status)).inc()

    def page(self) -> bytes:
        """All numbers as they are now."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


class _OfEngine:
    """The engine's numbers, read when a scrape comes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> list[Any]:
        """Nothing beforehand: the registry need not collect to learn the names."""
        return []

    def collect(self) -> Iterator[Any]:
        """Gauges of this moment, counters since the start."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        load = self._engine.load()
        for name, what, value in (
            ("atoll_running_requests", "Requests in the batch.", load.running),
            ("atoll_queued_requests", "Requests that wait for a place.", load.queued),
            ("atoll_slots", "Places in the batch.", load.slots),
            ("atoll_cache_used_bytes", "Keys and values of requests.", load.cache_used),
            ("atoll_cache_kept_bytes", "Of earlier requests, given up on need.", load.cache_kept),
            ("atoll_cache_size_bytes", "The bound on keys and values.", load.cache_size),
        ):
            yield GaugeMetricFamily(name, what, value=value)
        tokens = CounterMetricFamily(
            "atoll_tokens",
            "Tokens by kind; cached ones are among those of prompts.",
            labels=["kind"],
        )
        tokens.add_metric(["prompt"], load.prompt_tokens)
        tokens.add_metric(["cached"], load.cached_tokens)
        tokens.add_metric(["generated"], load.generated_tokens)
        yield tokens
        yield CounterMetricFamily(
            "atoll_steps",
            "Batches computed; tokens over steps is the mean batch.",
            value=load.steps,
        )
        for name, what, numbers in (
            ("atoll_finished", "Requests that the engine has done with.", load.finished),
            ("atoll_finished_tokens", "Tokens of their answers.", load.finished_tokens),
        ):
            finished = CounterMetricFamily(name, f"{what} By reason.", labels=["reason"])
            for reason, number in sorted(numbers.items()):
                finished.add_metric([reason], number)
            yield finished
