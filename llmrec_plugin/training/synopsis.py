"""Trains the decoder of a `GeneratorModel` on a frozen BERT: a text in, a short text out."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.errors import InputError
from llmrec_plugin.export.grafting import BASE, DECODER, as_bart, complete, trained_names, write_graft
from llmrec_plugin.export.sources import find_folder
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.pipeline.batching import pad, plan_batches
from llmrec_plugin.specs import digest
from llmrec_plugin.training.loop import Plan, fit
from llmrec_plugin.training.rows import first_sentence, group_rows, limited, split_rows, texts_of
from llmrec_plugin.training.scores import nearest, rouge_l
from llmrec_plugin.training.states import Run, encode_states, pytorch_encoder
from llmrec_plugin.training.tags import NEAR, QUALITY_FILE

LABEL_SMOOTHING = 0.1
BATCHES_PER_POOL = 32
"""Rows of so many batches are ordered by length together: less padding, and the order is still random."""
EXAMPLES = 40
WAYS = {"greedy": 1, "beam 4": 4}
"""Of writing, with their beams."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SynopsisColumns:
    """Names of the columns: what the model reads, what it learns to write, and what near duplicates share, or None."""

    text: str = "description"
    target: str = "synopsis"
    name: str | None = "name"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the model and of a batch.

    Attributes:
        decoder_layers: Layers of the decoder.
        source_tokens: The text is cut to so many tokens, special tokens included.
        target_tokens: The target is cut to so many, special tokens included.
        batch: Rows of a batch.
        least_count: Training targets in which a token must be so that it may be written; fewer tokens are faster.
    """

    decoder_layers: int = 2
    source_tokens: int = 128
    target_tokens: int = 32
    batch: int = 64
    least_count: int = 1


def train_synopsis(
    rows: Sequence[Mapping[str, Any]],
    source: str,
    output: Path,
    plan: Plan,
    *,
    columns: SynopsisColumns = SynopsisColumns(),
    size: Size = Size(),
    held_out: frozenset[str] = frozenset(),
    most_rows: int | None = None,
    evaluated: int | None = 1_000,
    encoder: Run | None = None,
    progress: bool = True,
    report: Callable[[str], None] = _log.info,
) -> dict[str, Any]:
    """Trains a decoder, measures it on rows without near duplicates in training, and writes both.

    Args:
        rows: Objects with a text and a target.
        source: Where the BERT is, as in `EncoderModel`.
        output: Folder for ``decoder.safetensors``, ``base.json``, ``quality.json`` and ``examples.json``; below
            ``work``, what a later run goes on from.
        plan: How long and how fast to learn.
        columns: Names of the columns.
        size: Sizes of the model and of a batch.
        held_out: Names of rows to test on; empty: a tenth of all groups.
        most_rows: Training rows at most; None: all.
        evaluated: Test rows to write for at most, drawn; None: all.
        encoder: Gives the token vectors of the BERT; None: PyTorch.
        progress: Whether to show bars.
        report: Called with one line of progress at a time.

    Returns:
        What ``quality.json`` holds.

    Raises:
        InputError: There are too few rows, or no such column.
        SourceError: The weights are not here, or no BERT.
    """
    torch = require("torch")
    texts, targets = texts_of(rows, columns.text), texts_of(rows, columns.target)
    names = texts_of(rows, columns.name) if columns.name else None
    kept = np.flatnonzero([bool(text and target) for text, target in zip(texts, targets, strict=True)])
    if not kept.size:
        raise InputError(f"No row has both a text in {columns.text!r} and one in {columns.target!r}.")
    texts, targets = [texts[row] for row in kept], [targets[row] for row in kept]
    names = [names[row] for row in kept] if names else None
    wanted = np.array([name in held_out for name in names]) if names and held_out else None
    groups = group_rows(texts, names)
    split = split_rows(groups, held_out=wanted, seed=plan.seed)
    split = limited(split, groups, train=most_rows, test=evaluated, seed=plan.seed)
    report(f"rows: {split.sizes()}")

    network = as_bart(find_folder(source), decoder_layers=size.decoder_layers)
    tokenizer = require("tokenizers").Tokenizer.from_file(str(find_folder(source) / "tokenizer.json"))
    tokenizer.no_padding()
    sources = _token_ids(tokenizer, texts, size.source_tokens)
    answers = _token_ids(tokenizer, targets, size.target_tokens)
    measured = np.random.default_rng(plan.seed).permutation(split.test)
    learned = np.concatenate([split.train, split.validation, split.test])
    read = [sources[row] for row in learned]
    identity = digest([source, size.source_tokens, _hash(read)])
    dims = network.config.d_model
    states = encode_states(
        encoder or pytorch_encoder(network), dims, read, output / "work", identity, progress=progress
    )
    place = {int(row): index for index, row in enumerate(learned)}

    allowed = _allowed([answers[row] for row in split.train], size.least_count, network.config.vocab_size)
    allowed = allowed[allowed != tokenizer.get_vocab().get("[UNK]", -1)]
    writer = _Writer(network, allowed, answers, split.train)
    report(
        f"{len(allowed)} tokens may be written; {sum(map(torch.numel, writer.trained.values()))} weights are trained"
    )

    def batches(seed: int) -> list[np.ndarray]:
        return _batches(split.train, [len(sources[row]) for row in split.train], size.batch, seed)

    def loss(rows: np.ndarray, smoothing: float = LABEL_SMOOTHING) -> Any:
        return writer(states.batch([place[int(row)] for row in rows]), [answers[row] for row in rows], smoothing)

    def validate() -> float:
        parts = _batches(split.validation, [len(sources[row]) for row in split.validation], size.batch, None)
        return float(np.average([loss(part, 0.0).item() for part in parts], weights=[len(part) for part in parts]))

    history = fit(
        writer.module,
        batches,
        loss,
        validate,
        plan,
        checkpoint=output / "work" / "decoder.pt",
        identity=digest([identity, _hash([answers[row] for row in learned]), asdict(size)]),
        progress=progress,
        report=report,
    )
    writer.store_bias()
    write_graft(network, allowed, output, source)

    report(f"writing for {len(measured)} test rows")
    wrote = _write_all(output, [sources[row] for row in measured], tokenizer, size, progress=progress)
    vectors = states.pooled()
    bases = [place[int(row)] for row in split.train]
    around, cosines = nearest(vectors[[place[int(row)] for row in measured]], vectors[bases], 1)
    wrote |= {
        "first sentence": [first_sentence(texts[row]) for row in measured],
        "first 12 words": [" ".join(texts[row].split()[:12]) for row in measured],
        "synopsis of the nearest training text": [targets[split.train[row]] for row in around[:, 0]],
    }
    truth = [targets[row] for row in measured]
    quality = {
        "task": "seq2seq",
        "columns": asdict(columns),
        "rows": split.sizes(),
        "size": asdict(size),
        "plan": asdict(plan),
        "tokens": len(allowed),
        "epochs": [asdict(epoch) for epoch in history],
        "test": {name: score_texts(truth, given) for name, given in wrote.items()},
        "gain_over_first_sentence": {
            name: gain(truth, given, wrote["first sentence"]) for name, given in wrote.items() if name in WAYS
        },
        "near_training_text": float((cosines >= NEAR).mean()),
    }
    stated = {key: quality[key] for key in ("rows", "test")}
    write_graft(network, allowed, output, source, stated)
    quality["sha256"] = sha256_file(output / DECODER)
    (output / QUALITY_FILE).write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    examples = [
        {"text": texts[row], "target": truth[index], **{name: given[index] for name, given in wrote.items()}}
        for index, row in enumerate(measured[:EXAMPLES])
    ]
    (output / "examples.json").write_text(json.dumps(examples, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    report(f"{output / BASE} and {output / DECODER} are written")
    return quality


def score_texts(truth: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """``rouge_l``: mean ROUGE-L F1; ``words``: mean length; and the shares of texts that are ``empty`` or ``rambling``:
    longer than 15 words or with a word twice in a row."""
    words = [text.split() for text in given]
    twice = [any(left == right for left, right in pairwise(row)) for row in words]
    return {
        "rouge_l": float(np.mean([rouge_l(*pair) for pair in zip(truth, given, strict=True)])),
        "words": float(np.mean([len(row) for row in words])),
        "empty": float(np.mean([not row for row in words])),
        "rambling": float(np.mean([len(row) > 15 or again for row, again in zip(words, twice, strict=True)])),
    }


def gain(truth: Sequence[str], given: Sequence[str], other: Sequence[str], draws: int = 10_000) -> dict[str, float]:
    """How much higher the mean ROUGE-L F1 of one way of writing is than another's, with its paired bootstrap 95 %
    interval (``low``, ``high``)."""
    pairs = zip(truth, given, other, strict=True)
    differences = np.array([rouge_l(target, mine) - rouge_l(target, theirs) for target, mine, theirs in pairs])
    drawn = np.random.default_rng(0).integers(0, len(differences), (draws, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


class _Writer:
    """The decoder with a softmax over the tokens that may be written.

    Args:
        network: A BART; its decoder is trained in place.
        allowed: Ids of those tokens, increasing.
        answers: Token ids of all targets.
        trained: Rows whose targets count for the first biases.
    """

    def __init__(self, network: Any, allowed: np.ndarray, answers: Sequence[np.ndarray], trained: np.ndarray) -> None:
        torch = require("torch")
        self._network, self._allowed = network, torch.from_numpy(allowed)
        self._embeddings = network.model.shared.weight.detach()[self._allowed]
        self._position = np.full(network.config.vocab_size, -100, dtype=np.int64)
        self._position[allowed] = np.arange(len(allowed))
        counts = np.bincount(np.concatenate([answers[row][1:] for row in trained]), minlength=network.config.vocab_size)
        frequency = np.log(counts[allowed] + 1.0)
        own = set(trained_names(network))
        decoder = network.model.decoder
        for name, weight in network.named_parameters():
            weight.requires_grad_(name.removeprefix("model.decoder.") in own and name.startswith("model.decoder."))
        self.module = torch.nn.Module()
        self.module.decoder = decoder
        self.module.bias = torch.nn.Parameter(torch.from_numpy((frequency - frequency.mean()).astype(np.float32)))
        self.trained = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def __call__(self, states: tuple[np.ndarray, np.ndarray], answers: Sequence[np.ndarray], smoothing: float) -> Any:
        """The mean loss per token, of (rows, length, dims) float32 states with their mask and the rows' answers."""
        torch = require("torch")
        ids, mask = pad([list(answer) for answer in answers], self._network.config.pad_token_id, "right")
        hidden = self.module.decoder(
            input_ids=torch.from_numpy(ids[:, :-1].copy()),
            encoder_hidden_states=torch.from_numpy(states[0]),
            encoder_attention_mask=torch.from_numpy(states[1]),
            use_cache=False,
        ).last_hidden_state
        real = torch.from_numpy(mask[:, 1:] == 1)
        expected = torch.from_numpy(self._position[ids[:, 1:]])[real]
        logits = torch.nn.functional.linear(hidden[real], self._embeddings, self.module.bias)
        return torch.nn.functional.cross_entropy(logits, expected, label_smoothing=smoothing)

    def store_bias(self) -> None:
        """Puts the trained biases into the network."""
        torch = require("torch")
        with torch.no_grad():
            self._network.final_logits_bias[0, self._allowed] = self.module.bias


