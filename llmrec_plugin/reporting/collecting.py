"""A feature repo -> the figures of its report."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
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
from llmrec_plugin.reporting.figures import Cache, Drift, Map, Report, Runs, Tokens, Values, Vectors
from llmrec_plugin.reporting.measures import cosines, histogram, neighbors, overlap, project
from llmrec_plugin.runtime.cache import RunReport, ValueCache
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import Metric, ShortText, TokenFeature
from llmrec_plugin.specs.tokens import Json

FeatureStore: TypeAlias = Any
FeatureView: TypeAlias = Any
"""Feast's, which only `llmrec_plugin.feast` imports."""

OVERLAP_OF = 10
MOST_FREQUENT = 20
MOST_MOVED = 10


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


def added_up(reports: Iterable[RunReport], features: set[str]) -> list[Runs]:
    """The runs of these features, by feature and mode."""
    groups: dict[tuple[str, str], list[RunReport]] = {}
    for report in reports:
        if report.feature in features:
            groups.setdefault((report.feature, report.mode), []).append(report)
    counts = [field.name for field in fields(Runs) if field.name not in ("feature", "mode", "runs")]
    return [
        Runs(
            feature=feature,
            mode=mode,
            runs=len(group),
            **{name: sum(getattr(report, name) for report in group) for name in counts},
        )
        for (feature, mode), group in sorted(groups.items())
    ]


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


def vector_figures(stored: Stored, metric: Metric, texts: dict[Any, str] | None) -> Vectors | None:
    """Figures of the vectors among stored values; None where no vector is finite."""
    keyed = [(key, value) for key, value in zip(stored.keys, stored.values, strict=True) if value is not None]
    finite = [(key, value) for key, value in keyed if np.isfinite(value).all()]
    if not finite:
        return None
    vectors = np.stack([value for _, value in finite]).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    nonzero = norms[norms > 0] if norms.any() else norms
    near = neighbors(vectors, metric)
    projection = project(vectors, metric)
    return Vectors(
        dims=vectors.shape[1],
        metric=metric,
        zeros=int((norms == 0).sum()),
        not_finite=len(keyed) - len(finite),
        smallest=float(nonzero.min()),
        mean=float(nonzero.mean()),
        largest=float(nonzero.max()),
        norms=histogram(nonzero),
        map=Map(
            method="principal components",
            shares=projection.shares,
            keys=[_named(key) for key, _ in finite],
            points=projection.points.round(5).tolist(),
            neighbors=near.rows.tolist(),
            similarities=near.similarities.round(4).tolist(),
            texts=None if texts is None else [texts.get(key, "") for key, _ in finite],
        ),
    )


def token_figures(feature: TokenFeature, values: Sequence[Any], *, texts: bool) -> Tokens:
    """Figures of one or more values that a model wrote.

    Tags and choices are those of a declared vocabulary; texts and JSON tell of the items, and are put in only if
    `texts`.
    """
    output = feature.output
    if isinstance(values[0], float) or (values[0] and isinstance(values[0], list) and isinstance(values[0][0], float)):
        numbers = np.concatenate([np.atleast_1d(value) for value in values])
        distinct = len(np.unique(numbers))
        return Tokens(
            output=output.kind, values=len(values), distinct=distinct, mean_size=None, most_frequent=None,
            numbers=histogram(numbers, low=0.0, high=1.0),
        )  # fmt: skip
    counts: Counter[str] = Counter()
    for value in values:
        counts.update([value] if isinstance(value, str) else value)
    is_free = isinstance(output, ShortText | Json)
    return Tokens(
        output=output.kind,
        values=len(values),
        distinct=len(counts),
        mean_size=sum(map(len, values)) / len(values) if output.kind != "choice" else None,
        most_frequent=None if is_free and not texts else counts.most_common(MOST_FREQUENT),
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


def drift_figures(left: Stored, right: Stored, metric: Metric | None, **about: Any) -> Drift:
    """The same entities under two fingerprints; `about` are the first three attributes of the result.

    Neighbors are looked for among the entities that have a vector under both.
    """
    both = [
        (key, one, other)
        for key, one, other in zip(left.keys, left.values, right.values, strict=True)
        if _is_usable(one) and _is_usable(other)
    ]
    equal = sum(bool(np.array_equal(one, other)) for _, one, other in both)
    if metric is None or len(both) < 2:
        return Drift(**about, compared=len(both), equal=equal)
    one, other = (np.stack([row[side] for row in both]) for side in (1, 2))
    count = min(OVERLAP_OF, len(both) - 1)
    shares = overlap(*(neighbors(vectors, metric, count).rows for vectors in (one, other)))
    order = np.argsort(shares, kind="stable")[:MOST_MOVED]
    moved = [(_named(both[row][0]), float(shares[row])) for row in order if shares[row] < 1]
    same = cosines(one, other) if one.shape == other.shape else np.empty(0)
    same = np.clip(same[np.isfinite(same)], -1, 1)
    return Drift(
        **about,
        compared=len(both),
        equal=equal,
        cosines=histogram(same, low=min(0.0, float(same.min())), high=1.0) if len(same) else None,
        mean_cosine=float(same.mean()) if len(same) else None,
        overlap=float(shares.mean()),
        overlap_of=count,
        overlaps=np.bincount(np.rint(shares * count).astype(int), minlength=count + 1).tolist(),
        most_moved=moved,
    )


def _is_usable(value: Any) -> bool:
    return value is not None and (not isinstance(value, np.ndarray) or bool(np.isfinite(value).all()))


def _named(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
