"""Truncated texts as texts, for runtimes that tokenize by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


def cut(text: str, encoding: Encoding, tokenizer: Tokenizer) -> str:
    """The beginning of `text` that has the tokens of `encoding`.

    WordPiece, BPE and Unigram find the same tokens again in a text that ends where one of them ended. A character that
    byte-level BPE spreads over several tokens can be cut inside, which no text can say; and a normalizer may join what
    a cut parts. So the cut is checked, and made at an earlier token where it must be: such a text lacks one or two
    characters of `encoding`. One whose first character does not fit keeps it.

    Args:
        text: The whole text.
        encoding: Its tokens, truncated if there are too many.
        tokenizer: What made them, with the same truncation.
    """
    if not encoding.overflowing:
        return text
    kept = _content(encoding)
    ends = sorted({end for _, end in encoding.offsets}, reverse=True)
    for end in ends:
        again = tokenizer.encode(text[:end])
        found = _content(again)
        if found and found == kept[: len(found)] and not again.overflowing:
            return text[:end]
    return text[: ends[0]]


def _content(encoding: Encoding) -> list[int]:
    """The tokens without those that the tokenizer adds."""
    return [token for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not special]
