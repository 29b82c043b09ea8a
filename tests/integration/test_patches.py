"""Each mend of `llmrec_plugin.feast.patches`: our view behaves, and stock Feast still does not.

A test of the stock view that fails is good news: its message says which mend to drop.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from integration.host import Finished, Processes, Repo, StepError
from integration.versions import since_feast_0_67

pytestmark = [pytest.mark.feast, since_feast_0_67]

SQLITE_BY_PATH = "feast.infra.online_stores.sqlite.SqliteOnlineStore"
"""The same store under another name: Feast's commands then go the way of every other store, without a plan."""

CONFIGURATION = """
project: test
provider: local
registry: {{{registry}, serve_features_while_materializing: true}}
online_store: {{type: {online}, path: data/online.db}}
materialization: {{pull_latest_features: true, online_write_batch_size: 1000}}
entity_key_serialization_version: 3
"""
REGISTRIES = {"file": "path: data/registry.db", "sql": "registry_type: sql, path: sqlite:///data/registry.sqlite"}
STORES = {"planned": "sqlite", "unplanned": SQLITE_BY_PATH}

STOCK_FEATURES = """
from datetime import timedelta

from feast import BatchFeatureView, Entity, Field, FileSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64, String

item = Entity(name="item", join_keys=["item"])
items = FileSource(
    name="items", path="data/items.parquet", timestamp_field="event_timestamp", created_timestamp_column="created"
)


def size(frame):
    return frame[["item", "event_timestamp", "created"]].assign(size={value}, more=0)


VIEW = BatchFeatureView(
    name="stock",
    mode="python",
    source=items,
    entities=[item],
    ttl=timedelta(days=36_500),
    schema=[Field(name="item", dtype=String), Field(name="size", dtype=Int64), {more}],
    online=True,
    udf=size,
    udf_string='''
def size(frame):
    return frame[["item", "event_timestamp", "created"]].assign(size={value}, more=0)
''',
)


@on_demand_feature_view(sources=[VIEW], schema=[Field(name="double", dtype=Int64)], mode="python")
def double(inputs):
    return {{"double": [None if size is None else 2 * size for size in inputs["size"]]}}
"""
ROWS = [
    {"item": f"i{number}", "title": title, "at": datetime.datetime(2026, 1, 1 + number, tzinfo=datetime.UTC)}
    for number, title in enumerate(["red web server", "green font", "fast python library"])
]
WHOLE = ["2025-01-01", "2026-03-01"]
OTHER = ["2025-06-01", "2026-06-01"]


@dataclass(frozen=True)
class Seen:
    """What was seen after one step."""

    printed: Finished
    version: int | None
    intervals: list[Any]
    transformation: str
    values: list[Any]


class Scenario:
    """A repo with one registry and store, and the steps taken in it."""

    def __init__(self, repo: Repo, registry: str, store: str, view: str, column: str) -> None:
        self.repo, self.view, self.column = repo, view, column
        text = CONFIGURATION.format(registry=REGISTRIES[registry], online=STORES[store])
        (repo.folder / "feature_store.yaml").write_text(text)
        repo.write_items(ROWS)

    def take(self, *arguments: str) -> Seen:
        printed = self.repo.processes.feast(*arguments, folder=self.repo.folder, environ=self.repo.environ)
        about = self.repo.call("steps:describe", view=self.view)
        answer = self.repo.online([f"{self.view}:{self.column}"], [{"item": row["item"]} for row in ROWS])
        return Seen(printed, about["version"], about["intervals"], about["transformation"], answer[self.column])


@pytest.fixture(scope="module", params=["planned-file", "unplanned-file", "planned-sql", "unplanned-sql"])
def ours(request: pytest.FixtureRequest, new_repo: Callable[..., Repo]) -> dict[str, Seen]:
    store, registry = request.param.split("-")
    repo = new_repo(request.param)
    scenario = Scenario(repo, registry, store, "item_text_embedding", "item_text_embedding")
    repo.export()
    repo.declare()
    seen = {"applied": scenario.take("apply"), "materialized": scenario.take("materialize", *WHOLE)}
    seen["again"] = scenario.take("apply")
    repo.declare(template="{title}")
    seen["plan"] = scenario.take("plan")
    seen["changed"] = scenario.take("apply")
    seen["changed again"] = scenario.take("apply")
    return seen


def _stock(
    new_repo: Callable[[str], Repo], registry: str, store: str, *, versions: bool = False
) -> tuple[Scenario, Callable[..., None]]:
    repo = new_repo(f"stock-{registry}-{store}")
    scenario = Scenario(repo, registry, store, "stock", "size")
    if versions:
        configuration = repo.folder / "feature_store.yaml"
        text = configuration.read_text().replace("serve_", "enable_online_feature_view_versioning: true, serve_")
        configuration.write_text(text)

    def declare(value: int, more: bool = False) -> None:
        text = STOCK_FEATURES.format(value=value, more='Field(name="more", dtype=Int64)' if more else "")
        (repo.folder / "features.py").write_text(text)

    declare(1)
    repo.feast("apply")
    materialized = scenario.take("materialize", *WHOLE)
    assert materialized.intervals == [WHOLE]
    assert materialized.values == [1, 1, 1]
    return scenario, declare


