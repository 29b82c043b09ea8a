"""Our compute engine: what it writes, what it leaves alone, and what it finds again after anything went wrong."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo, StepError
from integration.versions import since_feast_0_67

pytestmark = pytest.mark.feast

VIEW = "item_text_embedding"
DAY = datetime.timedelta(days=1)
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
FIRST, SECOND = "2026-03-01", "2026-04-01"  # ends of two incremental runs
WORDS = "red green blue yellow black white big small old new fast slow web server client python java tool".split()


def row(number: int, title: str | None = None, *, day: int = 0, **changes: Any) -> dict[str, Any]:
    """An item whose text is its own, `day` days after the start."""
    title = f"{WORDS[number % 18]} {WORDS[number // 18 % 18]} {WORDS[number // 324]}" if title is None else title
    return {"item": f"i{number:04d}", "title": title, "at": START + day * DAY, **changes}


def rows(count: int) -> list[dict[str, Any]]:
    return [row(number, day=number % 40) for number in range(count)]


def use_engine(repo: Repo, **options: Any) -> Repo:
    path = repo.folder / "feature_store.yaml"
    engine = {"type": "llmrec_plugin.feast.engine.LLMComputeEngine", "chunk_rows": 4, **options}
    settings = [line for line in path.read_text().splitlines() if not line.startswith("batch_engine")]
    path.write_text("\n".join([*settings, f"batch_engine: {json.dumps(engine)}\n"]))
    return repo


@pytest.fixture(scope="module")
def applied(new_repo: Callable[..., Repo]) -> Repo:
    """A repo without rows, applied and never materialized; tests take copies."""
    repo = use_engine(new_repo())
    repo.export()
    repo.declare()
    repo.write_items([])
    repo.feast("apply")
    return repo


@pytest.fixture
def repo(applied: Repo, tmp_path: Path) -> Repo:
    return use_engine(applied.copy(tmp_path / "root"))


def incremental(repo: Repo, end: str = FIRST, view: str = VIEW, **environ: str) -> str:
    return repo.feast("materialize-incremental", end, "--views", view, **environ)


def last_run(repo: Repo) -> dict[str, int]:
    report = repo.runs()[-1]
    return {name: getattr(report, name) for name in ("rows", "invalid", "texts", "cached", "computed")}


def counts(rows: int, *, invalid: int = 0, texts: int | None = None, computed: int = 0) -> dict[str, int]:
    texts = rows if texts is None else texts
    return {"rows": rows, "invalid": invalid, "texts": texts, "cached": texts - computed, "computed": computed}


def table(repo: Repo, view: str = VIEW) -> dict[tuple[str, str], tuple[Any, ...]]:
    """The SQLite store: (last letters and digits of the entity key, feature) -> all columns."""
    with closing(sqlite3.connect(repo.folder / "data" / "online.db")) as connection:
        found = connection.execute(f"SELECT * FROM test_{view}").fetchall()
    return {(re.search(rb"[a-z]*\d*$", key)[0].decode(), name): (key, *rest) for key, name, *rest in found}


def stored(repo: Repo, view: str = VIEW) -> dict[str, tuple[list[float] | None, int]]:
    """Per entity its vector, or None, and its event timestamp in seconds."""
    columns = {entity: values for (entity, name), values in table(repo, view).items() if name == view}
    return {
        entity: (np.frombuffer(values[1][-32:], "<f4").tolist() if values[1] else None, values[-2])
        for entity, values in columns.items()
    }


def expected(repo: Repo, items: Iterable[dict[str, Any]]) -> dict[str, tuple[Any, int]]:
    """What the store has to hold after these rows, the newest of each item, were written."""
    items = list(items)
    vectors = repo.encode([f"{item['title']}. {item.get('note') or ''}".strip() for item in items])
    return {
        item["item"]: (pytest.approx(vector, abs=1e-6), int(item["at"].timestamp()))
        for item, vector in zip(items, vectors, strict=True)
    }


def intervals(repo: Repo, view: str = VIEW) -> list[list[str]]:
    return repo.call("steps:describe", view=view)["intervals"]


def cache(repo: Repo) -> Path:
    return repo.root / "home" / "cache"


# --- the same values as the stock engine


EXTRA = """
item_packed_embedding = EmbeddingFeature(
    name="item_packed_embedding", entity="item", text="{title}", storage="int8", status=True, on_empty="zeros", **model
)
"""


def test_it_writes_what_the_stock_engine_writes(new_repo: Callable[..., Repo], tmp_path: Path) -> None:
    stock = new_repo()
    stock.export()
    stock.declare(extra=EXTRA)
    items = [*rows(30), row(30, "", day=3), row(31, "", day=3, note="tool"), row(3, "newer", day=50)]
    stock.write_items([*items, *(row(5, f"tie {n}", day=45, created=START + n * DAY) for n in (1, 3, 2))])
    stock.feast("apply")
    ours = use_engine(stock.copy(tmp_path / "ours"))
    for repo in (stock, ours):
        repo.feast("materialize", "2025-01-01", FIRST)
    for view, columns in ((VIEW, 1), ("item_packed_embedding", 2)):
        written = table(ours, view)
        assert len(written) == 32 * columns
        assert written == table(stock, view)
    assert intervals(ours) == intervals(stock)
    # The raw view is no feature of ours: the stock engine wrote it.
    assert table(ours, "item_text") == table(stock, "item_text") != {}


def test_only_the_newest_row_of_an_entity_is_encoded(repo: Repo) -> None:
    versions = [row(number, f"{WORDS[number]} {WORDS[day]}", day=day) for day in range(15) for number in range(10)]
    repo.write_items(versions[::-1])
    incremental(repo)
    assert last_run(repo) == counts(10, computed=10)
    assert stored(repo) == expected(repo, versions[-10:])


# --- what an incremental run finds


def test_late_rows_are_found_and_older_ones_change_nothing(repo: Repo) -> None:
    repo.write_items(items := [row(number, day=20) for number in range(10)])
    incremental(repo)
    late = [
        row(100, "a new item", day=-300),
        row(1, "newer than what is stored", day=30),
        row(2, "older than what is stored", day=10),
    ]
    repo.write_items([*late, *items])
    printed = incremental(repo, SECOND)
    assert f"{VIEW}: 2 rows of intervals materialized before arrived late" in printed
    assert last_run(repo) == counts(2, computed=2)
    assert stored(repo) == expected(repo, [items[0], late[1], *items[2:], late[0]])
    incremental(repo, "2026-05-01")
    assert last_run(repo) == counts(0)


def test_texts_corrected_in_place_cost_what_was_corrected(repo: Repo) -> None:
    repo.write_items(items := rows(200))
    incremental(repo)
    items[7] |= {"title": "corrected"}
    items[150] |= {"note": "corrected as well"}
    repo.write_items(items)
    incremental(repo, SECOND)
    assert last_run(repo) == counts(2, computed=2)  # 1 % of the rows, 1 % of the inferences
    assert stored(repo) == expected(repo, items)
    repo.write_items(items[::-1])  # the order of a file is no change
    incremental(repo, "2026-05-01")
    assert last_run(repo) == counts(0)


def test_a_withdrawn_version_gives_way_to_the_one_before(repo: Repo) -> None:
    versions = [row(1, "first", day=1), row(1, "second", day=2)]
    repo.write_items(versions)
    incremental(repo)
    repo.write_items(versions[:1])
    incremental(repo, SECOND)
    assert stored(repo) == expected(repo, versions[:1])


@pytest.mark.parametrize("engine", ["stock", "ours"])
def test_an_old_window_does_not_replace_newer_values(applied: Repo, tmp_path: Path, engine: str) -> None:
    repo = applied.copy(tmp_path / "root")
    if engine == "ours":
        use_engine(repo)
    old, new, other = row(1, "old", day=1), row(1, "new", day=20), row(2, "other", day=2)
    repo.write_items([old, new, other])
    repo.feast("materialize", "2026-01-10", FIRST, "--views", VIEW)
    assert stored(repo) == expected(repo, [new])
    repo.feast("materialize", "2025-12-01", "2026-01-10", "--views", VIEW)
    # Feast writes the newest row of the window, whatever the store holds.
    assert stored(repo) == expected(repo, [old if engine == "stock" else new, other])


def test_materializing_again_writes_again_without_inference(repo: Repo) -> None:
    repo.write_items(items := rows(10))
    for _ in range(2):
        repo.feast("materialize", "2025-01-01", FIRST, "--views", VIEW)
    assert last_run(repo) == counts(10)
    assert stored(repo) == expected(repo, items)


# --- what was lost


def test_a_store_that_was_emptied_is_filled_without_inference(repo: Repo) -> None:
    repo.write_items(rows(30))
    incremental(repo)
    before = table(repo)
    with closing(sqlite3.connect(repo.folder / "data" / "online.db")) as connection, connection:
        connection.execute(f"DELETE FROM test_{VIEW}")
    assert "no longer in the online store" in incremental(repo, SECOND)
    assert last_run(repo) == counts(30)
    assert table(repo) == before


@pytest.mark.parametrize("lost", ["ledger.sqlite", "values.sqlite", "both", "damaged"])
def test_a_lost_ledger_or_cache_costs_time_only(repo: Repo, lost: str) -> None:
    repo.write_items(rows(30))
    incremental(repo)
    before = table(repo)
    if lost == "damaged":
        for file in cache(repo).glob("ledger.sqlite*"):
            file.write_bytes(b"damaged" * 5_000)
    else:
        for file in cache(repo).glob("*.sqlite*" if lost == "both" else f"{lost}*"):
            file.unlink()
    incremental(repo, SECOND)
    written = 0 if lost == "values.sqlite" else 30
    assert last_run(repo) == counts(written, computed=written if lost == "both" else 0)
    assert table(repo) == before
    if lost == "damaged":
        assert len(list(cache(repo).glob("ledger.damaged-*"))) == 1


def test_a_cache_folder_that_cannot_be_written_is_an_error_and_writes_nothing(repo: Repo) -> None:
    repo.write_items(rows(3))
    (repo.root / "file").write_text("")
    with pytest.raises(StepError, match=r"LedgerError: .*ledger\.sqlite, cannot be used.*Set LLMREC_CACHE"):
        incremental(repo, LLMREC_CACHE=str(repo.root / "file" / "cache"))
    assert (stored(repo), intervals(repo)) == ({}, [])


# --- rows that cannot be read


def write_raw(repo: Repo, **columns: pa.Array) -> None:
    """The raw file by column; the timestamps are the start unless given."""
    length = len(next(iter(columns.values())))
    at = pa.array([START] * length, pa.timestamp("us", "UTC"))
    defaults = {"note": pa.nulls(length, pa.string()), "event_timestamp": at, "created": at}
    pq.write_table(pa.table({**defaults, **columns}), repo.folder / "data" / "items.parquet")


@pytest.fixture
def half_readable(new_repo: Callable[..., Repo]) -> Repo:
    """20 rows of which the notes of 6 are bytes, though the repo declares text."""
    repo = use_engine(new_repo())
    repo.export()
    repo.declare(extra=EXTRA.replace('"{title}"', '"{title} {note}"'))
    notes = [b"\xff" if number < 6 else None for number in range(20)]
    write_raw(
        repo,
        item=pa.array([f"i{number}" for number in range(20)]),
        title=pa.array([WORDS[number % 18] for number in range(20)]),
        note=pa.array(notes, pa.binary()),
    )
    repo.feast("apply")
    return repo


PACKED = "item_packed_embedding"


def statuses(repo: Repo) -> dict[str, str]:
    rows = table(repo, PACKED)
    return {entity: values[1][2:].decode() for (entity, name), values in rows.items() if name == f"{PACKED}_status"}


def test_rows_that_cannot_be_read_are_null_with_a_status(half_readable: Repo) -> None:
    use_engine(half_readable, max_invalid_share=0.3)
    printed = incremental(half_readable, view=PACKED)
    assert "6 of 20 rows could not be read and are null; the first is item='i0'" in printed
    assert "got bytes" in printed
    assert statuses(half_readable) == {f"i{n}": "invalid" if n < 6 else "ok" for n in range(20)}
    values = {entity: values[1] for (entity, name), values in table(half_readable, PACKED).items() if name == PACKED}
    assert {entity for entity, value in values.items() if not value} == {f"i{n}" for n in range(6)}
    assert last_run(half_readable) == counts(20, invalid=6, texts=14, computed=14)
    incremental(half_readable, SECOND, PACKED)
    assert last_run(half_readable) == counts(0)


def test_more_of_them_than_allowed_fail_the_run_after_everything_else_was_written(half_readable: Repo) -> None:
    use_engine(half_readable, max_invalid_share=0.25)
    for computed in (14, 0):
        with pytest.raises(StepError, match=r"InputError: .*6 of 20 rows.*max_invalid_share=0\.25 of batch_engine"):
            incremental(half_readable, view=PACKED)
        assert intervals(half_readable, PACKED) == []
        assert statuses(half_readable) == {f"i{n}": "invalid" if n < 6 else "ok" for n in range(20)}
        # The second run tries those again that could not be read, and writes none of the others again.
        assert last_run(half_readable) == (
            counts(20, invalid=6, texts=14, computed=14) if computed else counts(6, invalid=6, texts=0)
        )
    use_engine(half_readable, max_invalid_share=0.3)
    incremental(half_readable, view=PACKED)
    assert len(intervals(half_readable, PACKED)) == 1


def test_rows_without_key_or_timestamp_are_counted_and_left_out(repo: Repo) -> None:
    items = pa.array(["i1", None, "i2", None, "i3"])
    at = pa.array([START, START, None, None, START], pa.timestamp("us", "UTC"))
    write_raw(repo, item=items, title=pa.array(WORDS[:5]), event_timestamp=at)
    assert "3 rows of the source have no key or no timestamp and are left out" in incremental(repo)
    assert stored(repo).keys() == {"i1", "i3"}
    assert last_run(repo) == counts(2, computed=2)


def test_a_source_without_rows_moves_the_watermark_and_loads_no_model(repo: Repo) -> None:
    (repo.root / "home" / "artifacts").rename(repo.root / "home" / "away")
    incremental(repo)
    assert (stored(repo), last_run(repo), len(intervals(repo))) == ({}, counts(0), 1)


# --- other sources and features

OTHER_SOURCES = """
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.types import Array, Int64, String

