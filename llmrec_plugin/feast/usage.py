"""Which features a feature repo serves, or keeps to return to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feast import FeatureStore

from llmrec_plugin.binding import Bound
from llmrec_plugin.errors import FingerprintMismatchError, InputError
from llmrec_plugin.feast.versions import kept_by, read
from llmrec_plugin.transform import Transform


def open_repo(repo: Path) -> FeatureStore:
    """The feature store that a repo describes.

    Raises:
        InputError: There is no feature repo.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise InputError(f"{repo.absolute()} holds no feature_store.yaml: expected a feature repo. Give --repo FOLDER.")
    return FeatureStore(repo_path=str(repo.absolute()))  # the registry is opened later, maybe from another folder


def transform_of(view: object) -> Transform | None:
    """Our transformation behind a view, if there is one."""
    transform = getattr(getattr(view, "feature_transformation", None), "udf", None)
    return transform if isinstance(transform, Transform) else None


def applied_features(store: FeatureStore) -> list[Bound]:
    """Every feature of ours in the registry, as it was last applied, in all kept versions of its view.

    A version that this version of the package would compute otherwise is left out.
    """
    found = []
    for view in _views(store):
        transform = transform_of(view)
        with contextlib.suppress(FingerprintMismatchError):
            if transform:
                found.append(transform.bound)
    return found


def _views(store: FeatureStore) -> Iterator[Any]:
    yield from store.registry.list_feature_views(store.project)
    yield from store.registry.list_on_demand_feature_views(store.project)
    if kept_by(store.registry):
        for versions in read(store.registry, store.project).values():
            yield from (versions.view(number) for number in versions.kept if number != versions.number)
