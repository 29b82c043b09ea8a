"""An engine for the tests: a text's vector is made of its first letters. It can misbehave on request."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

IMPORTS = ("json",)
PACKAGES = ("numpy",)


class Fake:
    def __init__(self, dims, noise, fail_after, misbehavior):
        self._dims, self._noise, self._left, self._misbehavior = dims, noise, fail_after, misbehavior

    def encode(self, texts):
        print("libraries print")
        if self._left == 0:
            if self._misbehavior == "exit":
                print("the last words", file=sys.stderr, flush=True)
                os._exit(3)
            if self._misbehavior == "sleep":
                time.sleep(600)
            raise ValueError("no more")
        self._left -= 1
        vectors = np.array([[ord(letter) for letter in text.ljust(self._dims)[: self._dims]] for text in texts])
        vectors[:, 0] += self._noise
        return vectors.astype(np.float32)

    def encode_one(self, text):
        return self.encode([text])[0]


def load(options):
    if options.get("missing"):
        raise ImportError("no such library")
    return Fake(
        options.get("dims", 8),
        options.get("noise", 0),
        options.get("fail_after", -1),
        options.get("misbehavior", "raise"),
    )


if __name__ == "__main__":  # as the process that measures the machine
    print("{}", flush=True)
    for _ in sys.stdin:
        rate = {"type": "fp32", "library": "fake", "shape": [1, 1, 1], "gflops": 2.0}
        print(json.dumps({"rates": [rate]}), flush=True)