from llmrec_plugin import EmbeddingFeature, HistoryEmbeddingFeature
from llmrec_plugin.feast import publish

model = dict(
    model="tiny", pooling="mean", normalize=True, prefix="", metric="cosine", max_tokens=16, dims=8, status=True
)
number = Entity(name="number", join_keys=["number"])
numbers = FeatureView(
    name="numbers",
    entities=[number],
    ttl=timedelta(days=36_500),
    schema=[Field(name="number", dtype=Int64), Field(name="title", dtype=String)],
    source=FileSource(
        name="numbers", path="data/numbers", timestamp_field="at", field_mapping={"id": "number", "label": "title"}
    ),
)
number_embedding = EmbeddingFeature(
    name="number_embedding", entity="number", text="{title}", storage="float16", **model
)
user = Entity(name="user", join_keys=["user"])
users = FeatureView(
    name="users",
    entities=[user],
    ttl=timedelta(days=36_500),
    schema=[Field(name="user", dtype=String), Field(name="events", dtype=Array(String))],
    source=FileSource(name="users", path="data/users.parquet", timestamp_field="at", created_timestamp_column="made"),
)
user_embedding = HistoryEmbeddingFeature(
    name="user_embedding", entity="user", events="events", order="newest_first", last_n=2, **model
)
llm = publish(globals())
"""


def test_int_keys_folders_renamed_columns_and_histories_are_as_in_the_stock_engine(
    new_repo: Callable[..., Repo], tmp_path: Path
) -> None:
    stock = new_repo()
    stock.export()
    (stock.folder / "features.py").write_text(OTHER_SOURCES)
    data = stock.folder / "data"
    (data / "numbers").mkdir()
    for part in range(3):
        keys = [2 * part, 2 * part + 1, -(2**40) * part - 7]
        labels = [f"{WORDS[part]} {WORDS[n]}" for n in range(3)]
        at = pa.array([START.replace(tzinfo=None) + part * DAY] * 3, pa.timestamp("ns"))
        columns = {"id": pa.array(keys, pa.int64()), "label": labels, "at": at}
        pq.write_table(pa.table(columns), data / "numbers" / f"{part}.parquet")
    events = [["red web", "green font", "old"], [], None, ["red web", ""], ["only"]]
    at = pa.array([START] * 5, pa.timestamp("us", "UTC"))
    columns = {"user": [f"u{n}" for n in range(5)], "events": pa.array(events, pa.list_(pa.string()))}
    pq.write_table(pa.table({**columns, "at": at, "made": at}), data / "users.parquet")
    stock.feast("apply")
    ours = use_engine(stock.copy(tmp_path / "ours"))
    for repo in (stock, ours):
        repo.feast("materialize", "2025-01-01", FIRST, "--views", "number_embedding", "--views", "user_embedding")
    for view, entities in (("number_embedding", 9), ("user_embedding", 5)):
        with closing(sqlite3.connect(ours.folder / "data" / "online.db")) as connection:
            assert connection.execute(f"SELECT count(*) FROM test_{view}").fetchone() == (2 * entities,)
        dump = [_dump(repo, view) for repo in (ours, stock)]
        assert dump[0] == dump[1]
    answer = ours.online(["number_embedding:number_embedding_status"], [{"number": n} for n in (5, -(2**41) - 7, 99)])
    assert answer["number_embedding_status"] == ["ok", "ok", None]


def _dump(repo: Repo, view: str) -> list[Any]:
    with closing(sqlite3.connect(repo.folder / "data" / "online.db")) as connection:
        return connection.execute(f"SELECT * FROM test_{view} ORDER BY 1, 2").fetchall()


TRANSFORMED = """
from feast import BatchFeatureView
def tidy(frame):
    frame["title"] = frame["title"].str.replace("_", " ")
    return frame
