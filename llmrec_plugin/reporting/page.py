"""The figures of a report as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llmrec_plugin.evaluation.page import sections as evaluation_sections
from llmrec_plugin.pages import (
    Html,
    bars,
    data,
    document,
    element,
    histogram,
    joined,
    plot,
    stacked,
    table,
    text,
)
from llmrec_plugin.reporting.diagram import diagram
from llmrec_plugin.reporting.figures import Drift, Map, Report, Runs, Tokens, Values, Vectors
from llmrec_plugin.reporting.measures import Histogram

if TYPE_CHECKING:
    from llmrec_plugin.feast.lineage import Lineage

_MAP_WIDTH, _MAP_HEIGHT, _MARGIN = 900, 640, 24
_NEIGHBORS_SHOWN = 20
_EVEN = 1e-3
"""Norms that differ by less than this share are called equal."""


def page(report: Report) -> str:
    """The whole page."""
    chapters: list[tuple[str, str, list[Html]]] = [
        ("features", "Features", _features(report.features)),
        ("stored", "What is stored", _stored(report)),
        ("vectors", "Vectors", _vectors(report.values)),
        ("drift", "Two fingerprints", _drifts(report.values)),
        ("written", "What models wrote", _written(report)),
        ("cost", "Cost and cache", _cost(report)),
    ]
    if report.evaluation is not None:
        about = [element("h3", report.evaluation["data"]["name"]), *evaluation_sections(report.evaluation, level=3)]
        chapters.append(("evaluation", "Do features help the ranker?", about))
    title = f"Features of {report.project}"
    body = [
        element("h1", title),
        _soft(f"Made {report.made} by llmrec-plugin {report.version}."),
        _overview(report),
        element("nav", *(element("a", name, href=f"#{id_}") for id_, name, parts in chapters if parts)),
    ]
    for id_, name, parts in chapters:
        if parts:
            body += [element("h2", name, id=id_), *parts]
    resources = files(__package__)
    style, script = (resources.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "map.js"))
    return document(title, body, style=style, script=script)


def _overview(report: Report) -> Html:
    stored = [item for item in report.values if not item.problem]
    looked, held = sum(item.sampled for item in stored), sum(item.found - item.null for item in stored)
    texts, cached = (sum(getattr(run, name) for run in report.runs) for name in ("texts", "cached"))
    batch = sum(item.when == "batch" for item in report.features)
    figures = [
        (batch, "materialized views"),
        (len(report.features) - batch, "views of request time"),
        (_share(held, looked), "of the entities looked up have a value"),
        (_share(cached, texts), "of the texts came from the cache"),
    ]
    return element(
        "ul", *(element("li", element("b", shown), element("span", what)) for shown, what in figures), class_="figures"
    )


# --- features


def _features(features: Sequence[Lineage]) -> list[Html]:
    if not features:
        return [_soft("The registry holds none of our views: run `feast apply`.")]
    about = table(
        ["view", "source: columns", "model and artifact", "fingerprint", "read by services", "materialized to"],
        [_feature(item) for item in features],
        words=True,
    )
    problems = [element("p", f"{item.view}: {item.problem}", class_="bad") for item in features if item.problem]
    return [element("div", diagram(features), class_="scroll diagram"), *problems, about]


def _feature(item: Lineage) -> list[object]:
    when = "stored" if item.when == "batch" else "request time"
    about = [f"{item.kind.replace('_', ' ')}, {when}", *(f"{name} {value}" for name, value in item.parameters.items())]
    columns = [column for column in item.columns if column not in item.reads]
    models = (joined([name, *_below(artifact[:12])]) for name, artifact in item.models)
    return [
        joined([element("b", _name(item.view)), *_below(", ".join(about)), *_below(item.description)]),
        joined([_name(", ".join(item.source or item.reads)), *_below(_name(", ".join(columns)))]),
        joined(models) or "-",
        element("code", item.fingerprint[:12], title=item.fingerprint),
        _name(", ".join(item.services)) or "-",
        f"{item.materialized_to:%Y-%m-%d %H:%M}" if item.materialized_to else "-",
    ]


def _below(words: str | Html) -> list[Html]:
    return [element("div", words, class_="soft")] if words else []


# --- values


def _stored(report: Report) -> list[Html]:
    if not report.values:
        return [_soft("No view is materialized.")]
    views = [item for item in report.values if not item.problem]
    names = list(dict.fromkeys(name for item in views for name in item.statuses))
    rows = [
        [
            item.view,
            _number(item.entities),
            _number(item.sampled),
            _number(item.found),
            _number(item.null),
            *(_number(item.statuses.get(name, 0)) if item.statuses else "" for name in names),
        ]
        for item in views
    ]
    legend = _legend(("bar", "a value"), ("warn", "null"), ("rest", "no row"))
    shares = [
        (
            item.view,
            [("bar", item.found - item.null), ("warn", item.null), ("rest", item.sampled - item.found)],
            f"{_share(item.found - item.null, item.sampled)} of {item.sampled:,}",
        )
        for item in views
    ]
    return [
        _soft(
            f"Of each view up to {report.rows:,} entities of its source were looked up in the online store, always the "
            "same ones; every figure below is of these."
        ),
        *_problems(report.values),
        legend,
        stacked(shares, "Entities with a value, with a null and without a row, by view; as in the table."),
        table(["view", "entities", "looked up", "with a row", "null", *(f"status {name}" for name in names)], rows),
    ]


def _problems(values: Iterable[Values]) -> list[Html]:
    return [element("p", f"{item.view}: {item.problem}", class_="bad") for item in values if item.problem]


def _vectors(values: Sequence[Values]) -> list[Html]:
    parts: list[Html] = []
    for item in values:
        if item.vectors is not None:
            parts += [element("h3", item.view), *_vector_figures(item, item.vectors)]
        elif item.numbers is not None:
            label = f"Numbers of {item.view}"
            parts += [element("h3", item.view), histogram(item.numbers.counts, item.numbers.edges, label)]
    return parts


def _vector_figures(item: Values, vectors: Vectors) -> list[Html]:
    view = item.view
    held = f"{len(vectors.map.keys):,} vectors, of {_number(item.entities)} entities"
    said = [f"{held}; {vectors.dims} numbers each, compared by {vectors.metric}."]
    spread = vectors.largest - vectors.smallest
    is_even = spread <= _EVEN * max(vectors.largest, 1e-30)
    if is_even:
        said.append(f"All have norm {vectors.mean:.3f}.")
    else:
        said.append(f"Norms {vectors.smallest:.3f} to {vectors.largest:.3f}, {vectors.mean:.3f} on average:")
    if vectors.zeros:
        said.append(f"{vectors.zeros:,} are all zeros and left out of the norms.")
    if vectors.not_finite:
        said.append(f"{vectors.not_finite:,} have a component that is no number and are left out.")
    norms = [] if is_even else [_histogram(vectors.norms, f"Norms of the vectors of {view}")]
    return [element("p", " ".join(said)), *norms, *_map(view, vectors.map)]


def _map(view: str, items: Map) -> list[Html]:
    x, y = items.shares
    about = _soft(
        f"Map by {items.method} (numpy): {x:.0%} of the variance from left to right, {y:.0%} from bottom to top. What "
        "lies close here need not be close; neighbors are by the whole vector, among the items of the map."
    )
    drawn = ["<g class='lines'></g>"]
    for key, (left, top) in zip(items.keys, _on_plane(items.points), strict=True):
        drawn.append(f"<circle cx='{left:.1f}' cy='{top:.1f}' r='3.5'>{element('title', key)}</circle>")
    label = f"Map of {len(items.keys):,} items of {view}; the table of neighbors below holds the same."
    shown = {
        "keys": items.keys,
        "neighbors": items.neighbors,
        "similarities": items.similarities,
        **({} if items.texts is None else {"texts": items.texts}),
    }
    side = element(
        "aside",
        element(
            "label",
            "Find an item",
            Html("<input type='search' autocomplete='off' spellcheck='false'/>"),
            hidden="hidden",
        ),
        element("output", "Point at an item to see its nearest neighbors.", aria_live="polite"),
    )
    return [
        about,
        element("div", plot(_MAP_WIDTH, _MAP_HEIGHT, label, drawn), side, data(shown), class_="map", id=f"map-{view}"),
        _neighbor_table(items),
    ]


def _on_plane(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Points in the drawing; both axes have one scale, so that distances are those of the components."""
    if not points:
        return []
    lows, highs = ([pick(point[axis] for point in points) for axis in (0, 1)] for pick in (min, max))
    wide, tall = (high - low for low, high in zip(lows, highs, strict=True))
    room = (_MAP_WIDTH - 2 * _MARGIN, _MAP_HEIGHT - 2 * _MARGIN)
    scale = min(room[0] / (wide or 1e-12), room[1] / (tall or 1e-12))
    scale = 0.0 if wide == tall == 0 else scale
    middle = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
    return [(_MAP_WIDTH / 2 + (x - middle[0]) * scale, _MAP_HEIGHT / 2 - (y - middle[1]) * scale) for x, y in points]


