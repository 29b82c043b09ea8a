"""Values that were read -> figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_plugin.reporting.figures import Drift, Map, Runs, Tokens, Vectors
from llmrec_plugin.reporting.measures import cosines, histogram, neighbors, overlap, project
from llmrec_plugin.runtime.cache import RunReport
from llmrec_plugin.specs import Json, Metric, ShortText, TokenFeature

if TYPE_CHECKING:
    from llmrec_plugin.feast.stored import Stored

OVERLAP_OF = 10
MOST_FREQUENT = 20
MOST_MOVED = 10


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
