"""What `test_rollouts.py` asks of processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from integration.steps import open_store, plain

VIEW = "item_text_embedding"
QUERY = "query_embedding"
SCORE = "query_item_similarity"
TOGETHER = [f"{name}:{name}" for name in (VIEW, QUERY, SCORE)]


def llmrec(arguments: list[str]) -> dict[str, Any]:
    """Exit status and output of the ``llmrec`` command line."""
    from llmrec_plugin.cli import main

    result = CliRunner().invoke(main, arguments)
    return {"status": result.exit_code, "output": result.output}


def poll(items: list[str], query: str, started: str, stop: str) -> list[Any]:
    """What a server answers, again and again until the file `stop` is there: each answer that differs from the one
    before, or the error. It writes the file `started` after the first answer."""
    store = open_store(None)
    rows = [{"item": item, "query": query} for item in items]
    seen: list[Any] = []
    while not Path(stop).exists():
        try:
            columns = store.get_online_features(features=TOGETHER, entity_rows=rows).to_dict()
            answer: Any = [[plain(value) for value in columns[name]] for name in (VIEW, QUERY, SCORE)]
        except Exception as exc:
            answer = repr(exc)
        if not seen or seen[-1] != answer:
            seen.append(answer)
            Path(started).touch()
        time.sleep(0.05)
    return seen


def versions() -> dict[str, Any]:
    """Per view of ours the served version and the materialized intervals of each kept one."""
    from llmrec_plugin.feast.versions import fingerprint, read

    store = open_store(None)
    book = read(store.registry, store.project)
    return {
        name: {
            "served": item.number,
            "waits": item.candidate,
            "before": item.previous,
            "fingerprint": fingerprint(item.served),
            "kept": sorted(item.kept),
            "ends": {
                number: [str(end.date()) for _, end in item.view(number).materialization_intervals]
                for number in {*item.kept, item.number}
                if item.kind == "feature_view"
            },
        }
        for name, item in book.items()
    }


def promote_and_die(writes: int) -> None:
    """Promotes, and is killed right before the write with this number (from 0) reaches the registry."""
    from llmrec_plugin.feast import rollouts

    store = open_store(None)
    countdown = writes

    def count_down(*_: Any) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if hasattr(store.registry, "write_engine"):
        from sqlalchemy import event

        def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if not statement.startswith("SELECT"):
                count_down()

        event.listen(store.registry.write_engine, "before_cursor_execute", before)
    else:
        replace = os.replace
        os.replace = lambda *paths: (count_down(), replace(*paths))  # type: ignore[assignment, func-returns-value]
    rollouts.promote(store)


def promote_during_a_run(end: str) -> None:
    """Materializes what is served; while the rows are being written, somebody promotes."""
    from llmrec_plugin.feast import rollouts

    store = open_store(None)
    provider = store._get_provider()
    original = provider.materialize_single_feature_view

    def interrupted(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        with contextlib.suppress(rollouts.RolloutError):  # the second view of the run finds it done
            rollouts.promote(open_store(None))

    provider.materialize_single_feature_view = interrupted
    store.materialize_incremental(datetime.datetime.fromisoformat(end).replace(tzinfo=datetime.UTC))


def read_while_the_registry_is_half_read(items: list[str], query: str, lasting: bool) -> Any:
    """An answer of a server whose cached registry holds the similarity of the version that waits and everything
    else of the served one; or the error. `lasting`: the registry itself is like that."""
    from llmrec_plugin.feast.versions import read

    store = open_store(None)
    waiting = read(store.registry, store.project)[SCORE]
    cached = store.registry.cached_registry_proto
    [similarity] = [view for view in cached.on_demand_feature_views if view.spec.name == SCORE]
    similarity.CopyFrom(waiting.kept[waiting.candidate])
    if lasting:
        store.registry.refresh = lambda *_: None
    rows = [{"item": item, "query": query} for item in items]
    try:
        columns = store.get_online_features(features=TOGETHER, entity_rows=rows).to_dict()
    except Exception as exc:
        return repr(exc)
    return [[plain(value) for value in columns[name]] for name in (VIEW, QUERY, SCORE)]


def read_service(name: str, items: list[str], query: str) -> dict[str, list[Any]]:
    """Columns of a feature service."""
    store = open_store(None)
    rows = [{"item": item, "query": query} for item in items]
    answer = store.get_online_features(features=store.get_feature_service(name), entity_rows=rows)
    return {column: list(map(plain, values)) for column, values in answer.to_dict().items()}


def stale_state_change() -> None:
    """What a long ``feast materialize`` does: it writes a state into a view that it read before a promotion."""
    from feast.feature_view import FeatureViewState

    from llmrec_plugin.feast import rollouts

    store = open_store(None)
    view = store.get_feature_view(VIEW)
    rollouts.promote(open_store(None))
    view.state = FeatureViewState.MATERIALIZING
    store.registry.apply_feature_view(view, store.project, commit=True)


def copied_version(view: str) -> int | None:
    """The version number that a copy of the served view has."""
    return open_store(None).get_feature_view(view).__copy__().current_version_number


def registry_is_written_in_place() -> bool:
    """Whether a commit writes into the registry file that readers have open."""
    store = open_store(None)
    store.list_feature_views()  # where a view is ours, this loads the mends
    path = Path("data/registry.db")
    before = path.stat().st_ino
    store.registry.commit()
    return path.stat().st_ino == before


def look_up_during_a_switch(odfv: str) -> list[str]:
    """Descriptions of an on-demand view and of its source in one request, while another process changes both."""
    from feast import utils

    store, other = open_store(None), open_store(None)
    original = store.registry.get_any_feature_view

    def look_up(name: str, *args: Any, **kwargs: Any) -> Any:
        found = original(name, *args, **kwargs)
        for view in (*other.registry.cached_registry_proto.feature_views,
                     *other.registry.cached_registry_proto.on_demand_feature_views):  # fmt: skip
            view.spec.description = "after"
        other.registry.commit()
        return found

    store.registry.get_any_feature_view = look_up
    views, on_demand = utils._get_feature_views_to_use(store.registry, store.project, [f"{odfv}:{odfv}"], True)
    return [view.description for view in (*on_demand, *views)]


def refreshes_after_one_that_failed(ours: bool) -> int:
    """How often Feast's server reads its registry again after it could not, and nobody asks for a feature."""
    from feast import feature_server

    if ours:
        import llmrec_plugin.feast  # noqa: F401
    store = open_store(None)
    times: list[int] = []

    def refresh(*_: Any, **__: Any) -> None:
        times.append(len(times))
        if len(times) == 2:  # the first is that of the start
            raise OSError("the registry is away")

    store.registry.refresh = refresh  # type: ignore[method-assign]
    app = feature_server.get_app(store, registry_ttl_sec=0.02)  # type: ignore[arg-type]

    async def live() -> None:
        async with app.router.lifespan_context(app):
            for _ in range(50):
                await asyncio.sleep(0.02)
                if len(times) > 2:
                    return

    asyncio.run(live())
    return len(times) - 2


