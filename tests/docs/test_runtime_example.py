"""The runtime in docs/how-to/runtimes.md is a plugin that works, installed as its readers would install it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoding import TEXTS, check_same
from samples import settings
from tiny import export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.runtime.encoder import Encoder

PAGE = Path(__file__).parents[2] / "docs/how-to/runtimes.md"
METADATA = "Metadata-Version: 2.1\nName: my-engine\nVersion: 1.0\n"
ENCODE = """
import sys
import numpy as np
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.settings import load_settings

settings = load_settings()
encoder = Encoder(ArtifactStore(settings.artifact_folders).current("tiny"), settings)
np.save("vectors.npy", encoder.encode(open("texts.txt").read().splitlines())[0])
print(encoder.runtime.name, encoder.provider, encoder.placement.callers, "onnxruntime" in sys.modules)
"""


@pytest.fixture
def site(tmp_path):
    """A folder with the package of the page, as pip would leave it."""
    text = PAGE.read_text(encoding="utf-8")
    [module] = re.findall(r"^```python\n(# my_engine\.py\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    [entry_points] = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "site"
    information = folder / "my_engine-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "my_engine.py").write_text(module)
    (information / "METADATA").write_text(METADATA)
    lines = entry_points.replace("[project.entry-points.llmrec_plugin]", "[llmrec_plugin]").replace('"', "")
    (information / "entry_points.txt").write_text(lines)
    return folder


def run(site, folder, code, **variables):
    paths = os.pathsep.join([str(site), str(PAGE.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {
        **os.environ,
        "PYTHONPATH": paths,
        "LLMREC_HOME": str(folder),
        "LLMREC_RUNTIME": "reference",
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


def test_it_gives_the_vectors_of_onnxruntime(site, tmp_path):
    artifact = export_tiny(ArtifactStore([tmp_path / "artifacts"]))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    done = run(site, tmp_path, ENCODE, LLMREC_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reference", "onnx.reference", "1", "False"]
    check_same(np.load(tmp_path / "vectors.npy"), Encoder(artifact, settings(tmp_path)).encode(TEXTS)[0])


def test_it_refuses_a_device_that_it_does_not_have(site, tmp_path):
    export_tiny(ArtifactStore([tmp_path / "artifacts"]))
    (tmp_path / "texts.txt").write_text("red")
    done = run(site, tmp_path, ENCODE, LLMREC_DEVICE="cuda")
    assert "ProviderError: LLMREC_DEVICE=cuda was asked for, but the runtime reference has only the CPU" in done.stderr


def test_it_is_listed(site, tmp_path):
    done = run(site, tmp_path, "import sys; sys.argv[1:] = ['plugins']; from llmrec_plugin.cli import main; main()")
    assert done.returncode == 0, done.stderr
    assert "my-engine 1.0" in done.stdout
