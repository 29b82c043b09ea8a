"""`publish`: what it makes of declarations, and what it says when it cannot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.host import Repo

pytestmark = pytest.mark.feast

VIEWS = ["item_title_embedding", "item_title_embedding_on_demand"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed plugin that declares item_summary_embedding."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "shop_plugin.py").write_text(
        textwrap.dedent(
            """
            from llmrec_plugin import EmbeddingFeature, hookimpl

            @hookimpl
            def llmrec_register_features():
                return [EmbeddingFeature(
                    name="item_summary_embedding", entity="item", text="{summary}", model="tiny", pooling="mean",
                    normalize=True, prefix="", metric="cosine", max_tokens=16, dims=8,
                )]
            """
        )
    )
    about = folder / "shop_features-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-features\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[llmrec_plugin]\nshop = shop_plugin\n")
    return folder


@pytest.fixture(scope="module")
def run(new_repo: Callable[..., Repo], plugin: Path) -> Callable[..., dict[str, Any]]:
    repo = new_repo("published")
    repo.export()
    repo.export(seed=5, name="second")

    def run(name: str, *, with_plugin: bool = False) -> dict[str, Any]:
        return repo.call("publishing_steps:run_case", name=name, paths=[plugin] if with_plugin else [])

    return run


def test_views_are_named_after_their_features_and_put_into_the_module(run: Callable[..., dict[str, Any]]) -> None:
    result = run("one_view_fits")
    assert sorted(result["views"]) == sorted([*VIEWS, "query_text_embedding", "query_item_similarity"])
    assert result["added"] == sorted(f"_llmrec_{name}" for name in result["views"])
    assert result["views"]["item_title_embedding"] == ["item_text"]
    assert set(result["plugins"].values()) == {"feature repo"}
    assert (result["loaded"], result["log"]) == ([], [])


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("no_view_fits", "DeclarationError", "found 0 among: item_text(title, note); item_stats(downloads)"),
        ("no_view_fits", "DeclarationError", "No such view has 'summary'. Add the columns"),
        ("misspelled_column", "DeclarationError", "No such view has 'titel'. Did you mean 'title'? Add"),
        ("no_entity_imported", "UnknownNameError", "Known: none. Import the entity"),
        ("no_view_of_that_entity", "DeclarationError", "of entity 'user'"),
        ("unknown_entity", "UnknownNameError", "Did you mean 'item'?"),
        ("two_views_fit", "DeclarationError", "found 2 among: item_text(title, note); item_other(title)"),
        ("two_views_fit", "DeclarationError", "sources={'item_title_embedding': view}"),
        ("named_source_lacks_a_column", "DeclarationError", "found 0 among: item_stats(downloads)"),
        ("named_source_has_another_entity", "DeclarationError", "entity 'item'"),
        ("source_of_an_unknown_feature", "UnknownNameError", "Did you mean 'item_title_embedding'?"),
        ("bytes_column", "ColumnTypeError", "column 'title' of view 'item_text': expected String"),
        ("timestamp_column", "ColumnTypeError", "expected String, a number, Bool or Array(String)"),
        ("history_of_one_string", "ColumnTypeError", "expected Array(String), got String"),
        ("not_parquet_on_this_machine", "DeclarationError", "parquet on this machine"),
        ("neither_parquet_nor_spark", "DeclarationError", "is a SnowflakeSource: expected a FileSource of parquet"),
        ("unknown_side", "UnknownNameError", "Did you mean 'item_title_embedding'"),
        ("similarity_of_a_similarity", "DeclarationError", "which is a similarity"),
        ("sides_in_two_spaces", "DeclarationError", "dims 4, normalize True, reduction prefix"),
        ("sides_of_two_models", "DeclarationError", "model 'second'"),
        ("model_is_not_exported", "ArtifactNotFoundError", "llmrec export all-minilm-l6-v2"),
        ("declaration_contradicts_the_model", "ArtifactMismatchError", "declares pooling='cls'"),
        ("excluded_name_is_unknown", "UnknownNameError", "Did you mean 'item_title_embedding'?"),
        ("two_features_of_one_name", "NameCollisionError", "'item_title_embedding'"),
        ("two_views_of_one_name", "NameCollisionError", "makes a view 'item_title_embedding_on_demand'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy_and_adds_nothing(
    run: Callable[..., dict[str, Any]], case: str, error: str, message: str
) -> None:
    result = run(case)
    assert result["error"][0] == error
    assert "LLMRecError" in result["error"]
    assert message in result["message"]
    assert result["added"] == []


@pytest.mark.parametrize(
    ("case", "views"),
    [
        ("two_views_fit_and_one_is_named", VIEWS),
        ("history_of_strings", ["user_history_embedding", "user_history_embedding_on_demand"]),
        ("numbers_and_lists_are_text", VIEWS),
        ("push_source_over_parquet", VIEWS),
        ("spark_table", VIEWS),
        ("only_those_included", [*VIEWS, "query_text_embedding", "query_item_similarity"]),
        ("all_but_the_excluded", ["item_note_embedding", "item_note_embedding_on_demand"]),
        ("one_object_under_two_names", VIEWS),
        ("published_twice", VIEWS),
        ("named_source_infers_its_columns", VIEWS),
    ],
)
def test_what_fits_is_published(run: Callable[..., dict[str, Any]], case: str, views: list[str]) -> None:
    result = run(case)
    assert sorted(result["views"]) == sorted(views), result


def test_a_named_source_is_the_one_that_is_read(run: Callable[..., dict[str, Any]]) -> None:
    assert run("two_views_fit_and_one_is_named")["views"]["item_title_embedding"] == ["item_other"]


def test_a_plugins_feature_is_published_where_it_fits(run: Callable[..., dict[str, Any]]) -> None:
    result = run("plugin_feature_fits", with_plugin=True)
    assert sorted(result["views"]) == ["item_summary_embedding", "item_summary_embedding_on_demand"]
    assert set(result["plugins"].values()) == {"shop"}
    assert result["log"] == []


def test_a_plugins_feature_that_does_not_fit_is_left_out_with_a_warning(run: Callable[..., dict[str, Any]]) -> None:
    result = run("plugin_feature_does_not_fit", with_plugin=True)
    assert sorted(result["views"]) == VIEWS
    [message] = result["log"]
    for part in (
        "item_summary_embedding",
        "plugin 'shop' (shop-features 1.2)",
        "found 0 among: item_text(title, note)",
    ):
        assert part in message


@pytest.mark.parametrize(
    "case",
    ["plugin_feature_does_not_fit_and_is_included", "plugin_feature_does_not_fit_and_a_similarity_reads_it"],
)
def test_a_plugins_feature_that_is_needed_must_fit(run: Callable[..., dict[str, Any]], case: str) -> None:
    result = run(case, with_plugin=True)
    assert result["error"][0] == "DeclarationError"
    assert "item_summary_embedding" in result["message"]


def test_one_name_in_plugin_and_repo_names_both(run: Callable[..., dict[str, Any]]) -> None:
    result = run("plugin_and_repo_declare_one_name", with_plugin=True)
    assert result["error"][0] == "NameCollisionError"
    for part in ("plugin 'shop' (shop-features 1.2)", "feature repo", "item_summary_embedding"):
        assert part in result["message"]


def test_publishing_without_applying_writes_nothing(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo("unapplied")
    repo.export()
    repo.declare()
    repo.write_items([])
    files = {path: path.stat().st_mtime_ns for path in repo.root.rglob("*") if path.is_file()}
    assert "item_text_embedding" in repo.call("steps:publish_features", path="features.py")["views"]
    repo.feast("plan", PYTHONDONTWRITEBYTECODE="1")
    now = {path: path.stat().st_mtime_ns for path in repo.root.rglob("*") if path.is_file()}
    new = {path.relative_to(repo.root).as_posix() for path in now.keys() - files.keys()}
    assert {path: now[path] for path in files} == files
    # Feast itself creates an empty registry and an empty online store when it plans.
    assert {path for path in new if "__pycache__" not in path} <= {"repo/data/registry.db", "repo/data/online.db"}


def test_settings_that_lose_or_repeat_work_are_named(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo("unsuited")
    repo.export()
    repo.declare()
    features, path = str(repo.folder / "features.py"), repo.folder / "feature_store.yaml"
    suited = path.read_text()
    assert repo.call("steps:publish_features", path=features)["log"] == []
    path.write_text(suited + "batch_engine: ray.engine\noffline_store: {type: ray, storage_path: data/ray}\n")
    engine, store = repo.call("steps:publish_features", path=features)["log"]
    assert "batch_engine is 'ray.engine'" in engine
    assert "batch_engine: {type: llmrec_plugin.feast.ray.LLMRayComputeEngine, ...}" in engine
    assert "offline_store is 'ray'" in store
    path.write_text(suited + "batch_engine: {type: spark.engine}\noffline_store: {type: spark}\n")
    [store] = repo.call("steps:publish_features", path=features)["log"]
    assert "type: llmrec_plugin.feast.spark.LLMSparkOfflineStore" in store
