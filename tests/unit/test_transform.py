"""The callable behind a Feast view."""

import contextvars
import json
import pickle
import subprocess
import sys
import threading
import time
import typing

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from samples import bound, embedding, history, match, query

from llmrec_plugin import transform as transform_module
from llmrec_plugin.binding import BoundSimilarity, to_values
from llmrec_plugin.errors import EngineError, FingerprintMismatchError, MissingColumnError
from llmrec_plugin.pipeline.postprocess import similarity
from llmrec_plugin.runtime import models as models_module
from llmrec_plugin.runtime import runner as runner_module
from llmrec_plugin.runtime.arrivals import note_arrival
from llmrec_plugin.settings import load_settings
from llmrec_plugin.transform import Transform, load, source

ITEM = "item_title_embedding"
SIMILARITY = "query_item_similarity"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, tiny_folder):
    """Transformations read their settings from the environment, as in a Feast process."""
    monkeypatch.setenv("LLMREC_ARTIFACTS", str(tiny_folder))
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMREC_DEVICE", "cpu")
    monkeypatch.setenv("LLMREC_THREADS", "1")
    monkeypatch.setenv("LLMREC_PROGRESS", "0")


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(models_module, "Encoder", lambda *_: pytest.fail("a model was loaded"))


def make(view, item, **extra):
    return load(view, item.feature.name, json.dumps({"bound": to_values(item), **extra}))


@pytest.fixture
def batch(tiny):
    return make("batch", bound(embedding(), tiny.id), keep=["item_id", "event_timestamp"])


@pytest.fixture
def on_demand(tiny):
    return make("on_demand", bound(query(), tiny.id))


@pytest.fixture
def compare(tiny):
    """Makes the transformation of a similarity between a query and a stored item."""

    def compare(metric="cosine"):
        return make(
            "on_demand", BoundSimilarity(match(metric=metric), bound(query(), tiny.id), bound(embedding(), tiny.id))
        )

    return compare


def frame(**columns):
    count = len(next(iter(columns.values())))
    return pd.DataFrame(
        {
            "extra": range(count),
            "event_timestamp": pd.date_range("2024-01-01", periods=count, tz="UTC"),
            **columns,
            "item_id": range(100, 100 + count),
        },
        index=range(7, 7 + count),
    )


# --- travelling


def test_a_transformation_pickles_by_reference_in_few_bytes(batch):
    data = pickle.dumps(batch)
    assert len(data) < 2048
    assert b"llmrec_plugin.transform" in data
    twin = pickle.loads(data)
    assert (twin.view, twin.__name__, twin.payload) == (batch.view, batch.__name__, batch.payload)


def test_the_bytes_do_not_change_with_use_or_process(batch):
    before = pickle.dumps(batch)
    batch(frame(title=["red"]))
    assert pickle.dumps(batch) == before
    assert pickle.dumps(pickle.loads(before)) == before
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.dumps(pickle.loads(sys.stdin.buffer.read())))"
    done = subprocess.run([sys.executable, "-c", code], input=before, capture_output=True, check=True)
    assert done.stdout == before


def test_dill_as_feast_calls_it_gives_the_same_few_bytes(batch):
    dill = pytest.importorskip("dill", reason="feast, which brings dill, is not installed")
    before = dill.dumps(batch, recurse=True)
    batch(frame(title=["red"]))
    assert dill.dumps(batch, recurse=True) == before
    assert len(before) < 2048


def test_the_source_text_gives_an_equal_transformation_in_a_bare_namespace(batch, on_demand, compare):
    for transform in (batch, on_demand, compare()):
        namespace = {}
        exec(source(transform), namespace)
        twin = namespace[transform.__name__]
        assert isinstance(twin, Transform)
        assert pickle.dumps(twin) == pickle.dumps(transform)


def test_the_source_text_holds_whatever_a_declaration_says(tiny):
    feature = query(prefix='it\'s a "quote" \\ \n 🙂 {x}', text="{query}'\"\\n")
    transform = make("on_demand", bound(feature, tiny.id))
    namespace = {}
    exec(source(transform), namespace)
    assert namespace[feature.name].bound.feature == feature


def test_a_transformation_looks_like_a_function_to_feast(batch):
    assert callable(batch)
    assert batch.__name__ == batch.__qualname__ == ITEM
    assert typing.get_type_hints(batch) == {}


