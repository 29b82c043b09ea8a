"""What `test_publish.py` asks of a process that has Feast: `publish` over namespaces built here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from feast import Entity, FeatureView, Field, FileSource, PushSource, SnowflakeSource
from feast.data_source import DataSource
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.types import Array, Bytes, Int64, String, UnixTimestamp
from samples import embedding, history, match, query

from llmrec_plugin.feast import publish

item = Entity(name="item", join_keys=["item"])
user = Entity(name="user", join_keys=["user"])


def view(name: str, entity: Entity = item, source: DataSource | None = None, **columns: Any) -> FeatureView:
    source = source or FileSource(name=f"{name}_source", path=f"{name}.parquet", timestamp_field="event_timestamp")
    schema = [Field(name=column, dtype=dtype) for column, dtype in columns.items()]
    key = Field(name=entity.join_key, dtype=String)
    return FeatureView(name=name, entities=[entity], ttl=timedelta(days=1), schema=[key, *schema], source=source)


text = view("item_text", title=String, note=String)
stats = view("item_stats", downloads=Int64)


def run_case(name: str) -> dict[str, Any]:
    """What one call of `publish` gave: views with their sources, or the error; and what was logged."""
    namespace: dict[str, Any] = {"__name__": "features", "item": item}
    options = CASES[name](namespace)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("llmrec_plugin").addHandler(handler)
    names = set(namespace)
    try:
        views = publish(namespace, **options)
    except Exception as exc:
        added = sorted(set(namespace) - names)
        return {
            "error": [cls.__name__ for cls in type(exc).__mro__],
            "message": str(exc),
            "added": added,
            "log": records,
        }
    return {
        "views": {
            name: [source.name for source in getattr(made, "source_views", None) or []] for name, made in views.items()
        },
        "plugins": {name: made.tags["llmrec.plugin"] for name, made in views.items()},
        "added": sorted(set(namespace) - names),
        "log": records,
        "loaded": sorted({"onnxruntime", "tokenizers", "torch"} & set(sys.modules) - _LOADED_BEFORE),
    }


_LOADED_BEFORE = set(sys.modules)

Namespace = dict[str, Any]
CASES: dict[str, Callable[[Namespace], dict[str, Any]]] = {}


def case(function: Callable[[Namespace], dict[str, Any] | None]) -> None:
    CASES[function.__name__] = lambda namespace: function(namespace) or {}


@case
def one_view_fits(n: Namespace) -> None:
    n.update(text=text, stats=stats, a=embedding(), q=query(), s=match())


@case
def no_view_fits(n: Namespace) -> None:
    n.update(text=text, stats=stats, a=embedding(text="{summary}"))


@case
def misspelled_column(n: Namespace) -> None:
    n.update(text=text, a=embedding(text="{titel}. {note}"))


@case
def no_entity_imported(n: Namespace) -> None:
    del n["item"]
    n.update(text=text, a=embedding())


@case
def no_view_of_that_entity(n: Namespace) -> None:
    n.update(user=user, text=text, a=embedding(entity="user"))


@case
def unknown_entity(n: Namespace) -> None:
    n.update(text=text, a=embedding(entity="itm"))


@case
def two_views_fit(n: Namespace) -> None:
    n.update(text=text, other=view("item_other", title=String), a=embedding())


@case
def two_views_fit_and_one_is_named(n: Namespace) -> dict[str, Any]:
    other = view("item_other", title=String)
    n.update(text=text, other=other, a=embedding())
    return {"sources": {"item_title_embedding": other}}


@case
def named_source_lacks_a_column(n: Namespace) -> dict[str, Any]:
    n.update(text=text, stats=stats, a=embedding())
    return {"sources": {"item_title_embedding": stats}}


@case
def named_source_has_another_entity(n: Namespace) -> dict[str, Any]:
    other = view("user_text", user, title=String)
    n.update(user=user, text=text, other=other, a=embedding())
    return {"sources": {"item_title_embedding": other}}


@case
def named_source_infers_its_columns(n: Namespace) -> dict[str, Any]:
    bare = FeatureView(name="item_bare", entities=[item], source=text.batch_source)
    n.update(text=text, bare=bare, a=embedding())
    return {"sources": {"item_title_embedding": bare}}


@case
def source_of_an_unknown_feature(n: Namespace) -> dict[str, Any]:
    n.update(text=text, a=embedding())
    return {"sources": {"item_titel_embedding": text}}


@case
def bytes_column(n: Namespace) -> None:
    n.update(text=view("item_text", title=Bytes), a=embedding())


@case
def timestamp_column(n: Namespace) -> None:
    n.update(text=view("item_text", title=UnixTimestamp), a=embedding())


@case
def history_of_one_string(n: Namespace) -> None:
    n.update(user=user, text=view("user_text", user, events=String), a=history())


@case
def history_of_strings(n: Namespace) -> None:
    n.update(user=user, text=view("user_text", user, events=Array(String)), a=history())


@case
def numbers_and_lists_are_text(n: Namespace) -> None:
    n.update(text=view("item_text", title=Int64, tags=Array(String)), a=embedding(text="{title} {tags}"))


@case
def not_parquet_on_this_machine(n: Namespace) -> None:
    n.update(text=view("item_text", source=FileSource(name="far", path="s3://bucket/items.parquet"), title=String))
    n.update(a=embedding())


@case
def neither_parquet_nor_spark(n: Namespace) -> None:
    source = SnowflakeSource(name="far", table="items", timestamp_field="event_timestamp")
    n.update(text=view("item_text", source=source, title=String), a=embedding())


@case
def spark_table(n: Namespace) -> None:
    source = SparkSource(name="rows", table="shop.items", timestamp_field="event_timestamp")
    n.update(text=view("item_text", source=source, title=String), a=embedding())


@case
def push_source_over_parquet(n: Namespace) -> None:
    source = PushSource(name="pushed", batch_source=text.batch_source)
    n.update(text=view("item_text", source=source, title=String), a=embedding())


@case
def unknown_side(n: Namespace) -> None:
    n.update(text=text, a=embedding(), q=query(), s=match(right="item_titel_embedding"))


@case
def similarity_of_a_similarity(n: Namespace) -> None:
    n.update(text=text, a=embedding(), q=query(), s=match(), t=match(name="twice", left="query_item_similarity"))


@case
def sides_in_two_spaces(n: Namespace) -> None:
    n.update(text=text, a=embedding(), q=query(dims=4, reduction="prefix"), s=match())


@case
def sides_of_two_models(n: Namespace) -> None:
    n.update(text=text, a=embedding(), q=query(model="second"), s=match())


@case
def model_is_not_exported(n: Namespace) -> None:
    n.update(text=text, a=embedding(model="all-minilm-l6-v2"))


@case
def declaration_contradicts_the_model(n: Namespace) -> None:
    n.update(text=text, a=embedding(pooling="cls"))


@case
def only_those_included(n: Namespace) -> dict[str, Any]:
    n.update(text=text, a=embedding(), b=embedding(name="item_note_embedding", text="{note}"), q=query(), s=match())
    return {"include": ["query_item_similarity"]}


@case
def all_but_the_excluded(n: Namespace) -> dict[str, Any]:
    n.update(text=text, a=embedding(), b=embedding(name="item_note_embedding", text="{note}"))
    return {"exclude": ["item_title_embedding"]}


@case
def excluded_name_is_unknown(n: Namespace) -> dict[str, Any]:
    n.update(text=text, a=embedding())
    return {"exclude": ["item_titel_embedding"]}


@case
def one_object_under_two_names(n: Namespace) -> None:
    n.update(text=text, a=embedding())
    n.update(b=n["a"], again=text)


@case
def two_features_of_one_name(n: Namespace) -> None:
    n.update(text=text, a=embedding(), b=embedding(text="{note}"))


@case
def two_views_of_one_name(n: Namespace) -> None:
    n.update(text=text, a=embedding(), b=query(name="item_title_embedding_on_demand"))


@case
def published_twice(n: Namespace) -> None:
    n.update(text=text, a=embedding())
    publish(n)


@case
def plugin_feature_fits(n: Namespace) -> None:
    n.update(text=view("item_text", title=String, summary=String))


@case
def plugin_feature_does_not_fit(n: Namespace) -> None:
    n.update(text=text, a=embedding())


@case
def plugin_feature_does_not_fit_and_is_included(n: Namespace) -> dict[str, Any]:
    n.update(text=text, a=embedding())
    return {"include": ["item_summary_embedding"]}


@case
def plugin_feature_does_not_fit_and_a_similarity_reads_it(n: Namespace) -> None:
    n.update(text=text, q=query(), s=match(right="item_summary_embedding"))


@case
def plugin_and_repo_declare_one_name(n: Namespace) -> None:
    n.update(text=text, a=embedding(name="item_summary_embedding"))
