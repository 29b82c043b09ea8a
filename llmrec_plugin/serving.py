"""What a ranker reads: the features of many entities as one matrix, from Feast's Python interface or over HTTP.

A `Layout` says which features are read and where each lies in the matrix. It is made once, where the registry is
(`llmrec_plugin.feast.layout_of`), and travels as JSON, best beside the trained ranker: a process that reads over
HTTP needs nothing but numpy, this module and that file::

    layout = Layout.from_json(Path("ranker.layout.json").read_text())
    fetched = fetch_http("http://localhost:6566", layout, {"item": ["i1", "i2"]})
    fetched.matrix[:, layout.slices["item_text_embedding"]]

In a process that has Feast, `llmrec_plugin.feast.fetch` gives the same from a ``FeatureStore``.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from llmrec_plugin.errors import FetchError, FingerprintMismatchError, InputError
from llmrec_plugin.pipeline.packing import unpack
from llmrec_plugin.specs import Storage

__all__ = ["Column", "Fetched", "Layout", "fetch_http"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A vector or a number, and its place in the matrix.

    Attributes:
        name: The feature, as Feast names it in a response.
        dims: How many columns of the matrix it takes; 1 for a number.
        storage: How a vector arrives; None for a number.
        status: Name of the feature that says why the value is what it is, if it is read, too.
        fingerprint: That of the declaration behind it; None for a feature that is not of this package.
        view: The view it is stored in, where this package stores it; else None.
        version: The version of that view.
    """

    name: str
    dims: int = 1
    storage: Storage | None = None
    status: str | None = None
    fingerprint: str | None = None
    view: str | None = None
    version: int | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The features that are read, in the order of the matrix. Equal layouts read equal features.

    Attributes:
        columns: Vectors and numbers.
        others: Features that are neither: strings, lists, times.
        features: What to ask Feast for, as references ``view:feature``; empty if a service is asked for.
        service: Name of a feature service that gives views other names or keys, which references cannot say; else
            None. Of such a service Feast tells no versions, so a change of its views is seen by its lengths only.
        full_feature_names: Whether Feast puts the view's name before the feature's.
    """

    columns: tuple[Column, ...]
    others: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    service: str | None = None
    full_feature_names: bool = False

    @functools.cached_property
    def slices(self) -> dict[str, slice]:
        """Feature -> its columns of the matrix."""
        ends = np.cumsum([column.dims for column in self.columns]).tolist()
        return {column.name: slice(end - column.dims, end) for column, end in zip(self.columns, ends, strict=True)}

    @property
    def dims(self) -> int:
        """Width of the matrix."""
        return sum(column.dims for column in self.columns)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        values = json.loads(text)
        columns = tuple(Column(**column) for column in values.pop("columns"))
        return cls(columns=columns, **{name: _tuple(value) for name, value in values.items()})


class Fetched(NamedTuple):
    """The features of n rows, in the order they were asked for.

    Attributes:
        matrix: (n, layout.dims) float32, C-contiguous; NaN where there is no value. Numbers are rounded to float32.
        present: (n, k) bool, whether there is a value, for the k columns of the layout.
        status: (n, k) str, why the value is what it is: what the feature's status column says, if it is read, else
            ``ok``, ``null`` (no value is stored) or ``not_found`` (nothing is stored for the entity).
        others: The features of ``layout.others``: n values each, as Feast gives them.
    """

    matrix: np.ndarray
    present: np.ndarray
    status: np.ndarray
    others: dict[str, list[Any]]


class ResponseColumn(Protocol):
    """One feature of a response: n values."""

    @property
    def found(self) -> list[bool]:
        """Whether the store has a row of the entity."""

    def packed(self) -> list[bytes | None]:
        """Vectors that are stored packed."""

    def components(self) -> list[bytes | None]:
        """Vectors that are stored as lists, as little-endian float32."""

    def values(self) -> list[Any]:
        """Anything else, as Feast gives it."""


def fetch_http(
    url: str,
    layout: Layout,
    entities: Mapping[str, Sequence[Any]],
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> Fetched:
    """The features of n entities from a feature server.

    Args:
        url: Address of ``feast serve``, e.g. ``"http://localhost:6566"``.
        layout: What to read.
        entities: Join keys and request data by name, n values each.
        headers: Further headers, e.g. for authorization.
        timeout: Seconds without a byte after which to give up.

    Raises:
        FetchError: The server refused the request, or its answer is not of this layout.
        FingerprintMismatchError: The server has other versions of the layout's views, or a vector of another length.
        InputError: No entities are named, or their lengths differ.
        OSError: The server cannot be reached, or was silent for too long.
    """
    columns, rows = request_columns(entities)
    if rows == 0:
        return assemble(layout, rows, {})
    request = urllib.request.Request(  # noqa: S310 - the address is the caller's own
        f"{url.rstrip('/')}/get-online-features",
        data=json.dumps(request_body(layout, columns)).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            body = response.read()
    except urllib.error.HTTPError as exc:
        with exc:
            detail = exc.read().decode(errors="replace")
        raise FetchError(f"The feature server answered {exc.code} to a request for {_asked(layout)}: {detail}") from exc
    return decode_body(layout, rows, body)


def request_body(layout: Layout, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The JSON of a request to ``/get-online-features``."""
    asked = {"feature_service": layout.service} if layout.service else {"features": list(layout.features)}
    return {
        **asked,
        "entities": columns,
        "full_feature_names": layout.full_feature_names,
        "include_feature_view_version_metadata": True,
    }


