"""Warm-up: what Feast's feature server calls in each of its workers before the first request.

``static_artifacts.py`` in the feature repo::

    from llmrec_plugin.feast import load_artifacts
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import time
from typing import Any

import anyio.to_thread
import click
from feast import FeatureStore, OnDemandFeatureView
from feast.types import Array, Int32, Int64, String

from llmrec_plugin.binding import BoundColumn, BoundSimilarity
from llmrec_plugin.errors import LLMRecError
from llmrec_plugin.feast.admission import admit
from llmrec_plugin.feast.patches import open_own_connections
from llmrec_plugin.runtime.precedence import put_event_loop_first, share_processors, step_back
from llmrec_plugin.runtime.runner import runner_for
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import digest
from llmrec_plugin.transform import Transform

logger = logging.getLogger(__name__)

_NO_TEXT: dict[Any, Any] = {String: "", Array(String): []}
_UNLIKELY_KEY: dict[Any, Any] = {String: "", Int32: -(2**31), Int64: -(2**63)}
# Gunicorn kills a worker that gives no sign of life for 30 s, and a starting worker gives none.
SECONDS_AT_START = 20.0
_FAILED = 1
"""With what a process ends that failed for any reason."""
_PAUSE_SECONDS = 1.0


def load_artifacts(app: Any) -> None:
    """Loads the models of every on-demand view, and reads once, so that a worker's first request is soon answered.

    Deadlines then count from the arrival of a request, and requests that would wait longer than
    ``LLMREC_MAX_WAIT_MS`` are refused, see `llmrec_plugin.feast.admission`.

    Threads that compute features step back behind the event loop, see `llmrec_plugin.runtime.precedence`, and where
    ``LLMREC_THREADS`` is not set, an inference takes the worker's share of the processors less one. A worker answers
    ``LLMREC_REQUEST_THREADS`` requests at a time where it is set, and then this must be called in its event loop.

    Objects of the start are left out of garbage collection from here on (`gc.freeze`).

    A model that cannot be loaded is logged as an error and the server starts: requests for its features fail with
    the same error, others are served. What takes longer than 20 s goes on while the worker begins to serve.

    A worker that takes the place of one that died and cannot start, e.g. because the registry is away, is started
    again until it can. None uses a connection to a SQL registry that the server opened before it forked them.

    Args:
        app: The server's application, which Feast passes.

    Raises:
        SettingsError: A setting of this process holds no value of its kind.
    """
    settings = load_settings()
    worker = _gunicorn_worker()
    others_serve = worker is not None and _replaces_another(worker)
    if worker is not None:
        open_own_connections(getattr(worker.app, "_store", None))  # None in an application that is not Feast's
    share_processors(settings.threads, 1 if worker is None else worker.cfg.workers)
    put_event_loop_first(settings.nice)
    if settings.request_threads is not None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.request_threads
    admit(app, settings.max_wait_ms)
    store = _served_store()
    thread = threading.Thread(target=_load_all, args=(store, others_serve), name="llmrec-load")
    thread.start()
    thread.join(SECONDS_AT_START)
    if thread.is_alive():
        logger.warning(
            "Models are still being loaded after %.0f s; the server starts, and requests that need them wait.",
            SECONDS_AT_START,
        )
    # What is there now stays. To look through half a million objects takes the collector a tenth of a second and more,
    # in which the worker answers nobody.
    gc.collect()
    gc.freeze()


def _gunicorn_worker() -> Any | None:
    """The worker that this process is; None where Feast serves without Gunicorn."""
    # Gunicorn leaves this signal to its worker, whatever runs in it.
    handler = signal.getsignal(signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else None
    worker = getattr(handler, "__self__", None)
    return worker if hasattr(worker, "cfg") else None


def _replaces_another(worker: Any) -> bool:
    """Whether a worker replaces one of a server that has started; if so, it will not end that server.

    A worker that gives up its start ends with a number by which Gunicorn knows that none will start, and upon which it
    stops all others, who may still serve what they have read. That is meant for the first workers of a server.
    """
    if worker.age <= worker.cfg.workers:
        return False
    worker.cfg.set("worker_exit", _end_as_failed)
    return True


def _end_as_failed(arbiter: Any, worker: Any) -> None:
    """Gunicorn calls this at the end of a worker, with what ends it under way."""
    end = sys.exc_info()[1]
    if isinstance(end, SystemExit) and end.code == arbiter.WORKER_BOOT_ERROR:
        sys.exit(_FAILED)


def _served_store() -> FeatureStore:
    """The store that ``feast serve`` opened, or that of the working folder when the server was started otherwise."""
    context = click.get_current_context(silent=True)
    options = context.obj if context is not None and isinstance(context.obj, dict) else {}
    return FeatureStore(repo_path=str(options.get("CHDIR", ".")), fs_yaml_file=options.get("FS_YAML_FILE"))


def _load_all(store: FeatureStore, others_serve: bool) -> None:
    step_back()  # and with this thread those of the sessions that it opens
    runner = runner_for(load_settings())
    started = time.monotonic()
    loaded = 0
    if not _read_registry(store, until=started + SECONDS_AT_START if others_serve else started):
        return  # Feast will say the same, and end this process
    for feature in _computed_on_demand(store):
        try:
            runner.load(feature)
            loaded += 1
        except Exception as exc:  # one broken model must not keep the others from being served
            logger.error("Feature %r cannot be served: %s", feature.feature.name, exc)
    _read_once(store)
    logger.info("Loaded the models of %d on-demand features in %.1f s.", loaded, time.monotonic() - started)


def _read_registry(store: FeatureStore, until: float) -> bool:
    """Reads the registry, once or again and again until a time of the monotonic clock; whether it could be read."""
    while True:
        try:
            store.refresh_registry()
            return True
        except Exception as exc:
            logger.error("The registry cannot be read, and without it no model is loaded: %r", exc)
        if time.monotonic() > until - _PAUSE_SECONDS:
            return False
        time.sleep(_PAUSE_SECONDS)


def _read_once(store: FeatureStore) -> None:
    """Asks for one of our on-demand features, without a text, which computes nothing.

    Feast imports, connects and parses at its first read, which takes as long as some ten others.
    """
    views = [view for view in store.list_on_demand_feature_views() if _transform_of(view) is not None]
    # One with a stored side also opens the online store.
    for view in sorted(views, key=lambda view: (not view.source_feature_view_projections, view.name)):
        try:
            store.get_online_features([f"{view.name}:{view.features[0].name}"], [_row_without_text(store, view)])
            return
        except Exception as exc:  # it is only that the first request will be slower
            logger.debug("View %r was not read at the start: %r", view.name, exc)


def _row_without_text(store: FeatureStore, view: OnDemandFeatureView) -> dict[str, Any]:
    """A row of a request for `view` that holds no text, and keys that hardly anything is stored under.

    Raises:
        KeyError: A column is of a type that is no text, which would give the model something to read.
    """
    asked = [field for source in view.source_request_sources.values() for field in source.schema]
    stored = [store.get_feature_view(projection.name) for projection in view.source_feature_view_projections.values()]
    keys = [field for source in stored for field in source.entity_columns]
    return {field.name: _NO_TEXT[field.dtype] for field in asked} | {
        field.name: _UNLIKELY_KEY[field.dtype] for field in keys
    }


def _computed_on_demand(store: FeatureStore) -> list[BoundColumn]:
    """The features that requests make this process compute, each way of encoding once."""
    found: dict[str, BoundColumn] = {}
    for view in store.list_on_demand_feature_views():
        transform = _transform_of(view)
        if transform is None:
            continue
        try:
            bound = transform.bound
        except LLMRecError as exc:
            logger.error("View %r cannot be served: %s", view.name, exc)
            continue
        if isinstance(bound, BoundSimilarity):
            sides: list[BoundColumn] = [side for side in (bound.left, bound.right) if not side.stored]
        else:
            sides = [bound]
        # Two features of one network may be computed from vectors of different encoders.
        found |= {digest([side.encoding_fingerprint, side.artifacts]): side for side in sides}
    return list(found.values())


def _transform_of(view: OnDemandFeatureView) -> Transform | None:
    """What computes a view of ours; None for another's."""
    transform = getattr(view.feature_transformation, "udf", None)
    return transform if isinstance(transform, Transform) else None
