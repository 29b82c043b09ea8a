import json

import pytest

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export import read_model
from llmrec_plugin.export.statements import check_declaration, read_statements

MEAN = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
STEPS = ("Transformer", "Pooling", "Normalize")


def test_a_sentence_transformers_folder_needs_only_the_metric(folder, state):
    state(folder, pooling=MEAN, steps=STEPS, max_seq_length=24)
    model = read_model("tiny", str(folder), {"metric": "cosine", "pooling": None})
    assert (model.pooling, model.normalize, model.dims, model.max_tokens) == ("mean", True, 32, 24)
    assert model.source == f"path:{folder}"


def test_a_stated_similarity_and_padding_side_are_read(folder, state):
    state(folder, pooling=MEAN, steps=STEPS[:2], max_seq_length=24)
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "dot"}')
    (folder / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    model = read_model("tiny", str(folder), {})
    assert (model.metric, model.normalize, model.padding_side) == ("dot", False, "left")


def test_the_files_of_sentence_transformers_5_are_read(folder, state):
    state(folder, pooling={"embedding_dimension": 32, "pooling_mode": "lasttoken"}, steps=STEPS)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 40}')
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    stated = read_statements(folder)
    assert (stated.pooling, stated.dims, stated.max_tokens) == ("last_token", 32, 40)


def test_what_is_stated_nowhere_is_listed_with_the_options_that_help(folder):
    with pytest.raises(DeclarationError) as caught:
        read_model("tiny", str(folder), {"max_tokens": 16})
    message = str(caught.value)
    assert "do not state pooling, normalize, metric." in message
    for option in ("--pooling", "--normalize or --no-normalize", "--metric"):
        assert option in message
    assert "--max-tokens" not in message
    assert "--dims" not in message


def test_the_huge_length_that_means_none_is_not_taken_for_a_length(folder, state):
    state(folder, pooling=MEAN, steps=STEPS)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    with pytest.raises(DeclarationError, match="--max-tokens"):
        read_model("tiny", str(folder), {"metric": "cosine"})


def test_given_values_complete_a_bare_folder(folder):
    given = {"pooling": "cls", "normalize": False, "max_tokens": 64, "metric": "dot", "tolerance": 1e-4}
    model = read_model("tiny", str(folder), given)
    assert (model.pooling, model.normalize, model.dims, model.tolerance) == ("cls", False, 32, 1e-4)


@pytest.mark.parametrize(
    ("change", "both"),
    [
        ({"pooling": "cls"}, "pooling='cls'.*'mean'"),
        ({"normalize": False}, "normalize=False.*True"),
        ({"dims": 64}, "dims=64.*32"),
        ({"max_tokens": 65}, "max_tokens=65.*64 tokens"),
    ],
)
def test_a_declaration_that_contradicts_the_folder_is_refused_with_both_values(folder, state, declare, change, both):
    state(folder, pooling=MEAN, steps=STEPS, max_seq_length=24)
    with pytest.raises(DeclarationError, match=both):
        check_declaration(declare(folder, **change), read_statements(folder), folder)
    with pytest.raises(DeclarationError, match=both):
        read_model("tiny", str(folder), {"metric": "cosine", **change})


def test_a_length_beside_the_folders_own_is_accepted_up_to_the_position_embeddings(folder, state, declare):
    state(folder, pooling=MEAN, steps=STEPS, max_seq_length=24)
    for length in (8, 24, 64):
        check_declaration(declare(folder, max_tokens=length), read_statements(folder), folder)


def test_roberta_loses_the_positions_before_its_first(folder):
    (folder / "config.json").write_text(
        '{"model_type": "roberta", "hidden_size": 32, "max_position_embeddings": 514, "pad_token_id": 1}'
    )
    assert read_statements(folder).positions == 512


def test_further_steps_are_refused_by_name(folder, state):
    state(folder, pooling=MEAN, steps=(*STEPS[:2], "Dense"))
    with pytest.raises(DeclarationError, match="has a Dense step"):
        read_statements(folder)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": "mean", "include_prompt": False},
    ],
)
def test_poolings_that_the_graph_cannot_do_are_refused(folder, state, pooling):
    state(folder, pooling=pooling, steps=STEPS)
    with pytest.raises(DeclarationError, match="Use another model"):
        read_statements(folder)


def test_a_damaged_file_is_named(folder):
    (folder / "modules.json").write_text("[")
    with pytest.raises(DeclarationError, match=r"modules\.json is not JSON"):
        read_statements(folder)
