"""What the requests of this process came to, for tests, logs and metrics."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace

from llmrec_plugin.runtime.cache import RunReport

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_WARNINGS = 60.0


@dataclass(kw_only=True)
class RequestTotals:
    """Sums over the on-demand runs of one feature; the counts are those of `RunReport`."""

    requests: int = 0
    rows: int = 0
    empty: int = 0
    invalid: int = 0
    fallback: int = 0
    texts: int = 0
    cached: int = 0
    computed: int = 0
    seconds: float = 0.0


class RequestCounts:
    """Counts requests by feature, and warns, once a minute, of a feature whose rows miss their deadline."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, RequestTotals] = {}
        self._warned: dict[str, tuple[float, RequestTotals]] = {}  # when, and what the totals were then

    def add(self, report: RunReport) -> None:
        """Adds one run."""
        with self._lock:
            totals = self._totals.setdefault(report.feature, RequestTotals())
            totals.requests += 1
            for name in ("rows", "empty", "invalid", "fallback", "texts", "cached", "computed", "seconds"):
                setattr(totals, name, getattr(totals, name) + getattr(report, name))
            if report.fallback:
                self._warn(report.feature, totals)

    def of(self, feature: str) -> RequestTotals:
        """The totals of a feature since the process began."""
        with self._lock:
            return replace(self._totals.get(feature, RequestTotals()))

    def _warn(self, feature: str, totals: RequestTotals) -> None:
        now = time.monotonic()
        when, before = self._warned.get(feature, (-SECONDS_BETWEEN_WARNINGS, RequestTotals()))
        if now - when >= SECONDS_BETWEEN_WARNINGS:
            self._warned[feature] = now, replace(totals)
            logger.warning(
                "%s: %d of %d rows missed their deadline and fell back, in %d requests since the last such message "
                "or the start of the process.",
                feature, totals.fallback - before.fallback, totals.rows - before.rows,
                totals.requests - before.requests,
            )  # fmt: skip
