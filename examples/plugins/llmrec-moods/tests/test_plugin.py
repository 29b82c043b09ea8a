"""What is particular to this plugin; test_conformance.py has the rest."""

from __future__ import annotations

from llmrec_moods import plugin


def test_the_feature_reads_title_and_plot() -> None:
    [feature] = plugin.llmrec_register_features()
    assert feature.entity == "film"
    assert feature.columns == ("title", "plot")


def test_the_prompt_names_every_tag() -> None:
    [feature] = plugin.llmrec_register_features()
    assert feature.prompt is not None
    for tag in plugin.TAGS:
        assert tag in feature.prompt.user
