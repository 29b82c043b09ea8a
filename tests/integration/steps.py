"""What the child processes of the integration tests do. Arguments and answers are JSON."""

from __future__ import annotations

import json
import logging
import math
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore, RepoConfig


def open_store(configuration: dict[str, Any] | None) -> FeatureStore:
    """The store of the repo in the working folder, or of a configuration that knows no repo."""
    return FeatureStore(repo_path=".") if configuration is None else FeatureStore(config=RepoConfig(**configuration))


def plain(value: Any) -> Any:
    """A value as JSON has it; NaN and missing values are None, bytes are hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def read_online(
    features: list[str],
    rows: list[dict[str, Any]],
    configuration: dict[str, Any] | None = None,
    rows_per_request: int | None = None,
    full_feature_names: bool = False,
) -> dict[str, list[Any]]:
    """Columns of ``get_online_features``, read in requests of `rows_per_request` rows."""
    store = open_store(configuration)
    columns: dict[str, list[Any]] = {}
    size = rows_per_request or len(rows)
    for start in range(0, len(rows), size):
        answer = store.get_online_features(
            features=features, entity_rows=rows[start : start + size], full_feature_names=full_feature_names
        )
        for name, values in answer.to_dict().items():
            columns.setdefault(name, []).extend(map(plain, values))
    return columns


def read_historical(
    features: list[str],
    rows: list[dict[str, Any]],
    configuration: dict[str, Any] | None = None,
    full_feature_names: bool = False,
) -> list[dict[str, Any]]:
    """Rows of ``get_historical_features``, each with the number of the entity row it belongs to."""
    frame = pd.DataFrame(rows)
    frame["event_timestamp"] = pd.to_datetime(frame["event_timestamp"], utc=True, format="ISO8601")
    frame["row"] = range(len(frame))
    result = (
        open_store(configuration)
        .get_historical_features(entity_df=frame, features=features, full_feature_names=full_feature_names)
        .to_df()
        .sort_values("row")
    )
    return [{name: plain(value) for name, value in row.items()} for row in result.to_dict("records")]


def describe(view: str) -> dict[str, Any]:
    """What the registry says about a view."""
    found = open_store(None).get_feature_view(view)
    return {
        "intervals": [[str(end.date()) for end in interval] for interval in found.materialization_intervals],
        "version": found.current_version_number,
        "transformation": found.feature_transformation.udf_string,
    }


def publish_features(path: str) -> dict[str, Any]:
    """Tags of the views that a feature file publishes, and what was logged."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("llmrec_plugin").addHandler(handler)
    views = runpy.run_path(path)["llm"]
    return {"views": {name: dict(view.tags) for name, view in views.items()}, "log": records}


def run_script(path: str, arguments: list[str]) -> None:
    """Runs a file as ``python path arguments`` would."""
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent.resolve()))
    runpy.run_path(path, run_name="__main__")


def command_line(arguments: list[str], fails: bool = False) -> str:
    """What ``llmrec`` prints: on stdout, or, where it is to fail, on both streams."""
    from click.testing import CliRunner

    from llmrec_plugin.cli import main

    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code != 0) is fails, result.output + repr(result.exception)
    return result.output if fails else result.stdout


def plan_of_sample(texts: int) -> str:
    """The plan of the repo in the working folder when only so many texts are tokenized."""
    from llmrec_plugin.feast import estimates

    estimates.SAMPLED_TEXTS = texts
    [view] = json.loads(command_line(["plan", "--json"]))
    return json.dumps(view)


def doctor() -> str:
    """The findings about the repo in the working folder, as JSON; the exit code tells whether one is an error."""
    from click.testing import CliRunner

    from llmrec_plugin.cli import main

    result = CliRunner().invoke(main, ["doctor", "--json"])
    findings = json.loads(result.stdout)
    assert result.exit_code == int(any(finding["level"] == "error" for finding in findings))
    return result.stdout


def fill_cache() -> tuple[str, str]:
    """Puts one value of the repo's feature into the cache and one of a feature that is gone; their encodings."""
    from llmrec_plugin.feast.usage import applied_features
    from llmrec_plugin.runtime.cache import ValueCache
    from llmrec_plugin.settings import load_settings

    [used] = {bound.encoding_fingerprint for bound in applied_features(open_store(None)) if hasattr(bound, "artifacts")}
    settings = load_settings()
    cache = ValueCache(settings.cache_folder, settings.cache_max_bytes)
    for fingerprint in (used, "0" * 64):
        cache.put_many(fingerprint, {"red web": np.ones(8, np.float32)})
    cache.close()
    return used, "0" * 64


def materialize_and_die(view: str, writes: int) -> None:
    """Materializes a view in a child that dies after so many chunks."""
    child = os.fork()
    if child == 0:
        from llmrec_plugin.runtime.ledger import Target

        write, done = Target.write, []

        def counted(self: Target, entries: Any) -> None:
            write(self, entries)
            done.append(None)
            if len(done) == writes:
                os.kill(os.getpid(), signal.SIGKILL)

        Target.write = counted
        open_store(None).materialize_incremental(pd.Timestamp("2026-02-01"), [view])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
