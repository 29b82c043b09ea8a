"""Two fingerprints side by side: the old one is served until the new one is complete, then switched, then back.

Every command runs in a process of its own. A server asks for stored vectors, a query's embedding and their
similarity in one request, all the time; it may see whole answers only.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from integration.host import Repo, StepError
from integration.test_patches import REGISTRIES, STORES
from integration.versions import since_feast_0_67

pytestmark = pytest.mark.feast

CONFIGURATION = """
project: test
provider: local
registry:
  {registry}
  cache_ttl_seconds: 1
  serve_features_while_materializing: true
  enable_online_feature_view_versioning: {versioning}
online_store: {{type: {online}, path: data/online.db}}
batch_engine: {{type: llmrec_plugin.feast.engine.LLMComputeEngine}}
materialization: {{pull_latest_features: true, online_write_batch_size: 1000}}
entity_key_serialization_version: 3
"""
VIEW, QUERY, SCORE = "item_text_embedding", "query_embedding", "query_item_similarity"
OURS = {VIEW, f"{VIEW}_on_demand", QUERY, SCORE}
TITLES = ["red web server", "green font", "fast python library", "small mail client"]
ITEMS = [f"i{number}" for number in range(len(TITLES))]
TEXT = "red web"
FIRST, SECOND, THIRD = "2026-03-01", "2026-04-01", "2026-05-01"

EXTRA = """
other_query = EmbeddingFeature(name="other_query", entity=None, text="{other}", **model)
other_similarity = SimilarityFeature(
    name="other_similarity", left="other_query", right="item_text_embedding", metric="cosine"
)
item_title_embedding = EmbeddingFeature(name="item_title_embedding", entity="item", text="{title}", **model)
"""


class Shop:
    """A repo whose versions are kept, and what is done with it."""

    def __init__(self, repo: Repo, registry: str, store: str, versioning: str = "true") -> None:
        self.repo = repo
        self.configure(registry, store, versioning)
        self.rows = [self._row(item, title, 1) for item, title in zip(ITEMS, TITLES, strict=True)]
        repo.write_items(self.rows)

    def configure(self, registry: str, store: str, versioning: str = "true") -> None:
        text = CONFIGURATION.format(
            registry=REGISTRIES[registry].replace(", ", "\n  "), online=STORES[store], versioning=versioning
        )
        (self.repo.folder / "feature_store.yaml").write_text(text)

    @staticmethod
    def _row(item: str, title: str, month: int) -> dict[str, Any]:
        return {"item": item, "title": title, "at": datetime.datetime(2026, month, 15, tzinfo=datetime.UTC)}

    def add(self, item: str, title: str, month: int) -> None:
        self.rows.append(self._row(item, title, month))
        self.repo.write_items(self.rows)

    def start(self) -> list[Any]:
        """Applies and materializes the first model; what it answers."""
        self.repo.export()
        self.repo.declare()
        self.repo.feast("apply")
        self.repo.feast("materialize-incremental", FIRST)
        return self.expected()

    def declare_next(self, seed: int) -> list[Any]:
        """Exports and applies another model; what it will answer."""
        self.repo.export(seed=seed)
        self.printed = self.repo.feast("apply")
        return self.expected()

    def fill(self, number: int, end: str = FIRST) -> None:
        self.repo.feast("materialize-incremental", end, "--views", VIEW, "--version", f"v{number}")

    def llmrec(self, *arguments: str) -> str:
        done = self.repo.call("rollout_steps:llmrec", arguments=["rollout", *arguments])
        if done["status"]:
            raise StepError(done["output"])
        return done["output"]

    def status(self) -> dict[str, Any]:
        printed = self.llmrec("status", "--json")
        return {view["view"]: view for view in json.loads(printed[printed.index("[") : printed.rindex("]") + 1])}

    def versions(self) -> dict[str, Any]:
        return self.repo.call("rollout_steps:versions")

    def answer(self, items: list[str] = ITEMS) -> list[Any]:
        """Stored vectors, the query's embedding and similarities, read in one request."""
        columns = self.repo.online(
            [f"{name}:{name}" for name in (VIEW, QUERY, SCORE)], [{"item": item, "query": TEXT} for item in items]
        )
        return [columns[name] for name in (VIEW, QUERY, SCORE)]

    def expected(self) -> list[Any]:
        """The same, computed with the current model, without Feast."""
        vectors = np.array(self.repo.encode([f"{title}. " for title in TITLES]))
        query = np.array(self.repo.encode([TEXT]))
        return [vectors.tolist(), np.repeat(query, len(vectors), 0).tolist(), (vectors @ query[0]).tolist()]