@pytest.fixture(scope="module")
def new_stock_repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Repo]]:
    """Makes an empty repo whose processes never import llmrec_plugin, unless a step does."""
    processes = Processes(tmp_path_factory.mktemp("stock"), stock=True)
    yield lambda name: Repo(tmp_path_factory.mktemp(name), processes)
    processes.close()


@pytest.fixture(scope="module")
def stock(new_stock_repo: Callable[[str], Repo]) -> dict[str, Seen]:
    """A plain batch view over a file."""
    planned, declare = _stock(new_stock_repo, "file", "planned")
    declare(2)
    seen = {"plan": planned.take("plan"), "planned apply": planned.take("apply")}

    unplanned, declare = _stock(new_stock_repo, "file", "unplanned")
    declare(2)
    seen["udf changed"] = unplanned.take("apply")
    declare(3, more=True)
    seen["udf and schema changed"] = unplanned.take("apply")
    seen["changed again"] = unplanned.take("apply")

    in_sql, _ = _stock(new_stock_repo, "sql", "unplanned")
    seen["sql again"] = in_sql.take("apply")

    return seen


@pytest.fixture(scope="module")
def stock_versions(new_stock_repo: Callable[[str], Repo]) -> dict[str, Any]:
    """The same, with versions kept side by side."""
    seen: dict[str, Any] = {}
    versioned, declare = _stock(new_stock_repo, "file", "unplanned", versions=True)
    declare(2, more=True)
    seen["version served at once"] = versioned.take("apply")
    seen["version 1 filled"] = versioned.take("materialize", *WHOLE)
    seen["version 0 filled"] = versioned.take("materialize", *OTHER, "--views", "stock", "--version", "v0")
    seen["copy"] = versioned.repo.call("rollout_steps:copied_version", view="stock")
    seen["in place"] = versioned.repo.call("rollout_steps:registry_is_written_in_place")
    seen["looked up"] = versioned.repo.call("rollout_steps:look_up_during_a_switch", odfv="double")
    seen["refreshes"] = {
        ours: versioned.repo.call("rollout_steps:refreshes_after_one_that_failed", ours=ours) for ours in (False, True)
    }

    versioned, declare = _stock(new_stock_repo, "sql", "unplanned", versions=True)
    declare(2, more=True)
    seen["not promoted"] = versioned.take("apply", "--no-promote")
    return seen


def test_a_planning_and_applying_a_changed_transformation_works(ours: dict[str, Seen]) -> None:
    for step in ("plan", "changed"):
        ours[step].printed.succeeded()
    assert "Updated feature view item_text_embedding" in ours["plan"].printed.output


def test_a_stock_feast_still_crashes_on_a_changed_transformation(stock: dict[str, Seen]) -> None:
    for step in ("plan", "planned apply"):
        assert stock[step].printed.status != 0, "upstream mended A: drop the patch of diff_registry_objects"
        assert 'has no "user_defined_function" field' in stock[step].printed.output


def test_b_a_change_of_the_transformation_alone_is_seen(ours: dict[str, Seen]) -> None:
    assert "{title}. {note}" in ours["plan"].transformation
    assert "{title}. {note}" not in ours["changed"].transformation
    assert '"text": "{title}"' in ours["changed"].transformation


def test_b_stock_feast_still_ignores_a_change_of_the_transformation_alone(stock: dict[str, Seen]) -> None:
    stock["udf changed"].printed.succeeded()
    assert "size=1" in stock["udf changed"].transformation, (
        "upstream mended B: drop __eq__ and _schema_or_udf_changed of LLMBatchFeatureView"
    )


def test_c_the_watermark_goes_with_the_old_transformation(ours: dict[str, Seen]) -> None:
    assert ours["plan"].intervals == [WHOLE]
    assert ours["changed"].intervals == []


def test_c_stock_feast_still_keeps_the_watermark(stock: dict[str, Seen]) -> None:
    stock["udf and schema changed"].printed.succeeded()
    assert "size=3" in stock["udf and schema changed"].transformation
    assert stock["udf and schema changed"].intervals == [WHOLE], (
        "upstream mended C: drop update_materialization_intervals of LLMBatchFeatureView"
    )


def test_d_an_apply_without_change_keeps_the_watermark(ours: dict[str, Seen]) -> None:
    ours["again"].printed.succeeded()
    assert ours["materialized"].intervals == ours["again"].intervals == [WHOLE]


