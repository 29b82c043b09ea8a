"""Listwise ranking: several orders of the same candidates, put together.

    request -> k orders of its candidates, drawn -> k columns, one prompt each -> k answers -> mean rank -> scores

A column is what one prompt gives for one row, so the average of k prompts is no column: each permutation is a
feature, and `ListwiseRanker` puts their values together beside ``get_online_features``. The scores belong to the
candidate set of one request and are not stored.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llmrec_plugin import Decoding, Json, Prompt, ShortText, TokenFeature
from llmrec_plugin.errors import DeclarationError, FetchError, InputError
from llmrec_plugin.prompts import load_prompt
from llmrec_plugin.systems.events import is_text
from llmrec_plugin.systems.llm_scorer.parsing import NamedOrder, parse_order

if TYPE_CHECKING:
    import numpy as np

Answer: TypeAlias = Literal["numbers", "lines"]
Status: TypeAlias = Literal["ok", "repaired", "partial", "invalid"]

_TOKENS_OF_CANDIDATE = 64


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The order of a request's candidates.

    Attributes:
        scores: (candidates,) float32 in the order of the request: 1 for always first, 0 for always last, linear in the
            mean rank between; NaN where no answer names a candidate.
        status: ``ok``: every answer is an order; ``repaired``: every answer names candidates, and one at least has to
            be mended; ``partial``: an answer names none and is left out; ``invalid``: no answer names any.
        answers: The answers, as they were read, over the candidates as they were given; None for one that names none.
        invented: Entries of all answers that are no candidate.
        duplicates: Entries that name a candidate again.
        unnamed: Candidates not named, over the answers that name some.
    """

    scores: np.ndarray
    status: Status
    answers: tuple[NamedOrder | None, ...]
    invented: int
    duplicates: int
    unnamed: int

    @property
    def order(self) -> list[int]:
        """Positions of the candidates, the best first; equal scores stay as given, and without scores all do."""
        import numpy as np  # not needed to declare features

        return [int(place) for place in np.argsort(-np.nan_to_num(self.scores), kind="stable")]


@dataclass(frozen=True, kw_only=True)
class ListwiseRanker:
    """Rows and values of the features of `listwise_ranking`.

    Attributes:
        features: One feature for each permutation; to be published.
        history: Column with what the person chose before.
        candidates: Beginning of the columns with the candidates.
        max_candidates: Candidates of a request at most.
        max_chars: Texts of candidates are cut to this many characters.
        seed: Of the permutations.
    """

    features: tuple[TokenFeature, ...]
    history: str
    candidates: str
    max_candidates: int
    max_chars: int = 120
    seed: int = 0

    @property
    def columns(self) -> list[str]:
        """Names of the features, as ``get_online_features`` takes them."""
        return [f"{feature.name}:{feature.name}" for feature in self.features]

    def row(self, history: Sequence[str], candidates: Sequence[str]) -> dict[str, list[str]]:
        """The request's row: the history, and the candidates in the order of each permutation.

        Args:
            history: Titles, the newest first; may be empty.
            candidates: Titles.

        Raises:
            InputError: There are no candidates or too many, or one has no text.
        """
        shown = self._shown(candidates)
        orders = self.orders(candidates)
        return {self.history: [str(title) for title in history]} | {
            f"{self.candidates}_{number}": [shown[place] for place in order] for number, order in enumerate(orders, 1)
        }

    def orders(self, candidates: Sequence[str]) -> list[tuple[int, ...]]:
        """In which order each permutation shows the candidates: their positions, drawn from seed and candidates.

        The first shows them as they are given; the same candidates are always shown in the same orders.
        """
        key = "\x1f".join([str(self.seed), *self._shown(candidates)])
        draw = random.Random(hashlib.sha256(key.encode()).digest())  # noqa: S311  # reproducible, nothing to guess
        places = range(len(candidates))
        return [tuple(places), *(tuple(draw.sample(places, len(places))) for _ in self.features[1:])]

    def ranking(self, values: Mapping[str, Any] | Sequence[str | None], candidates: Sequence[str]) -> Ranking:
        """What the values of one row say about its candidates.

        Args:
            values: Feature -> value of the row, or the values in the order of `features`. Null is an answer that names
                nobody.
            candidates: As given to `row`.

        Raises:
            FetchError: A feature of the ranker is not among the values.
            InputError: As for `row`.
        """
        names = [feature.name for feature in self.features]
        if isinstance(values, Mapping):
            missing = [name for name in names if name not in values]
            if missing:
                raise FetchError(
                    f"ranking: expected values of {', '.join(names)}, without {', '.join(missing)}; ask for all of "
                    "`ListwiseRanker.columns`."
                )
            values = [values[name] for name in names]
        if len(values) != len(names):
            raise FetchError(f"ranking: expected {len(names)} values, one for each feature, got {len(values)}.")
        shown = self._shown(candidates)
        answers = []
        for text, order in zip(values, self.orders(candidates), strict=True):
            found = parse_order(text if isinstance(text, str) else None, [shown[place] for place in order])
            named = tuple(order[place] for place in found.named)
            answers.append(replace(found, named=named) if named else None)
        return put_together(answers, len(candidates))

    def _shown(self, candidates: Sequence[str]) -> list[str]:
        """The candidates as the prompt shows them, each on one line."""
        if isinstance(candidates, str) or not 0 < len(candidates) <= self.max_candidates:
            raise InputError(
                f"ranking: expected 1 to {self.max_candidates} candidates, got {len(candidates)}. Rank the best of "
                "a retriever, or declare more max_candidates."
            )
        empty = [place for place, title in enumerate(candidates) if not is_text(title)]
        if empty:  # a list in a prompt leaves out what is empty, and all numbers after it would be others'
            raise InputError(f"ranking: candidate {empty[0]} has no text ({candidates[empty[0]]!r}); leave it out.")
        return [" ".join(title.split())[: self.max_chars] for title in candidates]