def decode_body(layout: Layout, rows: int, body: bytes) -> Fetched:
    """The body of the server's answer, for `rows` entities."""
    try:
        answer = json.loads(body)
        metadata, results = answer["metadata"], answer["results"]
    except (ValueError, KeyError, TypeError) as exc:
        raise FetchError(f"Expected the answer of a Feast feature server, got {body[:200]!r}. Check the URL.") from exc
    versions = {view["name"]: view.get("version", 0) for view in metadata.get("feature_view_metadata", [])}
    changed = changed_columns(layout, versions)
    if changed:
        raise FingerprintMismatchError(_change_message(changed))
    columns = {name: _JSONColumn(name, result) for name, result in zip(metadata["feature_names"], results, strict=True)}
    return assemble(layout, rows, columns)


def request_columns(entities: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[Any]], int]:
    """The entities as lists of plain values (arrays and series hold numpy's), and their number.

    Raises:
        InputError: There are none, or their lengths differ.
    """
    columns = {
        name: [value.item() if isinstance(value, np.generic) else value for value in values]
        for name, values in entities.items()
    }
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(
            "Expected join keys and request data by name, as many values each, e.g. {'item': ['i1', 'i2']}; "
            f"got {lengths or 'none'}."
        )
    return columns, next(iter(lengths.values()))


def changed_columns(layout: Layout, versions: Mapping[str, int]) -> list[Column]:
    """The columns whose views have another version in a response than in the layout."""
    return [
        column
        for column in layout.columns
        if column.view and versions.get(column.view, column.version) != column.version
    ]


def refuse_other_fingerprints(layout: Layout, now: Layout) -> None:
    """Compares what a layout says with what the registry says now.

    Raises:
        FingerprintMismatchError: A feature of the layout has another fingerprint now.
    """
    fingerprints = {column.name: column.fingerprint for column in now.columns}
    changed = [column for column in layout.columns if fingerprints.get(column.name) != column.fingerprint]
    if changed:
        raise FingerprintMismatchError(_change_message(changed))


def _change_message(columns: Sequence[Column]) -> str:
    names = ", ".join(repr(column.name) for column in columns)
    return (
        f"The declaration of {names} changed since the layout was made, so its values may be another model's. Make the "
        "layout again with `layout_of`; where a fingerprint in it differs, train the ranker on the new values first."
    )


def assemble(layout: Layout, rows: int, columns: Mapping[str, ResponseColumn]) -> Fetched:
    """The columns of a response as a matrix.

    Args:
        layout: What was asked for.
        rows: How many rows were asked for; nothing is looked up in `columns` for none.
        columns: Feature -> its values; more than the layout has do no harm.

    Raises:
        FetchError: A feature is not there, or of another type.
        FingerprintMismatchError: A vector has another length.
    """
    matrix = np.full((rows, layout.dims), np.nan, dtype=np.float32)
    present = np.zeros((rows, len(layout.columns)), dtype=bool)
    status = np.full((rows, len(layout.columns)), "not_found", dtype=object)
    if rows == 0:
        return Fetched(matrix, present, status, {name: [] for name in layout.others})
    for number, column in enumerate(layout.columns):
        source = _column(columns, column.name, layout)
        block = matrix[:, layout.slices[column.name]]
        present[:, number] = _fill_number(block, source) if column.storage is None else _fill(block, column, source)
        status[source.found, number] = "null"
        status[present[:, number], number] = "ok"
        if column.status is not None:
            declared = _column(columns, column.status, layout).values()
            status[:, number] = [new or old for new, old in zip(declared, status[:, number], strict=True)]
    others = {name: _column(columns, name, layout).values() for name in layout.others}
    return Fetched(matrix, present, status, others)


def _fill(block: np.ndarray, column: Column, source: ResponseColumn) -> np.ndarray:
    """Writes vectors into (n, dims); which of the n rows have one."""
    assert column.storage is not None
    values = source.components() if column.storage == "list" else source.packed()
    present = np.array([value is not None for value in values], dtype=bool)
    storage: Storage = "float32" if column.storage == "list" else column.storage
    block[present] = unpack([value for value in values if value is not None], storage, column.dims, owner=column.name)
    return present


def _fill_number(block: np.ndarray, source: ResponseColumn) -> np.ndarray:
    block[:, 0] = np.array([np.nan if value is None else value for value in source.values()], dtype=np.float64)
    return ~np.isnan(block[:, 0])


def _column(columns: Mapping[str, ResponseColumn], name: str, layout: Layout) -> ResponseColumn:
    if name not in columns:
        raise FetchError(
            f"The answer for {_asked(layout)} lacks {name!r}, it has {', '.join(map(repr, columns)) or 'nothing'}. "
            "The features changed since the layout was made; make it again."
        )
    return columns[name]


def type_error(name: str, expected: str, got: object) -> FetchError:
    return FetchError(
        f"Feature {name!r}: expected {expected}, got {got}. Its storage changed since the layout was made; "
        "make it again."
    )


class _JSONColumn:
    """One feature of the feature server's answer."""

    def __init__(self, name: str, result: dict[str, list[Any]]) -> None:
        self._name, self._values, self._statuses = name, result["values"], result["statuses"]

    @property
    def found(self) -> list[bool]:
        return [status != "NOT_FOUND" for status in self._statuses]

    def packed(self) -> list[bytes | None]:
        return [base64.b64decode(value) if value else None for value in self._of_type(str, "bytes in base64")]

    def components(self) -> list[bytes | None]:
        return [np.array(value, dtype="<f4").tobytes() if value else None for value in self._of_type(list, "a list")]

    def values(self) -> list[Any]:
        return self._values

    def _of_type(self, expected: type, words: str) -> list[Any]:
        for value in self._values:
            if value is not None and not isinstance(value, expected):
                raise type_error(self._name, words, type(value).__name__)
        return self._values


def _asked(layout: Layout) -> str:
    return f"feature service {layout.service!r}" if layout.service else f"features {', '.join(layout.features)}"


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
