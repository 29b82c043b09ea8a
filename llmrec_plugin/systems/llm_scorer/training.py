"""Tunes a generator to answer Yes or No: LoRA, and a loss on the answer's tokens alone.

    interactions -> rows (liked, disliked, candidate, label) -> prompts of `pointwise_score` -> LoRA -> merged folder

Rows of one data set are balanced where there are no ratings: for each event an item that the user does not have.
Measured on validation rows are the area under the ROC curve of P(Yes), before and after, and of what needs no model.
Needs the extra ``tune``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import ITEM, TIME, USER, Dataset, split_dataset
from llmrec_plugin.systems.llm_scorer.features import YES_NO, pointwise_score
from llmrec_plugin.systems.llm_scorer.rows import scoring_rows
from llmrec_plugin.training.loop import Plan, fit
from llmrec_plugin.training.lora import add_lora, merge_lora
from llmrec_plugin.training.prompts import TrainableGenerator, generator_in

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("liked", "disliked", "candidate")
_UNREAD = -100
"""The label of tokens that are not in the loss, as PyTorch's cross-entropy has it."""


@dataclass(frozen=True, kw_only=True)
class ScorerSettings:
    """How a scorer is tuned.

    Attributes:
        text: Template of an item's text over its columns.
        liked_from: Least rating of what is liked; None: every event is, and as many others are drawn that are not.
        most_items: Items of each list at most.
        rows: Training rows at most, drawn.
        evaluated: Validation rows at most, drawn; for early stopping and the measured table.
        answers: Yes and No as they follow the prompt; see `pointwise_score`.
        chat: Whether prompts are put into the tokenizer's chat template.
        max_tokens: Longest prompt and answer, in tokens; None: what the model has positions for.
        rank: Of LoRA.
        epochs: Passes over the rows at most.
        patience: Epochs without a better validation loss after which to stop.
        batch: Rows of an update.
        learning_rate: The highest.
        seed: Of rows, order, dropout and LoRA.
    """

    text: str
    liked_from: float | None = None
    most_items: int = 10
    rows: int = 1000
    evaluated: int = 500
    answers: tuple[str, str] = YES_NO
    chat: bool = False
    max_tokens: int | None = 512
    rank: int = 8
    epochs: int = 3
    patience: int = 2
    batch: int = 8
    learning_rate: float = 3e-4
    seed: int = 0


class Example(NamedTuple):
    """A prompt with its answer, as token ids."""

    prompt: list[int]
    answer: list[int]