def _neighbor_table(items: Map) -> Html:
    first = range(min(_NEIGHBORS_SHOWN, len(items.keys)))
    rows = [
        [
            items.keys[row],
            ", ".join(
                f"{items.keys[other]} {similar:.3f}"
                for other, similar in zip(items.neighbors[row], items.similarities[row], strict=True)
            ),
        ]
        for row in first
    ]
    return element(
        "details",
        element("summary", f"Nearest neighbors of {len(rows)} of the {len(items.keys):,} items, as a table"),
        table(["item", "nearest others and their similarity"], rows, words=True),
    )


# --- drift


def _drifts(values: Sequence[Values]) -> list[Html]:
    compared = [(item.view, item.drift) for item in values if item.drift is not None]
    if not compared:
        return []
    parts = [
        _soft(
            "The same entities under the served fingerprint and under the one that waits, or that was served before. "
            "Two models have spaces of their own, so cosines between them say little; the share of common neighbors "
            "tells how much of a neighborhood stays. A changed template leaves the space as it is."
        )
    ]
    for view, drift in compared:
        parts += [element("h3", view), *_drift(view, drift)]
    return parts


def _drift(view: str, drift: Drift) -> list[Html]:
    role = "waits" if drift.role == "waits" else "was served before"
    said = [
        f"{drift.served[:12]} is served, {drift.other[:12]} {role}.",
        f"{drift.compared:,} entities have a value under both; {drift.equal:,} of them the same one.",
    ]
    parts: list[Html] = []
    if drift.overlap is not None and drift.overlaps is not None:
        said.append(f"Of the {drift.overlap_of} nearest neighbors {drift.overlap:.1%} are the same.")
        kept = [(f"{stay} of {drift.overlap_of}", count, f"{count:,}") for stay, count in enumerate(drift.overlaps)]
        parts += [
            element("h4", f"Items by how many of their {drift.overlap_of} nearest neighbors stay"),
            bars(kept, f"Items of {view} by how many of their nearest neighbors stay", names=80),
        ]
    if drift.cosines is not None and drift.mean_cosine is not None:
        said.append(f"The cosine of an entity's two vectors is {drift.mean_cosine:.3f} on average.")
        parts += [
            element("h4", "Cosine of the two vectors"),
            _histogram(drift.cosines, f"Cosines of the two vectors of each item of {view}"),
        ]
    if drift.most_moved:
        rows = [[key, f"{share:.0%}"] for key, share in drift.most_moved]
        parts.append(table(["item", "neighbors that stay"], rows, caption="Items whose neighborhood changed most"))
    return [element("p", " ".join(said)), *parts]


