"""UniSRec: vectors of items from their texts, and of users from the items' texts.

Yupeng Hou, Shanlei Mu, Wayne Xin Zhao, Yaliang Li, Bolin Ding, Ji-Rong Wen: "Towards Universal Sequence Representation
Learning for Recommender Systems", KDD 2022.

    item's text -> frozen encoder -> vector -> adaptor -> item's vector                           stored
    last items' vectors + positions -> causal Transformer -> last state, unit norm                at request time
    user . item (cosine) -> how well the item comes next

The **adaptor** is a mixture of parametric whitenings: each expert moves and turns the text vectors, a gate weighs the
experts. **Inductive** networks read nothing but texts, so items that nobody has touched have vectors; **transductive**
ones add a vector for each item's id. **Pre-training** teaches both parts on several data sets together, by contrast.
The variant **whitening** trains nothing.

    llmrec train unisrec, unisrec-pretraining, whitening
    `models`                       the networks to export: of items, of users by keys, of users by item vectors
    `item_embedding` ...           the features

Factories give declarations, for the repo to publish. What differs from the paper is in docs/systems/unisrec.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec_plugin import hookimpl
from llmrec_plugin.systems.unisrec.features import (
    Models,
    item_embedding,
    models,
    sequence_embedding,
    similarity,
    text_vector,
    vector_sequence_embedding,
)

if TYPE_CHECKING:
    import click

__all__ = [
    "Models",
    "item_embedding",
    "models",
    "sequence_embedding",
    "similarity",
    "text_vector",
    "vector_sequence_embedding",
]


@hookimpl
def llmrec_register_trainers() -> list[click.Command]:
    from llmrec_plugin.systems.unisrec import commands  # for the command line only

    return [commands.unisrec, commands.unisrec_pretraining, commands.whitening]
