"""A batch view's transformation over a Spark DataFrame; imported only where Spark runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from llmrec_plugin.runtime.runner import Mode
    from llmrec_plugin.transform import Transform


PARTITIONS_PER_CPU = 2


def transform_spark(transform: Transform, frame: DataFrame, mode: Mode = "batch") -> DataFrame:
    """Key and timestamp columns of `frame` and the outputs; computed by Spark's Python workers.

    A worker process loads a model once. Rows with equal columns meet in one partition, so that no two workers
    compute the same. A frame that was transformed already comes back as it is.

    Raises:
        MissingColumnError: A declared column is not there.
    """
    if transform.is_transformed(frame.columns):
        return frame

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield transform.transform_batch(batch, mode)

    fields = {field.name: field for field in frame.schema.fields}
    outputs = [StructField(field.name, from_arrow_type(field.type)) for field in transform.output_fields]
    schema = StructType([*(fields[name] for name in transform.keep), *outputs])
    names = list(dict.fromkeys([*transform.keep, *transform.columns]))
    partitions = PARTITIONS_PER_CPU * frame.sparkSession.sparkContext.defaultParallelism
    return frame.select(*names).repartition(partitions, *transform.columns).mapInArrow(run, schema)
