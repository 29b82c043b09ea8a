"""Tokenizers of exported models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_plugin.errors import ArtifactMismatchError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(path: Path, max_tokens: int, owner: str) -> Tokenizer:
    """The tokenizer in a file, cutting at `max_tokens` and padding nothing.

    Args:
        path: A ``tokenizer.json``.
        max_tokens: Longest text in tokens, special tokens included.
        owner: Whose it is, for messages.

    Raises:
        ArtifactMismatchError: The special tokens alone take all the room.
    """
    from tokenizers import Tokenizer  # only where there are texts

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    special = tokenizer.num_special_tokens_to_add(False)
    if max_tokens <= special:
        raise ArtifactMismatchError(
            f"{owner} adds {special} special tokens to every text, so max_tokens={max_tokens} leaves no room for it. "
            f"Declare at least {special + 1}."
        )
    tokenizer.enable_truncation(max_tokens)
    return tokenizer
