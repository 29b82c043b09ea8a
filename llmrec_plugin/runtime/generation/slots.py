"""Continuous batching: rows of unequal length share the steps of a fused graph, one token each.

A slot holds a row. Every step reads one token per occupied slot: the next of a row's known tokens, or the one just
chosen. A row that ends makes room for another. Slots in use stay next to each other at the front: the last one moves
into a gap.

What all prompts begin with is read once and copied into a slot when that is used for the first time; rows that follow
in the slot find it there, and read what is left of their prompts while other rows are written. Prompts that have
nothing in common are read some at a time, before their rows share steps.

See docs/adr/0018-one-token-per-slot.md for what was measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from llmrec_plugin.runtime.generation.graphs import Binding, Cache, FusedGraph
from llmrec_plugin.runtime.generation.writing import Row, Writing

AHEAD = 1.0
"""A prompt that has at least this many times more tokens left than there are rows to share steps with is read at
once."""
TOGETHER = 12
"""So many slots are free before prompts that have nothing in common are read together."""
READ_TOKENS = 384
"""Tokens of prompts that a run reads, padding included; more do not make a token cheaper, and need more memory."""


class Owner(Protocol):
    """What occupies a slot.

    Attributes:
        keep: Tokens of the slot to go back to before `fresh`; None stays where it is.
        fresh: Tokens to read next.
        over: Whether it leaves.
    """

    fresh: list[int]

    @property
    def keep(self) -> int | None: ...

    @property
    def over(self) -> bool: ...


OwnerT = TypeVar("OwnerT", bound=Owner)


class Entry(Generic[OwnerT]):
    """A row that waits for a slot.

    Args:
        ids: Its prompt, (length,) int64.
        begin: Makes the occupant.
    """

    __slots__ = ("begin", "ids")

    def __init__(self, ids: np.ndarray, begin: Callable[[], OwnerT]) -> None:
        self.ids = ids
        self.begin = begin


class Slots:
    """The rows that one thread computes together.

    Args:
        graph: The graph.
        cache: Keys and values; its rows are the slots.
        prefix: What all prompts begin with, as `Cache.read` gives it; None for nothing.
    """

    def __init__(self, graph: FusedGraph, cache: Cache, prefix: np.ndarray | None = None) -> None:
        self._binding = Binding(graph, cache)
        self._cache = cache
        self._prefix = prefix
        self.shared = 0 if prefix is None else prefix.shape[2]
        """Tokens of the prefix."""
        self._used = 0  # slots that hold the prefix
        self._ids = np.zeros((cache.slots, cache.capacity), dtype=np.int64)
        self._read = np.zeros(cache.slots, dtype=np.int64)
        self._known = np.zeros(cache.slots, dtype=np.int64)
        self.count = 0
        """Slots in use."""
        self.steps = 0
        """Runs of the graph."""
        self.tokens = 0
        """Tokens that were read."""

    @property
    def free(self) -> int:
        return self._cache.slots - self.count

    def unread(self, slot: int) -> int:
        """Tokens of a slot's row that are yet to be read."""
        return int(self._known[slot] - self._read[slot])

    def enter(self, ids: np.ndarray, slot: int | None = None) -> int:
        """Puts a row into a slot.

        Args:
            ids: Its tokens, (length,) int64, longer than the prefix.
            slot: One that is in use and whose row is over; else the next free one.
        """
        if slot is None:
            slot = self.count
            self.count += 1
        if slot >= self._used:
            if self._prefix is not None:
                self._cache.write(slot, self._prefix)
            self._used = slot + 1
        self._ids[slot, : len(ids)] = ids
        self._read[slot], self._known[slot] = self.shared, len(ids)
        return slot

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Adds tokens that are to be read."""
        known = self._known[slot]
        self._ids[slot, known : known + len(tokens)] = tokens
        self._known[slot] += len(tokens)

    def go_back(self, slot: int, length: int) -> None:
        """Forgets all but the first tokens of a row."""
        self._known[slot] = length
        self._read[slot] = min(int(self._read[slot]), length)

    def leave(self, slot: int) -> int | None:
        """Frees a slot. Returns the slot whose row has moved into it, if one has."""
        self.count -= 1
        last = self.count
        if slot == last:
            return None
        read, known = int(self._read[last]), int(self._known[last])
        self._cache.copy(last, slot, self.shared, read)
        self._ids[slot, :known] = self._ids[last, :known]
        self._read[slot], self._known[slot] = read, known
        return last

    def fork(self, slot: int) -> int:
        """Copies a row into a free slot; returns that."""
        read, known = int(self._read[slot]), int(self._known[slot])
        target = self.enter(self._ids[slot, :known])
        self._cache.copy(slot, target, self.shared, read)
        self._read[target] = read
        return target

    def permute(self, sources: list[int], targets: list[int], start: int) -> None:
        """Copies rows of equal length to rows as if all were copied at once; the first `start` tokens are equal."""
        read, known = int(self._read[sources[0]]), int(self._known[sources[0]])
        self._cache.permute(sources, targets, start, read)
        self._ids[targets, start:known] = self._ids[sources, start:known]

    def read_ahead(self, slot: int) -> None:
        """Reads all tokens of a row but the last, in runs of its own."""
        while (left := self.unread(slot) - 1) > 0:
            self._read_piece(slot, min(left, READ_TOKENS))

    def read_new(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads all tokens of the rows from `first` on, which have no past, in one run; a single long row in several.

        Returns:
            The slots of the rows and the logits after them, as `step` does.
        """
        if first == self.count - 1:
            while self.unread(first) > READ_TOKENS:
                self._read_piece(first, READ_TOKENS)
        slots = np.arange(first, self.count)
        start, lengths = int(self._read[first]), self._known[slots] - self._read[slots]
        longest = int(lengths.max())
        ids = self._ids[first : self.count, start : start + longest]
        logits = self._run(first, ids, lengths, np.arange(len(slots)) * longest + lengths - 1)
        self._read[slots] = self._known[slots]
        return slots, logits

    def _read_piece(self, slot: int, length: int) -> None:
        start = int(self._read[slot])
        ids = self._ids[slot : slot + 1, start : start + length]
        self._run(slot, ids, np.array([length]), np.array([], np.int64))
        self._read[slot] += length

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads a token of each row in use.

        Returns:
            The slots whose rows have no further token, increasing, (m,) int64, and the logits after them, (m, vocab)
            float32, valid until the next run.
        """
        rows = np.arange(self.count)
        read = self._read[: self.count]
        wanted = np.flatnonzero(read + 1 == self._known[: self.count])
        logits = self._run(0, self._ids[rows, read][:, None], np.ones(self.count, dtype=np.int64), wanted)
        read += 1
        return wanted, logits

    def prefix(self, length: int) -> np.ndarray:
        """The cache of the first tokens of the first slot."""
        return self._cache.read(0, length)

    def _run(self, first: int, ids: np.ndarray, lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        self.steps += 1
        self.tokens += ids.size
        return self._binding.run(first, ids, self._read[first : first + len(ids)], lengths, wanted)


def _next_row(waiting: deque[Entry[OwnerT]], finished: Callable[[OwnerT], None]) -> tuple[OwnerT, np.ndarray] | None:
    """The next row that is not over at once, and its tokens, (length,) int64; None if no further one waits."""
    while waiting:
        try:
            entry = waiting.popleft()
        except IndexError:  # another thread took it
            return None
        owner = entry.begin()
        if not owner.over:
            fresh = np.array(owner.fresh, dtype=np.int64)
            return owner, np.concatenate([entry.ids, fresh]) if owner.fresh else entry.ids
        finished(owner)
    return None


def work(
    slots: Slots,
    waiting: deque[Entry[OwnerT]],
    consume: Callable[[Sequence[OwnerT], np.ndarray], None],
    finished: Callable[[OwnerT], None],
) -> None:
    """Runs rows until none waits and none is left; several threads may share what waits.

    Args:
        slots: Of this thread.
        waiting: Rows to come.
        consume: Given m occupants and their logits, (m, vocab) float32, sets what each reads next or that it is over.
        finished: Called with each occupant that is over.
    """
    owners: list[OwnerT] = []

    def admit(slot: int | None = None) -> bool:
        """Puts the next row into a slot, behind the prefix."""
        row = _next_row(waiting, finished)
        if row is None:
            return False
        owner, ids = row
        at = slots.enter(ids, slot)
        if slot is None:
            owners.append(owner)
        else:
            owners[slot] = owner
        if slots.unread(at) > AHEAD * max(len(owners), min(len(waiting), slots.free)):
            slots.read_ahead(at)
        return True

    def admit_together() -> tuple[np.ndarray, np.ndarray] | None:
        """Puts the next rows into free slots, as many as are read in one run, and reads them."""
        first, longest = len(owners), 1
        while slots.free and (len(owners) - first + 1) * longest <= READ_TOKENS:
            row = _next_row(waiting, finished)
            if row is None:
                break
            owner, ids = row
            slots.enter(ids)
            owners.append(owner)
            longest = max(longest, len(ids))
        return slots.read_new(first) if len(owners) > first else None

    least = min(TOGETHER, slots.free)
    while True:
        read = None
        if slots.shared:
            while slots.free and admit():
                pass
        elif waiting and slots.free >= min(least, len(waiting)):
            read = admit_together()
        if not owners:
            return
        wanted, logits = read or slots.step()
        if not wanted.size:
            continue
        chosen = [owners[slot] for slot in wanted]
        consume(chosen, logits)
        # From the last: a row that moves into a gap has had its turn, or wants none.
        for slot, owner in zip(wanted[::-1].tolist(), reversed(chosen), strict=True):
            if not owner.over:
                if owner.keep is not None:
                    slots.go_back(slot, owner.keep)
                slots.append(slot, owner.fresh)
                continue
            finished(owner)
            if slots.shared and admit(slot):
                continue
            last = slots.leave(slot)
            if last is not None:
                owners[slot] = owners[last]
            owners.pop()


def search(
    slots: Slots,
    waiting: deque[Entry[Row]],
    writing: Writing,
    finished: Callable[[Row], None],
) -> None:
    """Beam search: each row reads its prompt in one slot and then has up to `Writing.beams`."""
    width = writing.beams
    groups: list[_Group] = []
    owners: list[_Group] = []

    while True:
        while width * (len(groups) + 1) <= slots.count + slots.free:
            next_row = _next_row(waiting, finished)
            if next_row is None:
                break
            row, ids = next_row
            slot = slots.enter(ids)
            group = _Group(row, [slot], len(ids))
            groups.append(group)
            owners.append(group)
            if slots.unread(slot) > AHEAD * len(owners):
                slots.read_ahead(slot)
        if not groups:
            return
        wanted, logits = slots.step()
        if not wanted.size:
            continue
        place = {slot: at for at, slot in enumerate(wanted.tolist())}
        surplus: list[int] = []
        for group in [group for group in groups if group.slots[0] in place]:
            row = group.row
            parents = writing.search(row, logits[[place[slot] for slot in group.slots]])
            surplus += _rearrange(slots, owners, group, parents)
            if row.over:
                finished(row)
                groups.remove(group)
        for slot in sorted(surplus, reverse=True):
            last = slots.leave(slot)
            if last is not None:
                owners[slot] = owners[last]
                owners[slot].slots[owners[slot].slots.index(last)] = slot
            owners.pop()


class _Group:
    """The slots of a row in beam search, in the order of its running sequences."""

    def __init__(self, row: Row, slots: list[int], prompt_length: int) -> None:
        self.row = row
        self.slots = slots
        self.prompt_length = prompt_length


def _rearrange(slots: Slots, owners: list[_Group], group: _Group, parents: list[int]) -> list[int]:
    """Gives each sequence that goes on the cache of its parent and its new token; returns slots that are not needed."""
    before = group.slots
    sources = [before[parent] for parent in parents]
    targets: list[int | None] = [None] * len(parents)
    kept: set[int] = set()
    for i, source in enumerate(sources):  # the first child of a slot stays in it
        if source not in kept:
            targets[i] = source
            kept.add(source)
    spare = [slot for slot in before if slot not in kept]
    moved_from, moved_to = [], []
    for i, source in enumerate(sources):
        if targets[i] is not None:
            continue
        if spare:
            targets[i] = spare.pop(0)
            moved_from.append(source)
            moved_to.append(targets[i])
        else:
            targets[i] = slots.fork(source)
            owners.append(group)
    if moved_from:
        slots.permute(moved_from, [slot for slot in moved_to if slot is not None], group.prompt_length)
    group.slots = [slot for slot in targets if slot is not None]
    beams = group.row.beams
    assert beams is not None
    for slot, hypothesis in zip(group.slots, beams.running, strict=True):
        slots.append(slot, [hypothesis.tokens[-1]])
    return spare
