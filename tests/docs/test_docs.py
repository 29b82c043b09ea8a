"""The documentation says what the code does."""

import inspect
import re
from pathlib import Path

import pytest

from llmrec_plugin import settings
from llmrec_plugin.systems.remote import configuration

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_compile(page):
    for block in _python_blocks(page):
        compile(block, str(page), "exec")


def test_every_environment_variable_is_documented():
    sources = inspect.getsource(settings) + inspect.getsource(configuration)
    variables = set(re.findall(r"LLMREC_[A-Z_]+", sources)) - {"LLMREC_REMOTE_"}
    documented = (ROOT / "docs/how-to/operate.md").read_text(encoding="utf-8")
    assert {name for name in variables if f"`{name}`" not in documented} == set()


def test_every_test_and_check_that_the_list_of_traps_names_exists():
    text = (ROOT / "docs/feast-traps.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", text))
    assert {name for name in named if f"def {name}(" not in code} == set()
    doctor = (ROOT / "llmrec_plugin/feast/doctor.py").read_text(encoding="utf-8")
    checks = set(re.findall(r"^    ([a-z_]+),$", doctor.partition("_CHECKS:")[2].partition(")")[0], re.MULTILINE))
    assert {
        name for group in re.findall(r"\(doctor: ([^)]+)\)", text) for name in re.findall("`(.+?)`", group)
    } <= checks
