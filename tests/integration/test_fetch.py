"""Packed vectors are the same numbers every way, and `fetch` and `fetch_http` give what Feast gives."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo
from integration.server import Server
from integration.versions import since_feast_0_67

from llmrec_plugin.errors import FetchError, FingerprintMismatchError, InputError
from llmrec_plugin.pipeline.packing import pack, unpack
from llmrec_plugin.serving import Fetched, Layout, fetch_http

pytestmark = pytest.mark.feast

AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LABEL = "2026-06-01"
WHOLE = ("2025-01-01", "2026-03-01")
DIMS = 8
STORAGES = ("float32", "float16", "int8")
TEXTS: list[tuple[str | None, str | None]] = [
    ("red web server", None),
    (None, None),
    ("fast python library", "old tool"),
    (" ", ""),
    ("small mail client", "x"),
]
ITEMS = [f"i{number}" for number in range(len(TEXTS))]

EXTRA = """
from feast.types import Bool, Int64

packed = dict(entity="item", text="{title}. {note}", **model)
item_float32_embedding = EmbeddingFeature(
    name="item_float32_embedding", storage="float32", status=True, description="described", **packed
)
item_float16_embedding = EmbeddingFeature(name="item_float16_embedding", storage="float16", **packed)
item_int8_embedding = EmbeddingFeature(name="item_int8_embedding", storage="int8", status=True, **packed)
packed_query = EmbeddingFeature(name="packed_query_embedding", entity=None, text="{query}", storage="float16", **model)
packed_similarity = SimilarityFeature(
    name="packed_similarity", left="query_embedding", right="item_float32_embedding", metric="cosine",
    description="described, too",
)
small_similarity = SimilarityFeature(
    name="small_similarity", left="packed_query_embedding", right="item_int8_embedding", metric="dot"
)
item_stats = FeatureView(
    name="item_stats",
    entities=[item],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="item", dtype=String),
        Field(name="price", dtype=Float64),
        Field(name="stock", dtype=Int64),
        Field(name="new", dtype=Bool),
        Field(name="section", dtype=String),
    ],
    source=FileSource(name="stats", path="data/stats.parquet", timestamp_field="event_timestamp"),
)
shop = Entity(name="shop", join_keys=["shop_id"])
shop_text = FeatureView(
    name="shop_text",
    entities=[shop],
    ttl=timedelta(days=36_500),
    schema=[Field(name="shop_id", dtype=Int64), Field(name="about", dtype=String)],
    source=FileSource(name="shops", path="data/shops.parquet", timestamp_field="event_timestamp"),
)
shop_embedding = EmbeddingFeature(name="shop_embedding", entity="shop", text="{about}", storage="int8", **model)
"""
SERVICES = """
from feast import FeatureService

from features import item_stats, llm

