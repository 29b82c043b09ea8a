"""Features whose model runs behind an endpoint: the same numbers through Feast, in processes of its own."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from endpoint import KEY, Endpoint, serve
from integration.host import Repo, StepError
from tiny import WORDS

from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.settings import load_settings

pytestmark = pytest.mark.feast

STORED = "item_text_embedding:item_text_embedding"
ON_DEMAND = "item_text_embedding_on_demand:item_text_embedding_on_demand"
ITEMS = [
    {
        "item": f"i{number}",
        "title": f"{word} {WORDS[number - 7]}",
        "note": "font " * (number % 20),
        "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    }
    for number, word in enumerate(WORDS)
]
NAMES = [item["item"] for item in ITEMS]


def _encoder(repo: Repo, seed: int = 0) -> Callable[[Sequence[str]], np.ndarray]:
    """The repo's model in this process, in ONNX Runtime."""
    encoder = Encoder(repo.export(seed), load_settings({**repo.environ, "LLMREC_DEVICE": "cpu", "LLMREC_THREADS": "1"}))
    return lambda texts: encoder.encode(texts)[0]


@pytest.fixture(scope="module")
def endpoint(new_repo: Callable[..., Repo]) -> Iterator[tuple[Endpoint, Repo]]:
    """A server of the repo's model, and the repo, whose processes leave all inference to it."""
    repo = new_repo("remote")
    repo.declare()
    repo.write_items(ITEMS)
    with serve(_encoder(repo)) as server:
        repo.environ |= {
            "LLMREC_RUNTIME": "remote",
            "LLMREC_REMOTE_URL": server.url,
            "LLMREC_REMOTE_KEY": KEY,
            "LLMREC_REMOTE_BATCH": "8",
        }
        repo.feast("apply")
        yield server, repo


def _vectors(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_it_gives_the_same_numbers_every_way(endpoint: tuple[Endpoint, Repo]) -> None:
    server, repo = endpoint
    server.requests.clear()
    printed = repo.feast("materialize", "2025-01-01", "2027-01-01", LLMREC_CACHE=str(repo.root / "batch"))
    asked = len(server.requests)
    assert asked > len(ITEMS) // 7
    assert {request["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert KEY not in printed

    expected = server.encode([f"{item['title']}. {item['note'].strip()}" for item in ITEMS])
    np.testing.assert_allclose(_vectors(repo.vectors(NAMES)), expected, atol=1e-6)
    assert len(server.requests) == asked  # stored vectors are read, not computed

    rows = [{"item": name, "event_timestamp": "2026-06-01"} for name in NAMES]
    training = repo.historical([STORED], rows, environ={"LLMREC_CACHE": str(repo.root / "historical")})
    np.testing.assert_allclose(_vectors([row["item_text_embedding"] for row in training]), expected, atol=1e-6)

    request = [{"title": item["title"], "note": item["note"]} for item in ITEMS]
    configuration = {"LLMREC_CACHE": str(repo.root / "on-demand")}
    answer = repo.call(
        "steps:read_online", features=[ON_DEMAND], rows=request, rows_per_request=5, environ=configuration
    )
    np.testing.assert_allclose(_vectors(answer["item_text_embedding_on_demand"]), expected, atol=1e-6)
    assert len(server.requests) > 2 * asked


def test_a_run_stores_nothing_of_another_model(endpoint: tuple[Endpoint, Repo], new_repo: Callable[..., Repo]) -> None:
    server, repo = endpoint
    served, server.encode = server.encode, _encoder(new_repo("other"), seed=1)
    cache = repo.root / "refused"
    try:
        with pytest.raises(StepError, match="does not compute model 'tiny'") as caught:
            repo.feast("materialize", "2025-01-01", "2027-01-01", LLMREC_CACHE=str(cache))
    finally:
        server.encode = served
    assert KEY not in str(caught.value)
    assert repo.runs(cache) == []


def test_it_is_listed_by_name_and_without_an_address_says_what_to_set(endpoint: tuple[Endpoint, Repo]) -> None:
    _, repo = endpoint
    listed = repo.call("steps:command_line", arguments=["plugins"])
    assert "remote" in listed
    with pytest.raises(StepError, match="LLMREC_RUNTIME=remote needs LLMREC_REMOTE_URL"):
        repo.feast(
            "materialize", "2025-01-01", "2027-01-01", LLMREC_REMOTE_URL="", LLMREC_CACHE=str(repo.root / "without")
        )
