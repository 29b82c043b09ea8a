"""`export_model`: from a declaration to an artifact in the store, or to an error and an untouched store."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmrec_plugin.artifacts import GOLDEN, GRAPH, MANIFEST, TOKENIZER, Artifact, ArtifactStore, Manifest, sha256_file
from llmrec_plugin.export.graph import OUTPUT, build_graph
from llmrec_plugin.export.parity import GOLDEN_COUNT, collate, compare, graph_runner, parity_texts
from llmrec_plugin.export.reference import Reference
from llmrec_plugin.export.sources import find_folder, weights_sha256
from llmrec_plugin.export.statements import check_declaration, read_statements
from llmrec_plugin.export.tokenization import encode, load_tokenizer, save_tokenizer
from llmrec_plugin.export.toolchain import versions
from llmrec_plugin.specs import EncoderModel

_log = logging.getLogger(__name__)


def export_model(model: EncoderModel, store: ArtifactStore, *, report: Callable[[str], None] = _log.info) -> Artifact:
    """Exports `model`, compares it with PyTorch, and makes it the current artifact of its name.

    Args:
        model: What to export.
        store: Where to put it: into the first of its folders.
        report: Called with one line of progress at a time, e.g. ``print``.

    Returns:
        The artifact in the store. The same weights give the same artifact id again.

    Raises:
        SourceError: The weights cannot be found or read.
        DeclarationError: The declaration contradicts the model's own files.
        ParityError: The graph or the tokenizer differs from PyTorch.
        MissingExtraError: A package of the ``export`` extra is not installed.
    """
    report(f"{model.name}: looking for {model.source}")
    source = find_folder(model.source)
    stated = read_statements(source)
    check_declaration(model, stated, source)
    tokenizer = load_tokenizer(source, model)

    store.folders[0].mkdir(parents=True, exist_ok=True)
    # In the store's own folder, so that the last step is a rename; deeper than the store looks for artifacts.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=store.folders[0]) as temporary:
        scratch, finished = Path(temporary, "optimum"), Path(temporary, "finished", model.name)
        finished.mkdir(parents=True)
        save_tokenizer(tokenizer, finished / TOKENIZER, lower_case=stated.lower_case)
        report(f"{model.name}: exporting the graph")
        graph = build_graph(model, source, scratch, finished)

        report(f"{model.name}: comparing with PyTorch")
        texts = parity_texts()
        encodings = encode(finished / TOKENIZER, tokenizer, texts, model.max_tokens)
        reference = Reference(model, source)
        record = compare(
            model,
            texts,
            encodings,
            reference=reference,
            graph=graph_runner(finished / GRAPH),
            inputs=graph.inputs,
            pad_token_id=tokenizer.pad_token_id,
        )
        report(
            f"{model.name}: largest difference {record.worst_abs_diff:.2g} over {record.texts} texts "
            f"(tolerance {record.tolerance:.2g}), smallest cosine {record.min_cosine:.7f}"
        )

        golden = [
            reference(collate([encoding], model, tokenizer.pad_token_id, graph.inputs))
            for encoding in encodings[:GOLDEN_COUNT]
        ]
        np.save(finished / GOLDEN, np.concatenate(golden).astype(np.float32))
        files = sorted([*graph.files, finished / TOKENIZER, finished / GOLDEN])
        manifest = Manifest(
            model=model.name,
            source={"source": model.source, "weights_sha256": weights_sha256(source)},
            pooling=model.pooling,
            normalize=model.normalize,
            dims=model.dims,
            max_tokens=model.max_tokens,
            padding_side=model.padding_side,
            pad_token_id=tokenizer.pad_token_id,
            inputs=graph.inputs,
            output=OUTPUT,
            precision="fp32",
            files={path.name: sha256_file(path) for path in files},
            golden_texts=tuple(texts[:GOLDEN_COUNT]),
            versions=versions(),
            parity=record.to_dict(),
        )
        (finished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        artifact = store.add(finished)
    report(f"{model.name}: artifact {artifact.id[:16]} in {artifact.folder}")
    return artifact
