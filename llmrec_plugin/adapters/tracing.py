"""Every run of this process as an OpenTelemetry span."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmrec_plugin.adapters.computing import need
from llmrec_plugin.runtime.cache import RunReport
from llmrec_plugin.runtime.observers import add_observer

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_COUNTS = ("rows", "empty", "invalid", "fallback", "texts", "cached", "computed", "tokens")


class SpanObserver:
    """Makes a span ``llmrec <feature>`` of each finished run, within the span that is current in its thread.

    Its attributes are ``llmrec.feature``, ``llmrec.fingerprint``, ``llmrec.mode`` and the counts of `RunReport`:
    ``llmrec.rows``, ``llmrec.cached`` and so on. It begins when the run began. No text is in it.

    Args:
        tracer: Makes the spans.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def ran(self, report: RunReport, waiting: Callable[[], int]) -> None:
        end = time.time_ns()
        span = self._tracer.start_span(f"llmrec {report.feature}", start_time=end - int(report.seconds * 1e9))
        if span.is_recording():
            span.set_attributes(
                {
                    "llmrec.feature": report.feature,
                    "llmrec.fingerprint": report.fingerprint,
                    "llmrec.mode": report.mode,
                    **{f"llmrec.{name}": getattr(report, name) for name in _COUNTS},
                }
            )
        span.end(end_time=end)

    def encoded(self, feature: str, tokens: int) -> None:
        """Batches that requests share belong to no span."""


def observe_with_opentelemetry(tracer: Tracer | None = None) -> Callable[[], None]:
    """Makes spans of every run of this process from now on, see `SpanObserver`.

    Args:
        tracer: Default: one of the provider that the application has set; without a provider there are no spans.

    Returns:
        A function that ends it.

    Raises:
        MissingExtraError: OpenTelemetry's API is not installed.
    """
    trace = need("opentelemetry.trace", "opentelemetry", "observe_with_opentelemetry")
    return add_observer(SpanObserver(tracer or trace.get_tracer("llmrec_plugin")))
