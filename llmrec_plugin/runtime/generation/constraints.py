"""Which tokens a row may write next, so that what it writes is a value of the declared output.

A constraint is a machine over tokens. Its states are small and never changed, so that the beams of a row may share
them. Closed vocabularies are tries over token ids; JSON is `llguidance`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from llmrec_plugin.errors import DeclarationError, MissingExtraError
from llmrec_plugin.manifests import GeneratorManifest
from llmrec_plugin.runtime.generation.prompts import PromptTokenizer
from llmrec_plugin.specs import Choice, Json, Output, ShortText, Tags

State = Any
SEPARATOR = ", "


class Constraint(Protocol):
    """A machine over tokens."""

    def start(self) -> State:
        """The state before the first token."""

    def allowed(self, state: State, room: int) -> np.ndarray | None:
        """Ids of the tokens that may follow, int64.

        Args:
            state: After the tokens written so far.
            room: Tokens that may still be written, at least 1; see `settle`.

        Returns:
            Empty: the value is complete and nothing may follow. None: anything may.
        """

    def settle(self, state: State, token: int, room: int) -> int:
        """The token, if the value can be brought to an end within `room` tokens, itself included; else another one that
        is allowed and begins such an end, where there is any."""

    def advance(self, state: State, token: int) -> State:
        """The state after a token that was allowed; `state` stays as it is."""

    def complete(self, state: State) -> bool:
        """Whether what was written is a value."""


class Trie:
    """Token sequences that share their beginnings. Node 0 is the root.

    Args:
        sequences: Pairs of a sequence, not empty, and the index of the item that it spells.
    """

    def __init__(self, sequences: Iterable[tuple[Sequence[int], int]]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.item: list[int] = [-1]
        """The item that ends at each node, or -1."""
        self.parent: list[int] = [-1]
        self.token: list[int] = [-1]
        """The token that leads to each node."""
        for sequence, item in sequences:
            node = 0
            for token in sequence:
                child = self.children[node].get(token)
                if child is None:
                    child = len(self.children)
                    self.children[node][token] = child
                    self.children.append({})
                    self.item.append(-1)
                    self.parent.append(node)
                    self.token.append(token)
                node = child
            if self.item[node] < 0:
                self.item[node] = item
        self.tokens = [np.fromiter(children, dtype=np.int64, count=len(children)) for children in self.children]
        self.items_below = [0] * len(self.children)
        self.longest = [0] * len(self.children)
        """Tokens from a node to the deepest end below it."""
        for node in range(len(self.children) - 1, -1, -1):  # children come after their parents
            below = self.children[node].values()
            self.items_below[node] = (self.item[node] >= 0) + sum(self.items_below[child] for child in below)
            self.longest[node] = max((1 + self.longest[child] for child in below), default=0)
        self.nearest = [0] * len(self.children)
        """Tokens from a node to the nearest end, itself included."""
        for node in range(len(self.children) - 1, -1, -1):
            if self.item[node] < 0:
                below = self.children[node].values()
                self.nearest[node] = min((1 + self.nearest[child] for child in below), default=0)
        self.bridges: dict[int, dict[int, tuple[int, int]]] = {}
        """Tokens that end an item and begin what follows: node -> token -> the item and a node of the later trie."""
        self.ends: dict[int, list[int]] = {}
        """The nodes at which each item ends: an item may be spelled in two ways."""
        for node, item in enumerate(self.item):
            if item >= 0:
                self.ends.setdefault(item, []).append(node)

    def find(self, tokens: Sequence[int]) -> int | None:
        """The node behind these tokens."""
        node: int | None = 0
        for token in tokens:
            node = None if node is None else self.children[node].get(token)
        return node

    def above(self, node: int) -> Iterable[int]:
        """The node and all above it."""
        while node >= 0:
            yield node
            node = self.parent[node]


class _ListState(NamedTuple):
    """Of `ItemList`: where a list is.

    Attributes:
        trie: 0 in the first item, 1 in a later one.
        node: In that trie.
        used: Items that are complete; the one that ends at `node` is not among them.
        taken: For each trie, how many items below a node are used.
    """

    trie: int
    node: int
    used: frozenset[int]
    taken: tuple[dict[int, int], dict[int, int]]
    ended: bool = False


class ItemList:
    """Distinct items, one or more, with separators between them.

    Args:
        first: Spellings of the items at the beginning.
        later: Spellings after another item, separator included; None where there is one item only.
        most: Items at most.
        ends: Ids of the tokens that end the output.
    """

    def __init__(self, first: Trie, later: Trie | None, most: int, ends: Sequence[int]) -> None:
        self._tries = (first, later or Trie([]))
        self._most = most
        self._ends = np.array(ends, dtype=np.int64)
        self._none = np.empty(0, dtype=np.int64)

    def start(self) -> _ListState:
        return _ListState(0, 0, frozenset(), ({}, {}))

    def complete(self, state: _ListState) -> bool:
        item = self._tries[state.trie].item[state.node]
        return state.ended or (item >= 0 and item not in state.used)

    def allowed(self, state: _ListState, room: int) -> np.ndarray:
        if state.ended:
            return self._none
        options = [self._below(state, state.trie, state.node, room), self._across(state, room)]
        if self.complete(state):
            finished = self._finished(state, self._tries[state.trie].item[state.node])
            if len(finished.used) < self._most:
                options.append(self._below(finished, 1, 0, room))
            following = np.concatenate(options)
            return np.concatenate([following, self._ends]) if following.size else self._none
        following = np.concatenate(options)
        # Where there is no room for any item, what is written is cut anyway.
        return following if following.size else self._below(state, state.trie, state.node, None)

    def settle(self, state: _ListState, token: int, room: int) -> int:
        return token  # nothing else was allowed

    def advance(self, state: _ListState, token: int) -> _ListState:
        trie = self._tries[state.trie]
        child = trie.children[state.node].get(token)
        if child is not None and self._open(state, state.trie, child):
            return state._replace(node=child)
        bridge = trie.bridges.get(state.node, {}).get(token)
        if bridge is not None:
            item, node = bridge
            return self._finished(state, item)._replace(trie=1, node=node)
        finished = self._finished(state, trie.item[state.node])
        child = self._tries[1].children[0].get(token)
        if child is None:
            return finished._replace(ended=True)
        return finished._replace(trie=1, node=child)

    def _open(self, state: _ListState, trie: int, node: int) -> bool:
        return state.taken[trie].get(node, 0) < self._tries[trie].items_below[node]

    def _below(self, state: _ListState, number: int, node: int, room: int | None) -> np.ndarray:
        """Tokens to the children that lead to an unused item within `room` tokens."""
        trie = self._tries[number]
        taken = state.taken[number]
        tokens = trie.tokens[node]
        if node in taken:  # a used item is below: leave out what leads to nothing else
            spent = [trie.token[at] for at in taken if trie.parent[at] == node and not self._open(state, number, at)]
            tokens = tokens[~np.isin(tokens, spent)]
        if room is None or trie.longest[node] <= room:
            return tokens
        children = [trie.children[node][token] for token in tokens.tolist()]
        near = [
            self._shortest(state, number, child, room - 1) < room if child in taken else trie.nearest[child] < room
            for child in children
        ]
        return tokens[np.array(near, dtype=bool)]

    def _across(self, state: _ListState, room: int) -> np.ndarray:
        """Tokens that end an unused item and begin the next."""
        bridges = self._tries[state.trie].bridges.get(state.node)
        if not bridges or len(state.used) + 1 >= self._most:
            return self._none
        tokens = [
            token
            for token, (item, node) in bridges.items()
            if item not in state.used and self._shortest(self._finished(state, item), 1, node, room - 1) < room
        ]
        return np.array(tokens, dtype=np.int64)

    def _shortest(self, state: _ListState, number: int, node: int, room: int) -> int:
        """Tokens from a node to the nearest end of an unused item; more than `room` where there is none within it."""
        trie = self._tries[number]
        level = [node]
        for depth in range(room + 1):
            if any(trie.item[at] >= 0 and trie.item[at] not in state.used for at in level):
                return depth
            level = [child for at in level for child in trie.children[at].values()]
        return room + 1

    def _finished(self, state: _ListState, item: int) -> _ListState:
        """With one more used item."""
        taken = tuple(dict(counts) for counts in state.taken)
        for trie, counts in zip(self._tries, taken, strict=True):
            for end in trie.ends.get(item, ()):
                for node in trie.above(end):
                    counts[node] = counts.get(node, 0) + 1
        return state._replace(used=state.used | {item}, taken=(taken[0], taken[1]))


class JsonGrammar:
    """JSON of a schema, by `llguidance`, which does not know how much room there is.

    So a chosen token is held against the length of an end that is found greedily. That end may be longer than need be
    and never too short: what does not fit gives way to the end's own next token.

    Args:
        schema: JSON Schema as text.
        tokenizer: Content of ``tokenizer.json``.
        pieces: The text of each token.
        vocab_size: Length of the logits, at least as many as there are tokens.
        eos_token_id: The token that ends the output.

    Raises:
        MissingExtraError: llguidance is not installed.
        DeclarationError: It does not know a part of the schema.
    """

    def __init__(self, schema: str, tokenizer: str, pieces: Sequence[str], vocab_size: int, eos_token_id: int) -> None:
        try:
            import llguidance  # native code that only this output needs
            import llguidance.numpy as bitmasks
        except ImportError as exc:
            raise MissingExtraError("llguidance", "constrained", "Writing JSON of a schema") from exc
        self._bitmasks = bitmasks
        self._vocab_size = vocab_size
        reader = llguidance.LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=eos_token_id)
        # Without whitespace between tokens: a model could write spaces for ever.
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        self._matcher = llguidance.LLMatcher(reader, grammar)
        if self._matcher.get_error():
            raise DeclarationError(f"json: the schema cannot be followed: {self._matcher.get_error()}")
        self._eos = eos_token_id
        pieces = [*pieces, *[""] * (vocab_size - len(pieces))]
        self._rank = np.array(
            [_CLOSING.get(piece, len(_CLOSING) + _LONGEST - len(piece[:_LONGEST])) for piece in pieces]
        )
        """The order in which tokens are tried for a short end: closing marks, then long pieces."""
        self._ample = _AMPLE * max(self._end(self._matcher, _FARTHEST), len(schema) // 4)
        """With more room than this the end is not looked for."""

    def start(self) -> Any:
        return self._matcher.deep_copy()

    def complete(self, state: Any) -> bool:
        return bool(state.is_accepting())

    def allowed(self, state: Any, room: int) -> np.ndarray:
        return self._following(state)

    def settle(self, state: Any, token: int, room: int) -> int:
        if room > self._ample or token == self._eos or self._end(self.advance(state, token), room - 1) < room:
            return token
        return self._nearest(state) if self._end(state, room) <= room else token

    def advance(self, state: Any, token: int) -> Any:
        following = state.deep_copy()
        following.consume_token(token)
        return following

    def _following(self, state: Any) -> np.ndarray:
        if state.is_stopped():
            return np.empty(0, dtype=np.int64)
        mask = self._bitmasks.allocate_token_bitmask(1, self._vocab_size)
        self._bitmasks.fill_next_token_bitmask(state, mask, 0)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self._vocab_size]
        return np.flatnonzero(bits)

    def _end(self, state: Any, most: int) -> int:
        """Tokens from a state to an end, the token that ends the output not counted; more than `most` if beyond it."""
        state, length = state.deep_copy(), 0
        while length <= most:
            if state.is_accepting():
                return length
            tokens = state.compute_ff_tokens() or [self._nearest(state)]
            if tokens[0] < 0 or not state.consume_tokens(tokens):
                break
            length += len(tokens)
        return most + 1

    def _nearest(self, state: Any) -> int:
        """The token that promises the nearest end; -1 where none may follow."""
        tokens = self._following(state)
        return int(tokens[self._rank[tokens].argmin()]) if tokens.size else -1


_CLOSING = {mark: rank for rank, mark in enumerate(('"', "}", "]", "0", "1", "null", ":"))}
_LONGEST = 32
_AMPLE = 4
_FARTHEST = 4096


def constraint_of(
    output: Output | None, manifest: GeneratorManifest, tokenizer: PromptTokenizer, source: Callable[[], str]
) -> Constraint | None:
    """The machine that keeps a row to its output; None where anything may be written.

    Args:
        output: What is declared.
        manifest: The model.
        tokenizer: The model's.
        source: Reads ``tokenizer.json``.

    Raises:
        MissingExtraError: JSON needs a package that is not installed.
        DeclarationError: The vocabulary is empty, or the tokenizer cannot spell it.
    """
    if isinstance(output, Choice):
        return ItemList(_first(output.options, tokenizer), None, 1, manifest.eos_token_ids)
    if isinstance(output, Tags):
        if not output.vocabulary:
            raise DeclarationError("tags: a model that writes tags needs their vocabulary, got none.")
        first, later = _first(output.vocabulary, tokenizer), _later(output.vocabulary, tokenizer)
        _build_bridges(output.vocabulary, first, later, tokenizer)
        return ItemList(first, later, output.max_items, manifest.eos_token_ids)
    if isinstance(output, Json):
        pieces = tokenizer.pieces(manifest.vocab_size)
        return JsonGrammar(output.schema, source(), pieces, manifest.vocab_size, manifest.eos_token_ids[0])
    return None


def forced_beginning(output: Output | None, tokenizer: PromptTokenizer) -> list[int]:
    """Tokens that every row writes first."""
    return tokenizer.data([output.prefix])[0] if isinstance(output, ShortText) and output.prefix else []


def _first(items: Sequence[str], tokenizer: PromptTokenizer) -> Trie:
    """Spellings at the beginning: with a space before them, as after ``Tags:``, and without, as in a chat."""
    bare = tokenizer.data(items)
    spaced = tokenizer.data([" " + item for item in items])
    found = list(enumerate(bare)) + [(i, ids) for i, ids in enumerate(spaced) if ids != bare[i]]
    _check_spelled(items, bare, tokenizer)
    return Trie((ids, i) for i, ids in found if tokenizer.decode(ids).strip() == items[i].strip())


def _later(items: Sequence[str], tokenizer: PromptTokenizer) -> Trie:
    """Spellings after another item: what the tokenizer makes of the whole, without what it makes of the first."""
    anchor, whole = _anchored(items, tokenizer)
    if all(ids[: len(anchor)] == anchor for ids in whole):
        return Trie((ids[len(anchor) :], i) for i, ids in enumerate(whole))
    return Trie((ids, i) for i, ids in enumerate(tokenizer.data([SEPARATOR + item for item in items])))


def _anchored(items: Sequence[str], tokenizer: PromptTokenizer) -> tuple[list[int], list[list[int]]]:
    """An item that a separator does not change the spelling of, and it with each item after it."""
    spelled = tokenizer.data(items)
    followed = tokenizer.data([item + SEPARATOR + items[0] for item in items])
    sound = [i for i, ids in enumerate(spelled) if followed[i][: len(ids)] == ids] or [0]
    first = items[sound[0]]
    return spelled[sound[0]], tokenizer.data([first + SEPARATOR + item for item in items])


def _build_bridges(items: Sequence[str], first: Trie, later: Trie, tokenizer: PromptTokenizer) -> None:
    """Finds items whose last token takes in the separator, as ``++,`` of ``c++, java`` may be one token."""
    anchor, whole = _anchored(items, tokenizer)
    openings = {tokenizer.decode([token]): child for token, child in later.children[0].items()}
    last = items[0]
    for trie, skip, spelled, texts in (
        (first, 0, tokenizer.data(items), items),
        (first, 0, tokenizer.data([" " + item for item in items]), [" " + item for item in items]),
        (later, len(anchor), whole, [tokenizer.decode(ids) for ids in whole]),
    ):
        followed = tokenizer.data([text + SEPARATOR + last for text in texts])
        for item, (ids, longer, text) in enumerate(zip(spelled, followed, texts, strict=True)):
            if longer[: len(ids)] == ids:
                continue
            shared = next(at for at, pair in enumerate(zip(ids, longer, strict=False)) if pair[0] != pair[1])
            written = tokenizer.decode(longer[: shared + 1])
            node = trie.find(ids[skip:shared])
            opening = openings.get(written[len(text) :]) if written.startswith(text) else None
            if node is not None and opening is not None:
                trie.bridges.setdefault(node, {}).setdefault(longer[shared], (item, opening))


def _check_spelled(items: Sequence[str], spellings: Sequence[Sequence[int]], tokenizer: PromptTokenizer) -> None:
    wrong = [item for item, ids in zip(items, spellings, strict=True) if tokenizer.decode(ids).strip() != item.strip()]
    if wrong:
        raise DeclarationError(
            f"The model's tokenizer cannot spell {', '.join(map(repr, wrong[:5]))}: what it writes for it is "
            f"{tokenizer.decode(tokenizer.data(wrong[:1])[0])!r}. Write these options otherwise."
        )
