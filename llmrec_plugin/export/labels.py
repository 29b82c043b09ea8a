"""`export_labels`: an encoder and a head become one graph, from token ids to the logit of every label."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import Artifact, ArtifactStore, sha256_file
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.embedding import Embedder
from llmrec_plugin.export.graph import OUTPUT, build_graph
from llmrec_plugin.export.heads import Head, append_head, read_head
from llmrec_plugin.export.parity import GOLDEN_COUNT, Run, compare, graph_runner, parity_texts
from llmrec_plugin.export.reference import Reference
from llmrec_plugin.export.sources import find_file, find_folder, weights_sha256
from llmrec_plugin.export.statements import check_declaration, read_json, read_statements
from llmrec_plugin.export.tokenization import encode, load_tokenizer, save_tokenizer
from llmrec_plugin.export.toolchain import require, versions
from llmrec_plugin.manifests import GOLDEN, MANIFEST, TOKENIZER, Manifest
from llmrec_plugin.specs import EncoderModel, LabelModel

LOGIT_TOLERANCE = 1e-4
"""Largest difference of a logit; a probability then differs by a quarter of it at most."""

_log = logging.getLogger(__name__)


def export_labels(
    model: LabelModel, store: ArtifactStore, encoder: EncoderModel, *, report: Callable[[str], None] = _log.info
) -> Artifact:
    """Exports `model`, compares it with PyTorch, and makes it the current artifact of its name.

    Args:
        model: What to export.
        store: Where to put it: into the first of its folders.
        encoder: The encoder that `model` names, in fp32 with all layers and without rotation.
        report: Called with one line of progress at a time, e.g. ``print``.

    Returns:
        The artifact in the store; `llmrec_plugin.runtime.encoder.Encoder` gives its logits, (n, labels) float32.

    Raises:
        SourceError: The weights or the head cannot be found or read, or do not fit each other.
        DeclarationError: `encoder` is another one, or reduced, or contradicts its own files.
        ParityError: The graph or the tokenizer differs from PyTorch, or a logit depends on its batch.
        MissingExtraError: A package of the ``export`` extra is not installed.
    """
    if encoder.name != model.encoder:
        raise DeclarationError(f"model {model.name!r} names the encoder {model.encoder!r}, got {encoder.name!r}.")
    if (encoder.precision, encoder.layers, encoder.rotation) != ("fp32", None, None):
        raise DeclarationError(
            f"model {model.name!r}: its head was trained on the whole encoder in fp32, and {encoder.name!r} is reduced."
        )
    report(f"{model.name}: looking for {encoder.source} and {model.head}")
    source, head_file = find_folder(encoder.source), find_file(model.head)
    stated = read_statements(source)
    check_declaration(encoder, stated, source)
    head = read_head(head_file)
    head.check_fits(encoder.dims, f"model {model.name!r}: {head_file}")
    tokenizer = load_tokenizer(source, encoder)
    # What the rest of the export sees: an encoder whose vectors are logits.
    scorer = replace(
        encoder, name=model.name, dims=len(head.labels), normalize=False, metric="dot", tolerance=LOGIT_TOLERANCE
    )

    store.folders[0].mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=store.folders[0]) as temporary:
        scratch, finished = Path(temporary, "optimum"), Path(temporary, "finished", model.name)
        finished.mkdir(parents=True)
        save_tokenizer(tokenizer, finished / TOKENIZER, lower_case=stated.lower_case)
        report(f"{model.name}: exporting the graph with {len(head.labels)} labels")
        graph = build_graph(encoder, source, scratch, finished)
        append_head(graph.path, head)

        report(f"{model.name}: comparing with PyTorch")
        reference = scored(Reference(encoder, source), head)
        texts = parity_texts()
        record = compare(
            scorer,
            texts,
            encode(finished / TOKENIZER, tokenizer, texts, encoder.max_tokens),
            reference=reference,
            graph=graph_runner(graph.path),
            inputs=graph.inputs,
            pad_token_id=tokenizer.pad_token_id,
        )
        report(f"{model.name}: largest difference of a logit {record.worst_abs_diff:.2g} over {record.texts} texts")
        embedder = Embedder(model=scorer, path=finished / TOKENIZER, tokenizer=tokenizer, inputs=graph.inputs)
        np.save(finished / GOLDEN, embedder.vectors(reference, texts[:GOLDEN_COUNT]))
        files = sorted([*graph.files, finished / TOKENIZER, finished / GOLDEN])
        manifest = Manifest(
            model=model.name,
            source={
                "source": encoder.source,
                "weights_sha256": weights_sha256(source),
                "head": model.head,
                "head_sha256": sha256_file(head_file),
            },
            pooling=encoder.pooling,
            normalize=False,
            dims=len(head.labels),
            max_tokens=encoder.max_tokens,
            padding_side=encoder.padding_side,
            pad_token_id=tokenizer.pad_token_id,
            inputs=graph.inputs,
            output=OUTPUT,
            precision="fp32",
            files={path.name: sha256_file(path) for path in files},
            golden_texts=tuple(texts[:GOLDEN_COUNT]),
            labels=head.labels,
            thresholds=tuple(map(float, head.thresholds)),
            versions=versions(),
            parity=record.to_dict(),
            quality=_quality(head_file),
        )
        (finished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        artifact = store.add(finished)
    assert isinstance(artifact, Artifact)
    report(f"{model.name}: artifact {artifact.id[:16]} in {artifact.folder}")
    return artifact


def _quality(head_file: Path) -> dict[str, Any]:
    """What ``quality.json`` beside the head says, if `llmrec train` wrote one for it."""
    stated: dict[str, Any] = read_json(head_file.with_name("quality.json"))
    if stated.get("sha256") != sha256_file(head_file):
        return {}
    return {name: stated[name] for name in ("rows", "test", "baselines") if name in stated}


def scored(reference: Run, head: Head) -> Run:
    """The reference with the head behind it, in PyTorch's products."""
    torch = require("torch")

    def linear(vectors: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(values)) for values in (vectors, weight, bias)]
        return np.asarray(torch.nn.functional.linear(*tensors).numpy())

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        vectors = reference(inputs)
        if head.hidden_weight is not None:
            vectors = np.maximum(linear(vectors, head.hidden_weight, head.hidden_bias), 0)
        return linear(vectors, head.weight, head.bias)

    return run