def train_scorer(
    dataset: Dataset,
    base: str,
    output: Path,
    settings: ScorerSettings,
    *,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Tunes a copy of the generator in `base` and saves it, merged, into `output`.

    `output` gets the merged model, ``adapter/`` with LoRA alone, ``quality.json`` and ``work/`` with the checkpoint of
    a run that was stopped. Equal input, seed and thread count give equal weights on one machine.

    Args:
        dataset: Interactions and texts.
        base: Hugging Face folder of a causal language model.
        output: Folder to write.
        settings: How.
        progress: Whether to show a bar.
        report: Called with one line of progress.

    Returns:
        The content of ``quality.json``.

    Raises:
        InputError: There are no rows to learn from or to measure on, or `output` holds another run.
        SourceError: `base` holds no generator.
        MissingExtraError: torch, transformers or peft is not installed.
    """
    train, validation = example_rows(dataset, settings)
    report(f"{len(train)} training rows, {len(validation)} validation rows")
    generator = TrainableGenerator(generator_in(base, chat=settings.chat, max_tokens=settings.max_tokens))
    feature = pointwise_score(model="base", answers=settings.answers)
    answers = generator.answers(settings.answers)
    learned, measured = (_examples(generator, feature, rows, answers) for rows in (train, validation))
    before = probabilities(generator, measured, answers, settings.batch)
    generator.network = add_lora(
        generator.network, rank=settings.rank, dropout=0.05, task="CAUSAL_LM", seed=settings.seed
    )
    history = fit(
        generator.network,
        lambda seed: _batches(learned, settings.batch, seed),
        lambda batch: answer_loss(generator, batch),
        lambda: _mean_loss(generator, measured, settings.batch),
        Plan(
            epochs=settings.epochs,
            patience=settings.patience,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
        ),
        checkpoint=output / "work" / "checkpoint.pt",
        identity=_identity(generator.weights_sha256, settings, learned),
        progress=progress,
        report=report,
    )
    after = probabilities(generator, measured, answers, settings.batch)
    generator.network.save_pretrained(output / "adapter", safe_serialization=True)
    generator.save(output, merge_lora(generator.network))
    labels = validation["label"].to_numpy()
    quality = {
        "settings": asdict(settings),
        "base": {"source": base, "weights_sha256": generator.weights_sha256},
        "rows": {"train": len(train), "validation": len(validation), "liked": int(labels.sum())},
        "epochs": [asdict(epoch) for epoch in history],
        "auc": {"tuned": auc(labels, after), "before": auc(labels, before), **baselines(train, validation)},
    }
    (output / "quality.json").write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    return quality


def example_rows(dataset: Dataset, settings: ScorerSettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and validation rows of `scoring_rows`, drawn; without ratings, as many again with items drawn.

    Raises:
        InputError: A part has no rows, or rows of one label only.
    """
    import pandas as pd

    split = split_dataset(dataset, seed=settings.seed)
    events = pd.concat([split.train.assign(_train=True), split.validation.assign(_train=False)], ignore_index=True)
    if dataset.timed:  # a split that is given need not be one in time
        events = events.sort_values(TIME, kind="stable", ignore_index=True)
    rows = scoring_rows(
        events, dataset.item_texts(settings.text), liked_from=settings.liked_from, most=settings.most_items
    )
    rng = np.random.default_rng(settings.seed)
    is_train = events["_train"].to_numpy()[rows.index]
    parts = []
    for name, part, most in (
        ("training", rows[is_train], settings.rows),
        ("validation", rows[~is_train], settings.evaluated),
    ):
        if settings.liked_from is None:
            part = part.iloc[rng.permutation(len(part))[: most // 2]]
            # What users take up later is unknown to training, so it may be drawn.
            part = _with_negatives(part, rows, events[events["_train"]] if name == "training" else events, rng)
        part = part.iloc[np.sort(rng.permutation(len(part))[:most])].reset_index(drop=True)
        if part["label"].nunique() < 2:
            raise InputError(
                f"data set {dataset.name!r}: the {name} rows have {len(part)} rows and not both labels. Expected liked "
                "and disliked items; look at liked_from and at the text template."
            )
        parts.append(part)
    return parts[0], parts[1]


def answer_loss(generator: TrainableGenerator, batch: Sequence[Example]) -> Any:
    """Mean over the batch's answer tokens of their negative log probability, a scalar tensor."""
    import torch

    logits, labels = _answers_of(generator, batch)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_UNREAD)


def probabilities(
    generator: TrainableGenerator, examples: Sequence[Example], answers: Sequence[list[int]], size: int
) -> np.ndarray:
    """P(first answer) among `answers` after each prompt, (examples,) float64, as the feature gives it."""
    import torch

    generator.network.eval()
    order = np.argsort([len(example.prompt) for example in examples], kind="stable")
    scores = np.empty((len(examples), len(answers)))
    with torch.inference_mode():
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for column, answer in enumerate(answers):
                batch = [Example(examples[row].prompt, answer) for row in rows]
                logits, labels = _answers_of(generator, batch)
                chances = logits.log_softmax(-1).gather(2, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
                scores[rows, column] = chances.masked_fill(labels == _UNREAD, 0).sum(1).numpy()
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares[:, 0] / shares.sum(axis=1))


def baselines(train: pd.DataFrame, validation: pd.DataFrame) -> dict[str, float]:
    """The area under the curve of what needs no model: the share of liked items in the prompt's own lists, the share of
    likes of the item in the training rows, and the mean of both."""
    liked = validation["liked"].map(len) + 1
    share = (liked / (liked + validation["disliked"].map(len) + 1)).to_numpy()
    mean = train["label"].mean()
    sums = train.groupby(ITEM)["label"].agg(["sum", "count"])
    smoothed = (sums["sum"] + mean) / (sums["count"] + 1)
    item = validation[ITEM].map(smoothed).fillna(mean).to_numpy()
    labels = validation["label"].to_numpy()
    return {
        "liked_share_of_history": auc(labels, share),
        "liked_share_of_item": auc(labels, item),
        "both": auc(labels, share + item),
    }


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a liked row has the higher score; equal scores count a half.

    Args:
        labels: (n,) 0 or 1, with both.
        scores: (n,) numbers.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1, equal scores share their mean
    positive = labels == 1
    count = int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))


