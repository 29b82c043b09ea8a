"""What the child processes of `test_on_demand.py` do."""

from __future__ import annotations

import logging
from typing import Any

from feast import FeatureStore

from llmrec_plugin.feast import load_artifacts
from llmrec_plugin.runtime import runner as runner_module


def serve_after_warm_up(requests: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Warms up as a server's worker does; what requests for one feature each give or raise, and what was loaded."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("llmrec_plugin.feast").addHandler(handler)
    loads: list[str] = []
    load = runner_module.Encoder

    def spy(artifact: Any, *others: Any) -> Any:
        loads.append(artifact.manifest.model)
        return load(artifact, *others)

    runner_module.Encoder = spy  # type: ignore[assignment,misc]
    load_artifacts(None)
    loaded_at_start = list(loads)
    answers = []
    for feature, row in requests:
        try:
            columns = FeatureStore(repo_path=".").get_online_features([feature], [row]).to_dict()
            answers.append(columns[feature.partition(":")[2]][0])
        except Exception as exc:
            answers.append(f"{type(exc).__name__}: {exc}")
    return {"at start": loaded_at_start, "in the end": loads, "answers": answers, "log": records}
