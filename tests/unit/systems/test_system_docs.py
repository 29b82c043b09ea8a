"""The examples of docs/systems run."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[3] / "docs/systems"


@pytest.mark.parametrize("page", ["genre.md", "kar.md", "llm-scorer.md", "mint.md"])
def test_the_examples_run(page):
    namespace = {}
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, namespace)