def test_d_stock_feast_still_forgets_the_watermark_in_a_sql_registry(stock: dict[str, Seen]) -> None:
    stock["sql again"].printed.succeeded()
    assert stock["sql again"].intervals == [], "upstream mended D: drop the patch of deserialize_registry_values"


def test_e_an_apply_without_change_keeps_the_version(ours: dict[str, Seen]) -> None:
    # Feast's SQL registry counts no version when the transformation alone changed; the file registry does.
    assert ours["changed"].version in (1, None)
    assert ours["changed again"].version == ours["changed"].version
    assert ours["again"].version == ours["applied"].version


def test_e_stock_feast_still_resets_the_version(stock: dict[str, Seen]) -> None:
    assert stock["udf and schema changed"].version == 1
    assert stock["changed again"].version != 1, (
        "upstream mended E: drop the copy of current_version_number in LLMBatchFeatureView"
    )


def test_f_reads_go_on_while_a_view_is_being_materialized_under_the_documented_setting(
    new_repo: Callable[..., Repo],
) -> None:
    repo = new_repo("materializing")
    scenario = Scenario(repo, "file", "planned", "item_text_embedding", "item_text_embedding")
    repo.export()
    repo.declare()
    repo.feast("apply")
    before = scenario.take("materialize", *WHOLE)
    # What a run that is under way, or was killed, leaves in the registry.
    assert scenario.take("feature-views", "set-state", "item_text_embedding", "MATERIALIZING").values == before.values
    assert None not in before.values

    configuration = repo.folder / "feature_store.yaml"
    configuration.write_text(configuration.read_text().replace("serve_features_while_materializing: true", ""))
    with pytest.raises(StepError, match="cannot serve features"):  # else the setting is not needed any more
        repo.vectors([row["item"] for row in ROWS])


def test_g_rows_of_the_old_transformation_are_not_served(ours: dict[str, Seen]) -> None:
    assert ours["applied"].values == [None] * len(ROWS)
    assert None not in ours["materialized"].values
    assert ours["materialized"].values == ours["again"].values == ours["plan"].values
    assert ours["changed"].values == ours["changed again"].values == [None] * len(ROWS)


def test_g_stock_feast_still_serves_rows_of_the_old_transformation(stock: dict[str, Seen]) -> None:
    assert stock["udf and schema changed"].values == [1] * len(ROWS), (
        "upstream mended G: drop the patches of FeatureStore.apply and _apply_diffs"
    )


def test_h_stock_feast_still_serves_a_new_version_from_an_empty_table(stock_versions: dict[str, Any]) -> None:
    assert stock_versions["version served at once"].version == 1
    assert stock_versions["version served at once"].values == [None] * len(ROWS), (
        "upstream mended H: drop the patch of apply_feature_view"
    )


def test_h_stock_feast_still_promotes_in_a_sql_registry_what_is_not_to_be_promoted(
    stock_versions: dict[str, Any],
) -> None:
    stock_versions["not promoted"].printed.succeeded()
    assert "size=2" in stock_versions["not promoted"].transformation, (
        "upstream mended a part of H: --no-promote keeps what is served"
    )


def test_i_stock_feast_still_moves_the_watermark_of_the_served_version(stock_versions: dict[str, Any]) -> None:
    assert stock_versions["version 1 filled"].version == 1
    stock_versions["version 0 filled"].printed.succeeded()
    assert stock_versions["version 0 filled"].intervals[-1] == OTHER, (
        "upstream mended I: drop the patch of apply_materialization"
    )


def test_j_stock_feast_still_writes_the_registry_file_in_place(
    stock_versions: dict[str, Any], new_repo: Callable[..., Repo]
) -> None:
    assert stock_versions["in place"], "upstream mended J: drop the patch of FileRegistryStore"
    repo = new_repo("replaced")
    repo.write_items(ROWS)
    repo.export()
    repo.declare()
    repo.feast("apply")
    assert not repo.call("rollout_steps:registry_is_written_in_place")
    assert sorted(path.name for path in (repo.folder / "data").glob("registry*")) == ["registry.db", "registry.db.lock"]


def test_k_stock_feast_still_forgets_the_version_of_a_copy(stock_versions: dict[str, Any]) -> None:
    assert stock_versions["copy"] is None, "upstream mended K: drop the patch of BatchFeatureView.__copy__"


def test_l_stock_feast_still_looks_up_the_views_of_a_request_one_by_one(stock_versions: dict[str, Any]) -> None:
    assert stock_versions["looked up"] == ["", "after"], "upstream mended L: drop the patches of feast.utils"


def test_m_stock_feast_still_gives_up_a_registry_that_was_away_once(stock_versions: dict[str, Any]) -> None:
    assert stock_versions["refreshes"][False] == 0, "upstream mended M: drop the patches of refreshes"
    assert stock_versions["refreshes"][True] > 0
