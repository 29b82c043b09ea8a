"""MINT: narrative-driven recommendation from generated requests.

Sheshera Mysore, Andrew McCallum, Hamed Zamani: "Large Language Model Augmented Narrative Driven Recommendations",
RecSys 2023. A **narrative request** is what people write to strangers who know a place: a few sentences about what they
want, their situation and what they liked. Recommenders have no training data of such requests, so it is generated:

    liked items + sentences about them -> a language model -> a request      `query_rows`, `synthetic_query`
    (request, item) -> P(request | item) -> the more likely half             `keep_likely`
    pairs -> a bi-encoder, triplet loss on Euclidean distances               `systems.mint.training`
    request -> vector -> distance to every item's vector                     `bi_encoder`, `retriever`

A **bi-encoder** turns request and document into vectors separately, so documents are encoded once. `mean_ndcg` measures
a ranking as trec_eval does.

Factories give declarations, for the repo to publish. What differs from the paper is in docs/systems/mint.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec_plugin import TokenFeature, hookimpl
from llmrec_plugin.systems.mint.evaluation import mean_ndcg, ndcg, ranked
from llmrec_plugin.systems.mint.features import bi_encoder, retriever, synthetic_query
from llmrec_plugin.systems.mint.queries import Pair, keep_likely, query_likelihood, query_pairs, query_rows, split_pairs

if TYPE_CHECKING:
    import click

__all__ = [
    "Pair",
    "bi_encoder",
    "keep_likely",
    "mean_ndcg",
    "ndcg",
    "query_likelihood",
    "query_pairs",
    "query_rows",
    "ranked",
    "retriever",
    "split_pairs",
    "synthetic_query",
]


@hookimpl
def llmrec_register_trainers() -> list[click.Command]:
    from llmrec_plugin.systems.mint.commands import bi_encoder  # for the command line only

    return [bi_encoder]


@hookimpl
def llmrec_register_features() -> list[TokenFeature]:
    return []  # none without a generator and a trained encoder, which are the repo's
