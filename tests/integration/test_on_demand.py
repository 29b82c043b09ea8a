"""On-demand features of a server with two workers: warm-up, shared batches, deadlines, statuses."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from integration.host import Repo
from integration.server import Server
from integration.spy import PATIENCE, Spy, until
from tiny import WORDS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.settings import MAX_NICE, load_settings

pytestmark = pytest.mark.feast

QUERY = "query_embedding:query_embedding"
TIMELY = ["timely_embedding:timely_embedding", "timely_embedding:timely_embedding_status"]
PAIR = ["timely_similarity:timely_similarity", "timely_similarity:timely_similarity_status"]
ITEMS = {"i0": "red web server", "i1": "green font"}

EXTRA = """
timely_embedding = EmbeddingFeature(
    name="timely_embedding", entity=None, text="{query}", status=True, deadline_ms=100, on_deadline="zeros", **model
)
timely_similarity = SimilarityFeature(
    name="timely_similarity", left="timely_embedding", right="item_text_embedding", metric="cosine", status=True
)
"""


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    repo = new_repo("on_demand")
    repo.export()
    repo.declare(extra=EXTRA)
    Spy.plant(repo)
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    repo.write_items([{"item": item, "title": title, "at": at} for item, title in ITEMS.items()])
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2026-03-01")
    return repo


@pytest.fixture(scope="module")
def spy(repo: Repo) -> Spy:
    return Spy(repo)


@pytest.fixture(scope="module")
def server(spy: Spy) -> Iterator[Server]:
    with spy.server(workers=2) as server:
        yield server


def test_each_worker_loads_its_models_at_start_and_none_for_a_request(server: Server, spy: Spy) -> None:
    warm = spy.lines("loads")
    assert [len(loads) for loads in warm.values()] == [1, 1]  # all features have one model
    assert server.columns([QUERY], query=["red"])["query_embedding"][0] is not None
    assert spy.lines("loads") == warm


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux only")
def test_threads_that_compute_stand_behind_the_event_loop(server: Server, spy: Spy) -> None:
    server.columns([QUERY], query=["yellow"])
    steps = min(5, MAX_NICE - os.nice(0))
    assert {step for steps in spy.lines("steps").values() for step in steps} == {str(steps)}


def test_each_worker_leaves_python_a_processor_of_its_share(server: Server, spy: Spy) -> None:
    share = load_settings().threads // 2
    assert list(spy.lines("threads").values()) == [[str(max(share - 1, 1))]] * 2


def test_what_a_worker_has_at_its_start_is_left_out_of_garbage_collection(server: Server, spy: Spy) -> None:
    assert all(int(count) > 100_000 for counts in spy.lines("warm").values() for count in counts)


def test_concurrent_requests_to_two_workers_give_the_values_of_one(server: Server, spy: Spy, repo: Repo) -> None:
    texts = [f"{a} {b}" for a in WORDS[:6] for b in WORDS[10:20]]
    expected = dict(zip(texts, repo.encode(texts), strict=True))
    before = {pid: len(lines) for pid, lines in spy.lines("texts").items()}

    def ask(number: int) -> None:
        some = [texts[(7 * number + step) % len(texts)] for step in range(5)]
        got = server.columns([QUERY], query=[*some, some[0], None])["query_embedding"]
        assert got[-1] is None
        for text, value in zip([*some, some[0]], got[:-1], strict=True):
            assert value == pytest.approx(expected[text], abs=1e-6)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(120)))
    encoded = [Counter(lines[before.get(pid, 0) :]) for pid, lines in spy.lines("texts").items()]
    assert {count for counts in encoded for count in counts.values()} == {1}  # once per worker, at the most
    assert set().union(*encoded) == set(texts)


def test_a_late_row_falls_back_alone_and_its_value_is_there_later(server: Server, spy: Spy, repo: Repo) -> None:
    before = repo.cached()
    until(lambda: server.columns(TIMELY, query=["kept font"])["timely_embedding_status"] == ["ok"])
    until(lambda: repo.cached() > before)  # where the other worker finds it, too
    spy.close_gate()
    rows = {"query": ["held font", "kept font", ""], "item": ["i0", "i0", "i0"]}
    late = server.columns([*TIMELY, *PAIR], **rows)
    assert late["timely_embedding_status"] == ["fallback", "ok", "empty"]
    assert late["timely_embedding"][0] == [0.0] * 8
    assert late["timely_similarity_status"] == ["fallback", "ok", "empty"]
    assert [value is None for value in late["timely_similarity"]] == [True, False, True]
    spy.open_gate()
    until(lambda: server.columns(TIMELY, **rows)["timely_embedding_status"] == ["ok", "ok", "empty"])
    plain = server.columns([QUERY], query=["held font"])
    assert server.columns(TIMELY, **rows)["timely_embedding"][0] == plain["query_embedding"][0]


def test_the_event_loop_and_other_requests_do_not_wait_for_an_inference(server: Server, spy: Spy) -> None:
    """More held requests than workers, so each worker has some; cached texts and `/health` are answered."""
    until(lambda: server.columns(TIMELY, query=["red web"])["timely_embedding_status"] == ["ok"])
    spy.close_gate()
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(server.columns, [QUERY], query=[f"held {number}"]) for number in range(8)]
        until(lambda: any("held" in text for lines in spy.lines("texts").values() for text in lines[-8:]))
        for _ in range(10):
            server.health()
            assert server.columns([QUERY], query=["red web"])["query_embedding"][0] is not None
        assert not any(future.done() for future in held)
        spy.open_gate()
        assert all(future.result(PATIENCE)["query_embedding"][0] is not None for future in held)


def test_statuses_come_through_the_python_interface_under_both_kinds_of_names(repo: Repo, server: Server) -> None:
    until(lambda: server.columns(TIMELY, query=["red web"])["timely_embedding_status"] == ["ok"])  # cached from here on
    rows = [{"query": query, "item": item} for query, item in (("red web", "i1"), ("", "i1"), ("red web", "unknown"))]
    short = repo.online([*TIMELY, *PAIR], rows)
    assert short["timely_embedding_status"] == ["ok", "empty", "ok"]
    assert short["timely_similarity_status"] == ["ok", "empty", "empty"]
    full = repo.online([*TIMELY, *PAIR], rows, full_feature_names=True)
    for name in ("timely_embedding", "timely_embedding_status"):
        assert full[f"timely_embedding__{name}"] == short[name]
    for name in ("timely_similarity", "timely_similarity_status"):
        assert full[f"timely_similarity__{name}"] == short[name]


def test_a_request_without_rows_gives_none(server: Server, spy: Spy) -> None:
    before = spy.lines("texts")
    names = ("query_embedding", "timely_embedding", "timely_embedding_status")
    assert server.columns([QUERY, *TIMELY], query=[]) == {name: [] for name in names}
    assert spy.lines("texts") == before


def test_a_worker_reads_once_at_its_start_and_computes_nothing(repo: Repo) -> None:
    """Feast's own first read takes as long as ten others."""
    got = repo.call("on_demand_steps:serve_after_warm_up", requests=[(QUERY, {"query": "after the start"})])
    assert got["reads at start"] == [{"item": "", "query_item_similarity": None}], "of the online store, too"
    assert got["encoded at start"] == ["ready"]
    assert len(got["answers"][0]) == 8


