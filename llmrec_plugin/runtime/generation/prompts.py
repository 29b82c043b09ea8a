"""Requests -> token ids. Data is only ever data: it spells no special token, and only data is cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.generation import Request, Segment
from llmrec_plugin.manifests import GeneratorManifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class EncodedPrompt(NamedTuple):
    """A prompt as the model reads it.

    Attributes:
        ids: Token ids, (length,) int64.
        head: How many of them come before the first data, and are the same for every row of a feature.
    """

    ids: np.ndarray
    head: int


class PromptTokenizer:
    """A tokenizer for instructions, in which special tokens may be spelled, and for data, in which they may not.

    Args:
        text: Content of ``tokenizer.json``.
    """

    def __init__(self, text: str) -> None:
        from tokenizers import Tokenizer

        self.plain: Tokenizer = Tokenizer.from_str(text)
        self._data: Tokenizer = Tokenizer.from_str(text)
        for tokenizer in (self.plain, self._data):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        # What is special stays what it is written as: the letters of "<|im_end|>", not the end of the user's turn.
        self._data.encode_special_tokens = True
        self._pieces: list[str] | None = None
        self.instructions = lru_cache(maxsize=256)(self._encode)

    def data(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts that come from rows."""
        encodings = self._data.encode_batch_fast([_sound(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens that a model wrote, without special tokens."""
        return str(self.plain.decode(list(ids), skip_special_tokens=True))

    def pieces(self, vocab_size: int) -> list[str]:
        """The text of each token by itself."""
        if self._pieces is None:
            known = min(vocab_size, self.plain.get_vocab_size(with_added_tokens=True))
            self._pieces = self.plain.decode_batch([[token] for token in range(known)], skip_special_tokens=False)
        return self._pieces

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.plain.encode(text, add_special_tokens=False).ids)


def encode_request(
    request: Request, manifest: GeneratorManifest, tokenizer: PromptTokenizer, max_new_tokens: int
) -> EncodedPrompt:
    """`encode_requests` of one."""
    return encode_requests([request], manifest, tokenizer, max_new_tokens)[0]


def encode_requests(
    requests: Sequence[Request], manifest: GeneratorManifest, tokenizer: PromptTokenizer, max_new_tokens: int
) -> list[EncodedPrompt]:
    """The token ids of prompts, in their order.

    Data is cut to the tokens of its segment. Where the whole is still too long, the longest data is cut further, from
    its end, until it fits; instructions are never cut.

    Args:
        requests: The prompts.
        manifest: What the model reads and how much of it.
        tokenizer: The model's.
        max_new_tokens: Room that a causal model needs after the prompt.

    Raises:
        InputError: The instructions alone do not fit, or leave no room for data.
    """
    segments = [_joined(_parts(request, manifest)) for request in requests]
    texts = [segment for parts in segments for segment in parts if segment.data]
    encoded = iter(tokenizer.data([segment.text for segment in texts]))
    room = manifest.max_tokens - (max_new_tokens if manifest.task == "causal" else 0)
    return [_assemble(parts, encoded, manifest, tokenizer, room) for parts in segments]


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """How many leading tokens all the prompts, (length,) int64 each, share."""
    rows = [prompt.tolist() for prompt in prompts]
    first, last = min(rows), max(rows)  # in lexicographic order all others lie between them
    shared = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def _assemble(
    segments: list[Segment], encoded: object, manifest: GeneratorManifest, tokenizer: PromptTokenizer, room: int
) -> EncodedPrompt:
    pieces: list[Sequence[int]] = [manifest.prefix_ids]
    places: list[int] = []
    for segment in segments:
        if segment.data:
            places.append(len(pieces))
            ids = next(encoded)  # type: ignore[call-overload]  # an iterator over all requests
            pieces.append(ids if segment.max_tokens is None else ids[: segment.max_tokens])
        else:
            pieces.append(tokenizer.instructions(segment.text))
    pieces.append(manifest.suffix_ids)
    lengths = np.array([len(pieces[place]) for place in places], dtype=np.int64)
    fixed = sum(map(len, pieces)) - int(lengths.sum())
    if fixed > room or (lengths.any() and fixed == room):
        raise InputError(
            f"Model {manifest.model!r}: the instructions of the prompt have {fixed} tokens, which leaves no room for "
            f"data among the {room} that a prompt may have (the model reads {manifest.max_tokens}"
            f"{', its output included' if manifest.task == 'causal' else ''}). Shorten the prompt, or declare fewer "
            "max_new_tokens."
        )
    for place, kept in zip(places, cut_lengths(lengths, room - fixed), strict=True):
        pieces[place] = pieces[place][:kept]
    head = sum(len(piece) for piece in pieces[: places[0]]) if places else sum(map(len, pieces))
    ids = np.fromiter((token for piece in pieces for token in piece), dtype=np.int64)
    return EncodedPrompt(ids, head)


def cut_lengths(lengths: np.ndarray, room: int) -> np.ndarray:
    """What is kept of sequences so that they fit together: the longest are cut first, all to one length.

    Args:
        lengths: (n,) int64.
        room: What they may have together.

    Returns:
        (n,) int64; of those that are cut to one length, the first have one more where that fills the room.
    """
    if lengths.sum() <= room:
        return lengths
    ascending = np.sort(lengths)
    shorter = np.concatenate([[0], np.cumsum(ascending[:-1])])  # tokens of those that stay whole
    levels = (room - shorter) // np.arange(len(lengths), 0, -1)
    level = int(levels[np.argmax(levels < ascending)])  # the first that is cut
    kept = np.minimum(lengths, level)
    longer = np.flatnonzero(lengths > level)
    kept[longer[: room - int(kept.sum())]] += 1
    return kept


def _parts(request: Request, manifest: GeneratorManifest) -> list[Segment]:
    chat = manifest.chat
    if chat is None:
        system = [Segment(request.system + "\n\n")] if request.system else []
        return [*system, *request.user]
    if request.system:
        before, between, after = chat.with_system
        return [Segment(before + request.system + between), *request.user, Segment(after)]
    before, after = chat.without_system
    return [Segment(before), *request.user, Segment(after)]


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """Instructions beside each other as one; a space before data goes to the data, where tokenizers have it."""
    parts: list[Segment] = []
    for segment in segments:
        if not segment.text:
            continue
        last = parts[-1] if parts else None
        if last is None or last.data:
            parts.append(segment)
        elif not segment.data:
            parts[-1] = Segment(last.text + segment.text)
        elif last.text.endswith(" "):
            parts[-1] = Segment(last.text[:-1])
            parts.append(segment._replace(text=" " + segment.text))
        else:
            parts.append(segment)
    return [part for part in parts if part.text]


def _sound(text: str) -> str:
    """Without lone surrogates, which no tokenizer reads."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
