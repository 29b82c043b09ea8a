import json
from pathlib import Path

import pytest

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export import load_recipe

ONNX_EXPORT = Path(__file__).parents[3] / "onnx_export"
RECIPE = """
name = "tiny"
source = "package:tiny/model"
pooling = "mean"
normalize = true
dims = 32
max_tokens = 64
metric = "cosine"
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_is_a_declaration(recipe):
    model = load_recipe(recipe)
    assert (model.name, model.normalize, model.padding_side, model.tolerance) == ("tiny", True, "right", 1e-5)


def test_an_unknown_and_a_missing_field_are_both_named(recipe):
    recipe.write_text(RECIPE.replace("pooling =", "poling ="))
    with pytest.raises(
        DeclarationError, match=r"unknown fields: poling; missing fields: pooling\. The fields are name, source"
    ):
        load_recipe(recipe)


def test_a_recipe_that_is_no_toml_is_named(recipe):
    recipe.write_text("name = ")
    with pytest.raises(DeclarationError, match=r"tiny\.toml is not TOML"):
        load_recipe(recipe)


def test_values_are_checked_as_in_code(recipe):
    recipe.write_text(RECIPE.replace('"mean"', '"average"'))
    with pytest.raises(DeclarationError, match="pooling must be one of"):
        load_recipe(recipe)


@pytest.mark.parametrize("path", sorted((ONNX_EXPORT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_has_a_record_that_passed_with_its_tolerance(path):
    model = load_recipe(path)
    record = json.loads((ONNX_EXPORT / "records" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert model.name == path.stem == record["model"]
    assert record["source"]["source"] == model.source
    assert not model.source.startswith("path:")  # means nothing on another machine
    parity = record["parity"]
    assert parity["passed"]
    assert parity["tolerance"] == model.tolerance
    assert parity["worst_abs_diff"] <= model.tolerance
    assert record["precision"] == model.precision
    assert record["quality"]["floor"] == model.min_overlap
    assert record["quality"]["overlap_at_10"] >= model.min_overlap
