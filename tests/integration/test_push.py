"""Pushed text has its vector when the push returns, the one that the night would have computed."""

from __future__ import annotations

import datetime
import json
import random
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from integration.host import CONFIGURATION, Repo, StepError
from integration.server import Server

from llmrec_plugin.pipeline.packing import unpack

pytestmark = pytest.mark.feast

PROVIDER = "llmrec_plugin.feast.provider.LLMRecProvider"
WHOLE = ("2025-01-01", "2026-03-01")
VECTOR = "item_text_embedding:item_text_embedding"
PACKED = "item_packed_embedding:item_packed_embedding"
STATUS = "item_packed_embedding:item_packed_embedding_status"
PUSHED = """
from feast import PushSource

item_text = FeatureView(
    name="item_text",
    entities=[item],
    ttl=item_text.ttl,
    schema=item_text.schema,
    source=PushSource(name="item_push", batch_source=item_text.batch_source),
)
item_packed_embedding = EmbeddingFeature(
    name="item_packed_embedding", entity="item", text="{title}", storage="float32", status=True, **model
)
"""


def _day(number: int) -> str:
    return f"2026-01-{number:02}T12:34:56.789012+00:00"


def _row(item: str, title: str | None, day: int, note: str | None = "x", created: int | None = None) -> dict[str, Any]:
    return {"item": item, "title": title, "note": note, "at": _day(day), "created": _day(created or day)}


@pytest.fixture(scope="module")
def materialized(new_repo: Callable[..., Repo]) -> Repo:
    """A repo whose texts have a push source; items a and b were materialized."""
    repo = new_repo("pushed")
    _configure(repo, f"provider: {PROVIDER}")
    repo.export()
    repo.declare(extra=PUSHED)
    at = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    repo.write_items([{"item": item, "title": f"{item} web", "note": "x", "at": at} for item in "ab"])
    repo.feast("apply")
    repo.feast("materialize", *WHOLE)
    return repo


@pytest.fixture
def repo(materialized: Repo, tmp_path: Path) -> Repo:
    repo = materialized.copy(tmp_path / "root")
    _configure(repo, f"provider: {PROVIDER}")
    return repo


def _configure(repo: Repo, provider: str, online_store: str = "sqlite") -> None:
    text = CONFIGURATION.format(online_store=json.dumps({**repo.online_store, "type": online_store}))
    (repo.folder / "feature_store.yaml").write_text(text.replace("provider: local", provider))


def _push(repo: Repo, *rows: dict[str, Any], to: str = "ONLINE") -> None:
    repo.call("stream_steps:push", rows=list(rows), to=to)


def _expected(repo: Repo, row: dict[str, Any]) -> list[float]:
    return pytest.approx(repo.encode([f"{row['title']}. {row['note']}"])[0], abs=1e-6)


def _stored_seconds(repo: Repo, view: str) -> set[tuple[int, int]]:
    """Event and created timestamps as SQLite holds them, in whole seconds."""
    with closing(sqlite3.connect(repo.folder / "data" / "online.db")) as connection:
        return set(connection.execute(f"SELECT event_ts, created_ts FROM test_{view}"))


def _second(row: dict[str, Any], name: str) -> int:
    return int(datetime.datetime.fromisoformat(row[name]).timestamp())


def test_the_night_does_not_put_back_the_older_text_of_the_file(repo: Repo) -> None:
    with (repo.folder / "feature_store.yaml").open("a") as file:
        file.write("batch_engine: {type: llmrec_plugin.feast.engine.LLMComputeEngine}\n")
    changed = _row("a", "fast python library", 5)
    _push(repo, changed)  # online only: the file still has the text of the 2nd
    repo.feast("materialize", *WHOLE)
    assert repo.vectors(["a"]) == [_expected(repo, changed)]
    repo.write_items(
        [{"item": "a", "title": "new blue", "note": "x", "at": datetime.datetime(2026, 1, 6, tzinfo=datetime.UTC)}]
    )
    repo.feast("materialize-incremental", "2026-03-02")
    assert repo.vectors(["a"]) == [_expected(repo, {"title": "new blue", "note": "x"})]


