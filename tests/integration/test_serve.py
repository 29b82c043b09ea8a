"""`feast serve`: JSON over HTTP equals what Feast's Python interface gives, and no text in a request breaks it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from integration.host import Repo
from integration.server import Server

pytestmark = pytest.mark.feast

STORED = "item_text_embedding:item_text_embedding"
ON_DEMAND = "item_text_embedding_on_demand:item_text_embedding_on_demand"
QUERY = "query_embedding:query_embedding"
SCORE = "query_item_similarity:query_item_similarity"
TITLES = ["red web server", "green font", "fast python library", "small mail client"]
ITEMS = [f"i{number}" for number in range(len(TITLES))]

HOSTILE = {
    "empty": "",
    "null": None,
    "blank": " \n\t ",
    "emoji": "red 🧑‍💻🏳️‍🌈 web",
    "right to left": "שרת \u202e אדום red",
    "control characters": "red\x00\x01\x1b[31m\x7f web",
    "100 kB": "red web " * 12_500,
    "one word of 100 kB": "x" * 100_000,
    "template syntax": "{title} {0} %s ${HOME} {{note}}",
    "code": "'; DROP TABLE entries; -- <script>",
}


@pytest.fixture(scope="module")
def server(new_repo: Callable[..., Repo]) -> Iterator[Server]:
    repo = new_repo("served")
    repo.export()
    repo.declare()
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    repo.write_items([{"item": item, "title": title, "at": at} for item, title in zip(ITEMS, TITLES, strict=True)])
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2026-03-01")
    server = Server(repo, fresh=True)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("features", "columns"),
    [
        ([STORED], {"item": [*ITEMS, "unknown"]}),
        ([ON_DEMAND], {"title": TITLES, "note": [None, "old tool", "", "x"]}),
        ([QUERY], {"query": ["red web", "font"]}),
        ([SCORE], {"item": [*ITEMS, "unknown"], "query": ["red web"] * 5}),
        ([STORED, SCORE], {"item": ITEMS, "query": ["red", "", "web", "font"]}),
    ],
    ids=["stored", "on-demand", "query", "similarity", "together"],
)
def test_json_equals_the_values_of_the_python_interface(
    server: Server, features: list[str], columns: dict[str, list[Any]]
) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    expected = server.repo.online(features, rows)
    for _ in range(2):
        got = server.columns(features, **columns)
        for name in (feature.partition(":")[2] for feature in features):
            assert len(got[name]) == len(rows)
            for value, other in zip(got[name], expected[name], strict=True):
                assert value == (None if other is None else pytest.approx(other, abs=1e-6))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_breaks_a_request_or_changes_its_neighbours(server: Server, text: str | None) -> None:
    clean = server.columns([SCORE], item=ITEMS[:2], query=["red web", "font"])["query_item_similarity"]
    got = server.columns([SCORE], item=[ITEMS[0], ITEMS[2], ITEMS[1]], query=["red web", text, "font"])
    first, hostile, last = got["query_item_similarity"]
    assert [first, last] == clean
    assert hostile is None or -1 <= hostile <= 1
    assert (hostile is None) == (not (text or "").strip())

    clean = server.columns([ON_DEMAND], title=TITLES[:2], note=["a", "b"])["item_text_embedding_on_demand"]
    got = server.columns([ON_DEMAND], title=[TITLES[0], text, TITLES[1]], note=["a", text, "b"])
    first, hostile, last = got["item_text_embedding_on_demand"]
    assert [first, last] == clean
    assert (hostile is None) == (not (text or "").strip())
    # Alone in a request, too.
    [alone] = server.columns([QUERY], query=[text])["query_embedding"]
    assert (alone is None) == (not (text or "").strip())


def test_a_missing_request_field_is_named(server: Server) -> None:
    status, body = server.ask([SCORE], item=ITEMS)
    assert status >= 400
    assert "['query'] not found" in str(body)
    status, body = server.ask([ON_DEMAND], title=TITLES)
    assert status >= 400
    assert "['note'] not found" in str(body)
    # And the server goes on.
    assert server.columns([STORED], item=ITEMS[:1])["item_text_embedding"][0] is not None


def test_feast_refuses_a_lone_surrogate_and_goes_on(server: Server) -> None:
    """Half a UTF-16 pair cannot be written as UTF-8, which Feast's messages need; our code is not reached."""
    status, body = server.ask([SCORE], item=ITEMS[:1], query=["red \ud800 web"])
    assert status >= 400
    assert "surrogates not allowed" in str(body)
    assert server.columns([SCORE], item=ITEMS[:1], query=["red web"])["query_item_similarity"][0] is not None