@pytest.mark.usefixtures("no_model")
def test_making_a_transformation_reads_no_model_and_no_declaration():
    load("batch", "anything", "not even JSON")


@pytest.mark.parametrize(("path", "value"), [("fingerprint", "0" * 64), ("artifact", "b" * 64)])
@pytest.mark.usefixtures("no_model")
def test_a_payload_that_was_tampered_with_computes_nothing(batch, path, value):
    values = json.loads(batch.payload)
    values["bound"][path] = value
    with pytest.raises(FingerprintMismatchError, match=ITEM):
        load("batch", ITEM, json.dumps(values))(frame(title=["red"]))


# --- batch


def test_a_frame_becomes_keys_and_vectors_row_by_row(batch):
    rows = frame(title=["red", None, "blue", "red"])
    before = rows.copy()
    result = batch(rows)
    assert list(result.columns) == ["item_id", "event_timestamp", ITEM]
    assert list(result.index) == [0, 1, 2, 3]
    assert result["item_id"].tolist() == [100, 101, 102, 103]
    assert result["event_timestamp"].tolist() == rows["event_timestamp"].tolist()
    vectors = result[ITEM].tolist()
    assert vectors[1] is None
    assert [vectors[i].shape for i in (0, 2, 3)] == [(8,)] * 3
    np.testing.assert_array_equal(vectors[0], vectors[3])
    assert not np.allclose(vectors[0], vectors[2], atol=1e-3)
    pd.testing.assert_frame_equal(rows, before)


def test_a_single_row_is_a_vector_not_a_row_of_numbers(batch):
    (vector,) = batch(frame(title=["red"]))[ITEM]
    assert vector.shape == (8,)


@pytest.mark.usefixtures("no_model")
def test_an_empty_frame_keeps_its_columns_and_loads_no_model(batch):
    result = batch(frame(title=["red"]).iloc[:0])
    assert list(result.columns) == ["item_id", "event_timestamp", ITEM]
    assert len(result) == 0
    assert result["event_timestamp"].dtype == "datetime64[ns, UTC]"


@pytest.mark.parametrize("dropped", ["title", "item_id", "event_timestamp"])
def test_a_frame_without_a_column_is_an_error_even_without_rows(batch, dropped):
    for rows in (frame(title=["red"]), frame(title=["red"]).iloc[:0]):
        with pytest.raises(MissingColumnError, match=rf"{ITEM}.*reads column\(s\) '{dropped}'"):
            batch(rows.drop(columns=dropped))


def test_a_frame_of_numpy_lists_is_a_history(tiny):
    transform = make("batch", bound(history(), tiny.id), keep=["item_id"])
    result = transform(frame(events=[np.array(["red", "blue"]), np.array([]), None]))
    assert [value is None for value in result["user_history_embedding"]] == [False, True, True]


# --- on demand


def test_columns_become_one_column_of_tuples(on_demand):
    result = on_demand({"query": ["red", None, "blue"], "other": [1, 2, 3]})
    values = result["query_text_embedding"]
    assert [type(value) for value in values] == [tuple, type(None), tuple]
    assert len(values[0]) == 8
    assert {type(number) for number in values[0]} == {float}


def test_a_request_gives_the_value_that_a_batch_stored(batch, tiny):
    stored = batch(frame(title=["red server", "blue"]))[ITEM]
    requested = make("on_demand", bound(embedding(entity=None), tiny.id))({"title": ["red server", "blue"]})[ITEM]
    np.testing.assert_array_equal(np.stack(stored), np.array(requested, dtype=np.float32))


def test_the_name_that_feast_looks_for_with_full_feature_names_is_there_too(on_demand):
    result = on_demand({"query": ["red"]})
    assert list(result) == ["query_text_embedding", "query_text_embedding__query_text_embedding"]
    plain, prefixed = (values[0] for values in result.values())
    assert (type(plain), prefixed.dtype) == (tuple, np.float32)  # of a prefixed column Feast guesses the type
    assert plain == tuple(prefixed.tolist())


def test_historical_rows_have_the_plain_name_only(on_demand):
    result = on_demand({"query": ["red"], "event_timestamp": [pd.Timestamp("2024-01-01")]})
    assert list(result) == ["query_text_embedding"]


