"""A text encoder that is tuned on interactions.

The vectors of a frozen encoder say what texts mean, not who likes what. Here the encoder learns from interactions that
a user's history and the item that came next belong together:

    interactions, texts -> (history, next item) -> contrastive loss -> encoder -> ``llmrec export``

**Contrastive**: in a batch, a history's own next item shall be nearer than the next items of the others (InfoNCE, van
den Oord et al. 2018; in-batch negatives as in Henderson et al. 2017). Others that are no negatives, because they are
the same item or the user has them, are left out. The tuned encoder is an ordinary encoder and is declared like one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec_plugin import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def llmrec_register_trainers() -> list[click.Command]:
    from llmrec_plugin.systems.task_encoder.commands import encoder  # for the command line only

    return [encoder]
