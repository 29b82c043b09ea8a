"""A sample of what an online store holds of our batch views, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.Value_pb2 import Value

from llmrec_plugin.binding import BoundColumn
from llmrec_plugin.errors import InputError, OnlineStoreError
from llmrec_plugin.feast.completeness import KEYS_PER_READ
from llmrec_plugin.feast.jobs import entity_keys, is_missing, open_job
from llmrec_plugin.feast.training import TrainingSource
from llmrec_plugin.pipeline.columns import is_number
from llmrec_plugin.pipeline.packing import unpack
from llmrec_plugin.pipeline.redaction import redact_columns
from llmrec_plugin.pipeline.text import clean, to_text
from llmrec_plugin.runtime.ledger import Key
from llmrec_plugin.specs import NetworkFeature, Redaction, TextFeature

TEXT_CHARACTERS = 200
"""Characters that are kept of an item's text."""


@dataclass(frozen=True)
class Stored:
    """What an online store holds of n entities.

    Attributes:
        keys: The entities' keys.
        found: (n,) bool: whether there is a row.
        values: Per entity a (dims,) float32 vector, a number, a string or a list, as stored; None for a null and
            where there is no row.
        statuses: Per entity the stored status; None where there is none.
    """

    keys: list[Key]
    found: np.ndarray
    values: list[Any]
    statuses: list[str | None]


def sample_keys(view: FeatureView, most: int) -> tuple[list[Key], int]:
    """Keys of entities of the view's source, and how many it has.

    The keys with the smallest hashes are taken, so that every sample of the same entities is the same one.

    Args:
        view: A batch view whose source is a file.
        most: Keys at most.

    Raises:
        InputError: The source cannot be read, or is no file.
    """
    if not isinstance(view.batch_source, TrainingSource) or "uri" not in view.batch_source.configuration:
        raise InputError(
            f"The rows of view {view.name!r} are not in a file, so its entities cannot be listed here and its values "
            "are not looked up. Read it where its rows are."
        )
    total = 0
    kept = np.empty(0, dtype=object)
    hashes = np.empty(0, dtype=np.uint64)
    for batch in view.batch_source.distinct_keys():
        keys = np.array([None, *batch.column(0).to_pylist()], dtype=object)[1:]  # a plain array would unpack bytes
        total += len(keys)
        kept = np.concatenate([kept, keys])
        hashes = np.concatenate([hashes, pd.util.hash_array(np.array(list(map(str, keys)), dtype=object))])
        order = np.argsort(hashes, kind="stable")[:most]
        kept, hashes = kept[order], hashes[order]
    return sorted(kept.tolist()), total


def read_stored(store: FeatureStore, view: FeatureView, keys: Sequence[Key]) -> Stored:
    """What the online store holds for `keys`, in their order, of this version of `view`.

    Raises:
        OnlineStoreError: The store cannot be read.
    """
    bound: BoundColumn = view.feature_transformation.udf.bound
    name, status = bound.feature.name, bound.feature.status_name
    names = [name, status] if bound.feature.status else [name]
    found: list[bool] = []
    values: list[Any] = []
    statuses: list[str | None] = []
    provider = store._get_provider()
    for start in range(0, len(keys), KEYS_PER_READ):
        some = entity_keys(view, keys[start : start + KEYS_PER_READ])
        try:
            read = provider.online_read(store.config, view, some, list(names))
        except Exception as exc:  # whatever the store's client raises
            raise OnlineStoreError(
                f"The online store cannot be read for view {view.name!r} ({type(exc).__name__}: {exc}): expected it "
                "to be reachable and to have the view. Run `feast apply` in this repo, then materialize."
            ) from exc
        for at, row in read:
            found.append(not is_missing(at, row))
            values.append(_plain(row.get(name)) if row else None)
            statuses.append(_plain(row.get(status)) if row and bound.feature.status else None)
    return Stored(list(keys), np.array(found, dtype=bool), _vectors(bound, values), statuses)


def _plain(value: Value | None) -> Any:
    kind = value.WhichOneof("val") if value is not None else None
    if kind is None:
        return None
    plain = getattr(value, kind)
    return list(plain.val) if hasattr(plain, "val") else plain


def _vectors(bound: BoundColumn, values: list[Any]) -> list[Any]:
    """Stored vectors as (dims,) float32; other values as they are."""
    feature = bound.feature
    if not isinstance(feature, TextFeature | NetworkFeature) or is_number(feature):
        return values
    if feature.storage == "list":
        return [np.array(value, dtype=np.float32) if value else None for value in values]
    assert feature.dims is not None
    present = [value for value in values if value is not None]
    unpacked = iter(unpack(present, feature.storage, feature.dims, owner=feature.name))
    return [None if value is None else next(unpacked) for value in values]


def texts_of(store: FeatureStore, view: FeatureView, keys: Sequence[Key]) -> dict[Key, str]:
    """The beginning of what the newest row of each of `keys` holds in the columns that the view reads.

    Personal data that the feature redacts is redacted here, too.

    Raises:
        InputError: The raw source cannot be read.
    """
    provider = store._get_provider()
    job = open_job(store.config, view, provider.offline_store, provider.online_store)
    wanted = set(keys)
    texts: dict[Key, str] = {}
    newest = job.raw.newest((-(2**62), int(time.time() * 1e6)))
    for _, rows in job.raw.read(newest.inside):
        chosen = rows.take(np.array([key in wanted for key in rows.keys], dtype=bool))
        columns: dict[str, Sequence[Any]] = dict(chosen.columns)
        for redaction in _redactions(job.bound.feature):
            columns = redact_columns(redaction, columns, list(columns), TEXT_CHARACTERS)
        texts |= zip(chosen.keys, map(_shown, zip(*columns.values(), strict=True)), strict=True)
    return texts


def _redactions(feature: Any) -> list[Redaction]:
    """Those of a feature and of what it is computed from."""
    parts = [part for _, part in getattr(feature, "parts", ())]
    features = [feature, getattr(feature, "of", None), *parts]
    return [each.redact for each in features if getattr(each, "redact", None) is not None]


def _shown(cells: Sequence[Any]) -> str:
    texts = (to_text(cell) for cell in cells if not isinstance(cell, bytes | dict))
    return clean(". ".join(filter(None, texts)), TEXT_CHARACTERS)
