"""Rows that can be learned from: their words decide labels and summary."""

import random

import pytest

SUBJECTS = ("image", "sound", "chat", "mail", "font", "graph", "video", "game")
KINDS = ("editor", "server", "library", "player")


@pytest.fixture(scope="session")
def rows():
    """400 rows; the labels are the subject and the kind, the synopsis is both."""
    choose = random.Random(0)
    found = []
    for number in range(400):
        subject, kind = choose.choice(SUBJECTS), choose.choice(KINDS)
        noise = " ".join(choose.choices(("fast", "small", "new", "free", "good", "big"), k=4))
        text = f"{noise} {subject} number {number} of {kind} {choose.choice(('today', 'now'))}"
        found.append(
            {
                "name": f"row{number}of-{subject}",
                "description": text,
                "tags": [subject, kind],
                "synopsis": f"{subject} {kind}",
            }
        )
    return found


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch = pytest.importorskip("torch", reason="the export extra is not installed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A tiny BERT with random weights whose words are those of `rows`."""
    torch = pytest.importorskip("torch", reason="the export extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the export extra is not installed")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = "number of today now fast small new free good big".split()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *SUBJECTS, *KINDS, *words]
    backend = Tokenizer(models.WordPiece({word: row for row, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, pad_token_id=0, initializer_range=0.3, layer_norm_eps=1e-12,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertModel(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
