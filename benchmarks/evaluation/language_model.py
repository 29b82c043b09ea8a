"""A small language model that has read one data set and nothing else: what `llmrec train llm-scorer` starts from.

    interactions -> prompts of `pointwise_score` with their answers -> every next token -> Hugging Face folder

No trained language model is taken from elsewhere. So what the scorer shows is what a model of this size learns of the
interactions; of the world it knows nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmrec_plugin import Scores, TokenFeature
from llmrec_plugin.interactions import read_atomic
from llmrec_plugin.systems.llm_scorer import pointwise_score
from llmrec_plugin.systems.llm_scorer.training import ScorerSettings, example_rows
from llmrec_plugin.testing.tiny import train_byte_tokenizer
from llmrec_plugin.training.loop import Plan, fit
from llmrec_plugin.training.prompts import TrainableGenerator, generator_in

PAD, END = "<pad>", "</s>"
VOCABULARY, HIDDEN, LAYERS, LENGTH = 2_048, 128, 2, 512
BATCH = 16
_IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""


def train_language_model(data: Path, output: Path, settings: ScorerSettings, plan: Plan) -> None:
    """Trains the model and writes it, with its tokenizer.

    Args:
        data: Folder of atomic files.
        output: Folder to write.
        settings: Which rows are read, and how they are shown.
        plan: How long and how fast.
    """
    dataset = read_atomic(data)
    feature = pointwise_score(model="base", answers=settings.answers)
    texts = sorted({text for text in dataset.item_texts(settings.text).values() if text})
    texts += [feature.prompt.system, feature.prompt.user, *settings.answers] * len(texts)  # they are in every row
    with tempfile.TemporaryDirectory() as folder:
        save_untrained(texts, Path(folder), plan.seed)
        generator = TrainableGenerator(generator_in(folder, chat=False, max_tokens=LENGTH))
    learned, measured = (sequences(generator, feature, rows) for rows in example_rows(dataset, settings))
    fit(
        generator.network,
        lambda seed: batches(learned, seed),
        lambda batch: next_token_loss(generator, batch),
        lambda: float(np.mean([next_token_loss(generator, batch).item() for batch in batches(measured, 0)])),
        plan,
        checkpoint=output / "work" / "checkpoint.pt",
        identity=generator.weights_sha256,
    )
    generator.save(output, generator.network)


def sequences(generator: TrainableGenerator, feature: TokenFeature, rows: pd.DataFrame) -> list[list[int]]:
    """The tokens of each row's prompt and its answer."""
    assert isinstance(feature.output, Scores)
    yes, no = generator.answers(feature.output.answers)
    columns = {name: rows[name].tolist() for name in ("liked", "disliked", "candidate")}
    prompts = generator.prompts(feature, columns, room=max(len(yes), len(no)))
    return [
        [*prompt, *(yes if label else no)]
        for prompt, label in zip(prompts, rows["label"], strict=True)
        if prompt is not None
    ]


def save_untrained(texts: Sequence[str], folder: Path, seed: int) -> None:
    """A model with random weights and a tokenizer with the merges of `texts`."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = train_byte_tokenizer(texts, [PAD, END], VOCABULARY)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END).save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=HIDDEN, intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder, safe_serialization=True)


def next_token_loss(generator: TrainableGenerator, batch: Sequence[Sequence[int]]) -> Any:
    """Mean negative log probability of every token after the first, a scalar tensor."""
    import torch

    longest = max(map(len, batch))
    ids = torch.full((len(batch), longest), generator.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return generator.network(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


def batches(rows: Sequence[Sequence[int]], seed: int) -> list[list[Sequence[int]]]:
    """Rows of like lengths together, the batches in any order."""
    rng = np.random.default_rng(seed)
    order = sorted(rng.permutation(len(rows)), key=lambda row: len(rows[row]))
    parts = [[rows[row] for row in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    return [parts[part] for part in rng.permutation(len(parts))]