# --- tokens


def _written(report: Report) -> list[Html]:
    written = [(item, item.tokens) for item in report.values if item.kind == "tokens"]
    if not written:
        return []
    runs = [run for run in report.runs if run.feature in {item.view for item, _ in written}]
    rates = [
        [
            f"{run.feature}, {run.mode}",
            _number(run.rows),
            _number(run.invalid),
            _share(run.invalid, run.rows),
            _number(run.fallback),
            _share(run.fallback, run.rows),
        ]
        for run in runs
    ]
    columns = ["recorded runs", "rows", "invalid", "share", "fallback", "share"]
    parts = [table(columns, rates)] if rates else [_soft("No run of them is recorded in the cache.")]
    for item, tokens in written:
        parts += [element("h3", item.view), *(_tokens(item, tokens) if tokens else [_soft("No value is stored.")])]
    return parts


def _tokens(item: Values, tokens: Tokens) -> list[Html]:
    size = "" if tokens.mean_size is None else f", {tokens.mean_size:.1f} {_sizes(tokens.output)} on average"
    distinct = "distinct tags" if tokens.output == "tags" else "distinct values"
    said = (
        f"{tokens.values:,} values{size}; {tokens.distinct:,} {distinct}. "
        f"{item.null:,} of {item.found:,} rows are null ({_share(item.null, item.found)})."
    )
    if tokens.numbers is not None:
        return [element("p", said), _histogram(tokens.numbers, f"Scores of {item.view}", digits=1)]
    if tokens.most_frequent is None:
        return [element("p", said), _soft("Texts are shown with --texts only.")]
    rows = [(name, float(count), f"{count:,}") for name, count in tokens.most_frequent]
    return [element("p", said), bars(rows, f"Most frequent of {item.view}", names=340)]


