"""One call in a feature repo that turns every declaration into Feast views."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from feast import Entity, FeatureView, OnDemandFeatureView, RequestSource

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundColumn, BoundNetwork, BoundSimilarity, BoundTokens, BoundVector, bind
from llmrec_plugin.errors import (
    ArtifactError,
    ColumnTypeError,
    DeclarationError,
    NameCollisionError,
    UnknownNameError,
    suggestion,
)
from llmrec_plugin.feast.compatibility import unsuited_settings
from llmrec_plugin.feast.patches import LLMBatchFeatureView
from llmrec_plugin.feast.views import (
    batch_view,
    column_types,
    described,
    on_demand_name,
    on_demand_view,
    request_source,
    similarity_view,
)
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.registry import Provenance, Registered
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import ColumnFeature, Feature, NetworkFeature, SimilarityFeature, TokenFeature

logger = logging.getLogger(__name__)

View: TypeAlias = FeatureView | OnDemandFeatureView


def publish(
    namespace: MutableMapping[str, Any],
    *,
    sources: Mapping[str, FeatureView | Sequence[FeatureView]] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> dict[str, View]:
    """Creates the Feast views of every declaration and puts them where ``feast apply`` finds them.

    Declarations are those in `namespace` and those of installed plugins. A feature with an entity is read
    from the feature view of that entity that has its columns; it becomes a batch view of its own name and
    an on-demand view ``<name>_on_demand``. A feature without an entity becomes an on-demand view.

    A declaration in `namespace`, or one named in `include`, must fit the repo. A plugin's feature that
    finds no entity or columns here is left out, with a logged warning that says why. A model that is not
    exported is an error for every feature, for Feast would delete what is left out.

    Args:
        namespace: The repo file's ``globals()``; entities and feature views are looked up in it, and the
            views are added under names that start with ``_llmrec_``.
        sources: Feature name -> the view to read, where several would fit. For a `NetworkFeature` without an entity:
            the view, or views, whose columns it reads from the online store; what they lack is sent with a request.
        include: Publish only these features (and the sides of similarities among them).
        exclude: Do not publish these.

    Returns:
        Every published view by its name, to be listed in feature services.

    Raises:
        ArtifactNotFoundError: A model is not exported.
        ArtifactMismatchError: A declaration contradicts its model.
        ColumnTypeError: A column cannot be read as text.
        DeclarationError: No view, or more than one, fits a feature.
        NameCollisionError: Two declarations have one name.
        UnknownNameError: A name in the arguments or in a similarity is not declared.
    """
    publication = _Publication(namespace, dict(sources or {}), include, exclude)
    views = publication.run()
    namespace.update({f"_llmrec_{name}": view for name, view in views.items()})
    return views


class _Publication:
    def __init__(
        self,
        namespace: Mapping[str, Any],
        sources: dict[str, FeatureView | Sequence[FeatureView]],
        include: Iterable[str] | None,
        exclude: Iterable[str],
    ) -> None:
        settings = load_settings()
        self._store = ArtifactStore(settings.artifact_folders)
        self._root = _repo_root(namespace)
        _warn_of_settings(Path(self._root))
        self._entities = {item.name: item for item in namespace.values() if isinstance(item, Entity)}
        self._raw = {item.name: item for item in namespace.values() if _is_raw_view(item)}
        self._sources = sources
        self._features = _declared(namespace, settings.disabled_plugins)
        self._include = None if include is None else set(include)
        self._exclude = set(exclude)
        for name in {*sources, *(self._include or ()), *self._exclude} - self._features.keys():
            raise UnknownNameError("feature", name, self._features)
        self._bound: dict[str, BoundColumn] = {}
        self._views: dict[str, View] = {}
        self._sources_of: dict[str, list[FeatureView | RequestSource]] = {}

    def run(self) -> dict[str, View]:
        chosen = {
            name: item
            for name, item in self._features.items()
            if name not in self._exclude and (self._include is None or name in self._include)
        }
        # Embeddings first: a similarity needs the views of its sides.
        for similarity in (False, True):
            for item in chosen.values():
                if isinstance(item.declaration, SimilarityFeature) is similarity:
                    self._publish(item)
        return self._views

    def _publish(self, item: Registered[Feature]) -> None:
        feature = item.declaration
        tags = {"llmrec.plugin": item.provenance.plugin}
        try:
            if isinstance(feature, SimilarityFeature):
                self._publish_similarity(feature, tags)
            else:
                self._publish_column(feature, tags)
        except (ColumnTypeError, DeclarationError, UnknownNameError) as exc:
            required = item.provenance.plugin == _REPO or (self._include is not None and feature.name in self._include)
            if required:
                raise
            logger.warning("Feature %r of %s is not published: %s", feature.name, item.provenance, exc)
        except ArtifactError as exc:
            # Never left out: `feast apply` would take it for deleted and drop what is stored.
            exc.add_note(
                f"Needed by feature {feature.name!r} of {item.provenance}; "
                f"publish(globals(), exclude=[{feature.name!r}]) leaves it out, with what is stored of it."
            )
            raise

    def _publish_column(self, feature: ColumnFeature, tags: dict[str, str]) -> None:
        if feature.name in self._bound:
            return
        raw = None if feature.entity is None else self._raw_view(feature)
        stored = self._stored_columns(feature)
        bound = bind(feature, self._store)
        if isinstance(bound, BoundNetwork) and stored:
            reads = {name: self._bound[name].fingerprint for name in stored if name in self._bound}
            bound = replace(bound, reads=tuple(sorted(reads.items())))
        for view in (raw, *stored.values()):
            if view is not None:
                _check_types(bound, view)
        request = request_source(bound, raw, stored)
        sources = [*({view.name: view for view in stored.values()}.values()), *([request] if request else [])]
        views: dict[str, View] = {on_demand_name(feature): on_demand_view(bound, sources, tags)}
        if raw is not None:
            entity = self._entities[str(feature.entity)]
            views[feature.name] = batch_view(bound, raw, entity, self._root, tags)
        self._add_views(feature, views)
        self._bound[feature.name] = bound
        self._sources_of[feature.name] = sources

    def _stored_columns(self, feature: ColumnFeature) -> dict[str, FeatureView]:
        """Column -> the view that stores it, of a network's feature of request time: columns need not all be sent.

        It may name stored features as its columns, and columns of the views that ``sources`` gives for it.
        """
        if not isinstance(feature, NetworkFeature) or feature.entity is not None:
            return {}
        given = self._sources.get(feature.name, ())
        views = [given] if isinstance(given, FeatureView) else list(given)
        found: dict[str, FeatureView] = {
            field.name: view for view in views for field in view.features if field.name in feature.columns
        }
        for column in feature.columns:
            item = self._features.get(column)
            if column in found or item is None or isinstance(item.declaration, SimilarityFeature):
                continue
            if item.declaration.entity is not None:
                self._publish_column(item.declaration, {"llmrec.plugin": item.provenance.plugin})
                view = self._views[column]
                assert isinstance(view, FeatureView)
                found[column] = view
        return found

    def _publish_similarity(self, feature: SimilarityFeature, tags: dict[str, str]) -> None:
        sides: list[BoundVector] = []
        sources: list[FeatureView | RequestSource] = []
        for name in (feature.left, feature.right):
            if name not in self._features:
                raise UnknownNameError("feature", name, self._features)
            side = self._features[name].declaration
            if isinstance(side, SimilarityFeature):
                raise DeclarationError(
                    f"Feature {feature.name!r} compares {name!r}, which is a similarity; name an embedding feature."
                )
            if isinstance(side, TokenFeature):
                raise DeclarationError(
                    f"Feature {feature.name!r} compares {name!r}, which is no vector; name an embedding feature, such "
                    "as a GeneratedEmbeddingFeature of it."
                )
            self._publish_column(side, {"llmrec.plugin": self._features[name].provenance.plugin})
            bound = self._bound[name]
            assert not isinstance(bound, BoundTokens)
            sides.append(bound)
            sources += self._sources_of[name] if side.entity is None else [self._views[name]]  # type: ignore[list-item]
        sources = list({source.name: source for source in sources}.values())
        view = similarity_view(BoundSimilarity(feature, sides[0], sides[1]), sources, tags)
        self._add_views(feature, {feature.name: view})

    def _add_views(self, feature: Feature, views: Mapping[str, View]) -> None:
        for name in views.keys() & self._views.keys():
            raise NameCollisionError(
                f"Feature {feature.name!r} makes a view {name!r}, and so does another feature. Rename one of them."
            )
        self._views.update(views)

    def _raw_view(self, feature: ColumnFeature) -> FeatureView:
        """The view that has the feature's entity and columns."""
        if feature.entity not in self._entities:
            raise UnknownNameError(
                "Feast entity in this module",
                str(feature.entity),
                self._entities,
                "Import the entity, and the view with its columns, into the file that calls publish(globals()).",
            )
        named = self._sources.get(feature.name)
        if named is not None and not isinstance(named, FeatureView):
            raise DeclarationError(
                f"Feature {feature.name!r} has an entity, so it reads one view: sources={{{feature.name!r}: view}}."
            )
        views = list(self._raw.values()) if named is None else [named]
        same_entity = [view for view in views if view.entities == [feature.entity]]
        fitting = [view for view in same_entity if set(feature.columns) <= {field.name for field in view.features}]
        if named is not None and not named.features:
            fitting = same_entity  # a view without a schema gets its columns from the source when it is applied
        if len(fitting) != 1:
            offers = "; ".join(f"{view.name}({', '.join(field.name for field in view.features)})" for view in views)
            raise DeclarationError(
                f"Feature {feature.name!r} reads {', '.join(feature.columns)} of entity {feature.entity!r}: expected "
                f"one feature view with that entity and those columns, found {len(fitting)} among: {offers or 'none'}. "
                + _missing(feature, same_entity)
                + f"Add the columns to a view's schema, or pass publish(globals(), sources={{{feature.name!r}: view}})."
            )
        return fitting[0]


