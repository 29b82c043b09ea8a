"""Real texts: descriptions and synopses of packages."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

SAMPLE = Path(__file__).parents[2] / "feature_repo" / "sample" / "packages.jsonl.gz"
SHORT_TOKENS = range(14, 19)


@dataclass(frozen=True)
class Corpus:
    """Texts in the order in which every engine gets them.

    Attributes:
        name: ``mixed``, ``long`` or ``short``.
        texts: n texts.
        lengths: Tokens of each text, special tokens included, at most the model's; (n,) int64.
    """

    name: str
    texts: list[str]
    lengths: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


class Texts:
    """The corpora of one file, drawn with a fixed seed.

    Args:
        path: gzipped, one JSON object a line, with ``synopsis`` and ``description``.
        tokenizer: tokenizer.json of the model.
        max_tokens: Longest input of the model.

    Raises:
        SystemExit: The file has too few texts of a kind for what was asked; raised by the methods.
    """

    def __init__(self, path: Path, tokenizer: Path, max_tokens: int) -> None:
        self._path, self._max_tokens = path, max_tokens
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        shuffle = np.random.default_rng(0)
        self._descriptions = _distinct(rows, "description", shuffle)
        self._synopses = _distinct(rows, "synopsis", shuffle)

    def mixed(self, count: int) -> Corpus:
        """Descriptions and synopses half and half, in random order."""
        half = count // 2
        texts = self._take(self._descriptions, count - half, "descriptions") + self._take(
            self._synopses, half, "synopses"
        )
        return self._corpus("mixed", [texts[index] for index in np.random.default_rng(1).permutation(count)])

    def long(self, count: int) -> Corpus:
        """Descriptions that fill the model's length."""
        lengths = self._lengths(self._descriptions)
        full = [text for text, length in zip(self._descriptions, lengths, strict=True) if length == self._max_tokens]
        return self._corpus("long", self._take(full, count, f"descriptions of {self._max_tokens} tokens"))

    def short(self, count: int) -> Corpus:
        """Synopses of about 16 tokens."""
        lengths = self._lengths(self._synopses)
        short = [text for text, length in zip(self._synopses, lengths, strict=True) if length in SHORT_TOKENS]
        return self._corpus("short", self._take(short, count, "synopses of about 16 tokens"))

    def _take(self, texts: list[str], count: int, kind: str) -> list[str]:
        if len(texts) < count:
            raise SystemExit(
                f"{self._path} has {len(texts)} {kind}, {count} are needed. Lower --count, or give --texts."
            )
        return texts[:count]

    def _lengths(self, texts: list[str]) -> np.ndarray:
        return np.array([len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(texts)], dtype=np.int64)

    def _corpus(self, name: str, texts: list[str]) -> Corpus:
        return Corpus(name, texts, self._lengths(texts))


def _distinct(rows: list[dict[str, str]], key: str, shuffle: np.random.Generator) -> list[str]:
    texts = list(dict.fromkeys(row[key] for row in rows if row.get(key)))
    return [texts[index] for index in shuffle.permutation(len(texts))]
