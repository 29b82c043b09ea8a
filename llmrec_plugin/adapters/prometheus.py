"""What the runs of this process come to, as Prometheus metrics, through the client that Feast brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmrec_plugin.runtime.cache import RunReport
from llmrec_plugin.runtime.observers import add_observer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# Requests take milliseconds, materialization up to hours.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600)

_observers: dict[CollectorRegistry, PrometheusObserver] = {}
_removers: dict[CollectorRegistry, Callable[[], None]] = {}


class PrometheusObserver:
    """Counts runs in a registry; labels are the feature and the mode (batch, on_demand, historical, push).

    ``llmrec_rows_total``       rows, by ``outcome``: ok, empty, invalid, fallback
    ``llmrec_texts_total``      distinct texts of each run, by ``source``: cache, model, or none (not in time)
    ``llmrec_tokens_total``     tokens that encoders read
    ``llmrec_run_seconds``      histogram: how long runs took
    ``llmrec_waiting_texts``    texts of requests that waited when the last request was answered, of all processes

    Args:
        registry: Must not have these metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        labels = ("feature", "mode")
        self._rows = Counter(
            "llmrec_rows", "Rows whose feature was computed or looked up.", (*labels, "outcome"), registry=registry
        )
        self._texts = Counter("llmrec_texts", "Distinct texts of runs.", (*labels, "source"), registry=registry)
        self._tokens = Counter("llmrec_tokens", "Tokens that encoders read.", labels, registry=registry)
        self._seconds = Histogram(
            "llmrec_run_seconds", "How long runs took.", labels, registry=registry, buckets=SECONDS
        )
        self._waiting = Gauge(
            "llmrec_waiting_texts",
            "Texts of requests that waited when the last request was answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def ran(self, report: RunReport, waiting: Callable[[], int]) -> None:
        labels = (report.feature, report.mode)
        without = {"empty": report.empty, "invalid": report.invalid, "fallback": report.fallback}
        outcomes = {"ok": report.rows - sum(without.values()), **without}
        for outcome, count in outcomes.items():
            self._rows.labels(*labels, outcome).inc(max(count, 0))
        sources = {"cache": report.cached, "model": report.computed}
        for source, count in {**sources, "none": report.texts - sum(sources.values())}.items():
            self._texts.labels(*labels, source).inc(max(count, 0))
        self._tokens.labels(*labels).inc(report.tokens)
        self._seconds.labels(*labels).observe(report.seconds)
        if report.mode == "on_demand":
            self._waiting.set(waiting())

    def encoded(self, feature: str, tokens: int) -> None:
        self._tokens.labels(feature, "on_demand").inc(tokens)


def observe_with_prometheus(registry: CollectorRegistry | None = None) -> Callable[[], None]:
    """Counts every run of this process from now on, see `PrometheusObserver`; calling it again changes nothing.

    In a feature server call it where Feast has imported its own metrics, i.e. in ``static_artifacts.py``: the client
    library decides when it is first imported whether processes share their counts.

    Args:
        registry: Default: the client library's own, which Feast's metrics server shows.

    Returns:
        A function that ends it; what was counted stays in the registry.
    """
    import prometheus_client

    counted = prometheus_client.REGISTRY if registry is None else registry
    if counted not in _observers:
        _observers[counted] = PrometheusObserver(counted)
    if counted not in _removers:
        _removers[counted] = add_observer(_observers[counted])

    def remove() -> None:
        end = _removers.pop(counted, None)
        if end is not None:
            end()

    return remove