tidy_text = BatchFeatureView(
    name="tidy_text", entities=[item], ttl=timedelta(days=36_500), mode="python", source=item_text, udf=tidy,
    udf_string='''def tidy(frame):
    frame["title"] = frame["title"].str.replace("_", " ")
    return frame
''',
    sink_source=FileSource(
        name="tidy", path="data/tidy.parquet", timestamp_field="event_timestamp", created_timestamp_column="created"
    ),
    online=True,
    schema=[Field(name="item", dtype=String), Field(name="title", dtype=String), Field(name="note", dtype=String)],
)
"""


def test_a_view_over_a_transformation_of_its_own_goes_the_stock_way(new_repo: Callable[..., Repo]) -> None:
    repo = use_engine(new_repo())
    repo.export()
    repo.declare(extra=TRANSFORMED)
    path = repo.folder / "features.py"
    path.write_text(
        path.read_text().replace("publish(globals())", f"publish(globals(), sources={{{VIEW!r}: tidy_text}})")
    )
    repo.write_items([row(1, "red_web"), row(2, "green_font")])
    shutil.copy(repo.folder / "data" / "items.parquet", repo.folder / "data" / "tidy.parquet")
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", FIRST, "--views", VIEW)
    assert stored(repo) == expected(repo, [row(1, "red web"), row(2, "green font")])
    assert not list(cache(repo).glob("ledger.sqlite"))


# --- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 4}, "chunk_size: Extra inputs are not permitted"),
        ({"chunk_rows": 0}, "chunk_rows: Input should be greater than or equal to 1"),
        ({"max_invalid_share": 2}, "max_invalid_share: Input should be less than or equal to 1"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(repo: Repo, options: dict[str, Any], message: str) -> None:
    use_engine(repo, **options)
    expected_message = (
        f"SettingsError: batch_engine of feature_store.yaml: {message}. Expected some of type, chunk_rows"
    )
    with pytest.raises(StepError, match=re.escape(expected_message)):
        incremental(repo)


def test_nothing_is_lost_without_a_write_batch_size(repo: Repo) -> None:
    path = repo.folder / "feature_store.yaml"
    path.write_text(path.read_text().replace(", online_write_batch_size: 1000", ""))
    assert "online_write_batch_size" not in path.read_text()
    repo.write_items(items := rows(50))
    incremental(repo)
    assert stored(repo) == expected(repo, items)


def test_a_window_without_any_text_is_materialized(repo: Repo) -> None:
    repo.write_items([row(1, " "), row(2, "")])
    incremental(repo)
    assert repo.vectors(["i0001", "i0002"]) == [None, None]
    assert repo.runs()[-1].empty == 2


def test_the_training_table_is_brought_up_to_date_if_asked(repo: Repo) -> None:
    use_engine(repo, training_table=True)
    repo.write_items([*rows(10), row(1, "newer", day=50)])
    incremental(repo)
    [part] = (cache(repo) / "training").rglob("*.parquet")
    assert pq.read_table(part).num_rows == 11


# --- reports


def test_the_report_of_a_run_says_what_it_did(repo: Repo) -> None:
    titles = ["red web", "red web", "", "green", "blue font tool"]
    repo.write_items([row(number, title) for number, title in enumerate(titles)])
    incremental(repo)
    [report] = repo.runs()
    assert (report.feature, report.mode) == (VIEW, "batch")
    assert (report.rows, report.empty, report.invalid, report.texts) == (5, 1, 0, 3)
    # [CLS], words, the full stop of the template, [SEP]
    assert (report.cached, report.computed, report.tokens) == (0, 3, 5 + 4 + 6)
    assert 0 < report.seconds < report.started
    repo.write_items([row(number, title) for number, title in enumerate([*titles, "red web", "black"])])
    incremental(repo, SECOND)
    assert len(repo.runs()) == 2
    assert last_run(repo) == counts(2, computed=1)
    printed = incremental(repo, "2026-05-01", LLMREC_PROGRESS="1")
    assert f"{VIEW}: 0 rows, 0 distinct texts" in printed


# --- disturbances


def test_two_runs_at_once_compute_nothing_twice(repo: Repo, tmp_path: Path) -> None:
    repo.write_items(items := rows(100))
    alone = use_engine(repo.copy(tmp_path / "alone"))
    incremental(alone)
    assert repo.call("engine_steps:together", view=VIEW, end=FIRST, count=2) == [0, 0]
    assert (repo.folder / "data" / "encoded").stat().st_size == 100
    assert table(repo) == table(alone)
    assert stored(repo) == expected(repo, items)


@pytest.mark.parametrize("way", ["renamed", "in place", "shorter", "no parquet file"])
def test_a_source_replaced_meanwhile_fails_the_run_and_a_rerun_repairs(repo: Repo, way: str) -> None:
    repo.write_items(items := [row(number, f"{WORDS[number % 18]} again", day=number % 9) for number in range(60)])
    source, new = repo.folder / "data" / "items.parquet", repo.root / "new"
    if way == "shorter":
        items = items[30:]
        repo.write_items(items)
    shutil.move(source, new)
    if way == "no parquet file":
        shutil.copy(new, repo.root / "sound")
        new.write_bytes(b"half of a file")
    repo.write_items(rows(60))
    error = repo.call(
        "engine_steps:materialize",
        view=VIEW,
        end=FIRST,
        replacement=str(new),
        in_place=way == "in place",
        after=3,
    )
    assert error is not None
    assert error.startswith(f"InputError: Feature {VIEW!r}: its source was written while it was read")
    assert (intervals(repo), len(repo.runs())) == ([], 1)
    if way == "no parquet file":
        shutil.move(repo.root / "sound", source)
    incremental(repo)
    newest = expected(repo, items)
    assert {item: stored(repo)[item] for item in newest} == newest


@since_feast_0_67
def test_reads_go_on_while_a_run_is_under_way(repo: Repo) -> None:
    repo.write_items(items := rows(300))
    incremental(repo)
    watched = ["i0000", "i0299"]
    before = repo.vectors(watched)
    for item in items:
        item["note"] = "client"
    repo.write_items(items)
    seen = repo.call("engine_steps:read_meanwhile", view=VIEW, end=SECOND, items=watched)
    after = repo.vectors(watched)
    assert None not in [*before, *after]
    assert before != after
    # The first chunk is written long before the last one; a reader sees whole vectors, old or new.
    assert seen["reads"] > 3
    assert seen["answers"][0] == before
    assert all(answer in (before, [after[0], before[1]], after) for answer in seen["answers"])


# So many random points, half of them beside a write; 50 take a minute and a half.
KILLS = int(os.environ.get("LLMREC_TEST_KILLS", "10"))


@since_feast_0_67
def test_a_run_killed_at_many_points_goes_on_where_it_was(repo: Repo) -> None:
    # The first and the last keys are old: those that a run looks for in the store when it begins.
    repo.write_items(items := rows(16) + [row(number) for number in range(900, 916)])
    incremental(repo)
    for number in (3, 8):
        items[number]["title"] += " corrected"
    late = [row(number, day=-200) for number in (500, 501)]
    new = [row(number, day=70) for number in range(100, 124)] + [row(1, "newer", day=71)]
    repo.write_items([*items, *late, *new, row(2, "too old", day=-9)])

    answer = repo.call("engine_steps:killed_runs", view=VIEW, end=SECOND, kills=KILLS, seed=0)
    assert answer["clean"]["encoded"] == 2 + 2 + 25
    assert len(answer["runs"]) == KILLS
    check_goes_on(answer["clean"], answer["runs"])


def check_goes_on(clean: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    for run in runs:
        assert run["killed"], run["point"]
        assert run["status"] == 0, run["point"]
        assert run["state"] == {name: clean[name] for name in ("store", "ledger")}, run["point"]
        assert run["encoded"] <= clean["encoded"] + 4, run["point"]  # one chunk
        assert run["later"] == {"status": 0, "writes": 0}, run["point"]
        assert run["unchanged"], run["point"]


def test_a_killed_run_goes_on_though_the_cache_is_too_small_for_it(repo: Repo) -> None:
    repo.write_items(rows(60))
    repo.environ["LLMREC_CACHE_MAX_BYTES"] = "300"  # of 8 vectors
    cache(repo).mkdir()
    answer = repo.call("engine_steps:killed_runs", view=VIEW, end=FIRST, kills=8, seed=5)
    assert answer["clean"]["encoded"] == 60
    assert max(run["before"] for run in answer["runs"]) > 20
    check_goes_on(answer["clean"], answer["runs"])


def test_memory_does_not_grow_with_the_rows(new_repo: Callable[..., Repo]) -> None:
    grown = []
    for count in (8_000, 24_000):
        repo = use_engine(new_repo(), chunk_rows=500)
        repo.export(dims=64)
        repo.declare(dims=64)
        repo.write_items([])
        repo.feast("apply")
        memory = repo.call("engine_steps:peak_memory", view=VIEW, rows=count, dims=64)
        grown.append(memory["peak"] - memory["before"])
    # 16,000 rows more: their protos alone, kept, would be 32 MB.
    assert grown[1] - grown[0] < 16_000


@pytest.mark.parametrize("storage", ["list", "float32", "float16", "int8"])
@pytest.mark.parametrize("dims", [1, 40, 384])
def test_what_is_written_is_what_feast_would_serialize(repo: Repo, storage: str, dims: int) -> None:
    ours, feasts = repo.call("engine_steps:serialized_values", storage=storage, dims=dims)
    assert ours == feasts