def _missing(feature: ColumnFeature, views: Iterable[FeatureView]) -> str:
    """The columns that no view of the entity has, each with the near ones."""
    fields = {field.name for view in views for field in view.features}
    missing = [name for name in feature.columns if name not in fields]
    found = (f"No such view has {name!r}. {suggestion(name, fields)}".rstrip() for name in missing)
    return "".join(f"{sentence} " for sentence in found)


_REPO = "feature repo"


def _declared(namespace: Mapping[str, Any], disabled: Iterable[str]) -> dict[str, Registered[Feature]]:
    """Every feature by name: the repo's own and the plugins'."""
    catalogue = load_catalogue(disabled)
    for failure in catalogue.failures:
        logger.warning("A plugin is not used: %s", failure)
    features = dict(catalogue.features)
    here = Provenance(_REPO, str(namespace.get("__name__", "")), "")
    own = {id(item): item for item in namespace.values() if isinstance(item, Feature)}  # one object may have two names
    for feature in own.values():
        if feature.name in features:
            raise NameCollisionError(
                f"{features[feature.name].provenance} and this feature repo both declare {feature.name!r}. "
                "Rename the repo's feature, or disable the plugin with LLMREC_DISABLE_PLUGINS."
            )
        features[feature.name] = Registered(feature, here)
    return features


def _warn_of_settings(root: Path) -> None:
    path = root / "feature_store.yaml"
    configuration = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for found, remedy in unsuited_settings(configuration):
        logger.warning("%s: %s Write: %s", path.name, found, remedy)


def _is_raw_view(item: object) -> bool:
    return isinstance(item, FeatureView) and not isinstance(item, LLMBatchFeatureView)


def _check_types(bound: BoundColumn, view: FeatureView) -> None:
    given = {field.name: field.dtype for field in view.features}
    for column, types in column_types(bound).items():
        dtype = given.get(column)
        if dtype is not None and dtype not in types:
            raise ColumnTypeError(
                f"Feature {bound.feature.name!r} reads column {column!r} of view {view.name!r}: expected "
                f"{described(types)}, got {dtype}. Convert the column in its source, or read another one."
            )


def _repo_root(namespace: Mapping[str, Any]) -> str:
    """The folder with feature_store.yaml above the module that publishes, else the working folder."""
    here = Path(namespace.get("__file__") or Path.cwd() / "features.py").absolute()
    for folder in here.parents:
        if (folder / "feature_store.yaml").is_file():
            return str(folder)
    return str(Path.cwd())
