"""Measured placements on disk."""

import json
import logging

import pytest

from llmrec_plugin.inference import Placement
from llmrec_plugin.runtime.placements import PlacementStore, placement_key

PLACEMENT = Placement(threads=1, callers=2, spinning=False, token_budget=256)


def test_a_placement_is_found_under_its_key_and_no_other(tmp_path):
    store = PlacementStore(tmp_path / "placements")
    key = placement_key("artifact", 2)
    store.put(key, PLACEMENT, {PLACEMENT: [1.0, 2.0]}, {"model": "tiny"})
    assert PlacementStore(tmp_path / "placements").get(key) == PLACEMENT
    assert store.get(placement_key("artifact", 3)) is None


def test_people_can_read_what_was_measured(tmp_path):
    PlacementStore(tmp_path).put("k" * 64, PLACEMENT, {PLACEMENT: [1.0, 2.0]}, {"model": "tiny"})
    (file,) = tmp_path.iterdir()
    values = json.loads(file.read_text())
    assert values["model"] == "tiny"
    assert values["candidates"][0]["measured"] == [1.0, 2.0]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"placement": {"threads": 0, "callers": 1, "spinning": false, "token_budget": 1}}']
)
def test_a_damaged_file_is_measured_again(tmp_path, caplog, content):
    store = PlacementStore(tmp_path)
    (tmp_path / f"{'k' * 32}.json").write_text(content)
    assert store.get("k" * 64) is None
    assert "measured again" in caplog.text
    store.put("k" * 64, PLACEMENT, {}, {})
    assert store.get("k" * 64) == PLACEMENT


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    store = PlacementStore(tmp_path / "file" / "placements")
    with caplog.at_level(logging.INFO):
        store.put("k" * 64, PLACEMENT, {}, {})
    assert "Cannot keep" in caplog.text
    assert store.get("k" * 64) is None


def test_the_key_tells_models_threads_and_profiles_apart():
    parts = [("a", 2, "batch"), ("b", 2, "batch"), ("a", 3, "batch"), ("a", 2, "online")]
    assert len({placement_key(*part) for part in parts}) == len(parts)
    assert placement_key(*parts[0]) == placement_key(*parts[0])
