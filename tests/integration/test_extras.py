"""Stores and engines name the extra that has their library."""

import pytest

pytestmark = pytest.mark.feast
LIBRARIES = {
    "llmrec_plugin.feast.redis": ("redis", "redis"),
    "llmrec_plugin.feast.postgres": ("psycopg", "postgres"),
    "llmrec_plugin.feast.ray": ("ray", "engines"),
    "llmrec_plugin.feast.spark": ("pyspark", "engines"),
}


def test_stores_and_engines_without_their_library_name_the_extra(processes, tmp_path):
    libraries = {module: library for module, (library, _) in LIBRARIES.items()}
    messages = processes.call("extras_steps:import_without", folder=tmp_path, environ={}, libraries=libraries)
    for module, (library, extra) in LIBRARIES.items():
        assert f"{library!r}, which is not installed" in messages[module]
        assert f'pip install "llmrec-plugin[{extra}]"' in messages[module]
