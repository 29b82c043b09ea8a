"""Trains MINT's bi-encoder on pairs of a request and a document, on a CPU if need be.

    loss = max(0, |q - d| - |q - n| + margin)      q: request, d: its document, n: another document of the batch

Distances are Euclidean, on pooled and not normalized vectors. The saved folder states pooling and metric, so that
``llmrec export FOLDER`` needs nothing else. Needs the extra ``export``.
"""

from __future__ import annotations

import importlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmrec_plugin.errors import InputError, MissingExtraError, SourceError
from llmrec_plugin.systems.mint.queries import Pair

Triple = tuple[str, str, str]
"""Request, its document, another document."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What was trained, and what came of it.

    Attributes:
        pairs: Pairs that were trained on.
        dev_pairs: Pairs that were only measured on.
        epochs: Passes over the pairs.
        steps: Updates.
        batch_size: Pairs of an update.
        learning_rate: The largest, reached after `warmup`.
        warmup: Share of the steps in which the learning rate rises; it falls linearly to 0 in the rest.
        margin: Of the loss.
        pooling: ``mean`` or ``cls``.
        max_tokens: Longest input, special tokens included.
        seed: Of order, negatives and dropout.
        epoch_losses: Mean loss of each epoch.
        dev_loss_before: Mean loss of the dev pairs before training; NaN without dev pairs.
        dev_loss_after: Mean loss of the dev pairs after training.
    """

    pairs: int
    dev_pairs: int
    epochs: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    margin: float
    pooling: str
    max_tokens: int
    seed: int
    epoch_losses: tuple[float, ...]
    dev_loss_before: float
    dev_loss_after: float