def _token_ids(tokenizer: Any, texts: Sequence[str], most: int) -> list[np.ndarray]:
    tokenizer.enable_truncation(most)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch_fast(list(texts))]


def _allowed(answers: Sequence[np.ndarray], least_count: int, vocab_size: int) -> np.ndarray:
    """The tokens that are in at least so many answers, increasing int64."""
    counts = np.bincount(np.concatenate([np.unique(answer) for answer in answers]), minlength=vocab_size)
    return np.flatnonzero(counts >= least_count)


def _hash(sequences: Sequence[np.ndarray]) -> str:
    found = sha256()
    for ids in sequences:
        found.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return found.hexdigest()


def _batches(rows: np.ndarray, lengths: Sequence[int], batch: int, seed: int | None) -> list[np.ndarray]:
    """Batches of rows of similar length, in random order; all by length where there is no seed."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(rows)) if seed is not None else np.arange(len(rows))
    pool = batch * BATCHES_PER_POOL
    found = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        found += [rows[part[first : first + batch]] for first in range(0, len(part), batch)]
    return [found[index] for index in draw.permutation(len(found))] if seed is not None else found


def _write_all(
    folder: Path, sources: Sequence[np.ndarray], tokenizer: Any, size: Size, *, progress: bool
) -> dict[str, list[str]]:
    """What the stored model writes, greedily and with four beams, for the token ids of each text."""
    torch, transformers = require("torch"), require("transformers")
    with tempfile.TemporaryDirectory() as temporary:
        whole = complete(folder, Path(temporary, "model"))
        network = transformers.BartForConditionalGeneration.from_pretrained(
            whole, local_files_only=True, use_safetensors=True
        ).eval()
    pad_token_id = network.config.pad_token_id
    wrote = {}
    for name, beams in WAYS.items():
        texts = [""] * len(sources)
        for part in tqdm(plan_batches([len(ids) for ids in sources], 4_096), desc=name, disable=not progress):
            ids, mask = pad([list(sources[row]) for row in part], pad_token_id, "right")
            with torch.inference_mode():
                found = network.generate(
                    input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), num_beams=beams,
                    do_sample=False, no_repeat_ngram_size=3, max_new_tokens=size.target_tokens,
                )  # fmt: skip
            for row, written in zip(part, found.tolist(), strict=True):
                texts[row] = tokenizer.decode(written, skip_special_tokens=True)
        wrote[name] = texts
    return wrote
