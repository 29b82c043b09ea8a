"""A BERT as the encoder of a BART, and a decoder that is stored without it."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")
transformers = pytest.importorskip("transformers", reason="the export extra is not installed")

from llmrec_plugin.errors import SourceError  # noqa: E402
from llmrec_plugin.export.grafting import NEVER, as_bart, complete, put_decoder, trained_names, write_graft  # noqa: E402
from llmrec_plugin.export.sources import find_folder  # noqa: E402

IDS = torch.tensor([[2, 10, 30, 41, 55, 3], [2, 12, 77, 3, 0, 0]])
MASK = (IDS != 0).long()


@pytest.fixture
def bart(bert_folder):
    return as_bart(bert_folder, decoder_layers=2)


@pytest.fixture
def graft(bart, bert_folder, tmp_path):
    """A decoder with weights of its own, stored."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in bart.model.decoder.layers.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        bart.final_logits_bias[0, 10:20] = 0.5
    write_graft(bart, np.arange(10, 60), tmp_path / "graft", f"path:{bert_folder}", {"rouge_l": 0.5})
    return tmp_path / "graft"


def test_the_encoder_gives_the_token_vectors_of_bert(bert_folder, bart):
    bert = transformers.BertModel.from_pretrained(bert_folder).eval()
    with torch.inference_mode():
        expected = bert(IDS, MASK).last_hidden_state
        actual = bart.model.encoder(IDS, MASK).last_hidden_state
    # BERT's normalization adds 1e-12 to the variance, BART's 1e-5.
    torch.testing.assert_close(actual[MASK == 1], expected[MASK == 1], rtol=0, atol=1e-4)


def test_a_position_or_a_token_type_at_the_wrong_place_would_show(bert_folder, bart):
    bert = transformers.BertModel.from_pretrained(bert_folder).eval()
    weights = bart.model.encoder.embed_positions.weight
    with torch.inference_mode():
        expected = bert(IDS, MASK).last_hidden_state
        weights.copy_(weights.roll(1, 0))
        actual = bart.model.encoder(IDS, MASK).last_hidden_state
    assert (actual - expected)[MASK == 1].abs().max() > 1e-2


def test_a_decoder_is_stored_alone_and_completed_to_the_same_logits(bart, graft, tmp_path):
    folder = complete(find_folder(f"path:{graft}"), tmp_path / "whole")
    whole = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = whole(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS[:, :3]).logits
        expected = bart(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS[:, :3]).logits
    torch.testing.assert_close(logits[..., 10:60], expected[..., 10:60], rtol=0, atol=0.05)  # stored in float16
    torch.testing.assert_close(logits[..., 60:], expected[..., 60:] + NEVER, rtol=0, atol=0.05)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (whole.config.decoder_start_token_id, whole.config.eos_token_id) == (2, 3)
    assert tokenizer("the film")["input_ids"][0] == 2


def test_equal_parts_give_equal_bytes(graft, tmp_path):
    one, two = (complete(graft, tmp_path / name) / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_an_ordinary_folder_is_itself(bert_folder, tmp_path):
    assert complete(bert_folder, tmp_path / "unused") == bert_folder
    assert not (tmp_path / "unused").exists()


def test_another_encoder_than_trained_on_is_refused(graft, save_encoder, tmp_path):
    other = save_encoder(tmp_path / "other", seed=5)
    base = json.loads((graft / "base.json").read_text())
    (graft / "base.json").write_text(json.dumps({**base, "source": f"path:{other}"}))
    with pytest.raises(SourceError, match="was trained on"):
        complete(graft, tmp_path / "whole")


def test_what_is_no_bert_is_refused(save_encoder, tmp_path):
    with pytest.raises(SourceError, match="this is none"):
        as_bart(save_encoder(tmp_path / "model", "distilbert"), decoder_layers=1)


def test_missing_weights_are_refused(bart):
    tensors = {name: np.zeros(1) for name in trained_names(bart)[1:]}
    with pytest.raises(SourceError, match="does not fit"):
        put_decoder(bart, {**tensors, "token_ids": np.array([1]), "token_bias": np.array([0.0])})


def test_base_json_must_be_whole(graft, tmp_path):
    shutil.copytree(graft, tmp_path / "copy")
    (tmp_path / "copy" / "base.json").write_text('{"source": "path:x"}')
    with pytest.raises(SourceError, match="no decoder that can be read"):
        complete(tmp_path / "copy", tmp_path / "whole")
