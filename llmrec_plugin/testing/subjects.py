"""A declaration on the bench: bound to its artifact, with rows, computed without the value cache."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from llmrec_plugin.artifacts import AnyArtifact, ArtifactStore, NetworkArtifact
from llmrec_plugin.binding import Bound, BoundColumn, BoundNetwork, BoundSimilarity, BoundTokens, bind
from llmrec_plugin.errors import ArtifactNotFoundError, DeclarationError, UnknownNameError
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.manifests import ENDPOINT
from llmrec_plugin.runtime.cache import RunReport, ValueCache
from llmrec_plugin.runtime.runner import Mode, Runner
from llmrec_plugin.settings import Settings, load_settings
from llmrec_plugin.specs import Feature, Model, SimilarityFeature
from llmrec_plugin.testing.declarations import Declared
from llmrec_plugin.testing.outcomes import CheckSkipped
from llmrec_plugin.testing.rows import Columns, Row, columns_of, sample_rows
from llmrec_plugin.transform import Side, compare

Rows: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""Feature -> rows of its columns."""


class Outcome(NamedTuple):
    """Values and statuses of n rows, in their order; ``cached`` counts as ``ok``."""

    values: list[Any]
    statuses: list[str]


class NoCache(ValueCache):
    """A cache that keeps nothing, so that every value is computed."""

    def get_many(self, fingerprint: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
        return {}

    def get_bytes(self, fingerprint: str, texts: Sequence[str]) -> dict[str, bytes]:
        return {}

    def put_many(self, fingerprint: str, vectors: Mapping[str, np.ndarray]) -> None:
        pass

    def put_bytes(self, fingerprint: str, values: Mapping[str, bytes]) -> None:
        pass

    def record(self, report: RunReport) -> None:
        pass


@functools.cache
def scratch() -> Path:
    """A folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="llmrec-checks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def bench_settings() -> Settings:
    """The settings of this process, with a cache folder and a progress bar for nobody."""
    return replace(load_settings(), cache_folder=scratch() / "cache", progress=False)


@functools.lru_cache(maxsize=4)
def _runner(settings: Settings) -> Runner:
    return Runner(settings, NoCache(settings.cache_folder, settings.cache_max_bytes))


@dataclass(frozen=True)
class Subject:
    """A feature or a model that is checked.

    Attributes:
        declaration: The feature or model.
        declared: All that its plugin declares.
        own_rows: Rows by feature that the author gave.
    """

    declaration: Feature | Model
    declared: Declared
    own_rows: Rows = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def feature(self) -> Feature:
        return cast(Feature, self.declaration)

    @property
    def model_name(self) -> str:
        """The name of the model behind it."""
        return str(getattr(self.declaration, "model", self.declaration.name))

    def artifact(self) -> AnyArtifact:
        """The current artifact of the model.

        Raises:
            CheckSkipped: There is none on this machine.
            ArtifactCorruptError: It cannot be read.
        """
        store = ArtifactStore(bench_settings().artifact_folders)
        with _skipping():
            return store.find(self.model_name, store.current_id(self.model_name))

    def bound(self) -> Bound:
        """The feature with the current artifacts of its models, without deadlines.

        Raises:
            CheckSkipped: An artifact is not on this machine, or is an endpoint's.
            ArtifactMismatchError: An artifact is not what the feature declares.
            UnknownNameError: A side of a similarity is not declared.
        """
        feature = self.feature
        if isinstance(feature, SimilarityFeature):
            left, right = (self._bind(self.feature_named(name)) for name in (feature.left, feature.right))
            if isinstance(left, BoundTokens) or isinstance(right, BoundTokens):
                raise DeclarationError(f"Feature {feature.name!r} compares what is no vector; name embedding features.")
            return BoundSimilarity(feature, left, right)
        return self._bind(feature)

    def _bind(self, feature: Any) -> BoundColumn:
        store = ArtifactStore(bench_settings().artifact_folders)
        with _skipping():
            bound = bind(replace(feature, deadline_ms=None), store)
        for name, artifact_id in bound.artifacts:
            if ENDPOINT in store.find(name, artifact_id).manifest.files:
                raise CheckSkipped(f"Model {name!r} is behind an endpoint, whose answers this kit does not pay for.")
        return bound

    def feature_named(self, name: str) -> Feature:
        """A feature of this plugin or of an installed one.

        Raises:
            UnknownNameError: Nobody declares it.
        """
        if name in self.declared.features:
            return self.declared.features[name]
        catalogue = load_catalogue(load_settings().disabled_plugins)
        if name not in catalogue.features:
            raise UnknownNameError("feature", name, [*self.declared.features, *catalogue.features])
        return catalogue.feature(name)

    def rows(self, count: int) -> list[Row]:
        """Ordinary rows: the author's, over and over, or made ones, of which no two are alike."""
        own = self.own_rows.get(self.name)
        if own:
            return [dict(own[number % len(own)]) for number in range(count)]
        bound = self.bound()
        network = self.artifact() if isinstance(bound, BoundNetwork) else None
        return sample_rows(bound, count, network if isinstance(network, NetworkArtifact) else None)

    def compute(self, rows: Sequence[Mapping[str, Any]], mode: Mode = "batch") -> Outcome:
        """The values of rows; those of a similarity from the columns of both its sides."""
        return self.compute_columns(columns_of(rows), mode)

    def compute_columns(self, columns: Columns, mode: Mode = "batch") -> Outcome:
        """The same for rows by column."""
        return compute(_runner(bench_settings()), self.bound(), columns, mode)


def compute(runner: Runner, bound: Bound, columns: Columns, mode: Mode) -> Outcome:
    """The values of the rows in `columns`, computed by `runner`."""
    if isinstance(bound, BoundSimilarity):
        left, right = (_side(runner, side, columns, mode) for side in (bound.left, bound.right))
        values, statuses = compare(bound, left, right)
        return Outcome(list(values), list(statuses))
    computed = runner.compute(bound, columns, mode, quiet=True)
    return Outcome(list(computed.values), ["ok" if status == "cached" else status for status in computed.statuses])


def _side(runner: Runner, bound: BoundColumn, columns: Columns, mode: Mode) -> Side:
    computed = runner.compute(bound, columns, mode, quiet=True)
    return cast(Side, (list(computed.values), list(computed.statuses)))


class _skipping:  # noqa: N801 - used like contextlib's
    """Turns a missing artifact into a skipped check."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ArtifactNotFoundError):
            raise CheckSkipped(str(error)) from error
