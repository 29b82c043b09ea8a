"""What `test_engines.py` asks of a process that has Feast, and Ray or Spark."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
from steps import open_store, read_historical

from llmrec_plugin.transform import Transform

BATCHES = 24


def read_twice(features: list[str], rows: list[dict[str, Any]], workers: str) -> dict[str, Any]:
    """Two training reads, and what the worker processes say of themselves after some batches."""
    reads = [read_historical(features, rows) for _ in range(2)]
    transform = open_store(None).get_feature_view("item_text_embedding").feature_transformation.udf
    return {"reads": reads, "workers": {"ray": _ask_ray, "spark": _ask_spark}[workers](_probe(transform))}


def _probe(transform: Transform) -> Callable[[int], dict[str, int]]:
    """Computes one row and tells how often this process has made a runner and loaded a model."""

    def run(number: int) -> dict[str, int]:
        # A worker of Spark cannot import this module, so all that it needs is imported here.
        from llmrec_plugin.runtime.runner import runner_for
        from llmrec_plugin.runtime.workers import worker_settings

        now = pd.Timestamp.now(tz="UTC")
        row = {"item": "x", "title": f"red {number}", "note": "", "event_timestamp": now, "created": now}
        transform.transform_batch(pa.RecordBatch.from_pylist([row]))
        settings = worker_settings()
        return {
            "process": os.getpid(),
            "runners": runner_for.cache_info().misses,
            "models": len(runner_for(settings).models),
            "threads": settings.threads,
        }

    return run


def _ask_ray(probe: Callable[[int], dict[str, int]]) -> list[dict[str, int]]:
    import ray

    batches = ray.data.range(BATCHES, override_num_blocks=BATCHES)
    return batches.map(lambda row: probe(int(row["id"]))).take_all()


def _ask_spark(probe: Callable[[int], dict[str, int]]) -> list[dict[str, int]]:
    from pyspark.sql import SparkSession

    def run(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            yield pd.DataFrame([probe(int(number)) for number in frame["id"]])

    session = SparkSession.getActiveSession()
    assert session is not None
    batches = session.range(0, BATCHES, 1, BATCHES)
    schema = "process long, runners long, models long, threads long"
    return [row.asDict() for row in batches.mapInPandas(run, schema).collect()]
