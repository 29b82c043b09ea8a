"""A graph in the runtime that will serve it, for precisions that exist only there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llmrec_plugin.artifacts import Artifact, sha256_file
from llmrec_plugin.export.graph import OUTPUT
from llmrec_plugin.export.parity import Run
from llmrec_plugin.inference import Batch
from llmrec_plugin.manifests import Manifest
from llmrec_plugin.runtime.calibration import default_placement
from llmrec_plugin.runtime.runtimes import choose_runtime, open_session
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import EncoderModel


def serving_runner(model: EncoderModel, path: Path, inputs: tuple[str, ...], pad_token_id: int) -> Run:
    """Runs the graph at `path` in the runtime that the settings choose for the model's precision.

    Args:
        model: Gives precision and dims.
        path: The graph, under the name that it has in an artifact.
        inputs: Names of the graph's inputs.
        pad_token_id: Token id used for padding.

    Raises:
        ProviderError: No runtime here has the precision, or the CPU has not.
        MissingExtraError: A package of the runtime is not installed.
    """
    manifest = Manifest(
        model=model.name,
        source={},
        pooling=model.pooling,
        normalize=model.normalize,
        dims=model.dims,
        max_tokens=model.max_tokens,
        padding_side=model.padding_side,
        pad_token_id=pad_token_id,
        inputs=inputs,
        output=OUTPUT,
        precision=model.precision,
        files={path.name: sha256_file(path)},
        golden_texts=(),
    )
    artifact, settings = Artifact(path.parent, manifest), load_settings()
    placement = default_placement("batch", settings.threads)
    session = open_session(choose_runtime(artifact, settings), artifact, settings, placement)

    def run(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return session.run(Batch(batch["input_ids"], batch["attention_mask"]))

    return run
