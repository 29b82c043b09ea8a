"""What the child processes of `test_on_demand.py` do."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import click
from fastapi import FastAPI
from feast import FeatureStore

from llmrec_plugin.feast import load_artifacts, warmup
from llmrec_plugin.runtime import models as models_module


def serve_after_warm_up(requests: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Warms up as a server's worker does; what requests for one feature each give or raise, and what was loaded."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("llmrec_plugin.feast").addHandler(handler)
    loads: list[str] = []
    load = models_module.Encoder

    def spy(artifact: Any, *others: Any) -> Any:
        loads.append(artifact.manifest.model)
        return load(artifact, *others)

    models_module.Encoder = spy  # type: ignore[assignment,misc]
    encoded: list[str] = []
    encode = load.encode

    def spy_encode(self: Any, texts: Any, **options: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, **options)

    load.encode = spy_encode  # type: ignore[method-assign]
    reads: list[dict[str, Any]] = []
    read = FeatureStore.get_online_features

    def spy_read(self: FeatureStore, features: Any, entity_rows: Any) -> Any:
        response = read(self, features=features, entity_rows=entity_rows)
        reads.append({name: values[0] for name, values in response.to_dict().items()})
        return response

    FeatureStore.get_online_features = spy_read  # type: ignore[method-assign,assignment]
    load_artifacts(FastAPI())
    FeatureStore.get_online_features = read  # type: ignore[method-assign]
    at_start = {"at start": list(loads), "encoded at start": list(encoded), "reads at start": reads}
    answers = []
    for feature, row in requests:
        try:
            columns = FeatureStore(repo_path=".").get_online_features([feature], [row]).to_dict()
            answers.append(columns[feature.partition(":")[2]][0])
        except Exception as exc:
            answers.append(f"{type(exc).__name__}: {exc}")
    return at_start | {"in the end": loads, "answers": answers, "log": records}


def warm_up_with_a_slow_model() -> dict[str, Any]:
    """Whether warm-up returns while a model is still being loaded, and that it is loaded in the end."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("llmrec_plugin.feast").addHandler(handler)
    go_on, loaded = threading.Event(), threading.Event()
    load = models_module.Encoder

    def slowly(*arguments: Any) -> Any:
        go_on.wait(60)
        encoder = load(*arguments)
        loaded.set()
        return encoder

    models_module.Encoder = slowly  # type: ignore[assignment,misc]
    warmup.SECONDS_AT_START = 0.05
    load_artifacts(FastAPI())
    waited = not loaded.is_set()
    go_on.set()
    return {"returned before it was loaded": waited, "loaded": loaded.wait(60), "log": records[:1]}


def warm_up_under_another_gunicorn() -> bool:
    """Warm-up in a worker of Gunicorn whose application is the user's own; whether it came to its end."""

    class Worker:
        age, cfg, app = 1, SimpleNamespace(workers=1), object()

        def handle(self, *arguments: Any) -> None:
            """As a worker of Gunicorn handles signals."""

    signal.signal(signal.SIGUSR1, Worker().handle)
    load_artifacts(FastAPI())
    return gc.get_freeze_count() > 0


def requests_at_a_time() -> list[float]:
    """How many requests a worker answers at a time, before its warm-up and after it."""
    os.environ["LLMREC_REQUEST_THREADS"] = "3"

    async def start() -> list[float]:
        limiter = anyio.to_thread.current_default_thread_limiter()
        before = limiter.total_tokens
        load_artifacts(FastAPI())
        return [before, limiter.total_tokens]

    return asyncio.run(start())


def served_from(folder_of_repo: str, working_folder: str) -> str:
    """The repo that warm-up reads under ``feast --chdir``."""
    os.chdir(working_folder)
    context = click.Context(click.Command("serve"), obj={"CHDIR": Path(folder_of_repo), "FS_YAML_FILE": None})
    with context:
        return str(warmup._served_store().repo_path)