def _equal(answer: Any, expected: list[Any]) -> bool:
    return not isinstance(answer, str) and all(
        values == pytest.approx(others, abs=1e-6)
        if name == SCORE
        else all(
            value is not None and value == pytest.approx(other, abs=1e-6)
            for value, other in zip(values, others, strict=True)
        )
        for name, values, others in zip((VIEW, QUERY, SCORE), answer, expected, strict=True)
    )


class Polled:
    """A server that is asked all the time while a `with` block runs."""

    def __init__(self, repo: Repo) -> None:
        self._started, self._stop = repo.root / "started", repo.root / "stop"
        arguments = {"items": ITEMS, "query": TEXT, "started": str(self._started), "stop": str(self._stop)}
        self._server = repo.processes.start("rollout_steps:poll", arguments, folder=repo.folder, environ=repo.environ)
        self.answers: list[Any] = []

    def __enter__(self) -> Polled:
        while not self._started.exists():
            assert self._server.running(), self._server.log.read_text()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.touch()
        self.answers = self._server.result()


PLANNED_FILE, UNPLANNED_SQL = "planned-file", "unplanned-sql"
both = pytest.mark.parametrize("kind", [PLANNED_FILE, UNPLANNED_SQL])

Filled: TypeAlias = Callable[[str], tuple[Shop, list[Any], list[Any]]]


@pytest.fixture(scope="module")
def new_shop(new_repo: Callable[..., Repo]) -> Callable[[str], Shop]:
    """Makes a repo of this kind, to which nothing was applied."""

    def make(kind: str) -> Shop:
        store, registry = kind.split("-")
        return Shop(new_repo(kind), registry, store)

    return make


