"""`export_generator`: from the declaration of a generator to an artifact in the store, or to an untouched store.

weights folder -> Optimum's graphs -> fused attention -> comparison with transformers.generate -> artifact store
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llmrec_plugin.artifacts import ArtifactStore, GeneratorArtifact, sha256_file
from llmrec_plugin.errors import ParityError
from llmrec_plugin.export.adapters import origin_of, whole_folder
from llmrec_plugin.export.chat import chat_template
from llmrec_plugin.export.generation_parity import (
    GenerationRecord,
    compare_generator,
    golden,
    new_tokens,
    parity_prompts,
)
from llmrec_plugin.export.generator_graphs import build_generator, write_fused
from llmrec_plugin.export.generator_reference import GeneratorReference, check_task, windows
from llmrec_plugin.export.grafting import complete, is_graft, read_base
from llmrec_plugin.export.greedy import (
    Decoder,
    FusedDecoder,
    InTwoPieces,
    PlainDecoder,
    Prompt,
    Seq2SeqDecoder,
    Written,
)
from llmrec_plugin.export.parity import parity_texts
from llmrec_plugin.export.sources import weights_sha256
from llmrec_plugin.export.special_tokens import SpecialTokens, special_tokens
from llmrec_plugin.export.tokenization import encode, load_fast_tokenizer, save_tokenizer
from llmrec_plugin.export.toolchain import require, versions
from llmrec_plugin.manifests import GOLDEN_PROMPTS, GRAPH, MANIFEST, TOKENIZER, ChatTemplate, GeneratorManifest
from llmrec_plugin.specs import GeneratorModel

_log = logging.getLogger(__name__)

_ANY_LENGTH = 1_000_000

Attention = Literal["fused", "plain"]


def export_generator(
    model: GeneratorModel, store: ArtifactStore, *, report: Callable[[str], None] = _log.info
) -> GeneratorArtifact:
    """Exports `model`, compares it token by token with PyTorch, and makes it the current artifact of its name.

    Args:
        model: What to export.
        store: Where to put it: into the first of its folders.
        report: Called with one line of progress at a time, e.g. ``print``.

    Returns:
        The artifact in the store. The same weights give the same artifact id again.

    Raises:
        SourceError: The weights cannot be found or read.
        DeclarationError: The declaration contradicts the model's own files, or they leave out what is needed.
        ParityError: The graphs write other tokens than PyTorch, or the tokenizer gives other ids.
        MissingExtraError: A package of the ``export`` extra is not installed, or ``peft`` for an adapter.
    """
    report(f"{model.name}: looking for {model.source}")
    with tempfile.TemporaryDirectory(prefix="llmrec-") as temporary:
        found = whole_folder(model, Path(temporary, "merged"), report)
        quality = read_base(found).quality if is_graft(found) else {}
        return _export(model, complete(found, Path(temporary, "model")), store, quality, report)


def _export(
    model: GeneratorModel, folder: Path, store: ArtifactStore, quality: dict[str, Any], report: Callable[[str], None]
) -> GeneratorArtifact:
    check_task(model, folder)
    tokenizer = load_fast_tokenizer(folder, model.name)
    chat = chat_template(tokenizer, model.name) if model.chat else None

    store.folders[0].mkdir(parents=True, exist_ok=True)
    # In the store's own folder, so that the last step is a rename; deeper than the store looks for artifacts.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=store.folders[0]) as temporary:
        scratch, plain, finished = (Path(temporary, name) for name in ("optimum", "plain", f"finished/{model.name}"))
        plain.mkdir()
        finished.mkdir(parents=True)
        save_tokenizer(tokenizer, finished / TOKENIZER, lower_case=False)
        encode(finished / TOKENIZER, tokenizer, parity_texts(), _ANY_LENGTH)
        special = special_tokens(model, folder, tokenizer, finished / TOKENIZER)
        reference = GeneratorReference(model, folder, special)
        report(f"{model.name}: exporting the graphs")
        graphs = build_generator(model, folder, scratch, plain)

        report(f"{model.name}: writing with PyTorch")
        sliding = windows(reference.config, graphs.layers) if model.task == "causal" else []
        as_prompt = partial(
            _as_prompt, require("tokenizers").Tokenizer.from_file(str(finished / TOKENIZER)), special, chat
        )
        vocabulary = min(len(tokenizer), reference.config.vocab_size)
        prompts = parity_prompts(model, as_prompt, vocabulary, min((item for item in sliding if item), default=None))
        expected = [reference.write(prompt, new_tokens(model)) for prompt in prompts]

        report(f"{model.name}: comparing with PyTorch")
        attention: Attention = "plain"
        if model.task == "seq2seq":
            start = special.decoder_start_token_id
            decoder = Seq2SeqDecoder(plain, special.pad_token_id, special.pad_token_id if start is None else start)
            record = _compare(model, prompts, expected, decoder, special.eos_token_ids)
            _move(plain, finished)
        else:
            heads = getattr(reference.config, "num_attention_heads", 0)
            attention, record = _fused_or_plain(
                model, plain, finished, prompts, expected, special, heads=heads, sliding=sliding, report=report
            )
        report(
            f"{model.name}: {record.written_tokens} tokens after {record.prompts} prompts are PyTorch's "
            f"({len(record.ties)} ties), largest difference of a logit {record.max_abs_diff:.2g}, ragged "
            f"{record.ragged_max_abs_diff:.2g}; attention is {attention}"
        )

        content = golden(prompts, expected, special.eos_token_ids, new_tokens(model))
        (finished / GOLDEN_PROMPTS).write_text(json.dumps(content) + "\n", encoding="utf-8")
        manifest = GeneratorManifest(
            model=model.name,
            source={"source": model.source, "weights_sha256": weights_sha256(folder), **origin_of(model)},
            task=model.task,
            max_tokens=model.max_tokens,
            vocab_size=expected[0].logits.shape[1],
            layers=graphs.layers,
            kv_heads=graphs.kv_heads,
            head_dim=graphs.head_dim,
            prefix_ids=special.prefix_ids,
            suffix_ids=special.suffix_ids,
            eos_token_ids=special.eos_token_ids,
            pad_token_id=special.pad_token_id,
            decoder_start_token_id=special.decoder_start_token_id,
            chat=chat,
            attention=attention,
            precision=model.precision,
            files={path.name: sha256_file(path) for path in sorted(finished.iterdir())},
            versions=versions(),
            parity=record.to_dict(),
            quality=quality,
        )
        (finished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        artifact = store.add(finished)
    assert isinstance(artifact, GeneratorArtifact)
    report(f"{model.name}: artifact {artifact.id[:16]} in {artifact.folder}")
    return artifact


def _fused_or_plain(
    model: GeneratorModel,
    plain: Path,
    target: Path,
    prompts: Sequence[Prompt],
    expected: Sequence[Written],
    special: SpecialTokens,
    *,
    heads: int,
    sliding: Sequence[int | None],
    report: Callable[[str], None],
) -> tuple[Attention, GenerationRecord]:
    """Puts the fused graph into `target` if there is one that is right, else the plain one.

    Raises:
        ParityError: The plain graph is wrong, too.
    """
    pad, ends = special.pad_token_id, special.eos_token_ids
    fused = plain.with_name("fused")
    fused.mkdir()
    try:
        write_fused(plain / GRAPH, fused / GRAPH, heads=heads, windows=sliding)
        capacity = max(map(len, prompts)) + new_tokens(model)
        decoder = FusedDecoder(fused, pad, capacity)
        pieces = InTwoPieces(FusedDecoder(fused, pad, capacity))
        record = compare_generator(model, prompts, expected, decoder, ends, pieces)
    except Exception as exc:  # whatever is wrong with it, the plain graph computes the same
        _log.debug("%s: fused attention failed", model.name, exc_info=exc)
        report(f"{model.name}: the graph stays plain, its attention cannot be fused: {exc}")
        record = _compare(model, prompts, expected, PlainDecoder(plain, pad), ends)
        _move(plain, target)
        return "plain", record
    _move(fused, target)
    return "fused", record


def _compare(
    model: GeneratorModel, prompts: Sequence[Prompt], expected: Sequence[Written], decoder: Decoder, ends: Sequence[int]
) -> GenerationRecord:
    try:
        return compare_generator(model, prompts, expected, decoder, ends)
    except ParityError as exc:
        raise ParityError(f"{exc} This export is wrong. Nothing was stored.") from exc


def _move(source: Path, target: Path) -> None:
    for path in source.glob("*.onnx*"):
        path.rename(target / path.name)


def _as_prompt(tokenizer: Any, special: SpecialTokens, chat: ChatTemplate | None, text: str) -> list[int]:
    """Token ids of a whole prompt, put together as the runtime does it."""
    if chat is not None:
        text = text.join(chat.without_system)
    return [*special.prefix_ids, *tokenizer.encode(text, add_special_tokens=False).ids, *special.suffix_ids]