def test_a_pushed_text_has_the_vector_that_materialize_would_give_and_the_night_infers_nothing(repo: Repo) -> None:
    before = repo.vectors(["b"])
    changed, new = _row("a", "fast python library", 5), _row("c", "small mail client", 6, created=7)
    _push(repo, changed, new, to="ONLINE_AND_OFFLINE")

    pushed = repo.vectors(["a", "c", "b"])
    assert pushed == [_expected(repo, changed), _expected(repo, new), *before]
    for view in ("item_text_embedding", "item_packed_embedding"):
        times = {(_second(row, "at"), _second(row, "created")) for row in (changed, new)}
        assert times < _stored_seconds(repo, view)

    # The same rows in a cache of their own, so that the batch run infers: the same bits.
    repo.feast("materialize", *WHOLE, LLMREC_CACHE=str(repo.root / "other"))
    assert sum(run.computed for run in repo.runs(repo.root / "other")) > 0
    assert repo.vectors(["a", "c", "b"]) == pushed

    ran = len(repo.runs())
    repo.feast("materialize", *WHOLE)
    assert [run.computed for run in repo.runs()[ran:]] == [0, 0]


def test_every_view_over_the_text_is_written_packed_ones_with_their_status(repo: Repo) -> None:
    _push(repo, _row("a", "green font", 5), _row("c", None, 5))
    answer = repo.call("stream_steps:read_packed", features=[PACKED, STATUS], items=["a", "c"])
    assert answer["status"] == ["ok", "empty"]
    [vector] = unpack([bytes.fromhex(answer["packed"][0])], "float32", 8)
    assert vector.tolist() == pytest.approx(repo.encode(["green font"])[0], abs=1e-6)
    assert answer["packed"][1] is None


def test_a_text_that_gives_nothing_does_not_fail_its_neighbours(repo: Repo) -> None:
    good = _row("a", "green font", 5)
    hostile = ["", None, " \n", "\x00\x1b", "red \U0001f9d1 web"]
    rows = [_row(f"c{number}", text, 5, note=None) for number, text in enumerate(hostile)]
    _push(repo, *rows, good)
    *nothing, emoji, vector = repo.vectors([*(row["item"] for row in rows), "a"])
    assert (nothing, vector) == ([None] * 4, _expected(repo, good))
    assert emoji is not None

    _push(repo, _row("a", "", 6, note=""))
    assert repo.vectors(["a"]) == [None]


def test_an_older_event_does_not_overwrite_a_newer_vector(repo: Repo) -> None:
    newest = _row("a", "fast python library", 9)
    _push(repo, _row("a", "old shell", 5), newest, _row("a", "older parser", 4))
    assert repo.vectors(["a"]) == [_expected(repo, newest)]
    _push(repo, _row("a", "late chat", 8), _row("b", "green font", 5))
    assert repo.vectors(["a", "b"]) == [_expected(repo, newest), _expected(repo, _row("b", "green font", 5))]
    corrected = _row("a", "fast java library", 9)
    _push(repo, corrected)
    assert repo.vectors(["a"]) == [_expected(repo, corrected)]


def test_a_row_without_one_of_the_text_columns_is_refused_whole(repo: Repo) -> None:
    before = repo.vectors(["a"]), repo.online(["item_text:title"], [{"item": "a"}])
    partial = _row("a", "green font", 5)
    del partial["note"]
    with pytest.raises(StepError, match=r"note.* not in index"):
        _push(repo, partial)
    assert (repo.vectors(["a"]), repo.online(["item_text:title"], [{"item": "a"}])) == before


def test_a_push_to_the_offline_store_reaches_training_and_not_the_online_store(repo: Repo) -> None:
    before = repo.vectors(["a"])
    row = _row("a", "green font", 5)
    _push(repo, row, to="OFFLINE")
    assert repo.vectors(["a"]) == before
    labels = [{"item": "a", "event_timestamp": f"2026-01-{day:02}T00:00:00Z"} for day in (4, 6)]
    old, new = (answer["item_text_embedding"] for answer in repo.historical([VECTOR], labels))
    assert [old] == before
    assert new == _expected(repo, row)


