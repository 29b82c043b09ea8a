"""Networks as values: equal to the bit in any batch, cached, late, damaged."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from samples import embedding, settings
from tiny import export_tiny

from llmrec_plugin import NetworkFeature
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import bind
from llmrec_plugin.errors import ArtifactCorruptError, ParityError
from llmrec_plugin.pipeline.networks import read_rows
from llmrec_plugin.runtime import models as module
from llmrec_plugin.runtime.networks import LoadedNetwork
from llmrec_plugin.runtime.runner import Runner

pytest.importorskip("torch", reason="the export extra is not installed")

from tiny_networks import declare_network, png

from llmrec_plugin.export import export_network

KINDS = ("history", "adaptor", "score", "text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    store = ArtifactStore([folder / "artifacts"])
    export_tiny(store)
    for kind in KINDS:
        export_network(declare_network(folder / kind, kind), store)
    return folder / "artifacts"


@pytest.fixture
def new_runner(tmp_path, folder):
    return lambda **changes: Runner(settings(tmp_path, **{"artifact_folders": (folder,), **changes}))


def feature(kind, inputs, **changes):
    number = kind == "score"
    start = {"name": f"some_{kind}", "entity": "row", "model": kind, "inputs": inputs}
    values = {"dims": None, "metric": None} if number else {"dims": 8, "metric": "dot" if kind == "text" else "cosine"}
    return NetworkFeature(**start | values | changes)


def rows_of(kind, count):
    generator = np.random.default_rng(1)
    if kind == "history":
        return {"a": [[f"i{k}" for k in generator.integers(1, 21, 1 + n % 15)] for n in range(count)]}
    if kind == "adaptor":
        return {"a": list(generator.standard_normal((count, 8)).astype(np.float32))}
    if kind == "text":
        words = ["red", "green", "web", "server", "font", "math", "unknown"]
        return {"a": [" ".join(generator.choice(words, 1 + n % 13)) for n in range(count)]}
    return {
        "a": [f"u{1 + n % 3}" for n in range(count)],
        "b": [generator.standard_normal(4 * (1 + n % 5)).astype(np.float32) for n in range(count)],
        "c": generator.standard_normal(count).tolist(),
    }


def inputs_of(kind):
    return {"history": {"history": "a"}, "adaptor": {"vector": "a"}, "text": {"text": "a"}}.get(
        kind, {"user": "a", "reviews": "b", "price": "c"}
    )


def bits(values):
    return [value if value is None or isinstance(value, float) else value.tobytes() for value in values]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_has_the_same_bits_alone_and_in_any_batch(new_runner, tmp_path, kind, threads):
    runner = new_runner(threads=threads)
    bound = bind(feature(kind, inputs_of(kind)), runner.store)
    columns = rows_of(kind, 150)
    together = bits(runner.compute(bound, columns, "batch").values)
    assert None not in together
    assert len(set(together)) > 50
    alone = new_runner(cache_folder=tmp_path / "alone")
    some = [*range(0, 150, 7), 149]
    for number in some:
        one = {name: [cells[number]] for name, cells in columns.items()}
        assert bits(alone.compute(bound, one, "on_demand").values) == [together[number]]
    shuffled = np.random.default_rng(2).permutation(150)[:61].tolist()
    other = new_runner(cache_folder=tmp_path / "shuffled")
    mixed = {name: [cells[number] for number in shuffled] for name, cells in columns.items()}
    assert bits(other.compute(bound, mixed, "historical").values) == [together[number] for number in shuffled]
    alone.drain()


def test_what_is_known_needs_no_graph(new_runner, monkeypatch):
    runner = new_runner()
    bound = bind(feature("history", inputs_of("history")), runner.store)
    cells = [["i1", "i2"], ["i1", "i2"], ["i1", "i2", "unknown"], ["i3"], None, "i1", []]
    first = runner.compute(bound, {"a": cells}, "batch")
    assert first.statuses == ["ok"] * 4 + ["empty", "invalid", "empty"]
    report = first.report
    assert (report.rows, report.texts, report.computed, report.cached) == (7, 2, 2, 0)
    assert (report.empty, report.invalid) == (2, 1)
    monkeypatch.setattr(module, "LoadedNetwork", lambda *_: pytest.fail("a graph was loaded"))
    for mode in ("batch", "on_demand", "historical", "push"):
        again = new_runner().compute(bound, {"a": cells}, mode)
        assert bits(again.values) == bits(first.values)
        assert again.report.computed == 0


def test_numbers_and_stand_ins(new_runner):
    runner = new_runner()
    columns = {"a": ["u1", None, "u1"], "b": [[1.0] * 4, [1.0] * 4, [1.0] * 3], "c": [1.0, 1.0, 1.0]}
    for on_empty, expected in (("null", None), ("zeros", 0.0)):
        bound = bind(feature("score", inputs_of("score"), on_empty=on_empty), runner.store)
        computed = runner.compute(bound, columns, "batch")
        assert computed.statuses == ["ok", "empty", "invalid"]
        assert isinstance(computed.values[0], float)
        assert computed.values[1:] == [expected, None]
    vector = bind(feature("history", {"history": "a"}, on_empty="zeros"), runner.store)
    assert runner.compute(vector, {"a": [None]}, "batch").values[0].tolist() == [0.0] * 8


def test_an_embedding_feature_is_computed_on_the_way_and_once(new_runner):
    runner = new_runner()
    part = embedding(name="item_title")
    bound = bind(feature("adaptor", {"vector": part}), runner.store)
    titles = ["red web server", None, "  ", b"bytes", "red web server", "big font"]
    computed = runner.compute(bound, {"title": titles}, "batch")
    assert computed.statuses == ["ok", "empty", "empty", "invalid", "ok", "ok"]
    assert (computed.report.texts, computed.report.computed) == (4, 4)  # two texts, two vectors
    encoded = runner.compute(bind(part, runner.store), {"title": titles}, "batch")
    assert encoded.report.computed == 0
    direct = bind(feature("adaptor", {"vector": "v"}), runner.store)
    same = runner.compute(direct, {"v": encoded.values}, "batch")
    assert bits(same.values) == bits(computed.values)
    assert same.report.computed == 0


def test_a_row_that_is_late_falls_back_and_is_kept(new_runner, monkeypatch):
    compute = LoadedNetwork.compute

    def slow(self, rows):
        time.sleep(0.3)
        return compute(self, rows)

    runner = new_runner()
    bound = bind(feature("history", {"history": "a"}, deadline_ms=20, on_deadline="zeros"), runner.store)
    runner.load(bound)
    monkeypatch.setattr(LoadedNetwork, "compute", slow)
    started = time.monotonic()
    late = runner.compute(bound, {"a": [["i1"], None]}, "on_demand")
    assert time.monotonic() - started < 0.25
    assert late.statuses == ["fallback", "empty"]
    assert late.values[0].tolist() == [0.0] * 8
    runner.drain()
    assert new_runner().compute(bound, {"a": [["i1"]]}, "on_demand").statuses == ["ok"]
    late = bind(feature("adaptor", {"vector": embedding()}, deadline_ms=1), runner.store)
    assert late.timed_parts[0][1].feature.deadline_ms == 1


def test_a_damaged_picture_fails_no_other(tmp_path):
    pytest.importorskip("PIL", reason="needs the extra 'images'")
    store = ArtifactStore([tmp_path / "artifacts"])
    export_network(declare_network(tmp_path / "picture", "picture"), store)
    runner = Runner(settings(tmp_path, artifact_folders=store.folders))
    bound = bind(
        NetworkFeature(name="cover", entity="item", model="picture", inputs={"picture": "a"}, dims=8, metric="dot"),
        store,
    )
    good = png(40, 30)
    cells = [good, good[:60], b"no picture", None, png(16, 16, "L"), good]
    for mode in ("batch", "on_demand"):
        computed = runner.compute(bound, {"a": cells}, mode)
        assert computed.statuses == ["ok", "invalid", "invalid", "empty", "ok", "ok"]
        assert bits(computed.values)[0] == bits(computed.values)[5]
        assert "input 'picture'" in computed.invalid[1]
    runner.drain()


def test_a_damaged_artifact_is_not_used(new_runner, folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    store = ArtifactStore([tmp_path / "copy"])
    bound = bind(feature("history", {"history": "a"}), store)
    new_runner(artifact_folders=store.folders).compute(bound, {"a": [["i1"], ["i20"]]}, "batch")  # both are now cached
    path = store.get_network("history", bound.artifact_id).path("vocabulary.items.json")
    keys = json.loads(path.read_text())
    for content in (json.dumps(keys[::-1]), "{"):  # the first would give each row the other's value
        path.write_text(content)
        with pytest.raises(ArtifactCorruptError, match=r"vocabulary.items.json .*expected sha256"):
            new_runner(artifact_folders=store.folders).compute(bound, {"a": [["i1"]]}, "batch")


def test_a_graph_that_computes_something_else_is_not_used(folder, tmp_path, monkeypatch):
    store = ArtifactStore([folder])
    artifact = store.get_network("adaptor", store.current_id("adaptor"))
    LoadedNetwork(artifact, settings(tmp_path))
    run = LoadedNetwork._run
    monkeypatch.setattr(LoadedNetwork, "_run", lambda self, batch: run(self, batch) + 1e-3)
    with pytest.raises(ParityError, match="golden value is off by"):
        LoadedNetwork(artifact, settings(tmp_path))
    monkeypatch.setattr(LoadedNetwork, "_run", lambda self, batch: run(self, batch) * np.nan)
    with pytest.raises(ParityError, match="off by inf"):
        LoadedNetwork(artifact, settings(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_memory_is_halved_and_gives_the_same_bits(folder, tmp_path, monkeypatch, kind):
    store = ArtifactStore([folder])
    network = LoadedNetwork(store.get_network(kind, store.current_id(kind)), settings(tmp_path))
    columns = rows_of(kind, 40)
    rows = [row for row in read_rows(kind, network._inputs, inputs_of(kind), columns, network.vocabularies).rows if row]
    expected = network.compute(rows)
    run, tried = LoadedNetwork._run, []

    def limited(self, batch):
        tried.append(len(next(iter(batch.values()))))
        if tried[-1] > 3:
            raise MemoryError
        return run(self, batch)

    monkeypatch.setattr(LoadedNetwork, "_run", limited)
    found = network.compute(rows)
    assert max(tried) > 3
    assert [value.value.tobytes() for value in found] == [value.value.tobytes() for value in expected]


def test_a_value_that_is_not_finite_is_invalid(new_runner, monkeypatch):
    runner = new_runner()
    bound = bind(feature("adaptor", {"vector": "a"}), runner.store)
    runner.load(bound)
    run = LoadedNetwork._run
    monkeypatch.setattr(LoadedNetwork, "_run", lambda self, batch: run(self, batch) * np.inf)
    computed = runner.compute(bound, {"a": [[1.0] * 8]}, "on_demand")
    assert computed.statuses == ["invalid"]
    assert "not finite" in computed.invalid[0]
    runner.drain()
    assert runner.cache.size()[0] == 0