def listwise_ranking(
    *,
    model: str,
    permutations: int = 3,
    max_candidates: int = 20,
    name: str = "candidates_order",
    history: str = "history",
    candidates: str = "candidates",
    answer: Answer = "numbers",
    seed: int = 0,
    max_new_tokens: int | None = None,
    **options: Any,
) -> ListwiseRanker:
    """Features that put a request's candidates in order, ``<name>_1`` to ``<name>_k``, and what reads them.

    Each is a ``String`` of request time: the numbers of the candidates of column ``<candidates>_<i>``, in order. A list
    of numbers is kept to its form while it is written, so that it is a list and its numbers are in range; that each is
    there once cannot be kept, and is mended and counted when it is read.

    Args:
        model: Name of the generator.
        permutations: In how many orders the candidates are shown; one costs least and has the bias of its order.
        max_candidates: Candidates of a request at most.
        name: Beginning of the names of the features.
        history: Column with what the person chose before, a list of strings, the newest first.
        candidates: Beginning of the columns with the candidates.
        answer: ``numbers``: a JSON list. ``lines``: titles in a numbered list, for models that write nothing better;
            any text is accepted and read with care.
        seed: Of the permutations.
        max_new_tokens: Tokens that are written at most; default: enough for the list.
        **options: Further fields of `TokenFeature`, e.g. ``status=True`` or ``deadline_ms=2000``.

    Raises:
        DeclarationError: `permutations` or `max_candidates` is out of range, or `answer` is unknown.
    """
    if permutations < 1 or not 1 <= max_candidates <= 100:
        raise DeclarationError(
            f"feature {name!r}: expected permutations of 1 or more and max_candidates of 1 to 100, got {permutations} "
            f"and {max_candidates}."
        )
    if answer not in ("numbers", "lines"):
        raise DeclarationError(f"feature {name!r}: answer must be 'numbers' or 'lines', got {answer!r}.")
    numbers = answer == "numbers"
    prompt = _prompt("listwise" if numbers else "listwise_lines", max_candidates)
    length = max_new_tokens or max_candidates * (6 if numbers else 24) + 8
    features = tuple(
        TokenFeature(
            name=f"{name}_{number}",
            entity=None,
            model=model,
            prompt=prompt,
            output=Json(schema=_schema(max_candidates)) if numbers else ShortText(stop=(), max_chars=8000),
            columns_of=(("candidates", f"{candidates}_{number}"), ("history", history)),
            decoding=Decoding(max_new_tokens=length),
            **{"description": f"Order of the candidates in permutation {number} (listwise, LLMRank).", **options},
        )
        for number in range(1, permutations + 1)
    )
    return ListwiseRanker(
        features=features, history=history, candidates=candidates, max_candidates=max_candidates, seed=seed
    )


def put_together(answers: Iterable[NamedOrder | None], count: int) -> Ranking:
    """The mean of several orders of `count` candidates.

    Candidates that an answer does not name follow the named ones in the order of the request. An answer that names none
    counts in the status and not in the mean.
    """
    import numpy as np  # not needed to declare features

    answers = tuple(answers)
    read = [answer for answer in answers if answer is not None]
    ranks = np.empty((len(read), count), dtype=np.float32)
    for row, answer in enumerate(read):
        ranks[row, list(answer.order)] = np.arange(count)
    if not read:
        scores, status = np.full(count, np.nan, dtype=np.float32), "invalid"
    else:
        scores = (1 - ranks.mean(axis=0) / max(count - 1, 1)).astype(np.float32)
        legal = all(answer.legal for answer in read)
        status = "partial" if len(read) < len(answers) else "ok" if legal else "repaired"
    return Ranking(
        scores=scores,
        status=status,  # type: ignore[arg-type]
        answers=answers,
        invented=sum(answer.invented for answer in read),
        duplicates=sum(answer.duplicates for answer in read),
        unnamed=sum(answer.unnamed for answer in read),
    )


def _schema(most: int) -> str:
    items = {"type": "integer", "minimum": 1, "maximum": most}
    return Json(schema={"type": "array", "items": items, "minItems": 1, "maxItems": most}).schema  # type: ignore[arg-type]


def _prompt(name: str, max_candidates: int) -> Prompt:
    prompt = load_prompt(f"package:llmrec_plugin.systems.llm_scorer/prompts/{name}.md")
    slots = (
        replace(slot, max_items=max_candidates, max_tokens=max_candidates * _TOKENS_OF_CANDIDATE)
        if slot.name == "candidates"
        else slot
        for slot in prompt.slots
    )
    return replace(prompt, slots=tuple(slots))
