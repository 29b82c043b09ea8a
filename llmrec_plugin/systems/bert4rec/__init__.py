"""BERT4Rec: a behavioural vector from the ids of the last items.

Fei Sun, Jun Liu, Jian Wu, Changhua Pei, Xiao Lin, Wenwu Ou, Peng Jiang: "BERT4Rec: Sequential Recommendation with
Bidirectional Encoder Representations from Transformer", CIKM 2019. It reads no text: what follows what is learned from
the interactions of one catalogue.

    last items' ids + [MASK] -> item and position table -> bidirectional Transformer -> state at [MASK] -> head
    head state . item's row of the same table + item's bias -> logit: how likely the item comes next

**Cloze task**: some ids of a sequence are replaced by a mask token, and the network guesses them from both sides.

    llmrec train bert4rec          trains, measures by full ranking
    `models`                       the networks to export: of users, of items, of pairs
    `sequence_embedding` ...       the features

Factories give declarations, for the repo to publish. What differs from the paper is in docs/systems/bert4rec.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec_plugin import hookimpl
from llmrec_plugin.systems.bert4rec.features import (
    candidate_score,
    item_embedding,
    models,
    sequence_embedding,
    similarity,
)

if TYPE_CHECKING:
    import click

__all__ = ["candidate_score", "item_embedding", "models", "sequence_embedding", "similarity"]


@hookimpl
def llmrec_register_trainers() -> list[click.Command]:
    from llmrec_plugin.systems.bert4rec.commands import bert4rec  # for the command line only

    return [bert4rec]
