"""`export_endpoint`: the artifact of a model that only an endpoint has.

It holds no graph and no tokenizer, only what is asked for: the served model's name, its version and whether it is
asked for chat completions, in a file whose hash makes the artifact's id. So a new version is another artifact, its
features have another fingerprint, and what the old version wrote is neither used nor mixed in.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from llmrec_plugin.artifacts import ArtifactStore, GeneratorArtifact, sha256_file
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.manifests import ENDPOINT, MANIFEST, GeneratorManifest
from llmrec_plugin.specs import GeneratorModel

PREFIX = "endpoint:"


def export_endpoint(model: GeneratorModel, store: ArtifactStore) -> GeneratorArtifact:
    """Makes `model` the current artifact of its name; the endpoint is not asked.

    Args:
        model: A model whose source is ``endpoint:<served model>@<version>``.
        store: Where to put it: into the first of its folders.

    Returns:
        The artifact in the store. The same name and version give the same artifact id again.

    Raises:
        DeclarationError: The source is none of an endpoint.
    """
    if not model.source.startswith(PREFIX):
        raise DeclarationError(
            f"model {model.name!r}: expected a source 'endpoint:<served model>@<version>', got {model.source!r}."
        )
    served, _, version = model.source.removeprefix(PREFIX).rpartition("@")
    store.folders[0].mkdir(parents=True, exist_ok=True)
    # In the store's own folder, so that the last step is a rename; deeper than the store looks for artifacts.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=store.folders[0]) as temporary:
        finished = Path(temporary, "finished", model.name)
        finished.mkdir(parents=True)
        about = {"chat": model.chat, "model": served, "version": version}
        (finished / ENDPOINT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        manifest = GeneratorManifest(
            model=model.name,
            source={"source": model.source},
            task=model.task,
            max_tokens=model.max_tokens,
            vocab_size=0,
            layers=0,
            kv_heads=0,
            head_dim=0,
            eos_token_ids=(),
            pad_token_id=0,
            files={ENDPOINT: sha256_file(finished / ENDPOINT)},
        )
        (finished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        artifact = store.add(finished)
    assert isinstance(artifact, GeneratorArtifact)
    return artifact
