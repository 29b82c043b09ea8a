"""Redaction and noise of networks, through export and runtime."""

from __future__ import annotations

import numpy as np
import pytest
from samples import settings

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import bind
from llmrec_plugin.errors import SettingsError
from llmrec_plugin.keys import NoiseKey
from llmrec_plugin.privacy import sigma
from llmrec_plugin.runtime.runner import Runner
from llmrec_plugin.specs import GaussianNoise, NetworkFeature, Redaction

pytest.importorskip("torch", reason="the export extra is not installed")

from tiny_networks import DIMS, declare_network

from llmrec_plugin.export import export_network

SECRET = bytes(range(5, 37))
NOISE = GaussianNoise(clip_norm=1.0, epsilon=5.0, delta=1e-6, user="user_key", key_id=NoiseKey(SECRET).id)
ROWS = {
    "events": [["i1", "i2"], ["i1", "i2"], ["new"], None, ["i3"], ["i4"]],
    "user_key": ["u1", "u2", "u3", "u4", 5, None],
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    store = ArtifactStore([folder / "artifacts"])
    for kind in ("history", "text"):
        export_network(declare_network(folder / kind, kind), store)
    return folder / "artifacts"


@pytest.fixture
def new_runner(artifacts, tmp_path):
    return lambda name="cache": Runner(settings(tmp_path / name, artifact_folders=(artifacts,)))


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("LLMREC_NOISE_KEY", SECRET.hex())


def user_vector(**changes):
    return NetworkFeature(
        **{
            "name": "user_vector", "entity": "user", "model": "history", "inputs": {"history": "events"}, "dims": DIMS,
            "metric": "cosine", "on_empty": "zeros", **changes,
        }
    )  # fmt: skip


def test_vectors_of_a_network_are_private_and_the_same_in_every_mode(new_runner, monkeypatch):
    runner = new_runner()
    bound = bind(user_vector(noise=NOISE), runner.store)
    values = runner.compute(bound, ROWS, "batch").values
    plain = new_runner("plain").compute(bind(user_vector(), runner.store), ROWS, "batch").values
    assert np.array_equal(plain[0], plain[1])
    assert len({value.tobytes() for value in values[:5]}) == 5
    assert values[5] is None
    norms = np.linalg.norm(np.stack(plain[:5]), axis=1, keepdims=True)
    away = np.stack(values[:5]) - np.stack(plain[:5]) / np.maximum(norms, 1)
    assert 0.5 < away.std() / sigma(NOISE) < 1.6
    for mode in ("on_demand", "historical"):
        other = new_runner(mode)
        again = other.compute(bound, ROWS, mode).values
        other.drain()
        np.testing.assert_allclose(np.stack(again[:5]), np.stack(values[:5]), atol=1e-6)
    monkeypatch.delenv("LLMREC_NOISE_KEY")
    with pytest.raises(SettingsError, match="not set"):
        runner.load(bound)


def test_texts_of_a_network_are_redacted_before_they_are_known(new_runner):
    runner = new_runner()
    feature = NetworkFeature(
        name="item_vector", entity="item", model="text", inputs={"text": "{title}"}, dims=DIMS, metric="dot",
        redact=Redaction(email=True),
    )  # fmt: skip
    computed = runner.compute(bind(feature, runner.store), {"title": ["red a@b.org", "red c@d.org", "red"]}, "batch")
    assert computed.report.computed == 2
    assert np.array_equal(computed.values[0], computed.values[1])
    assert not np.array_equal(computed.values[0], computed.values[2])
