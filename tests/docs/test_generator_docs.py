"""The pages on prompts and endpoints say what the code does."""

import inspect
import re
from pathlib import Path

from llmrec_plugin import GeneratorModel, TokenFeature
from llmrec_plugin.pipeline.prompts import read_rows, render
from llmrec_plugin.systems.openai_chat import configuration

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


def blocks(page, language):
    text = (HOW_TO / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def test_the_prompt_of_the_page_is_one_and_renders_as_shown(tmp_path):
    file, rendered = blocks("prompts.md", "")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "film_genres.md").write_text(file, encoding="utf-8")
    (code,) = blocks("prompts.md", "python")
    namespace = {"__file__": str(tmp_path / "features.py")}
    exec(code, namespace)
    feature = namespace["film_genres_tags"]
    assert isinstance(feature, TokenFeature)
    (key,) = read_rows(feature, {"title": ["The Matrix"], "seen": [["Alien", "Heat"]]}).keys
    assert rendered in "".join(segment.text for segment in render(feature, key).user)


def test_the_model_of_the_page_is_one():
    (code,) = blocks("endpoints.md", "python")
    namespace = {}
    exec(code, namespace)
    (model,) = namespace["llmrec_register_models"]()
    assert isinstance(model, GeneratorModel)


def test_every_variable_of_endpoints_is_documented():
    variables = set(re.findall(r"LLMREC_(?:OPENAI|BATCH)_[A-Z_]+", inspect.getsource(configuration)))
    text = (HOW_TO / "endpoints.md").read_text(encoding="utf-8")
    assert {name for name in variables if f"`{name}`" not in text and f"{name}=" not in text} == set()
