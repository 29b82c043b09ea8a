"""The examples of docs/how-to/privacy.md run, one after another, and its numbers are those of the code."""

import re
from pathlib import Path

from llmrec_plugin.privacy import expected_cosine, sigma
from llmrec_plugin.specs import GaussianNoise

PAGE = Path(__file__).parents[2] / "docs/how-to/privacy.md"


def test_the_examples_run(monkeypatch):
    monkeypatch.setenv("LLMREC_NOISE_KEY", "")  # what the page sets is undone
    namespace = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, namespace)


def test_the_table_of_what_is_left_is_right():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d. |]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 5
    for epsilon, deviation, cosines in rows:
        noise = GaussianNoise(clip_norm=1.0, epsilon=float(epsilon), delta=1e-6, user="u", key_id="0" * 16)
        assert f"{sigma(noise):.3f}" == deviation
        expected = [f"{expected_cosine(noise, dims):.3f}" for dims in (8, 32, 128, 384)]
        assert cosines.split(" | ") == expected
