"""Two small generators for the descriptions of Debian packages, trained by ``llmrec train`` and shipped here.

``debian-tagger`` gives debtags of a closed vocabulary; ``debian-synopsis`` writes a one-line summary. Both read with
the frozen all-MiniLM-L6-v2, so that only what was trained lies in this folder. How they were trained and measured, and
what they cannot do: docs/models/debian-tagger.md and docs/models/debian-synopsis.md.
"""

from __future__ import annotations

from llmrec_plugin import GeneratorModel, LabelModel, hookimpl

DEBIAN_TAGGER = LabelModel(
    name="debian-tagger",
    encoder="all-minilm-l6-v2",
    head="package:llmrec_plugin/systems/debian/tagger/head.safetensors",
)

DEBIAN_SYNOPSIS = GeneratorModel(
    name="debian-synopsis",
    source="package:llmrec_plugin/systems/debian/synopsis",
    task="seq2seq",
    max_tokens=64,  # what it was trained on
)


@hookimpl
def llmrec_register_models() -> list[LabelModel | GeneratorModel]:
    return [DEBIAN_TAGGER, DEBIAN_SYNOPSIS]
