"""Features as columns of a Hugging Face dataset, and a dataset as Feast's source."""

from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
from samples import embedding
from tiny import export_tiny

from llmrec_plugin.adapters import add_feature, write_source
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, InputError, MissingColumnError, MissingExtraError
from llmrec_plugin.runtime import models as models_module
from llmrec_plugin.runtime import runner as runner_module

TITLES = ["red web server", "", "a fast python library", "red web server"]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict({"title": TITLES, "price": [1.0, 2.0, 3.0, 4.0]})


def test_a_feature_s_columns_are_those_of_its_view(dataset, vectors_of):
    added = add_feature(dataset, embedding(status=True), batch_size=3)
    assert added.column_names == ["title", "price", "item_title_embedding", "item_title_embedding_status"]
    assert str(added.features["item_title_embedding"].feature.dtype) == "float32"
    rows = added[:]
    assert rows["item_title_embedding_status"] == ["ok", "empty", "ok", "ok"]
    assert rows["item_title_embedding"][1] is None
    got = np.float32([vector for vector in rows["item_title_embedding"] if vector is not None])
    np.testing.assert_array_equal(got, vectors_of([title for title in TITLES if title]))
    assert dataset.column_names == ["title", "price"]


def test_values_in_the_cache_are_not_computed_again(dataset, vectors_of, monkeypatch):
    vectors_of([title for title in TITLES if title])
    runner_module.runner_for.cache_clear()
    monkeypatch.setattr(models_module, "Encoder", lambda *_: pytest.fail("a model was loaded"))
    assert len(add_feature(dataset, embedding())) == 4


def test_the_result_changes_with_the_model_and_only_then(dataset, tmp_path, monkeypatch):
    first, again = (add_feature(dataset, embedding()) for _ in range(2))
    assert first._fingerprint == again._fingerprint
    store = ArtifactStore([tmp_path / "newer"])
    export_tiny(store, seed=1)
    monkeypatch.setenv("LLMREC_ARTIFACTS", str(tmp_path / "newer"))
    newer = add_feature(dataset, embedding())
    assert newer._fingerprint != first._fingerprint
    assert newer[0]["item_title_embedding"] != first[0]["item_title_embedding"]


def test_the_format_stays_as_it_was(dataset):
    added = add_feature(dataset.with_format("numpy"), embedding(on_empty="zeros"))
    assert added.format["type"] == "numpy"
    assert added[:]["item_title_embedding"].shape == (4, 8)


def test_columns_that_do_not_fit_are_refused(dataset):
    with pytest.raises(MissingColumnError, match="'name'"):
        add_feature(dataset, embedding(text="{name}"))
    with pytest.raises(DeclarationError, match="a column 'price' already"):
        add_feature(dataset, embedding(name="price"))


def test_a_dataset_becomes_a_source_that_feast_reads(dataset, tmp_path):
    at = datetime(2026, 1, 2, 3, tzinfo=UTC)
    path = write_source(dataset, tmp_path / "items.parquet", at=at, batch_size=3)
    table = pq.read_table(path)
    assert table.column_names == ["title", "price", "event_timestamp"]
    assert table["title"].to_pylist() == TITLES
    assert set(table["event_timestamp"].to_pylist()) == {at}
    assert not list(tmp_path.glob("*.part"))


def test_moments_of_the_dataset_are_kept(dataset, tmp_path):
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 5)]
    dated = dataset.add_column("seen", moments)
    table = pq.read_table(write_source(dated, tmp_path / "items.parquet", timestamp_field="seen"))
    assert table["seen"].to_pylist() == moments


@pytest.mark.parametrize("at", [None, datetime(2026, 1, 1)])
def test_a_source_needs_a_moment_with_a_time_zone(dataset, tmp_path, at):
    with pytest.raises(InputError, match="a datetime with a time zone"):
        write_source(dataset, tmp_path / "items.parquet", at=at)


def test_a_missing_library_is_an_error_with_the_extra_s_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"llmrec-plugin\[datasets\]"):
        add_feature(None, embedding())