def distinct_keys() -> dict[str, Any]:
    """Keys of a raw file with two key columns, one of them renamed, with repeated and missing keys; and what an
    empty file gives."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from feast import FeatureView, Field
    from feast.types import Int64, String

    from llmrec_plugin.feast.completeness import _entity_keys
    from llmrec_plugin.feast.training import TrainingSource

    columns = {"user_no": [1, 1, None, 2, 1], "shop": ["a", "a", "a", "b", "b"]}
    schema = pa.schema({"user_no": pa.int64(), "shop": pa.string()})
    pq.write_table(pa.table(columns, schema=schema), "rows.parquet", row_group_size=2)
    pq.write_table(schema.empty_table(), "none.parquet")
    found = {}
    for name in ("rows", "none"):
        source = TrainingSource(
            name=name,
            configuration={
                "bound": {"feature": {"name": "f"}},
                "uri": f"{name}.parquet",
                "root": ".",
                "project": None,
                "keys": ["user", "shop"],
                "timestamp": "at",
                "created": "",
                "field_mapping": {"user_no": "user"},
            },
        )
        view = FeatureView(name="view", source=source, schema=[Field(name="f", dtype=Int64)])
        view.entity_columns = [Field(name="user", dtype=Int64), Field(name="shop", dtype=String)]
        found[name] = sorted(
            [list(key.join_keys), key.entity_values[0].string_val, key.entity_values[1].int64_val]
            for keys in _entity_keys(view)
            for key in keys
        )
    return found
