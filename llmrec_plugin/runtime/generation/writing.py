"""What one row has written, and how its next tokens are chosen; the engines only feed the model.

A row is fed tokens that it knows and asks for logits when it knows no further one. Tokens that a constraint leaves no
choice about are known, so the model need not be asked for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmrec_plugin.generation import Completion, Finish
from llmrec_plugin.manifests import GeneratorManifest
from llmrec_plugin.runtime.generation.beams import Beams, Continuation, Hypothesis, best_candidates
from llmrec_plugin.runtime.generation.choosing import draw, draws_of, log_normalizers, repeated
from llmrec_plugin.runtime.generation.constraints import Constraint, State
from llmrec_plugin.runtime.generation.prompts import PromptTokenizer
from llmrec_plugin.specs import Decoding

NOT_FINITE = "the model gave logits that are not finite numbers"


@dataclass(slots=True)
class Row:
    """A row that is being written.

    Attributes:
        index: Position of its request.
        room: Tokens that may still be written.
        tokens: Written so far.
        fresh: Those among them that the model has not read.
        state: Of the constraint.
        options: Tokens that the constraint allows next; None is any.
        draws: Random numbers, one per token.
        logprob: Of the tokens, and of the end.
        finish: Set when the row is over.
        text: What was written, where a stop string cut it.
        error: What went wrong.
        beams: The search, for beam search.
        keep: Nothing: a row never goes back.
    """

    index: int
    room: int
    tokens: list[int] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    state: State = None
    options: np.ndarray | None = None
    draws: np.ndarray | None = None
    logprob: float = 0.0
    finish: Finish | None = None
    text: str | None = None
    error: str = ""
    beams: Beams | None = None
    keep: None = None

    @property
    def over(self) -> bool:
        return self.finish is not None


class Writing:
    """How the rows of one call are written.

    Args:
        decoding: How tokens are chosen.
        manifest: The model.
        tokenizer: The model's.
        constraint: Keeps rows to their output; None allows anything.
        beginning: Tokens that every row begins with.
        stop: A text ends before the first of these.
    """

    def __init__(
        self,
        decoding: Decoding,
        manifest: GeneratorManifest,
        tokenizer: PromptTokenizer,
        constraint: Constraint | None = None,
        beginning: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._constraint = constraint
        self._beginning = list(beginning)
        self._ends = frozenset(manifest.eos_token_ids)
        self._stop = tuple(stop)
        self._stop_tokens = _tokens_of(self._stop, manifest.vocab_size, tokenizer)
        self._length = manifest.max_tokens
        self._vocab_size = manifest.vocab_size
        self._causal = manifest.task == "causal"

    @property
    def beams(self) -> int:
        """Sequences that a row needs at a time."""
        return self._decoding.beams

    def begin(self, index: int, seed: int, prompt_length: int) -> Row:
        """A row that has written what it must begin with.

        Args:
            index: Position of its request.
            seed: Of its draws.
            prompt_length: Tokens of its prompt.
        """
        read = prompt_length if self._causal else 1
        row = Row(index, min(self._decoding.max_new_tokens, self._length - read))
        if self._constraint is not None:
            row.state = self._constraint.start()
        if self._decoding.method == "sample":
            row.draws = draws_of(self._decoding, seed)
        row.tokens = self._beginning[: row.room]
        row.room -= len(row.tokens)
        if row.tokens:
            row.logprob = float("nan")
        if self._decoding.method == "beam":
            start = Hypothesis(tuple(row.tokens), np.float32(0), row.logprob, row.state)
            row.beams = Beams(self._decoding.beams, self._decoding.length_penalty, [start])
            row.finish = None if row.room > 0 else "length"
        else:
            self._look_ahead(row)
        row.fresh = list(row.tokens)
        return row

    def choose(self, rows: Sequence[Row], logits: np.ndarray) -> None:
        """Writes the next token of each row, and those that follow without a choice.

        Args:
            rows: m rows; `Row.fresh` or `Row.finish` of each is set.
            logits: (m, vocab) float32.
        """
        normalizers = log_normalizers(logits)
        decoding = self._decoding
        free = self._constraint is None and decoding.method == "greedy" and not decoding.repetition_ngram
        best = logits.argmax(axis=1) if free else None
        for i, row in enumerate(rows):
            row.fresh = []
            if not np.isfinite(normalizers[i]):
                row.finish, row.error = "error", NOT_FINITE
                continue
            token = self._pick(row, logits[i]) if best is None else int(best[i])
            row.logprob += float(logits[i, token] - normalizers[i])
            self._write(row, token)
            self._look_ahead(row)

    def search(self, row: Row, logits: np.ndarray) -> list[int]:
        """Takes a step of beam search.

        Args:
            row: A row with beams.
            logits: Of its running sequences, (running, vocab) float32.

        Returns:
            For each sequence that goes on its parent's position among those before; its new token is the last of
            ``row.beams.running``. Empty: the row is over.
        """
        beams = row.beams
        assert beams is not None
        normalizers = log_normalizers(logits)
        if not np.isfinite(normalizers).all():
            row.finish, row.error, beams.running = "error", NOT_FINITE, []
            return []
        chances = logits - normalizers[:, None]
        scores = chances + np.array([one.score for one in beams.running], dtype=np.float32)[:, None]
        for i, one in enumerate(beams.running):
            allowed = self._allowed(one.state, list(one.tokens), row.room)
            if allowed is not None:
                masked = np.full(scores.shape[1], -np.inf, dtype=np.float32)
                masked[allowed] = scores[i, allowed]
                scores[i] = masked
        count = max(2, 1 + len(self._ends)) * beams.beams
        best = best_candidates(scores, count)
        if self._constraint is not None:
            best = self._settled(best, beams.running, scores, row.room)
        row.room -= 1
        candidates = []
        for parent, token in best:
            one = beams.running[parent]
            logprob = one.logprob + float(chances[parent, token])
            candidates.append(self._continued(row, parent, one, token, scores[parent, token], logprob))
        parents = beams.advance(candidates)
        if not parents:
            result = beams.best
            row.finish = "stop" if result.ended else "length"
            row.logprob = result.logprob
            row.tokens = list(result.tokens[:-1] if result.tokens[-1] in self._ends else result.tokens)
            row.text = self._before_stop(row.tokens)
        return parents

    def completion(self, row: Row) -> Completion:
        """What a row that is over has written."""
        if row.finish == "error":
            return Completion("", "error", error=row.error)
        assert row.finish is not None
        text = self._tokenizer.decode(row.tokens) if row.text is None else row.text
        return Completion(text, row.finish, tuple(row.tokens), row.logprob)

    def _continued(
        self, row: Row, parent: int, one: Hypothesis, token: int, score: np.float32, logprob: float
    ) -> Continuation:
        tokens = (*one.tokens, token)
        ended = token in self._ends
        state = one.state
        if not ended and self._constraint is not None:
            state = self._constraint.advance(state, token)
            allowed = self._constraint.allowed(state, max(row.room, 1))
            ended = (allowed is not None and not allowed.size) or (row.room == 0 and self._constraint.complete(state))
        if not ended and token in self._stop_tokens:
            ended = self._before_stop(tokens) is not None
        return Continuation(parent, Hypothesis(tokens, score, logprob, state, ended), ended or row.room == 0)

    def _settled(
        self, candidates: list[tuple[int, int]], running: Sequence[Hypothesis], scores: np.ndarray, room: int
    ) -> list[tuple[int, int]]:
        """The candidates that can be brought to an end, each once, best first."""
        assert self._constraint is not None
        settled = {
            (parent, self._constraint.settle(running[parent].state, token, room)) for parent, token in candidates
        }
        return sorted(settled, key=lambda candidate: (-scores[candidate], candidate))

    def _pick(self, row: Row, logits: np.ndarray) -> int:
        allowed = self._without_repetition(row.options, row.tokens)
        values = logits if allowed is None else logits[allowed]
        if row.draws is None:
            at = int(values.argmax())
        else:
            at = draw(values, self._decoding, float(row.draws[self._decoding.max_new_tokens - row.room]))
        token = at if allowed is None else int(allowed[at])
        return token if self._constraint is None else self._constraint.settle(row.state, token, row.room)

    def _allowed(self, state: State, tokens: list[int], room: int) -> np.ndarray | None:
        allowed = None if self._constraint is None else self._constraint.allowed(state, room)
        return self._without_repetition(allowed, tokens)

    def _without_repetition(self, allowed: np.ndarray | None, tokens: list[int]) -> np.ndarray | None:
        banned = repeated(tokens, self._decoding.repetition_ngram)
        if not banned:
            return allowed
        if allowed is None:
            allowed = np.arange(self._vocab_size)
        kept = allowed[~np.isin(allowed, banned)]
        return kept if kept.size else allowed  # a constraint that repeats itself is still obeyed

    def _write(self, row: Row, token: int) -> None:
        if token in self._ends:
            row.finish = "stop"
            return
        row.tokens.append(token)
        row.fresh.append(token)
        row.room -= 1
        if self._constraint is not None:
            row.state = self._constraint.advance(row.state, token)
        if token in self._stop_tokens:
            row.text = self._before_stop(row.tokens)
            if row.text is not None:
                row.finish = "stop"

    def _look_ahead(self, row: Row) -> None:
        """Writes what follows without a choice, and ends a row that has no room or nothing to add."""
        while row.finish is None:
            if row.room <= 0:
                complete = self._constraint is not None and self._constraint.complete(row.state)
                row.finish = "stop" if complete else "length"
                return
            if self._constraint is None:
                return
            row.options = self._constraint.allowed(row.state, row.room)
            if row.options is None or row.options.size > 1:
                return
            if not row.options.size:
                row.finish = "stop"
                return
            row.logprob = float("nan")  # nobody asked the model
            self._write(row, int(row.options[0]))

    def _before_stop(self, tokens: Sequence[int]) -> str | None:
        """The text before the first stop string; None where there is none."""
        if not self._stop:
            return None
        text = self._tokenizer.decode(tokens)
        places = [place for place in map(text.find, self._stop) if place >= 0]
        return text[: min(places)] if places else None


def _tokens_of(stop: Sequence[str], vocab_size: int, tokenizer: PromptTokenizer) -> frozenset[int]:
    """Tokens that may complete a stop string: those with its last character, or a part of one."""
    if not stop:
        return frozenset()
    marks = {text[-1] for text in stop} | {"\ufffd"}
    pieces = tokenizer.pieces(vocab_size)
    return frozenset(token for token, piece in enumerate(pieces) if not marks.isdisjoint(piece))