mixed = FeatureService(
    name="mixed",
    features=[
        llm["item_int8_embedding"],
        item_stats.with_name("more"),
        llm["item_text_embedding"],
        llm["item_float32_embedding"][["item_float32_embedding"]],
    ],
)
vectors = FeatureService(
    name="vectors", features=[llm["item_float32_embedding"], llm["item_float16_embedding"], llm["item_int8_embedding"]]
)
ranking = FeatureService(
    name="ranking",
    features=[llm["packed_similarity"], llm["small_similarity"], llm["packed_query_embedding"], item_stats[["price"]]],
)
pairs = FeatureService(
    name="pairs",
    features=[
        llm["item_int8_embedding"].with_name("left"),
        llm["item_int8_embedding"].with_name("right").with_join_key_map({"item": "other"}),
    ],
)
texts = FeatureService(name="texts", features=[llm["item_float32_embedding_on_demand"], llm["query_embedding"]])
"""


def _write_other_sources(repo: Repo) -> None:
    stats = {
        "item": ITEMS[:4],
        "price": [1.5, None, float("nan"), -2.0],
        "stock": [3, 0, None, 2**24],
        "new": [True, False, None, True],
        "section": ["net", None, "", "mail"],
    }
    shops = {"shop_id": [7, 2**40], "about": ["red web", "green font"]}
    for name, columns in (("stats", stats), ("shops", shops)):
        rows = len(next(iter(columns.values())))
        table = pa.table({**columns, "event_timestamp": pa.array([AT] * rows, pa.timestamp("us", "UTC"))})
        pq.write_table(table, repo.folder / "data" / f"{name}.parquet")


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    made = new_repo("fetched")
    made.export(dims=DIMS)
    made.declare(dims=DIMS, extra=EXTRA)
    (made.folder / "services.py").write_text(SERVICES)
    made.write_items(
        {"item": item, "title": title, "note": note, "at": AT} for item, (title, note) in zip(ITEMS, TEXTS, strict=True)
    )
    _write_other_sources(made)
    made.feast("apply")
    made.feast("materialize", *WHOLE, LLMREC_CACHE=str(made.root / "batch"))
    return made


@pytest.fixture(scope="module")
def server(repo: Repo) -> Iterator[Server]:
    started = Server(repo)
    try:
        started.wait()
        yield started
    finally:
        started.stop()


def _read(repo: Repo, features: Any, **options: Any) -> dict[str, Any]:
    return repo.call("fetch_steps:read", features=features, **options)


def _http(server: Server, layout: str | Layout, entities: dict[str, Any]) -> Fetched:
    layout = Layout.from_json(layout) if isinstance(layout, str) else layout
    return fetch_http(f"http://127.0.0.1:{server.port}/", layout, entities)


def _rows(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]


def _packed(vectors: list[list[float] | None], storage: Any) -> list[str | None]:
    arrays = [None if vector is None else np.array([vector], np.float32) for vector in vectors]
    return [None if array is None else pack(array, storage)[0].hex() for array in arrays]


@pytest.mark.parametrize("cache", ["shared", "of its own"])
def test_packed_vectors_are_the_same_numbers_every_way(repo: Repo, cache: str) -> None:
    """Each way against the vectors of the feature that stores lists, packed here."""
    names = [f"item_{storage}_embedding" for storage in STORAGES]
    shared = cache == "shared"
    listed = repo.vectors(ITEMS)
    assert [vector is None for vector in listed] == [False, True, False, True, False]
    batch = repo.online([f"{name}:{name}" for name in names], [{"item": item} for item in ITEMS])
    historical = repo.historical(
        [f"{name}:{name}" for name in names],
        [{"item": item, "event_timestamp": LABEL} for item in ITEMS],
        environ={"LLMREC_CACHE": str(repo.root / ("batch" if shared else "historical"))},
    )
    on_demand = repo.online(
        [f"{name}_on_demand:{name}_on_demand" for name in names],
        [{"title": title, "note": note} for title, note in TEXTS],
        environ={"LLMREC_CACHE": str(repo.root / ("batch" if shared else "on-demand"))},
        rows_per_request=2,
    )
    for name, storage in zip(names, STORAGES, strict=True):
        expected = _packed(listed, storage)
        assert batch[name] == expected, storage
        for way in ([row[name] for row in historical], on_demand[f"{name}_on_demand"]):
            if shared:
                assert way == expected, storage
            # A vector computed in another batch may differ in its last bit, and so may its bytes.
            _check_close(way, expected, storage)


def _check_close(values: list[str | None], expected: list[str | None], storage: Any) -> None:
    assert [value is None for value in values] == [value is None for value in expected]
    ours, others = (
        unpack([bytes.fromhex(value) for value in column if value], storage, DIMS) for column in (values, expected)
    )
    np.testing.assert_allclose(ours, others, atol={"float32": 1e-6, "float16": 1e-3, "int8": 1.01 / 127}[storage])


def test_statuses_say_why_a_packed_vector_is_null_every_way(repo: Repo) -> None:
    status = "item_int8_embedding:item_int8_embedding_status"
    expected = ["ok", "empty", "ok", "empty", "ok"]
    assert repo.online([status], [{"item": item} for item in ITEMS])["item_int8_embedding_status"] == expected
    historical = repo.historical([status], [{"item": item, "event_timestamp": LABEL} for item in ITEMS])
    assert [row["item_int8_embedding_status"] for row in historical] == expected
    name = "item_int8_embedding_on_demand"
    rows = [{"title": title, "note": note} for title, note in TEXTS]
    assert repo.online([f"{name}:{name}_status"], rows)[f"{name}_status"] == expected


def test_similarities_read_packed_sides_online_and_in_training(repo: Repo) -> None:
    queries = ["red web", "font", "mail client", "red", ""]
    features = [f"{name}:{name}" for name in ("query_item_similarity", "packed_similarity", "small_similarity")]
    rows = [{"item": item, "query": query} for item, query in zip(ITEMS, queries, strict=True)]
    online = repo.online(features, rows)
    # The file store wants a stored feature beside on-demand ones.
    historical = repo.historical(["item_stats:stock", *features], [{**row, "event_timestamp": LABEL} for row in rows])
    reference = online["query_item_similarity"]
    assert [score is None for score in reference] == [False, True, False, True, True]
    assert online["packed_similarity"] == reference
    for ours, exact in zip(online["small_similarity"], reference, strict=True):
        assert ours == (None if exact is None else pytest.approx(exact, abs=0.02))
    for name in ("packed_similarity", "small_similarity"):
        assert [row[name] for row in historical] == online[name]


def test_a_service_becomes_one_matrix(repo: Repo) -> None:
    items = ["i2", "unknown", "i1", "i0", "i2", "i3", "i4"]
    found = _read(repo, "mixed", entities={"item": items})
    layout = Layout.from_json(found["layout"])
    assert layout.slices == {
        "item_int8_embedding": slice(0, 8),
        "price": slice(8, 9),
        "stock": slice(9, 10),
        "new": slice(10, 11),
        "item_text_embedding": slice(11, 19),
        "item_float32_embedding": slice(19, 27),
    }
    assert layout.dims == 27
    feast = repo.call("fetch_steps:read_by_to_dict", features="mixed", entities={"item": items})
    matrix = np.array(found["matrix"], dtype=float)
    for name in ("stock", "price", "new"):
        expected = [np.nan if value is None else value for value in feast[name]]
        np.testing.assert_array_equal(matrix[:, layout.slices[name]][:, 0], expected)
    nulls = [vector is None for vector in feast["item_text_embedding"]]
    assert nulls == [False, True, True, False, False, True, False]
    for name in ("item_text_embedding", "item_float32_embedding"):
        vectors = [vector or [np.nan] * DIMS for vector in feast["item_text_embedding"]]
        np.testing.assert_array_equal(matrix[:, layout.slices[name]], vectors)
    np.testing.assert_allclose(
        matrix[:, layout.slices["item_int8_embedding"]], matrix[:, layout.slices["item_text_embedding"]], atol=0.5 / 127
    )
    present, status = np.array(found["present"]), np.array(found["status"])
    assert (present == [[not np.isnan(row[place]).any() for place in layout.slices.values()] for row in matrix]).all()
    vector = ["ok", "not_found", "empty", "ok", "ok", "empty", "ok"]
    assert status[:, 0].tolist() == vector  # what its status column says
    assert status[:, 4].tolist() == [{"empty": "null"}.get(word, word) for word in vector]  # it has none
    assert status[:, 1].tolist() == ["null", "not_found", "null", "ok", "null", "ok", "not_found"]
    assert found["others"] == {"section": feast["section"]}


@pytest.mark.parametrize(
    ("service", "entities"),
    [
        ("mixed", {"item": ["i2", "unknown", "i1", "i0", "i2"]}),
        ("vectors", {"item": ITEMS}),
        ("ranking", {"item": [*ITEMS, "unknown"], "query": ["red web", "font", "", "red", "web", "x"]}),
        ("texts", {"title": ["red web", None], "note": ["old", " "], "query": ["font", None]}),
        (["item_text_embedding:item_text_embedding", "item_stats:section"], {"item": ITEMS}),
        (["shop_embedding:shop_embedding"], {"shop_id": [2**40, 1, 7]}),
    ],
    ids=["mixed", "vectors", "ranking", "texts", "listed", "integer keys"],
)
def test_http_equals_the_python_interface(
    repo: Repo, server: Server, service: Any, entities: dict[str, list[Any]]
) -> None:
    found = _read(repo, service, entities=entities)
    fetched = _http(server, found["layout"], entities)
    assert fetched.matrix.dtype == np.float32
    assert fetched.matrix.flags.c_contiguous
    assert _rows(fetched.matrix) == found["matrix"]
    assert fetched.present.tolist() == found["present"]
    assert fetched.status.tolist() == found["status"]
    assert fetched.others == found["others"]
    assert fetched.present.any()
    assert not fetched.present.all()


def test_on_demand_features_lie_beside_stored_ones(repo: Repo) -> None:
    entities = {"item": ["i0", "i1", "i2"], "query": ["red web", "font", ""]}
    found = _read(repo, "ranking", entities=entities)
    layout = Layout.from_json(found["layout"])
    feast = repo.call("fetch_steps:read_by_to_dict", features="ranking", entities=entities)
    matrix = np.array(found["matrix"], dtype=float)
    assert list(layout.slices) == ["packed_similarity", "small_similarity", "packed_query_embedding", "price"]
    scores = np.array([[feast[name][row] for name in layout.slices if "similarity" in name] for row in range(3)], float)
    np.testing.assert_array_equal(matrix[:, :2], scores)
    assert np.isnan(scores[1:]).all()
    assert found["present"] == [[True] * 4, [False, False, True, False], [False, False, False, False]]
    assert found["status"][2] == ["null"] * 4


def test_full_names_tell_equal_features_apart(repo: Repo, server: Server) -> None:
    features = ["item_float32_embedding:item_float32_embedding", "item_float32_embedding:item_float32_embedding_status"]
    plain = _read(repo, features, entities={"item": ITEMS})
    full = _read(repo, features, entities={"item": ITEMS}, full_feature_names=True)
    assert full["matrix"] == plain["matrix"]
    assert full["status"] == plain["status"]
    assert {row[0] for row in full["status"]} == {"ok", "empty"}
    assert list(Layout.from_json(full["layout"]).slices) == ["item_float32_embedding__item_float32_embedding"]
    assert _rows(_http(server, full["layout"], {"item": ITEMS}).matrix) == full["matrix"]
    mixed = _read(repo, "mixed", entities={"item": ITEMS}, full_feature_names=True)
    assert "more__price" in Layout.from_json(mixed["layout"]).slices
    assert mixed["matrix"] == _read(repo, "mixed", entities={"item": ITEMS})["matrix"]


def test_a_service_may_read_one_view_under_two_keys(repo: Repo, server: Server) -> None:
    entities = {"item": ["i0", "i1", "i2"], "other": ["i2", "i4", "unknown"]}
    found = _read(repo, "pairs", entities=entities, full_feature_names=True)
    layout = Layout.from_json(found["layout"])
    assert list(layout.slices) == ["left__item_int8_embedding", "right__item_int8_embedding"]
    for side, key in (("left", "item"), ("right", "other")):
        alone = _read(repo, ["item_int8_embedding:item_int8_embedding"], entities={"item": entities[key]})
        place = layout.slices[f"{side}__item_int8_embedding"]
        assert [row[place] for row in found["matrix"]] == alone["matrix"]
    assert found["status"] == [["ok", "ok"], ["empty", "ok"], ["ok", "not_found"]]
    assert _rows(_http(server, layout, entities).matrix) == found["matrix"]


def test_arrays_are_entities_too_and_no_entities_give_no_rows(repo: Repo, server: Server) -> None:
    feature = ["shop_embedding:shop_embedding"]
    listed = _read(repo, feature, entities={"shop_id": [7, 2**40]})
    assert _read(repo, feature, entities={"shop_id": [7, 2**40]}, as_arrays=True)["matrix"] == listed["matrix"]
    fetched = _http(server, listed["layout"], {"shop_id": np.array([7, 2**40])})
    assert _rows(fetched.matrix) == listed["matrix"]
    nothing = _read(repo, "mixed", entities={"item": []})
    assert (nothing["matrix"], nothing["present"], nothing["others"]) == ([], [], {"section": []})
    assert _http(server, nothing["layout"], {"item": []}).matrix.shape == (0, 27)


def test_requests_that_cannot_be_answered_say_why(repo: Repo, server: Server) -> None:
    [layout] = map(Layout.from_json, repo.call("fetch_steps:layouts", features=["ranking"]))
    with pytest.raises(FetchError, match=r"packed_similarity:packed_similarity.*\['query'\] not found"):
        _http(server, layout, {"item": ITEMS})
    with pytest.raises(FetchError, match="'gone'"):
        _http(server, dataclasses.replace(layout, service="gone"), {"item": ITEMS, "query": ITEMS})
    with pytest.raises(FetchError, match=r"lacks 'packed_similarity', it has .*'price'"):
        _http(server, dataclasses.replace(layout, features=("item_stats:price",)), {"item": ITEMS})
    with pytest.raises(InputError, match="'query': 1"):
        _http(server, layout, {"item": ITEMS, "query": ["red"]})
    assert "InputError" in _read(repo, "ranking", entities={})["error"]
    error = _read(repo, ["item_stats:prise"], entities={"item": ITEMS})
    assert error["error"] == "UnknownNameError"
    assert "Did you mean 'price'" in error["message"]
    with pytest.raises(OSError, match="refused"):
        fetch_http("http://127.0.0.1:9", layout, {"item": ITEMS, "query": ITEMS})


@pytest.mark.parametrize("name", ["item_text_embedding", *(f"item_{storage}_embedding" for storage in STORAGES)])
def test_a_stored_vector_of_another_length_is_refused(
    repo: Repo, server: Server, name: str, request: pytest.FixtureRequest
) -> None:
    [layout] = repo.call("fetch_steps:layouts", features=[[f"{name}:{name}"]])
    is_list = name == "item_text_embedding"
    wrong = {"hexadecimal": "00" * 7, "floats": [0.5] * (DIMS - 1)} if is_list else {"hexadecimal": "00" * 7}
    repo.call("fetch_steps:overwrite", view=name, key="i9", feature=name, **wrong)
    request.addfinalizer(
        lambda: repo.call("fetch_steps:overwrite", view=name, key="i9", feature=name, hexadecimal=None)
    )
    for item in (["i9"], ["i0", "i9"]):
        found = _read(repo, [f"{name}:{name}"], entities={"item": item})
        assert found["error"] == "FingerprintMismatchError"
        assert f"{name!r} has {28 if is_list else 7} bytes" in found["message"]
        with pytest.raises(FingerprintMismatchError, match=f"'{name}' has"):
            _http(server, layout, {"item": item})
    if name in ("item_float32_embedding", "item_int8_embedding"):
        service = {"item_float32_embedding": "packed_similarity", "item_int8_embedding": "small_similarity"}[name]
        status, body = server.ask([f"{service}:{service}"], item=["i9"], query=["red"])
        assert status >= 400
        assert "written under another declaration" in str(body)


@since_feast_0_67
def test_a_server_with_another_version_of_a_view_is_refused(repo: Repo, server: Server) -> None:
    [text] = repo.call("fetch_steps:layouts", features=["vectors"])
    layout = Layout.from_json(text)
    columns = tuple(dataclasses.replace(column, version=3) if column.view else column for column in layout.columns)
    assert _http(server, layout, {"item": ITEMS}).present.any()
    with pytest.raises(FingerprintMismatchError, match="'item_float32_embedding', 'item_float16_embedding'"):
        _http(server, dataclasses.replace(layout, columns=columns), {"item": ITEMS})


def test_a_layout_does_not_outlive_its_model(repo: Repo) -> None:
    """The last test of the module that uses the repo as it was: it works on a copy of it."""
    copy = repo.copy(repo.root.with_name("changed"))
    before = _read(copy, "vectors", entities={"item": ITEMS})
    layout = before["layout"]

    copy.declare(
        dims=DIMS, extra=EXTRA.replace('storage="int8", status', 'description="new words", storage="int8", status')
    )
    copy.feast("apply")
    assert _read(copy, "vectors", entities={"item": ITEMS}, layout=layout)["matrix"] == before["matrix"]

    copy.export(seed=1, dims=DIMS)
    copy.feast("apply")
    refused = _read(copy, "vectors", entities={"item": ITEMS}, layout=layout)
    assert refused["error"] == "FingerprintMismatchError"
    assert "item_float16_embedding" in refused["message"]
    empty = _read(copy, "vectors", entities={"item": ITEMS})
    assert {word for row in empty["status"] for word in row} == {"not_found"}
    copy.feast("materialize", *WHOLE)
    after = _read(copy, "vectors", entities={"item": ITEMS})
    assert after["present"] == before["present"]
    assert json.loads(after["layout"]) != json.loads(layout)
    expected = copy.encode(["red web server."])[0]
    assert after["matrix"][0][:DIMS] == pytest.approx(expected, abs=1e-6)
    assert after["matrix"][0] != before["matrix"][0]