@pytest.mark.usefixtures("no_model")
def test_no_rows_on_demand_load_no_model(on_demand, compare):
    assert on_demand({"query": []})["query_text_embedding"] == []
    assert compare()({"query": [], ITEM: []})[SIMILARITY] == []


@pytest.mark.parametrize("missing", ["query", ITEM])
def test_a_request_without_a_column_is_an_error_that_names_it(compare, missing):
    columns = {"query": ["red"], ITEM: [[1.0] * 8]}
    del columns[missing]
    with pytest.raises(MissingColumnError, match=missing):
        compare()(columns)


# --- similarity


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_a_similarity_is_that_of_the_query_and_the_stored_vector(compare, on_demand, metric):
    queries = ["red", "blue server", "red"]
    stored = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    values = compare(metric)({"query": queries, ITEM: [list(map(float, row)) for row in stored]})[SIMILARITY]
    left = np.array(on_demand({"query": queries})["query_text_embedding"], dtype=np.float32)
    assert values == similarity(left, stored, metric).tolist()
    assert {type(value) for value in values} == {float}


@pytest.mark.parametrize("null", [None, float("nan"), [], np.array([])], ids=repr)
def test_a_row_without_a_stored_vector_is_null_and_its_neighbours_are_not_touched(compare, null):
    whole = compare()({"query": ["red", "red"], ITEM: [[1.0] * 8, [2.0] * 8]})[SIMILARITY]
    values = compare()({"query": ["red", "red", "red"], ITEM: [[1.0] * 8, null, [2.0] * 8]})[SIMILARITY]
    assert values == [whole[0], None, whole[1]]


def test_a_row_without_a_query_is_null(compare):
    values = compare()({"query": ["", "red", b"x"], ITEM: [[1.0] * 8] * 3})[SIMILARITY]
    assert [value is None for value in values] == [True, False, True]


def test_the_cosine_of_a_stored_zero_vector_is_null_and_its_distance_is_not(compare):
    columns = {"query": ["red"], ITEM: [[0.0] * 8]}
    assert compare()(columns)[SIMILARITY] == [None]
    assert compare("dot")(columns)[SIMILARITY] == [0.0]
    assert compare("euclidean")(columns)[SIMILARITY] == [pytest.approx(1.0)]


STORED = [1.0] * 8


def test_the_status_of_a_pair_says_which_side_has_no_vector(tiny):
    def compare(**stored):
        sides = bound(query(), tiny.id), bound(embedding(**stored), tiny.id)
        return make("on_demand", BoundSimilarity(match(status=True), *sides))

    columns = {
        "query": ["red", "", b"x", "red", "", b"x", "red"],
        ITEM: [STORED, STORED, STORED, None, None, None, [0.0] * 8],
    }
    result = compare()(columns)
    statuses = ["ok", "empty", "invalid", "empty", "empty", "invalid", "empty"]
    assert result[f"{SIMILARITY}_status"] == result[f"{SIMILARITY}__{SIMILARITY}_status"] == statuses
    assert [value is None for value in result[SIMILARITY]] == [status != "ok" for status in statuses]
    # A stored side that has a status of its own is asked for it.
    columns = {"query": ["red"] * 3, ITEM: [STORED, None, None], f"{ITEM}_status": ["ok", "invalid", None]}
    assert compare(status=True)(columns)[f"{SIMILARITY}_status"] == ["ok", "invalid", "empty"]
    assert compare(status=True)({"query": [], ITEM: []})[f"{SIMILARITY}_status"] == []