def test_a_missing_model_is_logged_at_start_and_fails_its_features_alone(repo: Repo, tmp_path: Path) -> None:
    other = repo.copy(tmp_path / "copy")
    (other.folder / "static_artifacts.py").unlink()
    store = ArtifactStore([other.root / "home" / "artifacts"])
    export_tiny(store, name="other", seed=5)
    other.declare(
        extra=EXTRA + 'other_embedding = EmbeddingFeature(name="other_embedding", entity=None, text="{query}", '
        '**{**model, "model": "other"})'
    )
    other.feast("apply")
    shutil.rmtree(other.root / "home" / "artifacts" / "other")
    row = {"query": "never seen before"}
    got = other.call(
        "on_demand_steps:serve_after_warm_up",
        requests=[("other_embedding:other_embedding", row), (QUERY, row)],
    )
    assert got["at start"] == got["in the end"] == ["tiny"]
    [told] = [line for line in got["log"] if "cannot be served" in line]
    assert told.startswith("Feature 'other_embedding' cannot be served: Artifact")
    assert "'other' is not on this machine" in told
    error, value = got["answers"]
    assert error.startswith("ArtifactNotFoundError")
    assert "'other' is not on this machine" in error
    assert len(value) == 8


def test_a_server_starts_while_a_slow_model_is_loaded(repo: Repo) -> None:
    """Gunicorn kills a worker that takes more than 30 s to start."""
    got = repo.call("on_demand_steps:warm_up_with_a_slow_model")
    assert got["returned before it was loaded"]
    assert got["loaded"]
    assert "still being loaded" in got["log"][0]


def test_gunicorn_may_run_an_application_of_the_users_own(repo: Repo) -> None:
    """One made with Feast's `get_app`, say: it need not hold a store."""
    assert repo.call("on_demand_steps:warm_up_under_another_gunicorn")


def test_a_worker_answers_as_many_requests_at_a_time_as_it_is_told_to(repo: Repo) -> None:
    before, after = repo.call("on_demand_steps:requests_at_a_time")
    assert (before, after) == (40, 3)


def test_the_server_may_be_started_from_another_folder(repo: Repo, tmp_path: Path) -> None:
    """`feast --chdir` leaves the working folder as it is; the store is found all the same."""
    got = repo.call("on_demand_steps:served_from", folder_of_repo=str(repo.folder), working_folder=str(tmp_path))
    assert got == str(repo.folder)
