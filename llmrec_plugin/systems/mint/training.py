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
from llmrec_plugin.model_folders import check_model_folder
from llmrec_plugin.systems.mint.queries import Pair

Triple = tuple[str, str, str]
"""Request, its document, another document."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a bi-encoder is trained.

    Attributes:
        max_tokens: Longest input in tokens, special tokens included; longer ones are cut.
        pooling: How token vectors become one: attention-masked ``mean``, or the first token (``cls``).
        epochs: Passes over the pairs.
        batch_size: Pairs of an update; negatives come from the same batch.
        learning_rate: The largest one.
        warmup: Share of the steps in which the learning rate rises; it falls linearly to 0 in the rest.
        margin: How much farther than its document a negative shall be from the request.
        seed: Of order, negatives and dropout.
    """

    max_tokens: int
    pooling: Literal["mean", "cls"] = "mean"
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 2e-5
    warmup: float = 0.1
    margin: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "cls"):
            raise InputError(f"training: pooling must be 'mean' or 'cls', got {self.pooling!r}.")
        if min(self.epochs, self.max_tokens) < 1 or self.batch_size < 2:
            raise InputError(f"training: expected epochs >= 1, max_tokens >= 1 and batch_size >= 2, got {self}.")
        if not (self.learning_rate > 0 and self.margin > 0 and 0 <= self.warmup < 1):
            raise InputError(f"training: expected learning_rate > 0, margin > 0 and warmup in [0, 1), got {self}.")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What was trained, and what came of it; ``training.json`` beside the weights.

    Attributes:
        settings: As given.
        pairs: Pairs that were trained on.
        dev_pairs: Pairs that were only measured on.
        epoch_losses: Mean loss of each epoch, with dropout.
        dev_loss_before: Mean loss of the dev pairs before training; None without dev pairs.
        dev_loss_after: Mean loss of the dev pairs after training.
    """

    settings: TrainingSettings
    pairs: int
    dev_pairs: int
    epoch_losses: tuple[float, ...]
    dev_loss_before: float | None
    dev_loss_after: float | None


def train_bi_encoder(
    pairs: Sequence[Pair],
    base: Path,
    target: Path,
    settings: TrainingSettings,
    *,
    dev: Sequence[Pair] = (),
    report: Callable[[str], None] = lambda line: None,
) -> TrainingRecord:
    """Trains a copy of the encoder in `base` and saves it into `target`.

    One encoder reads requests and documents. A pair's negative is another document of its batch, drawn, that is no
    document of the same request. Equal input, seed and thread count give equal weights on one machine.

    Args:
        pairs: Requests with their documents, e.g. from `keep_likely`.
        base: Hugging Face folder of an encoder: configuration, tokenizer, safetensors weights.
        target: Folder to write; must not exist or be empty.
        settings: How.
        dev: Pairs to measure the loss on, before and after.
        report: Called with a line after each epoch.

    Raises:
        InputError: There are too few pairs for negatives, or `target` is not empty.
        SourceError: `base` holds no encoder in safetensors, or `check_model_folder` refuses it.
        MissingExtraError: torch or transformers is not installed.
    """
    _check(pairs, base, target)
    torch = _import("torch")
    draw = random.Random(settings.seed)  # noqa: S311  # reproducible, nothing to guess
    positives = _positives([*pairs, *dev])
    held_out = _triples(dev, positives, draw)
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator, which is the caller's
        torch.manual_seed(settings.seed)
        encoder = _Encoder(base, settings)
        before = encoder.mean_loss(held_out)
        losses = _train(encoder, pairs, positives, draw, settings, report)
        after = encoder.mean_loss(held_out)
    record = TrainingRecord(
        settings=settings,
        pairs=len(pairs),
        dev_pairs=len(held_out),
        epoch_losses=losses,
        dev_loss_before=before,
        dev_loss_after=after,
    )
    encoder.save(target, record)
    return record


def _train(
    encoder: _Encoder,
    pairs: Sequence[Pair],
    positives: Mapping[str, set[str]],
    draw: random.Random,
    settings: TrainingSettings,
    report: Callable[[str], None],
) -> tuple[float, ...]:
    """Trains the encoder in place; the mean loss of each epoch."""
    torch = _import("torch")
    steps = settings.epochs * math.ceil(len(pairs) / settings.batch_size)
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, settings.warmup))
    encoder.model.train()
    epochs = []
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for batch in _batches(pairs, settings.batch_size, draw):
            triples = _triples(batch, positives, draw)
            if not triples:
                continue
            loss = encoder.loss(triples)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses += [loss.item()] * len(triples)
        if not losses:
            raise InputError("training: no batch holds documents of two requests; raise batch_size.")
        epochs.append(math.fsum(losses) / len(losses))
        report(f"epoch {epoch} of {settings.epochs}: mean loss {epochs[-1]:.4f} over {len(losses)} pairs")
    return tuple(epochs)


class _Encoder:
    """A transformer with pooling, as it is trained."""

    def __init__(self, base: Path, settings: TrainingSettings) -> None:
        transformers = _import("transformers")
        self.settings = settings
        self.lower_case = bool(_json(base / "sentence_bert_config.json").get("do_lower_case"))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(
            base, local_files_only=True, trust_remote_code=False
        )
        self.model = transformers.AutoModel.from_pretrained(
            base, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).float()
        self._triplet_loss = _import("torch").nn.TripletMarginLoss(margin=settings.margin, p=2)

    def loss(self, triples: Sequence[Triple]) -> Any:
        """Mean loss of the triples, a scalar tensor."""
        return self._triplet_loss(*self.vectors(triples))

    def mean_loss(self, triples: Sequence[Triple]) -> float | None:
        """Mean loss of any number of triples, without dropout; None of none."""
        if not triples:
            return None
        self.model.eval()
        size = self.settings.batch_size
        parts = [triples[start : start + size] for start in range(0, len(triples), size)]
        with _import("torch").inference_mode():
            return math.fsum(self.loss(part).item() * len(part) for part in parts) / len(triples)

    def vectors(self, triples: Sequence[Triple]) -> tuple[Any, Any, Any]:
        """Request, document, negative: each (triples, dims) float32."""
        texts = [text for column in zip(*triples, strict=True) for text in column]
        distinct = list(dict.fromkeys(texts))  # a document may be one pair's own and another's negative
        row = {text: number for number, text in enumerate(distinct)}
        query, document, negative = self._encode(distinct)[[row[text] for text in texts]].chunk(3)
        return query, document, negative

    def _encode(self, texts: list[str]) -> Any:
        if self.lower_case:
            texts = [text.lower() for text in texts]
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.settings.max_tokens, return_tensors="pt"
        )
        hidden = self.model(**batch).last_hidden_state  # (texts, tokens, dims)
        if self.settings.pooling == "cls":
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
            "pooling_mode_cls_token": self.settings.pooling == "cls",
            "pooling_mode_mean_tokens": self.settings.pooling == "mean",
        }
        files: dict[str, Any] = {
            "modules.json": [
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for number, (path, kind) in enumerate(steps)
            ],
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": {"max_seq_length": self.settings.max_tokens, "do_lower_case": self.lower_case},
            "config_sentence_transformers.json": {"similarity_fn_name": "euclidean"},
            "training.json": asdict(record),
        }
        (folder / "1_Pooling").mkdir(exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _batches(pairs: Sequence[Pair], size: int, draw: random.Random) -> Iterator[Sequence[Pair]]:
    """The pairs in a new order, `size` at a time."""
    shuffled = draw.sample(list(pairs), len(pairs))
    for start in range(0, len(shuffled), size):
        yield shuffled[start : start + size]


def _triples(batch: Sequence[Pair], positives: Mapping[str, set[str]], draw: random.Random) -> list[Triple]:
    """Each pair with the document of another one; a pair for which there is none is left out."""
    documents = list(dict.fromkeys(document for _, document in batch))
    triples = []
    for query, document in batch:
        others = [other for other in documents if other not in positives[query]]
        if others:
            triples.append((query, document, draw.choice(others)))
    return triples


def _positives(pairs: Sequence[Pair]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for query, document in pairs:
        found.setdefault(query, set()).add(document)
    return found


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: up linearly, down linearly."""
    rising = warmup * steps
    return min(1.0, (step + 1) / rising) if step < rising else (steps - step) / max(1.0, steps - rising)


def _check(pairs: Sequence[Pair], base: Path, target: Path) -> None:
    if len({document for _, document in pairs}) < 2 or len({query for query, _ in pairs}) < 2:
        raise InputError("training: expected pairs of two requests and two documents at least.")
    if not (base / "config.json").is_file() or not list(base.glob("model*.safetensors")):
        raise SourceError(f"{base}: expected the folder of an encoder, with config.json and model.safetensors.")
    check_model_folder(base)
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is not empty; name another folder.")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)  # takes seconds, and only training needs it
    except ModuleNotFoundError as exc:
        raise MissingExtraError(module, "export", "Training a bi-encoder") from exc
