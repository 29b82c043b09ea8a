"""U-BERT: ratings from the reviews of user and item.

Zhaopeng Qiu et al.: "U-BERT: Pre-training User Representations for Improved Recommendation", AAAI 2021. It is trained
twice: in a domain with many reviews, then in the domain whose ratings are wanted. Both share users.

    review encoder         a BERT that also reads who writes: review -> vector        `review_encoder`, `review_vector`
    user encoder           the user's embedding attends to reviews -> U               `side_vector("user")`
    item encoder           the same for items, in the second domain                   `side_vector("item")`
    review co-matching     user reviews x item reviews, each side reads the other     `pair_vector`
    prediction             -> rating                                                  `pair_rating`

**Masked opinion token prediction** hides words of opinion and guesses them; **opinion rating prediction** guesses the
review's rating. Stored **review matrices** hold the newest reviews of a user or an item, see `review_matrices`: a label
is never made with its own review or with a later one.

Factories give declarations, for the repo to publish. What differs from the paper is in docs/systems/ubert.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec_plugin import hookimpl
from llmrec_plugin.systems.ubert.features import (
    pair_networks,
    pair_rating,
    pair_vector,
    review_encoder,
    review_vector,
    side_vector,
)
from llmrec_plugin.systems.ubert.tables import review_matrices

if TYPE_CHECKING:
    import click

__all__ = [
    "pair_networks",
    "pair_rating",
    "pair_vector",
    "review_encoder",
    "review_matrices",
    "review_vector",
    "side_vector",
]


@hookimpl
def llmrec_register_trainers() -> list[click.Command]:
    from llmrec_plugin.systems.ubert.commands import (  # for the command line only
        ubert,
        ubert_pretrain,
        ubert_reviews,
    )

    return [ubert, ubert_pretrain, ubert_reviews]
