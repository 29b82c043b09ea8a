"""A generator that writes nothing and scores by shared words, and a tiny encoder as a Hugging Face folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec_plugin import Completion, Decoding, Request

WORDS = "quiet loud cafe museum trail beach library market tea books music children dogs rain sun cheap".split()


class WordSession:
    """Scores an answer by how many of its words the prompt's data holds: each of the others costs 2, these 0.5."""

    provider = "words"

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request], decoding: Decoding, output: Any = None, *, done: Any = None) -> Any:
        return [Completion("", "error", error="writes nothing") for _ in requests]

    def score(self, requests: Sequence[Request], answers: Sequence[str]) -> np.ndarray:
        self.requests += requests
        scores = np.empty((len(requests), len(answers)), dtype=np.float32)
        for row, request in enumerate(requests):
            known = set(words(" ".join(part.text for part in request.user if part.data)))
            for column, answer in enumerate(answers):
                costs = [0.5 if word in known else 2.0 for word in words(answer)]
                scores[row, column] = -sum(costs) if known else np.nan
        return scores


def words(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


@pytest.fixture
def session() -> WordSession:
    return WordSession()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights and one token per word; read only."""
    torch = pytest.importorskip("torch", reason="the export extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the export extra is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *"i want a the with and".split(), *WORDS]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: row for row, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    folder = tmp_path_factory.mktemp("models") / "bert"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask", "token_type_ids"], **names
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(
            transformers.BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=32,
                initializer_range=0.2,
            )
        ).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def rendered() -> Callable[..., str | None]:
    """What a generator reads for one row: the system text and the prompt, with data between ⟦ and ⟧."""
    from llmrec_plugin.pipeline.prompts import read_rows, render

    def rendered(feature: Any, **row: Any) -> str | None:
        inputs = read_rows(feature, {name: [row.get(name)] for name in feature.columns})
        assert not inputs.invalid, inputs.invalid
        if inputs.keys[0] is None:
            return None
        request = render(feature, inputs.keys[0])
        user = "".join(f"⟦{part.text}⟧" if part.data else part.text for part in request.user)
        return f"{request.system}\n---\n{user}\n"

    return rendered
