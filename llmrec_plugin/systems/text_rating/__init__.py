"""A ranker of texts: the user's and the item's text through one encoder, and a head that gives the rating.

    user text -> encoder -> u      \\
                  (the same)         [u, i, u * i, |u - i|] -> head -> rating
    item text -> encoder -> i      /

Trained end to end, encoder included. It serves in two ways that give the same rating: as one network over two texts
(`text_rating`), or as a head over two stored vectors (`stored_rating`), where a request costs no encoder.

Factories give declarations, for the repo to publish. See docs/systems/text-rating.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec_plugin import hookimpl
from llmrec_plugin.systems.text_rating.features import (
    head_network,
    rating_network,
    stored_rating,
    text_encoder,
    text_rating,
    text_vector,
)

if TYPE_CHECKING:
    import click

__all__ = ["head_network", "rating_network", "stored_rating", "text_encoder", "text_rating", "text_vector"]


@hookimpl
def llmrec_register_trainers() -> list[click.Command]:
    from llmrec_plugin.systems.text_rating.commands import text_rating as command  # for the command line only

    return [command]
