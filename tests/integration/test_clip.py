"""Pictures through Feast: a column of bytes, its vector, a text that finds it, and both fused."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo

pytest.importorskip("torch", reason="needs the extra 'export'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from tiny_clip import DIMS, picture

pytestmark = pytest.mark.feast

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LABEL = "2026-06-01"

FEATURES = f"""
from feast.types import Bytes

from llmrec_plugin.systems import clip

film = Entity(name="film", join_keys=["film"])
film_rows = FeatureView(
    name="film_rows",
    entities=[film],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="film", dtype=String), Field(name="caption", dtype=String), Field(name="image", dtype=Bytes),
    ],
    source=FileSource(name="films", path="data/films.parquet", timestamp_field="event_timestamp"),
)
both = dict(dims={DIMS}, on_empty="zeros")
film_image = clip.image_embedding(name="film_image", entity="film", **both)
film_text = clip.text_embedding(name="film_text", entity="film", text="a photo of {{caption}}", **both)
film_fused = clip.fused_embedding(
    name="film_fused", entity=None, text_vector="film_text", image_vector="film_image", **both
)
query_clip = clip.text_embedding(name="query_clip", dims={DIMS})
query_film = SimilarityFeature(name="query_film", left="query_clip", right="film_image", metric="cosine")
"""

FILMS: list[dict[str, Any]] = [
    {"caption": "a red lamp", "image": picture(40, 30)},
    {"caption": "two cat", "image": picture(17, 90, seed=1, kind="JPEG")},
    {"caption": "old table", "image": None},
    {"caption": None, "image": picture(16, 16, seed=2)},
    {"caption": None, "image": b"no picture"},
]
VECTORS = ["film_image:film_image", "film_text:film_text"]


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    repo = new_repo("clip")
    with (repo.folder / "feature_store.yaml").open("a") as stream:
        engine = {"type": "llmrec_plugin.feast.engine.LLMComputeEngine", "max_invalid_share": 0.5}
        stream.write(f"batch_engine: {json.dumps(engine)}\n")
    repo.export()
    artifacts = str(repo.root / "home" / "artifacts")
    repo.call("network_steps:export_clip", where=str(repo.root / "trained"), artifacts=artifacts)
    repo.declare(extra=FEATURES)
    repo.write_items([{"item": "i0", "title": "red web", "at": START}])
    table = pa.table(
        {
            "film": [f"f{number}" for number in range(len(FILMS))],
            "caption": pa.array([row["caption"] for row in FILMS], pa.string()),
            "image": pa.array([row["image"] for row in FILMS], pa.binary()),
            "event_timestamp": pa.array([START] * len(FILMS), pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo.folder / "data" / "films.parquet")
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    return repo


@pytest.fixture(scope="module")
def online(repo: Repo) -> dict[str, list[Any]]:
    rows = [{"film": f"f{number}"} for number in range(len(FILMS))]
    return repo.online([*VECTORS, "film_fused:film_fused"], rows)


def test_pictures_and_texts_have_unit_vectors_where_there_are_any(online: dict[str, list[Any]]) -> None:
    assert [value and round(float(np.linalg.norm(value)), 4) for value in online["film_image"]] == [1, 1, 0, 1, None]
    assert [round(float(np.linalg.norm(value)), 4) for value in online["film_text"]] == [1, 1, 1, 0, 0]


def test_historical_reads_give_the_stored_vectors(repo: Repo, online: dict[str, list[Any]]) -> None:
    labels = [{"film": f"f{number}", "event_timestamp": LABEL} for number in range(len(FILMS))]
    found = repo.historical(VECTORS, labels, environ={"LLMREC_CACHE": str(repo.root / "other")})
    for row, image, text in zip(found, online["film_image"], online["film_text"], strict=True):
        assert row["film_image"] == (None if image is None else pytest.approx(image, abs=1e-6))
        assert row["film_text"] == pytest.approx(text, abs=1e-6)


def test_the_fused_vector_is_made_of_what_is_stored(online: dict[str, list[Any]]) -> None:
    for image, text, fused in zip(online["film_image"], online["film_text"], online["film_fused"], strict=True):
        if image is None:
            assert not any(fused)  # on_empty="zeros"
            continue
        both = np.array(image) + np.array(text)
        np.testing.assert_allclose(fused, both / max(np.linalg.norm(both), 1e-12), atol=1e-5)


def test_a_text_is_compared_with_stored_pictures(repo: Repo, online: dict[str, list[Any]]) -> None:
    rows = [{"film": f"f{number}", "query": "a red lamp"} for number in range(len(FILMS))]
    answer = repo.online(["query_film:query_film"], rows)
    [query] = repo.online(["query_clip:query_clip"], [{"query": "a red lamp"}])["query_clip"]
    for score, image in zip(answer["query_film"], online["film_image"], strict=True):
        if image is None or not any(image):
            assert score is None
        else:
            assert score == pytest.approx(float(np.dot(query, image)), abs=1e-5)
