"""GENRE: generated side information for recommenders.

Qijiong Liu, Nuo Chen, Tetsuya Sakai, Xiao-Ming Wu: "ONCE: Boosting Content-based Recommendation with Both Open- and
Closed-source Large Language Models", WSDM 2024. The closed-source half of it, GENRE, has a language model write data
that a recommender then reads like any other:

    content summarizer      title, abstract, category -> a better title              `title_rewrite`
    user profiler           titles of the history -> topics and regions              `user_profile`
    personalized generator  titles of a cold user's history -> an item made up       `synthetic_items`
    chain                   the profiler's topics are read by the generator          `synthetic_items(chained=True)`

A **cold user** is one with at most five items of history. ONCE's open-source half, DIRE, where a language model encodes
the content, is an `EmbeddingFeature` with such an encoder and needs nothing of its own.

Factories give declarations, for the repo to publish: which generator and which columns there are is its choice. What
differs from the paper, and how values stay point-in-time correct, is in docs/systems/genre.md.
"""

from __future__ import annotations

from llmrec_plugin import TokenFeature, hookimpl
from llmrec_plugin.systems.genre.features import synthetic_items, title_rewrite, user_profile
from llmrec_plugin.systems.genre.history import chain_rows, cold_history, with_synthetic_items

__all__ = [
    "chain_rows",
    "cold_history",
    "synthetic_items",
    "title_rewrite",
    "user_profile",
    "with_synthetic_items",
]


@hookimpl
def llmrec_register_features() -> list[TokenFeature]:
    return []  # none without a generator, which the repo chooses
