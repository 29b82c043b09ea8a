"""A language model as a scorer, a ranker, and the writer of a query.

    (history, candidate) -> P(Yes), one pass over a prompt          `pointwise_score`        a column
    (history, candidates) -> orders, averaged over permutations     `listwise_ranking`       a column per permutation
    dialogue -> query -> vector -> nearest items                    `conversational_query`   two columns

After TALLRec (Bao et al., "TALLRec: An Effective and Efficient Tuning Framework to Align Large Language Model with
Recommendation", RecSys 2023), LLMRank (Hou et al., "Large Language Models are Zero-Shot Rankers for Recommender
Systems", ECIR 2024) and Chat-REC (Gao et al., "Chat-REC: Towards Interactive and Explainable LLMs-Augmented Recommender
System", arXiv 2303.14524).

**Pointwise**: each candidate gets a score by itself. **Listwise**: the model sees all candidates and puts them in
order. What a model writes may be no order at all, and the order in which candidates are shown moves it: `list_report`
counts the first, `position_bias` measures the second.

Factories give declarations, for the repo to publish. What differs from the papers is in docs/systems/llm-scorer.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec_plugin import TokenFeature, hookimpl
from llmrec_plugin.systems.llm_scorer.evaluation import ListReport, PositionBias, list_report, position_bias
from llmrec_plugin.systems.llm_scorer.features import conversational_query, newest_turns, pointwise_score
from llmrec_plugin.systems.llm_scorer.listwise import ListwiseRanker, Ranking, listwise_ranking
from llmrec_plugin.systems.llm_scorer.parsing import NamedOrder, parse_order
from llmrec_plugin.systems.llm_scorer.rows import scoring_rows

if TYPE_CHECKING:
    import click

__all__ = [
    "ListReport",
    "ListwiseRanker",
    "NamedOrder",
    "PositionBias",
    "Ranking",
    "conversational_query",
    "list_report",
    "listwise_ranking",
    "newest_turns",
    "parse_order",
    "pointwise_score",
    "position_bias",
    "scoring_rows",
]


@hookimpl
def llmrec_register_trainers() -> list[click.Command]:
    from llmrec_plugin.systems.llm_scorer.commands import llm_scorer  # for the command line only

    return [llm_scorer]


@hookimpl
def llmrec_register_features() -> list[TokenFeature]:
    return []  # none without a generator, which the repo chooses