@pytest.mark.parametrize("on_deadline", ["null", "zeros"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_a_pair_whose_side_is_late_is_null(tiny, monkeypatch, on_deadline, metric):
    go_on = threading.Event()
    load = models_module.Encoder
    monkeypatch.setattr(models_module, "Encoder", lambda *arguments: go_on.wait(20) and load(*arguments))
    left = bound(query(deadline_ms=1, on_deadline=on_deadline), tiny.id)
    transform = make("on_demand", BoundSimilarity(match(metric=metric, status=True), left, bound(embedding(), tiny.id)))
    result = transform({"query": ["red", "", "red"], ITEM: [STORED, STORED, None]})
    assert result[SIMILARITY] == [None] * 3
    assert result[f"{SIMILARITY}_status"] == ["fallback", "empty", "empty"]
    go_on.set()
    runner_module.runner_for(load_settings()).drain()
    result = transform({"query": ["red"], ITEM: [STORED]})
    assert result[f"{SIMILARITY}_status"] == ["ok"]


@pytest.mark.parametrize("dims", [1, 7, 9])
def test_a_stored_vector_of_other_dims_is_an_error_that_says_what_to_do(compare, dims):
    with pytest.raises(FingerprintMismatchError, match=rf"'{ITEM}' has {dims} dims, expected 8.*feast materialize"):
        compare()({"query": ["red", "red"], ITEM: [[1.0] * 8, [1.0] * dims]})


# --- arrow batches and workers of other engines


def test_an_arrow_batch_gives_the_same_vectors(batch):
    rows = frame(title=["red web", None, "small font"])
    expected = batch(rows)
    result = batch.transform_batch(pa.RecordBatch.from_pandas(rows, preserve_index=False))
    assert result.schema.names == ["item_id", "event_timestamp", ITEM]
    assert result.schema.field(ITEM).type == pa.list_(pa.float32())
    assert result.column("item_id").to_pylist() == [100, 101, 102]
    for left, right in zip(result.column(ITEM).to_pylist(), expected[ITEM], strict=True):
        assert left == (None if right is None else right.tolist())


def test_an_empty_arrow_batch_loads_no_model(batch, no_model):
    rows = pa.RecordBatch.from_pandas(frame(title=["red"]), preserve_index=False).slice(0, 0)
    assert batch.transform_batch(rows).num_rows == 0


def test_rows_that_were_transformed_pass_through(batch, no_model):
    rows = frame(**{ITEM: [[1.0] * 8, [2.0] * 8]})
    assert batch(rows) is rows
    arrow = pa.RecordBatch.from_pandas(rows, preserve_index=False)
    assert batch.transform_batch(arrow) is arrow


def test_a_raw_column_of_the_outputs_name_is_not_taken_for_the_output(batch):
    result = batch(frame(title=["red web"], **{ITEM: [[0.0] * 8]}))
    assert np.linalg.norm(result[ITEM][0]) == pytest.approx(1.0, abs=1e-6)


def test_an_arrow_batch_without_the_column_names_it(batch):
    rows = pa.RecordBatch.from_pandas(frame(name=["red"]), preserve_index=False)
    with pytest.raises(MissingColumnError, match="'title'"):
        batch.transform_batch(rows)


def test_a_worker_of_feasts_own_ray_code_is_refused(batch, no_model, monkeypatch):
    monkeypatch.setattr(transform_module, "in_ray_worker", lambda: True)
    with pytest.raises(EngineError, match="LLMRayComputeEngine"):
        batch(frame(title=["red"]))


def test_rows_without_a_key_are_left_out_and_counted(batch, caplog):
    rows = frame(title=["red web", "small font", "green"])
    rows["item_id"] = [None, "b", "c"]
    expected = batch(frame(title=["small font", "green"]))[ITEM]
    for result in (
        batch(rows),
        batch.transform_batch(pa.RecordBatch.from_pandas(rows, preserve_index=False)).to_pandas(),
    ):
        assert result["item_id"].tolist() == ["b", "c"]
        assert np.array_equal(np.stack(result[ITEM]), np.stack(expected))
    assert caplog.messages == [f"{ITEM}: 1 of 3 rows have no item_id and are left out."] * 2


def test_an_arrow_table_is_transformed_chunk_by_chunk(batch):
    rows = pa.Table.from_pandas(frame(title=["red web", "small font"]), preserve_index=False)
    result = batch.transform_table(pa.concat_tables([rows.slice(0, 1), rows.slice(1, 1)]))
    assert result.to_pylist() == batch.transform_batch(rows.to_batches()[0]).to_pylist()
    assert batch.transform_table(rows.slice(0, 0)).num_rows == 0


def test_time_spent_before_the_call_counts(tiny):
    """A request that arrived long ago, and waited for a thread of the server, is late at once."""
    transform = make("on_demand", bound(query(deadline_ms=5_000, status=True), tiny.id))
    answers = []

    def ask(waited):
        note_arrival(time.monotonic() - waited)
        answers.append(transform({"query": [f"red {waited}"]})["query_text_embedding_status"])

    for waited in (0, 10):
        contextvars.copy_context().run(ask, waited)
    runner_module.runner_for(load_settings()).drain()
    assert answers == [["ok"], ["fallback"]]
