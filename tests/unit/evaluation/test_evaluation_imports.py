"""Commands are listed without loading what they need, and the examples of the documentation run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"feast", "torch", "transformers", "onnxruntime", "pandas", "lightgbm", "sklearn", "scipy"}
DOCS = Path(__file__).parents[3] / "docs/how-to"


@pytest.mark.parametrize("module", ["llmrec_plugin.evaluation.commands", "llmrec_plugin.interactions.commands"])
def test_the_commands_load_nothing_heavy(module):
    script = f"import sys, {module}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


def test_a_package_that_is_missing_is_named_with_its_extra():
    from llmrec_plugin.errors import MissingExtraError
    from llmrec_plugin.evaluation.extras import need

    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*llmrec-plugin\[evaluate\]"):
        need("no_such_package.part")


@pytest.mark.parametrize("page", ["data.md", "evaluate.md"])
def test_the_examples_run(page):
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S):
        exec(block, namespace)
    assert namespace


def test_the_configuration_of_the_page_and_those_of_the_benchmarks_are_valid():
    import yaml

    from llmrec_plugin.evaluation.configuration import Configuration, read_configuration
    from llmrec_plugin.evaluation.features import function_named
    from llmrec_plugin.specs import from_spec

    (written,) = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "evaluate.md").read_text(encoding="utf-8"), re.M | re.S)
    of_page = Configuration(**yaml.safe_load(written))
    files = sorted((DOCS.parents[1] / "benchmarks/evaluation").glob("*.yaml"))
    assert len(files) == 2
    assert from_spec(dict(of_page.features["text"]["item"])).dims == 384
    for configuration in map(read_configuration, files):
        named = [each[side] for each in configuration.features.values() for side in ("item", "user") if side in each]
        declared = [function_named(path) for path in named if ":" in path]
        assert declared
        assert {feature.kind for feature in declared} == {"embedding", "network"}
