"""Runtimes: declared, chosen, opened, and held to the golden vectors."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
from samples import settings

from llmrec_plugin import Placement, Runtime, hookimpl
from llmrec_plugin.artifacts import read_artifact
from llmrec_plugin.errors import DeclarationError, MissingExtraError, ParityError, ProviderError, UnknownNameError
from llmrec_plugin.manager import Manager
from llmrec_plugin.manifests import MANIFEST
from llmrec_plugin.registry import Provenance
from llmrec_plugin.runtime import runtimes
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.session import open_model

PLACEMENT = Placement(threads=1, callers=3, spinning=False, token_budget=40)
ECHO = Runtime(name="echo", opener="echo_runtime:open_model", precisions=("fp32", "bf16"))


class Engine:
    """ONNX Runtime under another name, which writes down what it is asked to do."""

    provider, placement, adjustable = "echo", PLACEMENT, False

    def __init__(self, artifact, device, placement):
        self.opened_with = (device, placement)
        self._session = open_model(artifact, device="cpu", placement=placement)
        self.batches = []
        self.change = lambda vectors: vectors

    def run(self, batch):
        self.batches.append(batch)
        return self.change(self._session.run(batch))


@pytest.fixture
def engines(monkeypatch):
    """A plugin that registers the runtime `echo`; gives back the engines that were opened."""
    opened = []
    module = types.ModuleType("echo_runtime")

    def open_echo(artifact, *, device, placement):
        opened.append(Engine(artifact, device, placement))
        return opened[-1]

    module.open_model = open_echo
    monkeypatch.setitem(sys.modules, "echo_runtime", module)
    register(monkeypatch, ECHO)
    return opened


def register(monkeypatch, *declared):
    """Lets plugins declare these runtimes."""
    plugin = types.ModuleType("echo_plugin")
    plugin.llmrec_register_runtimes = hookimpl(lambda: declared, specname="llmrec_register_runtimes")
    manager = Manager()
    manager.register(plugin, Provenance("echo-plugin", "echo", "1.0"))
    monkeypatch.setattr(runtimes, "load_catalogue", lambda disabled: manager.collect())


def with_precision(tiny, folder, precision):
    copy = shutil.copytree(tiny.folder, folder / precision)
    values = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**values, "precision": precision}))
    return read_artifact(copy)


# --- declaring


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "auto"}, "other than 'auto'"),
        ({"name": "Echo"}, "lower-case"),
        ({"opener": "echo_runtime"}, "module:function"),
        ({"opener": "echo_runtime:open_model()"}, "module:function"),
        ({"precisions": ()}, "precisions must be a tuple of some of 'fp32', 'int8'"),
        ({"precisions": ("fp64",)}, "fp64"),
        ({"precisions": ["fp32"]}, "tuple"),
        ({"reads": "bytes"}, "'tokens' or 'texts'"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(changes, expected):
    values = {"name": "echo", "opener": "echo_runtime:open_model", "precisions": ("fp32",)}
    with pytest.raises(DeclarationError, match=expected):
        Runtime(**{**values, **changes})


# --- choosing


def test_onnxruntime_runs_a_model_without_a_look_at_plugins(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "load_catalogue", lambda disabled: pytest.fail("looked at plugins"))
    for name in ("auto", "onnxruntime"):
        assert runtimes.choose_runtime(tiny, settings(tmp_path, runtime=name)).name == "onnxruntime"


@pytest.mark.usefixtures("engines")
def test_a_runtime_is_chosen_by_name(tiny, tmp_path):
    assert runtimes.choose_runtime(tiny, settings(tmp_path, runtime="echo")) == ECHO


@pytest.mark.usefixtures("engines")
def test_a_precision_that_onnxruntime_lacks_finds_its_runtime(tiny, tmp_path):
    artifact = with_precision(tiny, tmp_path, "bf16")
    assert runtimes.choose_runtime(artifact, settings(tmp_path)) == ECHO


def test_a_precision_that_no_runtime_has_is_an_error_with_a_remedy(tiny, tmp_path, monkeypatch):
    register(monkeypatch)
    with pytest.raises(ProviderError, match=r"precision 'bf16', which no installed runtime has.*\[openvino\]"):
        runtimes.choose_runtime(with_precision(tiny, tmp_path, "bf16"), settings(tmp_path))


@pytest.mark.usefixtures("engines")
def test_the_runtime_asked_for_must_have_the_precision(tiny, tmp_path):
    with pytest.raises(ProviderError, match=r"precision 'int8', but LLMREC_RUNTIME=echo runs fp32, bf16"):
        runtimes.choose_runtime(with_precision(tiny, tmp_path, "int8"), settings(tmp_path, runtime="echo"))


@pytest.mark.usefixtures("engines")
def test_an_unknown_runtime_suggests_near_names(tiny, tmp_path):
    with pytest.raises(UnknownNameError, match=r"No runtime is named 'ecko'. Did you mean 'echo'"):
        runtimes.choose_runtime(tiny, settings(tmp_path, runtime="ecko"))


# --- opening


def test_whatever_an_opener_raises_names_the_runtime_and_the_model(tiny, tmp_path, engines, monkeypatch):
    monkeypatch.setattr(sys.modules["echo_runtime"], "open_model", lambda artifact, **_: 1 / 0)
    with pytest.raises(ProviderError, match=r"'echo' \(echo_runtime:open_model\) cannot open model 'tiny'.*division"):
        Encoder(tiny, settings(tmp_path, runtime="echo"))


def test_an_opener_that_does_not_exist_is_the_runtimes_fault(tiny, tmp_path, monkeypatch):
    register(monkeypatch, Runtime(name="gone", opener="gone_package:open_model", precisions=("fp32",)))
    with pytest.raises(ProviderError, match="No module named 'gone_package'"):
        Encoder(tiny, settings(tmp_path, runtime="gone"))


def test_an_error_of_ours_goes_through(tiny, tmp_path, engines, monkeypatch):
    def missing(artifact, **_):
        raise MissingExtraError("echo", "echo", "Running a model")

    monkeypatch.setattr(sys.modules["echo_runtime"], "open_model", missing)
    with pytest.raises(MissingExtraError, match=r"llmrec-plugin\[echo\]"):
        Encoder(tiny, settings(tmp_path, runtime="echo"))


# --- running


TEXTS = ["red", "green blue red", "blue " * 30, "", "cat dog red green"] * 7


def test_a_runtime_gives_the_vectors_of_onnxruntime(tiny, tmp_path, engines):
    expected, tokens = Encoder(tiny, settings(tmp_path)).encode(TEXTS)
    vectors, count = Encoder(tiny, settings(tmp_path, runtime="echo")).encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
    assert count == tokens
    (engine,) = engines
    assert engine.opened_with[0] == "cpu"
    assert max(batch.ids.size for batch in engine.batches) <= PLACEMENT.token_budget
    assert all(batch.texts == () for batch in engine.batches)


@pytest.mark.parametrize("fault", [np.negative, np.zeros_like, lambda vectors: 2 * vectors, lambda v: v * np.nan])
def test_a_runtime_that_computes_something_else_loads_no_model(tiny, tmp_path, engines, fault, monkeypatch):
    monkeypatch.setattr(Engine, "run", lambda self, batch: fault(self._session.run(batch)))
    with pytest.raises(ParityError, match=r"in echo on echo: golden text"):
        Encoder(tiny, settings(tmp_path, runtime="echo"))


def test_a_model_of_reduced_precision_may_round_otherwise_but_not_differ(tiny, tmp_path, engines, monkeypatch):
    artifact = with_precision(tiny, tmp_path, "bf16")
    noise = np.random.default_rng(0).normal(size=8)

    def disturbed(size):
        def run(self, batch):
            vectors = self._session.run(batch) + size * noise / np.linalg.norm(noise)
            return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

        return run

    monkeypatch.setattr(Engine, "run", disturbed(0.02))  # a cosine of about 0.9998
    Encoder(artifact, settings(tmp_path))
    monkeypatch.setattr(Engine, "run", disturbed(0.1))  # of about 0.995
    with pytest.raises(ParityError, match=r"at least 0\.999 "):
        Encoder(artifact, settings(tmp_path))


def test_a_runtime_that_reads_texts_gets_them_without_what_was_truncated(tiny, tmp_path, engines, monkeypatch):
    reading = Runtime(name="reader", opener=ECHO.opener, precisions=("fp32",), reads="texts")
    register(monkeypatch, reading)
    encoder = Encoder(tiny, settings(tmp_path, runtime="reader"))
    engines[0].batches.clear()
    encoder.encode(["red green blue", "red"], max_tokens=4)
    assert sorted(text for batch in engines[0].batches for text in batch.texts) == ["red", "red green"]


# --- calibrating


def test_a_calibration_is_kept_and_found_by_the_next_process(tiny, tmp_path):
    ours = settings(tmp_path)
    encoder = Encoder(tiny, ours)
    assert encoder.calibrate()
    assert len(list((ours.cache_folder / "placements").iterdir())) == 1
    assert Encoder(tiny, ours).placement == encoder.placement


def test_vectors_do_not_depend_on_the_calibration(tiny, tmp_path):
    encoder = Encoder(tiny, settings(tmp_path))
    before, _ = encoder.encode(TEXTS)
    encoder.calibrate()
    np.testing.assert_allclose(encoder.encode(TEXTS)[0], before, rtol=0, atol=1e-6)


def test_a_server_calibrates_when_it_loads_and_a_batch_run_when_it_pays(tiny, tmp_path, monkeypatch):
    kept = settings(tmp_path).cache_folder / "placements"
    batch = Encoder(tiny, settings(tmp_path))
    batch.encode(TEXTS)
    assert not kept.exists()
    monkeypatch.setattr("llmrec_plugin.runtime.encoder.CALIBRATE_AFTER_SECONDS", 0.0)
    batch.encode(TEXTS)
    assert len(list(kept.iterdir())) == 1
    Encoder(tiny, settings(tmp_path), "online")
    assert len(list(kept.iterdir())) == 2


def test_a_runtime_without_a_choice_is_not_measured(tiny, tmp_path, engines):
    encoder = Encoder(tiny, settings(tmp_path, runtime="echo"), "online")
    assert encoder.calibrate() == {}
    assert encoder.placement == PLACEMENT
