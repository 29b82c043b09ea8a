"""The golden texts of a model are computed before its first value is given out, in every process."""

import subprocess
import sys

import numpy as np
import pytest
import samples
from tiny import export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import bind
from llmrec_plugin.errors import ParityError
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.generation import session as generation
from llmrec_plugin.runtime.runner import Runner
from llmrec_plugin.runtime.session import OnnxSession
from llmrec_plugin.testing.tiny import add_tiny_generator

TITLES = ["red web server", "a fast python library", "blue", "font " * 30, "", "unknown words", "big game"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    store = ArtifactStore([tmp_path_factory.mktemp("artifacts")])
    export_tiny(store)
    add_tiny_generator(store, name="writer")
    return store.folders[0]


@pytest.mark.parametrize("mode", ["batch", "on_demand", "historical", "push"])
@pytest.mark.parametrize("drift", [0.05, np.nan, np.inf])
def test_a_library_that_computes_otherwise_serves_nothing(folder, tmp_path, monkeypatch, mode, drift):
    run = OnnxSession.run
    shift = np.float32(drift) * np.array([1, -1] * 4, dtype=np.float32)
    monkeypatch.setattr(OnnxSession, "run", lambda self, batch: run(self, batch) + shift)
    runner = Runner(samples.settings(tmp_path, artifact_folders=(folder,)))
    with pytest.raises(ParityError, match="computes other numbers than the model did at export"):
        runner.compute(bind(samples.embedding(), runner.store), {"title": TITLES}, mode)
    runner.drain()
    assert runner.cache.size() == (0, 0)


@pytest.mark.parametrize("mode", ["batch", "on_demand"])
def test_a_library_that_writes_otherwise_serves_nothing(folder, tmp_path, monkeypatch, mode):
    opened = generation._open

    class Otherwise:
        def __init__(self, *arguments):
            self.session = opened(*arguments)
            self.get_inputs, self.get_providers = self.session.get_inputs, self.session.get_providers
            self.get_outputs = self.session.get_outputs

        def run(self, *arguments):
            return [-self.session.run(*arguments)[0], *self.session.run(*arguments)[1:]]

    monkeypatch.setattr(generation, "_open", Otherwise)
    runner = Runner(samples.settings(tmp_path, artifact_folders=(folder,)))
    with pytest.raises(ParityError, match=r"golden prompt .* gives the tokens"):
        runner.compute(bind(samples.written(), runner.store), {"title": TITLES}, mode)
    runner.drain()
    assert runner.cache.size() == (0, 0)


def test_the_golden_texts_are_the_first_that_a_process_computes(folder, tmp_path, monkeypatch):
    seen = []
    encode = Encoder._encode
    monkeypatch.setattr(
        Encoder,
        "_encode",
        lambda self, opened, texts, *more: seen.append(list(texts)) or encode(self, opened, texts, *more),
    )
    runner = Runner(samples.settings(tmp_path, artifact_folders=(folder,)))
    bound = bind(samples.embedding(), runner.store)
    for _ in range(2):
        runner.compute(bound, {"title": ["red"]}, "batch")
        runner.cache.close()
        (tmp_path / "cache" / "values.sqlite").unlink(missing_ok=True)
    golden = list(runner.store.current("tiny").manifest.golden_texts)
    assert seen[:2] == [golden, ["red"]]
    assert seen.count(golden) == 1


VALUES = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import samples
from llmrec_plugin.binding import bind
from llmrec_plugin.runtime.runner import Runner
runner = Runner(samples.settings(Path(sys.argv[2]), artifact_folders=(Path(sys.argv[3]),)))
titles = sys.argv[4].split(",")
for feature in (samples.embedding(), samples.written()):
    for mode in ("batch", "on_demand"):
        computed = runner.compute(bind(feature, runner.store), {"title": titles}, mode)
        bits = [value.tobytes() if hasattr(value, "tobytes") else repr(value).encode() for value in computed.values]
        print(mode, *(hashlib.sha256(item).hexdigest() for item in bits))
runner.drain()
"""


def test_a_restart_changes_no_bit(folder, tmp_path, request):
    """Each process has an empty cache of its own; their hash seeds differ."""
    found = []
    for number in range(2):
        command = [sys.executable, "-c", VALUES, request.config.rootpath / "tests", tmp_path / str(number), folder]
        done = subprocess.run([*command, ",".join(TITLES)], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines())
    assert found[0] == found[1]
    assert len(found[0]) == 4
    for batch, on_demand in (found[0][:2], found[0][2:]):
        assert batch.split()[1:] == on_demand.split()[1:]
