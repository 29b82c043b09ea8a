"""`export_model`: from a declaration to an artifact in the store, or to an error and an untouched store."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from llmrec_plugin.artifacts import Artifact, ArtifactStore, sha256_file
from llmrec_plugin.export.adapters import origin_of, whole_folder
from llmrec_plugin.export.embedding import Embedder
from llmrec_plugin.export.graph import OUTPUT, build_graph, rotate_graph
from llmrec_plugin.export.parity import GOLDEN_COUNT, compare, graph_runner, parity_texts
from llmrec_plugin.export.prune import prune
from llmrec_plugin.export.quality import check, measure
from llmrec_plugin.export.reduce import Runner, reduce_to_floor
from llmrec_plugin.export.reference import Reference
from llmrec_plugin.export.rotation import principal_axes, rotated
from llmrec_plugin.export.serving import serving_runner
from llmrec_plugin.export.sources import weights_sha256
from llmrec_plugin.export.statements import check_declaration, read_statements
from llmrec_plugin.export.texts import Texts, builtin_texts
from llmrec_plugin.export.tokenization import encode, load_tokenizer, save_tokenizer
from llmrec_plugin.export.toolchain import versions
from llmrec_plugin.manifests import GOLDEN, MANIFEST, TOKENIZER, Manifest
from llmrec_plugin.specs import EncoderModel

_log = logging.getLogger(__name__)


def export_model(
    model: EncoderModel,
    store: ArtifactStore,
    *,
    texts: Texts | None = None,
    runner: Runner | None = None,
    report: Callable[[str], None] = _log.info,
) -> Artifact:
    """Exports `model`, compares it with PyTorch and with its floor, and makes it the current artifact of its name.

    Args:
        model: What to export.
        store: Where to put it: into the first of its folders.
        texts: Texts to calibrate reduced precision and rotation on, and to measure quality on; default: built in.
        runner: Runs the graph in ``bf16``; default: the runtime that would serve it here.
        report: Called with one line of progress at a time, e.g. ``print``.

    Returns:
        The artifact in the store. The same weights and texts give the same artifact id again.

    Raises:
        SourceError: The weights cannot be found or read.
        DeclarationError: The declaration contradicts the model's own files.
        ParityError: The graph or the tokenizer differs from PyTorch, or a vector depends on its batch.
        QualityError: The reduced model loses more neighbors than ``min_overlap`` allows.
        InputError: There are too few texts for the rotation.
        ProviderError: Nothing can run the precision here.
        MissingExtraError: A package of the ``export`` extra is not installed, or ``peft`` for an adapter.
    """
    report(f"{model.name}: looking for {model.source}")
    with tempfile.TemporaryDirectory(prefix="llmrec-") as temporary:
        source = whole_folder(model, Path(temporary, "merged"), report)
        return _export(model, source, store, texts or builtin_texts(), runner, report)


def _export(
    model: EncoderModel,
    source: Path,
    store: ArtifactStore,
    texts: Texts,
    runner: Runner | None,
    report: Callable[[str], None],
) -> Artifact:
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
        weights = source if model.layers is None else prune(model, source, Path(temporary, "pruned"))
        graph = build_graph(model, weights, scratch, finished)
        embedder = Embedder(model=model, path=finished / TOKENIZER, tokenizer=tokenizer, inputs=graph.inputs)

        axes = None
        if model.rotation is not None:
            axes = principal_axes(embedder.vectors(graph_runner(graph.path), texts.calibration))
            rotate_graph(graph.path, axes)

        report(f"{model.name}: comparing with PyTorch")
        reference = rotated(Reference(model, weights), axes)
        parity = parity_texts()
        encodings = encode(finished / TOKENIZER, tokenizer, parity, model.max_tokens)
        record = compare(
            model,
            parity,
            encodings,
            reference=reference,
            graph=graph_runner(graph.path),
            inputs=graph.inputs,
            pad_token_id=tokenizer.pad_token_id,
        )
        report(
            f"{model.name}: largest difference {record.worst_abs_diff:.2g} over {record.texts} texts "
            f"(tolerance {record.tolerance:.2g}), smallest cosine {record.min_cosine:.7f}"
        )

        full = graph_runner(graph.path) if model.layers is None else rotated(Reference(model, source), axes)
        exact = embedder.vectors(full, texts.measurement)
        if model.precision == "fp32":
            measured = exact if model.layers is None else embedder.vectors(graph_runner(graph.path), texts.measurement)
            quality = measure(model, texts, exact, measured, batching=record.batching_max_abs_diff)
            check(model, quality)
        else:
            report(f"{model.name}: reducing to {model.precision}")
            serving = partial(serving_runner, model, inputs=graph.inputs, pad_token_id=tokenizer.pad_token_id)
            quality = reduce_to_floor(model, graph.path, scratch, embedder, texts, exact, runner or serving)
        report(
            f"{model.name}: finds {quality.overlap_at_10:.4f} of the full model's ten nearest neighbors over "
            f"{quality.texts} texts (floor {quality.floor}), smallest cosine {quality.cosine_min:.5f}; {texts.origin}"
        )

        golden = embedder.vectors(
            reference if model.precision == "fp32" else graph_runner(graph.path), parity[:GOLDEN_COUNT]
        )
        np.save(finished / GOLDEN, golden)
        files = sorted([*graph.files, finished / TOKENIZER, finished / GOLDEN])
        origin = {"source": model.source, "weights_sha256": weights_sha256(source), **origin_of(model)}
        origin |= {"layers": ",".join(map(str, model.layers))} if model.layers is not None else {}
        origin |= {"rotation": model.rotation} if model.rotation is not None else {}
        manifest = Manifest(
            model=model.name,
            source=origin,
            pooling=model.pooling,
            normalize=model.normalize,
            dims=model.dims,
            max_tokens=model.max_tokens,
            padding_side=model.padding_side,
            pad_token_id=tokenizer.pad_token_id,
            inputs=graph.inputs,
            output=OUTPUT,
            precision=model.precision,
            files={path.name: sha256_file(path) for path in files},
            golden_texts=tuple(parity[:GOLDEN_COUNT]),
            versions=versions(),
            parity=record.to_dict(),
            quality=quality.to_dict(),
        )
        (finished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        artifact = store.add(finished)
    assert isinstance(artifact, Artifact)
    report(f"{model.name}: artifact {artifact.id[:16]} in {artifact.folder}")
    return artifact
