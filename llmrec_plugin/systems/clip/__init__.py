"""Pictures and texts in one space, and one vector of both.

Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, ICML 2021. Two encoders, one of
pictures and one of texts, end in projections into one space (section 2.4 and figure 3), so a text finds pictures.

    picture bytes --image encoder--> vector \\
                                              fusion -> vector of an item
    title         --text encoder---> vector /

A folder of transformers' CLIPModel makes two networks, `clip_image` and `clip_text`, of one space; a folder that
`write_fusion` wrote makes the third. No feature is registered by itself. See docs/systems/clip.md.
"""

from llmrec_plugin.systems.clip.features import (
    fused_embedding,
    fusion_model,
    image_embedding,
    image_model,
    text_embedding,
    text_model,
)
from llmrec_plugin.systems.clip.fusion import random_projection, summing_projection, write_fusion

__all__ = [
    "fused_embedding",
    "fusion_model",
    "image_embedding",
    "image_model",
    "random_projection",
    "summing_projection",
    "text_embedding",
    "text_model",
    "write_fusion",
]
