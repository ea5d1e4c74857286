"""A display that also serves the newest state of a run to Prometheus, at /metrics.

It holds no history and asks the run nothing: each scrape shows the last snapshot, and counts the
events in the run's own file. Nobody is asked for a name or a password, so it listens on this
machine alone unless told otherwise.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atoll.crew import wire
from atoll.errors import InputError
from atoll.history.reading import Tail, event_of
from atoll.training.display import Display, Snapshot

LOOPBACK = "127.0.0.1"


def address_of(text: str) -> tuple[str, int]:
    """ "0.0.0.0:9100" as (host, port); "9100" and ":9100" are of this machine alone. InputError
    for anything else."""
    short = text.strip().removeprefix(":")
    try:
        return wire.parse_address(f"{LOOPBACK}:{short}" if short.isdigit() else text)
    except InputError as error:
        error.key, error.value = "--metrics", text
        error.message, error.fix = "is not an address", "write HOST:PORT, such as 127.0.0.1:9100"
        raise


class PrometheusDisplay:
    """Another display, and an HTTP server beside it; `port` is the one that it got."""

    def __init__(self, inner: Display, address: str) -> None:
        """Listens from now on. InputError for a bad address, or one that is in use."""
        from prometheus_client import CollectorRegistry, start_http_server

        host, port = address_of(address)
        self._inner = inner
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._seen: set[str] = set()
        self._events: Tail[dict[str, Any]] | None = None
        registry = CollectorRegistry()
        registry.register(_Collector(self))
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise InputError(
                f"cannot listen there: {error.strerror or error}",
                key="--metrics",
                value=address,
                fix="choose another port, or 0 for any that is free",
            ) from None
        self.port = int(self._server.server_port)
        shown = f"[{host}]" if ":" in host else host
        inner.say(f"metrics: http://{shown}:{self.port}/metrics")

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now, and serve it from now on."""
        with self._lock:
            self._snapshot = snapshot
            self._seen |= {island.name for island in snapshot.islands}
        self._inner.update(snapshot)

    def say(self, text: str) -> None:
        """Handed on."""
        self._inner.say(text)

    def phase(self, text: str, fraction: float | None) -> None:
        """Handed on."""
        self._inner.phase(text, fraction)

    def close(self) -> None:
        """Stop serving. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        self._inner.close()

    def state(self) -> tuple[Snapshot | None, set[str], Counter[str]]:
        """The last snapshot, islands that were seen once and are not in it, events by kind."""
        with self._lock:
            snapshot = self._snapshot
            if snapshot is None:
                return None, set(), Counter()
            if self._events is None:
                self._events = Tail(Path(snapshot.run) / "events.jsonl", event_of)
            self._events.refresh()
            counts = Counter(str(event["kind"]) for event in self._events.items)
            gone = self._seen - {island.name for island in snapshot.islands}
            return snapshot, gone, counts


class _Collector:
    """What a scrape gets; made anew each time, so that islands that left leave no numbers."""

    def __init__(self, display: PrometheusDisplay) -> None:
        self._display = display

    def describe(self) -> list[Any]:
        """Nothing beforehand: the registry need not collect to learn the names."""
        return []

    def collect(self) -> Iterator[Any]:
        """The families of metrics, by the last snapshot."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        snapshot, gone, events = self._display.state()
        if snapshot is None:
            return
        for name, what, value in (
            ("atoll_step", "Steps that are committed.", snapshot.step),
            ("atoll_total_steps", "The step at which this call ends.", snapshot.total_steps),
            ("atoll_loss", "Mean loss of the last step, nats a token.", snapshot.loss),
            ("atoll_val_loss", "Newest validation loss, nats a token.", snapshot.val_loss),
            ("atoll_tokens_per_second", "Of the last step.", snapshot.tokens_per_second),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, what, value=value)
        yield CounterMetricFamily("atoll_tokens", "Tokens since step 1.", value=snapshot.tokens)
        states = Counter(island.state for island in snapshot.islands)
        family = GaugeMetricFamily("atoll_islands", "Islands by state.", labels=["state"])
        for state in sorted({"computing", "healing", *states}):
            family.add_metric([state], states[state])
        family.add_metric(["gone"], len(gone))
        yield family
        labels = ["island", "chip"]
        grains = GaugeMetricFamily("atoll_island_grains", "Grains of the last step.", labels=labels)
        speed = GaugeMetricFamily(
            "atoll_island_grains_per_second", "Speed as the pilot measures it.", labels=labels
        )
        for island in snapshot.islands:
            grains.add_metric([island.name, island.chip], island.grains)
            if island.grains_per_second is not None:
                speed.add_metric([island.name, island.chip], island.grains_per_second)
        yield grains
        yield speed
        counter = CounterMetricFamily(
            "atoll_events", "Lines of events.jsonl by kind, of all sessions.", labels=["kind"]
        )
        for kind, number in sorted(events.items()):
            counter.add_metric([kind], number)
        yield counter
