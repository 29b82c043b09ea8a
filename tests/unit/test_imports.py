"""What an import costs, and which way imports run."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import llmrec_plugin

ROOT = Path(llmrec_plugin.__file__).parents[1]
HEAVY = {"feast", "torch", "transformers", "optimum", "onnxruntime", "openvino", "pandas", "onnx"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded once `code` ran in a fresh process."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "llmrec_plugin",
        "llmrec_plugin.transform",
        "llmrec_plugin.runtime.runner",
        "llmrec_plugin.export",
        "llmrec_plugin.cli",
        "llmrec_plugin.serving",
        "llmrec_plugin.interactions",
        "llmrec_plugin.networks",
    ],
)
def test_an_import_loads_nothing_heavy(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there")
    loaded = modules_after(f"import {module}")
    assert "llmrec_plugin" in loaded
    assert not loaded & HEAVY


def test_fetching_over_http_needs_little_but_numpy():
    assert not modules_after("import llmrec_plugin.serving") & {"pyarrow", "tokenizers", "yaml", "filelock"}


def test_collecting_all_plugins_loads_nothing_heavy():
    loaded = modules_after(
        "from llmrec_plugin.manager import load_catalogue\n"
        "catalogue = load_catalogue()\n"
        "assert 'all-minilm-l6-v2' in catalogue.models, catalogue"
    )
    assert not loaded & HEAVY


def test_the_modules_called_heavy_are_seen_when_they_are_loaded():
    assert "pandas" in modules_after("import pandas")


def test_the_public_names_are_these_and_exist():
    assert llmrec_plugin.__all__ == [
        "Artifact",
        "Batch",
        "Choice",
        "Completion",
        "Decoding",
        "EmbeddingFeature",
        "EncoderModel",
        "GaussianNoise",
        "GeneratedEmbeddingFeature",
        "GenerationSession",
        "Generator",
        "GeneratorModel",
        "HistoryEmbeddingFeature",
        "Json",
        "LLMRecError",
        "LabelModel",
        "NetworkFeature",
        "NetworkModel",
        "Placement",
        "Prompt",
        "Redaction",
        "Request",
        "Runtime",
        "Scores",
        "Segment",
        "Session",
        "ShortText",
        "SimilarityFeature",
        "Slot",
        "Tags",
        "TokenFeature",
        "hookimpl",
    ]
    assert all(callable(getattr(llmrec_plugin, name)) for name in llmrec_plugin.__all__)


def test_the_version_is_that_of_the_distribution():
    assert importlib.metadata.version("llmrec-plugin") == llmrec_plugin.__version__


def test_imports_run_one_way():
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