def _sizes(output: str) -> str:
    return "tags" if output == "tags" else "characters"


# --- cost


def _cost(report: Report) -> list[Html]:
    cache = report.cache
    parts = [
        element(
            "p",
            f"The cache holds {cache.entries:,} values, {_mebibytes(cache.bytes)} of {_mebibytes(cache.max_bytes)}. It "
            f"remembers {cache.recorded:,} runs, {sum(run.runs for run in report.runs):,} of them of these features.",
        )
    ]
    if report.runs:
        shares = [
            (f"{run.feature}, {run.mode}", [("bar", run.cached), ("warn", run.computed)], _hits(run))
            for run in report.runs
        ]
        parts += [
            _legend(("bar", "texts found in the cache"), ("warn", "computed")),
            stacked(shares, "Texts found in the cache and computed, by feature and mode; as in the table.", names=330),
            table(
                [
                    "feature, mode",
                    "runs",
                    "rows",
                    "empty",
                    "invalid",
                    "texts",
                    "cached",
                    "computed",
                    "tokens",
                    "seconds",
                    "tokens/s",
                ],
                [_run(run) for run in report.runs],
            ),
        ]
    if report.plan is not None:
        parts += [element("h3", "The next materialization"), _plan(report.plan)]
    return parts


def _hits(run: Runs) -> str:
    return f"{_share(run.cached, run.texts)} of {run.texts:,} cached"


def _run(run: Runs) -> list[object]:
    counts = [
        _number(getattr(run, name))
        for name in ("runs", "rows", "empty", "invalid", "texts", "cached", "computed", "tokens")
    ]
    speed = f"{run.tokens / run.seconds:,.0f}" if run.tokens and run.seconds else "-"
    return [f"{run.feature}, {run.mode}", *counts, f"{run.seconds:,.1f}", speed]


def _plan(plans: Iterable[Any]) -> Html:
    columns = ("entities", "rows", "new", "changed", "unchanged", "late", "texts", "cached", "compute", "tokens")
    rows = [
        [
            item.view,
            *(_number(getattr(item, name)) for name in columns),
            f"about {item.seconds:,.0f}",
            f"about {_mebibytes(item.memory_bytes)}",
        ]
        for item in plans
    ]
    return table(["view", *columns, "seconds", "memory"], rows)


# --- parts


def _histogram(values: Histogram, label: str, *, digits: int = 3) -> Html:
    return histogram(values.counts, values.edges, label, digits=digits)


def _legend(*parts: tuple[str, str]) -> Html:
    return element(
        "p", *(element("span", element("i", class_=kind), name) for kind, name in parts), class_="legend soft"
    )


def _name(words: str) -> Html:
    """A name that may be broken where it is joined."""
    return Html(re.sub(r"([_/.])(?=\w)", r"\1<wbr/>", text(words)))


def _soft(words: str) -> Html:
    return element("p", words, class_="soft")


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
