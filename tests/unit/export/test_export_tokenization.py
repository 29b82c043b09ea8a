import json
import shutil

import pytest

from llmrec_plugin.errors import DeclarationError, ParityError
from llmrec_plugin.export.sources import SourceError
from llmrec_plugin.export.tokenization import encode, load_tokenizer, save_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="the export extra is not installed")
LONG = "the library and the package for java and python " * 10


@pytest.fixture
def tokenizer(bert_folder, declare):
    return load_tokenizer(bert_folder, declare(bert_folder))


def test_preset_truncation_and_padding_are_removed(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 8  # the trap: preset by the folder
    save_tokenizer(tokenizer, path, lower_case=True)
    saved = tokenizers.Tokenizer.from_file(str(path))
    assert saved.truncation is None
    assert saved.padding is None
    assert len(saved.encode(LONG).ids) > 16
    assert len(saved.encode("the").ids) == 3


def test_ids_equal_those_of_transformers_up_to_the_length_given(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path, lower_case=False)
    encodings = encode(path, tokenizer, ["the film", LONG, ""], 20)
    assert [len(encoding.ids) for encoding in encodings] == [4, 20, 2]
    assert encodings[1].overflowing
    assert not encodings[0].overflowing


def test_other_ids_are_refused_with_the_text(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path, lower_case=False)
    other = tokenizers.Tokenizer.from_file(str(path))
    other.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    other.save(str(path))
    with pytest.raises(ParityError, match="for the text 'The Film'"):
        encode(path, tokenizer, ["the film", "The Film"], 20)


def test_truncation_on_the_left_is_refused_because_the_runtime_cuts_the_right(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path, lower_case=False)
    tokenizer.truncation_side = "left"
    with pytest.raises(ParityError, match="truncation side"):
        encode(path, tokenizer, [LONG + "film"], 20)


def test_lower_casing_that_only_sentence_transformers_would_do_is_refused(tokenizer, tmp_path):
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    with pytest.raises(DeclarationError, match="do_lower_case"):
        save_tokenizer(tokenizer, tmp_path / "tokenizer.json", lower_case=True)


def test_token_types_other_than_zero_are_refused(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:1 $A:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    save_tokenizer(tokenizer, path, lower_case=False)
    with pytest.raises(DeclarationError, match="token types"):
        encode(path, tokenizer, ["the film"], 20)


def test_a_folder_without_a_padding_token_is_refused(bert_folder, declare, tmp_path):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = json.loads((folder / name).read_text())
        del values["pad_token"]
        (folder / name).write_text(json.dumps(values))
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()  # transformers would take the token from there
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(DeclarationError, match="no padding token"):
        load_tokenizer(folder, declare(folder))


def test_a_folder_without_a_tokenizer_is_a_source_error(folder, declare):
    with pytest.raises(SourceError, match="cannot load the tokenizer"):
        load_tokenizer(folder, declare(folder))
