"""What the models of a feature would have to read, and how long that takes here."""

from __future__ import annotations

import functools
import random
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

from llmrec_plugin.binding import BoundColumn, BoundFeature, BoundNetwork, BoundTokens
from llmrec_plugin.pipeline.assemble import assemble
from llmrec_plugin.pipeline.networks import estimated_work
from llmrec_plugin.pipeline.prompts import read_rows
from llmrec_plugin.runtime.rawrows import Rows
from llmrec_plugin.runtime.runner import CHARACTERS_PER_TOKEN, Runner

SAMPLED_TEXTS = 20_000
"""Up to so many texts are tokenized; of more, a random sample, whose mean is within 2 % (99.9 % of the time)."""
_CALIBRATION_SECONDS = 3.0
_CALIBRATION_TEXTS = 1024


class Work(ABC):
    """Distinct inputs of one model, counted as rows come by; those that are not cached are sampled.

    Args:
        runner: Whose cache and models are asked.
        fingerprint: Under which the model's values are cached.

    Attributes:
        texts: Number of distinct inputs.
        compute: Number of those without a cached value.
    """

    AT_A_TIME: int

    def __init__(self, runner: Runner, fingerprint: str) -> None:
        self._runner = runner
        self._fingerprint = fingerprint
        self._seen: set[int] = set()  # hashes: a set of texts would hold the whole catalogue
        self._sample: list[str] = []
        self._random = random.Random(0)  # noqa: S311 - a sample, no secret
        self.compute = 0

    @property
    def texts(self) -> int:
        return len(self._seen)

    @property
    def is_exact(self) -> bool:
        """Whether the sample holds everything."""
        return len(self._sample) == self.compute

    def add(self, rows: Rows) -> None:
        """Counts what the model would read of some rows."""
        fresh = {hash(text): text for text in self.read(rows) if hash(text) not in self._seen}
        self._seen |= fresh.keys()
        texts = list(fresh.values())
        known = self._runner.cache.known(self._fingerprint, texts)
        for text in texts:
            if text not in known:
                self.compute += 1
                self._keep(text)

    @functools.cached_property
    def tokens(self) -> int:
        """Tokens of what would be computed; to be asked when all rows were counted."""
        return round(self.count(self._sample) * self.compute / len(self._sample)) if self._sample else 0

    def seconds(self) -> float:
        """How long computing it takes, from the speed measured on some of the sample."""
        if not self._sample:
            return 0.0
        order = self._random.sample(self._sample, len(self._sample))
        self.run(order[:8])  # opens the model; the first run of a session is slower
        clock, done = time.perf_counter(), 0
        while done < len(order) and time.perf_counter() - clock < _CALIBRATION_SECONDS:
            part = order[done : done + self.AT_A_TIME]
            self.run(part)
            done += len(part)
        took = time.perf_counter() - clock
        return took * self.tokens / max(self.count(order[:done]), 1)

    def _keep(self, text: str) -> None:
        """Reservoir sampling: every text has the same chance to be in the sample."""
        if len(self._sample) < SAMPLED_TEXTS:
            self._sample.append(text)
        elif (place := self._random.randrange(self.compute)) < SAMPLED_TEXTS:
            self._sample[place] = text

    @abstractmethod
    def read(self, rows: Rows) -> list[str]:
        """What the model reads of rows."""

    @abstractmethod
    def count(self, texts: Sequence[str]) -> int:
        """Tokens of inputs, what is written included."""

    @abstractmethod
    def run(self, texts: list[str]) -> None:
        """Computes inputs and keeps nothing."""


class Encoding(Work):
    """Texts of features that encode alike, so that they share what is cached."""

    AT_A_TIME = 128

    def __init__(self, runner: Runner, features: Sequence[BoundFeature]) -> None:
        super().__init__(runner, features[0].encoding_fingerprint)
        self._features = features

    def read(self, rows: Rows) -> list[str]:
        assembled = [assemble(bound.feature, rows.columns) for bound in self._features]
        return [text for item in assembled for row in item.rows for text in row]

    def count(self, texts: Sequence[str]) -> int:
        encoder, feature = self._runner.models.encoder(self._features[0], "batch"), self._features[0].feature
        return encoder.count_tokens([feature.prefix + text for text in texts], max_tokens=feature.max_tokens)

    def run(self, texts: list[str]) -> None:
        encoder, feature = self._runner.models.encoder(self._features[0], "batch"), self._features[0].feature
        encoder.encode([feature.prefix + text for text in texts], max_tokens=feature.max_tokens)


class Writing(Work):
    """Inputs of a prompt; how much is written is bounded, not known."""

    AT_A_TIME = 64

    def __init__(self, runner: Runner, bound: BoundTokens) -> None:
        super().__init__(runner, bound.encoding_fingerprint)
        self._bound = bound

    def read(self, rows: Rows) -> list[str]:
        return [key for key in read_rows(self._bound.feature, rows.columns).keys if key is not None]

    def count(self, texts: Sequence[str]) -> int:
        # Instructions are the same for all rows and are read once.
        new = self._bound.feature.decoding.max_new_tokens
        return sum(len(text) // CHARACTERS_PER_TOKEN + new for text in texts)

    def run(self, texts: list[str]) -> None:
        self._runner.write(self._bound, texts)


class Running(Work):
    """Rows of a network that computes no vectors of texts first."""

    AT_A_TIME = _CALIBRATION_TEXTS

    def __init__(self, runner: Runner, bound: BoundNetwork) -> None:
        super().__init__(runner, bound.encoding_fingerprint)
        self._bound = bound

    def read(self, rows: Rows) -> list[str]:
        read = self._runner.read_network_rows(self._bound, rows.columns)
        return [row for row in read.rows if row is not None]

    def count(self, texts: Sequence[str]) -> int:
        return sum(estimated_work(self._bound.inputs, text) for text in texts)

    def run(self, texts: list[str]) -> None:
        self._runner.models.network(self._bound, "batch").compute(texts)


def works(bound: BoundColumn, runner: Runner) -> list[Work]:
    """What takes the time of a feature: what a model writes, else the encoders, else the network.

    What comes after it can be counted only when it is there, and is small beside it.
    """
    if isinstance(bound, BoundTokens):
        return [Writing(runner, bound)]
    if isinstance(bound, BoundFeature):
        return [Encoding(runner, [bound])] if bound.of is None else [Writing(runner, bound.of)]
    alike: defaultdict[str, list[BoundFeature]] = defaultdict(list)
    for _, part in bound.parts:
        alike[part.encoding_fingerprint].append(part)
    return [Encoding(runner, features) for features in alike.values()] or [Running(runner, bound)]