def _answers_of(generator: TrainableGenerator, batch: Sequence[Example]) -> tuple[Any, Any]:
    """The logits for the answers' tokens, (batch, tokens, vocabulary), and the tokens, (batch, tokens) int64.

    Sequences end together, so that only the logits of the last tokens are computed; what stands before a shorter answer
    is not in the loss.
    """
    import torch

    longest = max(len(example.prompt) + len(example.answer) for example in batch)
    kept = max(len(example.answer) for example in batch)
    ids = torch.full((len(batch), longest), generator.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full((len(batch), kept), _UNREAD)
    for row, (prompt, answer) in enumerate(batch):
        length = len(prompt) + len(answer)
        ids[row, longest - length :] = torch.tensor([*prompt, *answer])
        mask[row, longest - length :] = 1
        labels[row, kept - len(answer) :] = torch.tensor(answer)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = generator.network(
        input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept + 1, use_cache=False
    )
    return found.logits[:, :-1].float(), labels


def _examples(
    generator: TrainableGenerator, feature: Any, rows: pd.DataFrame, answers: Sequence[list[int]]
) -> list[Example]:
    columns: Mapping[str, Sequence[Any]] = {name: rows[name].tolist() for name in _COLUMNS}
    prompts = generator.prompts(feature, columns, room=max(map(len, answers)))
    empty = [row for row, prompt in enumerate(prompts) if prompt is None]
    if empty:
        raise InputError(f"llm-scorer: row {empty[0]} gives no prompt: {rows.iloc[empty[0]].to_dict()!r:.200}.")
    return [
        Example(prompt, answers[0 if label else 1])
        for prompt, label in zip(prompts, rows["label"], strict=True)
        if prompt is not None
    ]


def _batches(examples: Sequence[Example], size: int, seed: int) -> list[list[Example]]:
    """Examples of like lengths together, the batches in any order; equally many for each seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(examples))
    lengths = np.array([len(examples[row].prompt) for row in order])
    chunk = 16 * size
    ordered = [
        row
        for start in range(0, len(order), chunk)
        for row in order[start : start + chunk][np.argsort(lengths[start : start + chunk], kind="stable")]
    ]
    batches = [[examples[row] for row in ordered[start : start + size]] for start in range(0, len(ordered), size)]
    return [batches[at] for at in rng.permutation(len(batches))]


def _mean_loss(generator: TrainableGenerator, examples: Sequence[Example], size: int) -> float:
    ordered = sorted(examples, key=lambda example: len(example.prompt))
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return sum(answer_loss(generator, part).item() * len(part) for part in parts) / len(ordered)


def _with_negatives(
    part: pd.DataFrame, rows: pd.DataFrame, events: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """The rows and, for each, one with an item that its user has no event with."""
    import pandas as pd

    texts = dict(zip(rows[ITEM], rows["candidate"], strict=True))
    items = sorted(texts)
    owned = {user: set(group) for user, group in events.groupby(USER)[ITEM]}
    drawn = []
    for user in part[USER]:
        others = [items[at] for at in rng.integers(0, len(items), 20)]
        drawn.append(next((item for item in others if item not in owned[user]), None))
    negatives = part.assign(label=0, **{ITEM: drawn, "candidate": [texts.get(item) for item in drawn]})
    return pd.concat([part, negatives[negatives["candidate"].notna()]], ignore_index=True)


def _identity(weights: str, settings: ScorerSettings, examples: Sequence[Example]) -> str:
    content = json.dumps([weights, asdict(settings), examples])
    return hashlib.sha256(content.encode()).hexdigest()