@pytest.fixture(scope="module")
def filled(new_shop: Callable[[str], Shop], tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """Gives a repo whose second model waits and is complete, and what both models answer."""
    made: dict[str, tuple[Shop, list[Any], list[Any]]] = {}
    kept = tmp_path_factory.mktemp("filled")

    def give(kind: str) -> tuple[Shop, list[Any], list[Any]]:
        if kind not in made:
            shop = new_shop(kind)
            first, second = shop.start(), shop.declare_next(seed=1)
            shop.fill(1)
            made[kind] = shop, first, second
            shutil.copytree(shop.repo.root, kept / kind)
        # At its own place again: Feast's plan notes where the online store lies.
        root = made[kind][0].repo.root
        shutil.rmtree(root)
        shutil.copytree(kept / kind, root)
        return made[kind]

    return give


@since_feast_0_67
@both
def test_a_server_sees_the_old_model_then_the_new_one_then_the_old_one_and_nothing_else(
    new_shop: Callable[[str], Shop], kind: str
) -> None:
    shop = new_shop(kind)
    first = shop.start()
    assert _equal(shop.answer(), first)
    with Polled(shop.repo) as polled:
        second = shop.declare_next(seed=1)
        assert shop.printed.count("feast materialize-incremental") == 1
        assert f"--views {VIEW} --version v1" in shop.printed
        assert _equal(shop.answer(), first)
        assert {view["candidate"] for view in shop.status().values()} == {1}
        assert shop.status()[VIEW]["rows"] == {"expected": 4, "complete": 0, "null": 0}
        with pytest.raises(StepError, match=r"lacks 4 of 4 rows.*--views item_text_embedding --version v1"):
            shop.llmrec("promote")

        # The nightly run goes on, for what is served; the new row is then expected of the candidate, too.
        shop.add("new", "yellow game", 3)
        shop.repo.feast("materialize-incremental", SECOND)
        shop.fill(1, FIRST)
        assert shop.versions()[VIEW]["ends"] == {"0": [FIRST, SECOND], "1": [FIRST]}
        assert shop.status()[VIEW]["rows"] == {"expected": 5, "complete": 4, "null": 0}
        with pytest.raises(StepError, match="lacks 1 of 5 rows"):
            shop.llmrec("promote")
        shop.fill(1, SECOND)
        assert _equal(shop.answer(), first)

        assert "v1 is served instead of v0" in shop.llmrec("promote")
        assert _equal(shop.answer(), second)
        assert None not in shop.answer(["new"])[0]
        assert "A rollout is under way" not in shop.repo.feast("apply")
        assert _equal(shop.answer(), second)
        shop.add("newer", "green game", 4)
        shop.repo.feast("materialize-incremental", THIRD)
        assert shop.versions()[VIEW]["ends"] == {"0": [FIRST, SECOND], "1": [FIRST, SECOND, THIRD]}
        assert None not in shop.answer(["newer"])[0]

        assert "v0 is served instead of v1" in shop.llmrec("rollback")
        assert _equal(shop.answer(), first)
        assert shop.answer(["newer"])[0] == [None]
        shop.repo.feast("materialize-incremental", THIRD)
        assert None not in shop.answer(["newer"])[0]
        with pytest.raises(StepError, match="nothing to return to"):
            shop.llmrec("rollback")
        time.sleep(1.5)  # a SQL registry is read anew every second
    errors = [answer for answer in polled.answers if isinstance(answer, str)]
    assert not errors
    kinds = [
        "first" if _equal(answer, first) else "second" if _equal(answer, second) else answer
        for answer in polled.answers
    ]
    assert kinds == ["first", "second", "first"]


def test_two_rollouts_in_a_row_and_what_is_removed_after(filled: Filled) -> None:
    shop, first, second = filled(PLANNED_FILE)
    shop.llmrec("promote")
    third = shop.declare_next(seed=2)
    assert _equal(shop.answer(), second)
    assert "Nothing to remove" in shop.llmrec("clean")
    shop.fill(2)
    shop.llmrec("promote")
    assert _equal(shop.answer(), third)
    assert f"{VIEW}: v0 removed" in shop.llmrec("clean")
    assert {name: item["kept"] for name, item in shop.versions().items()} == {name: [1, 2] for name in OURS}
    assert _rows_in(shop, VIEW) == 0
    assert _equal(shop.answer(), third)
    shop.llmrec("rollback")
    assert _equal(shop.answer(), second)
    assert not _equal(second, first)

    # A candidate that another one replaces is superseded, too; the repo that declares the served one takes it back.
    shop.declare_next(seed=3)
    assert {view["candidate"] for view in shop.status().values()} == {3}
    shop.declare_next(seed=1)
    assert {view["candidate"] for view in shop.status().values()} == {None}
    with pytest.raises(StepError, match="Nothing waits"):
        shop.llmrec("promote")
    shop.llmrec("clean")
    assert {name: item["kept"] for name, item in shop.versions().items()} == {name: [1] for name in OURS}
    tables = _tables(shop)
    assert f"test_{VIEW}_v1" in tables
    assert f"test_{VIEW}_v2" not in tables
    assert f"test_{VIEW}_v3" not in tables
    assert _equal(shop.answer(), second)


def _tables(shop: Shop) -> set[str]:
    with sqlite3.connect(shop.repo.folder / "data" / "online.db") as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _rows_in(shop: Shop, view: str) -> int:
    with sqlite3.connect(shop.repo.folder / "data" / "online.db") as connection:
        return connection.execute(f"SELECT count(*) FROM test_{view}").fetchone()[0]


@both
def test_a_promotion_that_is_killed_switched_every_view_or_none(filled: Filled, kind: str) -> None:
    shop, first, second = filled(kind)
    writes = 0
    while True:
        try:
            shop.repo.call("rollout_steps:promote_and_die", writes=writes)
        except StepError:
            assert {item["served"] for item in shop.versions().values()} == {0}
            assert _equal(shop.answer(), first)
        else:
            break
        writes += 1
    assert writes >= 1
    assert {item["served"] for item in shop.versions().values()} == {1}
    assert _equal(shop.answer(), second)


@both
def test_a_run_that_a_promotion_overtakes_belongs_to_the_version_it_wrote(filled: Filled, kind: str) -> None:
    shop, _, second = filled(kind)
    shop.repo.call("rollout_steps:promote_during_a_run", end=SECOND)
    about = shop.versions()[VIEW]
    assert about["served"] == 1
    assert about["ends"] == {"0": [FIRST, SECOND], "1": [FIRST]}
    assert _equal(shop.answer(), second)


@both
def test_a_state_that_is_written_late_does_not_undo_a_promotion(filled: Filled, kind: str) -> None:
    shop, _, second = filled(kind)
    shop.repo.call("rollout_steps:stale_state_change")
    assert {item["served"] for item in shop.versions().values()} == {1}
    assert _equal(shop.answer(), second)


@both
def test_a_request_that_meets_half_a_switch_is_answered_whole_or_refused(filled: Filled, kind: str) -> None:
    shop, first, _ = filled(kind)
    step = "rollout_steps:read_while_the_registry_is_half_read"
    assert _equal(shop.repo.call(step, items=ITEMS, query=TEXT, lasting=False), first)
    refused = shop.repo.call(step, items=ITEMS, query=TEXT, lasting=True)
    assert "FingerprintMismatchError" in refused
    assert "reads values of 'item_text_embedding'" in refused


def test_a_feature_declared_during_a_rollout_is_there_after_it(new_shop: Callable[[str], Shop]) -> None:
    shop = new_shop(PLANNED_FILE)
    first = shop.start()
    shop.repo.export(seed=1)
    shop.repo.declare(extra=EXTRA)
    shop.repo.feast("apply")
    second = shop.expected()
    rows = [{"item": item, "other": TEXT} for item in ITEMS]
    assert _equal(shop.answer(), first)
    with pytest.raises(StepError, match="it can be read after `llmrec rollout promote`"):
        shop.repo.online(["other_similarity:other_similarity"], rows)
    with pytest.raises(StepError, match="two exports of model 'tiny'"):
        shop.repo.online(["other_query:other_query", f"{VIEW}:{VIEW}"], rows)

    shop.repo.feast("materialize-incremental", FIRST)
    shop.fill(1)
    shop.llmrec("promote")
    assert _equal(shop.answer(), second)
    scores = shop.repo.online(["other_similarity:other_similarity"], rows)["other_similarity"]
    assert scores == pytest.approx(second[2], abs=1e-6)
    titles = shop.repo.online(["item_title_embedding:item_title_embedding"], rows)["item_title_embedding"]
    assert None not in titles


def test_a_feature_service_and_training_data_read_the_served_version_or_the_one_asked_for(
    new_shop: Callable[[str], Shop],
) -> None:
    shop = new_shop(UNPLANNED_SQL)
    shop.repo.export()
    service = 'llm = publish(globals())\nranker = feast.FeatureService(name="ranker", features=list(llm.values())[2:])'
    shop.repo.declare()
    text = (shop.repo.folder / "features.py").read_text()
    text = f"import feast\n{text}".replace("llm = publish(globals())", service)
    (shop.repo.folder / "features.py").write_text(text)
    shop.repo.feast("apply")
    shop.repo.feast("materialize-incremental", FIRST)
    first = shop.expected()
    second = shop.declare_next(seed=1)
    shop.fill(1)

    def service_answers(expected: list[Any]) -> bool:
        columns = shop.repo.call("rollout_steps:read_service", name="ranker", items=ITEMS, query=TEXT)
        return columns[SCORE] == pytest.approx(expected[2], abs=1e-6)

    assert service_answers(first)
    candidate = shop.repo.online([f"{VIEW}@v1:{VIEW}"], [{"item": item} for item in ITEMS])[VIEW]
    assert np.allclose(candidate, second[0], atol=1e-6)
    labels = [{"item": item, "event_timestamp": "2026-02-01"} for item in ITEMS]
    training = shop.repo.historical([f"{VIEW}:{VIEW}"], labels)
    assert np.allclose([row[VIEW] for row in training], first[0], atol=1e-6)
    training = shop.repo.historical([f"{VIEW}@v1:{VIEW}"], labels)
    assert np.allclose([row[VIEW] for row in training], second[0], atol=1e-6)
    shop.llmrec("promote")
    assert service_answers(second)
    training = shop.repo.historical([f"{VIEW}:{VIEW}"], labels)
    assert np.allclose([row[VIEW] for row in training], second[0], atol=1e-6)


def test_a_change_that_keeps_the_fingerprint_is_no_rollout(filled: Filled) -> None:
    shop, first, second = filled(PLANNED_FILE)
    shop.llmrec("promote")
    before = shop.versions()[VIEW]
    shop.repo.declare(ttl_days=20_000, description="of packages", tags={"owner": "search"})
    assert "A rollout is under way" not in shop.repo.feast("apply")
    assert shop.versions()[VIEW] == before
    assert _equal(shop.answer(), second)
    shop.llmrec("rollback")
    assert _equal(shop.answer(), first)


def test_a_model_that_is_gone_is_not_switched_to(filled: Filled) -> None:
    shop, first, _ = filled(PLANNED_FILE)
    artifacts = shop.repo.root / "home" / "artifacts"
    artifacts.rename(artifacts.with_name("away"))
    with pytest.raises(StepError, match="ArtifactNotFoundError"):
        shop.llmrec("promote")
    artifacts.with_name("away").rename(artifacts)
    assert _equal(shop.answer(), first)


def test_without_the_setting_rollouts_are_refused_and_say_which(new_repo: Callable[..., Repo]) -> None:
    shop = Shop(new_repo("off"), "file", "planned", "false")
    shop.start()
    for command in ("status", "promote", "rollback", "clean"):
        with pytest.raises(StepError, match="enable_online_feature_view_versioning: true"):
            shop.llmrec(command)
    shop.declare_next(seed=1)
    assert shop.answer()[0] == [None] * len(ITEMS)  # as ever: null, never a vector of the other model


def test_a_process_without_the_setting_does_not_read_rows_of_another_version(filled: Filled) -> None:
    shop, _, _ = filled(PLANNED_FILE)
    shop.llmrec("promote")
    shop.configure("file", "planned", "false")
    for reads in (lambda: shop.answer(), lambda: shop.repo.feast("apply")):
        with pytest.raises(StepError, match="Set it to true again"):
            reads()


def test_a_store_that_keeps_no_versions_is_refused(new_repo: Callable[..., Repo]) -> None:
    shop = Shop(new_repo("plain"), "file", "unplanned")
    configuration = shop.repo.folder / "feature_store.yaml"
    (shop.repo.folder / "plain_store.py").write_text(
        "from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig\n\n\n"
        "class PlainOnlineStoreConfig(SqliteOnlineStoreConfig):\n    type: str = 'plain_store.PlainOnlineStore'\n\n\n"
        "class PlainOnlineStore(SqliteOnlineStore):\n"
        "    def _is_versioned_read_supported(self):\n        return False\n"
    )
    configuration.write_text(configuration.read_text().replace(STORES["unplanned"], "plain_store.PlainOnlineStore"))
    shop.repo.export()
    shop.repo.declare()
    with pytest.raises(StepError, match="PlainOnlineStore keeps the rows of all versions in one table"):
        shop.repo.feast("apply", PYTHONPATH=str(shop.repo.folder))


def test_every_entity_is_counted_once_whatever_its_keys(new_repo: Callable[..., Repo]) -> None:
    found = new_repo("keys").call("rollout_steps:distinct_keys")
    assert found == {
        "rows": [[["shop", "user"], shop, user] for shop, user in (("a", 1), ("b", 1), ("b", 2))],
        "none": [],
    }