def train_bi_encoder(
    pairs: Sequence[Pair],
    base: Path,
    target: Path,
    *,
    max_tokens: int,
    pooling: Literal["mean", "cls"] = "mean",
    dev: Sequence[Pair] = (),
    epochs: int = 3,
    batch_size: int = 16,
    learning_rate: float = 2e-5,
    warmup: float = 0.1,
    margin: float = 1.0,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> TrainingRecord:
    """Trains a copy of the encoder in `base` and saves it into `target`, with ``training.json``.

    One encoder reads requests and documents. A pair's negative is another document of its batch, drawn, that is no
    document of the same request. Equal input, seed and thread count give equal weights on one machine.

    Args:
        pairs: Requests with their documents, e.g. from `keep_likely`.
        base: Hugging Face folder of an encoder: configuration, tokenizer, safetensors weights.
        target: Folder to write; must not exist or be empty.
        max_tokens: Longest input, special tokens included; longer ones are cut.
        pooling: How token vectors become one: attention-masked ``mean``, or the first token (``cls``).
        dev: Pairs to measure the loss on, before and after.
        epochs: Passes over the pairs.
        batch_size: Pairs of an update.
        learning_rate: The largest one.
        warmup: Share of the steps in which the learning rate rises.
        margin: How much farther than its document a negative shall be.
        seed: Of order, negatives and dropout.
        report: Called with a line after each epoch.

    Raises:
        InputError: There are too few pairs for a negative, a number is out of range, or `target` is not empty.
        SourceError: `base` holds no encoder in safetensors.
        MissingExtraError: torch or transformers is not installed.
    """
    _check(pairs, base, target, epochs, batch_size, learning_rate, warmup, margin, max_tokens)
    torch = _import("torch")
    encoder = _Encoder(base, pooling, max_tokens)
    loss_of = torch.nn.TripletMarginLoss(margin=margin, p=2)
    order = random.Random(seed)  # noqa: S311  # reproducible, nothing to guess
    positives = _positives([*pairs, *dev])
    held_out = _triples(dev, positives, order)
    steps = epochs * math.ceil(len(pairs) / batch_size)
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, warmup))
    before = _dev_loss(encoder, loss_of, held_out, batch_size)
    epoch_losses = []
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator, which is the caller's
        torch.manual_seed(seed)
        for epoch in range(epochs):
            encoder.model.train()
            losses, count = 0.0, 0
            for batch in _batches(pairs, batch_size, order):
                triples = _triples(batch, positives, order)
                if not triples:
                    continue
                loss = loss_of(*encoder.vectors(triples))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(encoder.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses, count = losses + loss.item() * len(triples), count + len(triples)
            epoch_losses.append(losses / count if count else math.nan)
            report(f"epoch {epoch + 1} of {epochs}: mean loss {epoch_losses[-1]:.4f} over {count} pairs")
    record = TrainingRecord(
        pairs=len(pairs),
        dev_pairs=len(held_out),
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        margin=margin,
        pooling=pooling,
        max_tokens=max_tokens,
        seed=seed,
        epoch_losses=tuple(epoch_losses),
        dev_loss_before=before,
        dev_loss_after=_dev_loss(encoder, loss_of, held_out, batch_size),
    )
    encoder.save(target, record)
    return record


class _Encoder:
    """A transformer with pooling, as it is trained."""

    def __init__(self, base: Path, pooling: str, max_tokens: int) -> None:
        transformers = _import("transformers")
        self.pooling, self.max_tokens = pooling, max_tokens
        self.lower_case = bool(_json(base / "sentence_bert_config.json").get("do_lower_case"))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
        self.model = transformers.AutoModel.from_pretrained(base, local_files_only=True, use_safetensors=True).float()

    def vectors(self, triples: Sequence[Triple]) -> tuple[Any, Any, Any]:
        """Request, document, negative: each (triples, dims) float32."""
        texts = [text for column in zip(*triples, strict=True) for text in column]
        distinct = list(dict.fromkeys(texts))  # a document may be one pair's own and another's negative
        pooled = self._encode(distinct)
        row = {text: number for number, text in enumerate(distinct)}
        query, document, negative = pooled[[row[text] for text in texts]].chunk(3)
        return query, document, negative

    def _encode(self, texts: list[str]) -> Any:
        if self.lower_case:
            texts = [text.lower() for text in texts]
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        hidden = self.model(**batch).last_hidden_state  # (texts, tokens, dims)
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def save(self, folder: Path, record: TrainingRecord) -> None:
        """Writes weights, tokenizer, the record, and what sentence-transformers and the export read."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
        pooling = {
            "word_embedding_dimension": self.model.config.hidden_size,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
        }
        files: dict[str, Any] = {
            "modules.json": [
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for number, (path, kind) in enumerate(steps)
            ],
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": {"max_seq_length": self.max_tokens, "do_lower_case": self.lower_case},
            "config_sentence_transformers.json": {"similarity_fn_name": "euclidean"},
            "training.json": asdict(record),
        }
        (folder / "1_Pooling").mkdir(exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _batches(pairs: Sequence[Pair], size: int, order: random.Random) -> Iterator[Sequence[Pair]]:
    """The pairs in a new order, `size` at a time."""
    shuffled = order.sample(list(pairs), len(pairs))
    for start in range(0, len(shuffled), size):
        yield shuffled[start : start + size]


def _triples(batch: Sequence[Pair], positives: Mapping[str, set[str]], order: random.Random) -> list[Triple]:
    """Each pair with the document of another one; a pair for which there is none is left out."""
    documents = list(dict.fromkeys(document for _, document in batch))
    triples = []
    for query, document in batch:
        others = [other for other in documents if other not in positives[query]]
        if others:
            triples.append((query, document, order.choice(others)))
    return triples


def _positives(pairs: Sequence[Pair]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for query, document in pairs:
        found.setdefault(query, set()).add(document)
    return found


def _dev_loss(encoder: _Encoder, loss_of: Any, triples: Sequence[Triple], size: int) -> float:
    """Mean loss of the triples, without dropout."""
    if not triples:
        return math.nan
    torch = _import("torch")
    encoder.model.eval()
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(triples), size):
            part = triples[start : start + size]
            total += loss_of(*encoder.vectors(part)).item() * len(part)
    return total / len(triples)


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: up linearly, down linearly."""
    rising = warmup * steps
    return min(1.0, (step + 1) / rising) if step < rising else (steps - step) / max(1.0, steps - rising)


def _check(
    pairs: Sequence[Pair],
    base: Path,
    target: Path,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    margin: float,
    max_tokens: int,
) -> None:
    if len({document for _, document in pairs}) < 2 or len({query for query, _ in pairs}) < 2:
        raise InputError("train_bi_encoder: expected pairs of two requests and two documents at least.")
    if min(epochs, max_tokens) < 1 or batch_size < 2 or learning_rate <= 0 or margin <= 0 or not 0 <= warmup < 1:
        raise InputError(
            "train_bi_encoder: expected epochs >= 1, max_tokens >= 1, batch_size >= 2, learning_rate > 0, margin > 0 "
            f"and warmup in [0, 1), got {epochs}, {max_tokens}, {batch_size}, {learning_rate}, {margin}, {warmup}."
        )
    if not (base / "config.json").is_file() or not list(base.glob("model*.safetensors")):
        raise SourceError(f"{base}: expected the folder of an encoder, with config.json and model.safetensors.")
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is not empty; name another folder.")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)  # takes seconds, and only training needs it
    except ModuleNotFoundError as exc:
        raise MissingExtraError(module, "export", "Training a bi-encoder") from exc
