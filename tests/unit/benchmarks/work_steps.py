"""Encodes texts with our encoder and with a plain loop, in a process whose instructions callgrind counts.

    valgrind --tool=callgrind --instr-atstart=no python work_steps.py FOLDER

Counting begins after both are loaded and warm. callgrind writes a file after each: first ours, then the plain loop's.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from llmrec_plugin.artifacts import Artifact, ArtifactStore
from llmrec_plugin.manifests import GRAPH, TOKENIZER
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.settings import load_settings

WORDS = "red green blue small old new fast slow web server client python java library tool game unknown words".split()
MAX_TOKENS = 64
ROWS = 32


def make_texts(count: int) -> list[str]:
    """Texts of 1 to 60 words; most are short, as real ones are."""
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=1 + int(59 * choose.random() ** 2))) for _ in range(count)]


def our_encoder(artifact: Artifact) -> Encoder:
    """On one thread: threads that wait would make the counts vary."""
    return Encoder(artifact, load_settings({"LLMREC_THREADS": "1", "LLMREC_DEVICE": "cpu"}))


class PlainLoop:
    """What one writes first: batches of 32 in the order of the texts, padded to their longest."""

    def __init__(self, artifact: Artifact) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(artifact.path(GRAPH)), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(artifact.path(TOKENIZER)))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), ROWS):
            encodings = self._tokenizer.encode_batch(texts[start : start + ROWS])
            feeds = {
                "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
                "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
            }
            vectors.append(self._session.run(["embedding"], feeds)[0])
        return np.concatenate(vectors)


class Callgrind:
    """The requests that a program may make of callgrind. Outside of valgrind they do nothing.

    A request is a sequence of instructions without effect, which valgrind recognizes; x86-64 only.
    """

    DUMP, START, STOP = ((ord("C") << 24 | ord("T") << 16) + number for number in (0, 4, 5))
    _CODE = bytes.fromhex(
        "4889f8"  # mov rax, rdi: the request's six numbers, this function's argument
        "31d2"  # xor edx, edx
        "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi, by 128 bits in all
        "4887db"  # xchg rbx, rbx
        "c3"  # ret
    )

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(self._CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)

    def ask(self, request: int) -> None:
        self._call(ctypes.byref((ctypes.c_uint64 * 6)(request)))


def main() -> None:
    artifact = ArtifactStore([Path(sys.argv[1])]).current("tiny")
    ours, plain, texts, callgrind = our_encoder(artifact), PlainLoop(artifact), make_texts(256), Callgrind()
    for engine in (ours, plain):
        engine.encode(texts)
    callgrind.ask(Callgrind.START)
    for engine in (ours, plain):
        engine.encode(texts)
        callgrind.ask(Callgrind.DUMP)
    callgrind.ask(Callgrind.STOP)


if __name__ == "__main__":
    main()
