"""What must not be seen is planted, everything that was written and said is searched."""

import json
import logging
import os
import traceback
from dataclasses import replace

import numpy as np
import pytest
import samples
from tiny import export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import bind, to_values
from llmrec_plugin.errors import LLMRecError
from llmrec_plugin.pipeline.outputs import InvalidOutput, parse
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.runner import Runner
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import Choice, Json, ShortText, Tags
from llmrec_plugin.systems.openai_chat.configuration import load_endpoint_settings
from llmrec_plugin.systems.remote.configuration import load_remote_settings
from llmrec_plugin.testing.tiny import add_tiny_generator

MARKER = "Zyxwv marker"
KEYS = {
    "LLMREC_REMOTE_KEY": "sk-planted-remote-4711",
    "LLMREC_OPENAI_KEY": "sk-planted-openai-4712",
    "LLMREC_OPENAI_EXTRA": '{"secret_field": "planted-extra-4713"}',
    "LLMREC_NOISE_KEY": "4714" * 16,
    "LLMREC_CACHE_KEY": bytes(range(47, 79)).hex(),
}
CLOSED = "http://127.0.0.1:9"  # the discard port; nobody listens


def everything(folder, caplog, capsys, *more):
    """All that was logged, printed and written below a folder, and `more`, as one text."""
    files = [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    output = capsys.readouterr()
    return "\n".join([caplog.text, output.out, output.err, *files, *map(str, more)])


def cells():
    """Titles with the marker in them: sound, in lists, and of types that cannot be read."""
    return [MARKER, f"red {MARKER}", [MARKER, "web"], {"a": MARKER}, MARKER.encode(), [{"a": [MARKER]}], object()]


@pytest.fixture
def settings(tmp_path):
    store = ArtifactStore([tmp_path / "artifacts"])
    export_tiny(store)
    add_tiny_generator(store, name="writer")
    return samples.settings(tmp_path, artifact_folders=store.folders, progress=True)


def run_all(settings, modes=("batch", "on_demand", "historical", "push")):
    """Runs features of every kind over the marker; gives what came with the values, values apart."""
    said = []
    for mode in modes:
        runner = Runner(settings)
        outputs = (ShortText(), Tags(vocabulary=("web", "game")), Choice(options=("yes", "no")))
        features = [samples.embedding(), samples.written(output=outputs[0])]
        features += [samples.written(name=f"written_{n}", output=output) for n, output in enumerate(outputs)]
        for feature in features:
            bound = bind(feature, runner.store)
            computed = runner.compute(bound, {"title": cells()}, mode)
            said += [computed.report, computed.invalid, dict(computed.unanswered), to_values(bound)]
        history = bind(samples.history(), runner.store)
        computed = runner.compute(history, {"events": [[MARKER], MARKER, {"a": MARKER}]}, mode)
        said += [computed.report, computed.invalid]
        runner.drain()
        runner.cache.close()
    return said


def test_texts_of_rows_are_in_no_log_report_message_or_file(settings, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    said = run_all(settings)
    found = everything(tmp_path, caplog, capsys, *said)
    assert "could not be read" in caplog.text
    assert "shown with LLMREC_LOG_TEXTS=1" in found
    assert "Zyxwv" not in found


def test_texts_are_shown_to_who_asks(settings, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setenv("LLMREC_LOG_TEXTS", "1")
    run_all(settings, ["batch"])
    assert MARKER in caplog.text


def test_a_failing_engine_tells_no_text(settings, tmp_path, caplog, capsys, monkeypatch):
    caplog.set_level(logging.DEBUG)
    runner = Runner(settings)
    bound = bind(samples.embedding(), runner.store)
    runner.load(bound)

    def fail(self, *arguments):
        raise RuntimeError("kernel failed")

    monkeypatch.setattr(Encoder, "_run", fail)
    monkeypatch.setattr(type(runner.models.encoder(bound, "online")._opened.session), "run", fail)
    said = []
    for mode in ("batch", "on_demand"):
        with pytest.raises(Exception, match="kernel failed") as caught:
            runner.compute(bound, {"title": [MARKER, f"{MARKER} 2"]}, mode)
        said.append(traceback.format_exception(caught.value))
    runner.drain()
    assert "encoding failed for" in caplog.text
    assert "Zyxwv" not in everything(tmp_path, caplog, capsys, *said)


@pytest.mark.parametrize(
    "output",
    [
        Choice(options=("yes", "no")),
        Tags(vocabulary=("web",)),
        ShortText(prefix="Answer:"),
        ShortText(min_chars=400),
        Json(schema=json.dumps({"type": "object", "required": ["b"]})),
        Json(schema=json.dumps({"properties": {"a": {"enum": ["x"]}}})),
    ],
)
def test_what_a_model_wrote_is_in_no_reason(output):
    for text in (MARKER, json.dumps({"a": MARKER}), f"{MARKER} " * 40, f"<think>{MARKER}"):
        with pytest.raises(InvalidOutput) as caught:
            parse(output, text)
        assert "Zyxwv" not in str(caught.value)


# --- keys


def test_keys_are_in_nothing_that_is_said_or_written(settings, tmp_path, caplog, capsys, monkeypatch):
    caplog.set_level(logging.DEBUG)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    for engine in ("REMOTE", "OPENAI"):
        monkeypatch.setenv(f"LLMREC_{engine}_URL", CLOSED)
        monkeypatch.setenv(f"LLMREC_{engine}_RETRIES", "0")
    said = [repr(load_settings()), repr(load_remote_settings("tiny")), repr(load_endpoint_settings(chat=True))]
    remote = Runner(replace(settings, runtime="remote"))
    bound = bind(samples.embedding(), remote.store)
    said += [json.dumps(to_values(bound)), bound.fingerprint, repr(bound)]
    with pytest.raises(LLMRecError) as caught:
        remote.compute(bound, {"title": ["red"]}, "batch")
    said += traceback.format_exception(caught.value)
    remote.cache.close()
    found = everything(tmp_path, caplog, capsys, *said)
    assert CLOSED in found  # the endpoint was asked
    assert [value for value in ("planted", "47144714") if value in found] == []


# --- files


def test_files_are_for_this_user_only_whatever_the_umask(settings, tmp_path):
    before = os.umask(0)
    try:
        runner = Runner(settings)
        runner.compute(bind(samples.embedding(), runner.store), {"title": ["red"]}, "batch")
        found = {path: path.stat().st_mode & 0o777 for path in settings.cache_folder.rglob("*")}
        runner.cache.close()
    finally:
        os.umask(before)
    assert settings.cache_folder.stat().st_mode & 0o077 == 0
    assert {path.suffix for path in found} >= {".sqlite", ".sqlite-wal"}
    assert [path for path, mode in found.items() if mode & 0o077 and path.suffix != ".lock"] == []


def test_the_cells_above_cannot_be_read_as_they_should(settings):
    """Else the tests would search for what never came near a message."""
    runner = Runner(settings)
    computed = runner.compute(bind(samples.embedding(), runner.store), {"title": cells()}, "batch")
    assert list(computed.invalid) == [3, 4, 5, 6]
    assert all(isinstance(value, np.ndarray) for value in computed.values[:3])
