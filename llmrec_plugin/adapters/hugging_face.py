"""Features as columns of a Hugging Face dataset, and a dataset as a source of rows for Feast."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_plugin.adapters.computing import FeatureValues, need
from llmrec_plugin.errors import DeclarationError, InputError, MissingColumnError
from llmrec_plugin.pipeline.columns import output_arrays, output_fields
from llmrec_plugin.specs import ColumnFeature

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_EXTRA = "datasets"


class _AddColumns:
    """Adds a feature's columns to a table. Its pickle, by which `datasets` knows what it did, has the fingerprint."""

    def __init__(self, values: FeatureValues) -> None:
        self._values = values
        self._fingerprint = values.bound.fingerprint

    def __call__(self, table: pa.Table) -> pa.Table:
        feature = self._values.feature
        computed = self._values.compute({name: table[name].to_pylist() for name in feature.columns})
        arrays = output_arrays(feature, computed.values, computed.statuses)
        for field, array in zip(output_fields(feature), arrays, strict=True):
            table = table.append_column(field, array)
        return table


def add_feature(
    dataset: Dataset, feature: str | ColumnFeature, *, batch_size: int = 1024, num_proc: int | None = None
) -> Dataset:
    """The dataset with the columns of a feature: those that its Feast view has, of the same types and values.

    Texts that are in the value cache, e.g. from ``feast materialize``, are not computed again; `datasets` keeps the
    result itself, too, until the feature's fingerprint changes.

    Args:
        dataset: With the columns that the feature reads.
        feature: Name of a feature that an installed plugin declares, or a declaration.
        batch_size: Rows at a time.
        num_proc: Processes, each with a model of its own; one uses all CPUs, so more rarely help.

    Raises:
        MissingExtraError: `datasets` is not installed.
        MissingColumnError: The dataset lacks a column.
        DeclarationError: The dataset has a column of the feature's name.
    """
    datasets = need("datasets", _EXTRA, "add_feature")
    values = FeatureValues(feature)
    fields = output_fields(values.feature)
    missing = [name for name in values.feature.columns if name not in dataset.column_names]
    if missing:
        raise MissingColumnError(values.feature.name, missing, dataset.column_names)
    taken = [field.name for field in fields if field.name in dataset.column_names]
    if taken:
        raise DeclarationError(f"The dataset has a column {taken[0]!r} already; remove it with remove_columns first.")
    added = {field.name: datasets.features.features.generate_from_arrow_type(field.type) for field in fields}
    mapped = dataset.with_format("arrow").map(
        _AddColumns(values),
        batched=True,
        batch_size=batch_size,
        num_proc=num_proc,
        features=datasets.Features({**dataset.features, **added}),
        desc=values.feature.name,
    )
    form = dataset.format
    if form["type"] is None:
        return mapped.with_format(None)
    shown = set(form["columns"]) == set(dataset.column_names)
    columns = mapped.column_names if shown else form["columns"]
    return mapped.with_format(form["type"], columns=columns, **form["format_kwargs"])


def write_source(
    dataset: Dataset,
    path: str | Path,
    *,
    at: datetime | None = None,
    timestamp_field: str = "event_timestamp",
    batch_size: int = 10_000,
) -> Path:
    """Writes a dataset as a Parquet file that a Feast `FileSource` reads, a batch at a time.

    Args:
        dataset: Its rows.
        path: The file; what is there is replaced.
        at: The moment since which the rows are known, with a time zone; needed if the dataset has no column
            `timestamp_field`, and not allowed if it has.
        timestamp_field: Column of the rows' moments, as the `FileSource` names it.
        batch_size: Rows at a time.

    Returns:
        The path of the file.

    Raises:
        InputError: The moments are missing, given twice, or have no time zone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    has_moments = timestamp_field in dataset.column_names
    if has_moments == (at is not None) or (at is not None and at.tzinfo is None):
        raise InputError(
            f"Expected {'no at=, for' if has_moments else 'at=, a datetime with a time zone, as'} the dataset has "
            f"{'a' if has_moments else 'no'} column {timestamp_field!r}; got at={at!r}."
        )
    path = Path(path)
    partial = path.with_name(f"{path.name}.part")
    rows: Any = dataset.with_format("arrow")
    schema = dataset.features.arrow_schema.remove_metadata()
    moments = pa.field(timestamp_field, pa.timestamp("us", "UTC"))
    if at is not None:
        schema = schema.append(moments)
    with pq.ParquetWriter(partial, schema) as writer:
        for table in rows.iter(batch_size):
            if at is not None:
                table = table.append_column(moments, pa.array([at.astimezone(UTC)] * len(table), moments.type))
            writer.write_table(table.cast(schema))
    return partial.replace(path)
