"""What a report holds: plain data, the same for the page and for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmrec_plugin.reporting.measures import Histogram

if TYPE_CHECKING:
    from llmrec_plugin.feast.lineage import Lineage
    from llmrec_plugin.feast.plan import ViewPlan


@dataclass(frozen=True, kw_only=True)
class Map:
    """Items of one view on a plane.

    Attributes:
        method: How vectors became points.
        shares: Share of the variance along x and y.
        keys: n keys.
        points: n times x and y.
        neighbors: For each item the numbers of its nearest others by the whole vector, nearest first.
        similarities: Their similarities.
        texts: The beginning of each item's text; None unless it was asked for.
    """

    method: str
    shares: tuple[float, float]
    keys: list[str]
    points: list[list[float]]
    neighbors: list[list[int]]
    similarities: list[list[float]]
    texts: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Stored vectors of one view.

    Attributes:
        dims: Components.
        metric: The declared metric.
        zeros: Vectors without any component, which stand for items without text.
        not_finite: Vectors with a component that is no number; they are left out of everything else.
        smallest: Smallest norm of the others.
        mean: Mean norm.
        largest: Largest norm.
        norms: Histogram of the norms.
        map: The items.
    """

    dims: int
    metric: str
    zeros: int
    not_finite: int
    smallest: float
    mean: float
    largest: float
    norms: Histogram
    map: Map


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Stored values that a model wrote.

    Attributes:
        output: Kind of the output: ``tags``, ``choice``, ``text``, ``json`` or ``scores``.
        values: Values that are not null.
        distinct: Distinct tags, or distinct values.
        mean_size: Tags of a value, or characters of a text, on average; None for numbers.
        most_frequent: Tags or values with the number of items that have them; None where they are free text that was
            not asked for.
        numbers: Histogram of scores.
    """

    output: str
    values: int
    distinct: int
    mean_size: float | None
    most_frequent: list[tuple[str, int]] | None
    numbers: Histogram | None = None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Two fingerprints of one view, compared on the same entities.

    Attributes:
        served: Fingerprint that is served.
        other: Fingerprint that waits to be served, or was served before.
        role: ``waits`` or ``before``, of `other`.
        compared: Sampled entities of which both hold a value.
        equal: Those with the same value.
        cosines: Histogram of the cosines of each entity's two vectors; None for other values, and where lengths differ.
        mean_cosine: Their mean.
        overlap: Mean share of each entity's `overlap_of` nearest neighbors in the sample that both have.
        overlap_of: How many neighbors.
        overlaps: Entities by how many of these neighbors stay, from none to all.
        most_moved: Keys with the smallest shares, and these.
    """

    served: str
    other: str
    role: str
    compared: int
    equal: int
    cosines: Histogram | None = None
    mean_cosine: float | None = None
    overlap: float | None = None
    overlap_of: int = 0
    overlaps: list[int] | None = None
    most_moved: list[tuple[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Values:
    """What the online store holds of one batch view.

    Attributes:
        view: Name of the view.
        kind: Kind of its feature.
        entities: Entities of the source; None if they cannot be counted.
        sampled: Entities that were looked up.
        found: Those with a row.
        null: Those with a row whose value is null.
        statuses: Stored statuses with their counts; empty where the feature declares none.
        problem: Why there are no figures; empty if there are.
        numbers: Histogram of a network's numbers.
    """

    view: str
    kind: str
    entities: int | None
    sampled: int = 0
    found: int = 0
    null: int = 0
    statuses: dict[str, int]
    problem: str = ""
    vectors: Vectors | None = None
    tokens: Tokens | None = None
    numbers: Histogram | None = None
    drift: Drift | None = None


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Recorded runs of one feature in one mode, added up.

    Attributes:
        runs: How many; see `llmrec_plugin.runtime.cache.RunReport` for the other counts.
    """

    feature: str
    mode: str
    runs: int
    rows: int
    empty: int
    invalid: int
    fallback: int
    texts: int
    cached: int
    computed: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The value cache.

    Attributes:
        entries: Values in it.
        bytes: Their size.
        max_bytes: Its bound.
        recorded: Runs it remembers, of all repos.
    """

    entries: int
    bytes: int
    max_bytes: int
    recorded: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page.

    Attributes:
        project: Name of the Feast project.
        version: Version of this package.
        made: When, ISO 8601, UTC.
        rows: Entities that were looked up in each view at most.
        features: Our views.
        values: What is stored of those that are materialized.
        runs: Runs of these features.
        cache: The value cache.
        plan: What the next materialization would do; None unless it was asked for.
        evaluation: Result of ``llmrec evaluate``; None unless it was given.
    """

    project: str
    version: str
    made: str
    rows: int
    features: list[Lineage]
    values: list[Values]
    runs: list[Runs]
    cache: Cache
    plan: list[ViewPlan] | None = None
    evaluation: dict[str, Any] | None = None
