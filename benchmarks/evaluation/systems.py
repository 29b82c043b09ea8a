"""The trained systems of the evaluation: how each is trained, exported and declared.

    history (keys, newest first) -> user network \\
                                                  similarity -> one column of the ranker
    item (key, or text -> encoder) -> item network /

The same for both data sets; only the templates of the texts differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmrec_plugin import EmbeddingFeature, NetworkFeature, NetworkModel, TokenFeature
from llmrec_plugin.systems import bert4rec, unisrec
from llmrec_plugin.systems.llm_scorer import pointwise_score
from llmrec_plugin.systems.llm_scorer.training import ScorerSettings
from llmrec_plugin.systems.minilm import ALL_MINILM_L6_V2

HIDDEN = 64
LANGUAGE_MODEL = "language-model"
REVIEWS, PRETRAINED, TEXT_RATING = "ubert-reviews", "ubert-pretrained", "text-rating"
ANSWERS = (" Yes", " No")
SHOWN = 5
"""Items of each list that a language model is shown."""
HISTORY = "recent_items"
WORK = "LLMREC_EVALUATION_WORK"
"""The environment variable that tells the process of `llmrec evaluate` where the trained systems are."""


def trained(name: str) -> Path:
    """Where the systems are that were trained on a data set."""
    return Path(os.environ[WORK]) / name / "trained"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set and the texts in it.

    Attributes:
        name: Of the data set; also the beginning of the names of its models.
        item_text: Template over the items' columns.
        user_text: Template over the users' columns; None if users have no text but their history.
        candidate: Column of the items that a language model is shown.
        liked: Least rating of what is liked; None: every event is.
        training: Training command -> options beside those that every data set has.
        rated_text: For the text rating, template of a user's text over the columns of users with reviews; None: the
            titles of the history.
    """

    name: str
    item_text: str
    user_text: str | None = None
    candidate: str
    liked: float | None = None
    training: dict[str, list[str]] = field(default_factory=dict)
    rated_text: str | None = None

    def commands(self, data: Path, work: Path) -> dict[str, list[str]]:
        """Folder below `work` -> arguments of ``llmrec train``."""
        text = ["--text", self.item_text]
        own: dict[str, list[str]] = {
            "whitening": ["whitening", *text],
            "bert4rec": ["bert4rec"],
            "unisrec": ["unisrec", *text],
            "encoder": ["encoder", *text],
            "llm-scorer": self._scorer_command(work),
            "ubert": ["ubert", "--pretrained", str(work / PRETRAINED), "--most-rows", "20000"],
            TEXT_RATING: self._text_rating_command(),
        }
        return {
            name: [
                *arguments, *self.training.get(name, []),
                "--data", str(work / REVIEWS if self.reads_reviews(name) else data), "--output", str(work / name),
            ]
            for name, arguments in own.items()
        }  # fmt: skip

    def reads_reviews(self, system: str) -> bool:
        """Whether a system learns from the folder of reviews, which has ratings in any case."""
        return system == "ubert" or (system == TEXT_RATING and self.liked is None)

    def _text_rating_command(self) -> list[str]:
        # The small size of docs/systems/text-rating.md.
        command = ["text-rating", "--item-text", self.item_text, "--dims", "32", "--layers", "1"]
        command += ["--learning-rate", "1e-3", "--batch-size", "128", "--most-rows", "30000"]
        return command if self.rated_text is None else [*command, "--user-text", self.rated_text]

    def networks(self, work: Path, system: str) -> list[NetworkModel]:
        """The networks of a trained system to export; none for a system that is no sequence of items."""
        if system not in ("bert4rec", "unisrec", "whitening"):
            return []
        make = bert4rec.models if system == "bert4rec" else unisrec.models
        return list(make(work / system, name=f"{self.name}-{system}")[:2])

    def sequence(self, system: str, dims: int = HIDDEN) -> NetworkFeature:
        """The user's side of a system: the vector of a history."""
        make: Callable[..., NetworkFeature] = (
            bert4rec.sequence_embedding if system == "bert4rec" else unisrec.sequence_embedding
        )
        return make(dims=dims, model=f"{self.name}-{system}-user", history=HISTORY, name=f"user_{system}_embedding")

    def item(self, system: str, dims: int = HIDDEN) -> NetworkFeature:
        """The items' side of a system."""
        name, model = f"item_{system}_embedding", f"{self.name}-{system}-item"
        if system == "bert4rec":
            return bert4rec.item_embedding(dims=dims, model=model, item="item_id", name=name)
        text = unisrec.text_vector(ALL_MINILM_L6_V2, self.item_text)
        return unisrec.item_embedding(text, dims=dims, model=model, name=name)

    @property
    def scorer_settings(self) -> ScorerSettings:
        """The rows that a language model learns from, and how they are shown."""
        return ScorerSettings(
            text=f"{{{self.candidate}}}", liked_from=self.liked, most_items=SHOWN, rows=4_000, evaluated=1_000,
            answers=ANSWERS, rank=16, epochs=2, batch=16, learning_rate=1e-3,
        )  # fmt: skip

    def _scorer_command(self, work: Path) -> list[str]:
        used = self.scorer_settings
        command = ["llm-scorer", "--base", str(work / LANGUAGE_MODEL), "--yes", ANSWERS[0], "--no", ANSWERS[1]]
        if used.liked_from is not None:
            command += ["--liked-from", str(used.liked_from)]
        for name in ("text", "most_items", "rows", "evaluated", "rank", "epochs", "batch", "learning_rate"):
            command += [f"--{name.replace('_', '-')}", str(getattr(used, name))]
        return command

    @property
    def scorer(self) -> str:
        """Name of the language model that scores pairs."""
        return f"{self.name}-llm-scorer"

    def score(self) -> TokenFeature:
        """P(Yes) of a candidate, from the columns ``liked`` and ``disliked`` of a list."""
        return pointwise_score(model=self.scorer, columns={"candidate": self.candidate}, answers=ANSWERS)

    @property
    def tuned(self) -> str:
        """Name of the tuned encoder."""
        return f"{self.name}-encoder"

    def text(self, entity: str, *, tuned: bool = False) -> EmbeddingFeature:
        """The vector of the text of an ``item`` or a ``user``, by all-MiniLM-L6-v2 as it is or tuned."""
        template = self.item_text if entity == "item" else self.user_text
        assert template is not None
        return EmbeddingFeature(
            name=f"{entity}_{'tuned' if tuned else 'text'}_embedding",
            entity=entity,
            text=template,
            model=self.tuned if tuned else ALL_MINILM_L6_V2.name,
            pooling="mean",
            normalize=True,
            prefix="",
            metric="cosine",
            max_tokens=64,
            dims=ALL_MINILM_L6_V2.dims,
        )
