"""Who is told of each finished run of this process: metrics, traces. By default nobody, and that costs nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from llmrec_plugin.runtime.cache import RunReport

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Told of runs, from any thread; what it raises is logged and disturbs no run."""

    def ran(self, report: RunReport, waiting: Callable[[], int]) -> None:
        """A run has ended.

        Args:
            report: What it came to.
            waiting: Gives the number of texts of requests that wait in this process now.
        """

    def encoded(self, feature: str, tokens: int) -> None:
        """An encoder read so many tokens for requests, which `RunReport.tokens` does not count.

        Args:
            feature: Whose texts were encoded; of features that encode alike, and share batches, the first.
            tokens: Special tokens included.
        """


_observers: tuple[Observer, ...] = ()


def add_observer(observer: Observer) -> Callable[[], None]:
    """Tells `observer` of every run from now on; the function that comes back ends that."""
    global _observers
    _observers = (*_observers, observer)

    def remove() -> None:
        global _observers
        _observers = tuple(other for other in _observers if other is not observer)

    return remove


def notify(report: RunReport, waiting: Callable[[], int]) -> None:
    """Tells all observers of a run."""
    for observer in _observers:
        try:
            observer.ran(report, waiting)
        except Exception:
            logger.exception("%r failed for a run of feature %r; the run is not affected.", observer, report.feature)


def notify_tokens(feature: str, tokens: int) -> None:
    """Tells all observers of tokens that were read for requests."""
    for observer in _observers:
        try:
            observer.encoded(feature, tokens)
        except Exception:
            logger.exception("%r failed for a batch of feature %r; no request is affected.", observer, feature)
