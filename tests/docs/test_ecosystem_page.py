"""The code of docs/how-to/ecosystem.md runs, section by section."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import export_tiny

from llmrec_plugin.artifacts import ArtifactStore

PAGE = Path(__file__).parents[2] / "docs/how-to/ecosystem.md"
START, *SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
NEEDS = {
    "LightGBM and XGBoost": "lightgbm",
    "scikit-learn": "sklearn",
    "PyTorch": "torch",
    "Hugging Face datasets": "datasets",
    "OpenTelemetry": "opentelemetry.trace",
}


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def training():
    count = 64
    vectors = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    return pd.DataFrame(
        {
            "title": [f"{'red' if row % 2 else 'blue'} web server" for row in range(count)],
            "item_title_embedding": list(vectors),
            "price": np.arange(count),
            "section": ["web", "games"] * (count // 2),
            "item_title_tags": [["fast"], []] * (count // 2),
            "clicked": np.arange(count) % 2,
        }
    )


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_the_code_of_the_page_runs(section, training, tmp_path, monkeypatch):
    need = NEEDS.get(section.partition("\n")[0])
    if need:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        pytest.importorskip(need, reason="the section's library is not installed")
    export_tiny(ArtifactStore([tmp_path / "artifacts"]), name="all-minilm-l6-v2")
    monkeypatch.setenv("LLMREC_HOME", str(tmp_path))
    monkeypatch.setenv("LLMREC_DEVICE", "cpu")
    monkeypatch.delenv("LLMREC_ARTIFACTS", raising=False)
    monkeypatch.delenv("LLMREC_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    namespace = {"training": training}
    for block in (*blocks(START), *blocks(section)):
        exec(block, namespace)
    assert len(blocks(section)) == 1
    if "stop" in namespace:
        namespace["stop"]()