def test_written_rows_get_vectors_as_pushed_ones_do(repo: Repo) -> None:
    row = _row("c", "green font", 5)
    repo.call("stream_steps:write", rows=[row])
    assert repo.vectors(["c"]) == [_expected(repo, row)]


def test_stores_that_write_asynchronously_infer_beside_the_event_loop(repo: Repo) -> None:
    _configure(repo, f"provider: {PROVIDER}", "async_sqlite.AsyncSqliteOnlineStore")
    row = _row("c", "green font", 5)
    assert repo.call("stream_steps:push_async", rows=[row]) == [False, False]
    assert repo.vectors(["c"]) == [_expected(repo, row)]


def test_without_the_model_the_row_is_kept_and_the_push_fails(repo: Repo) -> None:
    with pytest.raises(StepError, match=r"ArtifactNotFoundError(.|\n)*rows are in 'item_text'"):
        repo.call(
            "stream_steps:push",
            rows=[_row("a", "green font", 5)],
            environ={"LLMREC_ARTIFACTS": str(repo.root / "nothing")},
        )
    assert repo.online(["item_text:title"], [{"item": "a"}])["title"] == ["green font"]


def test_a_registry_that_is_being_written_is_read_again(repo: Repo) -> None:
    row = _row("c", "green font", 5)
    repo.call("stream_steps:push_while_the_registry_is_written", rows=[row])
    assert repo.vectors(["c"]) == [_expected(repo, row)]


def test_without_the_provider_everything_is_as_in_feast(repo: Repo) -> None:
    _configure(repo, "provider: local")
    before = repo.vectors(["a"])
    _push(repo, _row("a", "green font", 5))
    assert repo.vectors(["a"]) == before
    assert repo.online(["item_text:title"], [{"item": "a"}])["title"] == ["green font"]


def test_pushes_to_a_server_of_several_workers(repo: Repo) -> None:
    def push(row: dict[str, Any], to: str = "online") -> int:
        columns = {name: [value] for name, value in row.items()}
        columns["event_timestamp"] = columns.pop("at")
        return server.post("push", {"push_source_name": "item_push", "df": columns, "to": to})[0]

    rows = [_row("a", f"{word} server", day) for day, word in enumerate(["red", "chat", "mail", "web"] * 6, start=3)]
    shuffled = random.Random(0).sample(rows, len(rows))
    server = Server(repo, workers=2)
    try:
        server.wait()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(push, shuffled)) == {200}
        assert server.columns([VECTOR], item=["a"])["item_text_embedding"] == [_expected(repo, rows[-1])]

        both = _row("c", "green font", 5)
        assert push(both, "online_and_offline") == 200
        assert repo.vectors(["c"]) == [_expected(repo, both)]
        [label] = repo.historical([VECTOR], [{"item": "c", "event_timestamp": _day(6)}])
        assert label["item_text_embedding"] == _expected(repo, both)

        remote = _row("d", "small mail client", 5)
        client = {
            "project": "test",
            "provider": "local",
            "registry": str(repo.folder / "data" / "registry.db"),
            "online_store": {"type": "remote", "path": f"http://127.0.0.1:{server.port}"},
            "entity_key_serialization_version": 3,
        }
        repo.call("stream_steps:write", rows=[remote], configuration=client, environ={"LLMREC_ARTIFACTS": "/nowhere"})
        assert repo.vectors(["d"]) == [_expected(repo, remote)]

        # A running server sees that the model changed before its own registry cache does.
        repo.export(seed=1)
        repo.feast("apply")
        assert repo.vectors(["a", "c"]) == [None, None]
        assert push(_row("c", "green font", 6)) == 200
        assert repo.vectors(["a", "c"]) == [None, _expected(repo, both)]
    finally:
        server.stop()
