"""The names of the adapters, and what importing them costs."""

import subprocess
import sys

import pytest

from llmrec_plugin import adapters

HEAVY = "feast torch sklearn datasets pandas prometheus_client opentelemetry onnxruntime".split()


def test_importing_the_package_loads_none_of_the_libraries():
    code = (
        "import sys, llmrec_plugin.adapters\n"
        "import llmrec_plugin.adapters.columns, llmrec_plugin.adapters.prometheus, llmrec_plugin.adapters.tracing\n"
        "import llmrec_plugin.adapters.hugging_face\n"
        f"print(*(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_name_is_defined_where_it_is_said_to_be():
    for name in adapters.__all__:
        module = adapters._MODULES[name]
        if module not in ("scikit_learn", "pytorch"):  # their libraries may be missing
            assert getattr(adapters, name).__module__ == f"llmrec_plugin.adapters.{module}"
    assert dir(adapters) == sorted(adapters.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it has FeatureEmbedder"):
        adapters.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("FeatureTransformer", "sklearn", "ranker"), ("RankerDataset", "torch", "export")],
)
def test_a_name_whose_library_is_missing_says_what_to_install(name, library, extra):
    code = (
        f"import sys\nsys.modules[{library!r}] = None\nfrom llmrec_plugin.errors import MissingExtraError\n"
        f"try:\n    from llmrec_plugin.adapters import {name}\n"
        "except MissingExtraError as exc:\n    print(exc)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert f'pip install "llmrec-plugin[{extra}]"' in done.stdout
