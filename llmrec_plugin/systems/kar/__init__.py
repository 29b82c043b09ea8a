"""KAR: knowledge-augmented recommendation.

Yunjia Xi et al.: "Towards Open-World Recommendation with Knowledge Augmentation from Large Language Models", RecSys
2024 (arXiv 2306.10933). A language model tells a ranker what it knows, before any request:

    preference reasoning knowledge   interactions of a user -> taste            `user_preferences`
    item factual knowledge           title of an item -> facts                  `item_facts`
    knowledge encoder                text -> vector, mean pooling               `knowledge_embedding`
    hybrid-expert adaptor            vectors -> 64 inputs of the ranker         `systems.kar.adaptor` or a PCA

**Factorization prompting** asks about named factors (of films: genre, director, mood, ...) one by one, for users and
items alike, instead of asking for a recommendation. Knowledge of a user is made of the user's first interactions, and a
ranker learns from later ones: see `begin_index`.

Factories give declarations, for the repo to publish. What differs from the paper is in docs/systems/kar.md.
"""

from __future__ import annotations

from llmrec_plugin import EncoderModel, hookimpl
from llmrec_plugin.systems.kar.features import (
    KNOWLEDGE_ENCODER,
    history_knowledge_embedding,
    item_facts,
    knowledge_embedding,
    user_preferences,
)
from llmrec_plugin.systems.kar.history import begin_index, knowledge_rows, training_rows

__all__ = [
    "KNOWLEDGE_ENCODER",
    "begin_index",
    "history_knowledge_embedding",
    "item_facts",
    "knowledge_embedding",
    "knowledge_rows",
    "training_rows",
    "user_preferences",
]


@hookimpl
def llmrec_register_models() -> list[EncoderModel]:
    return [KNOWLEDGE_ENCODER]
