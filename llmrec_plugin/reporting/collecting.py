"""A feature repo -> the figures of its report."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llmrec_plugin import __version__
from llmrec_plugin.binding import BoundColumn
from llmrec_plugin.errors import InputError, LLMRecError
from llmrec_plugin.feast.jobs import is_ours
from llmrec_plugin.feast.lineage import lineage
from llmrec_plugin.feast.plan import plan
from llmrec_plugin.feast.rollouts import open_store
from llmrec_plugin.feast.stored import Stored, read_stored, sample_keys, texts_of
from llmrec_plugin.feast.versions import Versions, kept_by, read
from llmrec_plugin.reporting.figures import Cache, Drift, Report, Values
from llmrec_plugin.reporting.measures import histogram
from llmrec_plugin.reporting.summaries import added_up, drift_figures, token_figures, vector_figures
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import Metric, TokenFeature

FeatureStore: TypeAlias = Any
FeatureView: TypeAlias = Any
"""Feast's, which only `llmrec_plugin.feast` imports."""


def collect(
    repo: Path, *, rows: int, texts: bool = False, with_plan: bool = False, evaluation: Path | None = None
) -> Report:
    """The figures of the feature repo in `repo`, as it was last applied and materialized.

    Registry and stores stay as they are.

    Args:
        repo: Folder with ``feature_store.yaml``.
        rows: Entities that are looked up in each view at most.
        texts: Whether texts of items, and texts that models wrote, are put in.
        with_plan: Whether the next materialization is planned, for which models are loaded.
        evaluation: ``result.json`` of ``llmrec evaluate``.

    Raises:
        InputError: There is no feature repo, or the evaluation is none.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise InputError(f"{repo.absolute()} holds no feature_store.yaml: expected a feature repo. Give --repo FOLDER.")
    result = None if evaluation is None else read_evaluation(evaluation)
    os.chdir(repo)  # Feast, too, reads a repo from inside
    store = open_store(".")
    features = lineage(store)
    settings = load_settings()
    cache = ValueCache(settings.cache_folder, settings.cache_max_bytes)
    recorded = cache.runs()
    entries, size = cache.size()
    cache.close()
    return Report(
        project=store.project,
        version=__version__,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=rows,
        features=features,
        values=_values_of_views(store, rows, texts=texts),
        runs=added_up(recorded, {item.view for item in features}),
        cache=Cache(entries=entries, bytes=size, max_bytes=settings.cache_max_bytes, recorded=len(recorded)),
        plan=plan(Path()) if with_plan else None,
        evaluation=result,
    )


def read_evaluation(path: Path) -> dict[str, Any]:
    """A result of ``llmrec evaluate``.

    Raises:
        InputError: The file is none.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise InputError(f"{path} is no JSON ({exc}): expected the result.json of `llmrec evaluate`.") from exc
    missing = {"data", "protocol", "slices", "rankers", "baselines"} - set(result if isinstance(result, dict) else ())
    if missing:
        raise InputError(f"{path} has no {', '.join(sorted(missing))}: expected the result.json of `llmrec evaluate`.")
    return result


def _values_of_views(store: FeatureStore, rows: int, *, texts: bool) -> list[Values]:
    book = read(store.registry, store.project) if kept_by(store.registry) else {}
    found = []
    for view in sorted(store.list_batch_feature_views(), key=lambda view: view.name):
        if is_ours(view):
            try:
                found.append(_values(store, view, book.get(view.name), rows, texts=texts))
            except LLMRecError as exc:  # of this view; the others have figures
                kind = view.tags.get("llmrec.kind", "")
                found.append(Values(view=view.name, kind=kind, entities=None, statuses={}, problem=str(exc)))
    return found


def _values(store: FeatureStore, view: FeatureView, versions: Versions | None, rows: int, *, texts: bool) -> Values:
    served = view if versions is None else versions.view(versions.number)
    bound: BoundColumn = served.feature_transformation.udf.bound
    feature = bound.feature
    keys, entities = sample_keys(served, rows)
    stored = read_stored(store, served, keys)
    kinds: dict[str, Any] = {}
    metric: Metric | None = getattr(feature, "metric", None)
    present = [value for value in stored.values if value is not None]
    if present and isinstance(feature, TokenFeature):
        kinds["tokens"] = token_figures(feature, present, texts=texts)
    elif present and metric is not None:
        shown = texts_of(store, served, keys) if texts else None
        kinds["vectors"] = vector_figures(stored, metric, shown)
    elif present:
        kinds["numbers"] = histogram(np.array(present))
    return Values(
        view=view.name,
        kind=feature.kind,
        entities=entities,
        sampled=len(keys),
        found=int(stored.found.sum()),
        null=int(stored.found.sum()) - len(present),
        statuses=dict(Counter(status for status in stored.statuses if status is not None).most_common()),
        drift=_drift(store, versions, stored, metric),
        **kinds,
    )


def _drift(store: FeatureStore, versions: Versions | None, served: Stored, metric: Metric | None) -> Drift | None:
    if versions is None:
        return None
    number = versions.candidate if versions.candidate is not None else versions.previous
    if number is None:
        return None
    other = versions.view(number)
    read = read_stored(store, other, served.keys)
    fingerprints = [
        versions.view(each).feature_transformation.udf.bound.fingerprint for each in (versions.number, number)
    ]
    role = "waits" if versions.candidate is not None else "before"
    return drift_figures(served, read, metric, served=fingerprints[0], other=fingerprints[1], role=role)
