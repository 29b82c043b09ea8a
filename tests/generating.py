"""A byte-level tokenizer with special tokens, a manifest, and requests: what tests of generation start from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llmrec_plugin.generation import Request, Segment
from llmrec_plugin.manifests import ChatTemplate, GeneratorManifest

PAD, BOS, EOS, TURN, END_OF_TURN = range(5)
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TAGS = (
    "web", "web server", "web client", "database", "game", "game engine", "python", "java", "parser", "c", "c++",
    "image editor", "sound", "red", "blue", "übung",
)  # fmt: skip
CHAT = ChatTemplate(
    with_system=("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    without_system=("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
)


@lru_cache
def tokenizer_text() -> str:
    """Content of a ``tokenizer.json``: bytes and some merges, special tokens 0 to 4."""
    from llmrec_plugin.testing.tiny import train_byte_tokenizer  # loads onnx

    texts = [f"write tags for the item: {', '.join(TAGS)}"] * 3
    return str(train_byte_tokenizer(texts, SPECIAL, 330).to_str())


def manifest(**changes: Any) -> GeneratorManifest:
    """A causal model with 330 tokens and room for 128."""
    values: dict[str, Any] = {
        "model": "tiny", "source": {}, "task": "causal", "max_tokens": 128, "vocab_size": 330, "layers": 2,
        "kv_heads": 2, "head_dim": 8, "eos_token_ids": (EOS,), "pad_token_id": PAD, "files": {},
    }  # fmt: skip
    return GeneratorManifest(**{**values, **changes})


def request(text: str, instructions: str = "write tags for the item: ", *, seed: int = 0, **changes: Any) -> Request:
    """Instructions, then data."""
    return Request((Segment(instructions), Segment(text, data=True, **changes)), seed=seed)
