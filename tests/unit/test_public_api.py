"""What is public changes only together with its snapshot."""

import ast
import difflib
from pathlib import Path

import public_api
import pytest

SNAPSHOT = Path(public_api.__file__).with_suffix(".txt")
REMEDY = """
The public API differs from tests/public_api.txt. What may change, and how, is in docs/versioning.md: nothing public
goes or changes its meaning without a deprecation, and a hook keeps its name and signature. If the change is meant,
write the snapshot anew, commit it with the change, and tell users in CHANGELOG.md what to do:

    python tests/public_api.py > tests/public_api.txt
"""


def differences(before: str, after: str) -> str:
    return "\n".join(
        difflib.unified_diff(before.splitlines(), after.splitlines(), "committed", "code", lineterm="", n=1)
    )


def test_the_public_names_and_signatures_are_those_of_the_snapshot():
    changed = differences(SNAPSHOT.read_text(encoding="utf-8"), public_api.snapshot())
    if changed:
        pytest.fail(f"{REMEDY}\n{changed}", pytrace=False)


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("hookspecs", "def llmrec_register_models()", "def llmrec_register_models(config: dict)"),
        ("specs/tokens", "    max_chars: int = 500", "    max_chars: int = 400"),
        ("specs/embeddings", "    pooling: Pooling\n", "    pooling: Pooling = 'mean'\n"),
        ("testing/network", "local: bool = False", "local: bool = True"),
        ("adapters/columns", "def expand_columns(frame", "def expand_columns(table"),
        ("inference", "    provider: str\n", ""),
    ],
)
def test_a_changed_signature_is_seen(module, before, after, monkeypatch):
    """Also of inherited fields, of names that are imported lazily, and of protocols."""
    as_it_is, parsed = public_api.snapshot(), public_api._tree
    name = f"llmrec_plugin.{module.replace('/', '.')}"
    source = (public_api.ROOT / f"llmrec_plugin/{module}.py").read_text(encoding="utf-8")
    assert before in source
    changed = ast.parse(source.replace(before, after))
    monkeypatch.setattr(public_api, "_tree", lambda asked: changed if asked == name else parsed(asked))
    assert differences(as_it_is, public_api.snapshot())


def test_every_public_name_is_in_the_reference():
    pages = (public_api.ROOT / "docs/reference").glob("*.md")
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    shown = {line.removeprefix("::: ") for line in lines if line.startswith("::: ")}
    missing = set()
    for module, names in public_api.public_names().items():
        for name in names:
            place, _ = public_api._find(module, name)
            if not {module, place, f"{module}.{name}", f"{place}.{name}"} & shown:
                missing.add(f"{module}.{name}")
    assert missing == set(), "add a line `::: NAME` to a page of docs/reference for each of them"
